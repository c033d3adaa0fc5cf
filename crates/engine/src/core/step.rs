//! One step of the engine: what the backend shall do, in this order. A batch in which a token comes
//! before one that it follows cannot be made: [`Builder::push`] refuses it. Pure but for [`execute`];
//! made by `plan.rs`, taken in by `core.rs`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use inference::backend::{Backend, Entry, SequenceId};
use inference::{EngineError, Generation, Token};

use super::op::Op;
use super::tree::{NodeId, Tree};

/// Tokens at successive positions of the same sequences.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Span {
    pub(super) source: Source,
    pub(super) ids: Vec<SequenceId>,
    pub(super) start: usize,
    pub(super) tokens: Vec<Token>,
    /// Of the tokens, the first ones whose logits nobody wants.
    pub(super) silent: usize,
}

/// Where a span's tokens come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Source {
    /// Pending tokens of a node.
    Node(NodeId),
    /// Tokens that are expected after the last one of a sequence.
    Draft(SequenceId),
}

/// Everything that the backend does next.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Step {
    /// Before the batch.
    pub(super) ops: Vec<Op>,
    /// The weights of the batch.
    pub(super) generation: Generation,
    /// The batch; empty where copies must be seen to be restored first.
    pub(super) spans: Vec<Span>,
    /// Whether it may be broken off when somebody comes who is waited for.
    pub(super) may_be_interrupted: bool,
}

/// What came of a step.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// For each [`Op::Save`], in order, the copy; `None`: the backend has none.
    pub(super) saved: Vec<(u64, Option<Vec<u8>>)>,
    /// Sequences whose cells from a position on could not be restored.
    pub(super) not_restored: Vec<(SequenceId, usize)>,
    /// Tokens of the batch that were evaluated, from the first one: all, or fewer when the step was
    /// interrupted.
    pub(super) evaluated: Result<usize, EngineError>,
    /// How long the batch took, without what came before it.
    pub(super) took: Duration,
}

impl Step {
    /// Tokens of the batch.
    pub(crate) fn n_tokens(&self) -> usize {
        self.spans.iter().map(|span| span.tokens.len()).sum()
    }

    /// Whether nothing is evaluated.
    pub(crate) fn is_without_batch(&self) -> bool {
        self.spans.is_empty()
    }
}

/// What a batch must not do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Misplaced {
    /// Its first token is not the next one of the node.
    Gap,
    /// The node's parent, or what a draft follows, is not whole.
    BeforeParent,
}

/// Puts a batch together.
#[derive(Debug)]
pub(super) struct Builder<'a> {
    tree: &'a Tree,
    /// Tokens of each node that are evaluated or in the batch.
    planned: BTreeMap<NodeId, usize>,
    pub(super) tokens_left: usize,
    pub(super) outputs_left: usize,
    pub(super) cells_left: usize,
    spans: Vec<Span>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(tree: &'a Tree, tokens: usize, outputs: usize) -> Self {
        Self {
            tree,
            planned: BTreeMap::new(),
            tokens_left: tokens,
            outputs_left: outputs,
            cells_left: tree.free(),
            spans: Vec::new(),
        }
    }

    /// Tokens of a node that are evaluated or in the batch.
    pub(super) fn planned(&self, node: NodeId) -> usize {
        self.planned.get(&node).copied().unwrap_or_else(|| self.tree.span(node).2)
    }

    /// Puts tokens of a node into the batch, for all of its readers.
    pub(super) fn push(&mut self, node: NodeId, range: Range<usize>) -> Result<(), Misplaced> {
        let (start, tokens, _, parent) = self.tree.span(node);
        if range.start != self.planned(node) || tokens.len() < range.end || range.is_empty() {
            return Err(Misplaced::Gap);
        }
        if parent.is_some_and(|parent| self.planned(parent) < self.tree.span(parent).1.len()) {
            return Err(Misplaced::BeforeParent);
        }
        let ids = self.tree.readers(node);
        let silent = self.silent(&ids, start + range.start, range.len());
        self.take(range.len(), silent);
        self.planned.insert(node, range.end);
        self.spans.push(Span {
            source: Source::Node(node),
            ids,
            start: start + range.start,
            tokens: tokens[range].to_vec(),
            silent,
        });
        Ok(())
    }

    /// Of `n` tokens from a position on, the first ones whose logits no reader wants.
    fn silent(&self, ids: &[SequenceId], start: usize, n: usize) -> usize {
        let first = ids.iter().filter_map(|&id| self.tree.wants_from(id)).min();
        first.map_or(n, |first| first.saturating_sub(start).min(n))
    }

    /// How many of a node's next tokens fit, up to `to`.
    pub(super) fn room(&self, node: NodeId, to: usize) -> usize {
        let (start, ..) = self.tree.span(node);
        let from = self.planned(node);
        let wanted = to - from;
        let silent = self.silent(&self.tree.readers(node), start + from, wanted);
        wanted.min(silent + self.outputs_left).min(self.tokens_left).min(self.cells_left)
    }

    /// Puts what a sequence may say next into the batch, behind its last token.
    pub(super) fn push_draft(&mut self, id: SequenceId, tokens: &[Token]) -> Result<(), Misplaced> {
        let last = self.tree.last_node(id);
        if self.planned(last) < self.tree.span(last).1.len() {
            return Err(Misplaced::BeforeParent);
        }
        if tokens.is_empty() {
            return Ok(());
        }
        self.take(tokens.len(), 0);
        self.spans.push(Span {
            source: Source::Draft(id),
            ids: vec![id],
            start: self.tree.len(id),
            tokens: tokens.to_vec(),
            silent: 0,
        });
        Ok(())
    }

    fn take(&mut self, tokens: usize, silent: usize) {
        self.tokens_left = self.tokens_left.saturating_sub(tokens);
        self.outputs_left = self.outputs_left.saturating_sub(tokens - silent);
        self.cells_left = self.cells_left.saturating_sub(tokens);
    }

    /// Tokens in the batch.
    pub(super) fn n_tokens(&self) -> usize {
        self.spans.iter().map(|span| span.tokens.len()).sum()
    }

    pub(super) fn finish(self) -> Vec<Span> {
        self.spans
    }
}

/// Lets a backend do a step. `interrupt` ends it early where that is allowed.
pub(crate) fn execute(backend: &mut impl Backend, step: &Step, interrupt: &AtomicBool) -> Outcome {
    let mut outcome = Outcome {
        saved: Vec::new(),
        not_restored: Vec::new(),
        evaluated: Ok(0),
        took: Duration::ZERO,
    };
    for op in &step.ops {
        match op {
            Op::Share { from, to, n } => backend.copy(*from, *to, *n),
            Op::Truncate { id, n } => backend.truncate(*id, *n),
            Op::Save { id, from, to, copy } => {
                outcome.saved.push((*copy, backend.save(*id, *from..*to)));
            }
            Op::Restore { id, at, n, copy } => {
                // Behind a copy that is missing, the next ones would leave a gap.
                let is_behind_another = !outcome.not_restored.is_empty();
                if is_behind_another || !backend.restore(*id, *at..*at + *n, &copy.state) {
                    outcome.not_restored.push((*id, *at));
                }
            }
            Op::Free(generation) => backend.free(*generation),
        }
    }
    if step.spans.is_empty() {
        return outcome;
    }
    let entries: Vec<Entry<'_>> = step.spans.iter().flat_map(entries).collect();
    let interrupt = step.may_be_interrupted.then_some(interrupt);
    let begun = Instant::now();
    outcome.evaluated =
        backend.select(step.generation).and_then(|()| backend.decode(&entries, interrupt));
    outcome.took = begun.elapsed();
    outcome
}

fn entries(span: &Span) -> impl Iterator<Item = Entry<'_>> {
    span.tokens.iter().enumerate().map(|(i, &token)| Entry {
        token,
        position: span.start + i,
        sequences: &span.ids,
        logits: span.silent <= i,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tree::{CachePolicy, Wanted};
    use super::*;

    fn tokens(text: &str) -> Vec<Token> {
        text.bytes().map(|byte| Token(i32::from(byte))).collect()
    }

    fn insert(tree: &mut Tree, text: &str) -> SequenceId {
        let tokens = tokens(text);
        let wants_from = tokens.len() - 1;
        tree.insert(Generation::BASE, Wanted { tokens: &tokens, wants_from, with_copies: true })
    }

    #[test]
    fn a_token_before_one_that_it_follows_is_refused() {
        let mut tree = Tree::new(100, 4, CachePolicy::new(0));
        let [a, b] = ["trunk one", "trunk two"].map(|text| insert(&mut tree, text));
        let [trunk, leaf] = &tree.pending(a)[..] else { panic!("a trunk and an end of its own") };
        let mut builder = Builder::new(&tree, 64, 64);
        assert_eq!(builder.push(leaf.node, 0..3), Err(Misplaced::BeforeParent));
        assert_eq!(builder.push(trunk.node, 1..2), Err(Misplaced::Gap));
        builder.push(trunk.node, 0..4).unwrap();
        assert_eq!(builder.push(leaf.node, 0..3), Err(Misplaced::BeforeParent), "half a trunk");
        assert_eq!(builder.push(trunk.node, 0..4), Err(Misplaced::Gap), "it is in the batch");
        builder.push(trunk.node, 4..6).unwrap();
        builder.push(leaf.node, 0..3).unwrap();
        let spans = builder.finish();
        assert_eq!(spans[0].ids, [a, b], "the trunk is evaluated once, for both");
        assert_eq!((spans[2].start, spans[2].silent), (6, 2), "its last token has logits");
    }

    #[test]
    fn a_draft_before_the_token_that_it_follows_is_refused() {
        let mut tree = Tree::new(100, 4, CachePolicy::new(0));
        let id = insert(&mut tree, "said");
        let node = tree.last_node(id);
        tree.advance(node, 3);
        let mut builder = Builder::new(&tree, 64, 64);
        let draft = tokens("next");
        assert_eq!(builder.push_draft(id, &draft), Err(Misplaced::BeforeParent));
        builder.push(node, 3..4).unwrap();
        builder.push_draft(id, &draft).unwrap();
        let spans = builder.finish();
        assert_eq!((spans[1].start, spans[1].silent), (4, 0), "all of it has logits");
    }

    /// Siblings that were preempted with one sampled token, and whose trunk has left the context.
    #[test]
    fn siblings_that_restart_come_after_their_trunk() {
        let mut tree = Tree::new(100, 4, CachePolicy::new(0));
        let ids = [(); 2].map(|()| insert(&mut tree, "trunk"));
        let [trunk] = &tree.pending(ids[0])[..] else { panic!("they are the same") };
        tree.advance(trunk.node, 5);
        for (id, token) in ids.into_iter().zip(tokens("ab")) {
            tree.append(id, token);
        }
        for id in ids {
            tree.cache(id, usize::MAX, false);
        }
        assert!(tree.evict_id(None));
        let again = ["trunka", "trunkb"].map(|text| insert(&mut tree, text));
        for id in again {
            let spans = tree.pending(id);
            let lengths: Vec<usize> = spans.iter().map(|span| span.to - span.from).collect();
            assert_eq!(lengths, [5, 1]);
            assert_eq!(
                Builder::new(&tree, 64, 64).push(spans[1].node, 0..1),
                Err(Misplaced::BeforeParent)
            );
        }
        tree.check();
    }
}
