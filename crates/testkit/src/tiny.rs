//! A llama-architecture model and an adapter of it, small enough to be loaded a thousand times, as
//! parts that a mutation can change before they are written.

use std::path::Path;

use files::gguf::{Hyperparameters, Value, Writer};
use files::lora::header::Header;

use crate::vocabulary;

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
    let hyperparameters = Hyperparameters {
        architecture: "llama",
        name: "",
        blocks: 1,
        context: 128,
        width: EMBEDDING,
        feed_forward: FEED_FORWARD,
        heads: 2,
        kv_heads: 1,
        rotated: 16,
        vocabulary: VOCAB,
        rms_epsilon: 1e-5,
        rope_base: 10_000.0,
    };
    let mut parts = Parts { metadata: hyperparameters.metadata(), ..Parts::default() };
    parts.metadata.extend(vocabulary::bytes(&["<|begin|>", "<|end|>"]));
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
    let header = Header::new("llama", 4.0).entries().into_iter();
    parts.metadata.extend(header.map(|(key, value)| (key.to_owned(), value)));
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
