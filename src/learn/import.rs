//! An adapter that was made elsewhere becomes a candidate: read, converted, tied to the served base,
//! then a run like any other, without training (`run`). It must not make the gate easier: there is
//! no trainer's probe, so parity is not measured, and everything else is. Used by `task`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;

use super::adapter;
use super::cancel::Cancel;
use super::child::Trained;
use super::dataset::{Counts, seed_of};
use super::error::RunError;
use super::held_out;
use super::job::{self, Lesson};
use super::made::Made;
use super::promote::blocking;
use super::run::{self, Run};
use super::{Ended, Parts, Stage};
use files::gguf;
use files::lora::{Adapter, LoraError, peft};
use store::RunState;

/// What is imported.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Source {
    /// A GGUF adapter or a PEFT folder; absolute, because the daemon reads it.
    pub(super) path: PathBuf,
    /// The base that the owner says it is for.
    pub(super) base_sha256: Option<String>,
}

/// From a file to a verdict.
pub(super) async fn import(
    parts: &Parts,
    source: Source,
    stage: &watch::Sender<Stage>,
    cancel: Cancel,
) -> Ended {
    stage.send_replace(Stage::Importing);
    match prepare(parts, source, stage).await {
        Ok(run) => run::conclude(run, cancel).await,
        Err(error) => Ended::Failed { run: None, reason: error.reason() },
    }
}

async fn prepare<'a>(
    parts: &'a Parts,
    source: Source,
    stage: &'a watch::Sender<Stage>,
) -> Result<Run<'a>, RunError> {
    let config = parts.config.borrow().clone();
    let (questions, _) = held_out::read_all(&parts.store, &config).await?;
    let start = parts.engine.stats().active;
    let label = format!("{}-import", chrono::Utc::now().format("%Y%m%dT%H%M%S%.3f"));
    let info = parts.engine.info();
    let (base, base_sha256) = (info.path.clone(), info.sha256.clone());
    let (out, path) = (parts.state.run(&label), source.path.clone());
    let converted = blocking(move || {
        let base = adapter::Base { path: &base, sha256: &base_sha256 };
        let converted = convert(&source, base, &out);
        if converted.is_err() {
            // What does not fit leaves nothing; it may not even be there.
            drop(std::fs::remove_dir_all(&out));
        }
        converted
    })
    .await?;
    let Converted { adapter, sha256, tie, rank, alpha, tensors } = converted;
    let data = (Counts::default(), seed_of(&sha256));
    let job = job::starting_now(parts, &config, start, label, Lesson::Answers, data).await?;
    let record = json!({
        "kind": "import",
        "path": path,
        "base": job.base,
        "base_sha256": job.base_sha256,
        "out": job.out,
        "lora": { "rank": rank, "alpha": alpha, "tensors": tensors },
    });
    // It has learned from no data of ours.
    let id = parts.store.start_run(start, String::new(), record, Vec::new()).await?;
    info!(run_id = %id, start = start.0, "An imported adapter is put on trial.");
    let facts = json!({
        "adapter_sha256": sha256,
        "tie": tie,
        "parity": "not measured, because the adapter was not trained here",
        "version": env!("CARGO_PKG_VERSION"),
    });
    parts.store.update_run(id, RunState::Gating, None, facts).await?;
    let made = Some(Made::elsewhere(Trained { adapter, sha256, probe: None }));
    // Nothing is to be chosen from.
    let (practice, trained, until) = (None, Duration::ZERO, Instant::now());
    Ok(Run {
        parts,
        config,
        stage,
        id,
        start,
        job,
        made,
        second: None,
        questions,
        practice,
        trained,
        until,
    })
}

/// An adapter as the engine wants it.
#[derive(Debug)]
struct Converted {
    adapter: PathBuf,
    sha256: String,
    /// What says that it belongs to the served base.
    tie: &'static str,
    /// `None`: it differs between layers.
    rank: Option<usize>,
    alpha: f64,
    tensors: usize,
}

/// Reads whatever it is and writes `adapter.gguf` into a new folder.
fn convert(source: &Source, base: adapter::Base<'_>, out: &Path) -> Result<Converted, RunError> {
    let parts = gguf::Parts::open(base.path).map_err(LoraError::from)?;
    let mut adapter = if source.path.is_dir() {
        peft::read(&source.path, parts.header())?
    } else {
        Adapter::read(&source.path)?
    };
    let refused = |reason| LoraError::Refused { path: source.path.clone(), reason };
    let claims = (adapter.base_sha256.as_deref(), source.base_sha256.as_deref());
    let tie = tie(claims, base.sha256).map_err(refused)?;
    adapter.base_sha256 = Some(base.sha256.to_owned());
    let path = out.join("adapter.gguf");
    let write = || {
        std::fs::create_dir_all(out)?;
        let name = source.path.file_stem().unwrap_or_default().to_string_lossy();
        adapter.write(&name, &path)?;
        files::sha256(&path)
    };
    let written = write();
    let sha256 = written.map_err(|source| RunError::Write { path: path.clone(), source })?;
    adapter::check(&path, &sha256, base)?;
    Ok(Converted {
        sha256,
        tie,
        rank: adapter.rank(),
        alpha: adapter.alpha,
        tensors: adapter.pairs.len(),
        adapter: path,
    })
}

/// Whether an adapter may belong to the served base, by what its file and its owner say.
fn tie((file, owner): (Option<&str>, Option<&str>), served: &str) -> Result<&'static str, String> {
    match (file, owner) {
        (Some(base), _) if base != served => {
            Err(format!("it was trained for the base {base}, and {served} is served"))
        }
        (_, Some(base)) if base != served => {
            Err(format!("it is said to be for the base {base}, and {served} is served"))
        }
        (Some(_), _) => Ok("its file names the served base"),
        (None, Some(_)) => Ok("its owner says that it is for the served base"),
        (None, None) => {
            Ok("nothing ties it to the served base but its shapes: it may be for another model")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_of_another_base_is_refused_whoever_says_so() {
        assert!(tie((Some("a"), None), "b").unwrap_err().contains("trained for the base a"));
        tie((Some("a"), Some("b")), "b").unwrap_err();
        assert!(tie((None, Some("a")), "b").unwrap_err().contains("said to be"));
        tie((Some("b"), Some("a")), "b").unwrap_err();
    }

    #[test]
    fn what_ties_an_adapter_to_its_base_is_said() {
        assert!(tie((Some("b"), None), "b").unwrap().contains("its file names"));
        assert!(tie((None, Some("b")), "b").unwrap().contains("owner says"));
        assert!(tie((None, None), "b").unwrap().contains("nothing ties it"));
    }
}
