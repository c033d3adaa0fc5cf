//! Damage to a GGUF file, the same for the same seed: half of it to its parts, which keeps the
//! format sound and makes its meaning wrong, half of it to its bytes, mostly those of the header.

use std::io::Write as _;
use std::path::Path;

use fastrand::Rng;
use files::gguf::Value;
use files::write_atomic;

use crate::tiny::Parts;

const NUMBERS: [u64; 12] =
    [0, 1, 2, 3, 7, 31, 255, 513, 65_537, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF];
const FLOATS: [f64; 8] = [0.0, -1.0, 1e-30, 1e30, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e38];
const WORDS: [&str; 22] = [
    "",
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "phi3",
    "mamba",
    "bert",
    "t5",
    "rwkv6",
    "deepseek2",
    "clip",
    "adapter",
    "lora",
    "none",
    "yarn",
    "gpt2",
    "blk.0.attn_q.weight",
    "blk.9.ffn_up.weight",
    "rope_freqs.weight",
    "<0x0A>",
    "{% for",
];

/// Writes the file that belongs to this seed.
pub fn write(parts: &Parts, seed: u64, path: &Path) {
    let random = &mut Rng::with_seed(seed);
    let mut parts = parts.clone();
    let is_structural = random.bool();
    if is_structural {
        for _ in 0..random.usize(1..=2) {
            change(&mut parts, random);
        }
    }
    parts.write(path);
    if !is_structural {
        let mut bytes = std::fs::read(path).unwrap();
        for _ in 0..random.usize(1..=3) {
            damage(&mut bytes, random);
        }
        write_atomic(path, |file| file.write_all(&bytes)).unwrap();
    }
}

fn change(parts: &mut Parts, random: &mut Rng) {
    match random.u32(0..12) {
        0..4 => {
            let (_, value) = random.choice(&mut parts.metadata).unwrap();
            *value = changed(value, random);
        }
        4 => drop(parts.metadata.remove(random.usize(..parts.metadata.len()))),
        5 => {
            let twice = random.choice(&parts.metadata).unwrap().clone();
            parts.metadata.push(twice);
        }
        6 => {
            let key = random.choice([
                "llama.expert_count",
                "llama.expert_used_count",
                "llama.rope.scaling.type",
                "llama.rope.scaling.factor",
                "llama.attention.key_length",
                "llama.attention.value_length",
                "llama.attention.causal",
                "llama.nextn_predict_layers",
                "llama.attention.sliding_window",
                "llama.pooling_type",
                "general.alignment",
                "general.type",
                "split.count",
                "adapter.alora.invocation_tokens",
                "tokenizer.ggml.add_bos_token",
            ]);
            let value = anything(random);
            parts.metadata.push((key.unwrap().to_owned(), value));
        }
        7 if parts.tensors.len() > 1 => {
            drop(parts.tensors.remove(random.usize(..parts.tensors.len())));
        }
        8 => {
            let twice = random.choice(&parts.tensors).unwrap().clone();
            parts.tensors.push(twice);
        }
        9 => {
            let name = random.choice(WORDS).unwrap().to_owned();
            random.choice(&mut parts.tensors).unwrap().0 = name;
        }
        10 => {
            let (_, shape, values) = random.choice(&mut parts.tensors).unwrap();
            match random.u32(0..4) {
                0 => shape.reverse(),
                1 => *shape = vec![values.len() as u64],
                2 => shape.insert(0, 1),
                _ => {
                    let at = random.usize(..shape.len());
                    shape[at] = *random.choice(&NUMBERS).unwrap();
                    let n = shape.iter().fold(1_u64, |n, &size| n.saturating_mul(size));
                    values.resize(usize::try_from(n).unwrap().min(1 << 16), 0.5);
                }
            }
        }
        _ => {
            let (_, _, values) = random.choice(&mut parts.tensors).unwrap();
            let wild = *random.choice(&FLOATS).unwrap();
            let at = random.usize(..values.len());
            #[expect(
                clippy::cast_possible_truncation,
                reason = "too large is infinite, as wanted"
            )]
            values.iter_mut().skip(at).take(random.usize(1..100)).for_each(|it| *it = wild as f32);
        }
    }
}

/// The same kind with another value, or another kind.
fn changed(value: &Value, random: &mut Rng) -> Value {
    if random.u32(0..4) == 0 {
        return anything(random);
    }
    match value {
        Value::Unsigned(_) => Value::Unsigned(*random.choice(&NUMBERS).unwrap()),
        Value::Float(_) => Value::Float(*random.choice(&FLOATS).unwrap()),
        Value::String(_) => Value::String((*random.choice(&WORDS).unwrap()).to_owned()),
        Value::Array(entries) => {
            let mut entries = entries.clone();
            let at = random.usize(..entries.len());
            match random.u32(0..5) {
                0 => entries.truncate(at),
                1 => entries.push(entries[at].clone()),
                2 => entries = vec![entries[at].clone()],
                3 => entries.clear(),
                _ => {
                    let with = changed(&entries[at], random);
                    // An array has one type.
                    if std::mem::discriminant(&with) == std::mem::discriminant(&entries[at]) {
                        entries[at] = with;
                    }
                }
            }
            Value::Array(entries)
        }
        Value::Signed(_) => Value::Signed(random.i32(..).into()),
        Value::Bool(value) => Value::Bool(!value),
    }
}

fn anything(random: &mut Rng) -> Value {
    match random.u32(0..6) {
        0 => Value::Unsigned(*random.choice(&NUMBERS).unwrap()),
        1 => Value::Signed(random.i32(..).into()),
        2 => Value::Float(*random.choice(&FLOATS).unwrap()),
        3 => Value::Bool(random.bool()),
        4 => Value::String((*random.choice(&WORDS).unwrap()).to_owned()),
        _ => Value::Array((0..random.u64(0..5)).map(Value::Unsigned).collect()),
    }
}

fn damage(bytes: &mut Vec<u8>, random: &mut Rng) {
    // Where the names of the tensors begin and end. The vocabulary before them is long, and damage
    // to it shows little.
    let text = b"token_embd.weight";
    let header = bytes.windows(text.len()).position(|window| window == text).unwrap_or(200);
    let at = match random.u32(0..10) {
        0..4 => random.usize(..bytes.len().clamp(1, 800)),
        4..8 => (header + random.usize(..900)).min(bytes.len().saturating_sub(1)),
        _ => random.usize(..bytes.len().max(1)),
    };
    let mut put = |with: &[u8]| {
        for (byte, with) in bytes.iter_mut().skip(at).zip(with) {
            *byte = *with;
        }
    };
    match random.u32(0..10) {
        0..4 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.u32(0..8);
            }
        }
        4 => put(&[random.u8(..)]),
        5 => put(&random.choice(&NUMBERS).unwrap().to_le_bytes()),
        6 => put(&random.u32(0..44).to_le_bytes()),
        7 => {
            let huge = [u64::MAX, 1 << 63, 1 << 40, 1 << 31, 1 << 20];
            put(&random.choice(huge).unwrap().to_le_bytes());
        }
        8 => bytes.truncate(at),
        _ => {
            let gone = random.usize(1..64).min(bytes.len() - at);
            bytes.drain(at..at + gone);
        }
    }
}
