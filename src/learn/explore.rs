//! Exploration: fills stored prompts with drafts and refinements while nobody waits. What is made of
//! a prompt is `reflect`'s business; this walks over the prompts. Used by `task`.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use super::run::RunError;
use super::{Ended, Parts, Stage};
use crate::config::Agent;
use crate::engine::EngineError;
use crate::reflect::{Explored, ReflectError};
use crate::store::ExchangeId;

/// Prompts under way at once: their drafts fill the batch, and a chat still finds room.
const PARALLEL: usize = 4;

/// Up to `limit` prompts of the agents that learn. `split`: (n, m) instead of the agents' own.
pub(super) async fn explore(
    parts: &Parts,
    limit: usize,
    split: Option<(u32, u32)>,
    stage: &watch::Sender<Stage>,
) -> Result<Ended, RunError> {
    let began = Instant::now();
    let todo = wanted(parts, limit, split).await?;
    let total = todo.len();
    let show = |done, positives| {
        stage.send_replace(Stage::Exploring { done, total, positives });
    };
    show(0, 0);
    let mut done = 0;
    let mut sum = Explored::default();
    let fills: Vec<_> = todo.into_iter().map(|todo| fill(parts, todo)).collect();
    let mut explored = stream::iter(fills).buffer_unordered(PARALLEL);
    while let Some(one) = explored.try_next().await? {
        done += 1;
        sum.drafts += one.drafts;
        sum.refinements += one.refinements;
        sum.positives += one.positives;
        sum.generated_tokens += one.generated_tokens;
        show(done, sum.positives);
    }
    Ok(Ended::Explored {
        prompts: done,
        candidates: sum.drafts + sum.refinements,
        positives: sum.positives,
        generated_tokens: sum.generated_tokens,
        wall_s: began.elapsed().as_secs_f64(),
    })
}

/// One prompt and how far to fill it.
struct Todo {
    agent: Arc<Agent>,
    exchange: ExchangeId,
    drafts: u32,
    refinements: u32,
}

async fn wanted(
    parts: &Parts,
    limit: usize,
    split: Option<(u32, u32)>,
) -> Result<Vec<Todo>, RunError> {
    let config = parts.config.borrow().clone();
    let mut todo = Vec::new();
    for agent in config.agents.values().filter(|agent| agent.learn) {
        let (drafts, refinements) = split.unwrap_or(agent.reflection.explore);
        let room = limit - todo.len();
        let names = vec![agent.name.clone()];
        let exchanges = parts.store.explorable(names, drafts, refinements, room).await?;
        todo.extend(exchanges.into_iter().take(room).map(|exchange| Todo {
            agent: agent.clone(),
            exchange,
            drafts,
            refinements,
        }));
    }
    Ok(todo)
}

/// A prompt that no longer fits, or whose lane went away during a swap, yields nothing.
async fn fill(parts: &Parts, todo: Todo) -> Result<Explored, ReflectError> {
    let Todo { agent, exchange, drafts, refinements } = todo;
    match parts.reflector.explore(&agent, exchange, drafts, refinements).await {
        Err(ReflectError::Engine(
            error @ (EngineError::TooLong { .. } | EngineError::NoLane(_)),
        )) => {
            warn!(exchange = %exchange, %error, "A prompt is left out of the exploration.");
            Ok(Explored::default())
        }
        other => other,
    }
}
