//! One forward and one backward pass. Between the last block and the head the autograd graph is cut,
//! because the head is computed in slices of the vocabulary and gives its own gradient. With
//! `recompute` only the input of each block is kept, and the block is computed again when its
//! gradient is needed (gradient checkpointing, Chen et al., arXiv 1604.06174): the graph of one block
//! is in memory, and with it the decoded weights of one block. Used by `step`.

use tch::{Kind, Tensor};

use crate::batch::Batch;
use crate::model::Model;

/// What the forward pass keeps for the backward pass, each `[N, d]`.
enum Activations {
    /// The output of the last block, with the graph of all blocks.
    Graph(Tensor),
    /// The input of each block, and the output of the last one.
    Inputs(Vec<Tensor>),
}

/// Adds the gradients of a loss to those of the adapter. `loss` maps the log-probs of the batch's
/// targets, `[M]`, to one number.
pub(crate) fn gradients(
    model: &Model,
    batch: &Batch,
    recompute: bool,
    loss: impl FnOnce(&Tensor) -> Tensor,
) {
    let inputs = model.attention_inputs(batch);
    let layers = 0..model.shape.sizes.n_layer;
    let x = model.embed(batch);
    let activations = if recompute {
        let _guard = tch::no_grad_guard();
        let mut kept = vec![x];
        for layer in layers {
            let next = model.block(layer, &kept[kept.len() - 1], &inputs);
            kept.push(next);
        }
        Activations::Inputs(kept)
    } else {
        Activations::Graph(layers.fold(x, |x, layer| model.block(layer, &x, &inputs)))
    };
    let last = match &activations {
        Activations::Graph(last) => last,
        Activations::Inputs(kept) => &kept[kept.len() - 1],
    };
    let mut gradient = head_gradient(model, batch, last, loss);
    match activations {
        Activations::Graph(last) => (last * gradient).sum(Kind::Float).backward(),
        Activations::Inputs(mut kept) => {
            kept.pop();
            for (layer, input) in (0..).zip(kept).collect::<Vec<_>>().into_iter().rev() {
                // The first block's input is the embedding, which is frozen.
                let input = input.set_requires_grad(0 < layer);
                let output = model.block(layer, &input, &inputs);
                (output * gradient).sum(Kind::Float).backward();
                gradient = input.grad();
            }
        }
    }
}

/// The gradient of the loss by the output of the last block, `[N, d]`.
fn head_gradient(
    model: &Model,
    batch: &Batch,
    last: &Tensor,
    loss: impl FnOnce(&Tensor) -> Tensor,
) -> Tensor {
    let x = last.detach().set_requires_grad(true);
    let rows = model.final_rows(&x, batch); // [M, d]
    let scored = model.score(&rows.detach(), &batch.targets);
    let logprobs = scored.logprobs.set_requires_grad(true);
    loss(&logprobs).backward();
    let of_rows = scored.gradients * logprobs.grad().unsqueeze(1);
    (rows * of_rows).sum(Kind::Float).backward();
    x.grad()
}
