//! Prints link arguments for the trainer program alone, so that the daemon never links libtorch.
use std::env;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_TRAINER").is_none() {
        return;
    }
    // The installed layout comes first, the folder of the build second.
    let mut search = vec!["$ORIGIN/../lib/reflectd".to_owned()];
    if let Ok(libtorch) = env::var("LIBTORCH") {
        search.push(format!("{libtorch}/lib"));
    }
    // RPATH (not RUNPATH) also covers what libtorch itself needs.
    println!("cargo:rustc-link-arg-bin=reflectd-trainer=-Wl,--disable-new-dtags");
    for folder in search {
        println!("cargo:rustc-link-arg-bin=reflectd-trainer=-Wl,-rpath,{folder}");
    }
}
