#!/usr/bin/env bash
# Makes a bare Debian 12 machine able to build reflectd: Debian packages, then libtorch.
# Idempotent, and silent when nothing is to do. Every failure ends with one line that says what to do.
# An existing libtorch is used as it is: LIBTORCH=/path scripts/setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The version that the pinned `tch` release is made for; torch-sys reads it from `build-version`.
TORCH=2.11.0
RUST_MINOR=95
DEPS=.deps

die() {
  echo "setup: $*" >&2
  exit 1
}
say() { echo "setup: $*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

# --- Debian packages -------------------------------------------------------------------------

# The names of the Debian packages whose tools are missing, one a line.
missing_packages() {
  has cmake || echo cmake
  has clang || echo clang
  has g++ || echo g++
  has make || echo make
  has curl || echo curl
  has pkg-config || echo pkg-config
  # bindgen loads libclang at build time; LIBCLANG_PATH is its own way to name another one.
  [[ -n ${LIBCLANG_PATH:-} ]] || compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null ||
    compgen -G '/usr/lib/*/libclang*.so*' >/dev/null || echo libclang-dev
  # Python unpacks libtorch and is not needed afterwards.
  if [[ -z ${LIBTORCH:-} ]] && ! libtorch_is_whole; then
    python3 -m pip --version >/dev/null 2>&1 || printf '%s\n' python3 python3-pip
  fi
}

install_packages() {
  local packages sudo=()
  mapfile -t packages < <(missing_packages)
  ((${#packages[@]})) || return 0
  has apt-get || die "missing: ${packages[*]}; install them with this system's package manager and run again"
  if ((EUID != 0)); then
    has sudo || die "missing: ${packages[*]}; install them as root and run again"
    sudo=(sudo)
  fi
  say "installing ${packages[*]}"
  "${sudo[@]}" apt-get update -qq >/dev/null ||
    die "apt-get update failed; check the network and the package sources, then run again"
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}" >/dev/null ||
    die "apt-get could not install ${packages[*]}; see its message above"
}

# --- Rust ------------------------------------------------------------------------------------

check_rust() {
  local version minor
  if ! has cargo || ! has rustc; then
    die "cargo is missing; install Rust 1.$RUST_MINOR or newer with rustup, then run again"
  fi
  version=$(rustc --version) ||
    die "rustc does not run; install the toolchain that rust-toolchain.toml names, then run again"
  minor=$(sed -nE 's/^rustc 1\.([0-9]+)\..*/\1/p' <<<"$version")
  ((${minor:-0} >= RUST_MINOR)) || die "$version is too old; install Rust 1.$RUST_MINOR or newer, then run again"
}

# --- libtorch --------------------------------------------------------------------------------

has_gpu() { has nvidia-smi && nvidia-smi >/dev/null 2>&1; }
flavour() { if has_gpu; then echo cuda; else echo cpu; fi; }

# One line for each file that a build or a run cannot do without: its size and its name.
inventory() {
  local files=(torch/lib/libtorch_cpu.so torch/lib/libc10.so torch/include/torch/csrc/api/include/torch/torch.h
    nvidia/cu13/lib/libcudart.so.13 nvidia/cu13/lib/libcupti.so.13)
  [[ $(flavour) == cpu ]] || files+=(torch/lib/libtorch_cuda.so torch/lib/libc10_cuda.so)
  (cd "$1" && echo "torch $TORCH $(flavour)" && stat --format='%s %n' "${files[@]}") 2>/dev/null
}

libtorch_is_whole() {
  [[ -f $DEPS/libtorch/stamp ]] && inventory "$DEPS/libtorch" | cmp -s - "$DEPS/libtorch/stamp"
}

# The processor needs a tenth of what the wheel holds: libraries and headers, nothing of CUDA but the
# two libraries that libtorch_cpu.so itself links, nothing of Python.
unpack_cpu() {
  python3 - "$1" "$2"/*.whl <<'PY'
import sys, zipfile

target, *wheels = sys.argv[1:]
keep = ("torch/lib/", "torch/include/", "nvidia/cu13/lib/libcudart.", "nvidia/cu13/lib/libcupti.")
drop = ("libtorch_cuda", "libc10_cuda", "libtorch_nvshmem", "libcaffe2_nvrtc", "libtorch_python")
for wheel in wheels:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            licence = ".dist-info/" in name
            if licence or name.startswith(keep) and not name.split("/")[-1].startswith(drop):
                archive.extract(name, target)
PY
}

install_libtorch() {
  local new="$DEPS/libtorch.new" wheels="$DEPS/wheels" pip=(python3 -m pip --quiet --disable-pip-version-check)
  local again="libtorch $TORCH could not be downloaded; check the network and run again, or set LIBTORCH to a libtorch $TORCH folder"
  # One wheel for every machine, whatever Python runs this script.
  local pick=(--python-version 3.11 --only-binary=:all:)
  rm -rf "$new" "$wheels"
  mkdir -p "$new"
  if [[ $(flavour) == cuda ]]; then
    say "downloading libtorch $TORCH with CUDA (several GB)"
    "${pip[@]}" install "${pick[@]}" --no-compile --target "$new" "torch==$TORCH" || die "$again"
  else
    say "downloading libtorch $TORCH (about 540 MB)"
    "${pip[@]}" download "${pick[@]}" --no-deps --dest "$wheels" \
      "torch==$TORCH" 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cupti==13.0.*' >/dev/null || die "$again"
    unpack_cpu "$new" "$wheels" || die "libtorch could not be unpacked; free 2 GB of disk and run again"
  fi
  echo "$TORCH" >"$new/torch/build-version"
  inventory "$new" >"$new/stamp" || die "the libtorch $TORCH wheel lacks a file that is needed; set LIBTORCH to another copy"
  # A whole folder or none: whoever is interrupted here starts again from nothing.
  rm -rf "$DEPS/libtorch"
  mv "$new" "$DEPS/libtorch"
  rm -rf "$wheels"
}

# --- Processor -------------------------------------------------------------------------------

# llama.cpp's kernels are compiled with -march=native. On another processor than that of the last build
# they are compiled again, which cargo does not notice by itself.
check_processor() {
  local now
  now=$(${CC:-cc} -march=native -E -dM -x c /dev/null 2>/dev/null | sort)
  mkdir -p "$DEPS"
  if [[ -f $DEPS/processor && $(<"$DEPS/processor") != "$now" ]]; then
    say "another processor than at the last build: llama.cpp is compiled again"
    cargo clean --quiet --release -p llama-cpp-sys-2 -p reflectd-engine || die "cargo clean failed; see its message above"
  fi
  echo "$now" >"$DEPS/processor"
}

main() {
  install_packages
  check_rust
  check_processor
  if [[ -n ${LIBTORCH:-} ]]; then
    [[ -f $LIBTORCH/lib/libtorch_cpu.so ]] ||
      die "LIBTORCH is $LIBTORCH but $LIBTORCH/lib/libtorch_cpu.so is missing; unset it or point it at libtorch $TORCH"
  elif ! libtorch_is_whole; then
    python3 -m pip --version >/dev/null 2>&1 || die "python3 has no pip; install python3-pip and run again"
    install_libtorch
  fi
}

main
