//! Prints where the program finds llama.cpp's shared libraries: beside an installed program, else where
//! they were built. The second is relative to the program, so that no program names a folder of its
//! build. A build for this machine alone has llama.cpp in it and looks nowhere.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let Ok(libraries) = std::env::var("DEP_REFLECTD_GGML_LIBRARIES") else { return };
    for folder in ["../lib/reflectd", &libraries] {
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/{folder}");
    }
}
