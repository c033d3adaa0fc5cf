//! The loop: explored prompts become pairs, an adapter, a verdict and a generation, while chats go on.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use files::gguf::model_sha256;
use files::write_atomic;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::chats::{chat, questions};
use crate::daemon::Daemon;
use crate::explored::explored;
use testkit::split::split;

#[tokio::test]
async fn the_loop_once() {
    let daemon = Daemon::start(explored().await).await;
    let question = &questions(1, 2)[0];
    let socket = daemon.scratch().socket();
    assert_eq!(chat(&socket, question).await, 0, "nothing is learned yet");

    // Pairs, training, gate, promotion.
    let ended = daemon.post("/v1/runs", &json!({})).await;
    assert_eq!((&ended["outcome"], &ended["generation"]), (&json!("promoted"), &json!(1)));
    assert_eq!(chat(&socket, question).await, 1);

    // What is recorded of it.
    let run = daemon.get(&format!("/v1/runs/{}", ended["run"])).await;
    assert_eq!((&run["state"], &run["generation"]), (&json!("promoted"), &json!(1)), "{run}");
    assert!(0 < run["n_pairs"].as_u64().unwrap(), "{run}");
    assert!(0 < run["metrics"]["step"]["step"].as_u64().unwrap(), "{run}");
    // Asking stops when the verdict is clear.
    let asked = run["metrics"]["gate"]["prompts"].as_u64().unwrap();
    assert!((20..=40).contains(&asked), "{run}");
    let parity = |key: &str| run["metrics"]["gate"]["parity"][key].as_f64().unwrap();
    assert!(parity("error") <= parity("allowed"), "trainer and server disagree: {run}");
    let adapters = daemon.get("/v1/adapters").await;
    assert_eq!(adapters["active"], 1);
    assert_eq!(generations(&adapters), [0, 1]);

    // Back, and forward again.
    for generation in [0, 1] {
        let wish = json!({ "generation": generation });
        let active = daemon.post("/v1/adapters/rollback", &wish).await;
        assert_eq!(active, json!({ "active": generation }));
        assert_eq!(chat(&socket, question).await, generation);
    }

    // A new daemon serves what the last one served.
    let daemon = Daemon::start(daemon.stop().await).await;
    assert_eq!(daemon.get("/health").await["generation"], 1);
    assert_eq!(chat(&socket, question).await, 1);
    daemon.stop().await;
}

fn generations(adapters: &Value) -> Vec<u64> {
    let rows = adapters["data"].as_array().unwrap();
    rows.iter().map(|row| row["generation"].as_u64().unwrap()).collect()
}

/// What is served, trained on, compared and swapped is the model of all its files.
#[tokio::test]
async fn a_model_in_several_files_goes_through_the_loop() {
    let scratch = explored().await;
    let whole = scratch.root().join("agents/nano/model.gguf");
    let first = split(&whole, 3);
    std::fs::remove_file(&whole).unwrap();
    let agent = scratch.root().join("agents/nano.yaml");
    let text = std::fs::read_to_string(&agent).unwrap();
    let name = format!("agents/nano/{}", first.file_name().unwrap().to_str().unwrap());
    let text = text.replace("agents/nano/model.gguf", &name);
    write_atomic(&agent, |file| file.write_all(text.as_bytes())).unwrap();

    let daemon = Daemon::start(scratch).await;
    let question = &questions(1, 2)[0];
    let socket = daemon.scratch().socket();
    assert_eq!(chat(&socket, question).await, 0);
    let ended = daemon.post("/v1/runs", &json!({})).await;
    assert_eq!(
        (&ended["outcome"], &ended["generation"]),
        (&json!("promoted"), &json!(1)),
        "{ended}"
    );
    assert_eq!(chat(&socket, question).await, 1);
    let adapters = daemon.get("/v1/adapters").await;
    let identity = model_sha256(&first).unwrap();
    assert_eq!(adapters["data"][1]["base_sha256"], json!(identity), "{adapters}");
    let scratch = daemon.stop().await;

    // Without one of its files it is not served, and which one is said.
    let third = first.with_file_name("model-00003-of-00003.gguf");
    std::fs::rename(&third, third.with_extension("away")).unwrap();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_reflectd"))
        .args(["serve", "--root"])
        .arg(scratch.root())
        .output()
        .await
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{words}");
    assert!(words.contains("model-00003-of-00003.gguf"), "{words}");
}

#[tokio::test]
async fn pairs_that_teach_the_wrong_answers_are_trained_on_and_refused_by_the_gate() {
    let scratch = explored().await;
    scratch.poison();
    // Three epochs may cost as little as one right answer of sixty.
    scratch.train_strictly(10);
    let daemon = Daemon::start(scratch).await;
    let ended = daemon.post("/v1/runs", &json!({})).await;
    assert_eq!(ended["outcome"], "rejected", "{ended}");
    let reason = ended["reason"].as_str().unwrap();
    assert!(reason.contains("gate.margin"), "{reason}");
    let run = daemon.get(&format!("/v1/runs/{}", ended["run"])).await;
    assert!(0 < run["n_pairs"].as_u64().unwrap() && run["metrics"]["step"].is_object(), "{run}");
    assert_eq!(chat(&daemon.scratch().socket(), &questions(1, 2)[0]).await, 0);
    daemon.stop().await;
}

#[tokio::test]
async fn a_chat_during_training_is_answered_while_the_trainer_stands_still() {
    let scratch = explored().await;
    scratch.train_for(30);
    let daemon = Daemon::start(scratch).await;
    let step = |event: &Value| event["step"]["step"].as_u64().unwrap_or(0);
    let (_, mut stream) = daemon.follow_until("/v1/runs", json!({}), |event| 0 < step(event)).await;
    let socket = daemon.scratch().socket();
    let chats = tokio::spawn(async move {
        for question in questions(6, 5) {
            assert_eq!(chat(&socket, &question).await, 0);
        }
    });
    let (mut paused_at, mut went_on, mut outcome) = (None, false, Value::Null);
    while let Some(data) = stream.event().await {
        let Ok(event) = serde_json::from_str::<Value>(&data) else { break };
        if event["paused"] == true {
            paused_at = Some(step(&event));
        }
        went_on |= event["paused"] == false && paused_at.is_some_and(|at| at < step(&event));
        if event["outcome"].is_string() {
            outcome = event["outcome"].clone();
        }
    }
    chats.await.unwrap();
    assert_eq!(outcome, "promoted");
    assert!(paused_at.is_some() && went_on, "stopped at {paused_at:?}, went on: {went_on}");
    daemon.stop().await;
}

/// Clients that chat during the swap.
const CLIENTS: usize = 4;
/// Trainer and gate wait while a chat runs, so all clients pause at once; otherwise they would never end.
const PAUSE: Duration = Duration::from_millis(150);

#[tokio::test]
async fn no_chat_fails_or_is_answered_by_two_generations_while_the_weights_are_swapped() {
    let daemon = Daemon::start(explored().await).await;
    let is_last = Arc::new(AtomicBool::new(false));
    let (socket, is_last_wave) = (daemon.scratch().socket(), is_last.clone());
    let clients = tokio::spawn(async move {
        let mut answered = vec![BTreeMap::<u64, usize>::new(); CLIENTS];
        for wave in 0.. {
            // Read before the chats begin: the last ones begin after the swap.
            let is_last = is_last_wave.load(Ordering::Relaxed);
            let asked = questions(CLIENTS, wave);
            let chats = join_all(asked.iter().map(|question| chat(&socket, question))).await;
            for (answered, generation) in answered.iter_mut().zip(chats) {
                *answered.entry(generation).or_default() += 1;
            }
            if is_last {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        answered
    });
    let ended = daemon.post("/v1/runs", &json!({})).await;
    assert_eq!(ended["outcome"], "promoted", "{ended}");
    is_last.store(true, Ordering::Relaxed);
    // A chat that fails or names two generations panics, and its client with it.
    for answered in clients.await.unwrap() {
        assert_eq!(answered.keys().copied().collect::<Vec<_>>(), [0, 1], "{answered:?}");
    }
    let status = daemon.get("/v1/status").await;
    assert_eq!(status["engine"]["active"], 1, "{status}");
    daemon.stop().await;
}
