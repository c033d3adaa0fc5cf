//! Prints where the trainer finds its shared libraries, libtorch and those of a portable build of
//! llama.cpp: beside an installed program, else where they were at the build. The second is relative to
//! the program, so that no program names a folder of its build.

use std::env;
use std::path::{Component, Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=build.rs");
    // RPATH (not RUNPATH) also covers what libtorch itself needs.
    println!("cargo:rustc-link-arg=-Wl,--disable-new-dtags");
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib/reflectd");
    if let Ok(libraries) = env::var("DEP_REFLECTD_GGML_LIBRARIES") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/{libraries}");
    }
    let Some(libtorch) = env::var_os("LIBTORCH") else { return };
    // OUT_DIR is PROFILE/build/reflectd-trainer-HASH/out; programs are in PROFILE, tests in PROFILE/deps.
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let profile = out.ancestors().nth(3).expect("cargo's layout of OUT_DIR");
    for folder in [profile.to_owned(), profile.join("deps")] {
        let libraries = relative(&folder, &Path::new(&libtorch).join("lib"));
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/{}", libraries.display());
    }
}

/// The way from one absolute folder to another.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(common).map(|_| Component::ParentDir);
    up.chain(to.components().skip(common)).collect()
}
