//! The forward pass, in the GGUF's own layout, so that what is computed here is what llama.cpp
//! computes. One function for all architectures: what differs is data ([`crate::arch`]) or a tensor
//! that is there or not. Used by `sweep`, `pretrain` and `train`.
#![expect(
    clippy::many_single_char_names,
    reason = "x, h, q, k, v and the sizes B, H, T, d are the field's own names"
)]

use tch::{Device, Kind, Tensor};

use crate::arch::{Activation, Pairing, Rope, Shape};
use crate::batch::{Batch, Pack};
use crate::head;
use crate::lora::Lora;
use crate::weights::Weights;

/// Layers with the same input.
const QKV: [&str; 3] = ["attn_q", "attn_k", "attn_v"];
const GATED: [&str; 2] = ["ffn_gate", "ffn_up"];

/// A model and the adapter on it.
#[derive(Debug)]
pub(crate) struct Model {
    pub shape: Shape,
    pub weights: Weights,
    pub lora: Option<Lora>,
    pub device: Device,
    /// What matrices are multiplied in: f32 or bf16. All else is f32.
    pub compute: Kind,
}

/// Who sees whom in a batch, and how far the positions turn: the same for all layers of a kind.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    batch: &'a Batch,
    all: Place,
    /// Of the layers with a sliding window.
    local: Option<Place>,
}

#[derive(Debug)]
struct Place {
    /// Each `[N, 1, n_rot / 2]`.
    cos: Tensor,
    sin: Tensor,
    /// Of each pack, `[B, 1, T, T]`: 0 where row attends to column, else minus infinity.
    masks: Vec<Tensor>,
}

impl Model {
    /// Makes one matrix of those that share their input. For a frozen base: a gradient of one of
    /// them alone would be lost.
    pub(crate) fn stack_matrices(&mut self) {
        for layer in 0..self.shape.sizes.n_layer {
            let name = |part: &str| format!("blk.{layer}.{part}");
            if !self.shape.has_fused_qkv {
                self.weights.stack(&QKV.map(name));
            }
            if !self.shape.architecture.has_fused_gate {
                self.weights.stack(&GATED.map(name));
            }
        }
    }

    /// Log-probs of the batch's wanted tokens, `[M]`, without gradients.
    pub(crate) fn logprobs(&self, batch: &Batch) -> Tensor {
        let _guard = tch::no_grad_guard();
        let rows = self.predicting_rows(&self.hidden(batch), batch);
        head::logprobs(self, &rows, &batch.targets)
    }

    /// Logits of the rows that predict a wanted token, `[M, vocabulary]`, all at once.
    pub(crate) fn logits(&self, batch: &Batch) -> Tensor {
        let rows = self.predicting_rows(&self.hidden(batch), batch);
        head::logits(self, &rows, 0, self.shape.sizes.n_vocab)
    }

    /// What leaves the last block, `[N, d]`.
    fn hidden(&self, batch: &Batch) -> Tensor {
        let places = self.places(batch);
        let layers = 0..self.shape.sizes.n_layer;
        layers.fold(self.embed(batch), |x, layer| self.block(layer, &x, &places))
    }

    /// Normalised rows that predict a wanted token, `[M, d]`: only they reach the output head.
    pub(crate) fn predicting_rows(&self, hidden: &Tensor, batch: &Batch) -> Tensor {
        self.norm("output_norm", &hidden.index_select(0, &batch.sources))
    }

    /// `[N, d]`.
    pub(crate) fn embed(&self, batch: &Batch) -> Tensor {
        let x = self.weights.look_up("token_embd", &batch.ids);
        match self.shape.embedding_scale {
            Some(scale) => x * scale,
            None => x,
        }
    }

    /// One block of the model, `[N, d]` to the same.
    pub(crate) fn block(&self, layer: i64, x: &Tensor, places: &Places<'_>) -> Tensor {
        let (shape, sizes) = (&self.shape, self.shape.sizes);
        let [q_width, kv_width] = shape.widths();
        let name = |part: &str| format!("blk.{layer}.{part}");
        let place = places.local.as_ref().filter(|_| shape.is_local(layer)).unwrap_or(&places.all);

        let h = self.norm(&name("attn_norm"), x);
        let qkv = if shape.has_fused_qkv {
            let qkv = self.linear(&name("attn_qkv"), &h);
            qkv.split_with_sizes([q_width, kv_width, kv_width], -1)
        } else {
            self.linears(&QKV.map(name), &h).into()
        };
        let mut q = self.heads(&qkv[0], sizes.n_head);
        let mut k = self.heads(&qkv[1], sizes.n_head_kv);
        let v = self.heads(&qkv[2], sizes.n_head_kv);
        if shape.architecture.has_qk_norm {
            q = self.norm(&name("attn_q_norm"), &q);
            k = self.norm(&name("attn_k_norm"), &k);
        }
        let (q, k) = (self.rope(&q, place), self.rope(&k, place));
        let attended = self.attend_all(&q, &k, &v, (places.batch, &place.masks)); // [N, H hd]
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
            let [gate, up] = self.linears(&GATED.map(name), &h);
            (gate, up)
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

    /// Queries, keys and values by head, `[N, H, hd]`, to the mean values, `[N, H hd]`: through the
    /// places of the packs and back.
    fn attend_all(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        (batch, masks): (&Batch, &[Tensor]),
    ) -> Tensor {
        let [q_width, _] = self.shape.widths();
        let (k, v) = (self.repeat_kv(k), self.repeat_kv(v));
        let attended = batch.packs.iter().zip(masks).map(|(pack, mask)| {
            let [n, t] = pack.size;
            let by_head = |x: &Tensor| {
                let placed = match batch.places {
                    Some(_) => x.index_select(0, &pack.tokens),
                    None => x.shallow_clone(),
                };
                placed.view([n, t, -1, self.shape.sizes.head_dim]).transpose(1, 2) // [B, H, T, hd]
            };
            let attended = self.attend(&by_head(q), &by_head(&k), &by_head(&v), mask);
            attended.transpose(1, 2).reshape([-1, q_width])
        });
        let attended = Tensor::cat(&attended.collect::<Vec<_>>(), 0);
        match &batch.places {
            Some(places) => attended.index_select(0, places),
            None => attended,
        }
    }

    /// `[B, H, T, hd]` to the same.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Tensor {
        let scale = self.shape.attention_scale;
        let Some(cap) = self.shape.attention_cap else {
            let (mask, causal, gqa) = (Some(mask), false, false);
            return Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale, gqa);
        };
        let scores = q.matmul(&k.transpose(-2, -1)).to_kind(Kind::Float); // [B, H, T, T]
        let scores = (scores * (scale / cap)).tanh() * cap + mask;
        scores.softmax(-1, Kind::Float).to_kind(v.kind()).matmul(v)
    }

    /// x W^T, plus bias and the adapter's share, in the kind that is computed in.
    fn linear(&self, name: &str, x: &Tensor) -> Tensor {
        let [y] = self.linears(&[name.to_owned()], x);
        y
    }

    /// Layers with the same input x `[N, in]`: one product for all of them.
    fn linears<const L: usize>(&self, names: &[String; L], x: &Tensor) -> [Tensor; L] {
        let x = x.to_kind(self.compute);
        let (matrix, sizes) = self.weights.stacked(names, self.compute);
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

    /// `[N, H hd]` to `[N, H, hd]`.
    fn heads(&self, x: &Tensor, n_head: i64) -> Tensor {
        x.reshape([-1, n_head, self.shape.sizes.head_dim])
    }

    /// Repeats each key or value head for the query heads that share it.
    fn repeat_kv(&self, x: &Tensor) -> Tensor {
        match self.shape.sizes.n_head / x.size()[1] {
            1 => x.shallow_clone(),
            group => x.repeat_interleave_self_int(group, 1, None),
        }
    }

    /// Turns the pairs of the first `n_rot` elements of each head, `[N, H, hd]`.
    fn rope(&self, x: &Tensor, place: &Place) -> Tensor {
        let [n, h, d] = x.size()[..] else { unreachable!("heads() makes three dimensions") };
        let n_rot = self.shape.rope.n_rot;
        let turned = x.narrow(-1, 0, n_rot).to_kind(Kind::Float);
        let (first, second) = match self.shape.architecture.pairing {
            Pairing::Neighbours => {
                let pairs = turned.reshape([n, h, n_rot / 2, 2]);
                (pairs.select(-1, 0), pairs.select(-1, 1))
            }
            Pairing::Halves => {
                (turned.narrow(-1, 0, n_rot / 2), turned.narrow(-1, n_rot / 2, n_rot / 2))
            }
        };
        let (cos, sin) = (&place.cos, &place.sin);
        let turned = [&first * cos - &second * sin, &first * sin + &second * cos];
        let turned = match self.shape.architecture.pairing {
            Pairing::Neighbours => Tensor::stack(&turned, -1).reshape([n, h, n_rot]),
            Pairing::Halves => Tensor::cat(&turned, -1),
        };
        let turned = turned.to_kind(self.compute);
        if n_rot == d {
            return turned;
        }
        Tensor::cat(&[turned, x.narrow(-1, n_rot, d - n_rot).to_kind(self.compute)], -1)
    }

    /// What all layers of a batch share.
    pub(crate) fn places<'a>(&self, batch: &'a Batch) -> Places<'a> {
        let place = |rope: &Rope, window: Option<i64>| {
            let pairs = Tensor::arange(rope.n_rot / 2, (Kind::Float, self.device));
            let mut turns =
                (pairs * (-2.0 / rope.n_rot as f64 * rope.base.ln())).exp() * rope.scale;
            if let Some(factors) = rope.factors {
                turns /= self.weights.get(factors);
            }
            let positions = batch.positions.to_kind(Kind::Float).view([-1, 1, 1]);
            let angles = positions * turns; // [N, 1, n_rot / 2]
            let masks = batch.packs.iter().map(|pack| self.mask(batch, pack, window)).collect();
            Place { cos: angles.cos() * rope.magnitude, sin: angles.sin() * rope.magnitude, masks }
        };
        let local = self.shape.local.as_ref();
        Places {
            batch,
            all: place(&self.shape.rope, None),
            local: local.map(|local| place(&local.rope, Some(local.window))),
        }
    }

    /// A pack's mask as numbers to add.
    fn mask(&self, batch: &Batch, pack: &Pack, window: Option<i64>) -> Tensor {
        let near = window.map(|window| {
            let positions = batch.positions.index_select(0, &pack.tokens).view(pack.size);
            let distance = positions.unsqueeze(-1) - positions.unsqueeze(-2); // [B, T, T]
            pack.mask.logical_and(&distance.lt(window))
        });
        let hidden = near.as_ref().unwrap_or(&pack.mask).logical_not().unsqueeze(1);
        let zeros = Tensor::zeros(hidden.size(), (self.compute, self.device));
        zeros.masked_fill(&hidden, f64::NEG_INFINITY)
    }
}
