//! Prints where an installed program of a portable build finds llama.cpp's libraries. A build for this
//! machine alone has llama.cpp in it and looks nowhere.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_PORTABLE").is_some() {
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib/reflectd");
    }
}
