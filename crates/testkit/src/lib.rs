//! What tests and benchmarks share. Nothing here is in a program that ships.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

pub mod bench;
pub mod cells;
pub mod client;
pub mod fake;
mod job;
pub mod mutation;
pub mod random_model;
pub mod reward;
mod skipped;
pub mod split;
pub mod tiny;
pub mod tree;
pub mod vocabulary;

use std::path::{Path, PathBuf};

pub use job::job;
pub use skipped::skipped;

/// What a program of ours takes from its environment. A test unsets it for the program that it starts, so
/// that neither the settings nor the running daemon of whoever runs the tests are in it.
pub const SETTINGS: [&str; 6] = [
    "REFLECTD_ROOT",
    "REFLECTD_STATE",
    "REFLECTD_SOCKET",
    "REFLECTD_LOG",
    "RUNTIME_DIRECTORY",
    "XDG_RUNTIME_DIR",
];

/// The trainer beside the daemon's program. Cargo builds the programs of a package for its tests, but not
/// those of others.
pub fn trainer(daemon: &str) -> PathBuf {
    let trainer = Path::new(daemon).with_file_name(protocol::program::NAME);
    assert!(
        trainer.exists(),
        "{} is missing; run `cargo build --release` first",
        trainer.display()
    );
    trainer
}

/// A small shell script that speaks the trainer's protocol, rightly or wrongly, as `sh` runs it.
pub fn fake_trainer(name: &str) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("trainers").join(name);
    assert!(script.exists(), "{} is missing", script.display());
    vec!["sh".to_owned(), script.to_string_lossy().into_owned()]
}

/// The root of the repository, for the files that ship with it.
pub fn repository() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).expect("this crate lies in crates/testkit")
}
