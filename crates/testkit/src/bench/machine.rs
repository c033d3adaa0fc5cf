//! Where the numbers come from: processor, memory, system, commit. Used by the benchmarks.

use std::fs;
use std::process::Command;

use anyhow::Context as _;

/// One line about this machine.
pub fn describe(threads: u32) -> anyhow::Result<String> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let processors = read("/proc/cpuinfo")?;
    let memory = read("/proc/meminfo")?;
    let release = read("/proc/sys/kernel/osrelease")?;
    let value = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let name = value(&processors, "model name").context("/proc/cpuinfo names no processor")?;
    let family = value(&processors, "cpu family").unwrap_or_default();
    let n_processors = processors.lines().filter(|line| line.starts_with("processor")).count();
    let kilobytes = value(&memory, "MemTotal").unwrap_or_default();
    let kilobytes: f64 = kilobytes.split(' ').next().unwrap_or_default().parse().unwrap_or(0.0);
    Ok(format!(
        "{name} (family {family}), {n_processors} processors, {threads} threads used, {:.0} GiB, Linux {}",
        kilobytes / f64::from(1 << 20),
        release.trim()
    ))
}

/// The commit of the code under test; `+` when the code differs from it.
pub fn commit() -> anyhow::Result<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .arg("-C")
            .arg(crate::repository())
            .args(arguments)
            .output()
            .context("ask git for the commit")?;
        anyhow::Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=10", "HEAD"])?;
    // From the top of the repository, wherever this file lies.
    let code = [
        "src",
        "crates",
        "prompts",
        "agents",
        "build.rs",
        "Cargo.toml",
        "Cargo.lock",
        ".cargo",
        "bench/*.rs",
        "bench/*.py",
    ];
    let code = code.map(|path| format!(":/{path}"));
    let mut status = vec!["status", "--porcelain", "--"];
    status.extend(code.iter().map(String::as_str));
    let is_changed = !git(&status)?.is_empty();
    Ok(if is_changed { format!("{commit}+") } else { commit })
}
