//! The shape of one model, read from its GGUF metadata under the keys and with the defaults of
//! llama.cpp. What the forward pass does not compute is refused by name. Used by `weights`.

use anyhow::{Context as _, bail, ensure};
use files::gguf::{Gguf, Value};

use super::architecture::{self, ALL, Architecture, RopeFactors};
use crate::base::BaseFile;

/// llama.cpp's own bound (`LLAMA_MAX_LAYERS`).
const MAX_LAYERS: i64 = 512;

/// Sizes, under llama.cpp's names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sizes {
    pub n_layer: i64,
    pub n_embd: i64,
    pub n_head: i64,
    pub n_head_kv: i64,
    pub head_dim: i64,
    pub n_ff: i64,
    pub n_vocab: i64,
    pub n_ctx: i64,
}

/// A rotary embedding: pair i of a head at position p is rotated by the angle
/// p scale base^(-2 i / `n_rot`) / factors\[i\], and multiplied by `attn_factor`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    /// Elements of a head that are rotated.
    pub n_rot: i64,
    pub base: f64,
    pub scale: f64,
    pub attn_factor: f64,
    /// Name of the tensor with the factors.
    pub factors: Option<&'static str>,
}

/// Sliding-window attention.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Window {
    /// Tokens that a token attends to, itself included.
    pub size: i64,
    pub rope: Rope,
    /// For each layer whether it has the window.
    pub layers: Vec<bool>,
}

/// One model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    pub architecture: &'static Architecture,
    pub sizes: Sizes,
    pub rms_eps: f64,
    pub embedding_scale: Option<f64>,
    pub attention_scale: f64,
    pub attention_softcap: Option<f64>,
    pub logit_softcap: Option<f64>,
    pub rope: Rope,
    pub window: Option<Window>,
    /// `attn_qkv` is queries, keys and values concatenated.
    pub has_fused_qkv: bool,
}

impl Shape {
    /// Reads a file's metadata. `served_context` is the server's context in tokens.
    pub(crate) fn read(base: &BaseFile, served_context: u32) -> anyhow::Result<Self> {
        let file = base.header();
        let name = file.string("general.architecture").unwrap_or("");
        let Some(&architecture) = ALL.iter().find(|known| known.name == name) else {
            let known: Vec<&str> = ALL.iter().map(|known| known.name).collect();
            bail!("architecture {name:?} is not supported by this trainer ({})", known.join(", "));
        };
        let keys = Keys { file, base, architecture: name };
        keys.refuse_unknown_features()?;
        let sizes = sizes(&keys)?;
        let rope = rope(&keys, architecture, &sizes, served_context)?;
        let cap = |key: &str, default: Option<f64>| -> anyhow::Result<Option<f64>> {
            let Some(default) = default else { return Ok(None) };
            let cap = keys.float(key).unwrap_or(default);
            ensure!(cap.is_finite() && 0.0 <= cap, "{name}.{key} is {cap}");
            Ok((0.0 < cap).then_some(cap))
        };
        let query_size = if architecture.scaled_by_width_layers == Some(sizes.n_layer) {
            sizes.n_embd / sizes.n_head
        } else {
            sizes.head_dim
        };
        let rms_eps = keys
            .float("attention.layer_norm_rms_epsilon")
            .with_context(|| format!("{name}.attention.layer_norm_rms_epsilon is missing"))?;
        ensure!(rms_eps.is_finite() && 0.0 <= rms_eps, "the RMS epsilon is {rms_eps}");
        Ok(Self {
            architecture,
            sizes,
            rms_eps,
            embedding_scale: architecture.scales_embedding.then(|| (sizes.n_embd as f64).sqrt()),
            attention_scale: 1.0 / (query_size as f64).sqrt(),
            attention_softcap: cap("attn_logit_softcapping", architecture.attention_softcap)?,
            logit_softcap: cap("final_logit_softcapping", architecture.logit_softcap)?,
            window: window(&keys, architecture, &sizes, &rope)?,
            rope,
            has_fused_qkv: base.info("blk.0.attn_qkv.weight").is_some(),
        })
    }

    /// A llama without scaling, soft caps or a window.
    pub(crate) fn llama(sizes: Sizes, rms_eps: f64, rope_base: f64) -> Self {
        Self {
            architecture: &architecture::LLAMA,
            sizes,
            rms_eps,
            embedding_scale: None,
            attention_scale: 1.0 / (sizes.head_dim as f64).sqrt(),
            attention_softcap: None,
            logit_softcap: None,
            rope: Rope {
                n_rot: sizes.head_dim,
                base: rope_base,
                scale: 1.0,
                attn_factor: 1.0,
                factors: None,
            },
            window: None,
            has_fused_qkv: false,
        }
    }

    /// Name and `[out, in]` of the linear layers of a block. Each of them gets an adapter.
    pub(crate) fn linears(&self) -> Vec<(&'static str, [i64; 2])> {
        let Sizes { n_embd, n_ff, .. } = self.sizes;
        let [q, kv] = self.widths();
        let mut linears = if self.has_fused_qkv {
            vec![("attn_qkv", [q + 2 * kv, n_embd])]
        } else {
            vec![("attn_q", [q, n_embd]), ("attn_k", [kv, n_embd]), ("attn_v", [kv, n_embd])]
        };
        linears.push(("attn_output", [n_embd, q]));
        if self.architecture.has_fused_gate {
            linears.push(("ffn_up", [2 * n_ff, n_embd]));
        } else {
            linears.extend([("ffn_gate", [n_ff, n_embd]), ("ffn_up", [n_ff, n_embd])]);
        }
        linears.push(("ffn_down", [n_embd, n_ff]));
        linears
    }

    /// Name and length of the norms of a block.
    pub(crate) fn norms(&self) -> Vec<(&'static str, i64)> {
        let Sizes { n_embd, head_dim, .. } = self.sizes;
        let mut norms = vec![("attn_norm", n_embd), ("ffn_norm", n_embd)];
        if self.architecture.has_post_norms {
            norms.extend([("post_attention_norm", n_embd), ("post_ffw_norm", n_embd)]);
        }
        if self.architecture.has_qk_norm {
            norms.extend([("attn_q_norm", head_dim), ("attn_k_norm", head_dim)]);
        }
        norms
    }

    /// Name and length of the biases that a block may have.
    pub(crate) fn biases(&self) -> Vec<(&'static str, i64)> {
        let may_have = |name: &str| {
            matches!(name, "attn_q" | "attn_k" | "attn_v" | "attn_qkv")
                || self.architecture.biases.contains(&name)
        };
        let linears = self.linears().into_iter().filter(|(name, _)| may_have(name));
        linears.map(|(name, [n_out, _])| (name, n_out)).collect()
    }

    /// Width of all query heads together, and of all key heads.
    pub(crate) fn widths(&self) -> [i64; 2] {
        let Sizes { n_head, n_head_kv, head_dim, .. } = self.sizes;
        [n_head * head_dim, n_head_kv * head_dim]
    }

    /// Whether a layer has a sliding window.
    pub(crate) fn has_window(&self, layer: i64) -> bool {
        let index = usize::try_from(layer).unwrap_or(usize::MAX);
        self.window.as_ref().and_then(|window| window.layers.get(index)).copied().unwrap_or(false)
    }
}

/// The metadata of one architecture.
struct Keys<'a> {
    file: &'a Gguf,
    base: &'a BaseFile,
    architecture: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }
    fn value(&self, key: &str) -> Option<&Value> {
        self.file.metadata(&self.name(key))
    }
    fn float(&self, key: &str) -> Option<f64> {
        self.file.float(&self.name(key))
    }
    /// A count, bounded so that no product of a few of them overflows.
    fn count(&self, key: &str) -> anyhow::Result<Option<i64>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let count = self.file.unsigned(&self.name(key)).filter(|n| (1..=1 << 20).contains(n));
        let count = count.with_context(|| {
            let kind = if matches!(value, Value::Array(_)) {
                "differs by layer"
            } else {
                "is out of range"
            };
            format!("{} {kind}, which is not supported by this trainer", self.name(key))
        })?;
        Ok(Some(count.cast_signed()))
    }
    fn needed(&self, key: &str) -> anyhow::Result<i64> {
        self.count(key)?.with_context(|| format!("{} is missing", self.name(key)))
    }
    fn refuse_unknown_features(&self) -> anyhow::Result<()> {
        let present = |key: &str| match self.value(key) {
            None | Some(Value::Unsigned(0) | Value::Signed(0)) => false,
            Some(_) => true,
        };
        for (key, feature) in [
            ("expert_count", "a mixture of experts"),
            ("nextn_predict_layers", "a block that predicts several tokens"),
            ("attention.key_length_swa", "other heads in layers with a window"),
            ("attention.value_length_swa", "other heads in layers with a window"),
            ("rope.dimension_count_swa", "another rotary embedding in layers with a window"),
            ("rope.dimension_sections", "a rotary embedding in sections"),
        ] {
            ensure!(
                !present(key),
                "{feature} ({}) is not supported by this trainer",
                self.name(key)
            );
        }
        if let Some(Value::Bool(false)) = self.value("attention.causal") {
            bail!("attention to later tokens is not supported by this trainer");
        }
        Ok(())
    }
}

fn sizes(keys: &Keys<'_>) -> anyhow::Result<Sizes> {
    let (n_embd, n_head) = (keys.needed("embedding_length")?, keys.needed("attention.head_count")?);
    let n_head_kv = keys.count("attention.head_count_kv")?.unwrap_or(n_head);
    ensure!(n_head % n_head_kv == 0, "{n_head} heads do not share {n_head_kv} key heads evenly");
    let head_dim = keys.count("attention.key_length")?.unwrap_or(n_embd / n_head);
    let value_dim = keys.count("attention.value_length")?.unwrap_or(n_embd / n_head);
    ensure!(
        head_dim == value_dim && 0 < head_dim,
        "heads of {head_dim} for keys and {value_dim} for values are not supported by this trainer"
    );
    let embedding = keys.base.info("token_embd.weight").context("token_embd.weight is missing")?;
    let n_vocab = embedding.shape.get(1).copied().and_then(|n| i64::try_from(n).ok());
    let n_layer = keys.needed("block_count")?;
    ensure!(n_layer <= MAX_LAYERS, "{n_layer} blocks; the server takes {MAX_LAYERS} at most");
    Ok(Sizes {
        n_layer,
        n_embd,
        n_head,
        n_head_kv,
        head_dim,
        n_ff: keys.needed("feed_forward_length")?,
        n_vocab: n_vocab.context("token_embd.weight is no matrix")?,
        n_ctx: keys.needed("context_length")?,
    })
}

fn rope(
    keys: &Keys<'_>,
    architecture: &Architecture,
    sizes: &Sizes,
    served_context: u32,
) -> anyhow::Result<Rope> {
    let kind = match keys.value("rope.scaling.type") {
        None => "linear",
        Some(Value::String(kind)) => kind.as_str(),
        Some(_) => "of a strange type",
    };
    let is_known = match kind {
        "none" | "linear" => true,
        // Its factors are tensors: an architecture without them would be trained wrongly.
        "longrope" => architecture.rope_factors == RopeFactors::ByContext,
        _ => false,
    };
    ensure!(is_known, "rotary scaling {kind:?} is not supported by this trainer");
    for key in ["yarn_ext_factor", "yarn_attn_factor"].map(|key| format!("rope.scaling.{key}")) {
        ensure!(keys.value(&key).is_none(), "{} is not supported by this trainer", keys.name(&key));
    }
    let factor = keys.float("rope.scaling.factor").or_else(|| keys.float("rope.scale_linear"));
    let scale = match factor {
        Some(factor) if factor != 0.0 => 1.0 / factor,
        _ => 1.0,
    };
    ensure!(
        kind != "none" || (scale - 1.0).abs() < f64::EPSILON,
        "a rotary scaling factor for scaling \"none\" is not supported by this trainer"
    );
    let n_rot = keys.count("rope.dimension_count")?.unwrap_or(sizes.head_dim);
    ensure!(
        n_rot <= sizes.head_dim && n_rot % 2 == 0,
        "{n_rot} of {} rotary dimensions",
        sizes.head_dim
    );
    let original = keys.count("rope.scaling.original_context_length")?.unwrap_or(sizes.n_ctx);
    let candidate = match architecture.rope_factors {
        RopeFactors::None => None,
        RopeFactors::Frequencies => Some("rope_freqs"),
        RopeFactors::ByContext if original < i64::from(served_context) => Some("rope_factors_long"),
        RopeFactors::ByContext => Some("rope_factors_short"),
    };
    let exists = |name: &&str| keys.base.info(&format!("{name}.weight")).is_some();
    let rope = Rope {
        n_rot,
        base: keys.float("rope.freq_base").unwrap_or(10000.0),
        scale,
        attn_factor: keys.float("rope.scaling.attn_factor").unwrap_or(1.0),
        factors: candidate.filter(exists),
    };
    let numbers = [rope.base, rope.scale, rope.attn_factor];
    ensure!(numbers.iter().all(|n| n.is_finite() && 0.0 < *n), "the rotary embedding is {rope:?}");
    Ok(rope)
}

fn window(
    keys: &Keys<'_>,
    architecture: &Architecture,
    sizes: &Sizes,
    rope: &Rope,
) -> anyhow::Result<Option<Window>> {
    let Some(defaults) = architecture.window else { return Ok(None) };
    let is_absent = defaults.size.is_none()
        && matches!(keys.value("attention.sliding_window"), Some(Value::Unsigned(0)));
    let said = if is_absent { None } else { keys.count("attention.sliding_window")? };
    let Some(size) = said.or(defaults.size) else { return Ok(None) };
    let key = "attention.sliding_window_pattern";
    let layers: Vec<bool> = match keys.value(key) {
        Some(Value::Array(values)) => {
            let layers: Option<_> = values
                .iter()
                .map(|value| match value {
                    Value::Bool(has_window) => Some(*has_window),
                    Value::Unsigned(n) => Some(*n != 0),
                    Value::Signed(n) => Some(*n != 0),
                    _ => None,
                })
                .collect();
            layers.with_context(|| format!("{} is no list of layers", keys.name(key)))?
        }
        said => {
            let pattern = match said {
                None => defaults.pattern,
                Some(Value::Unsigned(pattern)) => *pattern,
                Some(_) => bail!("{} is no number", keys.name(key)),
            };
            let layers = 0..sizes.n_layer.cast_unsigned();
            layers.map(|layer| pattern == 0 || layer % pattern + 1 < pattern).collect()
        }
    };
    ensure!(
        layers.len() as u64 == sizes.n_layer.cast_unsigned(),
        "{} names {} of {} layers",
        keys.name(key),
        layers.len(),
        sizes.n_layer
    );
    let base = keys.float("rope.freq_base_swa").or(defaults.rope_base).unwrap_or(rope.base);
    ensure!(base.is_finite() && 0.0 < base, "the rotary base of layers with a window is {base}");
    let scale = if defaults.is_rope_scaled { rope.scale } else { 1.0 };
    Ok(Some(Window { size, rope: Rope { base, scale, ..rope.clone() }, layers }))
}
