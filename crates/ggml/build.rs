//! Says where llama.cpp's shared libraries are, in the variable `DEP_REFLECTD_GGML_LIBRARIES` of the
//! build scripts of the packages that depend on this one. A build for this machine alone has none.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let Some(modules) = env::var_os("DEP_LLAMA_BACKENDS_DIR") else { return };
    let libraries = Path::new(&modules).with_file_name("lib");
    // OUT_DIR is PROFILE/build/reflectd-ggml-HASH/out, and programs are in PROFILE. The way from there
    // is the same wherever the folder of the build is.
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let profile = out.ancestors().nth(3).expect("cargo's layout of OUT_DIR");
    let libraries = libraries.strip_prefix(profile).expect("one folder for all build scripts");
    println!("cargo:libraries={}", libraries.display());
}
