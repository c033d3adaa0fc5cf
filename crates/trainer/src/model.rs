//! The forward pass, from top to bottom: token ids -> embedding -> blocks of attention and
//! feed-forward -> final norm -> output head -> log-probs. It keeps the tensor layout of the GGUF
//! file, because the log-probs have to be those that llama.cpp computes. All architectures share
//! this code: what differs is a value of [`crate::arch`] or a tensor that a file has or lacks.
//! Used by `backward`, `pretrain`, `train` and `survey`.
//!
//! Shapes: N tokens of a batch, M targets, d `n_embd`, H query heads, K key and value heads, D
//! `head_dim`, F `n_ff`, V vocabulary; in a bucket B sequences, Q queries and T keys of the longest.
#![expect(
    clippy::many_single_char_names,
    reason = "x, h, q, k, v and the sizes n and t are the field's own names"
)]

use std::path::Path;

use anyhow::Context as _;
use protocol::BaseKind;
use tch::{Device, Kind, Tensor};

use crate::arch::{Activation, Rope, Shape};
use crate::base::BaseFile;
use crate::batch::{Batch, Bucket};
use crate::cross_entropy::{self, Scored, TargetLogits, VocabSlice};
use crate::lora::Lora;
use crate::rope::Angles;
use crate::weights::{self, Weights};

/// Projections that have the same input.
const QKV: [&str; 3] = ["attn_q", "attn_k", "attn_v"];
const GATE_UP: [&str; 2] = ["ffn_gate", "ffn_up"];

/// A model and the adapter on it.
#[derive(Debug)]
pub(crate) struct Model {
    pub shape: Shape,
    pub weights: Weights,
    pub lora: Option<Lora>,
    pub device: Device,
    /// What matrices are multiplied in: f32 or bf16. Everything else is f32.
    pub compute: Kind,
}

/// What the attention of all layers of a batch needs besides q, k and v.
#[derive(Debug)]
pub(crate) struct AttentionInputs<'a> {
    batch: &'a Batch,
    full: Positions,
    /// For the layers with a sliding window.
    windowed: Option<Positions>,
}

#[derive(Debug)]
struct Positions {
    angles: Angles,
    /// Of each bucket, `[B, 1, Q, T]`: 0 where the query attends to the key, else minus infinity.
    masks: Vec<Tensor>,
}

impl Model {
    /// A model that computes in f32 and has no adapter yet.
    pub(crate) fn new(shape: Shape, weights: Weights, device: Device) -> Self {
        Self { shape, weights, lora: None, device, compute: Kind::Float }
    }

    /// Loads a base for a server that has a context of `served_context` tokens.
    pub(crate) fn load(
        path: &Path,
        kind: BaseKind,
        served_context: u32,
        device: Device,
    ) -> anyhow::Result<Self> {
        let file = BaseFile::open(path)?;
        let load = |shape: Shape| {
            let weights = Weights::load(&file, &shape, kind, device)?;
            Ok(Self::new(shape, weights, device))
        };
        weights::check(&file, served_context)
            .and_then(load)
            .with_context(|| path.display().to_string())
    }

    /// Concatenates the projections that share their input, so that each block multiplies once for
    /// all of them. Only for a frozen base: autograd would lose the gradient of a single one.
    pub(crate) fn fuse_projections(&mut self) {
        for layer in 0..self.shape.sizes.n_layer {
            if !self.shape.has_fused_qkv {
                self.weights.fuse(&QKV.map(|part| in_block(layer, part)));
            }
            if !self.shape.architecture.has_fused_gate {
                self.weights.fuse(&GATE_UP.map(|part| in_block(layer, part)));
            }
        }
    }

    /// Log-probs of the targets, `[M]`, without gradients.
    pub(crate) fn logprobs(&self, batch: &Batch) -> Tensor {
        let _guard = tch::no_grad_guard();
        let rows = self.final_rows(&self.blocks(batch), batch);
        let target = self.target_logits(&rows, &batch.targets);
        let rows = rows.to_kind(self.compute);
        let slice = |from, n| self.logit_slice(&rows, from, n);
        cross_entropy::logprobs(&target, &batch.targets, self.shape.sizes.n_vocab, slice)
    }

    /// Logits of the rows that predict a target, `[M, V]`, all at once and with gradients.
    pub(crate) fn logits(&self, batch: &Batch) -> Tensor {
        let rows = self.final_rows(&self.blocks(batch), batch);
        self.logit_slice(&rows, 0, self.shape.sizes.n_vocab).logits
    }

    /// The output of the last block, `[N, d]`.
    fn blocks(&self, batch: &Batch) -> Tensor {
        let inputs = self.attention_inputs(batch);
        let layers = 0..self.shape.sizes.n_layer;
        layers.fold(self.embed(batch), |x, layer| self.block(layer, &x, &inputs))
    }

    /// Token ids `[N]` to `[N, d]`.
    pub(crate) fn embed(&self, batch: &Batch) -> Tensor {
        let x = self.weights.embedding("token_embd", &batch.ids);
        match self.shape.embedding_scale {
            Some(scale) => x * scale,
            None => x,
        }
    }

    /// One block, `[N, d]` to the same: x + attention(norm(x)), then x + `feed_forward(norm(x))`.
    pub(crate) fn block(&self, layer: i64, x: &Tensor, inputs: &AttentionInputs<'_>) -> Tensor {
        let y = self.attention(layer, &self.norm(&in_block(layer, "attn_norm"), x), inputs);
        let x = x + self.post_norm(layer, "post_attention_norm", y);
        let y = self.feed_forward(layer, &self.norm(&in_block(layer, "ffn_norm"), &x));
        x + self.post_norm(layer, "post_ffw_norm", y)
    }

    /// Grouped-query attention with rotary positions, `[N, d]` to the same.
    fn attention(&self, layer: i64, h: &Tensor, inputs: &AttentionInputs<'_>) -> Tensor {
        let (shape, sizes) = (&self.shape, self.shape.sizes);
        let [q_width, kv_width] = shape.widths(); // H D, K D
        let of_layer = inputs.windowed.as_ref().filter(|_| shape.has_window(layer));
        let of_layer = of_layer.unwrap_or(&inputs.full);

        let qkv = if shape.has_fused_qkv {
            let qkv = self.linear(&in_block(layer, "attn_qkv"), h); // [N, H D + 2 K D]
            qkv.split_with_sizes([q_width, kv_width, kv_width], -1)
        } else {
            self.linears(&QKV.map(|part| in_block(layer, part)), h).into()
        };
        let mut q = self.split_heads(&qkv[0], sizes.n_head); // [N, H, D]
        let mut k = self.split_heads(&qkv[1], sizes.n_head_kv); // [N, K, D]
        let v = self.split_heads(&qkv[2], sizes.n_head_kv); // [N, K, D]
        if shape.architecture.has_qk_norm {
            q = self.norm(&in_block(layer, "attn_q_norm"), &q);
            k = self.norm(&in_block(layer, "attn_k_norm"), &k);
        }
        let style = shape.architecture.rope_style;
        let [q, k] = [q, k].map(|x| of_layer.angles.rotate(&x, style, self.compute));
        let y = self.attend(&q, &k, &v, inputs.batch, &of_layer.masks); // [N, H D]
        self.linear(&in_block(layer, "attn_output"), &y)
    }

    /// `activation(gate) * up`, projected down: `[N, d]` to `[N, F]` to `[N, d]`.
    fn feed_forward(&self, layer: i64, h: &Tensor) -> Tensor {
        let architecture = self.shape.architecture;
        let (gate, up) = if architecture.has_fused_gate {
            let both = self.linear(&in_block(layer, "ffn_up"), h); // [N, 2 F]
            let n_ff = self.shape.sizes.n_ff;
            (both.narrow(-1, 0, n_ff), both.narrow(-1, n_ff, n_ff))
        } else {
            let [gate, up] = self.linears(&GATE_UP.map(|part| in_block(layer, part)), h);
            (gate, up)
        };
        let gate = match architecture.activation {
            Activation::Silu => gate.silu(),
            Activation::Gelu => gate.gelu("tanh"),
        };
        self.linear(&in_block(layer, "ffn_down"), &(gate * up))
    }

    /// Attention of every token to the path that it ends, queries `[N, H, D]`, keys and values `[N, K, D]`
    /// to `[N, H D]`: the sequences are padded bucket by bucket, and what was computed of padding is
    /// dropped.
    fn attend(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        batch: &Batch,
        masks: &[Tensor],
    ) -> Tensor {
        let sizes = self.shape.sizes;
        let attended = batch.buckets.iter().zip(masks).map(|(bucket, mask)| {
            let [n, n_queries, n_keys] = bucket.size;
            let padded = |x: &Tensor, tokens: &Tensor, n_tokens: i64| {
                let x = self.repeat_kv(&x.index_select(0, tokens)); // [B Q or B T, H, D]
                x.view([n, n_tokens, sizes.n_head, sizes.head_dim]).transpose(1, 2)
            };
            let q = padded(q, &bucket.queries, n_queries); // [B, H, Q, D]
            let k = padded(k, &bucket.keys, n_keys); // [B, H, T, D]
            let v = padded(v, &bucket.keys, n_keys);
            let y = self.softmax_attention(&q, &k, &v, mask);
            y.transpose(1, 2).reshape([-1, sizes.n_head * sizes.head_dim]) // [B Q, H D]
        });
        Tensor::cat(&attended.collect::<Vec<_>>(), 0).index_select(0, &batch.unpad)
    }

    /// softmax(q k^T scale + mask) v: `[B, H, Q, D]` and twice `[B, H, T, D]` to `[B, H, Q, D]`.
    fn softmax_attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Tensor {
        let scale = self.shape.attention_scale;
        let Some(cap) = self.shape.attention_softcap else {
            let (mask, causal, gqa) = (Some(mask), false, false);
            return Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale, gqa);
        };
        let scores = q.matmul(&k.transpose(-2, -1)).to_kind(Kind::Float); // [B, H, Q, T]
        let scores = (scores * (scale / cap)).tanh() * cap + mask;
        scores.softmax(-1, Kind::Float).to_kind(v.kind()).matmul(v)
    }

    /// W x + b, plus the adapter's share, in the kind that is computed in: `[N, in]` to `[N, out]`.
    fn linear(&self, name: &str, x: &Tensor) -> Tensor {
        let [y] = self.linears(&[name.to_owned()], x);
        y
    }

    /// Layers that have the input x `[N, in]` in common, as one product.
    fn linears<const L: usize>(&self, names: &[String; L], x: &Tensor) -> [Tensor; L] {
        let x = x.to_kind(self.compute);
        let (matrix, sizes) = self.weights.fused(names, self.compute); // [out of all, in]
        let y = x.matmul(&matrix.transpose(0, 1)).split_with_sizes(sizes, -1);
        let biased =
            names.iter().zip(y).map(|(name, y)| match self.weights.find(&format!("{name}.bias")) {
                Some(bias) => y + bias.to_kind(self.compute),
                None => y,
            });
        let outputs: Vec<Tensor> = biased.collect();
        let outputs = match &self.lora {
            Some(lora) => lora.add(names, &x, outputs),
            None => outputs,
        };
        outputs.try_into().expect("a layer for each name")
    }

    /// RMS norm over the last dimension, in f32.
    fn norm(&self, name: &str, x: &Tensor) -> Tensor {
        let x = x.to_kind(Kind::Float);
        let scale = (x.square().mean_dim(-1, true, Kind::Float) + self.shape.rms_eps).rsqrt();
        x * scale * self.weights.get(name)
    }

    /// The norm behind a half of a block, where the architecture has one.
    fn post_norm(&self, layer: i64, name: &str, y: Tensor) -> Tensor {
        if !self.shape.architecture.has_post_norms {
            return y;
        }
        self.norm(&in_block(layer, name), &y)
    }

    /// `[N, heads D]` to `[N, heads, D]`.
    fn split_heads(&self, x: &Tensor, n_heads: i64) -> Tensor {
        x.reshape([-1, n_heads, self.shape.sizes.head_dim])
    }

    /// Repeats each key or value head for the query heads that share it: `[.., K, D]` to `[.., H, D]`.
    fn repeat_kv(&self, x: &Tensor) -> Tensor {
        match self.shape.sizes.n_head / x.size()[1] {
            1 => x.shallow_clone(),
            group => x.repeat_interleave_self_int(group, 1, None),
        }
    }

    /// The angles and masks of a batch. They are computed once for all layers.
    pub(crate) fn attention_inputs<'a>(&self, batch: &'a Batch) -> AttentionInputs<'a> {
        let window = self.shape.window.as_ref();
        AttentionInputs {
            batch,
            full: self.positions(batch, &self.shape.rope, None),
            windowed: window.map(|it| self.positions(batch, &it.rope, Some(it.size))),
        }
    }

    fn positions(&self, batch: &Batch, rope: &Rope, window: Option<i64>) -> Positions {
        let factors = rope.factors.map(|name| self.weights.get(name));
        let masks = batch.buckets.iter().map(|bucket| self.mask(bucket, window)).collect();
        Positions { angles: Angles::new(rope, factors, &batch.positions), masks }
    }

    /// A bucket's mask as numbers to add to the scores, `[B, 1, Q, T]`. A key's place in its path is its
    /// position.
    fn mask(&self, bucket: &Bucket, window: Option<i64>) -> Tensor {
        let [_, _, n_keys] = bucket.size;
        let keys = Tensor::arange(n_keys, (Kind::Int64, self.device));
        let distance = bucket.positions.unsqueeze(-1) - keys; // [B, Q, T]
        let is_seen = match window {
            Some(window) => distance.ge(0).logical_and(&distance.lt(window)),
            None => distance.ge(0),
        };
        let hidden = is_seen.logical_not().unsqueeze(1);
        let zeros = Tensor::zeros(hidden.size(), (self.compute, self.device));
        zeros.masked_fill(&hidden, f64::NEG_INFINITY)
    }

    /// The rows that predict a target, through the final norm: `[N, d]` to `[M, d]`. The head needs
    /// no others.
    pub(crate) fn final_rows(&self, x: &Tensor, batch: &Batch) -> Tensor {
        self.norm("output_norm", &x.index_select(0, &batch.sources))
    }

    /// Log-probs of the targets `[M]` of rows `[M, d]`, with their gradients by the rows.
    pub(crate) fn score(&self, rows: &Tensor, targets: &Tensor) -> Scored {
        let _guard = tch::no_grad_guard();
        let target = self.target_logits(rows, targets);
        let rows = rows.to_kind(self.compute);
        let slice = |from, n| self.logit_slice(&rows, from, n);
        cross_entropy::score(target, targets, self.shape.sizes.n_vocab, slice)
    }

    /// The output head for `n` tokens of the vocabulary: rows `[M, d]` to logits `[M, n]`, in f32.
    fn logit_slice(&self, rows: &Tensor, from: i64, n: i64) -> VocabSlice {
        let matrix = self.weights.rows(self.head_matrix(), from, n, self.compute); // [n, d]
        let bias = self.weights.find("output.bias").map(|bias| bias.narrow(0, from, n));
        let (logits, slope) = self.softcap(product(rows, &matrix), bias);
        VocabSlice { matrix, logits, slope }
    }

    /// The output head for the targets alone. It is computed in f32 whatever the other logits are
    /// computed in, so that rounding cannot make a likely token likelier than certain.
    fn target_logits(&self, rows: &Tensor, targets: &Tensor) -> TargetLogits {
        let vectors = self.weights.embedding(self.head_matrix(), targets); // [M, d]
        let dot = (rows * &vectors).sum_dim_intlist(-1, false, Kind::Float);
        let bias = self.weights.find("output.bias").map(|bias| bias.index_select(0, targets));
        let (logits, slope) = self.softcap(dot, bias);
        let gradients = match slope {
            Some(slope) => vectors * slope.unsqueeze(1),
            None => vectors,
        };
        TargetLogits { logits, gradients }
    }

    /// Logits with bias and soft cap, and the slope of the cap where the model has one.
    fn softcap(&self, logits: Tensor, bias: Option<Tensor>) -> (Tensor, Option<Tensor>) {
        let logits = match bias {
            Some(bias) => logits + bias,
            None => logits,
        };
        match self.shape.logit_softcap {
            Some(cap) => {
                let bent = (logits / cap).tanh();
                let slope = bent.square() * -1.0 + 1.0;
                (bent * cap, Some(slope))
            }
            None => (logits, None),
        }
    }

    /// The head's own matrix, or the embedding's where they are tied.
    fn head_matrix(&self) -> &'static str {
        if self.weights.has("output") { "output" } else { "token_embd" }
    }
}

/// Name of a block's tensor.
fn in_block(layer: i64, part: &str) -> String {
    format!("blk.{layer}.{part}")
}

/// rows W^T in f32. A GPU adds bf16 products up in f32 and can give that; a CPU rounds it first.
fn product(rows: &Tensor, matrix: &Tensor) -> Tensor {
    let transposed = matrix.transpose(0, 1);
    let rows = rows.to_kind(matrix.kind());
    if matrix.kind() == Kind::BFloat16 && matrix.device().is_cuda() {
        return rows.mm_dtype(&transposed, Kind::Float);
    }
    rows.matmul(&transposed).to_kind(Kind::Float)
}
