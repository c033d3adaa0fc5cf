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
    /// By rows of a width: whether a node attends to another, which it does to itself and its
    /// ancestors. What is beyond the tree attends to itself.
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

/// Trees one after the other, without padding, as tensors.
#[derive(Debug)]
pub(crate) struct Batch {
    /// `[N]` token ids.
    pub ids: Tensor,
    /// `[N]` positions.
    pub positions: Tensor,
    /// Trees that attend in one operation.
    pub packs: Vec<Pack>,
    /// `[N]` place of each token among those of all packs; `None`: there is one pack without padding.
    pub places: Option<Tensor>,
    /// `[M]` index of the token that predicts a wanted one.
    pub sources: Tensor,
    /// `[M]` the wanted tokens.
    pub targets: Tensor,
    /// `[M]` index of the sequence that a wanted token belongs to, counted over the whole batch.
    pub groups: Tensor,
    /// `[G]` wanted tokens of each sequence.
    pub lengths: Tensor,
}

/// Trees of about the same length, padded to one: only inside a tree does a token attend to another.
#[derive(Debug)]
pub(crate) struct Pack {
    /// Trees, and tokens of each.
    pub size: [i64; 2],
    /// `[B T]` token at each place, padding has the batch's first.
    pub tokens: Tensor,
    /// `[B, T, T]`, true where row attends to column; padding attends to itself.
    pub mask: Tensor,
}

/// Attention is computed for at most this many places a token: padding is cheaper than one more
/// operation, but not for nothing. On a GPU nearly for nothing.
const MAX_PLACES: [f64; 2] = [1.15, 4.0];
/// A GPU's kernels want rows of a mask to begin at multiples of this.
const ALIGNED: usize = 8;

impl Batch {
    pub(crate) fn new(trees: &[&Tree], device: Device) -> Self {
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        let (mut sources, mut targets) = (Vec::new(), Vec::new());
        let (mut groups, mut lengths) = (Vec::new(), Vec::new());
        let mut starts = Vec::new();
        for tree in trees {
            let start = ids.len();
            starts.push(start);
            ids.extend(tree.tokens.iter().map(|&token| i64::from(token)));
            positions.extend(tree.depths.iter().map(|&depth| signed(depth)));
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
        let mut places = vec![0; ids.len()];
        let (mut packs, mut n_places) = (Vec::new(), 0);
        for group in alike(trees, device) {
            let pack = Pack::new(&group, trees, &starts, device);
            for (row, &tree) in group.iter().enumerate() {
                for node in 0..trees[tree].len() {
                    let place = n_places + row * unsigned(pack.size[1]) + node;
                    places[starts[tree] + node] = signed(place);
                }
            }
            n_places += group.len() * unsigned(pack.size[1]);
            packs.push(pack);
        }
        let is_plain = packs.len() == 1 && places.iter().copied().eq(0..signed(n_places));
        Self {
            ids: tensor(&ids),
            positions: tensor(&positions),
            packs,
            places: (!is_plain).then(|| tensor(&places)),
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

impl Pack {
    fn new(group: &[usize], trees: &[&Tree], starts: &[usize], device: Device) -> Self {
        let longest = group.iter().map(|&tree| trees[tree].len()).max().unwrap_or(0);
        let width = longest.next_multiple_of(if device.is_cuda() { ALIGNED } else { 1 });
        let mut tokens = vec![0; group.len() * width];
        let mut mask = vec![false; group.len() * width * width];
        for (row, &tree) in group.iter().enumerate() {
            let first = row * width;
            for node in 0..trees[tree].len() {
                tokens[first + node] = signed(starts[tree] + node);
            }
            trees[tree].fill_mask(&mut mask[first * width..(first + width) * width], width);
        }
        let size = [signed(group.len()), signed(width)];
        let mask = Tensor::from_slice(&mask).view([size[0], size[1], size[1]]);
        Self {
            size,
            tokens: Tensor::from_slice(&tokens).to_device(device),
            mask: mask.to_device(device),
        }
    }
}

/// Trees by length, in groups that need little padding.
fn alike(trees: &[&Tree], device: Device) -> Vec<Vec<usize>> {
    let most = MAX_PLACES[usize::from(device.is_cuda())];
    let mut order: Vec<usize> = (0..trees.len()).collect();
    order.sort_by_key(|&tree| std::cmp::Reverse(trees[tree].len()));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut n_tokens = 0;
    for tree in order {
        n_tokens += trees[tree].len();
        match groups.last_mut() {
            Some(group)
                if ((group.len() + 1) * trees[group[0]].len()) as f64 <= most * n_tokens as f64 =>
            {
                group.push(tree);
            }
            _ => {
                groups.push(vec![tree]);
                n_tokens = trees[tree].len();
            }
        }
    }
    groups
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
    fn what_begins_alike_is_computed_once() {
        let sequence = |tokens: &[i32], from| Sequence { tokens: tokens.to_vec(), from };
        let tree = Tree::new(&[sequence(&[1, 2, 3, 4], 2), sequence(&[1, 2, 5, 6], 2)]);
        assert_eq!(tree.tokens, [1, 2, 3, 5]);
        assert_eq!(tree.depths, [0, 1, 2, 2]);
        assert_eq!(tree.targets, [vec![(1, 3), (2, 4)], vec![(1, 5), (3, 6)]]);
        let batch = Batch::new(&[&tree], Device::Cpu);
        let mask = batch.packs[0].mask.squeeze_dim(0).to_kind(Kind::Double);
        let rows = Vec::<Vec<f64>>::try_from(mask).unwrap();
        assert_eq!(rows[3], [1.0, 1.0, 0.0, 1.0]);
        assert_eq!(Vec::<i64>::try_from(&batch.groups).unwrap(), [0, 0, 1, 1]);
        assert!(batch.places.is_none(), "one tree is not moved");
    }

    #[test]
    fn trees_of_about_the_same_length_are_padded_to_one() {
        let tree = |n: i32| {
            let tokens = (0..=n).collect::<Vec<_>>();
            Tree::new(&[Sequence { tokens, from: 1 }])
        };
        let trees = [3, 20, 19, 4].map(tree);
        let batch = Batch::new(&trees.iter().collect::<Vec<_>>(), Device::Cpu);
        let sizes: Vec<_> = batch.packs.iter().map(|pack| pack.size).collect();
        assert_eq!(sizes, [[2, 20], [2, 4]]);
        // Through its place every token finds itself again, and padding attends to itself alone.
        let tokens: Vec<_> = batch.packs.iter().map(|pack| pack.tokens.shallow_clone()).collect();
        let found = Tensor::cat(&tokens, 0).index_select(0, batch.places.as_ref().unwrap());
        assert_eq!(Vec::<i64>::try_from(found).unwrap(), (0..46).collect::<Vec<_>>());
        let padding = batch.packs[0].mask.select(0, 1).select(0, 19).to_kind(Kind::Int64);
        let padding = Vec::<i64>::try_from(padding).unwrap();
        assert_eq!((padding.iter().sum::<i64>(), padding[19]), (1, 1));
    }
}
