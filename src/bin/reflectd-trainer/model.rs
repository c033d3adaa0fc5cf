//! The forward pass, in the GGUF's own layout (q and k rows stay permuted, rotary embedding turns interleaved
//! pairs), so that what is computed here is what llama.cpp computes. Architecture: llama.
//! Used by `pretrain` and `train`.
#![expect(
    clippy::many_single_char_names,
    reason = "x, h, q, k, v and the sizes B, H, T, d are the field's own names"
)]

use std::collections::HashMap;

use tch::{Device, Kind, Tensor};

use crate::batch::Batch;
use crate::lora::Lora;

/// The numbers of a llama-architecture model, out of its GGUF metadata.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    pub n_layer: i64,
    pub n_embd: i64,
    pub n_head: i64,
    pub n_head_kv: i64,
    pub head_dim: i64,
    pub n_ff: i64,
    pub n_vocab: i64,
    pub n_ctx: i64,
    pub rope_base: f64,
    pub rms_eps: f64,
}

/// The linear layers of a block; each can carry an adapter.
pub(crate) const LINEARS: [&str; 7] =
    ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

impl Shape {
    /// `[out, in]` of one linear layer of a block.
    pub(crate) fn linear(&self, name: &str) -> [i64; 2] {
        let (q, kv) = (self.n_head * self.head_dim, self.n_head_kv * self.head_dim);
        match name {
            "attn_q" => [q, self.n_embd],
            "attn_k" | "attn_v" => [kv, self.n_embd],
            "attn_output" => [self.n_embd, q],
            "ffn_down" => [self.n_embd, self.n_ff],
            _ => [self.n_ff, self.n_embd],
        }
    }
}

/// Weights by GGUF tensor name without `.weight`, and the adapter on them.
#[derive(Debug)]
pub(crate) struct Model {
    pub shape: Shape,
    pub weights: HashMap<String, Tensor>,
    pub lora: Option<Lora>,
    pub device: Device,
}

impl Model {
    /// Log-probs of the batch's wanted tokens, `[N]`. Only rows that predict one reach the output head.
    pub(crate) fn logprobs(&self, batch: &Batch) -> Tensor {
        self.logits(batch)
            .log_softmax(-1, Kind::Float)
            .gather(1, &batch.targets.unsqueeze(1), false)
            .squeeze_dim(1)
    }

    /// Logits of the rows that predict a wanted token, `[N, vocabulary]`.
    pub(crate) fn logits(&self, batch: &Batch) -> Tensor {
        let hidden =
            self.hidden(batch).view([-1, self.shape.n_embd]).index_select(0, &batch.sources);
        let head = self.weights.get("output").unwrap_or_else(|| self.weight("token_embd"));
        hidden.matmul(&head.transpose(0, 1))
    }

    #[expect(
        clippy::assign_op_pattern,
        reason = "autograd needs the old x; += changes it in place"
    )]
    fn hidden(&self, batch: &Batch) -> Tensor {
        let shape = &self.shape;
        let (cos, sin) = self.rope_table(&batch.positions);
        let mut x = Tensor::embedding(self.weight("token_embd"), &batch.ids, -1, false, false); // [B, T, d]
        for layer in 0..shape.n_layer {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let h = self.norm(&name("attn_norm"), &x);
            let q = rope(&self.heads(&name("attn_q"), &h, shape.n_head), &cos, &sin);
            let k = rope(&self.heads(&name("attn_k"), &h, shape.n_head_kv), &cos, &sin);
            let v = self.heads(&name("attn_v"), &h, shape.n_head_kv);
            let attended = Tensor::scaled_dot_product_attention(
                &q,
                &self.repeat_kv(&k),
                &self.repeat_kv(&v),
                Some(&batch.mask),
                0.0,
                false,
                None,
                false,
            ); // [B, H, T, hd]
            let (b, t) = (x.size()[0], x.size()[1]);
            let attended = attended.transpose(1, 2).reshape([b, t, shape.n_head * shape.head_dim]);
            x = x + self.linear(&name("attn_output"), &attended);
            let h = self.norm(&name("ffn_norm"), &x);
            let gated =
                self.linear(&name("ffn_gate"), &h).silu() * self.linear(&name("ffn_up"), &h);
            x = x + self.linear(&name("ffn_down"), &gated);
        }
        self.norm("output_norm", &x)
    }

    fn weight(&self, name: &str) -> &Tensor {
        // `weights::load` has checked that every tensor of the shape is there.
        &self.weights[name]
    }

    /// x W^T, plus the adapter's share.
    fn linear(&self, name: &str, x: &Tensor) -> Tensor {
        let y = x.matmul(&self.weight(name).transpose(0, 1));
        match self.lora.as_ref().and_then(|lora| lora.delta(name, x)) {
            Some(delta) => y + delta,
            None => y,
        }
    }

    /// RMS norm over the last dimension.
    fn norm(&self, name: &str, x: &Tensor) -> Tensor {
        let scale = (x.square().mean_dim(-1, true, Kind::Float) + self.shape.rms_eps).rsqrt();
        x * scale * self.weight(name)
    }

    /// A projection split into heads: `[B, T, d]` to `[B, H, T, hd]`.
    fn heads(&self, name: &str, x: &Tensor, n_head: i64) -> Tensor {
        let (b, t) = (x.size()[0], x.size()[1]);
        self.linear(name, x).view([b, t, n_head, self.shape.head_dim]).transpose(1, 2)
    }

    /// Repeats each key or value head for the query heads that share it.
    fn repeat_kv(&self, x: &Tensor) -> Tensor {
        match self.shape.n_head / self.shape.n_head_kv {
            1 => x.shallow_clone(),
            group => x.repeat_interleave_self_int(group, 1, None),
        }
    }

    /// Cosines and sines for `[B, T]` positions, each `[B, 1, T, hd / 2]`.
    fn rope_table(&self, positions: &Tensor) -> (Tensor, Tensor) {
        let half = self.shape.head_dim / 2;
        let exponents =
            Tensor::arange(half, (Kind::Float, self.device)) * (-2.0 / self.shape.head_dim as f64);
        let frequencies = (exponents * self.shape.rope_base.ln()).exp();
        let angles = positions.to_kind(Kind::Float).unsqueeze(1).unsqueeze(-1) * frequencies;
        (angles.cos(), angles.sin())
    }
}

/// Rotates interleaved pairs (ggml's NORM rope).
fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    let [b, h, t, d] = x.size()[..] else { unreachable!("heads() makes four dimensions") };
    let pairs = x.reshape([b, h, t, d / 2, 2]);
    let (even, odd) = (pairs.select(-1, 0), pairs.select(-1, 1));
    let turned = [&even * cos - &odd * sin, &even * sin + &odd * cos];
    Tensor::stack(&turned, -1).reshape([b, h, t, d])
}
