//! Prints link arguments: where the programs find llama.cpp's libraries, and for the trainer alone
//! where it finds libtorch, so that the daemon never links that.
use std::env;
use std::path::Path;

/// Beside an installed program; all shared libraries of the package are there.
const INSTALLED: &str = "$ORIGIN/../lib/reflectd";

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=build.rs");
    // The installed layout comes first, the folder of the build second.
    let modules = env::var("DEP_LLAMA_BACKENDS_DIR").expect("llama-cpp-sys-2 says where it builds");
    let built = Path::new(&modules).with_file_name("lib");
    for folder in [INSTALLED, &built.to_string_lossy()] {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
    if env::var_os("CARGO_FEATURE_TRAINER").is_none() {
        return;
    }
    // RPATH (not RUNPATH) also covers what libtorch itself needs.
    println!("cargo:rustc-link-arg-bin=reflectd-trainer=-Wl,--disable-new-dtags");
    if let Ok(libtorch) = env::var("LIBTORCH") {
        println!("cargo:rustc-link-arg-bin=reflectd-trainer=-Wl,-rpath,{libtorch}/lib");
    }
}
