//! The metadata of a byte-level BPE vocabulary as llama.cpp reads it (`llama_vocab::load`). Used by who
//! writes a model with a vocabulary of its own.

use super::{Value, Writer};

/// Tokens, merges and chat template of a model.
#[derive(Clone, Debug)]
pub struct Vocabulary<'a> {
    /// By id.
    pub tokens: &'a [String],
    /// By id, as `llama_token_type`.
    pub kinds: Vec<i64>,
    /// Pairs with a space between them, the first to be merged first.
    pub merges: Vec<String>,
    /// The token that ends a turn, and a text.
    pub end: u64,
    /// The token that fills a batch, if there is one.
    pub padding: Option<u64>,
    /// In Jinja.
    pub chat_template: &'a str,
}

impl Vocabulary<'_> {
    /// Adds it to a file.
    pub fn write(&self, writer: &mut Writer) {
        let text = |text: &str| Value::String(text.to_owned());
        let texts = |all: &[String]| Value::Array(all.iter().map(|it| text(it)).collect());
        let kinds = self.kinds.iter().copied().map(Value::Signed).collect();
        writer.metadata("tokenizer.ggml.model", text("gpt2"));
        writer.metadata("tokenizer.ggml.pre", text("gpt-2"));
        writer.metadata("tokenizer.ggml.tokens", texts(self.tokens));
        writer.metadata("tokenizer.ggml.token_type", Value::Array(kinds));
        writer.metadata("tokenizer.ggml.merges", texts(&self.merges));
        writer.metadata("tokenizer.ggml.eos_token_id", Value::Unsigned(self.end));
        writer.metadata("tokenizer.ggml.eot_token_id", Value::Unsigned(self.end));
        if let Some(padding) = self.padding {
            writer.metadata("tokenizer.ggml.padding_token_id", Value::Unsigned(padding));
        }
        writer.metadata("tokenizer.ggml.add_bos_token", Value::Bool(false));
        writer.metadata("tokenizer.chat_template", text(self.chat_template));
    }
}
