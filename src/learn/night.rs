//! A night: explore, train, compare, and again, until its time is over or nothing is left to learn. What
//! each part does is `explore`'s and `run`'s business. Used by `task`.

use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout};
use tracing::info;

use super::cancel::Cancel;
use super::error::RunError;
use super::explore::{self, Tellers};
use super::op_queue::Exploration;
use super::{Ended, Parts, guards, held_out, practice, run};

/// Prompts that a night explores at most before it trains.
const MOST_PROMPTS: usize = 10_000;

/// Rounds until the budget is spent, or until one brings no new generation for all chats. How the last
/// round that was a run has ended.
pub(super) async fn night(
    parts: &Parts,
    min_new_pairs: usize,
    tellers: Tellers<'_>,
    mut cancel: Cancel,
) -> Ended {
    let budget = parts.config.borrow().learn.night;
    let began = Instant::now();
    let mut last = None;
    loop {
        let left = budget.saturating_sub(began.elapsed());
        // The other half is for training and the gate.
        let explored: BoxFuture<'_, _> = Box::pin(explored(parts, tellers));
        let explored = tokio::select! {
            // What is stored when the time is over stays.
            explored = timeout(left / 2, explored) => explored.unwrap_or(Ok(())),
            stop = cancel.cancelled() => Err(RunError::Cancelled(stop)),
        };
        let ended = match explored {
            Ok(()) => {
                let left = budget.saturating_sub(began.elapsed());
                run::run(parts, Some(min_new_pairs), left, tellers.stage, cancel.clone()).await
            }
            Err(error) => run::broken(parts, &error).await,
        };
        let is_trained = match &ended {
            // Candidates may be refused before they come to the gate.
            Ended::Rejected { run, verdict, .. } if verdict.is_null() => {
                let recorded = parts.store.run(*run).await;
                recorded.is_ok_and(|recorded| guards::is_round(&recorded))
            }
            // Stopped before it had a record.
            Ended::Failed { run: None, .. } => false,
            _ => true,
        };
        match ended {
            // A canary is tried first.
            Ended::Promoted { share, .. } if 1.0 <= share && began.elapsed() < budget => {
                info!("The night goes on with the new generation.");
                last = Some(ended);
            }
            // Nothing was left to learn, which has a record of its own, or nobody wants more.
            ended if !is_trained => return last.unwrap_or(ended),
            ended => return ended,
        }
    }
}

/// Explores, unless a run on examples is due: a model that cannot do its task has little to explore.
async fn explored(parts: &Parts, tellers: Tellers<'_>) -> Result<(), RunError> {
    let config = parts.config.borrow().clone();
    practice::sync(parts, &config).await?;
    let (_, held_out) = held_out::read_all(&parts.store, &config).await?;
    if practice::waiting(parts, &config, &held_out, true).await?.is_some() {
        return Ok(());
    }
    let wish = Exploration { agent: None, limit: MOST_PROMPTS, split: None, all: false };
    explore::explore(parts, &wish, tellers).await.map(drop)
}
