//! `reflectd status`: what the daemon is doing. Called by `cli::run`.

use serde_json::Value;

use super::client::Client;
use super::reply::Status;
use super::table::{or_none, pairs, span};
use super::{Json, progress, terminal};
use crate::exit::Exit;

pub(super) async fn run(client: &Client, json: Json) -> anyhow::Result<Exit> {
    if json.json {
        terminal::print_json(&client.get::<Value>("/v1/status").await?)?;
    } else {
        terminal::print(&render(&client.get("/v1/status").await?))?;
    }
    Ok(Exit::Ok)
}

fn render(status: &Status) -> String {
    let Status { model, engine, counts, .. } = status;
    let mut rows = vec![
        ("version", status.version.clone()),
        ("up for", span(status.uptime_s)),
        ("model", format!("{} ({}, {})", model.name, model.architecture, model.path)),
        ("parameters", format!("{:.1} million", model.n_parameters / 1e6)),
        ("agents", status.agents.join(", ")),
        ("generation", engine.active.to_string()),
        ("requests", format!("{} running, {} waiting", engine.running, engine.queued)),
        ("KV cells", format!("{} of {}", engine.cells_used, engine.cells)),
        ("learner", progress::describe(&status.stage)),
        ("next run", or_none(status.next_run.as_ref())),
        ("exchanges", format!("{} ({} new)", counts.exchanges, counts.new_exchanges)),
        ("candidates", format!("{} ({} assessments)", counts.candidates, counts.assessments)),
        ("feedback", counts.feedback.to_string()),
        ("runs", counts.runs.to_string()),
        ("configuration", status.config.state.replace('_', " ")),
    ];
    for problem in &status.config.problems {
        rows.push(("", format!("{}: {}: {}", problem.file, problem.key, problem.message)));
    }
    pairs(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_configuration_that_was_rolled_back_is_shown_with_its_problems() {
        let status = json!({
            "version": "0.1.0", "uptime_s": 75, "agents": ["nano"], "next_run": null,
            "model": {"name": "nano", "path": "m.gguf", "sha256": "ab", "architecture": "llama",
                      "n_parameters": 800_000},
            "engine": {"active": 2, "running": 1, "queued": 0, "cells_used": 10, "cells": 4096},
            "counts": {"exchanges": 3, "candidates": 9, "assessments": 27, "feedback": 1, "runs": 2,
                       "new_exchanges": 1},
            "stage": {"stage": "idle"},
            "config": {"state": "rolled_back",
                       "problems": [{"file": "reflectd.yaml", "key": "learn", "message": "unknown"}]},
        });
        let text = render(&serde_json::from_value(status).unwrap());
        assert!(text.contains("up for         1 min 15 s\n"), "{text}");
        assert!(text.contains("generation     2\n"), "{text}");
        assert!(text.contains("configuration  rolled back\n"), "{text}");
        assert!(text.ends_with("reflectd.yaml: learn: unknown\n"), "{text}");
    }
}
