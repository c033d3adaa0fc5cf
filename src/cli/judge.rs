//! `reflectd judge`: how far the judge can be trusted. Called by `cli::run`.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use super::client::Client;
use super::judge_report::{describe, show};
use super::operation::run_operation;
use super::reply::{JudgeState, List};
use super::terminal;
use crate::trust::Attack;
use config::prompt_file;
use protocol::exit::Exit;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
    /// Whose judge [default: every agent's].
    #[arg(long, global = true)]
    agent: Option<String>,
    /// Print JSON for machines.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Measure the judge on labelled answers now, and put the thresholds of aspects with `pass: calibrated`
    /// where `trust.max_false_accept` is reached.
    Calibrate,
    /// Show the last measurement of the present judge and rubrics.
    Report,
    /// Try what wrong answers gain that speak to the judge.
    Attack {
        /// Wrong answers to try each attack on.
        #[arg(long, default_value_t = 40)]
        limit: usize,
        /// Attacks of your own: JSON lines with `name` and `text`, in which `{answer}` stands for the
        /// answer [default: those that come with the program].
        #[arg(long, value_name = "FILE")]
        attacks: Option<PathBuf>,
    },
    /// Judge stored answers again that another judge or an earlier rubric has judged; goes on where it
    /// was stopped.
    Rescore {
        /// Prompts at most.
        #[arg(long, default_value_t = 1_000_000)]
        limit: usize,
    },
}

pub(super) async fn run(client: &Client, arguments: &Arguments) -> anyhow::Result<Exit> {
    let Arguments { action, agent, json } = arguments;
    let (path, body) = match action {
        Action::Report => return report(client, agent.as_deref(), *json).await,
        Action::Calibrate => ("calibrate", json!({})),
        Action::Rescore { limit } => ("rescore", json!({ "limit": limit })),
        Action::Attack { limit, attacks: None } => ("attack", json!({ "limit": limit })),
        Action::Attack { limit, attacks: Some(path) } => {
            let attacks: Vec<Attack> =
                prompt_file::read_lines(path, "`name` and `text`, with `{answer}` in it")?;
            ("attack", json!({ "limit": limit, "attacks": attacks }))
        }
    };
    let mut body = body;
    body["agent"] = json!(agent);
    body["stream"] = json!(true);
    run_operation(client, &format!("/v1/judge/{path}"), &body, *json).await
}

async fn report(client: &Client, agent: Option<&str>, as_json: bool) -> anyhow::Result<Exit> {
    let path = match agent {
        // A name that the configuration allows needs no escapes.
        Some(name) if name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) => {
            format!("/v1/judge?agent={name}")
        }
        Some(name) => anyhow::bail!("no agent is named {name:?}"),
        None => "/v1/judge".to_owned(),
    };
    if as_json {
        terminal::print_json(&client.get::<Value>(&path).await?)?;
        return Ok(Exit::Ok);
    }
    for state in client.get::<List<JudgeState>>(&path).await?.data {
        let text = match &state.report {
            Some(report) => show(report),
            None => {
                format!("{}: never measured with its present judge and rubrics.\n", state.agent)
            }
        };
        terminal::print(&format!("{text}{}\n\n", describe(&state.standing)))?;
    }
    Ok(Exit::Ok)
}
