//! What differs between the architectures that the forward pass computes, as data. The values are
//! llama.cpp's, because a model is trained as it is served. No tensors and nothing of one file here.
//! Used by `shape` and `model`.

/// Which two elements of a head a rotary embedding rotates together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum RopeStyle {
    /// 2 i and 2 i + 1 (ggml's NORM): the rows of q and k are permuted for it in the file.
    Interleaved,
    /// i and i + `n_rot` / 2 (ggml's NEOX, `rotate_half` in transformers).
    Halves,
}

/// The activation function of the gated feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    Silu,
    /// GELU in its tanh form.
    Gelu,
}

/// Sliding-window attention of some layers: llama.cpp's defaults where a file does not say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct WindowDefaults {
    /// Tokens that a token attends to, itself included. `None`: a file without the key has no window.
    pub size: Option<i64>,
    /// One layer of so many attends to everything.
    pub pattern: u64,
    /// Rotary base of the layers with a window. `None`: that of the others.
    pub rope_base: Option<f64>,
    /// Rotary scaling applies to the layers with a window too.
    pub is_rope_scaled: bool,
}

/// The tensor that divides the rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum RopeFactors {
    None,
    /// `rope_freqs`, when the file has it.
    Frequencies,
    /// `rope_factors_long` when the server's context is longer than the one that the model was
    /// trained with first, else `rope_factors_short`.
    ByContext,
}

/// What one architecture has that others lack. The forward pass has what is common to all: RMS norms
/// before both halves of a block, a gated feed-forward layer, rotary embedding, grouped-query
/// attention, and biases of q, k and v when the file has them.
#[derive(Debug, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact about the architecture, not a state"
)]
pub(crate) struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    pub rope_style: RopeStyle,
    pub activation: Activation,
    /// `ffn_up` is gate and up concatenated, and there is no `ffn_gate`.
    pub has_fused_gate: bool,
    /// Each head of queries and keys is normalised.
    pub has_qk_norm: bool,
    /// The output of each half of a block is normalised before it is added.
    pub has_post_norms: bool,
    /// The embedding is multiplied by the square root of its width.
    pub scales_embedding: bool,
    /// Layers of a block that may have a bias, besides q, k and v.
    pub biases: &'static [&'static str],
    /// The output head may have a bias.
    pub head_bias: bool,
    /// The output head may be untied: a matrix of its own. Else it is always the embedding.
    pub untied_head: bool,
    pub rope_factors: RopeFactors,
    pub window: Option<WindowDefaults>,
    /// Soft cap (by tanh) of the attention scores, where the file does not say.
    pub attention_softcap: Option<f64>,
    /// Soft cap of the logits, where the file does not say. 0: there is one only if the file says so.
    pub logit_softcap: Option<f64>,
    /// The model with so many layers scales its queries by (`n_embd` / `n_head`)^-0.5, all others by
    /// `head_dim`^-0.5.
    pub scaled_by_width_layers: Option<i64>,
}

const PLAIN: Architecture = Architecture {
    name: "",
    rope_style: RopeStyle::Halves,
    activation: Activation::Silu,
    has_fused_gate: false,
    has_qk_norm: false,
    has_post_norms: false,
    scales_embedding: false,
    biases: &[],
    head_bias: false,
    untied_head: true,
    rope_factors: RopeFactors::None,
    window: None,
    attention_softcap: None,
    logit_softcap: None,
    scaled_by_width_layers: None,
};

/// Llama 2 and 3, Mistral, `SmolLM`, `TinyLlama`.
pub(crate) static LLAMA: Architecture = Architecture {
    name: "llama",
    rope_style: RopeStyle::Interleaved,
    biases: &["attn_output", "ffn_gate", "ffn_up", "ffn_down"],
    rope_factors: RopeFactors::Frequencies,
    ..PLAIN
};

static QWEN2: Architecture = Architecture { name: "qwen2", head_bias: true, ..PLAIN };

static QWEN3: Architecture = Architecture { name: "qwen3", has_qk_norm: true, ..PLAIN };

static GEMMA2: Architecture = Architecture {
    name: "gemma2",
    activation: Activation::Gelu,
    has_post_norms: true,
    scales_embedding: true,
    untied_head: false,
    window: Some(WindowDefaults {
        size: Some(4096),
        pattern: 2,
        rope_base: None,
        is_rope_scaled: true,
    }),
    attention_softcap: Some(50.0),
    logit_softcap: Some(30.0),
    scaled_by_width_layers: Some(46),
    ..PLAIN
};

static GEMMA3: Architecture = Architecture {
    name: "gemma3",
    activation: Activation::Gelu,
    has_qk_norm: true,
    has_post_norms: true,
    scales_embedding: true,
    window: Some(WindowDefaults {
        size: None,
        pattern: 6,
        rope_base: Some(10000.0),
        is_rope_scaled: false,
    }),
    logit_softcap: Some(0.0),
    scaled_by_width_layers: Some(62),
    ..PLAIN
};

/// llama.cpp serves it without the sliding window that some of its files name, so there is none.
static PHI3: Architecture = Architecture {
    name: "phi3",
    has_fused_gate: true,
    rope_factors: RopeFactors::ByContext,
    ..PLAIN
};

/// All that can be trained.
pub(crate) static ALL: [&Architecture; 6] = [&LLAMA, &QWEN2, &QWEN3, &GEMMA2, &GEMMA3, &PHI3];
