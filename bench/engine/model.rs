//! The model under test: a llama of 150 million parameters with random weights, written with our own
//! GGUF writer, quantized to `Q4_K_M` by llama.cpp, and kept below the target folder. Adapters for
//! the swap too. Speeds and mechanics are real, text is not. Used by `main` and `swap`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use engine::llama::{Quantization, quantize};
use files::gguf::{Hyperparameters, Writer};
use files::lora::header::Header;
use sha2::{Digest as _, Sha256};

use crate::vocabulary::{SIZE, Vocabulary};

const EMBEDDING: u64 = 768;
const LAYERS: u64 = 16;
const HEADS: u64 = 12;
const KV_HEADS: u64 = 4;
const HEAD: u64 = EMBEDDING / HEADS;
const FEED_FORWARD: u64 = 2048;
const CONTEXT: u64 = 8192;
/// Rank of the adapters.
const RANK: u64 = 16;
/// Part of the file's name: another recipe is another file.
const RECIPE: u32 = 3;

/// The first number of every hidden state is a constant, because nothing adds to it. Through it the
/// output weights can tell tokens never to come: all but words, the end of a turn above all.
const CONSTANT: f32 = 12.0;
/// About -20 in the logit of a token that shall not come.
const NEVER: f32 = -3.0;

/// How far the token that follows by rule stands out in a predictable model: so far that rounding
/// never changes which one is likeliest.
const RULE: f32 = 0.5;
/// What the layers of a predictable model add to the hidden state, so that the embedding in it is
/// not drowned.
const QUIET: f32 = 0.2;

/// What comes after a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// Any word.
    Random,
    /// Nearly always one word, which the token before it decides. Two evaluations of a random model round
    /// differently and part within a few greedy tokens; those of this one do not.
    Predictable,
}

/// Bytes that the KV cache takes for one token in f16.
pub(crate) const KV_BYTES_PER_TOKEN: u64 = LAYERS * KV_HEADS * HEAD * 2 * 2;

/// The model file in `folder`; written when it is not there.
pub(crate) fn make(folder: &Path, texts: &[String], kind: Kind) -> anyhow::Result<PathBuf> {
    let vocabulary = Vocabulary::new(texts);
    let mut digest = Sha256::new();
    digest.update(RECIPE.to_le_bytes());
    for token in vocabulary.tokens() {
        digest.update(token);
        digest.update([0]);
    }
    let version: String = files::hex(&digest.finalize()).chars().take(8).collect();
    let kind_word = match kind {
        Kind::Random => "random",
        Kind::Predictable => "predictable",
    };
    let path = folder.join(format!("bench-150m-{kind_word}-{version}.q4_k_m.gguf"));
    if path.is_file() {
        return Ok(path);
    }
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let plain = path.with_extension("f32");
    let quantized = path.with_extension("part");
    weights(&vocabulary, kind)
        .write(&plain)
        .with_context(|| format!("write {}", plain.display()))?;
    quantize(&plain, &quantized, Quantization::Q4KM).context("quantize the model")?;
    fs::remove_file(&plain).with_context(|| format!("remove {}", plain.display()))?;
    fs::rename(&quantized, &path).with_context(|| format!("rename to {}", path.display()))?;
    Ok(path)
}

fn weights(vocabulary: &Vocabulary, kind: Kind) -> Writer {
    let mut writer = Writer::default();
    let vocab = SIZE as u64;
    let hyperparameters = Hyperparameters {
        architecture: "llama",
        name: "bench-150m",
        blocks: LAYERS,
        context: CONTEXT,
        width: EMBEDDING,
        feed_forward: FEED_FORWARD,
        heads: HEADS,
        kv_heads: KV_HEADS,
        rotated: HEAD,
        vocabulary: vocab,
        rms_epsilon: 1e-5,
        rope_base: 10_000.0,
    };
    hyperparameters.write(&mut writer);
    vocabulary.write(&mut writer);

    let mut rng = fastrand::Rng::with_seed(1);
    let mut embedding = noise(&mut rng, EMBEDDING * vocab, 1.0);
    let mut output = noise(&mut rng, EMBEDDING * vocab, 0.125);
    let width = len(EMBEDDING);
    for (id, (embedding, output)) in
        embedding.chunks_mut(width).zip(output.chunks_mut(width)).enumerate()
    {
        embedding[0] = CONSTANT;
        output[0] = if vocabulary.is_word(id) { 0.0 } else { NEVER };
    }
    if kind == Kind::Predictable {
        follow(&mut rng, vocabulary, &embedding, &mut output);
    }
    writer.tensor("token_embd.weight", &[EMBEDDING, vocab], embedding);
    writer.tensor("output.weight", &[EMBEDDING, vocab], output);
    writer.tensor("output_norm.weight", &[EMBEDDING], vec![1.0; width]);
    for layer in 0..LAYERS {
        for norm in ["attn_norm", "ffn_norm"] {
            let mut ones = vec![1.0; width];
            ones[0] = 0.0;
            writer.tensor(&format!("blk.{layer}.{norm}.weight"), &[EMBEDDING], ones);
        }
        for Projection { name, n_in, n_out, adds } in projections() {
            let is_quiet = adds && kind == Kind::Predictable;
            let scale = (3.0 / n_in as f32).sqrt() * if is_quiet { QUIET } else { 1.0 };
            let mut values = noise(&mut rng, n_in * n_out, scale);
            if adds {
                values[..len(n_in)].fill(0.0);
            }
            writer.tensor(&format!("blk.{layer}.{name}.weight"), &[n_in, n_out], values);
        }
    }
    writer
}

/// Gives each token a word that follows it: the word's output weights point where the token's
/// embedding does, which the hidden state carries to the end.
fn follow(rng: &mut fastrand::Rng, vocabulary: &Vocabulary, embedding: &[f32], output: &mut [f32]) {
    let width = len(EMBEDDING);
    let mut words: Vec<usize> = (0..SIZE).filter(|&id| vocabulary.is_word(id)).collect();
    rng.shuffle(&mut words);
    for (before, after) in words.iter().cycle().enumerate().take(SIZE) {
        let [from, to] = [before, *after].map(|id| id * width + 1..(id + 1) * width);
        for (weight, number) in output[to].iter_mut().zip(&embedding[from]) {
            *weight += RULE * number;
        }
    }
}

/// Writes a random adapter of rank 16 on every projection.
pub(crate) fn write_adapter(path: &Path, seed: u64) -> anyhow::Result<()> {
    let mut writer = Writer::default();
    Header::new("llama", RANK as f64).write(&mut writer);
    let mut rng = fastrand::Rng::with_seed(seed);
    for layer in 0..LAYERS {
        for Projection { name, n_in, n_out, adds } in projections() {
            let name = format!("blk.{layer}.{name}.weight");
            let down = noise(&mut rng, n_in * RANK, 0.05);
            let mut up = noise(&mut rng, RANK * n_out, 0.05);
            if adds {
                up[..len(RANK)].fill(0.0);
            }
            writer.tensor(&format!("{name}.lora_a"), &[n_in, RANK], down);
            writer.tensor(&format!("{name}.lora_b"), &[RANK, n_out], up);
        }
    }
    writer.write(path).with_context(|| format!("write {}", path.display()))
}

struct Projection {
    name: &'static str,
    n_in: u64,
    n_out: u64,
    /// What it puts out is added to the hidden state, whose constant must stay.
    adds: bool,
}

fn projections() -> [Projection; 7] {
    let kv = KV_HEADS * HEAD;
    let inner = |name, n_in, n_out| Projection { name, n_in, n_out, adds: false };
    let outer = |name, n_in| Projection { name, n_in, n_out: EMBEDDING, adds: true };
    [
        inner("attn_q", EMBEDDING, EMBEDDING),
        inner("attn_k", EMBEDDING, kv),
        inner("attn_v", EMBEDDING, kv),
        outer("attn_output", EMBEDDING),
        inner("ffn_gate", EMBEDDING, FEED_FORWARD),
        inner("ffn_up", EMBEDDING, FEED_FORWARD),
        outer("ffn_down", FEED_FORWARD),
    ]
}

/// Numbers between `-scale` and `scale`.
fn noise(rng: &mut fastrand::Rng, n: u64, scale: f32) -> Vec<f32> {
    (0..n).map(|_| scale * (2.0 * rng.f32() - 1.0)).collect()
}

fn len(n: u64) -> usize {
    usize::try_from(n).expect("a usize has at least 32 bits")
}
