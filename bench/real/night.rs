//! A round of a night through the socket: explore, train, gate, and how long each took. Used by `unit`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::daemon::Daemon;
use crate::records::Trained;

/// Explores, at most so long, and then trains.
pub(crate) async fn practice(daemon: &Daemon, at_most: Duration) -> anyhow::Result<Trained> {
    let body = json!({ "agent": "mine" });
    let explored = follow(daemon, "/v1/explore", body, Some(at_most)).await?;
    let mut trained = train(daemon).await?;
    trained.seconds.insert("exploring".to_owned(), explored.wall_s);
    let Followed { ended, last, is_cut, .. } = explored;
    // An exploration that was stopped has no result but what it said last.
    let explored = if ended["outcome"] == "explored" { ended } else { last.unwrap_or(ended) };
    Ok(Trained { is_cut, explored: Some(explored), ..trained })
}

/// Trains on what is there.
pub(crate) async fn train(daemon: &Daemon) -> anyhow::Result<Trained> {
    let ended = follow(daemon, "/v1/runs", json!({}), None).await?;
    run_of(daemon, ended).await
}

/// Puts an adapter from a file through the gate.
pub(crate) async fn import(daemon: &Daemon, path: &str) -> anyhow::Result<Trained> {
    let ended = follow(daemon, "/v1/adapters/import", json!({ "path": path }), None).await?;
    run_of(daemon, ended).await
}

async fn run_of(daemon: &Daemon, followed: Followed) -> anyhow::Result<Trained> {
    let Followed { ended, seconds, .. } = followed;
    let run = match ended["run"].as_i64() {
        Some(run) => Some(daemon.get(&format!("/v1/runs/{run}")).await?),
        None => None,
    };
    let text = |key: &str| ended[key].as_str().map(str::to_owned);
    let adapters = daemon.get("/v1/adapters").await?;
    Ok(Trained {
        outcome: text("outcome").unwrap_or_default(),
        reason: text("reason"),
        n_pairs: run.as_ref().and_then(|run| run["n_pairs"].as_u64()),
        verdict: Some(ended["verdict"].clone()).filter(Value::is_object),
        generation: adapters["active"].as_u64().context("the daemon names what is served")?,
        seconds,
        explored: None,
        is_cut: false,
    })
}

/// What an operation said.
#[derive(Debug)]
struct Followed {
    ended: Value,
    /// The last stage that was an exploration.
    last: Option<Value>,
    /// By the name of the stage.
    seconds: BTreeMap<String, f64>,
    wall_s: f64,
    /// The time was over before the work.
    is_cut: bool,
}

async fn follow(
    daemon: &Daemon,
    path: &str,
    body: Value,
    at_most: Option<Duration>,
) -> anyhow::Result<Followed> {
    let began = Instant::now();
    let mut answer = daemon.follow(path, body).await?;
    let mut deadline = at_most.map(|it| began + it);
    let mut followed = Followed {
        ended: Value::Null,
        last: None,
        seconds: BTreeMap::new(),
        wall_s: 0.0,
        is_cut: false,
    };
    let mut stage = (String::new(), began);
    loop {
        let over = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let data = tokio::select! {
            data = answer.event() => data,
            () = over => {
                deadline = None;
                followed.is_cut = true;
                daemon.delete("/v1/runs/current").await?;
                continue;
            }
        };
        let data = data.with_context(|| format!("{path} ended early:\n{}", daemon.last_words()))?;
        if data == "[DONE]" {
            break;
        }
        let event: Value = serde_json::from_str(&data).context("an event is JSON")?;
        if let Some(name) = event["stage"].as_str().filter(|name| *name != stage.0) {
            let (before, since) = std::mem::replace(&mut stage, (name.to_owned(), Instant::now()));
            *followed.seconds.entry(before).or_default() += since.elapsed().as_secs_f64();
        }
        if event["stage"] == "exploring" {
            followed.last = Some(event);
        } else if event["outcome"].is_string() || event["error"].is_object() {
            followed.ended = event;
        }
    }
    let (name, since) = stage;
    *followed.seconds.entry(name).or_default() += since.elapsed().as_secs_f64();
    followed.seconds.remove("");
    followed.wall_s = began.elapsed().as_secs_f64();
    Ok(followed)
}
