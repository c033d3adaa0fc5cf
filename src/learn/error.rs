//! Why a long operation broke, and what then becomes of its run. Used by every operation of `learn`.

use std::error::Error as _;
use std::path::PathBuf;

use super::adapter::AdapterError;
use super::arena::ArenaError;
use super::cancel::Stop;
use super::child::TrainerError;
use super::held_out::HeldOutError;
use super::promote::PromoteError;
use crate::reflect::ReflectError;
use crate::trust::TrustError;
use config::prompt_file::{Faults, PromptFileError};
use engine::EngineError;
use files::lora::LoraError;
use store::{RunId, RunState, StoreError};

/// Why examples are not learned.
#[derive(Debug, thiserror::Error)]
pub enum ExampleError {
    /// Some do not fit.
    #[error("{0}")]
    Faults(Faults),
    /// The agent's own file of examples cannot be used.
    #[error(transparent)]
    File(#[from] PromptFileError),
    /// A prompt or an answer cannot be made ready.
    #[error(transparent)]
    Reflect(#[from] ReflectError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a run or an exploration broke.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Reflect(#[from] ReflectError),
    #[error(transparent)]
    Prompts(#[from] PromptFileError),
    #[error(transparent)]
    HeldOut(#[from] HeldOutError),
    #[error(transparent)]
    Trainer(#[from] TrainerError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(transparent)]
    Lora(#[from] LoraError),
    #[error(transparent)]
    Arena(#[from] ArenaError),
    #[error(transparent)]
    Promote(#[from] PromoteError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// No prompt was explored to its end.
    #[error("no prompt was explored to its end; the engine failed at {failed} of {prompts}")]
    EngineFails { failed: usize, prompts: usize, source: EngineError },
    #[error("learn from the examples of an agent")]
    Examples(#[from] ExampleError),
    /// There is nothing to train on; the run is recorded.
    #[error("{reason}")]
    NothingToLearn { run: RunId, reason: String },
    /// The interrupted run does not make sense any more.
    #[error("no run can go on; `reflectd runs` says why")]
    NothingToResume,
    #[error("write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    /// The owner or the end of the daemon stopped it.
    #[error("{0}")]
    Cancelled(Stop),
}

impl RunError {
    /// With every cause, for the run's record.
    pub(super) fn reason(&self) -> String {
        let mut reason = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            reason = format!("{reason}: {error}");
            cause = error.source();
        }
        reason
    }

    /// What becomes of the run.
    pub(super) fn state(&self) -> RunState {
        match self {
            Self::Cancelled(stop) | Self::Trainer(TrainerError::Cancelled(stop)) => match stop {
                Stop::Owner => RunState::Cancelled,
                Stop::Shutdown => RunState::Interrupted,
            },
            // Memory, which may be there next time. The system kills (9) when it runs out, and
            // who ends all processes (15) does not mean the run.
            Self::Trainer(
                TrainerError::TryAgain(_) | TrainerError::Killed { signal: 9 | 15, .. },
            ) => RunState::Interrupted,
            _ => RunState::Failed,
        }
    }
}
