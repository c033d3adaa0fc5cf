//! Eight drafts of one prompt over HTTP: our `n`, against the peer's `n` and against eight requests in
//! parallel. Called by `main`.

use std::time::Instant;

use futures_util::future::try_join_all;

use crate::chat::complete;
use crate::daemon::Daemon;
use crate::peer::Peer;
use crate::results::{Better, Findings, Goal, Measured};
use crate::setting::{ANSWER, PROMPT, Setting};
use crate::texts::Texts;

const DRAFTS: u32 = 8;
const ROUNDS: usize = 7;

pub(crate) async fn run(setting: &Setting, texts: &mut Texts) -> anyhow::Result<Findings> {
    let daemon = Daemon::start(setting).await?;
    let peer = Peer::start(setting, DRAFTS).await?;
    complete(&daemon.endpoint, &texts.question(PROMPT), DRAFTS).await?;
    if let Some(peer) = &peer {
        complete(&peer.endpoint, &texts.question(PROMPT), DRAFTS).await?;
    }
    let (mut ours, mut shared, mut apart) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..setting.rounds(ROUNDS) {
        let began = Instant::now();
        complete(&daemon.endpoint, &texts.question(PROMPT), DRAFTS).await?;
        ours.push(began.elapsed().as_secs_f64());
        let Some(peer) = &peer else { continue };
        let began = Instant::now();
        complete(&peer.endpoint, &texts.question(PROMPT), DRAFTS).await?;
        shared.push(began.elapsed().as_secs_f64());
        let question = texts.question(PROMPT);
        let began = Instant::now();
        try_join_all((0..DRAFTS).map(|_| complete(&peer.endpoint, &question, 1))).await?;
        apart.push(began.elapsed().as_secs_f64());
    }
    let compare = |name: &str, other, against: &str, goal| Measured {
        name: name.to_owned(),
        title: format!("{DRAFTS} drafts of one prompt, {PROMPT} + {ANSWER} tokens"),
        unit: "s",
        better: Better::Lower,
        ours: ours.clone(),
        other,
        against: Some(against.to_owned()),
        goal: Some(Goal::RatioAtLeast(goal)),
    };
    let measured = vec![
        compare("drafts_against_n", shared, "llama-server, `n`", 1.0),
        compare("drafts_against_parallel", apart, "llama-server, 8 requests", 1.7),
    ];
    Ok(Findings { measured, curves: Vec::new() })
}
