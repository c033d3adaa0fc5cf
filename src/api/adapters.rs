//! `/v1/adapters`: the generations that were promoted, the way back to one of them, and adapters
//! that were made elsewhere.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;
use super::read::{At, Body};
use super::runs::answer;
use super::wire::{ImportBody, RollbackBody};
use engine::Generation;
use store::GenerationRow;

pub(super) async fn list(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    let rows = api.parts.store.generations().await?;
    // The base has no row and no adapter, but `rollback` can return to it.
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

pub(super) async fn import(
    State(api): State<Api>,
    Body(ImportBody { path, base_sha256, stream }): Body<ImportBody>,
) -> Result<Response, ApiError> {
    if !path.is_absolute() {
        let message = "it has to be absolute: the daemon reads it, and its folder is another one";
        return Err(ApiError::invalid("path", message));
    }
    let is_hash = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if base_sha256.as_deref().is_some_and(|text| !is_hash(text)) {
        return Err(ApiError::invalid("base_sha256", "it has 64 hexadecimal digits"));
    }
    let base_sha256 = base_sha256.map(|text| text.to_ascii_lowercase());
    let learner = api.parts.learner.clone();
    answer(&api, stream, async move { learner.import(path, base_sha256).await }).await
}
