//! Rotary position embedding (Su et al., arXiv 2104.09864), as llama.cpp computes it: with scaling, with
//! factors for each frequency, and of a part of a head where the model says so. Used by `model`.

use tch::{Kind, Tensor};

use crate::arch::{Rope, RopeStyle};

/// Cosine and sine of the angle of each token and pair of elements, each `[N, 1, n_rot / 2]`.
#[derive(Debug)]
pub(crate) struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Angles {
    /// `factors` divides the frequencies, `[n_rot / 2]`; positions `[N]`.
    pub(crate) fn new(rope: &Rope, factors: Option<Tensor>, positions: &Tensor) -> Self {
        let pairs = Tensor::arange(rope.n_rot / 2, (Kind::Float, positions.device()));
        let mut frequencies =
            (pairs * (-2.0 / rope.n_rot as f64 * rope.base.ln())).exp() * rope.scale;
        if let Some(factors) = factors {
            frequencies /= factors;
        }
        let angles = positions.to_kind(Kind::Float).view([-1, 1, 1]) * frequencies;
        Self { cos: angles.cos() * rope.attn_factor, sin: angles.sin() * rope.attn_factor }
    }

    /// Rotates the first `n_rot` elements of each head, `[N, heads, D]` to the same.
    pub(crate) fn rotate(&self, x: &Tensor, style: RopeStyle, compute: Kind) -> Tensor {
        let [n, heads, d] = x.size()[..] else { unreachable!("x has heads") };
        let half = self.cos.size()[2];
        let n_rot = 2 * half;
        let part = x.narrow(-1, 0, n_rot).to_kind(Kind::Float);
        let (first, second) = match style {
            RopeStyle::Interleaved => {
                let pairs = part.reshape([n, heads, half, 2]);
                (pairs.select(-1, 0), pairs.select(-1, 1))
            }
            RopeStyle::Halves => (part.narrow(-1, 0, half), part.narrow(-1, half, half)),
        };
        let (cos, sin) = (&self.cos, &self.sin);
        let rotated = [&first * cos - &second * sin, &first * sin + &second * cos];
        let rotated = match style {
            RopeStyle::Interleaved => Tensor::stack(&rotated, -1).reshape([n, heads, n_rot]),
            RopeStyle::Halves => Tensor::cat(&rotated, -1),
        };
        let rotated = rotated.to_kind(compute);
        if n_rot == d {
            return rotated;
        }
        Tensor::cat(&[rotated, x.narrow(-1, n_rot, d - n_rot).to_kind(compute)], -1)
    }
}
