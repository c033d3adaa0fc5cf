//! `/v1/adapters`: the generations that were promoted, and the way back to one of them.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;
use super::read::{At, Body};
use super::wire::RollbackBody;
use crate::engine::Generation;
use crate::store::GenerationRow;

pub(super) async fn list(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    let rows = api.parts.store.generations().await?;
    // The base has no row and no adapter, but it is a place to go back to.
    let mut data = vec![json!({ "generation": Generation::BASE })];
    data.extend(rows.iter().map(|row| json!(row)));
    Ok(Json(json!({ "object": "list", "active": api.parts.engine.stats().active, "data": data })))
}

pub(super) async fn show(
    State(api): State<Api>,
    At(generation): At<Generation>,
) -> Result<Json<GenerationRow>, ApiError> {
    let rows = api.parts.store.generations().await?;
    let row = rows.into_iter().find(|row| row.generation == generation);
    row.map(Json).ok_or_else(|| ApiError::NotFound(format!("no generation {generation}")))
}

pub(super) async fn rollback(
    State(api): State<Api>,
    Body(RollbackBody { generation }): Body<RollbackBody>,
) -> Result<Json<Value>, ApiError> {
    api.parts.learner.rollback(generation).await?;
    Ok(Json(json!({ "active": generation })))
}
