//! Candidates to pairs, pairs to a run, a run to a verdict, a verdict to a generation.
//! Decisions are pure (`pairs`, `schedule`, `gate`); effects are at the edge (`child`, `promote`).
//! The handle is [`Learner`]. Used by `daemon` and `api`.

use serde::Serialize;

use crate::engine::Generation;
use crate::protocol::Step;
use crate::store::{RunId, StoreError};

/// The handle to the learning task: one long operation at a time, later wishes collapse.
#[derive(Clone, Debug)]
pub struct Learner {}

/// What the learning task is doing, for `status`, progress bars and `/v1/runs`.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub enum Stage {
    /// Nothing.
    #[default]
    Idle,
    /// Filling stored prompts with candidates.
    Exploring {
        /// Prompts done.
        done: usize,
        /// Prompts in all.
        total: usize,
        /// Candidates that pass every aspect so far.
        positives: usize,
    },
    /// Building pairs and the data set.
    Pairing,
    /// The trainer works.
    Training {
        /// Which run.
        run: RunId,
        /// Steps in all.
        n_steps: usize,
        /// The newest metrics.
        step: Step,
        /// The trainer is stopped because somebody chats.
        paused: bool,
    },
    /// The held-out comparison.
    Gating {
        /// Which run.
        run: RunId,
        /// Prompts done.
        done: usize,
        /// Prompts in all.
        total: usize,
    },
}

/// How a wish ended.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Ended {
    /// Exploration: what came of it.
    Explored {
        /// Prompts touched.
        prompts: usize,
        /// New candidates.
        candidates: usize,
        /// Candidates that pass every aspect.
        positives: usize,
        /// Tokens generated.
        generated_tokens: usize,
        /// Seconds.
        wall_s: f64,
    },
    /// The adapter became this generation.
    Promoted {
        /// Which run.
        run: RunId,
        /// Its number.
        generation: Generation,
        /// The gate's numbers.
        verdict: serde_json::Value,
    },
    /// The gate said no.
    Rejected {
        /// Which run.
        run: RunId,
        /// Why.
        reason: String,
        /// The gate's numbers.
        verdict: serde_json::Value,
    },
    /// It broke; serving is not touched.
    Failed {
        /// Which run, if it came to one.
        run: Option<RunId>,
        /// Why, and what to do.
        reason: String,
    },
}

/// Why the learner did not take a wish.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// Another long operation is under way.
    #[error("the learner is busy: {0}")]
    Busy(&'static str),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No such adapter is on disk, or it does not fit.
    #[error("{0}")]
    Adapter(String),
    /// The learning task has ended.
    #[error("the learner has stopped")]
    Stopped,
}

#[expect(clippy::unused_async, clippy::todo, reason = "the bodies follow")]
impl Learner {
    /// What it is doing now; a watch channel, so that clients can follow.
    pub fn stage(&self) -> tokio::sync::watch::Receiver<Stage> {
        todo!()
    }
    /// Fills up to `limit` stored prompts to (n, m); `None`: the agents' own numbers. Resolves when done.
    pub async fn explore(
        &self,
        _limit: usize,
        _split: Option<(u32, u32)>,
    ) -> Result<Ended, LearnError> {
        todo!()
    }
    /// Pairs, trains, gates, promotes. Resolves when done.
    pub async fn train(&self) -> Result<Ended, LearnError> {
        todo!()
    }
    /// Stops the long operation under way, if any.
    pub async fn cancel(&self) -> Result<(), LearnError> {
        todo!()
    }
    /// Serves this generation from now on (0: the base), without dropping a request.
    pub async fn rollback(&self, _to: Generation) -> Result<(), LearnError> {
        todo!()
    }
}
