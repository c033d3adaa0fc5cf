//! `reflectd probe`: the child's side of `engine::probe`. Loads a file that nobody knows and computes
//! with it; when llama.cpp ends the process, that is the answer. Called by `cli::run`.

use std::path::PathBuf;

use crate::telemetry;
use engine::probe;
use protocol::exit::Exit;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The GGUF.
    model: PathBuf,
    /// A LoRA adapter of it.
    adapter: Option<PathBuf>,
}

pub(super) fn run(Arguments { model, adapter }: &Arguments) -> anyhow::Result<Exit> {
    // What llama.cpp says as it ends the process is the parent's only clue.
    telemetry::init()?;
    probe::run(model, adapter.as_deref())?;
    Ok(Exit::Ok)
}
