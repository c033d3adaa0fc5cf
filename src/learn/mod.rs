//! Candidates to pairs, pairs to a run, a run to a verdict, a verdict to a generation.
//! Decisions are pure (`pairs`, `replay`, `schedule`, `gate`, `live`, `guards`); effects are at the edge
//! (`arena`, `child`, `promote`).
//! The handle is [`Learner`]. Used by `daemon` and `api`.

pub mod adapter;
pub mod arena;
mod aside;
mod balance;
mod bet;
mod caller;
mod cancel;
pub mod child;
pub mod dataset;
mod error;
pub mod examples;
mod expected;
mod explore;
pub mod gate;
mod general;
mod groups;
mod guards;
pub mod held_out;
mod import;
pub mod job;
mod judge;
mod lesson;
mod live;
mod made;
mod material;
pub mod near;
mod night;
mod op_queue;
pub mod pairs;
mod passing;
mod practice;
pub mod practice_file;
mod preview;
pub mod program;
mod promote;
mod random;
mod readiness;
mod rehearsal;
mod replay;
mod resume;
mod run;
pub mod schedule;
mod selection;
mod shared;
pub mod survey;
mod task;
#[cfg(test)]
mod tests;
mod worth;
mod yields;

use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::caller::Caller;
use self::import::Source;
use self::op_queue::{Reply, Wish};
use crate::paths::StateDir;
use crate::reflect::Reflector;
use crate::trust::{self, Attack, AttackReport};
use config::Config;
use engine::{Engine, Generation};
use protocol::Step;
use store::{RunId, Store, StoreError};

pub use self::cancel::{Cancel, Stop};
pub use self::error::ExampleError;
pub use self::explore::{Harvest, Refining};
pub use self::guards::Guards;
pub use self::held_out::LeftOut;
pub use self::op_queue::Exploration;
pub use self::preview::{Preview, Shown};
pub use self::readiness::Readiness;

/// The handle to the learning task: one long operation at a time, later wishes collapse.
#[derive(Clone, Debug)]
pub struct Learner {
    commands: mpsc::Sender<Command>,
    news: News,
}

/// What the learning task lets everybody see.
#[derive(Clone, Debug)]
struct News {
    stage: watch::Receiver<Stage>,
    harvest: watch::Receiver<Harvest>,
    next_run: watch::Receiver<Option<DateTime<Utc>>>,
    guards: watch::Receiver<Guards>,
}

/// What learning needs of the daemon. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The model.
    pub engine: Engine,
    /// The database.
    pub store: Store,
    /// Explores, answers and judges.
    pub reflector: Reflector,
    /// The newest good configuration; an operation keeps the one that it began with.
    pub config: watch::Receiver<Arc<Config>>,
    /// Where adapters and runs lie.
    pub state: StateDir,
}

/// One message to the learning task.
#[derive(Debug)]
enum Command {
    Wish(Wish, Reply),
    Cancel(oneshot::Sender<bool>),
    Rollback(Generation, oneshot::Sender<Result<(), LearnError>>),
    Resume(oneshot::Sender<Result<(), LearnError>>),
    Preview(usize, oneshot::Sender<Result<Preview, LearnError>>),
    Readiness(oneshot::Sender<Result<Readiness, LearnError>>),
    Shutdown(oneshot::Sender<()>),
}

/// Wishes that wait for the task's attention. It only ever starts or refuses them, so a few do.
const QUEUE: usize = 16;

/// Brings the engine to the generation that the store names as active. Call it once, before
/// requests are taken. What cannot be served is passed over with a warning.
pub async fn restore(parts: &Parts) -> Generation {
    match promote::restore(parts).await {
        Ok(generation) => generation,
        Err(error) => {
            tracing::warn!(%error, "The base model is served, because the store does not answer.");
            Generation::BASE
        }
    }
}

/// Starts the learning task. It ends after [`Learner::shutdown`], or when the last handle is gone.
pub fn spawn(parts: Parts) -> (Learner, JoinHandle<()>) {
    let (commands, inbox) = mpsc::channel(QUEUE);
    let (task, news) = task::Task::new(parts, Utc::now());
    (Learner { commands, news }, tokio::spawn(task.run(inbox)))
}

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
        /// Prompts that have their first drafts.
        begun: usize,
        /// Prompts in all.
        total: usize,
        /// Candidates that pass every aspect so far.
        positives: usize,
        /// Tokens generated so far.
        generated_tokens: usize,
        /// The yield so far.
        positives_per_1000_tokens: f64,
        /// Of the prompts that are done, those that were not pursued after their first drafts, because next
        /// to no answer passes.
        unpursued: usize,
    },
    /// Reading an adapter that was made elsewhere.
    Importing,
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
    /// Candidates are compared on practice prompts that were not trained on.
    Choosing {
        /// Which run.
        run: RunId,
        /// 0: what is served is asked; then the candidates in their order.
        candidate: usize,
        /// Prompts done.
        done: usize,
        /// Prompts in all.
        total: usize,
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
    /// The judge is asked about answers that are there.
    Judging {
        /// What for.
        task: JudgeTask,
        /// Answers done (rescoring: exchanges).
        done: usize,
        /// Answers in all.
        total: usize,
    },
}

/// What the judge is asked for, besides reflection.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JudgeTask {
    /// Measure it on labelled answers, and put bars where they reach the target.
    Calibrate,
    /// See what answers gain that speak to it.
    Attack,
    /// Judge stored answers again that another version has judged.
    Rescore,
}

/// How a wish ended.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Ended {
    /// Exploration: what came of it.
    Explored {
        /// The counts.
        #[serde(flatten)]
        harvest: Harvest,
        /// Prompts of files that were not explored.
        left_out: LeftOut,
        /// Refinements against fresh drafts, for each agent where one of them was to be refined.
        refining: Vec<Refining>,
        /// The yield.
        positives_per_1000_tokens: f64,
        /// Seconds.
        wall_s: f64,
    },
    /// The judge was measured.
    Calibrated {
        /// One for each agent.
        reports: Vec<trust::Report>,
    },
    /// The judge was attacked.
    Attacked {
        /// One for each agent.
        reports: Vec<AttackReport>,
    },
    /// Stored answers were judged again.
    Rescored {
        /// Prompts touched.
        exchanges: usize,
        /// Answers judged again.
        candidates: usize,
        /// Seconds.
        wall_s: f64,
    },
    /// The adapter became this generation.
    Promoted {
        /// Which run.
        run: RunId,
        /// Its number.
        generation: Generation,
        /// Its share of the chats; below 1 it is a canary.
        share: f64,
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
    /// It was stopped and goes on later; serving is not touched.
    Interrupted {
        /// Which run.
        run: RunId,
        /// Why.
        reason: String,
    },
    /// It broke; serving is not touched.
    Failed {
        /// Which run, if it came to one.
        run: Option<RunId>,
        /// Why, and what to do.
        reason: String,
    },
}

impl Ended {
    /// For the log: reports are long, and stored or shown elsewhere.
    fn in_short(&self) -> String {
        let names = |names: Vec<&str>| names.join(", ");
        match self {
            Self::Calibrated { reports } => {
                format!("measured {}", names(reports.iter().map(|it| &*it.agent).collect()))
            }
            Self::Attacked { reports } => {
                format!("attacked {}", names(reports.iter().map(|it| &*it.agent).collect()))
            }
            other => format!("{other:?}"),
        }
    }
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
    /// What there is to learn cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// The learning task has ended.
    #[error("the learner has stopped")]
    Stopped,
}

impl Learner {
    /// What it is doing now; a watch channel, so that clients can follow.
    pub fn stage(&self) -> watch::Receiver<Stage> {
        self.news.stage.clone()
    }
    /// What exploration has brought since the daemon started.
    pub fn harvest(&self) -> Harvest {
        *self.news.harvest.borrow()
    }
    /// When the next scheduled run is due.
    pub fn next_run(&self) -> Option<DateTime<Utc>> {
        *self.news.next_run.borrow()
    }
    /// Why scheduled runs wait, what is being watched, and the newest alarms.
    pub fn guards(&self) -> Guards {
        self.news.guards.borrow().clone()
    }
    /// What a run would find now.
    pub async fn readiness(&self) -> Result<Readiness, LearnError> {
        self.ask(Command::Readiness).await?
    }
    /// Fills stored prompts with candidates. Resolves when done.
    pub async fn explore(&self, wish: Exploration) -> Result<Ended, LearnError> {
        self.ask(|reply| Command::Wish(Wish::Explore(wish), reply)).await?
    }
    /// Pairs, trains, gates, promotes. Resolves when done. The owner's wish also ends a pause.
    pub async fn train(&self) -> Result<Ended, LearnError> {
        self.ask(|reply| Command::Wish(Wish::Run(Caller::Owner), reply)).await?
    }
    /// Measures, attacks or asks again the judge of one agent or of all. Resolves when done.
    pub async fn judge(
        &self,
        task: JudgeTask,
        agent: Option<String>,
        limit: usize,
        attacks: Vec<Attack>,
    ) -> Result<Ended, LearnError> {
        let wish = Wish::Judge { task, agent, limit, attacks: Arc::new(attacks) };
        self.ask(|reply| Command::Wish(wish, reply)).await?
    }
    /// Puts an adapter that was made elsewhere on trial: a GGUF or a PEFT folder. `base_sha256` is
    /// the base that the owner says it is for. Resolves when done.
    pub async fn import(
        &self,
        path: PathBuf,
        base_sha256: Option<String>,
    ) -> Result<Ended, LearnError> {
        let wish = Wish::Import(Source { path, base_sha256 });
        self.ask(|reply| Command::Wish(wish, reply)).await?
    }
    /// Stops the long operation under way, or gives up the interrupted run that waits. Resolves when
    /// it has stopped; false: there was neither.
    pub async fn cancel(&self) -> Result<bool, LearnError> {
        self.ask(Command::Cancel).await
    }
    /// Serves this generation from now on (0: the base), without dropping a request. Refused while
    /// a training run is under way: it compares with what is served.
    pub async fn rollback(&self, to: Generation) -> Result<(), LearnError> {
        self.ask(|reply| Command::Rollback(to, reply)).await?
    }
    /// Lets scheduled runs start again after a pause.
    pub async fn resume(&self) -> Result<(), LearnError> {
        self.ask(Command::Resume).await?
    }
    /// What the next scheduled run would learn, at most `limit` lines of it.
    pub async fn preview(&self, limit: usize) -> Result<Preview, LearnError> {
        self.ask(|reply| Command::Preview(limit, reply)).await?
    }
    /// Stops the operation under way and ends the task. Resolves when nothing runs any more.
    pub async fn shutdown(&self) {
        // An error means that it has ended before.
        drop(self.ask(Command::Shutdown).await);
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, LearnError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| LearnError::Stopped)?;
        answer.await.map_err(|_| LearnError::Stopped)
    }
}
