//! `reflectd learn`: examples of your own for the model to learn from. Called by `cli::run`.

use std::path::PathBuf;

use serde_json::json;

use super::client::Client;
use super::operation::without;
use super::terminal;
use crate::learn::examples::Learned;
use config::prompt_file;
use protocol::exit::Exit;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Examples: JSON lines with `prompt` or `messages`, `answer` and, if you like, `reference`, `verifier`.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Who learns from them [default: the default agent].
    #[arg(long)]
    agent: Option<String>,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(client: &Client, arguments: &Arguments) -> anyhow::Result<Exit> {
    let lines = prompt_file::read_examples(&arguments.file)?;
    let examples: Vec<_> = lines.into_iter().map(|(_, line)| line).collect();
    let body = json!({ "agent": arguments.agent, "examples": examples });
    let learned: Learned = client.post("/v1/examples", &body).await?;
    if arguments.json {
        terminal::print_json(&json!(learned))?;
        return Ok(Exit::Ok);
    }
    let Learned { new, changed, known, left_out } = learned;
    terminal::print(&format!(
        "{new} new examples, {changed} changed, {known} known; the next run learns from what is new.\n{}",
        without(&left_out)
    ))?;
    Ok(Exit::Ok)
}
