//! What judges beside the served model, as far as agents name it: a second GGUF, a reward model,
//! endpoints. Looked at as the start would, and asked once. Used by `doctor`.

use serde::Serialize;

use super::{Model, look_at_model, mib, problem};
use crate::reflect;
use config::{Config, JudgeConfig, Problem};
use engine::llama::RewardModel;

/// One judge, or a reward model.
#[derive(Debug, Serialize)]
pub(super) struct Beside {
    /// `judge model`, `reward model` or `judge endpoint`.
    what: &'static str,
    name: String,
    /// Whether nothing stands in its way.
    ready: bool,
}

impl Beside {
    /// For the table.
    pub(super) fn row(&self) -> (&'static str, String) {
        let word = if self.ready { "ready" } else { "not ready" };
        (self.what, format!("{}, {word}", self.name))
    }
}

/// Everything that agents name, and what is wrong with it.
pub(super) async fn look_at(
    config: &Config,
    served: Option<&Model>,
    problems: &mut Vec<Problem>,
) -> Vec<Beside> {
    let mut found = Vec::new();
    let mut needed = served.map_or(0, host_bytes);
    let mut available = None;
    for (what, engine) in
        [("judge model", &config.judge_engine), ("reward model", &config.reward_engine)]
    {
        let Some(engine) = engine else { continue };
        let before = problems.len();
        let model = look_at_model(engine, problems).await;
        if what == "reward model" {
            let fault = RewardModel::fault(&engine.model);
            problems.extend(fault.map(|fault| problem(&engine.model, fault)));
        }
        needed += model.as_ref().map_or(0, host_bytes);
        available = model.and_then(|model| Some(model.survey.memory?.host.available));
        let ready = problems.len() == before;
        found.push(Beside { what, name: engine.model.display().to_string(), ready });
    }
    if let Some(available) = available.filter(|available| *available < needed) {
        let (needed, available) = (mib(needed), mib(available));
        let fault = format!(
            "the models need {needed} together and {available} are there; lower \
             engine.context_tokens, or judge with a smaller model"
        );
        problems.push(problem(&Config::file(&config.root), fault));
    }
    let mut asked = Vec::new();
    for agent in config.agents.values() {
        let JudgeConfig::Endpoint(endpoint) = &agent.judge else { continue };
        if asked.contains(&endpoint) {
            continue;
        }
        asked.push(endpoint);
        let tried = reflect::try_endpoint(agent, endpoint).await;
        let ready = tried.is_ok();
        let name = tried.unwrap_or_else(|error| {
            problems.push(problem(&Config::file(&config.root), error.to_string()));
            format!("{} at {endpoint}", endpoint.model)
        });
        found.push(Beside { what: "judge endpoint", name, ready });
    }
    found
}

/// Without the context for judgements, which is left out where memory has no room for it.
fn host_bytes(model: &Model) -> u64 {
    model.survey.memory.as_ref().map_or(0, |plan| plan.host.without_judge())
}
