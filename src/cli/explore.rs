//! `reflectd explore`: idle-time work, now. Called by `cli::run`.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::client::Client;
use super::progress::{StageBar, follow};
use super::reply::Ended;
use super::table::span;
use super::{judge, terminal};
use config::prompt_file;
use protocol::exit::Exit;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Prompts to store first: JSON lines with `id`, `prompt` and, if you like, `reference`, `verifier`.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Whose prompts [default: the default agent's for new ones, everyone's for stored ones].
    #[arg(long)]
    agent: Option<String>,
    /// Prompts at most.
    #[arg(long, default_value_t = 1000)]
    limit: usize,
    /// Drafts a prompt [default: the agent's].
    #[arg(long)]
    n: Option<u32>,
    /// Refinements a prompt [default: the agent's].
    #[arg(long)]
    m: Option<u32>,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(client: &Client, arguments: &Arguments) -> anyhow::Result<Exit> {
    let prompts = match &arguments.prompts {
        Some(path) => prompt_file::read(path)?,
        None => Vec::new(),
    };
    let body = json!({
        "agent": arguments.agent, "prompts": prompts, "limit": arguments.limit,
        "n": arguments.n, "m": arguments.m, "stream": true,
    });
    run_operation(client, "/v1/explore", &body, arguments.json).await
}

/// Starts a long operation of the daemon, shows how it goes and what came of it.
pub(super) async fn run_operation(
    client: &Client,
    path: &str,
    body: &Value,
    as_json: bool,
) -> anyhow::Result<Exit> {
    let mut bar = StageBar::default();
    let outcome = follow(client, path, body, |stage| bar.show(stage)).await?;
    bar.finish();
    if as_json {
        terminal::print_json(&outcome.json)?;
    } else {
        terminal::print(&describe(&outcome.ended))?;
    }
    Ok(exit(&outcome.ended))
}

/// Only an operation that broke is a failure: a gate that says no has done its work.
fn exit(ended: &Ended) -> Exit {
    let is_broken = matches!(ended, Ended::Failed { .. } | Ended::Interrupted { .. });
    if is_broken { Exit::Failed } else { Exit::Ok }
}

/// The outcome of a long operation in one line.
fn describe(ended: &Ended) -> String {
    match ended {
        Ended::Explored {
            prompts,
            candidates,
            positives,
            generated_tokens,
            enough,
            given_up,
            positives_per_1000_tokens,
            wall_s,
        } => format!(
            "Explored {prompts} prompts in {} ({enough} had enough good and bad answers early, \
             {given_up} were given up): {candidates} new answers, {positives} pass every aspect; \
             {generated_tokens} tokens, {positives_per_1000_tokens:.2} of these for every 1,000.\n",
            span(*wall_s)
        ),
        Ended::Calibrated { reports } => reports.iter().map(judge::show).collect(),
        Ended::Attacked { reports } => reports.iter().map(judge::show_attacks).collect(),
        Ended::Rescored { exchanges, candidates, wall_s } => format!(
            "Judged {candidates} answers to {exchanges} prompts again in {}.\n",
            span(*wall_s)
        ),
        Ended::Promoted { run, generation, share } if *share < 1.0 => format!(
            "Run {run} was promoted: generation {generation} answers {:.0} % of the chats for now.\n",
            100.0 * share
        ),
        Ended::Promoted { run, generation, .. } => {
            format!("Run {run} was promoted: generation {generation} answers now.\n")
        }
        Ended::Rejected { run, reason } => {
            format!("Run {run} was not promoted, the weights stay as they are: {reason}\n")
        }
        Ended::Interrupted { run, reason } => {
            format!("Run {run} was interrupted and goes on later: {reason}\n")
        }
        Ended::Failed { run: Some(run), reason } => format!("Run {run} failed: {reason}\n"),
        Ended::Failed { run: None, reason } => format!("Nothing was done: {reason}\n"),
    }
}
