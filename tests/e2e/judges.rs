//! Other judges with real models: a second GGUF beside the served one, a reward model, and another
//! daemon as an endpoint. What they say is not asserted, because the models are random or learned
//! again now and then; who says it and that it agrees is.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use engine::llama::{OtherModels, RewardModel};
use engine::{EngineConfig, FlashAttention, KvCache, TextPart, Token};
use files::gguf::{Gguf, Value as Metadata, Writer};
use files::write_atomic;
use inference::backend::RewardBackend as _;
use nano::corpus::CHAT_TEMPLATE;
use serde_json::{Value, json};

use crate::chats::questions;
use crate::daemon::Daemon;
use crate::doctor::report;
use crate::explored::exploration;
use crate::scratch::Scratch;
use testkit::random_model;

const WIDTH: usize = 256;

/// A small qwen3 model of random numbers with the nano model's vocabulary and chat template, and
/// with a classification head where rows of one are given.
fn write_model(folder: &Path, name: &str, head: &[Vec<f32>]) -> std::path::PathBuf {
    let plain = folder.join(format!("plain-{name}"));
    random_model::write("qwen3", 5, &plain);
    let model = Gguf::open(&plain).unwrap();
    let mut writer = Writer::default();
    for (key, value) in model.entries() {
        if key != "tokenizer.chat_template" {
            writer.metadata(key, value.clone());
        }
    }
    let template = Metadata::String(CHAT_TEMPLATE.to_owned());
    writer.metadata("tokenizer.chat_template", template);
    for tensor in model.tensors() {
        writer.tensor(&tensor.name, &tensor.shape, model.read_f32(tensor).unwrap());
    }
    if !head.is_empty() {
        let label = |index| Metadata::String(format!("class {index}"));
        if head.len() > 1 {
            let labels = Metadata::Array((0..head.len()).map(label).collect());
            writer.metadata("qwen3.classifier.output_labels", labels);
        }
        let shape = [WIDTH as u64, head.len() as u64];
        writer.tensor("cls.output.weight", &shape, head.concat());
    }
    let path = folder.join(name);
    writer.write(&path).unwrap();
    path
}

fn row(seed: u64) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..WIDTH).map(|_| 0.2 * (rng.f32() - 0.5)).collect()
}

/// Appends keys to the scratch folder's agent.
fn configure(scratch: &Scratch, keys: &str) {
    let path = scratch.root().join("agents/nano.yaml");
    let mut agent = fs::read_to_string(&path).unwrap();
    agent.push_str(keys);
    write_atomic(&path, |file| std::io::Write::write_all(file, agent.as_bytes())).unwrap();
}

/// A greedy inline chat: its reply.
async fn reflected(daemon: &Daemon, question: &str) -> Value {
    let body = json!({
        "model": "nano",
        "messages": [{ "role": "user", "content": question }],
        "temperature": 0,
        "reflectd": { "mode": "inline" },
    });
    daemon.post("/v1/chat/completions", &body).await
}

/// The stored candidates behind a reply.
async fn candidates(daemon: &Daemon, reply: &Value) -> Vec<Value> {
    let id = reply["reflectd"]["exchange"].as_i64().unwrap_or_else(|| panic!("{reply}"));
    let exchange = daemon.get(&format!("/v1/reflections/{id}")).await;
    exchange["candidates"].as_array().unwrap().clone()
}

fn assessments(candidate: &Value) -> &Vec<Value> {
    candidate["assessments"].as_array().unwrap()
}

#[tokio::test]
async fn a_second_model_and_a_reward_model_judge_beside_the_served_one() {
    let scratch = Scratch::new();
    write_model(scratch.root(), "judge.gguf", &[]);
    write_model(scratch.root(), "rm.gguf", &[row(1)]);
    configure(&scratch, "judge: { model: judge.gguf }\nscalar: { reward_model: rm.gguf }\n");
    configure(&scratch, "aspect_choice: { judge: 2 }\n");
    let (code, found) = report(scratch.root(), &[]).await;
    assert_eq!(code, Some(0), "{found}");
    let whats = found["judges"].as_array().unwrap().iter().map(|it| it["what"].clone());
    assert_eq!(whats.collect::<Vec<_>>(), ["judge model", "reward model"]);
    let daemon = Daemon::start(scratch).await;
    let explored = daemon.post("/v1/explore", &exploration(4, 1)).await;
    assert_eq!(explored["outcome"], "explored", "{explored}");
    let reply = reflected(&daemon, &questions(1, 7)[0]).await;
    let judge = files::sha256(&daemon.scratch().root().join("judge.gguf")).unwrap();
    let reward = files::sha256(&daemon.scratch().root().join("rm.gguf")).unwrap();
    let [judge, reward] = [judge, reward].map(|sha256| sha256.chars().take(12).collect::<String>());
    let names = [format!("model {judge}"), format!("reward model {reward}")];
    let candidates = candidates(&daemon, &reply).await;
    assert!(!candidates.is_empty(), "{reply}");
    for candidate in &candidates {
        let said = assessments(candidate);
        let judges: Vec<&str> = said.iter().map(|it| it["judge"].as_str().unwrap()).collect();
        assert_eq!(judges, [&*names[0], &*names[0], &*names[1]], "two aspects and the reward");
        let levels = said[2]["levels"].as_array().unwrap();
        let sum: f64 = levels.iter().map(|it| it.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{levels:?}");
    }
    let status = daemon.get("/v1/status").await;
    let entry = ["agent", "judge", "scalar"].map(|key| &status["judges"][0][key]);
    assert_eq!(entry, ["nano", &names[0], &names[1]], "{status}");
    assert!(0 < status["judge_engine"]["prompt_tokens"].as_u64().unwrap(), "{status}");
    assert_eq!(status["judges"][0]["deterministic"], true, "{status}");
    assert!(0 < status["judge_context"]["prompt_tokens"].as_u64().unwrap(), "{status}");
    daemon.stop().await;
}

#[tokio::test]
async fn the_served_model_judges_in_a_context_of_its_own_unless_told_otherwise() {
    for own in [true, false] {
        let scratch = Scratch::new();
        let path = scratch.root().join("reflectd.yaml");
        let settings = fs::read_to_string(path).unwrap();
        let engine = format!("engine: {{ deterministic_judge: {own}, ");
        scratch.write("reflectd.yaml", &settings.replace("engine: { ", &engine));
        let daemon = Daemon::start(scratch).await;
        let reply = reflected(&daemon, &questions(1, 5)[0]).await;
        assert!(!candidates(&daemon, &reply).await.is_empty(), "{reply}");
        let status = daemon.get("/v1/status").await;
        let context = &status["judge_context"];
        assert_eq!(status["judges"][0]["deterministic"], own, "{status}");
        assert_eq!(context["prompt_tokens"].as_u64().is_some_and(|n| 0 < n), own, "{status}");
        daemon.stop().await;
    }
}

#[tokio::test]
async fn another_daemon_judges_as_the_model_itself_would_and_its_end_breaks_no_chat() {
    let endpoint = Scratch::new();
    // What it is asked to judge is not material for it to reflect on.
    let path = endpoint.root().join("agents/nano.yaml");
    let agent = fs::read_to_string(&path).unwrap().replace("mode: background", "mode: off");
    write_atomic(&path, |file| std::io::Write::write_all(file, agent.as_bytes())).unwrap();
    let endpoint = Daemon::start(endpoint).await;
    let own = endpoint.scratch().socket();
    let scratch = Scratch::new();
    let url = format!("unix:{}", own.display());
    configure(
        &scratch,
        &format!("judge: {{ endpoint: '{url}', model: nano, retries: 1, timeout_s: 60 }}\n"),
    );
    let daemon = Daemon::start(scratch).await;

    let (code, found) = report(daemon.scratch().root(), &[]).await;
    assert_eq!((code, &found["judges"][0]["ready"]), (Some(0), &json!(true)), "{found}");

    let question = &questions(1, 3)[0];
    let there = reflected(&daemon, question).await;
    let here = reflected(&endpoint, question).await;
    let (there, here) = (candidates(&daemon, &there).await, candidates(&endpoint, &here).await);
    assert_eq!(there[0]["text"], here[0]["text"], "the same weights and no luck");
    assert_eq!((assessments(&there[0]).len(), assessments(&here[0]).len()), (3, 3));
    for (a, b) in assessments(&there[0]).iter().zip(assessments(&here[0])) {
        assert_eq!(a["judge"], format!("nano at {url} (generation-0)"));
        assert_eq!(a["aspect"], b["aspect"]);
        for level in 0..3 {
            let [a, b] = [a, b].map(|it| it["levels"][level].as_f64().unwrap());
            assert!((a - b).abs() < 0.05, "{level}: {a} by the endpoint, {b} by the model itself");
        }
    }
    let stored = endpoint.get("/v1/status").await["counts"]["exchanges"].as_u64().unwrap();
    assert_eq!(stored, 1, "judging leaves no trace there but the chat above");

    endpoint.stop().await;
    let reply = reflected(&daemon, question).await;
    assert_eq!(reply["reflectd"]["stopped"], "no judge", "{reply}");
    assert!(!reply["choices"][0]["message"]["content"].as_str().unwrap().is_empty());
    let ended = daemon.post("/v1/explore", &exploration(2, 9)).await;
    assert_eq!(ended["outcome"], "failed", "{ended}");
    let reason = ended["reason"].as_str().unwrap();
    assert!(reason.contains(&format!("the judge at {url} does not answer")), "{reason}");
    let (code, found) = report(daemon.scratch().root(), &[]).await;
    assert_ne!(code, Some(0));
    let problem = found["problems"][0]["message"].as_str().unwrap();
    assert!(problem.contains(&format!("the judge at {url} does not answer")), "{found}");
    let status = daemon.get("/v1/status").await;
    assert!(0 < status["endpoint_calls"]["failed"].as_u64().unwrap(), "{status}");
    daemon.stop().await;
}

/// Tokens of a step of a reward model.
const BATCH_TOKENS: u32 = 32;

fn config(model: &Path) -> EngineConfig {
    EngineConfig {
        context_tokens: 1024,
        max_sequences: 4,
        // Less than the sequences below: they are read in several steps.
        batch_tokens: BATCH_TOKENS,
        flash_attention: FlashAttention::Off,
        kv_cache: KvCache::F32,
        queue: 1,
        ..EngineConfig::small(model)
    }
}

/// The tokens of the next step.
fn step(tokens: &[Token], position: usize) -> &[Token] {
    let rest = &tokens[position..];
    &rest[..rest.len().min(usize::try_from(BATCH_TOKENS).unwrap())]
}

fn reward(model: &mut RewardModel, tokens: &[Token]) -> f64 {
    let mut n_read = 0;
    while n_read < tokens.len() {
        n_read += model.read(step(tokens, n_read), n_read, None).unwrap();
    }
    model.reward().unwrap()
}

#[test]
fn two_classes_give_the_difference_of_what_each_gives_as_a_reward_alone() {
    let folder = tempfile::tempdir().unwrap();
    let load = |name: &str, head: &[Vec<f32>]| {
        RewardModel::load(&config(&write_model(folder.path(), name, head)), OtherModels::default())
            .unwrap()
    };
    let mut first = load("first.gguf", &[row(1)]);
    let mut second = load("second.gguf", &[row(2)]);
    let mut both = load("both.gguf", &[row(1), row(2)]);
    let mut seen = Vec::new();
    for text in ["A question. An answer.", &"Another question, longer. ".repeat(9)] {
        let part = TextPart { text: text.to_owned(), control: false };
        let tokens: Vec<Token> = both.vocabulary().tokenize(&[part]);
        let expected = reward(&mut first, &tokens) - reward(&mut second, &tokens);
        let found = reward(&mut both, &tokens);
        assert!((found - expected).abs() < 1e-3, "{found} instead of {expected}");
        assert!((reward(&mut both, &tokens) - found).abs() < 1e-6, "nothing is left behind");
        // A chat breaks off each step before it is done again.
        let mut n_read = 0;
        while n_read < tokens.len() {
            let step = step(&tokens, n_read);
            let broken_off = both.read(step, n_read, Some(&AtomicBool::new(true))).unwrap();
            assert!(broken_off < step.len(), "{broken_off} of {} are read", step.len());
            n_read += both.read(step, n_read, None).unwrap();
        }
        assert!((both.reward().unwrap() - found).abs() < 1e-6, "what was read twice counts once");
        seen.push(found);
    }
    assert!((seen[0] - seen[1]).abs() > 1e-3, "the text decides: {seen:?}");
}

#[test]
fn a_file_that_is_no_reward_model_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let reason = |name: &str, head: &[Vec<f32>]| {
        let path = write_model(folder.path(), name, head);
        RewardModel::load(&config(&path), OtherModels::default()).unwrap_err().to_string()
    };
    assert!(reason("none.gguf", &[]).contains("has no classification head (cls.output.weight)"));
    let three = [row(1), row(2), row(3)];
    assert!(reason("three.gguf", &three).contains("its head has 3 classes"));
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("agents/nano/model.gguf");
    let error = RewardModel::load(&config(&own), OtherModels::default()).unwrap_err().to_string();
    assert!(error.contains("no classification head"), "{error}");
}

#[tokio::test]
async fn a_judge_that_does_not_load_ends_the_start_with_its_file_and_the_reason() {
    let scratch = Scratch::new();
    let path = scratch.root().join("broken.gguf");
    write_atomic(&path, |file| std::io::Write::write_all(file, b"GGUF, but not really")).unwrap();
    configure(&scratch, "judge: { model: broken.gguf }\n");
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_reflectd"));
    command.arg("serve").arg("--root").arg(scratch.root()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_mins(1), command.output()).await;
    let output = output.expect("it ends").unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("broken.gguf"), "{said}");
}
