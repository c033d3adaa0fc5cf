//! What tests and benchmarks share. Nothing here is in a program that ships.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

pub mod bench;
pub mod client;
pub mod fake;
pub mod mutation;
pub mod random_model;
mod skipped;
pub mod tiny;
pub mod vocabulary;

use std::path::{Path, PathBuf};

pub use skipped::skipped;

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

/// The root of the repository, for the files that ship with it.
pub fn repository() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).expect("this crate lies in crates/testkit")
}
