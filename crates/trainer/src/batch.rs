//! Prefix sharing: the sequences of a pass become one tree in which a token is computed once however
//! many sequences begin with it (the system text of all examples, the prompt of the two answers of a
//! pair and of the n candidates of a group, the judge's tasks of one answer). A sequence is a path
//! from the root; its tokens attend to the path before them and their position is their depth, so the
//! log-probs are those of separate sequences. Only attention looks at sequences one by one: those of
//! similar length are padded in buckets. No weights here. Used by `data`, `pretrain`, `step`, `train`.

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

impl Sequence {
    /// Tokens that are computed of it: the last one predicts nothing.
    fn n_nodes(&self) -> usize {
        self.tokens.len() - 1
    }
}

/// What a pass computes, and what it keeps for attention besides.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Size {
    /// Tokens that are computed.
    pub tokens: usize,
    /// Tokens of other sequences that the sequences begin with, each counted in every one of them:
    /// attention has a copy of their keys and values.
    pub shared: usize,
}

impl Size {
    /// Room for either.
    pub(crate) fn max(self, other: Self) -> Self {
        Self { tokens: self.tokens.max(other.tokens), shared: self.shared.max(other.shared) }
    }
}

/// Sequences merged by their common prefixes.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    tokens: Vec<i32>,
    depths: Vec<usize>,
    children: HashMap<(Option<usize>, i32), usize>,
    /// In the order in which they were added.
    paths: Vec<Path>,
    size: Size,
}

/// A sequence as a path through the tree.
#[derive(Debug)]
struct Path {
    /// Its nodes from the root.
    nodes: Vec<usize>,
    /// How many of them an earlier sequence has too.
    n_shared: usize,
    /// (node that predicts it, token) of each target.
    targets: Vec<(usize, i32)>,
}

impl Tree {
    pub(crate) fn new<'a>(sequences: impl IntoIterator<Item = &'a Sequence>) -> Self {
        let mut tree = Self::default();
        sequences.into_iter().for_each(|sequence| tree.add(sequence));
        tree
    }

    /// Adds a sequence; it has at least one token before `from`.
    pub(crate) fn add(&mut self, sequence: &Sequence) {
        let Sequence { tokens, from } = sequence;
        let n_shared = self.shared(sequence);
        let mut nodes: Vec<usize> = Vec::with_capacity(tokens.len());
        for &token in tokens.iter().take(sequence.n_nodes()) {
            let parent = nodes.last().copied();
            let node = *self.children.entry((parent, token)).or_insert_with(|| {
                self.tokens.push(token);
                self.depths.push(nodes.len());
                self.tokens.len() - 1
            });
            nodes.push(node);
        }
        let targets = (*from..tokens.len()).map(|i| (nodes[i - 1], tokens[i])).collect();
        self.size.tokens += nodes.len() - n_shared;
        self.size.shared += n_shared;
        self.paths.push(Path { nodes, n_shared, targets });
    }

    /// The size with some more sequences.
    pub(crate) fn size_with(&self, sequences: &[Sequence]) -> Size {
        let mut size = self.size;
        for (index, sequence) in sequences.iter().enumerate() {
            let among = sequences.iter().take(index).map(|other| {
                let pairs = other.tokens.iter().zip(&sequence.tokens);
                pairs.take(other.n_nodes()).take_while(|(a, b)| a == b).count()
            });
            let n_shared = among.max().unwrap_or(0).max(self.shared(sequence));
            let n_shared = n_shared.min(sequence.n_nodes());
            size.tokens += sequence.n_nodes() - n_shared;
            size.shared += n_shared;
        }
        size
    }

    /// How many of a sequence's tokens are computed already.
    fn shared(&self, sequence: &Sequence) -> usize {
        let mut node = None;
        let computed = sequence.tokens.iter().take(sequence.n_nodes());
        let known = computed.map_while(|&token| {
            node = Some(*self.children.get(&(node, token))?);
            node
        });
        known.count()
    }

    pub(crate) fn size(&self) -> Size {
        self.size
    }
}

/// A tree as tensors: N tokens, M targets, S sequences.
#[derive(Debug)]
pub(crate) struct Batch {
    /// `[N]` token ids.
    pub ids: Tensor,
    /// `[N]` positions.
    pub positions: Tensor,
    pub buckets: Vec<Bucket>,
    /// `[N]` index of each token among the queries of all buckets, one after the other.
    pub unpad: Tensor,
    /// `[M]` index of the token that predicts a target.
    pub sources: Tensor,
    /// `[M]` token ids.
    pub targets: Tensor,
    /// `[M]` index of the sequence that a target belongs to.
    pub sequences: Tensor,
    /// `[S]` targets of each sequence.
    pub lengths: Tensor,
}

/// Sequences of similar length, padded to the longest, whose attention is one operation. The queries of
/// a sequence are the tokens that no earlier sequence has; its keys are its whole path. A query attends
/// to the keys up to its own position, so padding behind a path is never seen.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// B sequences, Q queries and K keys of each.
    pub size: [i64; 3],
    /// `[B Q]` index of the token of each query. Padding has index 0; its output is dropped.
    pub queries: Tensor,
    /// `[B, Q]` positions of the queries; those of padding are 0.
    pub positions: Tensor,
    /// `[B K]` index of the token of each key. Padding has index 0.
    pub keys: Tensor,
}

/// Most padded queries and keys for each one of a bucket, on a CPU and on a GPU. Padding is cheaper than
/// one more operation, on a GPU by far.
const MAX_PADDING: [f64; 2] = [1.15, 4.0];
/// A GPU's kernels want rows of a mask to begin at multiples of this.
const GPU_ALIGNMENT: usize = 8;

impl Batch {
    pub(crate) fn new(tree: &Tree, device: Device) -> Self {
        let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        let (mut sources, mut targets, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        for (sequence, path) in (0..).zip(&tree.paths) {
            for &(node, token) in &path.targets {
                sources.push(signed(node));
                targets.push(i64::from(token));
                sequences.push(sequence);
            }
        }
        let mut unpad = vec![0; tree.tokens.len()];
        let (mut buckets, mut n_queries) = (Vec::new(), 0);
        for paths in by_length(&tree.paths, device) {
            let bucket = Bucket::new(&paths, device);
            for (row, path) in (0..).zip(&paths) {
                for (column, &node) in (0..).zip(path.own()) {
                    unpad[node] = n_queries + row * bucket.size[1] + column;
                }
            }
            n_queries += bucket.size[0] * bucket.size[1];
            buckets.push(bucket);
        }
        let ids: Vec<i64> = tree.tokens.iter().map(|&token| i64::from(token)).collect();
        let positions: Vec<i64> = tree.depths.iter().map(|&depth| signed(depth)).collect();
        let lengths: Vec<i64> = tree.paths.iter().map(|it| signed(it.targets.len())).collect();
        Self {
            ids: tensor(&ids),
            positions: tensor(&positions),
            buckets,
            unpad: tensor(&unpad),
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

impl Path {
    /// The nodes that no earlier sequence has.
    fn own(&self) -> &[usize] {
        self.nodes.split_at(self.n_shared).1
    }
}

impl Bucket {
    fn new(paths: &[&Path], device: Device) -> Self {
        let longest = |of: fn(&Path) -> usize| paths.iter().map(|it| of(it)).max().unwrap_or(0);
        let alignment = if device.is_cuda() { GPU_ALIGNMENT } else { 1 };
        let n_queries = longest(|path| path.own().len());
        let n_keys = longest(|path| path.nodes.len()).next_multiple_of(alignment);
        let mut queries = vec![0; paths.len() * n_queries];
        let mut positions = queries.clone();
        let mut keys = vec![0; paths.len() * n_keys];
        for (row, path) in paths.iter().enumerate() {
            for (column, &node) in path.own().iter().enumerate() {
                queries[row * n_queries + column] = signed(node);
                positions[row * n_queries + column] = signed(path.n_shared + column);
            }
            for (column, &node) in path.nodes.iter().enumerate() {
                keys[row * n_keys + column] = signed(node);
            }
        }
        let size = [paths.len(), n_queries, n_keys].map(signed);
        let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        Self {
            size,
            queries: tensor(&queries),
            positions: tensor(&positions).view([size[0], size[1]]),
            keys: tensor(&keys),
        }
    }
}

/// Paths with tokens of their own, the longest first, in buckets of so few that they need little padding.
fn by_length(paths: &[Path], device: Device) -> Vec<Vec<&Path>> {
    let most = MAX_PADDING[usize::from(device.is_cuda())];
    let lengths = |path: &Path| (path.own().len(), path.nodes.len());
    let mut order: Vec<&Path> = paths.iter().filter(|path| !path.own().is_empty()).collect();
    order.sort_by_key(|path| std::cmp::Reverse(lengths(path)));
    let mut buckets: Vec<Vec<&Path>> = Vec::new();
    // Of the last bucket: all queries and keys, and the most keys of a path.
    let (mut n_all, mut n_keys) = (0, 0);
    for path in order {
        let (queries, keys) = lengths(path);
        if let Some(bucket) = buckets.last_mut() {
            let padded = lengths(bucket[0]).0 + n_keys.max(keys);
            if ((bucket.len() + 1) * padded) as f64 <= most * (n_all + queries + keys) as f64 {
                bucket.push(path);
                (n_all, n_keys) = (n_all + queries + keys, n_keys.max(keys));
                continue;
            }
        }
        buckets.push(vec![path]);
        (n_all, n_keys) = (queries + keys, keys);
    }
    buckets
}

pub(crate) fn signed(n: usize) -> i64 {
    i64::try_from(n).expect("token counts fit i64")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(tokens: &[i32], from: usize) -> Sequence {
        Sequence { tokens: tokens.to_vec(), from }
    }

    fn numbers(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor.view([-1])).unwrap()
    }

    #[test]
    fn a_common_prefix_is_computed_once() {
        let tree = Tree::new(&[sequence(&[1, 2, 3, 4], 2), sequence(&[1, 2, 5, 6], 2)]);
        assert_eq!(tree.tokens, [1, 2, 3, 5]);
        assert_eq!(tree.depths, [0, 1, 2, 2]);
        assert_eq!(tree.paths[0].targets, [(1, 3), (2, 4)]);
        assert_eq!(tree.paths[1].targets, [(1, 5), (3, 6)]);
        assert_eq!(tree.size(), Size { tokens: 4, shared: 2 });
        let batch = Batch::new(&tree, Device::Cpu);
        assert_eq!(numbers(&batch.sequences), [0, 0, 1, 1]);
        // The second sequence asks with one token and is answered by its whole path.
        let [one, other] = batch.buckets.as_slice() else { panic!("{:?}", batch.buckets) };
        assert_eq!((one.size, other.size), ([1, 3, 3], [1, 1, 3]));
        assert_eq!((numbers(&other.queries), numbers(&other.keys)), (vec![3], vec![0, 1, 3]));
        assert_eq!(numbers(&other.positions), [2]);
    }

    #[test]
    fn a_sequence_that_is_there_already_is_not_computed_again() {
        let both = [sequence(&[1, 2, 3], 1), sequence(&[1, 2, 9], 2)];
        let tree = Tree::new(&both);
        assert_eq!(tree.size(), Size { tokens: 2, shared: 2 });
        let batch = Batch::new(&tree, Device::Cpu);
        assert_eq!(batch.buckets.len(), 1);
        assert_eq!(
            (numbers(&batch.sources), numbers(&batch.targets)),
            (vec![0, 1, 1], vec![2, 3, 9])
        );
    }

    #[test]
    fn sequences_of_similar_length_are_padded_to_the_longest() {
        let all = [3, 20, 19, 4].map(|n: i32| {
            let tokens: Vec<i32> = (0..=n).map(|i| 100 * n + i).collect();
            Sequence { tokens, from: 1 }
        });
        let batch = Batch::new(&Tree::new(&all), Device::Cpu);
        let sizes: Vec<_> = batch.buckets.iter().map(|bucket| bucket.size).collect();
        assert_eq!(sizes, [[2, 20, 20], [2, 4, 4]]);
        // Unpadding gives every token back once.
        let queries: Vec<_> = batch.buckets.iter().map(|it| it.queries.shallow_clone()).collect();
        let found = Tensor::cat(&queries, 0).index_select(0, &batch.unpad);
        assert_eq!(numbers(&found), (0..46).collect::<Vec<_>>());
    }
}
