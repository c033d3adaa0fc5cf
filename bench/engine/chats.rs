//! Chats in parallel over HTTP with streaming: tokens a second and time to the first token. Prompts
//! differ, so that no side has a cached one. Called by `main`.

use std::time::Instant;

use futures_util::future::try_join_all;

use crate::chat::stream;
use crate::daemon::Daemon;
use crate::http::Endpoint;
use crate::peer::Peer;
use crate::results::{Better, Findings, Goal, LLAMA_SERVER, Measured};
use crate::setting::{ANSWER, PROMPT, Setting};
use crate::texts::Texts;
use testkit::bench::statistics::median;

/// Numbers of chats at once.
const PARALLEL: [usize; 3] = [1, 4, 8];
const ROUNDS: usize = 5;

#[derive(Default)]
struct Side {
    tokens_per_s: Vec<f64>,
    first_token_ms: Vec<f64>,
}

pub(crate) async fn run(setting: &Setting, texts: &mut Texts) -> anyhow::Result<Findings> {
    let daemon = Daemon::start(setting).await?;
    let peer = Peer::start(setting, 8).await?;
    let mut findings = Findings::default();
    for parallel in PARALLEL {
        let (mut ours, mut other) = (Side::default(), Side::default());
        // The first requests of a process pay for pages that are touched for the first time.
        chats(&daemon.endpoint, 1, texts).await?;
        if let Some(peer) = &peer {
            chats(&peer.endpoint, 1, texts).await?;
        }
        for _ in 0..setting.rounds(ROUNDS) {
            ours.add(chats(&daemon.endpoint, parallel, texts).await?);
            if let Some(peer) = &peer {
                other.add(chats(&peer.endpoint, parallel, texts).await?);
            }
        }
        let chats = if parallel == 1 { "1 chat".to_owned() } else { format!("{parallel} chats") };
        let goal = Some(Goal::RatioAtLeast(1.0));
        let against = Some(LLAMA_SERVER.to_owned());
        findings.measured.push(Measured {
            name: format!("chats_{parallel}_tokens_per_s"),
            title: format!("{chats}, {PROMPT} prompt + {ANSWER} new tokens"),
            unit: "tokens/s",
            better: Better::Higher,
            ours: ours.tokens_per_s,
            other: other.tokens_per_s,
            against: against.clone(),
            goal,
        });
        findings.measured.push(Measured {
            name: format!("chats_{parallel}_first_token_ms"),
            title: format!("{chats}, time to first token"),
            unit: "ms",
            better: Better::Lower,
            ours: ours.first_token_ms,
            other: other.first_token_ms,
            against,
            goal,
        });
    }
    Ok(findings)
}

impl Side {
    fn add(&mut self, (tokens_per_s, first_token_ms): (f64, f64)) {
        self.tokens_per_s.push(tokens_per_s);
        self.first_token_ms.push(first_token_ms);
    }
}

/// Tokens a second of all together, prompts and all; median time to the first token.
async fn chats(
    endpoint: &Endpoint,
    parallel: usize,
    texts: &mut Texts,
) -> anyhow::Result<(f64, f64)> {
    let questions: Vec<String> = (0..parallel).map(|_| texts.question(PROMPT)).collect();
    let began = Instant::now();
    let chats = try_join_all(questions.iter().map(|question| stream(endpoint, question))).await?;
    let seconds = began.elapsed().as_secs_f64();
    let firsts: Vec<f64> = chats.iter().map(|chat| chat.first_token.as_secs_f64() * 1e3).collect();
    let tokens = f64::from(ANSWER) * parallel as f64;
    Ok((tokens / seconds, median(&firsts).unwrap_or_default()))
}
