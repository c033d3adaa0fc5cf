//! The output head and the log-probs behind it, a slice of the vocabulary at a time, forward and
//! backward: neither all logits nor the whole decoded head are in memory at once. The head is
//! frozen, so its gradient is that of the rows alone. Used by `model` and `sweep`.

use tch::{Kind, Tensor};

use crate::model::Model;

/// Logits that are in memory at once.
const MAX_LOGITS: i64 = 1 << 22;
/// A slice of the vocabulary has at least so many tokens.
const MIN_SLICE: i64 = 1024;

/// Log-probs of wanted tokens, each tensor `[N]`.
#[derive(Debug)]
pub(crate) struct Scored {
    pub logprobs: Tensor,
    /// Logarithm of the sum of the exponentials of a row's logits.
    normaliser: Tensor,
}

/// Logits of rows `[N, d]` for `n` tokens of the vocabulary, `[N, n]`.
pub(crate) fn logits(model: &Model, rows: &Tensor, from: i64, n: i64) -> Tensor {
    let (logits, _) = capped(model, rows, from, n);
    logits
}

/// Log-probs of the target of each row, without gradients.
pub(crate) fn logprobs(model: &Model, rows: &Tensor, targets: &Tensor) -> Scored {
    let _guard = tch::no_grad_guard();
    let mut normaliser = Tensor::full_like(&targets.to_kind(Kind::Float), f64::NEG_INFINITY);
    let mut wanted = normaliser.zeros_like();
    for (from, n) in slices(model, rows) {
        let logits = logits(model, rows, from, n);
        normaliser = normaliser.logaddexp(&logits.logsumexp(-1, false));
        wanted += logits.gather(1, &inside(targets, from, n).0, false).squeeze_dim(1)
            * inside(targets, from, n).1;
    }
    Scored { logprobs: wanted - &normaliser, normaliser }
}

/// The gradient of the rows, `[N, d]`, given that of the log-probs, `[N]`: of each logit it is
/// that of the log-prob times (1 for the target, else 0, minus the probability).
pub(crate) fn backward(
    model: &Model,
    rows: &Tensor,
    targets: &Tensor,
    scored: &Scored,
    gradient: &Tensor,
) -> Tensor {
    let _guard = tch::no_grad_guard();
    let gradient = gradient.unsqueeze(1); // [N, 1]
    let mut of_rows = rows.zeros_like();
    for (from, n) in slices(model, rows) {
        let (logits, slope) = capped(model, rows, from, n);
        let probabilities = (logits - scored.normaliser.unsqueeze(1)).exp();
        let (index, is_inside) = inside(targets, from, n);
        let mut of_logits = -probabilities * &gradient;
        of_logits = of_logits.scatter_add(1, &index, &(is_inside.unsqueeze(1) * &gradient));
        if let Some(slope) = slope {
            of_logits *= slope;
        }
        of_rows += of_logits.matmul(&model.weights.rows(matrix(model), from, n));
    }
    of_rows
}

/// Logits, and the slope of their cap where the model has one.
fn capped(model: &Model, rows: &Tensor, from: i64, n: i64) -> (Tensor, Option<Tensor>) {
    let mut logits = rows.matmul(&model.weights.rows(matrix(model), from, n).transpose(0, 1));
    if let Some(bias) = model.weights.find("output.bias") {
        logits += bias.narrow(0, from, n);
    }
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
fn slices(model: &Model, rows: &Tensor) -> impl Iterator<Item = (i64, i64)> {
    let n_vocab = model.shape.sizes.n_vocab;
    let slice = (MAX_LOGITS / rows.size()[0].max(1)).max(MIN_SLICE);
    let starts = (0..n_vocab).step_by(usize::try_from(slice).expect("a slice is small"));
    starts.map(move |from| (from, slice.min(n_vocab - from)))
}

/// `[N, 1]` place of each target in a slice (0 where it is in another one), and `[N]` whether it is
/// in this one, as 1 or 0.
fn inside(targets: &Tensor, from: i64, n: i64) -> (Tensor, Tensor) {
    let is_inside = targets.ge(from).logical_and(&targets.lt(from + n));
    let index = (targets - from) * is_inside.to_kind(Kind::Int64);
    (index.unsqueeze(1), is_inside.to_kind(Kind::Float))
}
