//! `kill -9` at each stage of the loop, and what the next daemon on the same folder makes of it.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, getpid, set_child_subreaper};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::chats::{chat, questions};
use crate::daemon::Daemon;
use crate::explored::{exploration, explored};
use crate::scratch::Scratch;

/// How soon a trainer without its daemon has ended.
const ORPHAN: Duration = Duration::from_secs(20);
/// Makes training long enough to be caught in the middle.
const LONG: u32 = 30;
/// Prompts of an exploration that does not come to its end.
const PROMPTS: usize = 24;

#[tokio::test]
async fn kill_9_while_it_explores_loses_nothing_that_was_stored_and_it_goes_on_there() {
    let daemon = Daemon::start(Scratch::new()).await;
    let (_, _stream) = daemon
        .follow_until("/v1/explore", exploration(PROMPTS, 3), |event| {
            event["stage"] == "exploring" && event["done"].as_u64().is_some_and(|done| 0 < done)
        })
        .await;
    let before = daemon.get("/v1/status").await["counts"].clone();
    let daemon = Daemon::start(daemon.kill().await).await;
    let after = daemon.get("/v1/status").await["counts"].clone();
    for rows in ["exchanges", "candidates", "assessments"] {
        let [before, after] = [&before, &after].map(|counts| counts[rows].as_u64().unwrap());
        assert!(0 < before && before <= after, "{rows}: {before} became {after}");
    }
    assert_eq!(after["exchanges"], PROMPTS, "prompts are stored before the first is explored");
    serves(&daemon, 0).await;

    // What is left over is explored by the next wish.
    let rest = daemon.post("/v1/explore", &json!({ "limit": 2, "n": 4, "m": 2 })).await;
    assert_eq!((&rest["outcome"], &rest["prompts"]), (&json!("explored"), &json!(2)), "{rest}");
    let all = json!({ "limit": PROMPTS, "n": 4, "m": 2 });
    daemon.post("/v1/explore", &all).await;
    let found = daemon.get("/v1/reflections?limit=1000").await;
    let explored = found["data"].as_array().unwrap().iter();
    let explored: Vec<_> = explored.filter(|it| it["source"] == "explore").collect();
    assert_eq!(explored.len(), PROMPTS);
    for exchange in explored {
        let candidates = exchange["candidates"].as_array().unwrap();
        let drafts = candidates.iter().filter(|it| it["parent"].is_null()).count();
        assert_eq!(drafts, 4, "what was there is neither lost nor made again: {exchange}");
        assert!(candidates.len() <= 6, "{exchange}");
    }
    let nothing = daemon.post("/v1/explore", &all).await;
    assert_eq!((&nothing["prompts"], &nothing["candidates"]), (&json!(0), &json!(0)), "{nothing}");
    daemon.stop().await;
}

#[tokio::test]
async fn kill_9_at_every_stage_of_a_run_costs_it_nothing_but_time() {
    // Orphaned trainers become children of this process and not of init. Under init their process
    // group would be orphaned, and the kernel would continue its stopped members.
    set_child_subreaper(Some(getpid())).unwrap();
    // The same run on the same data, undisturbed.
    let undisturbed = {
        let scratch = explored().await;
        scratch.train_for(LONG);
        let daemon = Daemon::start(scratch).await;
        let ended = daemon.post("/v1/runs", &json!({})).await;
        assert_eq!(ended["outcome"], "promoted", "{ended}");
        let run = newest_run(&daemon).await;
        daemon.stop().await;
        run
    };

    // Killed while the trainer works.
    let scratch = explored().await;
    scratch.train_for(LONG);
    let daemon = Daemon::start(scratch).await;
    let (_, _stream) = daemon.follow_until("/v1/runs", json!({}), is_training).await;
    let trainer = trainer_of(daemon.pid());
    let daemon = Daemon::start(daemon.kill().await).await;
    has_ended(trainer).await;
    let run = newest_run(&daemon).await;
    let said = run["reason"].as_str().unwrap();
    assert!(said.contains("the daemon ended during the run") && run["ended_ms"].is_null(), "{run}");
    serves(&daemon, 0).await;

    // It goes on by itself; asking for training means the same. Killed while the trainer is stopped
    // for a chat.
    let (event, _stream) = daemon.follow_until("/v1/runs", json!({}), is_training).await;
    assert_eq!(event["run"], run["id"], "{event}");
    let trainer = trainer_of(daemon.pid());
    while state_of(trainer).expect("it trains for long") != 'T' {
        chat(&daemon.scratch().socket(), &questions(1, 4)[0]).await;
    }
    let scratch = daemon.kill().await;
    has_ended(trainer).await;

    // Killed while the gate asks.
    let daemon = Daemon::start(scratch).await;
    let (_, _stream) =
        daemon.follow_until("/v1/runs", json!({}), |event| event["stage"] == "gating").await;
    let daemon = Daemon::start(daemon.kill().await).await;
    serves(&daemon, 0).await;

    // Killed as soon as the promotion is seen.
    let (ended, _stream) =
        daemon.follow_until("/v1/runs", json!({}), |event| event["outcome"].is_string()).await;
    assert_eq!((&ended["outcome"], &ended["generation"]), (&json!("promoted"), &json!(1)));
    let daemon = Daemon::start(daemon.kill().await).await;
    let run = newest_run(&daemon).await;
    assert_eq!((&run["state"], &run["metrics"]["resumes"]), (&json!("promoted"), &json!(3)));
    serves(&daemon, 1).await;
    assert_eq!(daemon.get("/v1/runs").await["data"].as_array().unwrap().len(), 1);

    // What it learned is what the undisturbed run learned.
    assert_eq!(run["data_sha256"], undisturbed["data_sha256"]);
    let metrics = |run: &Value| run["metrics"].clone();
    let (own, other) = (metrics(&run), metrics(&undisturbed));
    assert_eq!(own["best_step"], other["best_step"]);
    for path in ["/step/loss", "/step/grad_norm", "/step/logps~1chosen"] {
        let number = |metrics: &Value| metrics.pointer(path).unwrap().as_f64().unwrap();
        let (own, other) = (number(&own), number(&other));
        assert!((own - other).abs() <= 1e-3 * other.abs().max(1e-3), "{path}: {own} {other}");
    }
    daemon.stop().await;
}

fn is_training(event: &Value) -> bool {
    event["stage"] == "training" && event["step"]["step"].as_u64().is_some_and(|step| 0 < step)
}

/// Healthy, with a sound database, and answering with these weights.
async fn serves(daemon: &Daemon, generation: u64) {
    let health = daemon.get("/health").await;
    assert_eq!((&health["status"], &health["generation"]), (&json!("ok"), &json!(generation)));
    assert_eq!(chat(&daemon.scratch().socket(), &questions(1, 4)[0]).await, generation);
    let counts = daemon.get("/v1/status").await["counts"].clone();
    let stored = daemon.get("/v1/reflections?limit=1000").await;
    let stored = stored["data"].as_array().unwrap();
    assert_eq!(stored.len() as u64, counts["exchanges"].as_u64().unwrap());
    let candidates = stored.iter().map(|exchange| exchange["candidates"].as_array().unwrap().len());
    assert_eq!(candidates.sum::<usize>() as u64, counts["candidates"].as_u64().unwrap());
}

async fn newest_run(daemon: &Daemon) -> Value {
    daemon.get("/v1/runs?limit=1").await["data"][0].clone()
}

/// The only child of a daemon that trains.
fn trainer_of(daemon: Pid) -> Pid {
    let children: Vec<Pid> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .filter(|&pid| stat(pid, 1) == Some(daemon.as_raw_nonzero().to_string()))
        .collect();
    assert_eq!(children.len(), 1, "the daemon has one child, the trainer: {children:?}");
    children[0]
}

/// A word of `/proc/PID/stat` after the program's name; `None` when there is no such process.
fn stat(pid: Pid, word: usize) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let (_, words) = text.rsplit_once(") ")?;
    words.split(' ').nth(word).map(str::to_owned)
}

/// `R`, `S`, `T` (stopped), `Z` (ended, and nobody has waited for it) and so on.
fn state_of(pid: Pid) -> Option<char> {
    stat(pid, 0)?.chars().next()
}

/// It is nobody's child that we could wait for, so it is looked at until it is gone.
async fn has_ended(pid: Pid) {
    let gone = async {
        while !matches!(state_of(pid), None | Some('Z')) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let ended = timeout(ORPHAN, gone).await;
    assert_eq!(ended, Ok(()), "the trainer outlives its daemon, in state {:?}", state_of(pid));
}
