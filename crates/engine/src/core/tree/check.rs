//! What holds of a tree between two calls, for tests.

use std::collections::BTreeSet;
use std::sync::Arc;

use inference::Token;
use inference::backend::SequenceId;

use super::super::op::Op;
use super::{Host, NodeId, Tree};

impl Tree {
    /// The tokens of an id, from the root on.
    pub(in super::super) fn tokens(&self, id: SequenceId) -> Vec<Token> {
        let path = self.path(self.holder(id).node);
        path.iter().flat_map(|&id| self.node(id).tokens.iter().copied()).collect()
    }

    /// What the backend must do before the next batch.
    pub(in super::super) fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Ids that somebody has.
    pub(in super::super) fn held_ids(&self) -> impl Iterator<Item = SequenceId> {
        let held = self.ids.iter().enumerate().filter(|(_, holder)| holder.is_some());
        held.map(|(id, _)| SequenceId(id))
    }

    /// Panics where something of the file's header does not hold.
    pub(in super::super) fn check(&self) {
        let (mut used, mut pending, mut bytes, mut seen) = (0, 0, 0, 0);
        let mut copies = BTreeSet::new();
        let mut rest: Vec<NodeId> = self.roots.values().copied().collect();
        while let Some(id) = rest.pop() {
            seen += 1;
            let node = self.node(id);
            used += node.evaluated;
            pending += node.pending();
            assert!(node.evaluated <= node.tokens.len(), "{node:?}");
            if let Host::Saved { copy, .. } = &node.host
                && copies.insert(Arc::as_ptr(copy))
            {
                bytes += copy.state.len();
            }
            for &child in &node.children {
                let below = self.node(child);
                assert_eq!(below.parent, Some(id));
                assert_eq!(below.start, self.end(id));
                assert!(!below.tokens.is_empty(), "an empty node: {below:?}");
                let is_whole = node.evaluated == node.tokens.len();
                assert!(is_whole || below.evaluated == 0, "a gap: {node:?} {below:?}");
                assert!(node.is_in_context() || !below.is_in_context(), "cells behind a copy");
                if below.is_in_context() {
                    assert!(!self.readers(child).is_empty(), "nobody's cells: {below:?}");
                } else {
                    assert!(below.evaluated == 0 && below.ends.is_empty(), "{below:?}");
                }
            }
            for &end in &node.ends {
                assert_eq!(self.holder(end).node, id);
                if self.is_cached(end) {
                    let is_leaf = !self.has_child_in_context(id);
                    assert!(is_leaf && node.ends.len() == 1, "a cached id is held: {node:?}");
                    assert_eq!(node.evaluated, node.tokens.len(), "a cached id waits");
                    assert!(node.parent.is_some(), "a cached id without tokens");
                }
            }
            rest.extend_from_slice(&node.children);
        }
        assert_eq!((used, pending, bytes), (self.used, self.pending, self.host_bytes));
        assert_eq!(seen, self.nodes.iter().flatten().count(), "a node that no root has");
        assert!(self.used <= self.cells, "more cells than there are");
        let ends = self.nodes.iter().flatten().map(|node| node.ends.len()).sum::<usize>();
        assert_eq!(ends, self.ids.iter().flatten().count(), "an id that ends nowhere");
    }
}
