//! What the engine is asked and what it answers, as plain data: tokens, generations, sampling, parts
//! of rendered prompts, and how an engine is set up; and what an engine needs of a model ([`backend`]).
//! It must not know llama.cpp, so that configuration, store, prompts and tests compile without it.

pub mod backend;
pub mod ranges;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A token id of the served model's vocabulary.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Token(pub i32);

/// The weights that answer: 0 is the base model.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(transparent)]
pub struct Generation(pub u32);

impl Generation {
    /// The base model without adapter.
    pub const BASE: Self = Self(0);
}

impl std::fmt::Display for Generation {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Sampling parameters. What each may be stands in [`ranges`]; the engine refuses what is out of range.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// 0 always takes the likeliest token.
    pub temperature: f32,
    /// Nucleus mass.
    pub top_p: f32,
    /// Most likely tokens kept; 0 keeps all.
    pub top_k: u32,
    /// Least probability relative to the most likely token.
    pub min_p: f32,
    /// Most new tokens.
    pub max_tokens: u32,
    /// `None`: a fresh one, which the reply names.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0, min_p: 0.0, max_tokens: 512, seed: None }
    }
}

/// Why a continuation ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// End token, or a stop string.
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
}

/// A piece of a rendered prompt.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TextPart {
    /// The text.
    pub text: String,
    /// From the template: control tokens in it count as such. Otherwise they stay plain text.
    pub control: bool,
}

/// Text to tokens and back. Immutable, so it may be used from any thread.
pub trait Vocabulary: Send + Sync + std::fmt::Debug {
    /// Adds the begin token when the model wants one and the template has not put it there.
    fn tokenize(&self, parts: &[TextPart]) -> Vec<Token>;
    /// The bytes of a token; control tokens have none. Unknown ids give none.
    fn piece(&self, token: Token) -> Vec<u8>;
    /// Whether the token ends an answer.
    fn is_end(&self, token: Token) -> bool;
}

/// How the engine is set up. Every number is checked by `config`.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// The GGUF.
    pub model: PathBuf,
    /// A chat template in the place of the model's own.
    pub chat_template: Option<String>,
    /// KV cells shared by all sequences.
    pub context_tokens: u32,
    /// Sequences at once; of llama.cpp's 256 one is for copies of cells.
    pub max_sequences: u32,
    /// Tokens a step at most.
    pub batch_tokens: u32,
    /// CPU threads; `None`: physical cores.
    pub threads: Option<u32>,
    /// CPU threads for steps of more than one token; `None`: as `threads`.
    pub batch_threads: Option<u32>,
    /// Layers on the GPU; `None`: as many as fit.
    pub gpu_layers: Option<u32>,
    /// Whether attention is computed in one kernel.
    pub flash_attention: FlashAttention,
    /// How the KV cache stores its numbers.
    pub kv_cache: KvCache,
    /// Whether an answer depends on its request and seed alone, never on what else runs.
    pub deterministic: bool,
    /// Whether a judgement depends on the judge and on what it is asked alone: levels are read in a second
    /// context on the same weights, one after the other, where memory has room for one.
    pub deterministic_judge: bool,
    /// Requests that wait for the thread; more is refused as overload.
    pub queue: usize,
}

impl EngineConfig {
    /// A small context on one thread, without a GPU and without a context for judgements: where a program
    /// or a test sets an engine up by itself.
    pub fn small(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            chat_template: None,
            context_tokens: 512,
            max_sequences: 8,
            batch_tokens: 64,
            threads: Some(1),
            batch_threads: None,
            gpu_layers: Some(0),
            flash_attention: FlashAttention::Auto,
            kv_cache: KvCache::F16,
            deterministic: false,
            deterministic_judge: false,
            queue: 8,
        }
    }
}

/// Whether attention is computed in one kernel.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FlashAttention {
    /// Where the model allows it; not on the CPU with an f32 KV cache.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// How the KV cache stores its numbers.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KvCache {
    /// Half the memory of `f32`; rounds log-probs by about 1e-3.
    #[default]
    F16,
    /// As the trainer computes.
    F32,
    /// Half the memory of `f16`; needs flash attention.
    Q8_0,
    /// A quarter of the memory of `f16`; needs flash attention.
    Q4_0,
}

impl KvCache {
    /// (numbers, bytes) of a block.
    pub fn block(self) -> (u64, u64) {
        match self {
            Self::F16 => (1, 2),
            Self::F32 => (1, 4),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
        }
    }

    /// Whether llama.cpp computes with it in flash attention alone.
    pub fn is_quantized(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4_0)
    }
}

/// Facts about the served model.
#[derive(Clone, Debug, Serialize)]
pub struct ModelInfo {
    /// `general.name`, or the file's stem.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the file.
    pub sha256: String,
    /// `general.architecture`.
    pub architecture: String,
    /// Parameters.
    pub n_parameters: u64,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Tokens in the vocabulary.
    pub n_vocab: usize,
    /// Most tokens in one sequence: the smaller of the trained context and the KV pool.
    pub max_sequence: usize,
    /// Jinja source from the file.
    pub chat_template: Option<String>,
    /// Text of the begin and end tokens, as chat templates want them.
    pub bos: String,
    /// See `bos`.
    pub eos: String,
    /// The end-of-turn token that ends an answer.
    pub end_of_turn: Token,
    /// Which llama.cpp backend and kernels are in use.
    pub system: String,
}

/// Why the engine did not do it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// The queue is full; the caller may try again after this time.
    #[error("the engine's queue is full")]
    Overloaded {
        /// An estimate.
        retry_after: Duration,
    },
    /// Prompt and answer do not fit.
    #[error("{needed} tokens are needed but a sequence holds {limit}")]
    TooLong {
        /// Tokens of the request.
        needed: usize,
        /// Tokens that fit.
        limit: usize,
    },
    /// A number of the request is out of its range.
    #[error("{0}")]
    Invalid(String),
    /// The adapter of this generation is not loaded.
    #[error("generation {0} is not loaded")]
    NotLoaded(Generation),
    /// The model or the adapter cannot be loaded.
    #[error("load {path}: {reason}")]
    Load {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// llama.cpp cannot compute on this machine as it was built: why, and what to do.
    #[error("{0}")]
    Kernels(String),
    /// llama.cpp refused a step.
    #[error("the model failed: {0}")]
    Failed(String),
    /// The engine thread has ended.
    #[error("the engine has stopped")]
    Stopped,
}
