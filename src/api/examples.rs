//! `POST /v1/examples`: prompts with the answers that the owner wants.

use axum::Json;
use axum::extract::State;

use super::Api;
use super::error::ApiError;
use super::read::Body;
use super::wire::ExamplesBody;
use crate::learn::ExampleError;
use crate::learn::examples::{self, Learned, Origin};
use crate::learn::held_out::{self, HeldOutError};

/// Stores all of them, or tells all that is wrong; they are counted from 1.
pub(super) async fn learn(
    State(api): State<Api>,
    Body(body): Body<ExamplesBody>,
) -> Result<Json<Learned>, ApiError> {
    let agent = api.agent(body.agent.as_deref().unwrap_or("default"))?;
    let lines = (1..).zip(body.examples).collect();
    let (reflector, store) = (&api.parts.reflector, &api.parts.store);
    let found = held_out::read_all(store, &api.config()).await;
    let (_, held_out) = found.map_err(|error| match error {
        HeldOutError::File(error) => {
            ApiError::invalid("agent", format!("its held-out prompts: {error}"))
        }
        HeldOutError::Store(error) => error.into(),
    })?;
    let origin = Origin::Client;
    let learned = examples::learn(reflector, store, &agent, held_out, origin, lines).await;
    Ok(Json(learned.map_err(|error| match error {
        ExampleError::Faults(faults) => ApiError::invalid("examples", faults.to_string()),
        ExampleError::File(error) => {
            ApiError::invalid("agent", format!("its own file of examples: {error}"))
        }
        ExampleError::Reflect(error) => error.into(),
        ExampleError::Store(error) => error.into(),
    })?))
}
