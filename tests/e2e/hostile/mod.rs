//! Hostile input: damaged model and adapter files through the path that the daemon loads them by,
//! odd requests at a running daemon, and bad jobs for the trainer. Nothing may end the process that serves, and everything
//! has a clear answer. A failure names the seed, which makes the same input again.

mod requests;
use testkit::{mutation, tiny};
mod trainer;

use std::collections::BTreeMap;
use std::path::Path;

use engine::probe::Prober;
use engine::{
    self, EngineConfig, EngineError, Generation, LogprobRequest, Priority, Token, Weights,
};
use futures_util::{StreamExt as _, stream};

use crate::scratch::Scratch;

const MODELS: u64 = 500;
const ADAPTERS: u64 = 250;

fn prober(folder: &Path) -> Prober {
    Prober::new(env!("CARGO_BIN_EXE_reflectd").into(), folder.join("known"))
}

fn config(model: &Path) -> EngineConfig {
    EngineConfig {
        context_tokens: 256,
        max_sequences: 2,
        batch_tokens: 32,
        queue: 4,
        ..EngineConfig::small(model)
    }
}

/// One word for what became of a file. The error of a child that was killed has a text of its own.
fn outcome(result: &Result<(), EngineError>) -> &'static str {
    match result {
        Ok(()) => "loaded",
        Err(EngineError::Load { reason, .. }) if reason.contains("ends its process") => "crashed",
        Err(EngineError::Load { reason, .. }) if reason.contains("get done with it") => "hung",
        Err(EngineError::Load { .. }) => "refused",
        Err(_) => "failed otherwise",
    }
}

/// Prints how many of each and fails with the seeds of what must not be.
#[expect(clippy::print_stderr, reason = "tests report there")]
fn report(what: &str, outcomes: &[(u64, Result<(), EngineError>)]) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut bad = Vec::new();
    for (seed, result) in outcomes {
        let word = outcome(result);
        *counts.entry(word).or_default() += 1;
        if !["loaded", "refused"].contains(&word) {
            bad.push(format!("seed {seed}: {}", result.as_ref().unwrap_err()));
        }
    }
    eprintln!("{} {what}: {counts:?}", outcomes.len());
    assert!(bad.is_empty(), "{what} that our checks let through:\n{}", bad.join("\n"));
    // Mutations that all load, or all fail, would test nothing.
    for word in ["loaded", "refused"] {
        assert!(counts.get(word).is_some_and(|&n| n >= outcomes.len() / 20), "{what}: {counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_models_are_refused_or_served_and_crash_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (folder, parts) = (folder.path(), tiny::model());
    let path = folder.join("sound.gguf");
    parts.write(&path);
    prober(folder).model(&path).await.unwrap();
    let outcomes = stream::iter(0..MODELS).map(|seed| {
        let parts = &parts;
        async move {
            let path = folder.join(format!("{seed}.gguf"));
            mutation::write(parts, seed, &path);
            let result = prober(folder).model(&path).await.map(drop);
            std::fs::remove_file(path).unwrap();
            (seed, result)
        }
    });
    report("models", &outcomes.buffered(2).collect::<Vec<_>>().await);
}

/// In this process, as in the daemon: what the checks and the child let through is loaded here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_adapters_are_refused_or_served_and_serving_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    tiny::model().write(&model);
    let (engine, _thread) = engine::spawn(&config(&model)).await.unwrap();
    let engine = engine.with_prober(prober(folder.path()));
    let logprobs = |weights| {
        let sequences = vec![((0..20).map(Token).collect(), 1)];
        engine.logprobs(LogprobRequest { sequences, weights, priority: Priority::Gate })
    };
    let before = logprobs(Weights::Active).await.unwrap();
    let parts = tiny::adapter();
    let mut outcomes = Vec::new();
    for seed in 0..ADAPTERS {
        let path = folder.path().join("adapter.gguf");
        mutation::write(&parts, seed, &path);
        let generation = Generation(1);
        let result = engine.load_adapter(generation, path).await;
        if result.is_ok() {
            logprobs(Weights::Generation(generation)).await.unwrap();
            engine.retire(generation).await.unwrap();
        }
        outcomes.push((seed, result));
    }
    report("adapters", &outcomes);
    assert_eq!(logprobs(Weights::Active).await.unwrap(), before, "the base has changed");
}

#[tokio::test]
async fn a_daemon_with_a_damaged_model_says_what_is_wrong_and_ends() {
    let scratch = Scratch::new();
    let model = scratch.root().join("agents/nano/model.gguf");
    let whole = std::fs::read(&model).unwrap();
    let cut = &whole[..whole.len() - 1000];
    files::write_atomic(&model, |file| std::io::Write::write_all(file, cut)).unwrap();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_reflectd"))
        .arg("serve")
        .arg("--root")
        .arg(scratch.root())
        .output()
        .await
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{words}");
    assert!(words.contains("model.gguf") && words.contains("cut off"), "{words}");
}
