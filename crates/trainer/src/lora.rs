//! The adapter: for each linear layer W `[out, in]` a pair A `[r, in]`, B `[out, r]`;
//! y = W x + (alpha / r) B A x (Hu et al., arXiv 2106.09685). B starts at zero, so the policy of step 0
//! is the base. Used by `model`, `export`, `train` and `survey`.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::arch::Shape;

/// One adapter over all linear layers, in f32.
#[derive(Debug)]
pub(crate) struct Lora {
    /// (A, B) by GGUF tensor name without `.weight`, in the order of the adapter file.
    pub pairs: BTreeMap<String, (Tensor, Tensor)>,
    pub rank: usize,
    pub alpha: f64,
}

impl Lora {
    /// Kaiming-uniform A, zero B, drawn from libtorch's seeded generator.
    pub(crate) fn new(shape: &Shape, rank: usize, alpha: f64, device: Device) -> Self {
        let r = i64::try_from(rank).expect("a rank is small");
        let mut pairs = BTreeMap::new();
        for layer in 0..shape.sizes.n_layer {
            for (name, [n_out, n_in]) in shape.linears() {
                let bound = 1.0 / (n_in as f64).sqrt();
                let a = Tensor::empty([r, n_in], (Kind::Float, device)).uniform_(-bound, bound);
                let b = Tensor::zeros([n_out, r], (Kind::Float, device));
                let pair = (a.set_requires_grad(true), b.set_requires_grad(true));
                pairs.insert(format!("blk.{layer}.{name}"), pair);
            }
        }
        Self { pairs, rank, alpha }
    }
    /// Adds B A x to the outputs `[N, out]` of layers that have the input x `[N, in]` in common, in the
    /// kind of x. The parameters stay f32.
    pub(crate) fn add(&self, names: &[String], x: &Tensor, outputs: Vec<Tensor>) -> Vec<Tensor> {
        let pairs: Vec<_> = names.iter().map(|name| &self.pairs[name]).collect();
        let a: Vec<&Tensor> = pairs.iter().map(|(a, _)| a).collect();
        let a = Tensor::cat(&a, 0).to_kind(x.kind()); // [layers r, in]
        let scale = self.alpha / self.rank as f64;
        let ax = x.matmul(&a.transpose(0, 1)) * scale; // [N, layers r]
        let ax = ax.split(i64::try_from(self.rank).expect("a rank is small"), 1);
        let add = |((output, ax), (_, b)): ((Tensor, Tensor), &&(Tensor, Tensor))| {
            output.addmm(&ax, &b.to_kind(x.kind()).transpose(0, 1))
        };
        outputs.into_iter().zip(ax).zip(&pairs).map(add).collect()
    }
    /// All tensors, in a fixed order.
    pub(crate) fn parameters(&self) -> Vec<Tensor> {
        self.pairs.values().flat_map(|(a, b)| [a.shallow_clone(), b.shallow_clone()]).collect()
    }
}
