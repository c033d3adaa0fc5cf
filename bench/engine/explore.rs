//! What exploration costs a chat: the same chats with an exploration at (10, 20) under way and without
//! one, in turn. Called by `main`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;
use tokio::time::sleep;

use crate::chat::{self, Chat};
use crate::daemon::Daemon;
use crate::http::{Endpoint, Events};
use crate::results::{Better, Findings, Goal, Measured};
use crate::setting::{PROMPT, Setting};
use crate::texts::Texts;

const ROUNDS: usize = 7;
/// Chats of a round, with and without.
const CHATS: usize = 4;
/// Prompts to explore: more than the benchmark can use up.
const PROMPTS: usize = 64;
/// A chat of few words, where a wait is seen best, and one of many.
const LENGTHS: [usize; 2] = [32, PROMPT];
/// An engine that does not begin to explore within this time never will.
const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) async fn run(setting: &Setting, texts: &mut Texts) -> anyhow::Result<Findings> {
    let daemon = Daemon::start(setting).await?;
    let endpoint = &daemon.endpoint;
    let prompts =
        (0..PROMPTS).map(|id| json!({ "id": id.to_string(), "prompt": texts.question(PROMPT) }));
    let prompts: Vec<_> = prompts.collect();
    endpoint.post("/v1/explore", &json!({ "prompts": prompts, "limit": 0 })).await?;
    let mut found = LENGTHS.map(|_| (Vec::new(), Vec::new()));
    for round in 0..=setting.rounds(ROUNDS) {
        for (length, (with, without)) in LENGTHS.into_iter().zip(&mut found) {
            let alone = chats(endpoint, texts, length).await?;
            let exploration = explore(endpoint).await?;
            let beside = chats(endpoint, texts, length).await?;
            stop(endpoint, exploration).await?;
            // The first one warms both up.
            if 0 < round {
                with.extend(beside);
                without.extend(alone);
            }
        }
    }
    let measured = LENGTHS.into_iter().zip(found);
    let measured =
        measured.flat_map(|(length, (with, without))| measured_of(length, &with, &without));
    Ok(Findings { measured: measured.collect(), curves: Vec::new() })
}

/// Chats one after the other, at moments that have nothing to do with the exploration's.
async fn chats(endpoint: &Endpoint, texts: &mut Texts, length: usize) -> anyhow::Result<Vec<Chat>> {
    let mut chats = Vec::new();
    for _ in 0..CHATS {
        sleep(Duration::from_millis(fastrand::u64(100..400))).await;
        chats.push(chat::stream(endpoint, &texts.question(length)).await?);
    }
    Ok(chats)
}

/// Begins an exploration, or goes on with it; returns when the engine works for it.
async fn explore(endpoint: &Endpoint) -> anyhow::Result<Events> {
    let wish = json!({ "agent": "bench", "n": 10, "m": 20, "stream": true });
    let events = endpoint.stream("/v1/explore", &wish).await?;
    let began = Instant::now();
    while endpoint.get("/v1/status").await?["engine"]["running"] == 0 {
        ensure!(began.elapsed() < PATIENCE, "the exploration does not begin");
        sleep(Duration::from_millis(10)).await;
    }
    Ok(events)
}

async fn stop(endpoint: &Endpoint, mut events: Events) -> anyhow::Result<()> {
    endpoint.delete("/v1/runs/current").await?;
    let mut last = None;
    while let Some((_, event)) = events.next().await? {
        last = Some(event);
    }
    let last = last.context("the exploration said nothing")?;
    ensure!(last["outcome"] == "failed", "the exploration was not under way any more: {last}");
    Ok(())
}

fn measured_of(length: usize, with: &[Chat], without: &[Chat]) -> Vec<Measured> {
    let of = |chats: &[Chat], value: fn(&Chat) -> f64| chats.iter().map(value).collect::<Vec<_>>();
    let figure = |name: &str, title: &str, unit, better, value: fn(&Chat) -> f64| Measured {
        name: format!("explore_{length}_{name}"),
        title: format!("{title} beside an exploration, {length} prompt tokens"),
        unit,
        better,
        ours: of(with, value),
        other: of(without, value),
        against: Some("without exploration".to_owned()),
        goal: Some(Goal::RatioAtLeast(1.0 / 1.1)),
    };
    vec![
        figure("first_token_ms", "time to first token", "ms", Better::Lower, |chat| {
            chat.first_token.as_secs_f64() * 1e3
        }),
        figure("tokens_per_second", "chat", "tokens/s", Better::Higher, |chat| {
            chat.tokens_per_second()
        }),
        figure("chat_s", "a whole chat", "s", Better::Lower, |chat| chat.whole.as_secs_f64()),
    ]
}
