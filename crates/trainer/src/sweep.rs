//! One forward and one backward pass. Between trunk and head the graph is cut, because the head is
//! computed in slices and brings its own gradient. With `recompute` the trunk keeps only what enters each block and computes
//! the block again when its gradient is wanted (gradient checkpointing, Chen et al.,
//! arXiv 1604.06174): the graph of one block is in memory, and with it the decoded weights of one
//! block. Used by `train` and `optimize`.

use tch::{Kind, Tensor};

use crate::batch::Batch;
use crate::head;
use crate::model::Model;

/// What the forward pass leaves for the backward pass.
enum Trunk {
    /// The last block's output, with its graph.
    Graph(Tensor),
    /// What enters each block, and at the end what leaves the last one.
    Inputs(Vec<Tensor>),
}

/// Adds the gradients of a loss to those of the adapter. `loss` gets the log-probs of the batch's
/// wanted tokens, `[M]`, and gives one number.
pub(crate) fn gradients(
    model: &Model,
    batch: &Batch,
    recompute: bool,
    loss: impl FnOnce(&Tensor) -> Tensor,
) {
    let places = model.places(batch);
    let layers = 0..model.shape.sizes.n_layer;
    let x = model.embed(batch);
    let trunk = if recompute {
        let _guard = tch::no_grad_guard();
        let mut inputs = vec![x];
        for layer in layers {
            let next = model.block(layer, &inputs[inputs.len() - 1], &places);
            inputs.push(next);
        }
        Trunk::Inputs(inputs)
    } else {
        Trunk::Graph(layers.fold(x, |x, layer| model.block(layer, &x, &places)))
    };
    let last = match &trunk {
        Trunk::Graph(last) => last,
        Trunk::Inputs(inputs) => &inputs[inputs.len() - 1],
    };
    let mut gradient = through_head(model, batch, last, loss);
    match trunk {
        Trunk::Graph(last) => (last * gradient).sum(Kind::Float).backward(),
        Trunk::Inputs(mut inputs) => {
            inputs.pop();
            for (layer, input) in (0..).zip(inputs).collect::<Vec<_>>().into_iter().rev() {
                // The first block's input is the frozen embedding.
                let input = input.set_requires_grad(0 < layer);
                let output = model.block(layer, &input, &places);
                (output * gradient).sum(Kind::Float).backward();
                gradient = input.grad();
            }
        }
    }
}

/// The gradient of what leaves the last block.
fn through_head(
    model: &Model,
    batch: &Batch,
    last: &Tensor,
    loss: impl FnOnce(&Tensor) -> Tensor,
) -> Tensor {
    let hidden = last.detach().set_requires_grad(true);
    let rows = model.predicting_rows(&hidden, batch);
    let scored = head::scored(model, &rows.detach(), &batch.targets);
    let logprobs = scored.logprobs.set_requires_grad(true);
    loss(&logprobs).backward();
    let of_rows = scored.gradients * logprobs.grad().unsqueeze(1);
    (rows * of_rows).sum(Kind::Float).backward();
    hidden.grad()
}
