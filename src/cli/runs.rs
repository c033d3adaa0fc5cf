//! `reflectd runs`: the training runs. Called by `cli::run`.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::client::Client;
use super::reply::{List, Run, Stage};
use super::table::{NONE, Table, fields, or_none, pairs, span, time};
use super::{progress, terminal};
use protocol::exit::Exit;
use store::RunState;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Show all of one run.
    id: Option<i64>,
    /// Runs at most, newest first.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// Print JSON for machines.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(client: &Client, arguments: &Arguments) -> anyhow::Result<Exit> {
    let path = match arguments.id {
        Some(id) => format!("/v1/runs/{id}"),
        None => format!("/v1/runs?limit={}", arguments.limit),
    };
    if arguments.json {
        terminal::print_json(&client.get::<Value>(&path).await?)?;
    } else if arguments.id.is_some() {
        terminal::print(&show(&client.get(&path).await?))?;
    } else {
        let runs = client.get::<List<Run>>(&path).await?.data;
        let Now { stage } = client.get("/v1/status").await?;
        terminal::print(&list(&runs, &stage))?;
    }
    Ok(Exit::Ok)
}

/// `GET /v1/status`, as far as the list shows it.
#[derive(Debug, Deserialize)]
struct Now {
    stage: Stage,
}

fn list(runs: &[Run], stage: &Stage) -> String {
    let mut table = Table::new([
        "id",
        "started",
        "took",
        "pairs",
        "from",
        "gain",
        "asked",
        "state",
        "became",
        "why, or how far",
    ]);
    for run in runs {
        table.row([
            run.id.to_string(),
            time(run.started_ms),
            took(run),
            run.n_pairs.to_string(),
            run.start.to_string(),
            gain(run),
            asked(run),
            state(run.state).to_owned(),
            or_none(run.generation),
            match stage {
                Stage::Training { run: id, .. }
                | Stage::Choosing { run: id, .. }
                | Stage::Gating { run: id, .. }
                    if *id == run.id =>
                {
                    progress::describe(stage)
                }
                _ => run.reason.clone().unwrap_or_default(),
            },
        ]);
    }
    table.render()
}

fn show(run: &Run) -> String {
    let mut rows = vec![
        ("id", run.id.to_string()),
        ("state", state(run.state).to_owned()),
        ("reason", or_none(run.reason.as_ref())),
        ("started", time(run.started_ms)),
        ("took", took(run)),
        ("from generation", run.start.to_string()),
        ("became generation", or_none(run.generation)),
        ("pairs", run.n_pairs.to_string()),
        // An imported adapter has learned from no data of ours.
        ("data set", or_none(Some(&run.data_sha256).filter(|sha256| !sha256.is_empty()))),
    ];
    rows.extend(fields(&run.metrics));
    pairs(&rows)
}

/// The held-out gain with its lower bound.
fn gain(run: &Run) -> String {
    let gate = &run.metrics["gate"];
    match (gate["gain"].as_f64(), gate["lower_bound"].as_f64()) {
        (Some(gain), Some(bound)) => format!("{gain:+.3} (at least {bound:+.3})"),
        _ => NONE.to_owned(),
    }
}

/// Held-out prompts asked, and how many the gain that was seen would need.
fn asked(run: &Run) -> String {
    let gate = &run.metrics["gate"];
    let number = |value: &Value| value.as_u64().map(|number| number.to_string());
    let Some(asked) = number(&gate["prompts"]) else { return NONE.to_owned() };
    match number(&gate["plan"]["prompts"]) {
        Some(needed) => format!("{asked} (needs {needed})"),
        None => asked,
    }
}

fn took(run: &Run) -> String {
    let Some(ended_ms) = run.ended_ms else { return NONE.to_owned() };
    // A clock that was set back makes no negative span.
    let took_ms = u64::try_from(ended_ms - run.started_ms).unwrap_or(0);
    span(Duration::from_millis(took_ms).as_secs_f64())
}

pub(super) fn state(state: RunState) -> &'static str {
    match state {
        RunState::Training => "training",
        RunState::Gating => "gating",
        RunState::Interrupted => "interrupted",
        RunState::Promoted => "promoted",
        RunState::Rejected => "rejected",
        RunState::Failed => "failed",
        RunState::Cancelled => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::Generation;
    use store::{self, RunId};

    fn run() -> Run {
        let run = store::Run {
            id: RunId(3),
            started_ms: 1_000,
            ended_ms: Some(76_000),
            state: RunState::Rejected,
            reason: Some("no gain".into()),
            start: Generation(1),
            n_pairs: 40,
            data_sha256: "ab".into(),
            job: Value::Null,
            metrics: serde_json::json!({
                "gate": {"gain": 0.05, "lower_bound": -0.01, "prompts": 200, "plan": {"prompts": 651}},
            }),
            generation: None,
        };
        serde_json::from_value(serde_json::to_value(run).unwrap()).unwrap()
    }

    #[test]
    fn a_rejected_run_says_why() {
        let text = list(&[run()], &Stage::Idle);
        let line = text.lines().nth(1).unwrap();
        let end = "1 min 15 s     40     1  +0.050 (at least -0.010)  200 (needs 651)  rejected       -  no gain";
        assert!(line.ends_with(end), "{line}");
    }

    #[test]
    fn the_run_under_way_says_how_far_it_is() {
        let under_way = Run { state: RunState::Gating, ended_ms: None, ..run() };
        let text = list(&[under_way], &Stage::Gating { run: RunId(3), done: 4, total: 5 });
        assert!(text.ends_with("  gating       -  gating run 3: 4/5\n"), "{text}");
    }

    #[test]
    fn one_run_is_shown_with_its_metrics() {
        let text = show(&run());
        assert!(
            text.contains("became generation  -\n") && text.contains("\"lower_bound\":-0.01"),
            "{text}"
        );
    }
}
