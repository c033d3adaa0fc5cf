//! The short form of `bench/real`: a real chat model practises on an owner's prompts, learns and meets the
//! gate, with an agent as its owner would write it. Whether it gets better in so small a run is not asserted;
//! `make bench-real` measures that. A program of its own, so that nothing else runs beside it.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]
#![expect(dead_code, reason = "the other end-to-end tests use more of what they share")]

mod daemon;
mod newcomer;
mod scratch;

use serde_json::{Value, json};
use tasks::messages;

use daemon::Daemon;
use newcomer::with_sample;

const PROMPTS: usize = 20;

#[tokio::test]
async fn a_real_chat_model_practises_learns_and_meets_the_gate() {
    let (_, scratch, said) = with_sample().await;
    let Some(said) = said else { return };
    let found: Value = serde_json::from_str(&said.out).unwrap();
    // By default a run of this size is about 20 steps, and a promoted one answers 40 general prompts.
    scratch.write(
        "reflectd.yaml",
        "default_agent: mine\nlearn: { optimizer: { epochs: 1 }, gate: { general_prompts: 4 } }\n",
    );
    let written = format!("agents/{}.yaml", found["agent"].as_str().unwrap());
    std::fs::remove_file(scratch.root().join(written)).unwrap();
    let owner = format!(
        "model: {}\nsystem: {}\nsampling: {{ max_tokens: 48 }}\njudge: none\naspects: []\n\
         verifier: {}\nexplore: {{ prompts: agents/mine/practice.jsonl }}\n\
         held_out: agents/mine/held-out.jsonl\n",
        found["model"]["path"],
        json!(messages::SYSTEM),
        json!({ "kind": "regex", "pattern": messages::PATTERN }),
    );
    scratch.write("agents/mine.yaml", &owner);
    let lines = |items: Vec<tasks::Item>| -> String {
        items.iter().map(|item| item.prompt_line(None).to_string() + "\n").collect()
    };
    scratch.write("agents/mine/practice.jsonl", &lines(messages::practice(PROMPTS, 1)));
    scratch.write("agents/mine/held-out.jsonl", &lines(messages::held_out(PROMPTS, 1)));

    let daemon = Daemon::start(scratch).await;
    let explored = daemon.post("/v1/explore", &json!({ "n": 3, "m": 0 })).await;
    assert_eq!((&explored["outcome"], &explored["prompts"]), (&json!("explored"), &json!(PROMPTS)));
    let (candidates, positives) = (&explored["candidates"], &explored["positives"]);
    let is_mixed = positives.as_u64().unwrap() < candidates.as_u64().unwrap();
    assert!(0 < positives.as_u64().unwrap() && is_mixed, "its answers differ: {explored}");

    let ended = daemon.post("/v1/runs", &json!({})).await;
    let verdict = &ended["verdict"];
    assert!(verdict.is_object(), "it meets the gate: {ended}");
    let run = daemon.get(&format!("/v1/runs/{}", ended["run"])).await;
    assert!(run["n_pairs"].as_u64().unwrap() > 0, "{run}");
    let loss = run["metrics"]["step"]["loss"].as_f64().unwrap();
    assert!(loss.is_finite() && loss > 0.0, "{run}");
    // So short a run may change little more than the server rounds; the gate has its own threshold.
    let scale = verdict["parity"]["scale"].as_f64().unwrap();
    assert!((0.5..2.0).contains(&scale), "served as trained: {verdict}");
    assert_eq!(verdict["scored_by_verifier"], verdict["prompts"], "{verdict}");
    let active = daemon.get("/v1/adapters").await["active"].clone();
    assert_eq!(active, u64::from(ended["outcome"] == "promoted"), "{ended}");
    let chat = json!({
        "model": "mine",
        "messages": [{ "role": "user", "content": "Where is my parcel?" }],
    });
    let answer = daemon.post("/v1/chat/completions", &chat).await;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.split_whitespace().count() > 2, "a sentence: {answer}");
    daemon.stop().await;
}
