//! The reflection workload: 8 drafts, 6 aspects each, a critique, 4 refinements, 6 aspects each. Ours is
//! one inline chat with the real daemon; the peer is asked by two clients. The sides must generate
//! the same number of tokens, or the comparison is void. Called by `main`.

use std::cell::Cell;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use config::Agent;
use prompt::AspectView;
use serde_json::json;

use crate::client::{Client, DRAFTS, Judging, REFINEMENTS, Tally};
use crate::daemon::{self, Daemon};
use crate::peer::Peer;
use crate::results::{Better, Findings, Goal, Measured};
use crate::setting::{ANSWER, Setting};
use crate::texts::Texts;

/// Tokens that the judgements of one answer share.
const PREFIX: usize = 400;
const ROUNDS: usize = 3;
/// Drafts take the slots before it.
const JUDGE_SLOT: u32 = DRAFTS;
/// What everybody has to generate: drafts, critique, refinements.
const GENERATED: u64 = (DRAFTS + 1 + REFINEMENTS) as u64 * ANSWER as u64;

/// Rounds of one side.
#[derive(Default)]
struct Side {
    seconds: Vec<f64>,
    offered: Vec<f64>,
    evaluated: Vec<f64>,
}

pub(crate) async fn run(setting: &Setting, texts: &mut Texts) -> anyhow::Result<Findings> {
    let daemon = Daemon::start(setting).await?;
    let peer = Peer::start(setting, DRAFTS + 1).await?;
    let config = daemon::config(setting)?;
    let agent = config.agents.values().next().context("the daemon has an agent")?;
    let n_question = question_length(texts, agent)?;

    let (mut ours, mut plain) = (Side::default(), Side::default());
    let (mut one_slot, mut slots) = (Side::default(), Side::default());
    for _ in 0..setting.rounds(ROUNDS) {
        let question = texts.question(n_question);
        let began = Instant::now();
        let tally = inline(&daemon, &question).await?;
        ours.add(began, tally)?;

        let Some(peer) = &peer else { continue };
        for client in [Kind::Plain, Kind::OneSlot, Kind::Slots] {
            let question = texts.question(n_question);
            let tally = Cell::new(Tally::default());
            let asked = Client { peer, texts, agent, question: &question, tally };
            let began = Instant::now();
            match client {
                Kind::Plain => asked.plain().await?,
                Kind::OneSlot => asked.good(Judging::OneSlot(JUDGE_SLOT)).await?,
                Kind::Slots => asked.good(Judging::SlotAnAnswer).await?,
            }
            let side = match client {
                Kind::Plain => &mut plain,
                Kind::OneSlot => &mut one_slot,
                Kind::Slots => &mut slots,
            };
            side.add(began, asked.tally.get())?;
        }
    }
    Ok(Findings { measured: compare(&ours, plain, one_slot, slots), curves: Vec::new() })
}

#[derive(Clone, Copy)]
enum Kind {
    Plain,
    OneSlot,
    Slots,
}

impl Side {
    fn add(&mut self, began: Instant, tally: Tally) -> anyhow::Result<()> {
        self.seconds.push(began.elapsed().as_secs_f64());
        let generated = tally.generated;
        ensure!(generated == GENERATED, "{generated} tokens were generated, not {GENERATED}");
        self.offered.push(tally.offered as f64);
        self.evaluated.push(tally.evaluated as f64);
        Ok(())
    }
}

fn compare(ours: &Side, plain: Side, one_slot: Side, slots: Side) -> Vec<Measured> {
    let row = |name: &str, side: Side, against: &str, goal| Measured {
        name: format!("reflection_{name}"),
        title: "reflection of one question".to_owned(),
        unit: "s",
        better: Better::Lower,
        ours: ours.seconds.clone(),
        other: side.seconds,
        against: Some(against.to_owned()),
        goal: Some(Goal::RatioAtLeast(goal)),
    };
    let tokens = |name: &str, title: &str, ours: &[f64], other: &[f64], against: &str| Measured {
        name: format!("reflection_{name}"),
        title: title.to_owned(),
        unit: "tokens",
        better: Better::Lower,
        ours: ours.to_vec(),
        other: other.to_vec(),
        against: Some(against.to_owned()),
        goal: None,
    };
    let good = "llama-server, good client";
    let offered = tokens(
        "prompt_tokens",
        "prompt tokens of its requests",
        &ours.offered,
        &plain.offered,
        "llama-server, plain client",
    );
    let evaluated = tokens(
        "evaluated_tokens",
        "prompt tokens that were evaluated",
        &ours.evaluated,
        &one_slot.evaluated,
        &format!("{good}, one slot for judging"),
    );
    vec![
        row("against_plain", plain, "llama-server, plain client", 3.0),
        row("against_one_slot", one_slot, &format!("{good}, one slot for judging"), 1.3),
        row("against_slots", slots, &format!("{good}, a slot an answer"), 1.3),
        offered,
        evaluated,
    ]
}

/// One chat in mode `inline`, and what it took of the engine.
async fn inline(daemon: &Daemon, question: &str) -> anyhow::Result<Tally> {
    let before = counters(daemon).await?;
    let body = json!({
        "messages": [{"role": "user", "content": question}],
        "reflectd": {"mode": "inline"},
    });
    let reply = daemon.endpoint.post("/v1/chat/completions", &body).await?;
    let candidates = reply["reflectd"]["candidates"].as_u64();
    let expected = u64::from(DRAFTS + REFINEMENTS);
    ensure!(candidates == Some(expected), "the daemon made {candidates:?} candidates: {reply}");
    let after = counters(daemon).await?;
    Ok(Tally {
        offered: after.offered - before.offered,
        evaluated: after.evaluated - before.evaluated,
        generated: after.generated - before.generated,
    })
}

async fn counters(daemon: &Daemon) -> anyhow::Result<Tally> {
    let status = daemon.endpoint.get("/v1/status").await?;
    let number = |key: &str| -> anyhow::Result<u64> {
        let engine = status["engine"][key].as_u64();
        // Of a daemon that judges beside its answers there is no other.
        let judge = status["judge_context"][key].as_u64().unwrap_or(0);
        Ok(judge + engine.with_context(|| format!("the status has no {key}"))?)
    };
    let evaluated = number("prompt_tokens")?;
    Ok(Tally {
        offered: evaluated + number("cached_tokens")?,
        evaluated,
        generated: number("generated_tokens")?,
    })
}

/// So long that the judgements of one answer share about [`PREFIX`] tokens.
fn question_length(texts: &mut Texts, agent: &Agent) -> anyhow::Result<usize> {
    const GUESS: usize = 200;
    let question = texts.question(GUESS);
    let answer = texts.question(ANSWER as usize);
    let mut prompts = Vec::new();
    for rated in &agent.aspects {
        let aspect = &rated.aspect;
        let view = AspectView {
            name: &aspect.name,
            description: &aspect.description,
            levels: &aspect.levels,
        };
        prompts.push(texts.tokens(&agent.prompts.assess(&question, &answer, None, &view)?)?);
    }
    let (first, rest) = prompts.split_first().context("the agent has aspects")?;
    let shared = rest
        .iter()
        .map(|other| first.iter().zip(other).take_while(|(a, b)| a == b).count())
        .min()
        .unwrap_or_default();
    Ok((GUESS + PREFIX).saturating_sub(shared))
}
