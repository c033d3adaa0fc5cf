//! Prefix sharing: token sequences with a common prefix become one tree in which every shared token
//! is computed once (the n candidates of a prompt, the two answers of a pair, the judge's tasks of
//! one answer). A node attends to its ancestors only and its position is its depth, so the log-probs
//! are those of separate sequences. Trees of a batch are padded for attention alone, in buckets of
//! similar length. No weights here. Used by `data`, `pretrain`, `step` and `train`.

use std::collections::HashMap;

use tch::{Device, Kind, Tensor};

/// One sequence, and where its targets begin: the tokens whose log-probs are computed.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    /// Prompt and answer.
    pub tokens: Vec<i32>,
    /// Index of the first target, at least 1.
    pub from: usize,
}

/// Sequences merged by their common prefixes.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    tokens: Vec<i32>,
    parents: Vec<Option<usize>>,
    depths: Vec<usize>,
    /// For each sequence, for each of its targets: (node that predicts it, token).
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
    /// Nodes: tokens that are computed.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }
    /// Sets the mask `[width, width]`, row by row: a node attends to itself and its ancestors, padding
    /// to itself.
    fn fill_mask(&self, mask: &mut [bool], width: usize) {
        for node in 0..width {
            if let Some(&Some(parent)) = self.parents.get(node) {
                // A parent stands before its children: its row is complete.
                let row = parent * width;
                mask.copy_within(row..=row + parent, node * width);
            }
            mask[node * width + node] = true;
        }
    }
}

/// Trees one after the other, without padding, as tensors: N tokens, M targets, S sequences.
#[derive(Debug)]
pub(crate) struct Batch {
    /// `[N]` token ids.
    pub ids: Tensor,
    /// `[N]` positions.
    pub positions: Tensor,
    pub buckets: Vec<Bucket>,
    /// `[N]` index of each token in the padded buckets, one after the other. `None`: there is one
    /// bucket, and it has no padding.
    pub unpad: Option<Tensor>,
    /// `[M]` index of the token that predicts a target.
    pub sources: Tensor,
    /// `[M]` token ids.
    pub targets: Tensor,
    /// `[M]` index of the sequence that a target belongs to, counted over the whole batch.
    pub sequences: Tensor,
    /// `[S]` targets of each sequence.
    pub lengths: Tensor,
}

/// Trees of similar length, padded to the longest, whose attention is one operation. A token attends
/// only inside its tree.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// B trees, and T tokens of each.
    pub size: [i64; 2],
    /// `[B T]` index of the token at each position. Padding has index 0; its output is dropped.
    pub tokens: Tensor,
    /// `[B, T, T]`, true where row attends to column; padding attends to itself.
    pub mask: Tensor,
}

/// Most padded positions for each token of a bucket, on a CPU and on a GPU. Padding is cheaper than
/// one more operation, on a GPU by far.
const MAX_PADDING: [f64; 2] = [1.15, 4.0];
/// A GPU's kernels want rows of a mask to begin at multiples of this.
const GPU_ALIGNMENT: usize = 8;

impl Batch {
    pub(crate) fn new(trees: &[&Tree], device: Device) -> Self {
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        let (mut sources, mut targets) = (Vec::new(), Vec::new());
        let (mut sequences, mut lengths) = (Vec::new(), Vec::new());
        let mut starts = Vec::new();
        for tree in trees {
            let start = ids.len();
            starts.push(start);
            ids.extend(tree.tokens.iter().map(|&token| i64::from(token)));
            positions.extend(tree.depths.iter().map(|&depth| signed(depth)));
            for of_sequence in &tree.targets {
                let sequence = signed(lengths.len());
                lengths.push(signed(of_sequence.len()));
                for &(node, token) in of_sequence {
                    sources.push(signed(start + node));
                    targets.push(i64::from(token));
                    sequences.push(sequence);
                }
            }
        }
        let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        let mut unpad = vec![0; ids.len()];
        let (mut buckets, mut n_positions) = (Vec::new(), 0);
        for members in by_length(trees, device) {
            let bucket = Bucket::new(&members, trees, &starts, device);
            for (row, &tree) in members.iter().enumerate() {
                for node in 0..trees[tree].len() {
                    let index = n_positions + row * unsigned(bucket.size[1]) + node;
                    unpad[starts[tree] + node] = signed(index);
                }
            }
            n_positions += members.len() * unsigned(bucket.size[1]);
            buckets.push(bucket);
        }
        let is_unpadded = buckets.len() == 1 && unpad.iter().copied().eq(0..signed(n_positions));
        Self {
            ids: tensor(&ids),
            positions: tensor(&positions),
            buckets,
            unpad: (!is_unpadded).then(|| tensor(&unpad)),
            sources: tensor(&sources),
            targets: tensor(&targets),
            sequences: tensor(&sequences),
            lengths: tensor(&lengths),
        }
    }
    /// Sums values of the targets `[M]` by sequence: `[S]`.
    pub(crate) fn sum_by_sequence(&self, values: &Tensor) -> Tensor {
        Tensor::zeros([self.lengths.size()[0]], (Kind::Float, values.device())).index_add(
            0,
            &self.sequences,
            values,
        )
    }
}

impl Bucket {
    fn new(members: &[usize], trees: &[&Tree], starts: &[usize], device: Device) -> Self {
        let longest = members.iter().map(|&tree| trees[tree].len()).max().unwrap_or(0);
        let width = longest.next_multiple_of(if device.is_cuda() { GPU_ALIGNMENT } else { 1 });
        let mut tokens = vec![0; members.len() * width];
        let mut mask = vec![false; members.len() * width * width];
        for (row, &tree) in members.iter().enumerate() {
            let first = row * width;
            for node in 0..trees[tree].len() {
                tokens[first + node] = signed(starts[tree] + node);
            }
            trees[tree].fill_mask(&mut mask[first * width..(first + width) * width], width);
        }
        let size = [signed(members.len()), signed(width)];
        let mask = Tensor::from_slice(&mask).view([size[0], size[1], size[1]]);
        Self {
            size,
            tokens: Tensor::from_slice(&tokens).to_device(device),
            mask: mask.to_device(device),
        }
    }
}

/// Trees by length, the members of each bucket: so few that they need little padding.
fn by_length(trees: &[&Tree], device: Device) -> Vec<Vec<usize>> {
    let most = MAX_PADDING[usize::from(device.is_cuda())];
    let mut order: Vec<usize> = (0..trees.len()).collect();
    order.sort_by_key(|&tree| std::cmp::Reverse(trees[tree].len()));
    let mut buckets: Vec<Vec<usize>> = Vec::new();
    let mut n_tokens = 0;
    for tree in order {
        n_tokens += trees[tree].len();
        match buckets.last_mut() {
            Some(bucket)
                if ((bucket.len() + 1) * trees[bucket[0]].len()) as f64
                    <= most * n_tokens as f64 =>
            {
                bucket.push(tree);
            }
            _ => {
                buckets.push(vec![tree]);
                n_tokens = trees[tree].len();
            }
        }
    }
    buckets
}

fn unsigned(n: i64) -> usize {
    usize::try_from(n).expect("sizes are not negative")
}

fn signed(n: usize) -> i64 {
    i64::try_from(n).expect("token counts fit i64")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_prefix_is_computed_once() {
        let sequence = |tokens: &[i32], from| Sequence { tokens: tokens.to_vec(), from };
        let tree = Tree::new(&[sequence(&[1, 2, 3, 4], 2), sequence(&[1, 2, 5, 6], 2)]);
        assert_eq!(tree.tokens, [1, 2, 3, 5]);
        assert_eq!(tree.depths, [0, 1, 2, 2]);
        assert_eq!(tree.targets, [vec![(1, 3), (2, 4)], vec![(1, 5), (3, 6)]]);
        let batch = Batch::new(&[&tree], Device::Cpu);
        let mask = batch.buckets[0].mask.squeeze_dim(0).to_kind(Kind::Double);
        let rows = Vec::<Vec<f64>>::try_from(mask).unwrap();
        assert_eq!(rows[3], [1.0, 1.0, 0.0, 1.0]);
        assert_eq!(Vec::<i64>::try_from(&batch.sequences).unwrap(), [0, 0, 1, 1]);
        assert!(batch.unpad.is_none(), "one tree needs no padding");
    }

    #[test]
    fn trees_of_similar_length_are_padded_to_the_longest() {
        let tree = |n: i32| {
            let tokens = (0..=n).collect::<Vec<_>>();
            Tree::new(&[Sequence { tokens, from: 1 }])
        };
        let trees = [3, 20, 19, 4].map(tree);
        let batch = Batch::new(&trees.iter().collect::<Vec<_>>(), Device::Cpu);
        let sizes: Vec<_> = batch.buckets.iter().map(|bucket| bucket.size).collect();
        assert_eq!(sizes, [[2, 20], [2, 4]]);
        // Unpadding gives every token back once, and padding attends to itself alone.
        let tokens: Vec<_> =
            batch.buckets.iter().map(|bucket| bucket.tokens.shallow_clone()).collect();
        let found = Tensor::cat(&tokens, 0).index_select(0, batch.unpad.as_ref().unwrap());
        assert_eq!(Vec::<i64>::try_from(found).unwrap(), (0..46).collect::<Vec<_>>());
        let padding = batch.buckets[0].mask.select(0, 1).select(0, 19).to_kind(Kind::Int64);
        let padding = Vec::<i64>::try_from(padding).unwrap();
        assert_eq!((padding.iter().sum::<i64>(), padding[19]), (1, 1));
    }
}
