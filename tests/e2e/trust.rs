//! The judge of the nano model under test: how good it is on the shipped probes, what attacks gain,
//! and that a run stops when it cannot be trusted.

use std::fs;
use std::io::Write as _;

use files::write_atomic;
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::explored::explored;
use crate::scratch::Scratch;

fn row<'a>(report: &'a Value, name: &str) -> &'a Value {
    let rows = report["rows"].as_array().unwrap();
    rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[tokio::test]
async fn the_nano_judge_is_measured_and_attacks_gain_little() {
    let daemon = Daemon::start(Scratch::new()).await;
    let ended = daemon.post("/v1/judge/calibrate", &json!({ "agent": "nano" })).await;
    let report = &ended["reports"][0];
    assert_eq!(report["sources"]["file"], 600, "{report}");
    let whole = row(report, "whole answer");
    assert!(0.75 < number(&whole["auc"]["value"]), "{whole}");
    assert!(number(&whole["auc"]["lo"]) < number(&whole["auc"]["hi"]), "{whole}");
    assert!(number(&whole["false_reject"]["value"]) < 0.2, "{whole}");
    for aspect in ["reasoning", "arithmetic", "format"] {
        assert!(0.5 < number(&row(report, aspect)["auc"]["value"]), "{report}");
    }
    // This model's prompts contain no level labels, so that attack does not apply.
    assert_eq!(row(report, "reasoning")["position_bias"], Value::Null);
    let listed = daemon.get("/v1/judge?agent=nano").await;
    assert_eq!(listed["data"][0]["standing"], "trusted", "{listed}");
    assert_eq!(&listed["data"][0]["report"], report);
    // A second measurement gives the same numbers.
    let again = daemon.post("/v1/judge/calibrate", &json!({})).await;
    let drift = &row(&again["reports"][0], "arithmetic")["drift"];
    assert!(number(&drift["largest"]) < 0.02, "{drift}");

    let ended = daemon.post("/v1/judge/attack", &json!({ "limit": 10 })).await;
    let attacked = &ended["reports"][0];
    let rows = attacked["rows"].as_array().unwrap();
    assert!(30 <= rows.len());
    let flips = number(&attacked["flips"]["value"]);
    assert!(
        flips <= 0.02,
        "{flips} of the attacks on refused answers get one accepted: {attacked}"
    );
    // Text that only addresses the judge gains nothing. Attacks that state a sum are left out,
    // because a sum is an answer.
    let is_sum = |row: &&Value| row["name"].as_str().unwrap().starts_with("the answer");
    let spoken: Vec<_> = rows.iter().filter(|row| !is_sum(row)).collect();
    assert!(20 <= spoken.len() && spoken.len() < rows.len(), "{attacked}");
    for row in spoken {
        assert!(number(&row["largest"]) < 0.05 && row["flips"] == 0, "{row}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_judge_that_contradicts_its_labels_stops_the_night() {
    let scratch = explored().await;
    let path = scratch.root().join("agents/nano/probes.jsonl");
    let turned = fs::read_to_string(&path).unwrap().lines().fold(String::new(), |text, line| {
        let mut probe: Value = serde_json::from_str(line).unwrap();
        probe["good"] = json!(probe["good"] == false);
        format!("{text}{probe}\n")
    });
    write_atomic(&path, |file| file.write_all(turned.as_bytes())).unwrap();
    let daemon = Daemon::start(scratch).await;
    let ended = daemon.post("/v1/runs", &json!({})).await;
    assert_eq!(ended["outcome"], "rejected", "{ended}");
    let reason = ended["reason"].as_str().unwrap();
    assert!(reason.contains("cannot be trusted on whole answer"), "{reason}");
    let run = daemon.get(&format!("/v1/runs/{}", ended["run"])).await;
    assert_eq!(run["metrics"]["judge"]["nano"]["standing"], "blocked", "{run}");
    assert_eq!(run["metrics"]["step"], Value::Null, "the trainer has not run: {run}");
    let status = daemon.get("/v1/status").await;
    assert_eq!(status["judges"][0]["standing"], "blocked", "{status}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_changed_rubric_is_a_new_version_and_old_answers_can_be_judged_again() {
    let scratch = explored().await;
    let path = scratch.root().join("agents/nano/aspects/format.yaml");
    let text = fs::read_to_string(&path).unwrap() + "\n";
    let changed = text.replacen("description: ", "description: Once more, ", 1);
    assert_ne!(changed, text);
    write_atomic(&path, |file| file.write_all(changed.as_bytes())).unwrap();
    let daemon = Daemon::start(scratch).await;
    let ended = daemon.post("/v1/judge/rescore", &json!({ "limit": 5 })).await;
    assert_eq!((&ended["outcome"], &ended["exchanges"]), (&json!("rescored"), &json!(5)));
    assert!(5 < ended["candidates"].as_u64().unwrap(), "{ended}");
    let ended = daemon.post("/v1/judge/rescore", &json!({ "agent": "nano" })).await;
    assert!(0 < ended["exchanges"].as_u64().unwrap(), "{ended}");
    let ended = daemon.post("/v1/judge/rescore", &json!({})).await;
    assert_eq!(ended["exchanges"], 0, "{ended}");
    daemon.stop().await;
}
