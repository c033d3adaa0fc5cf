//! A long operation as server-sent events: its stages at a bounded rate, its outcome, `[DONE]`.
//! The operation runs in a task of its own and does not notice that somebody looks. Used by `runs`.

use std::time::Duration;

use axum::response::Response;
use axum::response::sse::Event;
use futures_util::{StreamExt as _, stream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::Api;
use super::chat::{KEEP_ALIVE, json_event, sse};
use super::error::ApiError;
use crate::learn::{Ended, LearnError, Stage};

/// At most ten stages a second: more is not seen by people and costs the model's processor.
const PACE: Duration = Duration::from_millis(100);

/// Follows an operation to its end. One that is refused at once gets its status.
pub(super) async fn follow(
    api: &Api,
    operation: JoinHandle<Result<Ended, LearnError>>,
) -> Result<Response, ApiError> {
    let stages = api.parts.learner.stage();
    let mut follower = Follower { api: api.clone(), stages, operation };
    let first = match follower.look().await {
        Seen::Ended(Err(error)) => return Err(error),
        seen => seen,
    };
    let events = stream::unfold((Some(first), Some(follower)), |(seen, follower)| async move {
        let mut follower = follower?;
        let seen = match seen {
            Some(seen) => seen,
            None => {
                sleep(PACE).await;
                follower.look().await
            }
        };
        Some(match seen {
            Seen::Stage(stage) => (vec![json_event(&stage)], (None, Some(follower))),
            Seen::Ended(Ok(ended)) => {
                (vec![json_event(&ended), Event::default().data("[DONE]")], (None, None))
            }
            Seen::Ended(Err(error)) => (vec![json_event(&error.into_reply())], (None, None)),
        })
    });
    Ok(sse(events.flat_map(stream::iter), KEEP_ALIVE))
}

struct Follower {
    api: Api,
    stages: watch::Receiver<Stage>,
    operation: JoinHandle<Result<Ended, LearnError>>,
}

enum Seen {
    Stage(Stage),
    Ended(Result<Ended, ApiError>),
}

impl Follower {
    /// Waits for something new. The end comes before a stage that changed at the same time.
    async fn look(&mut self) -> Seen {
        tokio::select! {
            biased;
            ended = &mut self.operation => Seen::Ended(match ended {
                Ok(ended) => ended.map_err(ApiError::from),
                Err(error) => Err(ApiError::Internal(error.to_string())),
            }),
            () = self.api.ending() => Seen::Ended(Err(ApiError::Draining)),
            Ok(()) = self.stages.changed() => Seen::Stage(self.stages.borrow_and_update().clone()),
        }
    }
}
