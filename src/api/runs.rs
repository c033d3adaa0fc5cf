//! `/v1/runs`, `/v1/pairs` and `/v1/explore`: long operations of the learner, told at their end or followed.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;
use super::follow::follow;
use super::read::{Asked, At, Body};
use super::wire::{ExploreBody, List, TrainBody};
use crate::learn::{Exploration, LearnError, Preview};
use store::{Run, RunId};

/// Runs carry their whole job; a page is bounded whatever a client asks.
const MAX_LIMIT: usize = 1000;
/// Prompts of one `/v1/explore` body and stored prompts that it may touch.
const MAX_PROMPTS: usize = 100_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    #[serde(default = "default_limit")]
    limit: usize,
}

fn default_limit() -> usize {
    20
}

pub(super) async fn list(
    State(api): State<Api>,
    Asked(Page { limit }): Asked<Page>,
) -> Result<Json<List<Run>>, ApiError> {
    if limit > MAX_LIMIT {
        return Err(ApiError::invalid("limit", format!("at most {MAX_LIMIT}")));
    }
    Ok(Json(List::of(api.parts.store.runs(limit).await?)))
}

/// What the next scheduled run would learn.
pub(super) async fn pairs(
    State(api): State<Api>,
    Asked(Page { limit }): Asked<Page>,
) -> Result<Json<Preview>, ApiError> {
    if limit > MAX_PROMPTS {
        return Err(ApiError::invalid("limit", format!("at most {MAX_PROMPTS}")));
    }
    Ok(Json(api.parts.learner.preview(limit).await?))
}

pub(super) async fn show(State(api): State<Api>, At(id): At<RunId>) -> Result<Json<Run>, ApiError> {
    Ok(Json(api.parts.store.run(id).await?))
}

pub(super) async fn cancel(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    let cancelled = api.parts.learner.cancel().await?;
    Ok(Json(json!({ "cancelled": cancelled })))
}

pub(super) async fn resume(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    api.parts.learner.resume().await?;
    Ok(Json(json!({ "paused": api.parts.learner.guards().paused })))
}

pub(super) async fn train(
    State(api): State<Api>,
    Body(TrainBody { stream }): Body<TrainBody>,
) -> Result<Response, ApiError> {
    let learner = api.parts.learner.clone();
    answer(&api, stream, async move { learner.train().await }).await
}

pub(super) async fn explore(
    State(api): State<Api>,
    Body(body): Body<ExploreBody>,
) -> Result<Response, ApiError> {
    if body.prompts.len() > MAX_PROMPTS || body.limit > MAX_PROMPTS {
        return Err(ApiError::invalid("limit", format!("at most {MAX_PROMPTS} prompts at once")));
    }
    let agent = api.agent(body.agent.as_deref().unwrap_or("default"))?;
    let split = match (body.n, body.m) {
        (None, None) => None,
        (n, m) => {
            let (default_n, default_m) = agent.reflection.explore;
            Some((n.unwrap_or(default_n), m.unwrap_or(default_m)))
        }
    };
    // Who brings prompts wants them explored.
    let all = !body.prompts.is_empty();
    for prompt in body.prompts {
        api.parts.reflector.remember(&agent, prompt).await?;
    }
    let learner = api.parts.learner.clone();
    let agent = body.agent.map(|_| agent.name.clone());
    let wish = Exploration { agent, limit: body.limit, split, all };
    answer(&api, body.stream, async move { learner.explore(wish).await }).await
}

/// The outcome of a long operation, or its stages on the way there.
pub(super) async fn answer<F>(api: &Api, stream: bool, operation: F) -> Result<Response, ApiError>
where
    F: Future<Output = Result<crate::learn::Ended, LearnError>> + Send + 'static,
{
    // A task of its own: a client that leaves does not stop the operation.
    let operation = tokio::spawn(operation);
    if stream {
        return follow(api, operation).await;
    }
    tokio::select! {
        ended = operation => match ended {
            Ok(ended) => Ok(Json(ended?).into_response()),
            Err(error) => Err(ApiError::Internal(error.to_string())),
        },
        () = api.ending() => Err(ApiError::Draining),
    }
}
