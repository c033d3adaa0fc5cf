//! `GET /v1/reflections`: stored exchanges with their candidates and assessments.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;

use super::Api;
use super::error::ApiError;
use super::read::{Asked, At};
use super::wire::List;
use store::{Exchange, ExchangeId};

/// Exchanges are large; a page is bounded whatever a client asks.
const MAX_LIMIT: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    #[serde(default = "default_limit")]
    limit: usize,
    /// Only older ones.
    before: Option<ExchangeId>,
}

fn default_limit() -> usize {
    20
}

pub(super) async fn list(
    State(api): State<Api>,
    Asked(page): Asked<Page>,
) -> Result<Json<List<Exchange>>, ApiError> {
    if page.limit > MAX_LIMIT {
        return Err(ApiError::invalid("limit", format!("at most {MAX_LIMIT}")));
    }
    Ok(Json(List::of(api.parts.store.exchanges(page.before, page.limit).await?)))
}

pub(super) async fn show(
    State(api): State<Api>,
    At(id): At<ExchangeId>,
) -> Result<Json<Exchange>, ApiError> {
    Ok(Json(api.parts.store.exchange(id).await?))
}
