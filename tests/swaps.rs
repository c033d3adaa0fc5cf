//! Two hundred swaps of real adapters under chats, in a process of its own, so that its memory is
//! that of the engine alone. What must hold: nothing fails, no answer mixes two generations, and the
//! memory of the process stays what it was.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::path::{Path, PathBuf};

use engine::{
    Engine, EngineConfig, FinishReason, GenerateRequest, Generation, Piece, Priority, Sampling,
    TextPart, Weights, spawn,
};
use files::gguf::{Gguf, Writer};
use files::lora::header::Header;

const SWAPS: u32 = 200;
/// After these swaps the allocator and the page tables have reached their size.
const SETTLED: u32 = 20;
const RANK: u64 = 16;
const CHATS: u32 = 3;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("agents/nano/model.gguf")
}

/// An adapter on every linear layer, with small random numbers.
fn write_adapter(path: &Path, seed: u64) {
    let base = Gguf::open(&model()).unwrap();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut noise =
        |n: u64| (0..n).map(|_| random.f32().mul_add(0.02, -0.01)).collect::<Vec<f32>>();
    let mut writer = Writer::default();
    Header::new("llama", 16.0).write(&mut writer);
    let layers = base.tensors().iter().filter(|t| t.name.starts_with("blk.") && t.shape.len() == 2);
    for tensor in layers {
        let [n_in, n_out] = tensor.shape[..] else { panic!("a matrix has two sides") };
        writer.tensor(&format!("{}.lora_a", tensor.name), &[n_in, RANK], noise(n_in * RANK));
        writer.tensor(&format!("{}.lora_b", tensor.name), &[RANK, n_out], noise(RANK * n_out));
    }
    writer.write(path).unwrap();
}

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// One whole answer, and the generation that gave it.
async fn chat(engine: &Engine, weights: Weights) -> (Generation, Vec<i32>) {
    let text = "Ann has 17 apples and finds 25 more. How many has she now?".to_owned();
    let prompt = engine.vocabulary().tokenize(&[TextPart { text, control: false }]);
    let sampling = Sampling { temperature: 0.0, max_tokens: 12, ..Sampling::default() };
    let request = GenerateRequest {
        prompt,
        n: 1,
        sampling,
        stop: Vec::new(),
        top_logprobs: 0,
        prediction: Vec::new(),
        weights,
        priority: Priority::Chat,
    };
    let mut started = engine.generate(request).await.unwrap();
    let mut tokens = Vec::new();
    loop {
        match started.pieces.recv().await.unwrap() {
            Piece::Token(piece) => tokens.push(piece.token.0),
            Piece::Finished { reason: FinishReason::Stop | FinishReason::Length, .. } => {
                return (started.generation, tokens);
            }
            Piece::Failed(error) => panic!("a chat failed: {error}"),
        }
    }
}

#[tokio::test]
async fn two_hundred_swaps_under_chats_leave_no_memory_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = |seed: u32| folder.path().join(format!("{}.gguf", seed % 2));
    for seed in [0, 1] {
        write_adapter(&path(seed), u64::from(seed));
    }
    let config = EngineConfig {
        context_tokens: 2048,
        batch_tokens: 128,
        queue: 16,
        ..EngineConfig::small(model())
    };
    let (engine, _thread) = spawn(&config).await.unwrap();
    let mut settled = 0;
    for swap in 1..=SWAPS {
        let generation = Generation(swap);
        let chats: Vec<_> = (0..CHATS)
            .map(|_| {
                let engine = engine.clone();
                tokio::spawn(async move { chat(&engine, Weights::Active).await })
            })
            .collect();
        engine.load_adapter(generation, path(swap)).await.unwrap();
        engine.activate(generation).await.unwrap();
        assert_eq!(chat(&engine, Weights::Active).await.0, generation);
        for chat in chats {
            let (by, tokens) = chat.await.unwrap();
            assert!(by.0 == swap - 1 || by.0 == swap, "generation {by} answered");
            assert!(!tokens.is_empty());
        }
        if 1 < swap {
            engine.retire(Generation(swap - 1)).await.unwrap();
        }
        if swap == SETTLED {
            settled = resident();
        }
    }
    let end = resident();
    assert_eq!(engine.stats().generations.len(), 2, "the base and the active one");
    println!("resident after {SETTLED} swaps: {settled} KiB, after {SWAPS}: {end} KiB");
    assert!(end * 100 <= settled * 105, "{settled} KiB grew to {end} KiB");
}
