//! The metadata of a model that is made here: by the trainer, and for tests and benchmarks. The keys
//! are llama.cpp's. Used with [`Writer`].

use super::{Value, Writer};

/// How large a model is, and what its norms and rotations are computed with.
#[derive(Clone, Copy, Debug)]
pub struct Hyperparameters<'a> {
    /// `llama`, `qwen3` and so on; all other keys begin with it.
    pub architecture: &'a str,
    /// For people; empty: none.
    pub name: &'a str,
    /// Blocks of attention and feed-forward layer.
    pub blocks: u64,
    /// Tokens of a sequence at most.
    pub context: u64,
    /// Numbers of a hidden state.
    pub width: u64,
    /// Numbers between the feed-forward layer's matrices.
    pub feed_forward: u64,
    /// Heads of queries.
    pub heads: u64,
    /// Heads of keys and of values.
    pub kv_heads: u64,
    /// Numbers of a head that are rotated.
    pub rotated: u64,
    /// Tokens of the vocabulary.
    pub vocabulary: u64,
    /// Added to the mean of squares in a norm.
    pub rms_epsilon: f64,
    /// Base of the rotary frequencies.
    pub rope_base: f64,
}

impl Hyperparameters<'_> {
    /// Keys and values in an order that is always the same.
    pub fn metadata(&self) -> Vec<(String, Value)> {
        let text = |text: &str| Value::String(text.to_owned());
        let mut metadata = vec![("general.architecture".to_owned(), text(self.architecture))];
        if !self.name.is_empty() {
            metadata.push(("general.name".to_owned(), text(self.name)));
        }
        let counts = [
            ("block_count", self.blocks),
            ("context_length", self.context),
            ("embedding_length", self.width),
            ("feed_forward_length", self.feed_forward),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("rope.dimension_count", self.rotated),
            ("vocab_size", self.vocabulary),
        ];
        let numbers = [
            ("attention.layer_norm_rms_epsilon", self.rms_epsilon),
            ("rope.freq_base", self.rope_base),
        ];
        let counts = counts.map(|(key, count)| (key, Value::Unsigned(count)));
        let numbers = numbers.map(|(key, number)| (key, Value::Float(number)));
        let own = counts.into_iter().chain(numbers);
        metadata.extend(own.map(|(key, value)| (format!("{}.{key}", self.architecture), value)));
        metadata
    }

    /// Puts all of it into a file.
    pub fn write(&self, writer: &mut Writer) {
        for (key, value) in self.metadata() {
            writer.metadata(&key, value);
        }
    }
}
