#!/usr/bin/env bash
# Tests the packages where a person installs them: in a Debian 12 of its own without a network, first
# without systemd, as in a container, then booted.
# usage: scripts/package-test.sh FOLDER [PREVIOUS.deb...]
# FOLDER has the packages of `make package`. PREVIOUS: packages of the release before; without them
# the same contents under a lower version stand in for it. The base system is kept for the next time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
  echo "package-test: $*" >&2
  exit 1
}
say() { echo "package-test: $*" >&2; }

# The mirror that this machine's apt uses.
mirror() {
  local uri
  uri=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 2>/dev/null | sed -n 's/ bookworm$//p' | head -n 1)
  [[ -n $uri ]] || die "apt names no mirror of bookworm; run apt-get update, or add one to its sources, and run again"
  echo "$uri"
}

# One tarball of what every Debian 12 has and what the packages depend on.
base() {
  local file="${XDG_CACHE_HOME:-$HOME/.cache}/reflectd/bookworm-systemd.tar" folder uri
  if [[ ! -f $file ]]; then
    command -v debootstrap >/dev/null || die "debootstrap is missing; install it with apt-get and run again"
    uri=$(mirror) || exit 1
    say "fetching a base system"
    folder=$(mktemp -d)
    debootstrap --variant=minbase --include=libgomp1,libstdc++6,systemd,systemd-sysv \
      bookworm "$folder" "$uri" >"$folder.log" 2>&1 || die "debootstrap failed; see $folder.log"
    mkdir -p "$(dirname "$file")"
    tar -cf "$file.new" --directory="$folder" .
    mv "$file.new" "$file"
    rm -rf "$folder" "$folder.log"
  fi
  echo "$file"
}

# The same package under a lower version.
older() {
  local folder
  folder=$(mktemp -d)
  dpkg-deb -R "$1" "$folder"
  sed -i 's/^Version: \(.*\)/Version: \1~before/; s/reflectd (= \([^)]*\))/reflectd (= \1~before)/' "$folder/DEBIAN/control"
  dpkg-deb -Znone -b "$folder" "$2" >/dev/null
  rm -rf "$folder"
}

((EUID == 0)) || die "only root can install packages; run it with sudo"
command -v systemd-nspawn >/dev/null || die "systemd-nspawn is missing; install systemd-container with apt-get and run again"
folder=${1:?the folder of the packages}
shift
for name in reflectd reflectd-trainer; do
  compgen -G "$folder/${name}_*.deb" >/dev/null || die "$folder has no $name; run \`make package\` first"
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/packages/before" "$scratch/packages/new"
cp "$folder"/reflectd_*.deb "$folder"/reflectd-trainer_*.deb "$scratch/packages/new"
if (($#)); then
  cp "$@" "$scratch/packages/before"
else
  say "no release before is named with PREVIOUS: this one under a lower version stands in for it"
  for package in "$scratch"/packages/new/*.deb; do
    older "$package" "$scratch/packages/before/$(basename "$package")"
  done
fi
# A root folder with the packages and the part of the test that is named.
system() {
  mkdir "$scratch/$1"
  tar -xf "$(base)" --directory="$scratch/$1"
  # debootstrap's was a temporary folder, of which only the owner may read.
  chmod 755 "$scratch/$1"
  cp -R "$scratch/packages" "$scratch/$1"
  cp scripts/package-test-steps.sh "$scratch/$1/steps.sh"
  cp "scripts/package-test-$1.sh" "$scratch/$1/test.sh"
}

system chroot
# Mounts and processes of the test end with it; the network has no device but a loopback that is down.
unshare --net --mount --pid --fork chroot "$scratch/chroot" /bin/bash /test.sh

system booted
# The unit that the boot is for; its end is that of the system.
cat >"$scratch/booted/etc/systemd/system/package-test.service" <<'UNIT'
[Unit]
After=systemd-journald.service
SuccessAction=exit
FailureAction=exit
FailureActionExitStatus=1
[Service]
Type=oneshot
TimeoutStartSec=15min
ExecStart=/bin/bash /test.sh
StandardOutput=file:/test.log
StandardError=inherit
UNIT
# Only output of the test is of interest, unless the system does not boot. Its own unit is not asked for
# where systemd does not run outside.
status=0
systemd-nspawn --directory="$scratch/booted" --machine=reflectd-package-test --boot --private-network \
  --register=no --keep-unit --link-journal=no --resolv-conf=off --timezone=off --console=read-only \
  -- --unit=package-test.service </dev/null >"$scratch/boot.log" 2>&1 || status=$?
cat "$scratch/booted/test.log" 2>/dev/null || { cat "$scratch/boot.log" >&2 && die "the system did not boot"; }
((status == 0)) || die "the test ended with $status"
