//! Writes down which processor llama.cpp's kernels are compiled for, so that a program that is started
//! on another one can say so instead of ending with SIGILL.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=CC");
    if env::var_os("CARGO_FEATURE_PORTABLE").is_some() {
        return;
    }
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let run = |arguments: &[&str]| {
        let output = Command::new(&compiler).args(arguments).output();
        output.map_or(String::new(), |it| String::from_utf8_lossy(&it.stdout).into_owned())
    };
    // What -march=native switches on, as the macros that it defines: `#define __AVX2__ 1`.
    let macros = run(&["-march=native", "-E", "-dM", "-x", "c", "/dev/null"]);
    let names = macros.lines().filter_map(|line| {
        line.strip_prefix("#define __")?.strip_suffix("__ 1").map(str::to_lowercase)
    });
    let options = run(&["-march=native", "-Q", "--help=target"]);
    let processor =
        options.lines().find_map(|line| line.trim().strip_prefix("-march=")?.trim().into());
    println!("cargo:rustc-env=REFLECTD_KERNEL_FEATURES={}", names.collect::<Vec<_>>().join(","));
    println!("cargo:rustc-env=REFLECTD_KERNEL_PROCESSOR={}", processor.unwrap_or("this processor"));
}
