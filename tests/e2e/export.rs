//! What leaves the daemon means the same outside, and comes back: merged models against base and
//! adapter in the real engine, and the command line against a real daemon with the nano model.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use engine::llama::{Quantization, quantize};
use engine::{Engine, Generation, LogprobRequest, Priority, Token, Weights};
use files::gguf::{Gguf, TensorKind};
use files::lora::{Adapter, peft};
use reflectd::merge::{Merge, Written};
use serde_json::{Value, json};
use tokio::process::Command;

use super::parity::load;
use crate::daemon::Daemon;
use crate::explored::explored;
use crate::scratch::EPOCHS;
use testkit::random_model::{ARCHITECTURES, N_VOCAB, unquantized, write, write_adapter};
use testkit::skipped;

/// Log-probs of random texts.
async fn logprobs(engine: &Engine, weights: Weights) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(4);
    let mut text = || (0..30).map(|_| Token(rng.i32(5..N_VOCAB))).collect::<Vec<_>>();
    let sequences = (0..3).map(|_| (text(), 1)).collect();
    let request = LogprobRequest { sequences, weights, priority: Priority::Gate };
    engine.logprobs(request).await.unwrap().concat()
}

async fn logprobs_of(model: &Path, adapter: Option<&Path>) -> Vec<f32> {
    let (engine, thread) = load(model).await;
    let weights = Weights::Generation(Generation(u32::from(adapter.is_some())));
    if let Some(adapter) = adapter {
        engine.load_adapter(Generation(1), adapter.to_owned()).await.unwrap();
    }
    let logprobs = logprobs(&engine, weights).await;
    drop(engine);
    thread.join().unwrap();
    logprobs
}

/// A value that is not a number counts as infinitely far away.
fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let gaps = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    gaps.max_by(f32::total_cmp).expect("there are log-probs")
}

fn merge(base: &Path, adapter: &Path, kind: Option<TensorKind>, to: &Path) -> Vec<Written> {
    let (base, adapter) = ([Gguf::open(base).unwrap()], Adapter::read(adapter).unwrap());
    let merge = Merge { base: &base, adapter: &adapter, kind, threads: 2 };
    let mut written = Vec::new();
    files::write_atomic(to, |out| {
        written = merge.write_to(out, &[], &mut |_| Ok(())).map_err(std::io::Error::other)?;
        Ok(())
    })
    .unwrap();
    written
}

#[tokio::test]
async fn a_merged_model_means_base_and_adapter_and_peft_gives_the_adapter_back() {
    for architecture in ARCHITECTURES {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let base = file("f32.gguf");
        let linears = write(architecture, 1, &base);
        let adapter = file("adapter.gguf");
        write_adapter(architecture, &files::sha256(&base).unwrap(), &linears, 8, &adapter);

        let read = Adapter::read(&adapter).unwrap();
        assert_eq!(read.pairs.len(), linears.len());
        fs::create_dir(file("peft")).unwrap();
        peft::write(&read, &Gguf::open(&base).unwrap(), None, &file("peft")).unwrap();
        assert_eq!(peft::read(&file("peft"), &Gguf::open(&base).unwrap()).unwrap(), read);

        let plain = logprobs_of(&base, None).await;
        let with_adapter = logprobs_of(&base, Some(&adapter)).await;
        let change = furthest(&plain, &with_adapter);
        assert!(0.1 < change, "the adapter changes little, so the test shows little");
        merge(&base, &adapter, None, &file("merged.gguf"));
        let merged = logprobs_of(&file("merged.gguf"), None).await;
        let gap = furthest(&merged, &with_adapter);
        eprintln!("{architecture} F32 merged: {gap:.2e}; the adapter changes {change:.2}");
        // llama.cpp looks gemma's GELU up in a table of 16-bit floats.
        let most = if architecture.starts_with("gemma") { 1e-3 } else { 1e-4 };
        assert!(gap <= most, "{gap} is beyond {most}");
    }
}

#[tokio::test]
async fn a_merged_model_of_a_quantized_base_is_as_near_as_its_rounding_says() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let exact = file("f32.gguf");
    let linears = write("llama", 1, &exact);
    for (name, to, most) in [("Q8_0", Quantization::Q8_0, 0.3), ("Q4_K_M", Quantization::Q4KM, 2.0)]
    {
        let (base, adapter) =
            (file(&format!("{name}.gguf")), file(&format!("{name}-adapter.gguf")));
        quantize(&exact, &base, to).unwrap();
        write_adapter("llama", &files::sha256(&base).unwrap(), &linears, 8, &adapter);
        let change =
            furthest(&logprobs_of(&base, None).await, &logprobs_of(&base, Some(&adapter)).await);
        let with_adapter = logprobs_of(&base, Some(&adapter)).await;
        for (kind, most) in [(None, most), (Some(TensorKind::Q8_0), 0.3)] {
            let written = merge(&base, &adapter, kind, &file("merged.gguf"));
            let gap = furthest(&logprobs_of(&file("merged.gguf"), None).await, &with_adapter);
            let rounding = written.iter().map(|it| it.rounding).fold(0.0, f64::max);
            eprintln!(
                "{name} merged as {kind:?}: {gap:.3}, rounding {rounding:.3}; the adapter changes {change:.2}"
            );
            assert!(gap <= most, "{gap} is beyond {most}");
            assert!(
                written.iter().all(|it| it.instead.is_none() && it.rounding < 1.0),
                "{written:?}"
            );
        }
    }
}

async fn reflectd(root: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reflectd"));
    command.args(arguments).arg("--root").arg(root).current_dir(root);
    for name in testkit::SETTINGS {
        command.env_remove(name);
    }
    command.output().await.unwrap()
}

/// The JSON that it prints when it ends well.
async fn json_of(root: &Path, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--json"]].concat();
    let Output { status, stdout, stderr } = reflectd(root, &arguments).await;
    let words = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(0), "reflectd {arguments:?}: {words}");
    serde_json::from_slice(&stdout).unwrap()
}

/// Its exit code and what it says when it does not.
async fn failure(root: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = reflectd(root, arguments).await;
    assert!(!status.success(), "reflectd {arguments:?} succeeded");
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

fn entries(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_generation_leaves_as_files_and_comes_back_as_a_candidate() {
    let scratch = explored().await;
    // Long enough that it changes more than activations are rounded.
    scratch.train_for(EPOCHS);
    let daemon = Daemon::start(scratch).await;
    let root = daemon.scratch().root().to_owned();
    let root = root.as_path();
    let outside = tempfile::tempdir().unwrap();
    let to = |name: &str| outside.path().join(name).to_str().unwrap().to_owned();

    let (code, words) = failure(root, &["export", "gguf", "--out", &to("base")]).await;
    assert!(code == Some(1) && words.contains("generation 0 is the base"), "{words}");
    let ended = daemon.post("/v1/runs", &json!({})).await;
    assert_eq!(ended["outcome"], "promoted", "{ended}");
    let (code, words) = failure(root, &["export", "gguf", "--generation", "9"]).await;
    assert!(code == Some(1) && words.contains("no generation 9"), "{words}");

    // Out, in all three forms.
    let gguf = json_of(root, &["export", "gguf", "--out", &to("gguf")]).await;
    assert_eq!((&gguf["generation"], &gguf["format"]), (&json!(1), &json!("gguf")));
    assert_eq!(entries(Path::new(&to("gguf"))), ["README.md", "adapter.gguf"]);
    let adapter = daemon.get("/v1/adapters/1").await;
    let copied = files::sha256(&Path::new(&to("gguf")).join("adapter.gguf")).unwrap();
    assert_eq!(adapter["sha256"], copied);
    let card = fs::read_to_string(Path::new(&to("gguf")).join("README.md")).unwrap();
    for fact in [&copied, adapter["base_sha256"].as_str().unwrap(), "pairs, SHA-256", "| gain |"] {
        assert!(card.contains(fact), "{card}");
    }
    assert!(!card.contains(root.to_str().unwrap()), "no folder of this machine: {card}");
    json_of(root, &["export", "peft", "--out", &to("peft"), "--base-model", "owner/nano"]).await;
    assert_eq!(
        entries(Path::new(&to("peft"))),
        ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    );
    let (_, words) = failure(root, &["export", "peft", "--out", &to("peft")]).await;
    assert!(words.contains("--force"), "{words}");
    let merged = json_of(root, &["export", "merged", "--out", &to("peft"), "--force"]).await;
    let file = PathBuf::from(to("peft")).join("model-generation-1.gguf");
    assert_eq!(entries(Path::new(&to("peft"))), ["README.md", "model-generation-1.gguf"]);
    assert_eq!(
        (&merged["merged"][0]["from"], &merged["merged"][0]["to"]),
        (&json!("q8_0"), &json!("q8_0"))
    );
    let model = Gguf::open(&file).unwrap();
    assert!(model.string("general.name").unwrap().ends_with("generation 1"));
    let served = Path::new(adapter["path"].as_str().unwrap());
    let nano = root.join("agents/nano/model.gguf");
    // Without rounded weights; activations and the embedding are still rounded to eight bits.
    json_of(root, &["export", "merged", "--type", "f32", "--out", &to("f32")]).await;
    let file = PathBuf::from(to("f32")).join("model-generation-1.gguf");
    let plain = PathBuf::from(to("f32")).join("base.gguf");
    unquantized(&nano, &plain);
    let (whole, parts) = (logprobs_of(&file, None).await, logprobs_of(&plain, Some(served)).await);
    let base = logprobs_of(&plain, None).await;
    let (gap, change) = (furthest(&whole, &parts), furthest(&whole, &base));
    assert!(2.0 * gap < change, "merged differs by {gap}, and the adapter changes {change}");

    no_room(root, outside.path()).await;

    // And back. Every measure of quality is open here, so that it ends with a swap.
    json_of(root, &["export", "peft", "--out", &to("again")]).await;
    // Beside itself it would be refused: it would change nothing.
    daemon.post("/v1/adapters/rollback", &json!({ "generation": 0 })).await;
    let ended = json_of(root, &["adapters", "import", &to("again")]).await;
    assert_eq!(
        (&ended["outcome"], &ended["generation"]),
        (&json!("promoted"), &json!(2)),
        "{ended}"
    );
    let (first, second) =
        (served, PathBuf::from(daemon.get("/v1/adapters/2").await["path"].as_str().unwrap()));
    assert_eq!(Adapter::read(first).unwrap(), Adapter::read(&second).unwrap());
    let run = daemon.get(&format!("/v1/runs/{}", ended["run"])).await;
    assert_eq!((&run["job"]["kind"], &run["n_pairs"]), (&json!("import"), &json!(0)), "{run}");
    assert_eq!(run["metrics"]["tie"], "its file names the served base", "{run}");
    assert!(run["metrics"]["gate"]["parity"].is_null(), "{run}");
    let card = json_of(root, &["export", "gguf", "--out", &to("imported")]).await;
    assert_eq!(card["generation"], 2);
    let card = fs::read_to_string(Path::new(&to("imported")).join("README.md")).unwrap();
    assert!(card.contains("trained elsewhere"), "{card}");

    // A file that is no adapter is refused and changes nothing.
    let (code, words) = failure(root, &["adapters", "import", nano.to_str().unwrap()]).await;
    assert!(code == Some(1) && words.is_empty(), "{words}");
    assert_eq!(daemon.get("/health").await["generation"], 2);
    daemon.stop().await;
}

/// A file may not grow beyond 100 KiB here: an error with the system's message, and nothing is left.
async fn no_room(root: &Path, outside: &Path) {
    let before = entries(outside);
    let script = "trap '' XFSZ; ulimit -f 200; exec \"$@\"";
    let out = outside.join("full");
    let output = Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_reflectd"), "export", "merged", "--out"])
        .arg(&out)
        .arg("--root")
        .arg(root)
        .output()
        .await
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(71), "{words}");
    assert!(words.contains("File too large") && words.contains("nothing was left"), "{words}");
    assert_eq!(entries(outside), before);
}

/// Names a Python that has torch, transformers, peft and gguf. Without it the check is left out:
/// they are gigabytes, and the set-up does not bring them.
const PYTHON: &str = "REFLECTD_TEST_PYTHON";

/// Adapters that PEFT has made and adapters that PEFT loads, against `transformers` itself.
#[tokio::test]
async fn peft_and_transformers_compute_what_the_server_computes() {
    let Ok(python) = std::env::var(PYTHON) else {
        return skipped(&format!(
            "{PYTHON} names no Python with torch, transformers, peft and gguf"
        ));
    };
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peft_check.py");
    let ask = async |what: &str| {
        let output =
            Command::new(&python).arg(&script).arg(what).arg(folder.path()).output().await.unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{what}: {words}");
        eprint!("{}", String::from_utf8_lossy(&output.stdout));
    };
    ask("make").await;
    for architecture in ARCHITECTURES {
        let file = |name: &str| folder.path().join(architecture).join(name);
        let texts: Vec<Vec<i32>> =
            serde_json::from_slice(&fs::read(file("tokens.json")).unwrap()).unwrap();
        let base = Gguf::open(&file("model.gguf")).unwrap();
        let adapter = peft::read(&file("peft"), &base).unwrap();
        adapter.write("imported", &file("imported.gguf")).unwrap();
        fs::create_dir(file("exported")).unwrap();
        peft::write(&adapter, &base, None, &file("exported")).unwrap();

        let (engine, thread) = load(&file("model.gguf")).await;
        engine.load_adapter(Generation(1), file("imported.gguf")).await.unwrap();
        let mut served = Vec::new();
        for generation in [Generation(0), Generation(1)] {
            let tokens = texts.iter().map(|text| text.iter().copied().map(Token).collect());
            let request = LogprobRequest {
                sequences: tokens.map(|tokens: Vec<Token>| (tokens, 1)).collect(),
                weights: Weights::Generation(generation),
                priority: Priority::Gate,
            };
            served.push(engine.logprobs(request).await.unwrap());
        }
        drop(engine);
        thread.join().unwrap();
        let text = serde_json::to_vec(&served).unwrap();
        let write = |out: &mut std::io::BufWriter<fs::File>| std::io::Write::write_all(out, &text);
        files::write_atomic(&file("logprobs.json"), write).unwrap();
    }
    ask("check").await;
}
