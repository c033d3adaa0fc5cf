//! Log-probs of target tokens, and their gradients, a slice of the vocabulary at a time: neither
//! all logits nor the whole decoded head are in memory at once. One pass with a running
//! log-sum-exp gives both (Milakov & Gimelshein, arXiv 1805.02867), because the head is frozen: the
//! gradient is that of the rows alone, and it is known as soon as the logits are. No model here:
//! whoever calls gives the logits. Used by `model`.
//!
//! With l the logits, t the target, o = ln of the sum over all other tokens of exp l:
//! log p(t) = -ln(1 + exp(o - `l_t`)), d log p(t) / d `l_t` = 1 - p(t), and for another token v
//! -(1 - p(t)) exp(`l_v` - o).

use tch::{Kind, Tensor};

/// Logits that are in memory at once.
const MAX_LOGITS: i64 = 1 << 21;
/// Fewest tokens of a slice of the vocabulary.
const MIN_SLICE: i64 = 1024;

/// The output head for some tokens of the vocabulary.
#[derive(Debug)]
pub(crate) struct VocabSlice {
    /// `[n, d]`.
    pub matrix: Tensor,
    /// `[M, n]`, in f32.
    pub logits: Tensor,
    /// `[M, n]`, d logit / d (W x), where it is not 1.
    pub slope: Option<Tensor>,
}

/// The output head for the target of each row.
#[derive(Debug)]
pub(crate) struct TargetLogits {
    /// `[M]`.
    pub logits: Tensor,
    /// `[M, d]`, of each logit by its row.
    pub gradients: Tensor,
}

/// Log-probs of targets.
#[derive(Debug)]
pub(crate) struct Scored {
    /// `[M]`.
    pub logprobs: Tensor,
    /// `[M, d]`, of each log-prob by its row.
    pub gradients: Tensor,
}

/// Log-prob of the target of each row, `[M]`. `slice` gives the head for `n` tokens after `from`.
pub(crate) fn logprobs(
    target: &TargetLogits,
    targets: &Tensor,
    n_vocab: i64,
    slice: impl Fn(i64, i64) -> VocabSlice,
) -> Tensor {
    let mut others = LogSumExp::new(target, false);
    others.add_all(targets, n_vocab, slice);
    -(others.value() - &target.logits).softplus()
}

/// The same with gradients.
pub(crate) fn score(
    target: TargetLogits,
    targets: &Tensor,
    n_vocab: i64,
    slice: impl Fn(i64, i64) -> VocabSlice,
) -> Scored {
    let mut others = LogSumExp::new(&target, true);
    others.add_all(targets, n_vocab, slice);
    let odds = others.value() - target.logits;
    let rest = odds.sigmoid().unsqueeze(1); // 1 - p(t)
    let mean = others.gradient.expect("gradients were asked for") / others.sum.unsqueeze(1);
    Scored { logprobs: -odds.softplus(), gradients: (target.gradients - mean) * rest }
}

/// Running ln of the sum of exp l over the tokens that are not the target.
struct LogSumExp {
    /// `[M]`, the largest logit so far; both sums are relative to it.
    largest: Tensor,
    /// `[M]`, sum of exp l.
    sum: Tensor,
    /// `[M, d]`, sum of exp l times the gradient of l.
    gradient: Option<Tensor>,
}

impl LogSumExp {
    fn new(target: &TargetLogits, with_gradients: bool) -> Self {
        let sum = target.logits.zeros_like();
        let largest = sum.full_like(f64::from(f32::MIN));
        Self { largest, sum, gradient: with_gradients.then(|| target.gradients.zeros_like()) }
    }

    fn add_all(&mut self, targets: &Tensor, n_vocab: i64, slice: impl Fn(i64, i64) -> VocabSlice) {
        let n_rows = targets.size()[0].max(1);
        let step = (MAX_LOGITS / n_rows).max(MIN_SLICE);
        for from in (0..n_vocab).step_by(usize::try_from(step).expect("a slice is small")) {
            let n = step.min(n_vocab - from);
            self.add(targets, from, n, slice(from, n));
        }
    }

    fn add(&mut self, targets: &Tensor, from: i64, n: i64, slice: VocabSlice) {
        let VocabSlice { matrix, mut logits, slope } = slice;
        // The target itself does not count: its logit becomes minus infinity.
        let is_inside = targets.ge(from).logical_and(&targets.lt(from + n));
        let index = (targets - from).clamp(0, n - 1).unsqueeze(1);
        let at_index = logits.gather(1, &index, false);
        let excluded = at_index.masked_fill(&is_inside.unsqueeze(1), f64::NEG_INFINITY);
        drop(logits.scatter_(1, &index, &excluded));
        let largest = self.largest.maximum(&logits.amax(-1, false));
        let rescale = (&self.largest - &largest).exp();
        logits -= largest.unsqueeze(1);
        drop(logits.exp_());
        self.sum = &self.sum * &rescale + logits.sum_dim_intlist(-1, false, Kind::Float);
        if let Some(gradient) = &mut self.gradient {
            if let Some(slope) = slope {
                logits *= slope;
            }
            *gradient *= rescale.unsqueeze(1);
            *gradient += logits.to_kind(matrix.kind()).matmul(&matrix);
        }
        self.largest = largest;
    }

    /// `[M]`.
    fn value(&self) -> Tensor {
        self.sum.log() + &self.largest
    }
}
