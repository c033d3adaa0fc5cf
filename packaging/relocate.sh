#!/bin/sh
# Makes programs and libraries independent of the folders in which they were built. Used by `make install`.
# usage: packaging/relocate.sh LIBRARIES "BUILD_FOLDER..." FILE...
# A run path that names a build folder is a way in: whoever can make that folder runs code as the
# service. So run paths end after the installed folder, which the linker was told first; the folder of
# kernel modules that ggml was built with becomes the installed one; and in texts, such as those of
# failed assertions, the name of a build folder is replaced by as many slashes. No text moves.
set -eu
libraries=$1
folders=$2
shift 2
for file; do
	strip --strip-unneeded "$file"
	LIBRARIES=$libraries FOLDERS=$folders perl -0777 -pi -e '
		BEGIN { $installed = $ENV{LIBRARIES}; @folders = split / /, $ENV{FOLDERS} }
		s{(\$ORIGIN/\.\./lib/reflectd)(:[^\0]*)}{$1 . "\0" x length $2}ge;
		for $folder (@folders) {
			s{\Q$folder\E[\w./-]*/out/backends}{$installed . "/" x (length($&) - length $installed)}ge;
			s{\Q$folder\E(?=/)}{"." . "/" x (length($folder) - 1)}ge;
		}' "$file"
done
