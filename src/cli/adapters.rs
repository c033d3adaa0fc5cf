//! `reflectd adapters`: the generations, and the way back. Called by `cli::run`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::{Value, json};

use super::client::Client;
use super::operation::run_operation;
use super::reply::{Adapter, Adapters};
use super::table::{Table, fields, or_none, pairs, time};
use super::terminal;
use engine::Generation;
use protocol::exit::Exit;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
    /// Print JSON for machines.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// All generations; the base model is 0.
    List,
    /// All of one generation.
    Show {
        /// Its number.
        generation: u32,
    },
    /// Serve this generation from now on, without dropping a request.
    Rollback {
        /// Its number; 0 is the base model.
        generation: u32,
    },
    /// Try an adapter that was made elsewhere: it has to win the comparison that a trained one has to
    /// win, and is kept as a rejected run otherwise.
    Import {
        /// A GGUF adapter or a PEFT folder; the daemon reads it as its own user.
        path: PathBuf,
        /// SHA-256 of the base that it is for, where its file does not say so.
        #[arg(long, value_name = "SHA256")]
        base_sha256: Option<String>,
    },
}

pub(super) async fn run(client: &Client, arguments: &Arguments) -> anyhow::Result<Exit> {
    let reply: Value = match &arguments.action {
        Action::Import { path, base_sha256 } => {
            let path = std::path::absolute(path).context("use the path of the adapter")?;
            let body = json!({ "path": path, "base_sha256": base_sha256, "stream": true });
            return run_operation(client, "/v1/adapters/import", &body, arguments.json).await;
        }
        Action::List => client.get("/v1/adapters").await?,
        Action::Show { generation } => client.get(&format!("/v1/adapters/{generation}")).await?,
        Action::Rollback { generation } => {
            let body = json!({ "generation": Generation(*generation) });
            client.post("/v1/adapters/rollback", &body).await?
        }
    };
    if arguments.json {
        terminal::print_json(&reply)?;
        return Ok(Exit::Ok);
    }
    terminal::print(&match &arguments.action {
        Action::Import { .. } => unreachable!("it has returned"),
        Action::List => list(&serde_json::from_value(reply)?),
        Action::Show { .. } => show(&serde_json::from_value(reply)?),
        Action::Rollback { generation } => format!("Generation {generation} answers now.\n"),
    })?;
    Ok(Exit::Ok)
}

fn list(adapters: &Adapters) -> String {
    let mut table = Table::new(["generation", "parent", "run", "created", "active"]);
    for adapter in &adapters.data {
        table.row([
            adapter.generation.to_string(),
            or_none(adapter.parent),
            or_none(adapter.run),
            adapter.created_ms.map_or_else(|| "base model".to_owned(), time),
            if adapter.generation == adapters.active { "yes".to_owned() } else { String::new() },
        ]);
    }
    table.render()
}

fn show(adapter: &Adapter) -> String {
    let mut rows = vec![
        ("generation", adapter.generation.to_string()),
        ("parent", or_none(adapter.parent)),
        ("run", or_none(adapter.run)),
        ("created", or_none(adapter.created_ms.map(time))),
        ("file", or_none(adapter.path.as_ref())),
        ("SHA-256", or_none(adapter.sha256.as_ref())),
    ];
    rows.extend(fields(&adapter.verdict));
    pairs(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_is_listed_and_the_active_one_is_marked() {
        let reply = json!({"active": 1, "data": [{"generation": 0}, {
            "generation": 1, "run": 4, "parent": 0, "path": "a.gguf", "sha256": "ab",
            "base_sha256": "cd", "created_ms": 0, "active": true, "verdict": {"gain": 0.1}}]});
        let text = list(&serde_json::from_value(reply).unwrap());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].ends_with("0       -    -  base model"), "{text}");
        assert!(lines[2].ends_with("yes"), "{text}");
    }
}
