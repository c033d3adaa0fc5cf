//! `GET /health` for probes and `GET /v1/status` for people. Health is always status 200, because
//! a daemon that answers is alive; the word in the body tells the rest.

use axum::Json;
use axum::extract::State;

use super::error::ApiError;
use super::wire::{
    ConfigWord, GuardsNow, Health, HealthWord, JudgeState, LastRun, Learning, Status,
};
use super::{Api, Phase, judge};
use crate::learn::program;
use engine::Engine;

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) async fn health(State(api): State<Api>) -> Json<Health> {
    let config = api.parts.report.borrow().clone();
    let status = match (*api.parts.phase.borrow(), config.state) {
        (Phase::Draining | Phase::Ending, _) => HealthWord::Draining,
        (Phase::Serving, ConfigWord::RolledBack) => HealthWord::Degraded,
        (Phase::Serving, ConfigWord::Ok) => HealthWord::Ok,
    };
    Json(Health {
        status,
        version: VERSION,
        uptime_s: api.since.elapsed().as_secs(),
        generation: api.parts.engine.stats().active,
        config,
    })
}

pub(super) async fn status(State(api): State<Api>) -> Result<Json<Status>, ApiError> {
    let parts = &api.parts;
    let (judges, learning) = (judges(&api).await?, learning(&api).await);
    let held_out = learning.as_ref().and_then(|it| it.readiness.power.clone());
    let last_run = parts.store.runs(1).await?.pop().map(LastRun::from);
    Ok(Json(Status {
        version: VERSION,
        uptime_s: api.since.elapsed().as_secs(),
        model: parts.engine.info().clone(),
        engine: parts.engine.stats(),
        counts: parts.store.counts().await?,
        stage: parts.learner.stage().borrow().clone(),
        learning,
        next_run: parts.learner.next_run().map(|time| time.to_rfc3339()),
        last_run,
        judges,
        guards: GuardsNow { guards: parts.learner.guards(), held_out },
        agents: api.config().agents.keys().cloned().collect(),
        judge_engine: parts.reflector.judge_engine().map(Engine::stats),
        judge_context: parts.reflector.judge_context().map(Engine::stats),
        endpoint_calls: parts.reflector.endpoint_calls(),
        trainer_fault: program::command_line(&api.config().trainer).err().map(|it| it.to_string()),
        config: parts.report.borrow().clone(),
    }))
}

async fn learning(api: &Api) -> Option<Learning> {
    let learner = &api.parts.learner;
    let readiness = match learner.readiness().await {
        Ok(readiness) => readiness,
        Err(error) => {
            tracing::warn!(%error, "How learning stands is not known.");
            return None;
        }
    };
    let when = match (learner.guards().paused, learner.next_run()) {
        (Some(_), _) => "scheduled runs are paused".to_owned(),
        (None, Some(due)) => format!("next run {}", due.format("%Y-%m-%d %H:%M UTC")),
        (None, None) => "no schedule, so only `reflectd train` trains".to_owned(),
    };
    Some(Learning { sentence: format!("{readiness}; {when}."), readiness })
}

/// Leaves out the reports, because they are long.
async fn judges(api: &Api) -> Result<Vec<JudgeState>, ApiError> {
    let states = judge::states(api).await?.into_iter();
    Ok(states.map(|state| JudgeState { report: None, ..state }).collect())
}
