//! The model and the pairs: a llama of the 100-million class (with 12 blocks) and random weights as an F32 GGUF, an
//! adapter whose B is zero (so that both sides begin with the same numbers), and random pairs. Used
//! by `main`.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use files::gguf::{Hyperparameters, Writer};
use files::lora::header::Header;
use protocol::{Example, Lora};

const WIDTH: u64 = 768;
const HEADS: u64 = 12;
const KV_HEADS: u64 = 4;
const HEAD: u64 = WIDTH / HEADS;
const FEED_FORWARD: u64 = 2048;
const CONTEXT: u64 = 2048;

/// Ends an answer; no other token of a pair.
pub(crate) const END: i32 = 2;

/// Name and `[in, out]` of a block's linear layers.
const LINEARS: [(&str, u64, u64); 7] = [
    ("attn_q", WIDTH, WIDTH),
    ("attn_k", WIDTH, KV_HEADS * HEAD),
    ("attn_v", WIDTH, KV_HEADS * HEAD),
    ("attn_output", WIDTH, WIDTH),
    ("ffn_gate", WIDTH, FEED_FORWARD),
    ("ffn_up", WIDTH, FEED_FORWARD),
    ("ffn_down", FEED_FORWARD, WIDTH),
];

/// Writes the base; the embedding is the output head too, as in small models.
pub(crate) fn write_base(
    path: &Path,
    [n_blocks, n_vocab]: [u64; 2],
    seed: u64,
) -> anyhow::Result<()> {
    let mut rng = fastrand::Rng::with_seed(n_vocab + seed);
    let mut writer = Writer::default();
    let hyperparameters = Hyperparameters {
        architecture: "llama",
        name: "bench",
        blocks: n_blocks,
        context: CONTEXT,
        width: WIDTH,
        feed_forward: FEED_FORWARD,
        heads: HEADS,
        kv_heads: KV_HEADS,
        rotated: HEAD,
        vocabulary: n_vocab,
        rms_epsilon: 1e-5,
        rope_base: 10_000.0,
    };
    hyperparameters.write(&mut writer);
    writer.tensor("token_embd.weight", &[WIDTH, n_vocab], noise(&mut rng, WIDTH * n_vocab, 0.05));
    writer.tensor("output_norm.weight", &[WIDTH], ones());
    for layer in 0..n_blocks {
        for norm in ["attn_norm", "ffn_norm"] {
            writer.tensor(&format!("blk.{layer}.{norm}.weight"), &[WIDTH], ones());
        }
        for (name, n_in, n_out) in LINEARS {
            let values = noise(&mut rng, n_in * n_out, (3.0 / n_in as f32).sqrt());
            writer.tensor(&format!("blk.{layer}.{name}.weight"), &[n_in, n_out], values);
        }
    }
    writer.write(path).with_context(|| format!("write {}", path.display()))
}

/// Writes the adapter that both sides start from.
pub(crate) fn write_start(
    path: &Path,
    base_sha256: &str,
    lora: Lora,
    n_blocks: u64,
    seed: u64,
) -> anyhow::Result<()> {
    let rank = lora.rank as u64;
    let mut rng = fastrand::Rng::with_seed(rank + seed);
    let mut writer = Writer::default();
    Header { base_sha256: Some(base_sha256), ..Header::new("llama", lora.alpha) }
        .write(&mut writer);
    for layer in 0..n_blocks {
        for (name, n_in, n_out) in LINEARS {
            let name = format!("blk.{layer}.{name}.weight");
            let a = noise(&mut rng, n_in * rank, 1.0 / (n_in as f32).sqrt());
            writer.tensor(&format!("{name}.lora_a"), &[n_in, rank], a);
            let zeros = vec![0.0; usize::try_from(rank * n_out)?];
            writer.tensor(&format!("{name}.lora_b"), &[rank, n_out], zeros);
        }
    }
    writer.write(path).with_context(|| format!("write {}", path.display()))
}

/// Writes pairs of random tokens: so many of the prompt, and of each answer with its end.
pub(crate) fn write_pairs(
    path: &Path,
    n: usize,
    [prompt, answer]: [usize; 2],
    n_vocab: u64,
    seed: u64,
) -> anyhow::Result<()> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let last = i32::try_from(n_vocab)?;
    let mut lines = Vec::new();
    for number in 0..n {
        let mut tokens = |n: usize| (0..n).map(|_| rng.i32(END + 1..last)).collect::<Vec<_>>();
        let mut answers = [(); 2].map(|()| [tokens(answer - 1), vec![END]].concat());
        let [chosen, rejected] = answers.each_mut().map(std::mem::take);
        let prompt = tokens(prompt);
        let prompt_id = number.to_string();
        let example = Example { prompt_id, prompt, chosen, rejected: Some(rejected) };
        serde_json::to_writer(&mut lines, &example)?;
        lines.push(b'\n');
    }
    files::write_atomic(path, |file| file.write_all(&lines))
        .with_context(|| format!("write {}", path.display()))
}

fn ones() -> Vec<f32> {
    vec![1.0; usize::try_from(WIDTH).expect("a width is small")]
}

/// Numbers between `-scale` and `scale`.
fn noise(rng: &mut fastrand::Rng, n: u64, scale: f32) -> Vec<f32> {
    (0..n).map(|_| scale * (2.0 * rng.f32() - 1.0)).collect()
}
