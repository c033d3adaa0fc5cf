//! `reflectd train`: pairs, training, gate and swap, now. Called by `cli::run`.

use serde_json::{Value, json};

use super::client::Client;
use super::operation::run_operation;
use super::terminal;
use protocol::exit::Exit;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
    /// Stop the long operation under way (training or exploration), or give up the interrupted run
    /// that waits, instead.
    #[arg(long)]
    stop: bool,
    /// Let scheduled runs start again after a pause, without training now.
    #[arg(long, conflicts_with = "stop")]
    resume: bool,
}

pub(super) async fn run(client: &Client, arguments: &Arguments) -> anyhow::Result<Exit> {
    if arguments.stop {
        let reply: Value = client.delete("/v1/runs/current").await?;
        if arguments.json {
            terminal::print_json(&reply)?;
        }
        return Ok(Exit::Ok);
    }
    if arguments.resume {
        let reply: Value = client.post("/v1/runs/resume", &json!({})).await?;
        if arguments.json {
            terminal::print_json(&reply)?;
        }
        return Ok(Exit::Ok);
    }
    run_operation(client, "/v1/runs", &json!({ "stream": true }), arguments.json).await
}
