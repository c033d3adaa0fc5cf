//! `reflectd init` as a newcomer runs it: on the embedded model, on a real chat model, on files that
//! do not serve, and where there is no model, no network or no terminal.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::newcomer::{Newcomer, TRY_AGAIN, below, with_sample};
use crate::scratch::Scratch;

fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("agents/nano/model.gguf")
}

fn put(path: &Path, bytes: &[u8]) {
    files::write_atomic(path, |file| file.write_all(bytes)).unwrap();
}

/// The embedded model with a way of splitting words that llama.cpp does not know.
fn with_odd_tokenizer() -> Vec<u8> {
    let mut bytes = std::fs::read(nano()).unwrap();
    let name = b"gpt-2";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at..at + name.len()].copy_from_slice(b"gpt-x");
    bytes
}

/// Asks for a short answer over the socket, as a client that knows nothing of agents does.
async fn chat(daemon: &Daemon) -> Value {
    let body = json!({
        "model": "default",
        "messages": [{ "role": "user", "content": "Hello! Who are you?" }],
        "max_tokens": 16,
    });
    daemon.post("/v1/chat/completions", &body).await
}

#[tokio::test]
async fn the_embedded_model_is_set_up_checked_and_served() {
    let newcomer = Newcomer::new();
    let scratch = Scratch::empty();
    let root = scratch.root().to_str().unwrap().to_owned();
    let nano = nano();
    let begin = [nano.to_str().unwrap(), "--name", "sums", "--root", &root];
    let said = newcomer.init(&begin).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let lines: Vec<&str> = said.out.lines().take(5).collect();
    for (line, beginning) in lines.iter().zip([
        "serves       yes: llama, ",
        "trains       yes: on ",
        "memory       ",
        "1,000 pairs  ",
        "missing      for learning: prompts with a verifier or a reference, or your ratings",
    ]) {
        assert!(line.starts_with(beginning), "{beginning}: {line}");
    }
    assert!(lines[2].contains(" to serve ") && lines[2].contains(" to train"), "{}", lines[2]);
    assert!(lines[3].contains(" for 1 epoch"), "measured with what is written: {}", lines[3]);

    let [check, serve, talk] = said.next();
    let checked = newcomer.types(check).await;
    assert_eq!(checked.code, Some(0), "{check}: {checked:?}");
    assert!(checked.out.contains("is good; agents: sums"), "{checked:?}");
    assert!(serve.ends_with(&format!(" serve --root {root}")), "{serve}");

    // Once more on the same folder: nothing changes.
    let before = below(scratch.root());
    let again = newcomer.init(&begin).await;
    assert_eq!(again.code, Some(1), "{again:?}");
    for name in ["agents/sums.yaml", "reflectd.yaml", "--root"] {
        assert!(again.err.contains(name), "{name}: {}", again.err);
    }
    assert_eq!(below(scratch.root()), before);

    let daemon = Daemon::start(scratch).await;
    let answer = chat(&daemon).await;
    assert!(answer["choices"][0]["message"]["content"].is_string(), "{answer}");
    let talked = newcomer.types(&format!("echo 'What is 2 + 3?' | {talk} --mode off")).await;
    assert_eq!(talked.code, Some(0), "{talk}: {talked:?}");
    assert!(!talked.out.trim().is_empty(), "{talked:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_real_chat_model_is_fetched_checked_and_served() {
    let (newcomer, scratch, said) = with_sample().await;
    let Some(said) = said else { return };
    let found: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(found["agent"], "smollm2-135m-instruct", "{found}");
    assert_eq!(found["model"]["n_parameters"], 134_515_008, "{found}");
    assert_eq!(found["context_tokens"], 8192);
    let training = &found["trainer"]["asked"];
    assert_eq!((&training["trainable"], &training["refusal"]), (&json!(true), &Value::Null));
    assert!(training["seconds_per_1000_pairs"].as_f64().unwrap() > 1.0, "{training}");
    assert_eq!(found["missing"].as_array().unwrap().len(), 2);
    let checked = newcomer.types(found["next"][0].as_str().unwrap()).await;
    assert_eq!(checked.code, Some(0), "{checked:?}");

    let daemon = Daemon::start(scratch).await;
    let answer = chat(&daemon).await;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.split_whitespace().count() > 2, "a sentence: {answer}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_model_in_a_cache_is_taken_without_a_question() {
    let newcomer = Newcomer::new();
    let home = newcomer.home();
    let published = home.join(".lmstudio/models/someone/Nano-GGUF");
    std::fs::create_dir_all(&published).unwrap();
    std::fs::copy(nano(), published.join("sound.gguf")).unwrap();
    // As large, and sound as far as our checks see: it is tried first, and llama.cpp refuses it.
    put(&published.join("odd.gguf"), &with_odd_tokenizer());

    let silent = newcomer.init(&["--root", "mine"]).await;
    assert_eq!(silent.code, Some(1), "{silent:?}");
    assert!(silent.out.contains("sound.gguf") && silent.err.contains("add --yes"), "{silent:?}");
    assert!(!home.join("mine").exists());

    let said = newcomer.init(&["--yes", "--root", "mine"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    for words in [
        "Taking someone/Nano-GGUF/odd.gguf: the largest",
        "cannot be served",
        "Taking someone/Nano-GGUF/sound.gguf: the next one",
    ] {
        assert!(said.err.contains(words), "{words}: {}", said.err);
    }
    let [check, ..] = said.next();
    let checked = newcomer.types(check).await;
    assert_eq!(checked.code, Some(0), "{check}: {checked:?}");
    let files = below(&home.join("mine"));
    let temporary = files.iter().filter(|path| path.to_string_lossy().ends_with(".tmp"));
    assert_eq!(temporary.count(), 0, "{files:?}");
}

#[tokio::test]
async fn what_does_not_serve_is_told_and_nothing_is_written() {
    let newcomer = Newcomer::new();
    let home = newcomer.home();
    let bytes = std::fs::read(nano()).unwrap();
    put(&home.join("cut"), &bytes[..bytes.len() - 1000]);
    put(&home.join("text"), b"A letter.");
    put(&home.join("odd"), &with_odd_tokenizer());
    for (file, code, words) in [
        ("cut", 65, "cut off"),
        ("text", 65, "GGUF"),
        ("odd", 65, "failed to load"),
        ("absent", 71, "absent"),
    ] {
        let said = newcomer.init(&[file, "--root", "mine"]).await;
        assert_eq!(said.code, Some(code), "{file}: {said:?}");
        assert!(said.err.contains(words), "{file}: {}", said.err);
        assert_eq!(said.out, "", "{file}");
        assert!(!home.join("mine").exists(), "{file}");
    }
    let said = newcomer.init(&["--name", "a b", "cut"]).await;
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("letters, digits"), "{}", said.err);
}

#[tokio::test]
async fn without_a_model_or_a_network_it_says_what_to_do() {
    let newcomer = Newcomer::new().with("PIP_NO_INDEX", "1");
    let said = newcomer.init(&["--yes", "--root", "mine"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    for words in [".ollama/models", ".lmstudio/models", "huggingface/hub", "init --sample"] {
        assert!(said.err.contains(words), "{words}: {}", said.err);
    }
    let said = newcomer.init(&["--sample", "--root", "mine"]).await;
    assert_eq!(said.code, Some(TRY_AGAIN), "{said:?}");
    assert!(said.err.contains("pip could not fetch"), "{}", said.err);
    assert!(said.err.contains("check the network"), "{}", said.err);

    let without_python = Newcomer::new().with("PATH", "/nowhere");
    let alone = without_python.init(&["--sample"]).await;
    assert_eq!(alone.code, Some(TRY_AGAIN), "{alone:?}");
    assert!(alone.err.contains("install python3"), "{}", alone.err);
    for home in [newcomer.home(), without_python.home()] {
        // pip keeps notes of its own elsewhere.
        let cache = below(&home.join(".cache/reflectd"));
        let files = cache.into_iter().filter(|path| path.is_file());
        assert_eq!(files.collect::<Vec<_>>(), Vec::<PathBuf>::new(), "nothing is left behind");
    }
}
