//! The output head and the log-probs behind it, a slice of the vocabulary at a time: neither all
//! logits nor the whole decoded head are in memory at once. The head is frozen, so its gradient is
//! that of the rows alone, and the gradient of a row's log-prob is known as soon as its logits are:
//! both come out of one pass with a running normaliser (Milakov & Gimelshein, arXiv 1805.02867),
//! and the backward pass only multiplies. Used by `model` and `sweep`.
//!
//! With l the logits, t the target, o = ln of the sum over all others of exp l:
//! log p(t) = -ln(1 + exp(o - `l_t`)), d log p(t) / d `l_t` = 1 - p(t), and for another v
//! -(1 - p(t)) exp(`l_v` - o). The target's own logit is computed in f32 whatever the others are
//! computed in, so that rounding cannot make a likely token likelier than certain.

use tch::{Kind, Tensor};

use crate::model::Model;

/// Logits that are in memory at once.
const MAX_LOGITS: i64 = 1 << 21;
/// A slice of the vocabulary has at least so many tokens.
const MIN_SLICE: i64 = 1024;

/// Log-probs of wanted tokens.
#[derive(Debug)]
pub(crate) struct Scored {
    /// `[M]`.
    pub logprobs: Tensor,
    /// `[M, d]`, of each log-prob by its row.
    pub gradients: Tensor,
}

/// Logits of rows `[M, d]` for `n` tokens of the vocabulary, `[M, n]`, in f32.
pub(crate) fn logits(model: &Model, rows: &Tensor, from: i64, n: i64) -> Tensor {
    let matrix = model.weights.rows(matrix(model), from, n, model.compute);
    let bias = model.weights.find("output.bias").map(|bias| bias.narrow(0, from, n));
    let (logits, _) = capped(model, product(rows, &matrix), bias);
    logits
}

/// Log-prob of the target of each row, without gradients.
pub(crate) fn logprobs(model: &Model, rows: &Tensor, targets: &Tensor) -> Tensor {
    let _guard = tch::no_grad_guard();
    let (logit, _) = of_targets(model, rows, targets);
    let mut others = Others::new(rows, false);
    others.see_all(model, rows, targets);
    -(others.normaliser() - logit).softplus()
}

/// The same with gradients.
pub(crate) fn scored(model: &Model, rows: &Tensor, targets: &Tensor) -> Scored {
    let _guard = tch::no_grad_guard();
    let (logit, direction) = of_targets(model, rows, targets);
    let mut others = Others::new(rows, true);
    others.see_all(model, rows, targets);
    let odds = others.normaliser() - logit;
    let rest = odds.sigmoid().unsqueeze(1); // 1 - p(t)
    let away = others.direction.expect("gradients were asked for") / others.sum.unsqueeze(1);
    Scored { logprobs: -odds.softplus(), gradients: (direction - away) * rest }
}

/// Logits of the targets, `[M]`, and their gradient by the row, `[M, d]`.
fn of_targets(model: &Model, rows: &Tensor, targets: &Tensor) -> (Tensor, Tensor) {
    let vectors = model.weights.look_up(matrix(model), targets); // [M, d]
    let dot = (rows * &vectors).sum_dim_intlist(-1, false, Kind::Float);
    let bias = model.weights.find("output.bias").map(|bias| bias.index_select(0, targets));
    let (logit, slope) = capped(model, dot, bias);
    let direction = match slope {
        Some(slope) => vectors * slope.unsqueeze(1),
        None => vectors,
    };
    (logit, direction)
}

/// Running sums over the tokens that are not the target.
struct Others {
    /// `[M]` the largest logit so far; all sums are relative to it.
    largest: Tensor,
    /// `[M]`.
    sum: Tensor,
    /// `[M, d]`: sum of exp(l) and the gradient of l.
    direction: Option<Tensor>,
}

impl Others {
    fn new(rows: &Tensor, with_gradients: bool) -> Self {
        let sum = rows.select(1, 0).zeros_like();
        let largest = sum.full_like(f64::from(f32::MIN));
        Self { largest, sum, direction: with_gradients.then(|| rows.zeros_like()) }
    }

    fn see_all(&mut self, model: &Model, rows: &Tensor, targets: &Tensor) {
        let rows = rows.to_kind(model.compute);
        for (from, n) in slices(model, &rows) {
            self.see(model, &rows, targets, from, n);
        }
    }

    /// Adds the tokens `from..from + n`.
    fn see(&mut self, model: &Model, rows: &Tensor, targets: &Tensor, from: i64, n: i64) {
        let matrix = model.weights.rows(matrix(model), from, n, model.compute);
        let bias = model.weights.find("output.bias").map(|bias| bias.narrow(0, from, n));
        let (mut logits, slope) = capped(model, product(rows, &matrix), bias);
        let inside = targets.ge(from).logical_and(&targets.lt(from + n));
        let index = (targets - from).clamp(0, n - 1).unsqueeze(1);
        let there = logits.gather(1, &index, false);
        let without = there.masked_fill(&inside.unsqueeze(1), f64::NEG_INFINITY);
        drop(logits.scatter_(1, &index, &without));
        let largest = self.largest.maximum(&logits.amax(-1, false));
        let shrink = (&self.largest - &largest).exp();
        logits -= largest.unsqueeze(1);
        drop(logits.exp_());
        self.sum = &self.sum * &shrink + logits.sum_dim_intlist(-1, false, Kind::Float);
        if let Some(direction) = &mut self.direction {
            if let Some(slope) = slope {
                logits *= slope;
            }
            *direction *= shrink.unsqueeze(1);
            *direction += logits.to_kind(model.compute).matmul(&matrix);
        }
        self.largest = largest;
    }

    /// `[M]` ln of the sum of exp(l).
    fn normaliser(&self) -> Tensor {
        self.sum.log() + &self.largest
    }
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

/// Logits with bias and cap, and the slope of the cap where the model has one.
fn capped(model: &Model, logits: Tensor, bias: Option<Tensor>) -> (Tensor, Option<Tensor>) {
    let logits = match bias {
        Some(bias) => logits + bias,
        None => logits,
    };
    match model.shape.final_cap {
        Some(cap) => {
            let bent = (logits / cap).tanh();
            let slope = bent.square() * -1.0 + 1.0;
            (bent * cap, Some(slope))
        }
        None => (logits, None),
    }
}

/// The head's own matrix, or the embedding's.
fn matrix(model: &Model) -> &'static str {
    if model.weights.has("output") { "output" } else { "token_embd" }
}

/// (first token, tokens) of each slice.
fn slices(model: &Model, rows: &Tensor) -> impl Iterator<Item = (i64, i64)> + use<> {
    let n_vocab = model.shape.sizes.n_vocab;
    let slice = (MAX_LOGITS / rows.size()[0].max(1)).max(MIN_SLICE);
    let starts = (0..n_vocab).step_by(usize::try_from(slice).expect("a slice is small"));
    starts.map(move |from| (from, slice.min(n_vocab - from)))
}
