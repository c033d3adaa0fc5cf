//! The smallest vocabulary that a model can have: every byte, one merge, and a few control tokens.

use files::gguf::{Value, gpt2_letter};

/// Tokens that are text: the bytes, numbered by their value, and `he`.
pub const N_TEXT: u64 = 257;

/// Its metadata. The control tokens are numbered from [`N_TEXT`]; the first begins a text, the second
/// ends it.
pub fn bytes(control: &[&str]) -> Vec<(String, Value)> {
    let text = |text: &str| Value::String(text.to_owned());
    let mut tokens: Vec<Value> =
        (0..=255).map(|byte| text(&gpt2_letter(byte).to_string())).collect();
    tokens.push(text("he"));
    tokens.extend(control.iter().map(|name| text(name)));
    let n = tokens.len();
    // llama.cpp's numbers for plain text and for control tokens.
    let kinds = (0..n as u64).map(|id| Value::Signed(if id < N_TEXT { 1 } else { 3 })).collect();
    let entries = [
        ("model", text("gpt2")),
        ("pre", text("gpt-2")),
        ("tokens", Value::Array(tokens)),
        ("token_type", Value::Array(kinds)),
        ("scores", Value::Array(vec![Value::Float(0.0); n])),
        ("merges", Value::Array(vec![text("h e")])),
        ("bos_token_id", Value::Unsigned(N_TEXT)),
        ("eos_token_id", Value::Unsigned(N_TEXT + 1)),
    ];
    entries.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).into()
}
