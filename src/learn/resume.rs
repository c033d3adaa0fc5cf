//! Interrupted runs: which one goes on, and what becomes of the others. It must not train: it hands
//! `run` the job to go on with. Used by `run` and `task`.
//!
//! A run goes on as the same run, with the same data set, from the trainer's last checkpoint, and
//! only as long as it would be started so today: the same base, the same generation served, the same
//! settings. Means may have changed: threads, device, memory. What does not go on has failed.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tracing::warn;

use super::Parts;
use super::child::TrainerError;
use super::dataset::Dataset;
use super::error::RunError;
use super::job::{self, Lesson};
use super::made::{self, Made};
use super::program;
use super::promote::blocking;
use config::Config;
use engine::Generation;
use protocol::{CHECKPOINT, Job};
use store::{self, RunId, RunState, StoreError};

/// A run that is interrupted more often is given up: something about it does not work here.
const MAX_RESUMES: u64 = 10;

/// A recorded run that has not been judged: it goes on, or begins.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) id: RunId,
    /// What it began from, which is what is served.
    pub(super) start: Generation,
    pub(super) job: Job,
    pub(super) lesson: Lesson,
    /// How long it was trained.
    pub(super) trained: Duration,
    /// The trainer had ended: what it has made.
    pub(super) made: Option<Made>,
    /// What the training of a second candidate has made.
    pub(super) second: Option<Made>,
}

/// The newest interrupted run if it still makes sense; it is recorded as training again. All others
/// are recorded as failed, with the reason.
pub(super) async fn next(parts: &Parts, config: &Config) -> Result<Option<Waiting>, RunError> {
    let mut next = None;
    for run in parts.store.interrupted_runs().await? {
        let found = match &next {
            Some(_) => Err("a newer run goes on instead".to_owned()),
            None => continued(parts, config, &run).await?,
        };
        match found {
            Ok((job, lesson)) => {
                let made = Made::read(&run.metrics, &job.out).await;
                if made.is_none() {
                    // Without a trainer it waits on as it is.
                    program::command_line(&config.trainer).map_err(TrainerError::from)?;
                }
                let resumes = json!({ "resumes": n_resumes(&run) + 1 });
                let reason = format!("it goes on after: {}", run.reason.as_deref().unwrap_or("?"));
                parts.store.update_run(run.id, RunState::Training, Some(reason), resumes).await?;
                parts.store.forget_evaluations(run.id).await?;
                let out = job::out_of_good_alone(&job.out);
                let second = Made::read(&run.metrics[job::GOOD_ALONE], &out).await;
                let trained = run.metrics[made::TRAIN_S].as_f64().unwrap_or(0.0);
                let trained = Duration::try_from_secs_f64(trained).unwrap_or_default();
                let (id, start) = (run.id, run.start);
                next = Some(Waiting { id, start, job, lesson, trained, made, second });
            }
            Err(obstacle) => end(parts, &run, RunState::Failed, &obstacle).await?,
        }
    }
    Ok(next)
}

/// The owner does not want any of them to go on; how many there were.
pub(super) async fn give_up(parts: &Parts) -> Result<usize, StoreError> {
    let runs = parts.store.interrupted_runs().await?;
    for run in &runs {
        end(parts, run, RunState::Cancelled, "cancelled").await?;
    }
    Ok(runs.len())
}

/// Runs that an operation has left under way because it panicked do not go on; the newest of them.
pub(super) async fn fail_unfinished(
    parts: &Parts,
    reason: &str,
) -> Result<Option<RunId>, StoreError> {
    let left = parts.store.interrupt_unfinished_runs(reason.to_owned()).await?;
    for &id in &left {
        end(parts, &parts.store.run(id).await?, RunState::Failed, "it would panic again").await?;
    }
    Ok(left.into_iter().max())
}

/// A run that will not go on needs no checkpoints. The rest of its folder stays for the owner.
pub(super) async fn forget_checkpoints(out: &Path) {
    let paths = [out, &job::out_of_good_alone(out)].map(|out| out.join(CHECKPOINT));
    blocking(move || {
        for path in paths {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    warn!(path = %path.display(), %error, "A checkpoint was not removed.");
                }
                _ => {}
            }
        }
    })
    .await;
}

async fn end(
    parts: &Parts,
    run: &store::Run,
    state: RunState,
    why: &str,
) -> Result<(), StoreError> {
    let before = run.reason.as_deref().unwrap_or("it was interrupted");
    let reason = format!("{before}; it does not go on: {why}");
    warn!(run_id = %run.id, reason, "An interrupted run does not go on.");
    parts.store.update_run(run.id, state, Some(reason), json!({})).await?;
    if let Some(out) = run.job["out"].as_str() {
        forget_checkpoints(Path::new(out)).await;
    }
    Ok(())
}

/// The job to go on with, by the means that are configured now, or why it makes no sense any more.
async fn continued(
    parts: &Parts,
    config: &Config,
    run: &store::Run,
) -> Result<Result<(Job, Lesson), String>, RunError> {
    let active = parts.engine.stats().active;
    if run.start != active {
        return Ok(Err(format!("it began from generation {}, {active} is served", run.start)));
    }
    let Ok(began) = serde_json::from_value::<Job>(run.job.clone()) else {
        return Ok(Err("another version of reflectd began it".to_owned()));
    };
    // What `auto` comes to follows from the data.
    let path = parts.state.run(&began.run).join(job::DATA);
    let data = blocking({
        let path = path.clone();
        move || Dataset::read(&path)
    })
    .await;
    let Some(data) = data.ok().filter(|data| data.sha256 == run.data_sha256) else {
        return Ok(Err(format!("its data set {} is not there any more", path.display())));
    };
    let data = (data.counts(), began.seed);
    let lesson = serde_json::from_value(run.metrics["lesson"].clone()).unwrap_or(Lesson::Answers);
    let label = began.run.clone();
    let today = job::starting_now(parts, config, active, label, lesson, data).await?;
    if today.essence() != began.essence() {
        return Ok(Err("the model or the settings of learning are others now".to_owned()));
    }
    if MAX_RESUMES <= n_resumes(run) {
        return Ok(Err(format!("it was interrupted {MAX_RESUMES} times before")));
    }
    Ok(Ok((today, lesson)))
}

fn n_resumes(run: &store::Run) -> u64 {
    run.metrics["resumes"].as_u64().unwrap_or(0)
}
