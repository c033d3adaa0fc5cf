//! How much of a new sequence is there already: the path from the root with which it has most in
//! common.

use inference::backend::SequenceId;
use inference::{Generation, Token};

use super::super::faults::{Fault, is_planted};
use super::{Host, NodeId, Tree, common_prefix};

/// How much of a new sequence is there.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(in super::super) struct Found {
    /// Tokens whose cells are in the context.
    pub(in super::super) evaluated: usize,
    /// Tokens whose cells are in host memory.
    pub(in super::super) copied: usize,
    /// Cells that are free again when the copies are back: a copy comes back as a whole.
    pub(in super::super) extra: usize,
    /// Tokens that another sequence is about to evaluate.
    pub(in super::super) pending: usize,
    /// An id that should not be evicted for it.
    pub(in super::super) source: Option<SequenceId>,
    /// Whether a cached id ends where it begins to differ, which it then goes on with.
    pub(in super::super) has_id: bool,
}

/// A sequence that is to run.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Wanted<'a> {
    pub(in super::super) tokens: &'a [Token],
    /// Its logits are wanted from this position on.
    pub(in super::super) wants_from: usize,
    /// Whether copies may come back from host memory for it.
    pub(in super::super) with_copies: bool,
}

/// The place in the tree where a new sequence leaves what is there.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// From the root's child on, each whole but the last.
    pub(super) path: Vec<NodeId>,
    /// Tokens of the last node that are shared.
    pub(super) within: usize,
    /// Tokens shared in all, and of these the ones that need not be evaluated.
    pub(super) shared: usize,
    pub(super) ready: usize,
}

impl Tree {
    /// How much of a sequence is there whose logits are wanted from `wants_from` on.
    pub(in super::super) fn find(&self, generation: Generation, wanted: Wanted<'_>) -> Found {
        let place = self.place(generation, wanted);
        let mut found = Found::default();
        for (index, &id) in place.path.iter().enumerate() {
            let node = self.node(id);
            let shared =
                if index + 1 == place.path.len() { place.within } else { node.tokens.len() };
            if node.is_in_context() {
                found.evaluated += shared.min(node.evaluated);
                found.pending += shared.saturating_sub(node.evaluated);
                found.source = self.readers(id).first().copied();
                found.has_id =
                    shared == node.tokens.len() && node.ends.iter().any(|&end| self.is_cached(end));
            } else if let Host::Saved { copy, .. } = &node.host {
                found.copied += shared;
                found.extra = found.extra.max(copy.n - shared);
            }
        }
        found
    }

    /// The longest beginning of `tokens` that is there. What is evaluated can only be shared before
    /// `wants_from`, because its logits are gone; what is pending can be shared to its end.
    pub(super) fn place(&self, generation: Generation, wanted: Wanted<'_>) -> Place {
        let Wanted { tokens, wants_from, with_copies } = wanted;
        let mut best = Place { path: Vec::new(), within: 0, shared: 0, ready: 0 };
        let Some(&root) = self.roots.get(&generation) else { return best };
        let mut rest = vec![(root, Vec::new(), 0)];
        while let Some((parent, path, ready)) = rest.pop() {
            for &child in &self.node(parent).children {
                let node = self.node(child);
                let mut within = common_prefix(&node.tokens, &tokens[node.start..]);
                let there = match node.host {
                    Host::No => within.min(node.evaluated),
                    // A copy goes behind cells that are there.
                    Host::Saved { .. } if with_copies && ready == node.start => within,
                    Host::Saved { .. } | Host::Saving(_) => continue,
                };
                if 0 < there && wants_from < node.start + there {
                    within = wants_from.saturating_sub(node.start);
                }
                if within == 0 {
                    continue;
                }
                let ready = ready + within.min(there);
                let end = node.start + within;
                if is_planted(Fault::WrongParent) && within < node.evaluated && end < wants_from {
                    within += 1;
                }
                let path: Vec<NodeId> = path.iter().copied().chain([child]).collect();
                let shared = node.start + within;
                if within == node.tokens.len() {
                    rest.push((child, path.clone(), ready));
                }
                if (best.ready, best.shared) < (ready, shared) {
                    best = Place { path, within, shared, ready };
                }
            }
        }
        best
    }

    /// Whether another id has all tokens of this one, on another path: two that begin alike are
    /// apart where one wanted logits of tokens that the other had evaluated.
    pub(super) fn is_covered(&self, id: SequenceId) -> bool {
        let root = self.root_of(id);
        let others = self.readers(root).into_iter().filter(|&other| other != id);
        others
            .into_iter()
            .any(|other| self.begins_with(other, id) && self.len(id) <= self.evaluated(other))
    }

    /// Whether the tokens of `long` begin with all those of `short`, in the same generation.
    pub(super) fn begins_with(&self, long: SequenceId, short: SequenceId) -> bool {
        let [a, b] = [long, short].map(|id| self.path(self.holder(id).node));
        if a.first() != b.first() || self.len(long) < self.len(short) {
            return false;
        }
        let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
        let tokens = |path: &[NodeId]| -> Vec<Token> {
            path[same..].iter().flat_map(|&id| self.node(id).tokens.iter().copied()).collect()
        };
        tokens(&a).starts_with(&tokens(&b))
    }
}
