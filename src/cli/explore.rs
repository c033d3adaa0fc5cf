//! `reflectd explore`: idle-time work, now. Called by `cli::run`.

use std::path::PathBuf;

use serde_json::json;

use super::client::Client;
use super::operation::run_operation;
use config::prompt_file;
use protocol::exit::Exit;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Prompts to store first: JSON lines with `prompt` or `messages` and, if you like, `id`, `reference`, `verifier`.
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
