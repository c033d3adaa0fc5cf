//! How a process of the trainer is set up, whoever starts it. Used by the daemon and by the benchmark
//! that compares the trainer with another one.

use std::process::Command;

/// The name of the program that lies beside the daemon.
pub const NAME: &str = "reflectd-trainer";

/// How OpenMP's threads wait for each other.
const OPENMP_WAITING: &str = "OMP_WAIT_POLICY";

/// Lets OpenMP's threads sleep while they wait, unless our own environment says how they wait. Spinning
/// ones take the processor from the very thread that they wait for as soon as anything else runs: beside
/// one compiler a survey of a model of 135 million parameters said 517 hours where it says 2 alone.
/// Sleeping ones make a quiet run up to a tenth slower.
pub fn wait_passively(command: &mut Command) {
    if std::env::var_os(OPENMP_WAITING).is_none() {
        command.env(OPENMP_WAITING, "passive");
    }
}

/// The setting under which [`wait_passively`] starts a process, as one would type it.
#[must_use]
pub fn waiting() -> String {
    let value = std::env::var(OPENMP_WAITING).unwrap_or_else(|_| "passive".to_owned());
    format!("{OPENMP_WAITING}={value}")
}
