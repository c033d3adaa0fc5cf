//! `GET /v1/models`: agents are what clients call models.

use axum::Json;
use axum::extract::State;

use super::Api;
use super::error::ApiError;
use super::read::At;
use super::wire::{List, Model, ModelExtra};
use config::Agent;

pub(super) async fn list(State(api): State<Api>) -> Json<List<Model>> {
    let config = api.config();
    Json(List::of(config.agents.values().map(|agent| model(&api, agent)).collect()))
}

pub(super) async fn show(
    State(api): State<Api>,
    At(name): At<String>,
) -> Result<Json<Model>, ApiError> {
    let agent = api.agent(&name)?;
    Ok(Json(model(&api, &agent)))
}

fn model(api: &Api, agent: &Agent) -> Model {
    Model {
        id: agent.name.clone(),
        object: "model".to_owned(),
        created: api.created,
        owned_by: "reflectd".to_owned(),
        reflectd: ModelExtra {
            description: agent.description.clone(),
            generation: api.parts.engine.stats().active,
            aspects: agent.aspects.iter().map(|one| one.aspect.name.clone()).collect(),
            mode: agent.reflection.mode,
        },
    }
}
