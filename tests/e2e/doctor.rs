//! `reflectd doctor` as a person or a script runs it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use files::gguf::Value as GgufValue;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::scratch::Scratch;
use testkit::random_model::{renamed, with_metadata, write};
use testkit::skipped;

async fn doctor(root: &Path, more: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reflectd"));
    command.arg("doctor").args(more).arg("--root").arg(root);
    for name in testkit::SETTINGS {
        command.env_remove(name);
    }
    let output = command.output().await.unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

pub(crate) async fn report(root: &Path, more: &[&str]) -> (Option<i32>, Value) {
    let (code, text) = doctor(root, &[more, &["--json"]].concat()).await;
    (code, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

fn put(path: &Path, bytes: &[u8]) {
    files::write_atomic(path, |file| std::io::Write::write_all(file, bytes)).unwrap();
}

#[tokio::test]
async fn what_would_serve_is_found_ready() {
    let scratch = Scratch::new();
    let (code, found) = report(scratch.root(), &[]).await;
    assert_eq!((code, &found["ready"], &found["problems"]), (Some(0), &json!(true), &json!([])));
    assert!(found["machine"]["version"].as_str().unwrap().starts_with("llama.cpp "), "{found}");
    assert_ne!(found["machine"]["kernels"], "unknown", "a kernel module is in use: {found}");
    assert_eq!(found["engine"]["threads"], 1);
    assert_eq!(found["engine"]["context_tokens"], 8192);
    assert_eq!(found["model"]["architecture"], "llama");
    assert_eq!(found["model"]["chat_template"], "renders");
    let memory = &found["model"]["memory"]["host"];
    assert_eq!(found["engine"]["judgements"], "in a context of their own");
    for part in ["weights", "kv_cache", "compute", "logits", "judge", "available"] {
        assert!(memory[part].as_u64().unwrap() > 0, "{part}: {memory}");
    }
    assert_eq!(found["trainer"]["fault"], Value::Null, "{found}");
    assert!(!scratch.state().exists(), "a doctor leaves no trace");
}

#[tokio::test]
async fn a_program_for_another_processor_says_so_and_nothing_else() {
    if cfg!(any(feature = "portable", not(target_arch = "x86_64"))) {
        return skipped("this build compares no processors");
    }
    // Of 2008, without AVX.
    let reflectd = |arguments: &[&str]| {
        let mut command = Command::new("qemu-x86_64");
        command.args(["-cpu", "Nehalem", env!("CARGO_BIN_EXE_reflectd")]).args(arguments);
        command
    };
    let scratch = Scratch::new();
    let output = match reflectd(&["doctor", "--json", "--root"]).arg(scratch.root()).output().await
    {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return skipped("qemu-x86_64 is missing; install qemu-user");
        }
        output => output.unwrap(),
    };
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let message = found["problems"][0]["message"].as_str().unwrap();
    assert_eq!(output.status.code(), Some(78), "{found}");
    assert!(message.starts_with("this program is built for another processor ("), "{message}");
    assert!(message.contains("run `make build` on this machine"), "{message}");
    // No model is at fault.
    let (empty, model) =
        (tempfile::tempdir().unwrap(), scratch.root().join("agents/nano/model.gguf"));
    let mut init = reflectd(&["init", "--yes", "--root"]);
    let output = init.arg(empty.path()).arg(model).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(
        said.contains("built for another processor") && !said.contains("another one"),
        "{said}"
    );
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0, "nothing is written");
}

#[tokio::test]
async fn training_is_planned_and_timed_by_the_trainer() {
    let scratch = Scratch::new();
    scratch.train_for(1);
    let (code, found) = report(scratch.root(), &["--context", "600", "--pair", "40,20"]).await;
    let training = &found["training"];
    assert_eq!((code, &training["trainable"]), (Some(0), &json!(true)), "{found}");
    assert_eq!((&training["device"], &training["threads"]), (&json!("cpu"), &json!(1)));
    let memory = &training["memory"];
    assert_eq!(memory["longest"], json!({ "prompt": 400, "answer": 200 }));
    // The nano model fits into half of any memory, in whatever this processor is fast with.
    assert_eq!(memory["taken"], memory["compute"], "{memory}");
    let ways = memory["ways"].as_array().unwrap();
    let bytes = |base: &str, part: &str| {
        let way = ways.iter().find(|way| way["base"] == base).unwrap();
        way[part].as_u64().unwrap()
    };
    let held = ["f32", "bf16", "quantized"].map(|base| bytes(base, "base_bytes"));
    assert!(held[0] > held[1] && held[1] > held[2], "{memory}");
    assert_eq!(held[0], 4 * found["model"]["n_parameters"].as_u64().unwrap());
    assert!(0 < bytes("f32", "pass_bytes") && 0 < bytes("f32", "adapter_bytes"), "{memory}");
    let speed = &training["speed"];
    assert_eq!(speed["pair"], json!({ "prompt": 40, "answer": 20 }));
    assert_eq!(speed["n_blocks"], 6);
    let number = |of: &Value| of.as_f64().unwrap();
    let [reference, epoch] = ["reference_s", "epoch_s"].map(|part| number(&speed[part]));
    assert!(0.0 < reference && reference < epoch, "forward alone is shorter: {speed}");
    let whole = number(&training["seconds_per_1000_pairs"]);
    assert!((whole - reference - epoch).abs() < 1e-6 * whole, "one epoch: {training}");

    let (code, text) = doctor(scratch.root(), &[]).await;
    assert_eq!(code, Some(0));
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in [
        "kernels",
        "KV cache",
        "q8_0",
        "main memory",
        "trainable yes",
        "(taken)",
        "for pairs of 256 + 2 x 128",
        "Nothing stands in the way.",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    // The limit decides how the base is held.
    put(&scratch.root().join("reflectd.yaml"), b"trainer: { memory_limit_bytes: 268435456 }\n");
    let (code, found) = report(scratch.root(), &["--pair", "8,4"]).await;
    let memory = &found["training"]["memory"];
    assert_eq!((code, &memory["available_bytes"]), (Some(0), &json!(268_435_456)), "{found}");
    assert_eq!(memory["ways"][0]["fits"], false, "libtorch alone needs more: {memory}");
}

/// Whatever the trainer does not compute is named, whether the server takes the file or not.
#[tokio::test]
async fn what_is_not_trained_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |text: &str| GgufValue::String(text.into());
    let number = GgufValue::Unsigned;
    let each = || GgufValue::Array(vec![number(4); 3]);
    let mut cases: Vec<(PathBuf, &str)> = Vec::new();
    for (architecture, key, value, expected) in [
        ("llama", "llama.expert_count", number(2), "a mixture of experts"),
        ("llama", "llama.rope.scaling.type", text("yarn"), "rotary scaling \"yarn\""),
        ("llama", "llama.attention.head_count", each(), "head_count differs by layer"),
        ("llama", "llama.nextn_predict_layers", number(1), "predicts several tokens"),
        ("llama", "llama.attention.causal", GgufValue::Bool(false), "attention to later tokens"),
        ("qwen2", "qwen2.rope.dimension_sections", each(), "a rotary embedding in sections"),
        ("gemma3", "gemma3.attention.key_length_swa", number(64), "other heads in layers"),
        ("qwen3", "general.architecture", text("mamba"), "architecture \"mamba\""),
    ] {
        let (whole, odd) = (path(architecture), path(&format!("{}.gguf", cases.len())));
        write(architecture, 1, &whole);
        with_metadata(&whole, &odd, key, &value);
        cases.push((odd, expected));
    }
    let unknown = path("unknown.gguf");
    renamed(&path("llama"), &unknown, "blk.1.attn_q.bias", "blk.1.attn_sinks.bias");
    cases.push((unknown, "tensor blk.1.attn_sinks.bias is not supported"));
    let root = folder.path();
    let reports = stream::iter(cases).map(|(path, expected)| async move {
        let (code, found) = report(root, &[path.to_str().unwrap()]).await;
        (code, found, expected)
    });
    for (code, found, expected) in reports.buffered(2).collect::<Vec<_>>().await {
        let training = &found["training"];
        assert_eq!(training["trainable"], false, "{expected}: {found}");
        let refusal = training["refusal"].as_str().unwrap();
        assert!(refusal.contains(expected), "{expected}: {refusal}");
        assert_eq!((&training["memory"], &training["speed"]), (&Value::Null, &Value::Null));
        let is_served = found["model"]["servable"] == true;
        assert_eq!(code, Some(if is_served { 0 } else { 65 }), "{found}");
    }
}

#[tokio::test]
async fn what_stands_in_the_way_is_named_with_its_exit_code() {
    let scratch = Scratch::new();
    let model = scratch.root().join("agents/nano/model.gguf");
    let sound = std::fs::read(&model).unwrap();

    put(&model, &sound[..sound.len() - 1000]);
    let (code, found) = report(scratch.root(), &[]).await;
    assert_eq!((code, &found["ready"], &found["model"]), (Some(78), &json!(false), &Value::Null));
    let problem = &found["problems"][0];
    assert!(problem["file"].as_str().unwrap().ends_with("model.gguf"), "{problem}");
    assert!(problem["message"].as_str().unwrap().contains("cut off"), "{problem}");

    let (code, text) = doctor(scratch.root(), &[model.to_str().unwrap()]).await;
    assert_eq!(code, Some(65), "{text}");
    assert!(text.contains("cut off"), "{text}");
    put(&model, &sound);
    let (code, found) = report(scratch.root(), &[model.to_str().unwrap()]).await;
    assert_eq!((code, &found["model"]["servable"]), (Some(0), &json!(true)));
    assert_eq!(found["trainer"], Value::Null, "only the file is asked about");

    put(
        &scratch.root().join("reflectd.yaml"),
        b"engine: { kv_cache: q8_0, flash_attention: off }\n",
    );
    let (code, found) = report(scratch.root(), &[]).await;
    assert_eq!((code, &found["problems"][0]["key"]), (Some(78), &json!("engine.flash_attention")));
}
