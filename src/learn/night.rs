//! A night: explore, train, compare, and again, until its time is over or nothing is left to learn. What
//! each part does is `explore`'s and `run`'s business. Used by `task`.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::caller::Caller;
use super::cancel::Cancel;
use super::error::RunError;
use super::explore::{self, Tellers};
use super::job::Lesson;
use super::op_queue::Exploration;
use super::{Ended, Parts, examples, guards, held_out, practice, run};
use store::RunId;

/// Prompts that a night explores at most before it trains.
const MOST_PROMPTS: usize = 10_000;

/// How late it is, since the night began. A parameter, because tests turn it by hand.
pub(super) trait Clock: Sync {
    fn elapsed(&self) -> Duration;
    /// Resolves when it is so late.
    fn reaches(&self, late: Duration) -> BoxFuture<'_, ()>;
}

impl Clock for Instant {
    fn elapsed(&self) -> Duration {
        Instant::elapsed(self)
    }
    fn reaches(&self, late: Duration) -> BoxFuture<'_, ()> {
        Box::pin(sleep_until(*self + late))
    }
}

/// Rounds until the budget is spent, or until one brings no new generation for all chats. How the last
/// round that was a run has ended.
pub(super) async fn night(
    parts: &Parts,
    min_new_pairs: usize,
    tellers: Tellers<'_>,
    mut cancel: Cancel,
    clock: &dyn Clock,
) -> Ended {
    let budget = parts.config.borrow().learn.night;
    let mut last = None;
    let mut has_refused_examples = false;
    loop {
        let now = clock.elapsed();
        let explored: BoxFuture<'_, _> = Box::pin(explored(parts, tellers));
        let explored = tokio::select! {
            explored = explored => explored,
            // What is stored by then stays. The other half is for training and the gate.
            () = clock.reaches(now + budget.saturating_sub(now) / 2) => Ok(()),
            stop = cancel.cancelled() => Err(RunError::Cancelled(stop)),
        };
        let ended = match explored {
            Ok(()) => {
                let left = budget.saturating_sub(clock.elapsed());
                let caller = Caller::Schedule { min_new_pairs };
                run::run(parts, caller, left, tellers.stage, cancel.clone()).await
            }
            Err(error) => run::broken(parts, &error).await,
        };
        let goes_on = match &ended {
            // A canary is tried first.
            Ended::Promoted { share, .. } => 1.0 <= *share,
            Ended::Rejected { run, .. } => match compared(parts, *run).await {
                // Its own answers may teach it what the examples have not.
                Some(Lesson::Examples) => !std::mem::replace(&mut has_refused_examples, true),
                Some(Lesson::Answers) => false,
                // Nothing was left to learn, which has a record of its own.
                None => return last.unwrap_or(ended),
            },
            // It was stopped before it had a record.
            Ended::Failed { run: None, .. } => return last.unwrap_or(ended),
            _ => false,
        };
        if !goes_on || budget <= clock.elapsed() {
            return ended;
        }
        info!("The night goes on.");
        last = Some(ended);
    }
}

/// What a run has learned from that was refused after its adapter was compared; others are refused before.
async fn compared(parts: &Parts, run: RunId) -> Option<Lesson> {
    let run = parts.store.run(run).await.ok().filter(guards::is_round)?;
    Some(serde_json::from_value(run.metrics["lesson"].clone()).unwrap_or(Lesson::Answers))
}

/// Explores, unless a run on examples is due: a model that cannot do its task has little to explore.
async fn explored(parts: &Parts, tellers: Tellers<'_>) -> Result<(), RunError> {
    let config = parts.config.borrow().clone();
    practice::sync(parts, &config).await?;
    let (_, held_out) = held_out::read_all(&parts.store, &config).await?;
    if examples::waiting(parts, &config, &held_out, true).await?.is_some() {
        return Ok(());
    }
    let wish = Exploration { agent: None, limit: MOST_PROMPTS, split: None, all: false };
    explore::explore(parts, &wish, tellers).await.map(drop)
}
