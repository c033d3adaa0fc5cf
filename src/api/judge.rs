//! `/v1/judge`: how far the judges can be trusted, and the long operations that find it out.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;

use super::Api;
use super::error::ApiError;
use super::read::{Asked, Body};
use super::runs::answer;
use super::wire::{JudgeBody, JudgeState, List};
use crate::learn::JudgeTask;
use crate::trust;

/// Answers of one attack, exchanges of one rescoring.
const MAX_LIMIT: usize = 1_000_000;
/// Attacks of one body.
const MAX_ATTACKS: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Whose {
    agent: Option<String>,
}

/// The newest report on each agent's present judge.
pub(super) async fn report(
    State(api): State<Api>,
    Asked(Whose { agent }): Asked<Whose>,
) -> Result<Json<List<JudgeState>>, ApiError> {
    let named = agent.map(|name| api.agent(&name)).transpose()?;
    let states = states(&api).await?.into_iter();
    let is_meant = |state: &JudgeState| named.as_ref().is_none_or(|it| it.name == state.agent);
    Ok(Json(List::of(states.filter(is_meant).collect())))
}

/// What is known of every agent's judge.
pub(super) async fn states(api: &Api) -> Result<Vec<JudgeState>, ApiError> {
    let config = api.config();
    let mut states = Vec::new();
    for agent in config.agents.values() {
        let reflector = &api.parts.reflector;
        let report = trust::newest(&api.parts.store, reflector, agent).await?;
        let advisory: Vec<&str> = agent.advisory().collect();
        let standing = trust::standing(&agent.name, &advisory, report.as_ref(), &config.trust);
        let (judge, scalar) = (reflector.judge_name(agent)?, reflector.scalar_name(agent));
        let deterministic = reflector.judges_deterministically(agent)?;
        let agent = agent.name.clone();
        states.push(JudgeState { agent, judge, deterministic, scalar, standing, report });
    }
    Ok(states)
}

pub(super) async fn calibrate(
    State(api): State<Api>,
    Body(body): Body<JudgeBody>,
) -> Result<Response, ApiError> {
    run(&api, JudgeTask::Calibrate, body).await
}

pub(super) async fn attack(
    State(api): State<Api>,
    Body(body): Body<JudgeBody>,
) -> Result<Response, ApiError> {
    run(&api, JudgeTask::Attack, body).await
}

pub(super) async fn rescore(
    State(api): State<Api>,
    Body(body): Body<JudgeBody>,
) -> Result<Response, ApiError> {
    run(&api, JudgeTask::Rescore, body).await
}

async fn run(api: &Api, task: JudgeTask, body: JudgeBody) -> Result<Response, ApiError> {
    let JudgeBody { agent, limit, attacks, stream } = body;
    let agent = agent.map(|name| api.agent(&name)).transpose()?.map(|agent| agent.name.clone());
    let limit = limit.unwrap_or(if task == JudgeTask::Attack { 40 } else { MAX_LIMIT });
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(ApiError::invalid("limit", format!("1 to {MAX_LIMIT}")));
    }
    let attacks = match attacks {
        Some(attacks) if (1..=MAX_ATTACKS).contains(&attacks.len()) => attacks,
        Some(_) => return Err(ApiError::invalid("attacks", format!("1 to {MAX_ATTACKS}"))),
        None => trust::builtin(),
    };
    let learner = api.parts.learner.clone();
    answer(api, stream, async move { learner.judge(task, agent, limit, attacks).await }).await
}
