//! How cells leave the context and come back: cached sequences are evicted from their ends, what they
//! leave is copied to host memory, and a new sequence that begins alike takes it back, both in slices.

use std::collections::BTreeMap;
use std::sync::Arc;

use inference::Generation;
use inference::backend::SequenceId;

use super::super::op::{Copied, Op};
use super::{Host, Node, NodeId, Role, Tree, Value, Wanted};

/// When cells of cached sequences leave the context, and which copies of them are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CachePolicy {
    /// Cells of cached sequences that stay in the context. The next wave of a request finds its prefix
    /// there, and more would slow every step: attention looks at all cells up to the last one in use.
    pub(crate) resident: usize,
    /// Host memory of all copies at most; zero: none are made.
    pub(crate) host_bytes: usize,
    /// Tokens of one copy at most.
    pub(crate) block: usize,
    /// Fewer tokens are evaluated again as fast as they are copied, unless a copy continues them.
    pub(crate) least: usize,
    /// A step that copies so many bytes copies no further ones, so that who comes does not wait for them.
    pub(crate) bytes_at_once: usize,
    /// Of a cell in a copy, about; not 0. Copies tell it better.
    pub(crate) cell_bytes: usize,
}

impl CachePolicy {
    /// At most `host_bytes` of copies are kept in host memory.
    pub(crate) fn new(host_bytes: usize) -> Self {
        // 2 GB a second are copied on an EPYC, so 16 to 20 ms.
        let bytes_at_once = 32 << 20;
        Self { resident: 512, host_bytes, block: 256, least: 16, bytes_at_once, cell_bytes: 1 }
    }
}

impl Tree {
    /// Lets copies that a new sequence goes on with come back, if the next step copies too much for all of
    /// them: those that come first, which are cached meanwhile. True: the rest comes back with the sequence
    /// itself. The caller has seen that an id is free, or that one is evicted.
    pub(in super::super) fn bring_back(
        &mut self,
        generation: Generation,
        wanted: Wanted<'_>,
        is_urgent: bool,
    ) -> bool {
        let mut place = self.place(generation, wanted);
        let (mut n_copied, mut n_nodes) = (self.copying(), 0);
        for &id in &place.path {
            let node = self.node(id);
            if !node.is_in_context() {
                if self.is_enough(n_copied) {
                    break;
                }
                n_copied += node.tokens.len();
            }
            n_nodes += 1;
        }
        if n_nodes == place.path.len() {
            return true;
        }
        place.path.truncate(n_nodes);
        if let Some(&last) = place.path.last()
            && !self.node(last).is_in_context()
        {
            place.within = self.node(last).tokens.len();
            let id = self.hold(generation, &place);
            let used = self.clock;
            self.set_role(id, Role::Cached(Value { is_urgent, used }));
        }
        false
    }

    pub(super) fn restore(&mut self, id: SequenceId, copy: NodeId) {
        let node = self.node_mut(copy);
        let Host::Saved { copy, .. } = std::mem::take(&mut node.host) else {
            unreachable!("only saved copies are shared")
        };
        node.evaluated = node.tokens.len();
        let (at, n) = (node.start, node.tokens.len());
        self.count_host_bytes();
        self.take(n);
        self.ops.push(Op::Restore { id, at, n, copy });
    }

    /// The backend could not restore the copy of an id's cells from `at` on: these tokens, and what
    /// follows them, are evaluated again.
    pub(in super::super) fn restore_failed(&mut self, id: SequenceId, at: usize) {
        if self.ids[id.0].is_none() {
            return;
        }
        let path = self.path(self.holder(id).node);
        let Some(failed) = path.into_iter().find(|&node| at < self.end(node)) else { return };
        let start = self.node(failed).start;
        if start < at {
            // What was restored was joined with what it followed.
            self.split(failed, at - start);
        }
        let mut rest = vec![failed];
        while let Some(id) = rest.pop() {
            let node = self.node_mut(id);
            let n = std::mem::take(&mut node.evaluated);
            rest.extend_from_slice(&node.children);
            self.used -= n;
            self.pending += n;
        }
        for id in self.readers(failed) {
            self.cut(id);
            if self.is_cached(id) {
                self.truncate(id, at);
                self.settle_cached(id);
            }
        }
    }

    /// Takes the end of the cached sequence that is worth least out of the context. False when there
    /// is none.
    pub(in super::super) fn evict(&mut self, keep: Option<SequenceId>) -> bool {
        let Some(id) = self.least(keep) else { return false };
        self.evict_end(id);
        true
    }

    /// Whether a further copy displaces none.
    pub(in super::super) fn has_host_room(&self) -> bool {
        let next = (self.copying() + self.block()) * self.cell_bytes;
        self.policy.host_bytes != 0 && self.host_bytes + next <= self.policy.host_bytes
    }

    /// Whether a step may copy all that is in use.
    pub(in super::super) fn fits_into_a_step(&self) -> bool {
        self.used * self.cell_bytes <= self.policy.bytes_at_once
    }

    /// Whether the next step copies as much as it should, there or back.
    pub(in super::super) fn copies_enough(&self) -> bool {
        self.is_enough(self.copying())
    }

    fn is_enough(&self, cells: usize) -> bool {
        0 < cells && self.policy.bytes_at_once <= cells * self.cell_bytes
    }

    /// Cells that the next step copies.
    fn copying(&self) -> usize {
        let copied = self.ops.iter().map(|op| match op {
            Op::Save { from, to, .. } => to - from,
            Op::Restore { n, .. } => *n,
            Op::Share { .. } | Op::Truncate { .. } | Op::Free(_) => 0,
        });
        copied.sum()
    }

    /// Tokens of the next copy at most: with the last one a step copies at most a quarter more than it should.
    fn block(&self) -> usize {
        let fits = self.policy.bytes_at_once / 4 / self.cell_bytes;
        self.policy.block.min(fits.max(1))
    }

    /// Takes a whole cached sequence out, so that its id is free, or as much of it as a step copies. False
    /// when there is none.
    pub(in super::super) fn evict_id(&mut self, keep: Option<SequenceId>) -> bool {
        let Some(id) = self.least(keep) else { return false };
        while self.ids[id.0].is_some() && !self.copies_enough() {
            self.evict_end(id);
        }
        true
    }

    /// The cached sequence that is worth least; `keep` comes last of all.
    fn least(&self, keep: Option<SequenceId>) -> Option<SequenceId> {
        let least = self.cached().min_by_key(|&(id, value)| (keep == Some(id), value, id));
        least.map(|(id, _)| id)
    }

    fn evict_end(&mut self, id: SequenceId) {
        let at = self.holder(id).node;
        let n = self.node(at).tokens.len();
        let is_short = n < self.policy.least && self.node(at).children.is_empty();
        if is_short || self.policy.host_bytes == 0 {
            let keep = self.node(at).start;
            self.truncate(id, keep);
            self.settle_cached(id);
            return;
        }
        let block = self.block();
        if block < n {
            self.split(at, n - block);
        }
        let node = self.node(at);
        let (from, to, parent) = (node.start, node.start + node.tokens.len(), node.parent);
        self.clock += 1;
        let copy = self.clock;
        self.ops.push(Op::Save { id, from, to, copy });
        self.ops.push(Op::Truncate { id, n: from });
        self.remove_end(id);
        self.place_end(id, parent.expect("a cached sequence does not end at the root"));
        let node = self.node_mut(at);
        node.host = Host::Saving(copy);
        let evaluated = std::mem::take(&mut node.evaluated);
        self.used -= evaluated;
        self.settle_cached(id);
    }

    /// A cached id that was cut is kept where nobody else holds its cells.
    fn settle_cached(&mut self, id: SequenceId) {
        if self.len(id) == 0 || self.is_held(id) {
            self.release(id);
        }
    }

    /// Takes a copy that the backend has made; `None`: it could not.
    pub(in super::super) fn saved(&mut self, copy: u64, state: Option<Vec<u8>>) {
        let is_it = |node: &Option<Node>| {
            node.as_ref().is_some_and(|node| matches!(node.host, Host::Saving(it) if it == copy))
        };
        // Without the cells before it, it was dropped meanwhile.
        let Some(id) = self.nodes.iter().position(is_it).map(NodeId) else { return };
        let Some(state) = state else {
            self.drop_copies(id);
            return;
        };
        self.clock += 1;
        let used = self.clock;
        let n = self.node(id).tokens.len();
        self.cell_bytes = self.cell_bytes.max(state.len().div_ceil(n.max(1)));
        self.node_mut(id).host = Host::Saved { copy: Arc::new(Copied { state, n }), used };
        self.count_host_bytes();
        while self.policy.host_bytes < self.host_bytes {
            let Some(oldest) = self.oldest_copy() else { break };
            self.drop_copies(oldest);
        }
    }

    pub(super) fn count_host_bytes(&mut self) {
        let copies = self.nodes.iter().flatten().filter_map(|node| match &node.host {
            Host::Saved { copy, .. } => Some((Arc::as_ptr(copy), copy.state.len())),
            Host::No | Host::Saving(_) => None,
        });
        self.host_bytes = copies.collect::<BTreeMap<_, _>>().into_values().sum();
    }

    /// Of the copies that no other one continues, the one that was of use longest ago.
    fn oldest_copy(&self) -> Option<NodeId> {
        let nodes =
            self.nodes.iter().enumerate().filter_map(|(id, node)| Some((id, node.as_ref()?)));
        let ends = nodes.filter(|(_, node)| node.children.is_empty());
        let copies = ends.filter_map(|(id, node)| match node.host {
            Host::Saved { used, .. } => Some((used, NodeId(id))),
            Host::No | Host::Saving(_) => None,
        });
        copies.min().map(|(_, id)| id)
    }

    /// Drops a node outside the context, and all that continue it.
    fn drop_copies(&mut self, id: NodeId) {
        let parent = self.node(id).parent.expect("a copy is no root");
        self.node_mut(parent).children.retain(|&child| child != id);
        self.drop_subtree(id);
        self.tidy(parent);
    }
}
