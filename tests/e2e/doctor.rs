//! `reflectd doctor` as a person or a script runs it.

use std::path::Path;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::scratch::Scratch;

async fn doctor(root: &Path, more: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reflectd"));
    command.arg("doctor").args(more).arg("--root").arg(root);
    for name in ["REFLECTD_ROOT", "REFLECTD_STATE", "REFLECTD_SOCKET"] {
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
    reflectd::paths::write_atomic(path, |file| std::io::Write::write_all(file, bytes)).unwrap();
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
    assert_eq!(found["model"]["chat_template"], "compiles");
    let memory = &found["model"]["memory"]["host"];
    for part in ["weights", "kv_cache", "compute", "logits", "available"] {
        assert!(memory[part].as_u64().unwrap() > 0, "{part}: {memory}");
    }
    assert_eq!(found["trainer"]["fault"], Value::Null, "{found}");
    assert!(!scratch.state().exists(), "a doctor leaves no trace");
    let (code, text) = doctor(scratch.root(), &[]).await;
    assert_eq!(code, Some(0));
    for word in ["kernels", "KV cache", "q8_0", "main memory", "Nothing stands in the way."] {
        assert!(text.contains(word), "{word}: {text}");
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
