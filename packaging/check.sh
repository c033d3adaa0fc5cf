#!/bin/sh
# Checks a packaged tree: no run path leads outside of it, and no file names the build folder.
# usage: packaging/check.sh TREE BUILD_FOLDER...
set -eu
tree=$1
shift
find "$tree" -type f ! -name '*.a' | while read -r file; do
	paths=$(readelf -d "$file" 2>/dev/null | sed -n 's/.*R\(UN\)\?PATH.*\[\(.*\)\]/\2/p' | tr : '\n')
	for path in $paths; do
		case $path in
		'$ORIGIN' | '$ORIGIN/../lib/reflectd') ;;
		# libtorch's own; there is no such folder in a package, and only root could make it.
		'$ORIGIN/../../nvidia/'*) ;;
		*) echo "$file: run path $path" ;;
		esac
	done
	for build; do
		if grep -qF -- "$build" "$file"; then echo "$file: names $build"; fi
	done
done >"$tree.faults"
if [ -s "$tree.faults" ]; then
	cat "$tree.faults" >&2
	exit 1
fi
rm "$tree.faults"
