//! A small model with random weights for each architecture that the trainer knows, with every
//! feature of that architecture present and strong enough to show when it is computed wrongly.
//! Also an adapter on all of its linear layers, and copies with one thing changed. Used by
//! `architectures`, `doctor` and by the trainer's own tests.

use std::path::Path;

use files::gguf::{Gguf, Hyperparameters, Value, Writer};
use files::lora::header::Header;
use nano::tokenizer::Tokenizer;

/// All that the trainer knows.
pub const ARCHITECTURES: [&str; 6] = ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"];
/// Tokens of the vocabulary.
pub const N_VOCAB: i32 = 288;
/// The server's context in tokens. It is longer than what the phi3 file says that it was first
/// trained with, so that the long rotary factors are the right ones.
pub const CONTEXT: u32 = 4096;

const LAYERS: usize = 3;
/// Both are whole blocks of every quantization.
const WIDTH: u64 = 256;
const FEED_FORWARD: u64 = 512;
/// Shorter than the tests' sequences.
const WINDOW: u64 = 8;

/// A linear layer: tensor name and sizes.
#[derive(Debug)]
pub struct Linear {
    pub name: String,
    pub n_in: u64,
    pub n_out: u64,
}

/// Writes a model and says which linear layers it has.
pub fn write(architecture: &str, seed: u64, path: &Path) -> Vec<Linear> {
    Making {
        architecture,
        rng: fastrand::Rng::with_seed(seed),
        writer: Writer::default(),
        linears: Vec::new(),
    }
    .model(path)
}

/// Writes an adapter with random numbers on all linear layers.
pub fn write_adapter(
    architecture: &str,
    base_sha256: &str,
    linears: &[Linear],
    rank: u64,
    path: &Path,
) {
    let mut rng = fastrand::Rng::with_seed(11);
    let mut writer = Writer::default();
    Header { base_sha256: Some(base_sha256), ..Header::new(architecture, 2.0 * rank as f64) }
        .write(&mut writer);
    for Linear { name, n_in, n_out } in linears {
        let a = noise(&mut rng, n_in * rank, 1.0 / (*n_in as f32).sqrt());
        let b = noise(&mut rng, rank * n_out, 0.1);
        writer.tensor(&format!("{name}.lora_a"), &[*n_in, rank], a);
        writer.tensor(&format!("{name}.lora_b"), &[rank, *n_out], b);
    }
    writer.write(path).unwrap();
}

/// A copy of a model file with the numbers that its quantized weights stand for.
pub fn unquantized(from: &Path, to: &Path) {
    let model = Gguf::open(from).unwrap();
    let mut writer = Writer::default();
    for (key, value) in model.entries() {
        writer.metadata(key, value.clone());
    }
    for tensor in model.tensors() {
        writer.tensor(&tensor.name, &tensor.shape, model.read_f32(tensor).unwrap());
    }
    writer.write(to).unwrap();
}

/// A copy of a model file with a metadata entry set or added.
pub fn with_metadata(from: &Path, to: &Path, key: &str, value: &Value) {
    let source = Gguf::open(from).unwrap();
    let mut writer = Writer::default();
    for (found, old) in source.entries().iter().filter(|(found, _)| *found != key) {
        writer.metadata(found, old.clone());
    }
    writer.metadata(key, value.clone());
    for info in source.tensors() {
        writer.tensor(&info.name, &info.shape, source.read_f32(info).unwrap());
    }
    writer.write(to).unwrap();
}

/// A copy of a model file in which a tensor has another name.
pub fn renamed(from: &Path, to: &Path, tensor: &str, name: &str) {
    let source = Gguf::open(from).unwrap();
    let mut writer = Writer::default();
    source.entries().iter().for_each(|(key, value)| writer.metadata(key, value.clone()));
    for info in source.tensors() {
        let name = if info.name == tensor { name } else { &info.name };
        writer.tensor(name, &info.shape, source.read_f32(info).unwrap());
    }
    writer.write(to).unwrap();
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

/// Numbers around zero with this standard deviation.
fn noise(rng: &mut fastrand::Rng, n: u64, deviation: f32) -> Vec<f32> {
    let width = deviation * 12.0_f32.sqrt();
    (0..n).map(|_| (rng.f32() - 0.5) * width).collect()
}

struct Making<'a> {
    architecture: &'a str,
    rng: fastrand::Rng,
    writer: Writer,
    linears: Vec<Linear>,
}

impl Making<'_> {
    fn model(mut self, path: &Path) -> Vec<Linear> {
        let name = self.architecture;
        // Where the file may say how wide a head is, it is not width / heads.
        let (n_head, n_head_kv, head_dim) = match name {
            "llama" | "qwen2" | "phi3" => (4, 2, 64),
            _ => (4, 2, 128),
        };
        let (q, kv) = (n_head * head_dim, n_head_kv * head_dim);
        let hyperparameters = Hyperparameters {
            architecture: name,
            name: "random",
            blocks: LAYERS as u64,
            context: 8192,
            width: WIDTH,
            feed_forward: FEED_FORWARD,
            heads: n_head,
            kv_heads: n_head_kv,
            rotated: if name == "phi3" { 48 } else { head_dim },
            vocabulary: u64::from(N_VOCAB.unsigned_abs()),
            rms_epsilon: 1e-5,
            rope_base: 500.0,
        };
        hyperparameters.write(&mut self.writer);
        self.writer.metadata("general.type", text("model"));
        for key in ["attention.key_length", "attention.value_length"] {
            self.number(key, Value::Unsigned(head_dim));
        }
        self.metadata_of_architecture();
        let tokenizer = Tokenizer::train(&[], 271);
        assert_eq!(i32::try_from(tokenizer.n_vocab()).unwrap(), N_VOCAB);
        tokenizer.write_metadata(&mut self.writer, "");

        let n_vocab = u64::from(N_VOCAB.unsigned_abs());
        // A head of its own, or this one, gives logits that differ by a few.
        self.matrix("token_embd", WIDTH, n_vocab, 0.1);
        self.norm("output_norm", WIDTH);
        if name != "gemma2" && name != "qwen3" {
            self.matrix("output", WIDTH, n_vocab, 0.1);
        }
        if name == "qwen2" {
            self.vector("output.bias", n_vocab, 0.5);
        }
        for layer in 0..LAYERS {
            self.block(layer, [q, kv, head_dim]);
        }
        match name {
            "llama" => self.factors("rope_freqs", head_dim / 2),
            "phi3" => {
                self.factors("rope_factors_long", 24);
                self.factors("rope_factors_short", 24);
            }
            _ => {}
        }
        self.writer.write(path).unwrap();
        self.linears
    }

    fn metadata_of_architecture(&mut self) {
        match self.architecture {
            "llama" => {
                self.number("rope.scaling.type", text("linear"));
                self.number("rope.scaling.factor", Value::Float(1.5));
            }
            "gemma2" => {
                self.number("attention.sliding_window", Value::Unsigned(WINDOW));
                self.number("attn_logit_softcapping", Value::Float(1.5));
                self.number("final_logit_softcapping", Value::Float(2.5));
            }
            "gemma3" => {
                self.number("attention.sliding_window", Value::Unsigned(WINDOW));
                self.number("attention.sliding_window_pattern", Value::Unsigned(3));
                self.number("rope.freq_base_swa", Value::Float(50.0));
                self.number("rope.scaling.type", text("linear"));
                self.number("rope.scaling.factor", Value::Float(4.0));
                self.number("final_logit_softcapping", Value::Float(3.0));
            }
            "phi3" => {
                self.number("rope.scaling.type", text("longrope"));
                self.number("rope.scaling.attn_factor", Value::Float(1.19));
                self.number("rope.scaling.original_context_length", Value::Unsigned(2048));
            }
            _ => {}
        }
    }

    fn block(&mut self, layer: usize, [q, kv, head_dim]: [u64; 3]) {
        let name = self.architecture;
        let part = |part: &str| format!("blk.{layer}.{part}");
        self.norm(&part("attn_norm"), WIDTH);
        self.norm(&part("ffn_norm"), WIDTH);
        if name.starts_with("gemma") {
            self.norm(&part("post_attention_norm"), WIDTH);
            self.norm(&part("post_ffw_norm"), WIDTH);
        }
        if name == "gemma3" || name == "qwen3" {
            self.norm(&part("attn_q_norm"), head_dim);
            self.norm(&part("attn_k_norm"), head_dim);
        }
        let mut linears = vec![("attn_output", q, WIDTH), ("ffn_down", FEED_FORWARD, WIDTH)];
        if name == "phi3" {
            linears.extend([("attn_qkv", WIDTH, q + 2 * kv), ("ffn_up", WIDTH, 2 * FEED_FORWARD)]);
        } else {
            linears.extend([("attn_q", WIDTH, q), ("attn_k", WIDTH, kv), ("attn_v", WIDTH, kv)]);
            linears.extend([("ffn_gate", WIDTH, FEED_FORWARD), ("ffn_up", WIDTH, FEED_FORWARD)]);
        }
        for (linear, n_in, n_out) in linears {
            let full = part(linear);
            self.matrix(&full, n_in, n_out, 1.0 / (n_in as f32).sqrt());
            self.linears.push(Linear { name: format!("{full}.weight"), n_in, n_out });
            let has_bias = name == "llama"
                || (matches!(name, "qwen2" | "phi3")
                    && linear.starts_with("attn_")
                    && linear != "attn_output");
            if has_bias {
                self.vector(&format!("{full}.bias"), n_out, 0.3);
            }
        }
    }

    fn number(&mut self, key: &str, value: Value) {
        self.writer.metadata(&format!("{}.{key}", self.architecture), value);
    }
    fn matrix(&mut self, name: &str, n_in: u64, n_out: u64, deviation: f32) {
        let values = noise(&mut self.rng, n_in * n_out, deviation);
        self.writer.tensor(&format!("{name}.weight"), &[n_in, n_out], values);
    }
    fn vector(&mut self, name: &str, n: u64, deviation: f32) {
        let values = noise(&mut self.rng, n, deviation);
        self.writer.tensor(name, &[n], values);
    }
    fn norm(&mut self, name: &str, n: u64) {
        let values = noise(&mut self.rng, n, 0.2).into_iter().map(|value| 1.0 + value).collect();
        self.writer.tensor(&format!("{name}.weight"), &[n], values);
    }
    fn factors(&mut self, name: &str, n: u64) {
        let values = (0..n).map(|_| 1.0 + 3.0 * self.rng.f32()).collect();
        self.writer.tensor(&format!("{name}.weight"), &[n], values);
    }
}
