//! The forward pass, in the GGUF's own layout, so that what is computed here is what llama.cpp
//! computes. One function for all architectures: what differs is data ([`crate::arch`]) or a tensor
//! that is there or not. Used by `sweep`, `pretrain` and `train`.
#![expect(
    clippy::many_single_char_names,
    reason = "x, h, q, k, v and the sizes B, H, T, d are the field's own names"
)]

use tch::{Device, Kind, Tensor};

use crate::arch::{Activation, Pairing, Rope, Shape};
use crate::batch::Batch;
use crate::head;
use crate::lora::Lora;
use crate::weights::Weights;

/// A model and the adapter on it.
#[derive(Debug)]
pub(crate) struct Model {
    pub shape: Shape,
    pub weights: Weights,
    pub lora: Option<Lora>,
    pub device: Device,
}

/// Who sees whom in a batch, and how far the positions turn: the same for all layers of a kind.
#[derive(Debug)]
pub(crate) struct Places {
    all: Place,
    /// Of the layers with a sliding window.
    local: Option<Place>,
}

#[derive(Debug)]
struct Place {
    /// Each `[B, 1, T, n_rot / 2]`.
    cos: Tensor,
    sin: Tensor,
    /// `[B, 1, T, T]`, true where row attends to column.
    mask: Tensor,
}

impl Model {
    /// Log-probs of the batch's wanted tokens, `[N]`, without gradients.
    pub(crate) fn logprobs(&self, batch: &Batch) -> Tensor {
        let _guard = tch::no_grad_guard();
        let rows = self.predicting_rows(&self.hidden(batch), batch);
        head::logprobs(self, &rows, &batch.targets).logprobs
    }

    /// Logits of the rows that predict a wanted token, `[N, vocabulary]`, all at once.
    pub(crate) fn logits(&self, batch: &Batch) -> Tensor {
        let rows = self.predicting_rows(&self.hidden(batch), batch);
        head::logits(self, &rows, 0, self.shape.sizes.n_vocab)
    }

    /// What leaves the last block, `[B, T, d]`.
    fn hidden(&self, batch: &Batch) -> Tensor {
        let places = self.places(batch);
        let layers = 0..self.shape.sizes.n_layer;
        layers.fold(self.embed(batch), |x, layer| self.block(layer, &x, &places))
    }

    /// Normalised rows that predict a wanted token, `[N, d]`: only they reach the output head.
    pub(crate) fn predicting_rows(&self, hidden: &Tensor, batch: &Batch) -> Tensor {
        let rows = hidden.view([-1, self.shape.sizes.n_embd]).index_select(0, &batch.sources);
        self.norm("output_norm", &rows)
    }

    /// `[B, T, d]`.
    pub(crate) fn embed(&self, batch: &Batch) -> Tensor {
        let x = self.weights.look_up("token_embd", &batch.ids);
        match self.shape.embedding_scale {
            Some(scale) => x * scale,
            None => x,
        }
    }

    /// One block of the model, `[B, T, d]` to the same.
    pub(crate) fn block(&self, layer: i64, x: &Tensor, places: &Places) -> Tensor {
        let (shape, sizes) = (&self.shape, self.shape.sizes);
        let [q_width, kv_width] = shape.widths();
        let name = |part: &str| format!("blk.{layer}.{part}");
        let place = places.local.as_ref().filter(|_| shape.is_local(layer)).unwrap_or(&places.all);

        let h = self.norm(&name("attn_norm"), x);
        let qkv = if shape.has_fused_qkv {
            let qkv = self.linear(&name("attn_qkv"), &h);
            qkv.split_with_sizes([q_width, kv_width, kv_width], -1)
        } else {
            ["attn_q", "attn_k", "attn_v"].map(|part| self.linear(&name(part), &h)).into()
        };
        let mut q = self.heads(&qkv[0], sizes.n_head);
        let mut k = self.heads(&qkv[1], sizes.n_head_kv);
        let v = self.heads(&qkv[2], sizes.n_head_kv);
        if shape.architecture.has_qk_norm {
            q = self.norm(&name("attn_q_norm"), &q);
            k = self.norm(&name("attn_k_norm"), &k);
        }
        let attended = self.attend(&self.rope(&q, place), &self.rope(&k, place), &v, &place.mask);
        let (b, t) = (x.size()[0], x.size()[1]);
        let attended = attended.transpose(1, 2).reshape([b, t, q_width]); // [B, T, H hd]
        let mut y = self.linear(&name("attn_output"), &attended);
        if shape.architecture.has_post_norms {
            y = self.norm(&name("post_attention_norm"), &y);
        }
        let x = x + y;

        let h = self.norm(&name("ffn_norm"), &x);
        let (gate, up) = if shape.architecture.has_fused_gate {
            let both = self.linear(&name("ffn_up"), &h);
            (both.narrow(-1, 0, sizes.n_ff), both.narrow(-1, sizes.n_ff, sizes.n_ff))
        } else {
            (self.linear(&name("ffn_gate"), &h), self.linear(&name("ffn_up"), &h))
        };
        let gate = match shape.architecture.activation {
            Activation::Silu => gate.silu(),
            Activation::Gelu => gate.gelu("tanh"),
        };
        let mut y = self.linear(&name("ffn_down"), &(gate * up));
        if shape.architecture.has_post_norms {
            y = self.norm(&name("post_ffw_norm"), &y);
        }
        x + y
    }

    /// Queries, keys and values by head, `[B, H, T, hd]`, to the mean values, `[B, H, T, hd]`.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Tensor {
        let (k, v) = (self.repeat_kv(k), self.repeat_kv(v));
        let scale = self.shape.attention_scale;
        let Some(cap) = self.shape.attention_cap else {
            return Tensor::scaled_dot_product_attention(
                q,
                &k,
                &v,
                Some(mask),
                0.0,
                false,
                scale,
                false,
            );
        };
        let scores = (q.matmul(&k.transpose(-2, -1)) * (scale / cap)).tanh() * cap; // [B, H, T, T]
        let scores = scores.masked_fill(&mask.logical_not(), f64::NEG_INFINITY);
        scores.softmax(-1, Kind::Float).matmul(&v)
    }

    /// x W^T, plus bias and the adapter's share.
    fn linear(&self, name: &str, x: &Tensor) -> Tensor {
        let mut y = x.matmul(&self.weights.get(name).transpose(0, 1));
        if let Some(bias) = self.weights.find(&format!("{name}.bias")) {
            y += bias;
        }
        match self.lora.as_ref().and_then(|lora| lora.delta(name, x)) {
            Some(delta) => y + delta,
            None => y,
        }
    }

    /// RMS norm over the last dimension.
    fn norm(&self, name: &str, x: &Tensor) -> Tensor {
        let scale = (x.square().mean_dim(-1, true, Kind::Float) + self.shape.rms_eps).rsqrt();
        x * scale * self.weights.get(name)
    }

    /// `[B, T, H hd]` to `[B, H, T, hd]`.
    fn heads(&self, x: &Tensor, n_head: i64) -> Tensor {
        let (b, t) = (x.size()[0], x.size()[1]);
        x.reshape([b, t, n_head, self.shape.sizes.head_dim]).transpose(1, 2)
    }

    /// Repeats each key or value head for the query heads that share it.
    fn repeat_kv(&self, x: &Tensor) -> Tensor {
        match self.shape.sizes.n_head / self.shape.sizes.n_head_kv {
            1 => x.shallow_clone(),
            group => x.repeat_interleave_self_int(group, 1, None),
        }
    }

    /// Turns the pairs of the first `n_rot` elements of each head.
    fn rope(&self, x: &Tensor, place: &Place) -> Tensor {
        let [b, h, t, d] = x.size()[..] else { unreachable!("heads() makes four dimensions") };
        let n_rot = self.shape.rope.n_rot;
        let turned = x.narrow(-1, 0, n_rot);
        let (first, second) = match self.shape.architecture.pairing {
            Pairing::Neighbours => {
                let pairs = turned.reshape([b, h, t, n_rot / 2, 2]);
                (pairs.select(-1, 0), pairs.select(-1, 1))
            }
            Pairing::Halves => {
                (turned.narrow(-1, 0, n_rot / 2), turned.narrow(-1, n_rot / 2, n_rot / 2))
            }
        };
        let (cos, sin) = (&place.cos, &place.sin);
        let turned = [&first * cos - &second * sin, &first * sin + &second * cos];
        let turned = match self.shape.architecture.pairing {
            Pairing::Neighbours => Tensor::stack(&turned, -1).reshape([b, h, t, n_rot]),
            Pairing::Halves => Tensor::cat(&turned, -1),
        };
        if n_rot == d { turned } else { Tensor::cat(&[turned, x.narrow(-1, n_rot, d - n_rot)], -1) }
    }

    /// What all layers of a batch share.
    pub(crate) fn places(&self, batch: &Batch) -> Places {
        let place = |rope: &Rope, mask: Tensor| {
            let pairs = Tensor::arange(rope.n_rot / 2, (Kind::Float, self.device));
            let mut turns =
                (pairs * (-2.0 / rope.n_rot as f64 * rope.base.ln())).exp() * rope.scale;
            if let Some(factors) = rope.factors {
                turns /= self.weights.get(factors);
            }
            let positions = batch.positions.to_kind(Kind::Float).unsqueeze(1).unsqueeze(-1);
            let angles = positions * turns; // [B, 1, T, n_rot / 2]
            Place { cos: angles.cos() * rope.magnitude, sin: angles.sin() * rope.magnitude, mask }
        };
        let local = self.shape.local.as_ref().map(|local| {
            let positions = batch.positions.unsqueeze(1); // [B, 1, T]
            let distance = positions.unsqueeze(-1) - positions.unsqueeze(-2);
            place(&local.rope, batch.mask.logical_and(&distance.lt(local.window)))
        });
        Places { all: place(&self.shape.rope, batch.mask.shallow_clone()), local }
    }
}
