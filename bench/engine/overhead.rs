//! What the daemon costs beside the engine: time to the first token against the engine in this
//! process, memory beyond model file and KV cache, and the time from start to ready. Called by
//! `main`.

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::sleep;

use crate::chat;
use crate::daemon::Daemon;
use crate::inside::{generate, request};
use crate::model::KV_BYTES_PER_TOKEN;
use crate::peer::Peer;
use crate::process::{Resident, Server};
use crate::results::{Better, Findings, Goal, Measured};
use crate::setting::{CELLS, PROMPT, Setting};
use crate::texts::Texts;

/// Short, so that two milliseconds can be seen beside the work of the model.
const SHORT: usize = 32;
const ROUNDS: usize = 41;
const STARTS: usize = 7;
/// OpenMP's threads spin for a while after their work and would slow the other side down.
const REST: Duration = Duration::from_millis(20);

pub(crate) async fn run(setting: &Setting, texts: &mut Texts) -> anyhow::Result<Findings> {
    let mut measured = first_token(setting, texts).await?;
    measured.extend(memory(setting, texts).await?);
    measured.extend(start(setting).await?);
    Ok(Findings { measured, curves: Vec::new() })
}

async fn first_token(setting: &Setting, texts: &mut Texts) -> anyhow::Result<Vec<Measured>> {
    let daemon = Daemon::start(setting).await?;
    let (engine, _thread) = engine::spawn(&setting.engine()).await?;
    let (mut ours, mut inside) = (Vec::new(), Vec::new());
    for round in 0..=setting.rounds(ROUNDS) {
        sleep(REST).await;
        let there = chat::stream(&daemon.endpoint, &texts.question(SHORT)).await?;
        sleep(REST).await;
        let here = generate(&engine, request(texts.prompt(SHORT)?, 1, 1)).await?;
        // The first one warms both up.
        if 0 < round {
            ours.push(there.first_token.as_secs_f64() * 1e3);
            inside.push(here.first_token.as_secs_f64() * 1e3);
        }
    }
    let difference = ours.iter().zip(&inside).map(|(ours, inside)| ours - inside).collect();
    let against = Some("engine in process".to_owned());
    let first = Measured {
        name: "overhead_first_token_ms".to_owned(),
        title: format!("time to first token, {SHORT} prompt tokens"),
        unit: "ms",
        better: Better::Lower,
        ours,
        other: inside,
        against,
        goal: None,
    };
    let added = Measured {
        name: "overhead_added_ms".to_owned(),
        title: "what the daemon adds to it".to_owned(),
        ours: difference,
        other: Vec::new(),
        goal: Some(Goal::AtMost(2.0)),
        ..first.clone()
    };
    Ok(vec![first, added])
}

/// Measured after work, because work touches the buffers. Sequences that the daemon has copied to
/// its host prefix cache are KV too; llama-server keeps such sequences in its context.
async fn memory(setting: &Setting, texts: &mut Texts) -> anyhow::Result<Vec<Measured>> {
    let beyond = |server: &Server| -> anyhow::Result<f64> {
        let Resident { total, model } = server.resident(&setting.model)?;
        let kv = u64::from(CELLS) * KV_BYTES_PER_TOKEN;
        Ok(total.saturating_sub(model + kv) as f64 / 1e6)
    };
    let daemon = Daemon::start(setting).await?;
    let peer = Peer::start(setting, 8).await?;
    chat::complete(&daemon.endpoint, &texts.question(PROMPT), 8).await?;
    let status = daemon.endpoint.get("/v1/status").await?;
    let host_cache =
        status["engine"]["host_cache_bytes"].as_f64().context("the bytes of the host cache")? / 1e6;
    let mut other = Vec::new();
    if let Some(peer) = &peer {
        chat::complete(&peer.endpoint, &texts.question(PROMPT), 8).await?;
        other.push(beyond(&peer.server)?);
    }
    Ok(vec![Measured {
        name: "overhead_memory_mb".to_owned(),
        title: "resident memory beyond model file and KV cache".to_owned(),
        unit: "MB",
        better: Better::Lower,
        ours: vec![beyond(&daemon.server)? - host_cache],
        other,
        against: Some("llama-server".to_owned()),
        goal: Some(Goal::AtMost(60.0)),
    }])
}

/// The first start on a root tries the unknown model file in a child process; the others do not.
async fn start(setting: &Setting) -> anyhow::Result<Vec<Measured>> {
    let (mut first, mut ours, mut other) = (Vec::new(), Vec::new(), Vec::new());
    let mut daemon = Daemon::start(setting).await?;
    first.push(daemon.server.start_to_ready.as_secs_f64());
    for _ in 0..setting.rounds(STARTS) {
        daemon = daemon.restart().await?;
        ours.push(daemon.server.start_to_ready.as_secs_f64());
        if let Some(peer) = Peer::start(setting, 8).await? {
            other.push(peer.server.start_to_ready.as_secs_f64());
            peer.server.stop().await?;
        }
    }
    let known = Measured {
        name: "overhead_start_s".to_owned(),
        title: "start to ready".to_owned(),
        unit: "s",
        better: Better::Lower,
        ours,
        other: other.clone(),
        against: Some("llama-server".to_owned()),
        goal: Some(Goal::RatioAtLeast(1.0 / 1.2)),
    };
    let unknown = Measured {
        name: "overhead_first_start_s".to_owned(),
        title: "start to ready with an unknown model file".to_owned(),
        ours: first,
        other: other.into_iter().take(1).collect(),
        goal: None,
        ..known.clone()
    };
    Ok(vec![known, unknown])
}
