//! `reflectd status`: what the daemon is doing. Called by `cli::run`.

use serde_json::Value;

use super::client::Client;
use super::reply::{LastRun, Seen, Side, Status};
use super::table::{or_none, pairs, span, time};
use super::{Json, judge_report, progress, runs, terminal};
use protocol::exit::Exit;
use store::{Watch, WatchState};

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
        ("last run", or_none(status.last_run.as_ref().map(last_run))),
        ("paused", or_none(status.guards.paused.as_ref())),
        ("held out", or_none(status.guards.held_out.as_ref().map(|it| &it.says))),
        ("watch", or_none(status.guards.watch.as_ref().map(watch))),
        ("exchanges", format!("{} ({} new)", counts.exchanges, counts.new_exchanges)),
        ("candidates", format!("{} ({} assessments)", counts.candidates, counts.assessments)),
        ("feedback", counts.feedback.to_string()),
        ("runs", counts.runs.to_string()),
        ("configuration", status.config.state.replace('_', " ")),
    ];
    for state in &status.judges {
        let (who, standing) = (&state.judge, judge_report::describe(&state.standing));
        let repeats = match state.deterministic {
            Some(true) => "; its verdicts can be repeated",
            Some(false) => "; its verdicts depend on what else is computed",
            None => "",
        };
        let text = format!("{}: {who}{repeats}; scalar: {}; {standing}", state.agent, state.scalar);
        rows.push(("judge", text));
    }
    if let Some(fault) = &status.trainer_fault {
        rows.push(("trainer", fault.clone()));
    }
    if let Some(error) = &status.endpoint_calls.last_error {
        rows.push(("judge's fault", error.clone()));
    }
    for alarm in &status.guards.alarms {
        let reason = alarm.detail["reason"].as_str().unwrap_or_default();
        rows.push(("alarm", format!("{}: {reason}", time(alarm.created_ms))));
    }
    for problem in &status.config.problems {
        rows.push(("", format!("{}: {}: {}", problem.file, problem.key, problem.message)));
    }
    let table = pairs(&rows);
    match &status.learning {
        Some(learning) => format!("{}\n\n{table}", learning.sentence),
        None => table,
    }
}

/// `run 7 of 2026-11-30 03:00:00, failed: the judge at ... does not answer`.
fn last_run(run: &LastRun) -> String {
    let reason = run.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("run {} of {}, {}{reason}", run.id, time(run.started_ms), runs::state(run.state))
}

/// `generation 2 beside 1, canary with 20 % of the chats: judged 31 (0.71 -> 0.70), rated 0`.
fn watch((watch, seen): &(Watch, Seen)) -> String {
    let role = match watch.state {
        WatchState::Canary => format!(", canary with {:.0} % of the chats", 100.0 * watch.share),
        _ => String::new(),
    };
    let side = |side: &Side| match side.pairs {
        0 => "0".to_owned(),
        n => format!("{n} ({:.2} -> {:.2})", side.before, side.now),
    };
    format!(
        "generation {} beside {}{role}: judged {}, rated {}",
        watch.generation,
        watch.parent,
        side(&seen.judged),
        side(&seen.rated)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_configuration_that_was_rolled_back_is_shown_with_its_problems() {
        let status = json!({
            "version": "0.1.0", "uptime_s": 75, "agents": ["nano"], "next_run": null,
            "last_run": {"id": 7, "started_ms": 0, "state": "failed", "reason": "the judge sleeps"},
            "model": {"name": "nano", "path": "m.gguf", "sha256": "ab", "architecture": "llama",
                      "n_parameters": 800_000},
            "engine": {"active": 2, "running": 1, "queued": 0, "cells_used": 10, "cells": 4096},
            "counts": {"exchanges": 3, "candidates": 9, "assessments": 27, "feedback": 1, "runs": 2,
                       "new_exchanges": 1},
            "stage": {"stage": "idle"},
            "trainer_fault": "not installed",
            "judges": [{"agent": "nano", "judge": "generation 0 of ab", "deterministic": false,
                        "scalar": "mean of the aspects", "standing": "trusted", "unmeasured": []}],
            "learning": {"sentence": "Not learning yet: 3 of 50 new pairs; no schedule."},
            "guards": {"paused": "2 rounds in a row brought no gain", "alarms": [],
                       "held_out": {"says": "12 held-out prompts are too few"},
                       "watch": [{"generation": 2, "parent": 1, "share": 0.2, "started_ms": 0,
                                  "after_candidate": 9, "state": "canary", "ended_ms": null,
                                  "reason": null},
                                 {"judged": {"pairs": 31, "before": 0.71, "now": 0.7},
                                  "rated": {"pairs": 0, "before": 0.0, "now": 0.0}}]},
            "config": {"state": "rolled_back",
                       "problems": [{"file": "reflectd.yaml", "key": "learn", "message": "unknown"}]},
        });
        let text = render(&serde_json::from_value(status).unwrap());
        assert!(
            text.starts_with("Not learning yet: 3 of 50 new pairs; no schedule.\n\n"),
            "{text}"
        );
        assert!(text.contains("up for         1 min 15 s\n"), "{text}");
        assert!(text.contains("generation     2\n"), "{text}");
        assert!(text.contains("last run       run 7 of 19"), "{text}");
        assert!(text.contains(", failed: the judge sleeps\n"), "{text}");
        assert!(text.contains("trainer        not installed\n"), "{text}");
        assert!(text.contains("paused         2 rounds in a row brought no gain\n"), "{text}");
        assert!(text.contains("held out       12 held-out prompts are too few\n"), "{text}");
        let watch = "generation 2 beside 1, canary with 20 % of the chats: \
                     judged 31 (0.71 -> 0.70), rated 0\n";
        assert!(text.contains(watch), "{text}");
        let judge = "judge          nano: generation 0 of ab; its verdicts depend on what else is \
                     computed; scalar: mean of the aspects; trusted\n";
        assert!(text.contains(judge), "{text}");
        assert!(text.contains("configuration  rolled back\n"), "{text}");
        assert!(text.ends_with("reflectd.yaml: learn: unknown\n"), "{text}");
    }
}
