//! What is learned from besides pairs, with the real trainer: examples, single answers and the owner's
//! own words (`kto`), and groups with their behaviour (`grpo`).

use std::fs;

use protocol::{Example, Group, Job, Objective};
use serde_json::{Value, json};

use crate::chats::questions;
use crate::daemon::Daemon;
use crate::explored::explored;
use crate::scratch::{EPOCHS, Scratch};

#[tokio::test]
async fn single_answers_and_the_owners_edits_are_learned_from() {
    let scratch = explored().await;
    scratch.train_by("kto", 1);
    let daemon = Daemon::start(scratch).await;

    // The owner rewrites one answer and refuses another.
    let found = daemon.get("/v1/reflections?limit=2").await;
    let [first, second] = found["data"].as_array().unwrap().as_slice() else { panic!("{found}") };
    let candidate = |exchange: &Value| exchange["candidates"][0]["id"].clone();
    let edit =
        json!({ "exchange": first["id"], "candidate": candidate(first), "edit": "4 and 3 is 7." });
    let id = daemon.post("/v1/feedback", &edit).await["edit"].clone();
    let thumb = json!({ "exchange": second["id"], "candidate": candidate(second), "rating": -1 });
    daemon.post("/v1/feedback", &thumb).await;
    let exchange = daemon.get(&format!("/v1/reflections/{}", first["id"])).await;
    let edited = exchange["candidates"].as_array().unwrap().last().unwrap();
    assert_eq!((&edited["id"], &edited["author"]), (&id, &json!("owner")));

    let (run, examples) = trained::<Example>(&daemon).await;
    let n_good = examples.iter().filter(|example| !example.chosen.is_empty()).count();
    let n_bad = examples.iter().filter(|example| example.rejected.is_some()).count();
    assert!(0 < n_good && 0 < n_bad, "{n_good} wanted and {n_bad} unwanted answers");
    assert_eq!(examples.len(), n_good + n_bad, "every answer stands alone");
    let job: Job = serde_json::from_value(run["job"].clone()).unwrap();
    let Objective::Kto { desirable_weight, undesirable_weight, .. } = job.objective else {
        panic!("{:?}", job.objective)
    };
    let (good, bad) = (desirable_weight * n_good as f64, undesirable_weight * n_bad as f64);
    assert!((good - bad).abs() < 1e-6, "{good} and {bad} weigh alike");
    assert!(run["metrics"]["step"]["kl"].is_f64(), "{run}");
    daemon.stop().await;
}

#[tokio::test]
async fn groups_are_learned_from_with_the_log_probs_of_their_sampling() {
    let scratch = explored().await;
    scratch.train_by("grpo", 1);
    let daemon = Daemon::start(scratch).await;
    let (run, groups) = trained::<Group>(&daemon).await;
    assert!(!groups.is_empty());
    let answers: usize = groups.iter().map(|group| group.answers.len()).sum();
    assert_eq!(run["n_pairs"], answers);
    let step = &run["metrics"]["step"];
    assert!(0.0 < step["reward_std"].as_f64().unwrap(), "{step}");
    assert_eq!(run["metrics"]["tally"]["tempered"], 0, "{run}");
    daemon.stop().await;
}

/// What an owner shows is learned before anything was explored, all of it, and with some of the base's own
/// answers beside it.
#[tokio::test]
async fn examples_are_learned_first() {
    let scratch = Scratch::new();
    let example =
        |question| json!({ "prompt": question, "answer": "The answer is 7." }).to_string() + "\n";
    let lines: String = questions(24, 9).into_iter().map(example).collect();
    scratch.write("agents/nano/examples.jsonl", &lines);
    let agent = fs::read_to_string(scratch.root().join("agents/nano.yaml")).unwrap();
    scratch.write("agents/nano.yaml", &(agent + "examples: agents/nano/examples.jsonl\n"));

    let daemon = Daemon::start(scratch).await;
    let (run, examples) = trained::<Example>(&daemon).await;
    assert_eq!(run["metrics"]["lesson"], "examples", "{run}");
    let n_shown = run["n_pairs"].as_u64().unwrap();
    // Those that are near copies of held-out problems are left out.
    assert!((12..=24).contains(&n_shown), "{run}");
    let n_rehearsed = run["metrics"]["rehearsed"].as_u64().unwrap();
    assert!(0 < n_rehearsed, "{run}");
    assert_eq!(examples.len() as u64, n_shown + n_rehearsed);
    let job: Job = serde_json::from_value(run["job"].clone()).unwrap();
    assert_eq!(job.objective, Objective::Sft);
    assert!(job.validation_share <= 0.0, "each may be the only one of its kind");
    let step = &run["metrics"]["step"];
    assert!(step["loss"].as_f64().unwrap() > 0.0, "{step}");
    daemon.stop().await;
}

/// What supervised training had without a rejected answer is no pair of the run on top of it.
#[tokio::test]
async fn pairs_are_learned_from_on_top_of_supervised_training() {
    let scratch = explored().await;
    scratch.train_by("rs", EPOCHS);
    let daemon = Daemon::start(scratch).await;
    let (run, supervised) = trained::<Example>(&daemon).await;
    assert_eq!(run["state"], "promoted", "{run}");
    assert!(supervised.iter().all(|example| example.rejected.is_none()));

    let scratch = daemon.stop().await;
    scratch.train_by("dpo", 1);
    let daemon = Daemon::start(scratch).await;
    let (run, pairs) = trained::<Example>(&daemon).await;
    assert!(pairs.iter().all(|pair| pair.rejected.is_some()), "{} pairs", pairs.len());
    let job: Job = serde_json::from_value(run["job"].clone()).unwrap();
    assert!(job.start.is_some_and(|start| start.exists()), "on top of what is served");

    // And once more with both in one run.
    let scratch = daemon.stop().await;
    scratch.train_by("auto", 1);
    let daemon = Daemon::start(scratch).await;
    let (run, mixed) = trained::<Example>(&daemon).await;
    let n_pairs = mixed.iter().filter(|example| example.rejected.is_some()).count();
    assert!(0 < n_pairs && n_pairs < mixed.len(), "{n_pairs} of {}", mixed.len());
    assert_eq!(run["job"]["objective"]["name"], "mixed");
    daemon.stop().await;
}

/// Trains to a verdict, whichever it is: one epoch over groups may change no greedy answer. The run, and its
/// data set line by line.
async fn trained<T: serde::de::DeserializeOwned>(daemon: &Daemon) -> (Value, Vec<T>) {
    let ended = daemon.post("/v1/runs", &json!({})).await;
    assert!(ended["verdict"].is_object(), "{ended}");
    let run = daemon.get(&format!("/v1/runs/{}", ended["run"])).await;
    let text = fs::read_to_string(run["job"]["data"].as_str().unwrap()).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (run, lines)
}
