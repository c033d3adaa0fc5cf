//! Packing: token sequences that begin alike become one tree in which every shared token is computed
//! once (the n candidates of a prompt, the two answers of a pair, the judge's tasks of one
//! answer). A node attends to its ancestors only and its position is its depth, so the result is that of separate
//! sequences. No tensors of the model here; used by `pretrain` and `train`.

use std::collections::HashMap;

use tch::{Device, Kind, Tensor};

/// One sequence with the part whose log-probs are wanted.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    /// Prompt and answer.
    pub tokens: Vec<i32>,
    /// Index of the first token to predict, at least 1.
    pub from: usize,
}

/// Sequences merged by their common beginnings.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    tokens: Vec<i32>,
    parents: Vec<Option<usize>>,
    depths: Vec<usize>,
    /// For each sequence, for each wanted token: (node that predicts it, token).
    targets: Vec<Vec<(usize, i32)>>,
}

impl Tree {
    /// Merges sequences; each has at least one token before `from`.
    pub(crate) fn new(sequences: &[Sequence]) -> Self {
        let mut tree = Self::default();
        let mut children: HashMap<(Option<usize>, i32), usize> = HashMap::new();
        for sequence in sequences {
            let mut node = None;
            let mut targets = Vec::new();
            for (i, &token) in sequence.tokens.iter().enumerate() {
                if i >= sequence.from {
                    targets.push((node.expect("from is at least 1"), token));
                }
                // The last token predicts nothing: it needs no node.
                if i + 1 == sequence.tokens.len() {
                    break;
                }
                node = Some(*children.entry((node, token)).or_insert_with(|| {
                    tree.tokens.push(token);
                    tree.parents.push(node);
                    tree.depths.push(node.map_or(0, |parent| tree.depths[parent] + 1));
                    tree.tokens.len() - 1
                }));
            }
            tree.targets.push(targets);
        }
        tree
    }
    /// Nodes: tokens to compute.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }
    /// By rows: whether a node attends to another, which it does to itself and its ancestors.
    fn mask(&self) -> Vec<bool> {
        let width = self.len();
        let mut mask = vec![false; width * width];
        for (node, &parent) in self.parents.iter().enumerate() {
            if let Some(parent) = parent {
                // A parent stands before its children: its row is complete.
                let row = parent * width;
                mask.copy_within(row..=row + parent, node * width);
            }
            mask[node * width + node] = true;
        }
        mask
    }
}

/// Trees one after the other, without padding, as tensors.
#[derive(Debug)]
pub(crate) struct Batch {
    /// `[N]` token ids.
    pub ids: Tensor,
    /// `[N]` positions.
    pub positions: Tensor,
    /// Where each tree lies, in order.
    pub spans: Vec<Span>,
    /// `[M]` index of the token that predicts a wanted one.
    pub sources: Tensor,
    /// `[M]` the wanted tokens.
    pub targets: Tensor,
    /// `[M]` index of the sequence that a wanted token belongs to, counted over the whole batch.
    pub groups: Tensor,
    /// `[G]` wanted tokens of each sequence.
    pub lengths: Tensor,
}

/// One tree of a batch: only inside it does a token attend to another.
#[derive(Debug)]
pub(crate) struct Span {
    pub start: i64,
    pub len: i64,
    /// `[T, T]`, true where row attends to column.
    pub mask: Tensor,
}

impl Batch {
    pub(crate) fn new(trees: &[&Tree], device: Device) -> Self {
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        let (mut sources, mut targets) = (Vec::new(), Vec::new());
        let (mut groups, mut lengths) = (Vec::new(), Vec::new());
        let mut spans = Vec::new();
        for tree in trees {
            let start = ids.len();
            ids.extend(tree.tokens.iter().map(|&token| i64::from(token)));
            positions.extend(tree.depths.iter().map(|&depth| signed(depth)));
            let len = signed(tree.len());
            let mask = Tensor::from_slice(&tree.mask()).view([len, len]).to_device(device);
            spans.push(Span { start: signed(start), len, mask });
            for wanted in &tree.targets {
                let group = signed(lengths.len());
                lengths.push(signed(wanted.len()));
                for &(node, token) in wanted {
                    sources.push(signed(start + node));
                    targets.push(i64::from(token));
                    groups.push(group);
                }
            }
        }
        let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        Self {
            ids: tensor(&ids),
            positions: tensor(&positions),
            spans,
            sources: tensor(&sources),
            targets: tensor(&targets),
            groups: tensor(&groups),
            lengths: tensor(&lengths),
        }
    }
    /// Sums `[M]` values by sequence: `[G]`.
    pub(crate) fn sum_by_sequence(&self, values: &Tensor) -> Tensor {
        Tensor::zeros([self.lengths.size()[0]], (Kind::Float, values.device())).index_add(
            0,
            &self.groups,
            values,
        )
    }
}

fn signed(n: usize) -> i64 {
    i64::try_from(n).expect("token counts fit i64")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_alike_is_computed_once() {
        let sequence = |tokens: &[i32], from| Sequence { tokens: tokens.to_vec(), from };
        let tree = Tree::new(&[sequence(&[1, 2, 3, 4], 2), sequence(&[1, 2, 5, 6], 2)]);
        assert_eq!(tree.tokens, [1, 2, 3, 5]);
        assert_eq!(tree.depths, [0, 1, 2, 2]);
        assert_eq!(tree.targets, [vec![(1, 3), (2, 4)], vec![(1, 5), (3, 6)]]);
        let batch = Batch::new(&[&tree], Device::Cpu);
        let mask = batch.spans[0].mask.to_kind(Kind::Double);
        let rows = Vec::<Vec<f64>>::try_from(mask).unwrap();
        assert_eq!(rows[3], [1.0, 1.0, 0.0, 1.0]);
        assert_eq!(Vec::<i64>::try_from(&batch.groups).unwrap(), [0, 0, 1, 1]);
    }
}
