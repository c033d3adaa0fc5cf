//! What differs between the architectures that the forward pass computes, as data. The facts are
//! llama.cpp's: a model is trained as it is served. No tensors and no numbers of one file here;
//! those are in [`shape`]. Used by `model`, `weights` and `export`.

mod shape;

pub(crate) use shape::{Rope, Shape, Sizes};

/// Which elements of a head the rotary embedding turns together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pairing {
    /// Neighbours, because the file has its q and k rows permuted for it (ggml's NORM).
    Neighbours,
    /// An element and the one half a head further (ggml's NEOX).
    Halves,
}

/// The function inside the gated feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    Silu,
    /// GELU in its tanh form.
    Gelu,
}

/// Layers that attend to the last tokens only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Window {
    /// Tokens, where the file does not say; without it such a file has no window.
    pub size: Option<i64>,
    /// Every so many layers one sees everything, where the file does not say.
    pub pattern: u64,
    /// Base of their rotary embedding, where the file does not say; `None`: that of the others.
    pub rope_base: Option<f64>,
    /// Their rotary embedding is stretched like that of the others.
    pub is_stretched: bool,
}

/// Tensors that divide the rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Factors {
    None,
    /// `rope_freqs`, when the file has it.
    Frequencies,
    /// `rope_factors_long` when the server's context is longer than what the model was first
    /// trained with, else `rope_factors_short`.
    ByContext,
}

/// One architecture. Everything that all have in common (RMS norms before both halves of a block,
/// a gated feed-forward layer, rotary embedding, grouped heads, biases of q, k and v when the file
/// has them) is in the forward pass.
#[derive(Debug, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact about the architecture, not a state"
)]
pub(crate) struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    pub pairing: Pairing,
    pub activation: Activation,
    /// `ffn_up` holds gate and up, one above the other, and there is no `ffn_gate`.
    pub has_fused_gate: bool,
    /// Queries and keys are normalised, a head at a time.
    pub has_qk_norm: bool,
    /// What a half of a block gives is normalised before it is added.
    pub has_post_norms: bool,
    /// The embedding is multiplied by the square root of its width.
    pub scales_embedding: bool,
    /// Layers of a block that may have a bias, besides q, k and v.
    pub biases: &'static [&'static str],
    /// The output head may have a bias.
    pub head_bias: bool,
    /// The output head may be a matrix of its own; else it is always the embedding.
    pub own_head: bool,
    pub factors: Factors,
    pub window: Option<Window>,
    /// Attention scores are capped by a tanh at this, where the file does not say.
    pub attention_cap: Option<f64>,
    /// Likewise the logits; 0: only where the file says so.
    pub final_cap: Option<f64>,
    /// A model with so many layers divides queries by the root of width / heads, all others by
    /// that of the size of a head.
    pub wide_query_layers: Option<i64>,
}

const PLAIN: Architecture = Architecture {
    name: "",
    pairing: Pairing::Halves,
    activation: Activation::Silu,
    has_fused_gate: false,
    has_qk_norm: false,
    has_post_norms: false,
    scales_embedding: false,
    biases: &[],
    head_bias: false,
    own_head: true,
    factors: Factors::None,
    window: None,
    attention_cap: None,
    final_cap: None,
    wide_query_layers: None,
};

/// Llama 2 and 3, Mistral, `SmolLM`, `TinyLlama`.
pub(crate) static LLAMA: Architecture = Architecture {
    name: "llama",
    pairing: Pairing::Neighbours,
    biases: &["attn_output", "ffn_gate", "ffn_up", "ffn_down"],
    factors: Factors::Frequencies,
    ..PLAIN
};

static QWEN2: Architecture = Architecture { name: "qwen2", head_bias: true, ..PLAIN };

static QWEN3: Architecture = Architecture { name: "qwen3", has_qk_norm: true, ..PLAIN };

static GEMMA2: Architecture = Architecture {
    name: "gemma2",
    activation: Activation::Gelu,
    has_post_norms: true,
    scales_embedding: true,
    own_head: false,
    window: Some(Window { size: Some(4096), pattern: 2, rope_base: None, is_stretched: true }),
    attention_cap: Some(50.0),
    final_cap: Some(30.0),
    wide_query_layers: Some(46),
    ..PLAIN
};

static GEMMA3: Architecture = Architecture {
    name: "gemma3",
    activation: Activation::Gelu,
    has_qk_norm: true,
    has_post_norms: true,
    scales_embedding: true,
    window: Some(Window { size: None, pattern: 6, rope_base: Some(10000.0), is_stretched: false }),
    final_cap: Some(0.0),
    wide_query_layers: Some(62),
    ..PLAIN
};

/// llama.cpp serves it without the sliding window that some of its files name, so there is none.
static PHI3: Architecture =
    Architecture { name: "phi3", has_fused_gate: true, factors: Factors::ByContext, ..PLAIN };

/// All that can be trained.
pub(crate) static ALL: [&Architecture; 6] = [&LLAMA, &QWEN2, &QWEN3, &GEMMA2, &GEMMA3, &PHI3];
