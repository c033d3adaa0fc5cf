//! `reflectd train`: pairs, training, gate and swap, now. Called by `cli::run`.

use serde_json::{Value, json};

use super::client::Client;
use super::explore::{describe, exit};
use super::progress::{StageBar, follow};
use super::terminal;
use crate::exit::Exit;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
    /// Stop the long operation under way (training or exploration) instead.
    #[arg(long)]
    stop: bool,
}

pub(super) async fn run(client: &Client, arguments: &Arguments) -> anyhow::Result<Exit> {
    if arguments.stop {
        let reply: Value = client.delete("/v1/runs/current").await?;
        if arguments.json {
            terminal::print_json(&reply)?;
        }
        return Ok(Exit::Ok);
    }
    let mut bar = StageBar::default();
    let outcome =
        follow(client, "/v1/runs", &json!({ "stream": true }), |stage| bar.show(stage)).await?;
    bar.finish();
    if arguments.json {
        terminal::print_json(&outcome.json)?;
    } else {
        terminal::print(&describe(&outcome.ended))?;
    }
    Ok(exit(&outcome.ended))
}
