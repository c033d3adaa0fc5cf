//! A llama-architecture model and an adapter of it, small enough to be loaded a thousand times, as
//! parts that a mutation can change before they are written.

use std::path::Path;

use files::gguf::{Value, Writer, gpt2_letter};

const EMBEDDING: u64 = 32;
const FEED_FORWARD: u64 = 64;
const VOCAB: u64 = 259;

/// A file before it is written.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<(String, Vec<u64>, Vec<f32>)>,
}

impl Parts {
    pub fn write(&self, path: &Path) {
        let mut writer = Writer::default();
        for (key, value) in &self.metadata {
            writer.metadata(key, value.clone());
        }
        for (name, shape, values) in &self.tensors {
            writer.tensor(name, shape, values.clone());
        }
        writer.write(path).unwrap();
    }

    fn put(&mut self, key: &str, value: impl Into<Stored>) {
        self.metadata.push((key.to_owned(), value.into().0));
    }

    fn matrix(&mut self, name: &str, shape: &[u64], seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let n = shape.iter().product::<u64>();
        let values = (0..n).map(|_| 0.6 * random.f32() - 0.3).collect();
        self.tensors.push((name.to_owned(), shape.to_owned(), values));
    }
}

/// So that a test says `put(key, 1)`.
#[derive(Debug)]
pub struct Stored(Value);

impl From<u64> for Stored {
    fn from(value: u64) -> Self {
        Self(Value::Unsigned(value))
    }
}

impl From<f64> for Stored {
    fn from(value: f64) -> Self {
        Self(Value::Float(value))
    }
}

impl From<&str> for Stored {
    fn from(value: &str) -> Self {
        Self(Value::String(value.to_owned()))
    }
}

impl From<Vec<Value>> for Stored {
    fn from(value: Vec<Value>) -> Self {
        Self(Value::Array(value))
    }
}

pub fn model() -> Parts {
    let mut parts = Parts::default();
    parts.put("general.architecture", "llama");
    for (key, value) in [
        ("block_count", 1),
        ("context_length", 128),
        ("embedding_length", EMBEDDING),
        ("feed_forward_length", FEED_FORWARD),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("rope.dimension_count", 16),
        ("vocab_size", VOCAB),
    ] {
        parts.put(&format!("llama.{key}"), value);
    }
    parts.put("llama.attention.layer_norm_rms_epsilon", 1e-5);
    parts.put("llama.rope.freq_base", 10_000.0);
    parts.put("tokenizer.ggml.model", "gpt2");
    parts.put("tokenizer.ggml.pre", "gpt-2");
    let text = |text: String| Value::String(text);
    let bytes = (0..=255).map(|byte| text(gpt2_letter(byte).to_string()));
    let special = ["he", "<|begin|>", "<|end|>"].map(|name| text(name.to_owned()));
    parts.put("tokenizer.ggml.tokens", bytes.chain(special).collect::<Vec<_>>());
    let kinds = (0..VOCAB).map(|id| Value::Signed(if id < 257 { 1 } else { 3 }));
    parts.put("tokenizer.ggml.token_type", kinds.collect::<Vec<_>>());
    let scores = (0..VOCAB).map(|_| Value::Float(0.0));
    parts.put("tokenizer.ggml.scores", scores.collect::<Vec<_>>());
    parts.put("tokenizer.ggml.merges", vec![text("h e".into())]);
    parts.put("tokenizer.ggml.bos_token_id", 257);
    parts.put("tokenizer.ggml.eos_token_id", 258);
    parts.put("tokenizer.chat_template", "{{ messages[0].content }}");

    parts.matrix("token_embd.weight", &[EMBEDDING, VOCAB], 1);
    parts.matrix("output.weight", &[EMBEDDING, VOCAB], 2);
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
        parts.matrix(&format!("{name}.weight"), &[EMBEDDING], 3);
    }
    for (name, n_in, n_out) in [
        ("attn_q", EMBEDDING, EMBEDDING),
        ("attn_k", EMBEDDING, EMBEDDING / 2),
        ("attn_v", EMBEDDING, EMBEDDING / 2),
        ("attn_output", EMBEDDING, EMBEDDING),
        ("ffn_gate", EMBEDDING, FEED_FORWARD),
        ("ffn_up", EMBEDDING, FEED_FORWARD),
        ("ffn_down", FEED_FORWARD, EMBEDDING),
    ] {
        parts.matrix(&format!("blk.0.{name}.weight"), &[n_in, n_out], 4);
    }
    parts
}

pub fn adapter() -> Parts {
    let mut parts = Parts::default();
    parts.put("general.type", "adapter");
    parts.put("general.architecture", "llama");
    parts.put("adapter.type", "lora");
    parts.put("adapter.lora.alpha", 4.0);
    for (name, n_in, n_out) in [
        ("attn_q", EMBEDDING, EMBEDDING),
        ("attn_v", EMBEDDING, EMBEDDING / 2),
        ("ffn_down", FEED_FORWARD, EMBEDDING),
    ] {
        parts.matrix(&format!("blk.0.{name}.weight.lora_a"), &[n_in, 4], 5);
        parts.matrix(&format!("blk.0.{name}.weight.lora_b"), &[4, n_out], 6);
    }
    parts
}
