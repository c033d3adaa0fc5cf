//! The prefix cache: one radix tree of token spans for each generation, and which sequence of the
//! context holds which of them (the design of `RadixCache` in `SGLang`: Zheng and others, 2024).
//!
//! A *sequence id* of the context ends at a node and holds the cells of all evaluated tokens from the
//! root to there. An id either belongs to a running sequence, which reads the logits after its last
//! tokens, or it is cached for whoever begins alike. Below the last node in the context, nodes may
//! have a copy of their cells in host memory instead.
//!
//! What holds between two calls (`Tree::check` in `tree/check.rs` looks at all of it):
//! - the evaluated tokens of a path are its beginning, and each takes exactly one cell;
//! - every node in the context lies on the path of at least one id, which holds its evaluated cells;
//! - a cached id ends at a node without children in the context, and all of its tokens are evaluated.
//!
//! Every change of cells is also an [`Op`], which the backend does before the next batch. Pure; used
//! by `core.rs` and `plan.rs`.

#[cfg(test)]
mod check;
mod copies;
mod find;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use inference::backend::SequenceId;
use inference::{Generation, Token};

use super::faults::{Fault, is_planted};
use super::op::{Copied, Op};
pub(crate) use copies::CachePolicy;
use find::Place;
pub(super) use find::{Found, Wanted};

/// Names a node while it exists.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct NodeId(usize);

#[derive(Debug, Default)]
struct Node {
    /// `None`: the root of its generation.
    parent: Option<NodeId>,
    /// Position of its first token.
    start: usize,
    tokens: Vec<Token>,
    /// So many of them are in the context.
    evaluated: usize,
    children: Vec<NodeId>,
    /// Sequence ids that end here.
    ends: Vec<SequenceId>,
    host: Host,
}

/// Whether a node's cells are in host memory.
#[derive(Debug, Default)]
enum Host {
    /// They are in the context, or not evaluated yet.
    #[default]
    No,
    /// The backend is asked for a copy of this number in this step.
    Saving(u64),
    /// In a copy, which was of use last at this time.
    Saved { copy: Arc<Copied>, used: u64 },
}

/// Who has a sequence id.
#[derive(Clone, Copy, Debug)]
struct Holder {
    node: NodeId,
    role: Role,
}

#[derive(Clone, Copy, Debug)]
enum Role {
    /// Its logits are wanted from this position on.
    Running {
        wants_from: usize,
    },
    Cached(Value),
}

/// What a cached sequence is kept for; the least is evicted first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Value {
    /// Of a chat, and not of work that nobody waits for.
    is_urgent: bool,
    /// When it was of use last.
    used: u64,
}

/// A span of tokens that a sequence waits for: a node and the offsets of the tokens in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Pending {
    pub(super) node: NodeId,
    pub(super) from: usize,
    pub(super) to: usize,
}

/// See the file's header.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Option<Node>>,
    unused: Vec<NodeId>,
    roots: BTreeMap<Generation, NodeId>,
    ids: Vec<Option<Holder>>,
    cells: usize,
    used: usize,
    /// The most that were in use since none was: what is cached may lie up to there.
    peak: usize,
    pending: usize,
    host_bytes: usize,
    policy: CachePolicy,
    /// Of a cell in a copy, at most, as far as copies have told it.
    cell_bytes: usize,
    /// Counts up; orders uses.
    clock: u64,
    ops: Vec<Op>,
}

impl Tree {
    /// Nothing in it.
    pub(super) fn new(cells: usize, sequences: usize, policy: CachePolicy) -> Self {
        Self {
            nodes: Vec::new(),
            unused: Vec::new(),
            roots: BTreeMap::new(),
            ids: vec![None; sequences],
            cells,
            used: 0,
            peak: 0,
            pending: 0,
            host_bytes: 0,
            policy,
            cell_bytes: policy.cell_bytes,
            clock: 0,
            ops: Vec::new(),
        }
    }

    /// What the backend must do before the next batch, in this order.
    pub(super) fn take_ops(&mut self) -> Vec<Op> {
        std::mem::take(&mut self.ops)
    }

    /// Whether copies come back with the next step for a sequence that runs.
    pub(super) fn restores(&self) -> bool {
        let runs = |id: SequenceId| self.ids[id.0].is_some() && !self.is_cached(id);
        self.ops.iter().any(|op| matches!(*op, Op::Restore { id, .. } if runs(id)))
    }

    /// Whether copies are made with the next step.
    pub(super) fn has_saves(&self) -> bool {
        self.ops.iter().any(|op| matches!(op, Op::Save { .. }))
    }

    /// Whether there is something for the backend to do.
    pub(super) fn has_ops(&self) -> bool {
        !self.ops.is_empty()
    }

    /// Cells in use.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Cells that nothing holds.
    pub(super) fn free(&self) -> usize {
        self.cells - self.used
    }

    /// Tokens of running sequences that are not evaluated; shared ones count once.
    pub(super) fn pending_tokens(&self) -> usize {
        self.pending
    }

    /// Sequence ids that nobody has.
    pub(super) fn free_ids(&self) -> usize {
        self.ids.iter().filter(|holder| holder.is_none()).count()
    }

    /// Cached sequence ids.
    pub(super) fn cached_ids(&self) -> usize {
        self.cached().count()
    }

    /// Memory of the copies outside the context.
    pub(super) fn host_bytes(&self) -> usize {
        self.host_bytes
    }

    /// Tokens on the path of an id.
    pub(super) fn len(&self, id: SequenceId) -> usize {
        self.end(self.holder(id).node)
    }

    /// Of these, the evaluated ones.
    pub(super) fn evaluated(&self, id: SequenceId) -> usize {
        self.evaluated_to(self.holder(id).node)
    }

    /// The node in which a sequence ends.
    pub(super) fn last_node(&self, id: SequenceId) -> NodeId {
        self.holder(id).node
    }

    /// What a running sequence waits for, in order.
    pub(super) fn pending(&self, id: SequenceId) -> Vec<Pending> {
        let mut found = Vec::new();
        let mut next = Some(self.holder(id).node);
        while let Some(id) = next {
            let node = self.node(id);
            if node.evaluated == node.tokens.len() && !node.tokens.is_empty() {
                break;
            }
            if node.evaluated < node.tokens.len() {
                found.push(Pending { node: id, from: node.evaluated, to: node.tokens.len() });
            }
            next = node.parent;
        }
        found.reverse();
        found
    }

    /// What running sequences wait for, shared spans once.
    pub(super) fn pending_of(&self, ids: impl Iterator<Item = SequenceId>) -> Vec<Pending> {
        let mut spans: Vec<Pending> = ids.flat_map(|id| self.pending(id)).collect();
        spans.sort_unstable_by_key(|span| span.node);
        spans.dedup();
        spans
    }

    /// Tokens that these sequences wait for, and no other one.
    pub(super) fn waited_by(&self, ids: &BTreeSet<SequenceId>) -> usize {
        let spans = self.pending_of(ids.iter().copied());
        let own = spans.iter().filter(|it| self.readers(it.node).iter().all(|id| ids.contains(id)));
        own.map(|span| span.to - span.from).sum()
    }

    /// The position of a node's first token, its tokens and its evaluated ones, and its parent.
    pub(super) fn span(&self, id: NodeId) -> (usize, &[Token], usize, Option<NodeId>) {
        let node = self.node(id);
        (node.start, &node.tokens, node.evaluated, node.parent)
    }

    /// Whether everything before a node is evaluated.
    pub(super) fn follows_whole(&self, id: NodeId) -> bool {
        let parent = self.node(id).parent.map(|parent| self.node(parent));
        parent.is_none_or(|parent| parent.evaluated == parent.tokens.len())
    }

    /// All ids whose paths have this node.
    pub(super) fn readers(&self, id: NodeId) -> Vec<SequenceId> {
        let mut readers = Vec::new();
        let mut rest = vec![id];
        while let Some(id) = rest.pop() {
            let node = self.node(id);
            readers.extend_from_slice(&node.ends);
            rest.extend_from_slice(&node.children);
        }
        readers.sort_unstable();
        readers
    }

    /// The first position from which on a running sequence wants logits; `None` for a cached one.
    pub(super) fn wants_from(&self, id: SequenceId) -> Option<usize> {
        match self.holder(id).role {
            Role::Running { wants_from } => Some(wants_from),
            Role::Cached(_) => None,
        }
    }

    /// Gives a new running sequence an id, which shares what is there. The caller has seen that an
    /// id is free, or that one is evicted.
    pub(super) fn insert(&mut self, generation: Generation, wanted: Wanted<'_>) -> SequenceId {
        let Wanted { tokens, wants_from, .. } = wanted;
        let place = self.place(generation, wanted);
        let id = self.hold(generation, &place);
        let rest = &tokens[place.shared..];
        if !rest.is_empty() {
            self.grow(id, rest);
        }
        self.set_role(id, Role::Running { wants_from });
        id
    }

    /// Gives a place an id. Copies on the way there come back.
    fn hold(&mut self, generation: Generation, place: &Place) -> SequenceId {
        self.clock += 1;
        let root = match self.roots.get(&generation) {
            Some(&root) => root,
            None => {
                let root = self.add(Node::default());
                self.roots.insert(generation, root);
                root
            }
        };
        // The last node in the context, from which on the copies in host memory follow.
        let in_context = place.path.iter().take_while(|id| self.node(**id).is_in_context()).count();
        let (inside, copied) = place.path.split_at(in_context);
        let mut last = inside.last().copied().unwrap_or(root);
        if copied.is_empty() && place.within < self.node(last).tokens.len() && last != root {
            last = self.split_for(last, place.within);
        }
        let mut copied = copied.to_vec();
        if let Some(end) = copied.last_mut()
            && place.within < self.node(*end).tokens.len()
        {
            *end = self.split(*end, place.within);
        }
        let id = self.take_id(last);
        let mut at = last;
        for copy in copied {
            self.restore(id, copy);
            at = copy;
        }
        self.place_end(id, at);
        id
    }

    /// Splits a node where a new sequence leaves it. A cached sequence that goes on for one token
    /// more, and no copy after it, gives that up: to evaluate a token again costs less than an id.
    fn split_for(&mut self, node: NodeId, within: usize) -> NodeId {
        if let [end] = self.node(node).ends[..]
            && self.is_cached(end)
            && self.node(node).children.is_empty()
            && within + 1 == self.node(node).tokens.len()
        {
            let keep = self.node(node).start + within;
            self.truncate(end, keep);
            return self.holder(end).node;
        }
        self.split(node, within)
    }

    /// An id whose cells are the evaluated ones up to the end of `node`, and which ends nowhere yet.
    fn take_id(&mut self, node: NodeId) -> SequenceId {
        let cached = self.node(node).ends.iter().copied().find(|&end| self.is_cached(end));
        if let Some(id) = cached {
            // It goes on from here, and whoever comes later shares it with the new sequence.
            self.remove_end(id);
            return id;
        }
        let free = self.ids.iter().position(Option::is_none);
        let to = SequenceId(free.expect("the caller has seen that an id is free"));
        let from = self.readers(node).into_iter().next();
        let role = Role::Running { wants_from: 0 };
        self.ids[to.0] = Some(Holder { node, role });
        if let Some(from) = from {
            let n = self.evaluated_to(node);
            if 0 < n {
                self.touch(from);
                self.ops.push(Op::Share { from, to, n });
            }
        }
        to
    }

    /// Evaluated tokens from the root to the end of a node.
    fn evaluated_to(&self, mut id: NodeId) -> usize {
        while let (0, Some(parent)) = (self.node(id).evaluated, self.node(id).parent) {
            id = parent;
        }
        self.node(id).start + self.node(id).evaluated
    }

    /// Lets the sequence go on with tokens that are not evaluated.
    fn grow(&mut self, id: SequenceId, tokens: &[Token]) {
        let at = self.holder(id).node;
        self.pending += tokens.len();
        if self.is_alone_at_leaf(id) {
            self.node_mut(at).tokens.extend_from_slice(tokens);
            return;
        }
        let start = self.end(at);
        let child =
            self.add(Node { parent: Some(at), start, tokens: tokens.to_vec(), ..Node::default() });
        self.node_mut(at).children.push(child);
        self.move_end(id, child);
    }

    /// A running sequence has sampled a token, which is evaluated next: together with another one
    /// that says the same after the same tokens.
    pub(super) fn append(&mut self, id: SequenceId, token: Token) {
        let at = self.holder(id).node;
        let waiting = self.node(at).children.iter().copied().find(|&child| {
            let node = self.node(child);
            node.is_in_context() && node.evaluated == 0 && node.tokens.first() == Some(&token)
        });
        match waiting {
            Some(child) if self.node(child).tokens.len() == 1 => self.move_end(id, child),
            Some(child) => {
                let first = self.split(child, 1);
                self.move_end(id, first);
            }
            None => self.grow(id, &[token]),
        }
        let wants_from = self.len(id) - 1;
        self.set_role(id, Role::Running { wants_from });
    }

    /// A running sequence goes on with tokens that are evaluated in its id already.
    pub(super) fn append_evaluated(&mut self, id: SequenceId, tokens: &[Token]) {
        if tokens.is_empty() {
            return;
        }
        if !self.is_alone_at_leaf(id) {
            let at = self.holder(id).node;
            let start = self.end(at);
            let child = self.add(Node { parent: Some(at), start, ..Node::default() });
            self.node_mut(at).children.push(child);
            self.move_end(id, child);
        }
        let at = self.holder(id).node;
        let node = self.node_mut(at);
        node.tokens.extend_from_slice(tokens);
        node.evaluated = node.tokens.len();
        self.take(tokens.len());
    }

    /// The next `n` tokens of a node are evaluated in the ids of all its readers.
    pub(super) fn advance(&mut self, id: NodeId, n: usize) {
        let node = self.node_mut(id);
        node.evaluated += n;
        assert!(node.evaluated <= node.tokens.len(), "a step evaluates what is pending");
        self.take(n);
        self.pending -= n;
    }

    /// The backend must cut an id's cells: it may have more than the books say.
    pub(super) fn cut(&mut self, id: SequenceId) {
        let n = self.evaluated(id);
        self.ops.push(Op::Truncate { id, n });
    }

    /// Keeps the first `keep` tokens of a sequence that has ended or is preempted, as far as they
    /// are evaluated, for whoever begins alike.
    pub(super) fn cache(&mut self, id: SequenceId, keep: usize, is_urgent: bool) {
        let n = self.evaluated(id).min(keep);
        self.truncate(id, n);
        if n == 0 || self.is_held(id) || self.is_covered(id) {
            self.release(id);
            return;
        }
        self.clock += 1;
        let used = self.clock;
        self.set_role(id, Role::Cached(Value { is_urgent, used }));
        for other in self.cached().map(|(other, _)| other).collect::<Vec<_>>() {
            if other != id && self.begins_with(id, other) {
                self.release(other);
            }
        }
    }

    /// Keeps of each cached sequence what a new one begins with too, in whole blocks of `block`
    /// tokens, and frees the rest.
    pub(super) fn keep_common(&mut self, generation: Generation, tokens: &[Token], block: usize) {
        for id in self.cached().map(|(id, _)| id).collect::<Vec<_>>() {
            let path = self.path(self.holder(id).node);
            let is_of_it = self.roots.get(&generation) == path.first();
            let cached = path.iter().flat_map(|&node| &self.node(node).tokens);
            let common = cached.zip(tokens).take_while(|(a, b)| a == b).count();
            match if is_of_it { common / block * block } else { 0 } {
                0 => self.release(id),
                keep => self.truncate(id, keep),
            }
        }
    }

    /// Gives an id back, with its cells.
    pub(super) fn release(&mut self, id: SequenceId) {
        if 0 < self.evaluated(id) && !is_planted(Fault::LeakedId) {
            self.ops.push(Op::Truncate { id, n: 0 });
        }
        let at = self.holder(id).node;
        self.remove_end(id);
        self.ids[id.0] = None;
        self.tidy(at);
        if is_planted(Fault::DoubleFree) && 0 < self.used {
            self.used -= 1;
        }
    }

    /// Whether more cells are cached than should stay in the context.
    pub(super) fn caches_too_much(&self) -> bool {
        0 < self.cached_ids() && self.policy.resident < self.freed_without(|_| false)
    }

    /// Whether attention looks at far more cells than are in use, and these are few, so that their copies
    /// displace few others: cells are taken from the beginning on, and what is cached was evaluated when
    /// more of them were in use.
    pub(super) fn is_scattered(&self) -> bool {
        let is_few = 0 < self.used && self.used <= 2 * self.policy.resident;
        let is_far_more = 2 * self.used + self.policy.resident < self.peak;
        let fits = self.used * self.cell_bytes <= self.policy.host_bytes;
        is_few && is_far_more && fits
    }

    /// So many more cells are in use.
    fn take(&mut self, cells: usize) {
        if self.used == 0 {
            self.peak = 0;
        }
        self.used += cells;
        self.peak = self.peak.max(self.used);
    }

    /// Cells that would be free without the cached sequences and the running ones that yield.
    pub(super) fn freed_without(&self, yields: impl Fn(SequenceId) -> bool) -> usize {
        let mut total = 0;
        let mut rest: Vec<(NodeId, bool)> =
            self.roots.values().map(|&root| (root, false)).collect();
        // Children before their parents.
        let mut runs = BTreeMap::new();
        while let Some((id, are_children_done)) = rest.pop() {
            let node = self.node(id);
            if are_children_done {
                let is_running = node.ends.iter().any(|&end| !self.is_cached(end) && !yields(end))
                    || node.children.iter().any(|child| runs[child]);
                if !is_running {
                    total += node.evaluated;
                }
                runs.insert(id, is_running);
            } else {
                rest.push((id, true));
                rest.extend(node.children.iter().map(|&child| (child, false)));
            }
        }
        total
    }

    fn drop_subtree(&mut self, id: NodeId) {
        let mut rest = vec![id];
        let mut has_copies = false;
        while let Some(id) = rest.pop() {
            let node = self.nodes[id.0].take().expect("a child exists");
            has_copies |= !node.is_in_context();
            self.used -= node.evaluated;
            self.pending -= node.pending();
            rest.extend(node.children);
            self.unused.push(id);
        }
        if has_copies {
            self.count_host_bytes();
        }
    }

    /// Drops everything of a generation that no running sequence has.
    pub(super) fn forget(&mut self, generation: Generation) {
        let Some(&root) = self.roots.get(&generation) else { return };
        for id in
            self.readers(root).into_iter().filter(|&id| self.is_cached(id)).collect::<Vec<_>>()
        {
            self.release(id);
        }
        for child in self.node(root).children.clone() {
            if !self.node(child).is_in_context() {
                self.node_mut(root).children.retain(|&other| other != child);
                self.drop_subtree(child);
            }
        }
        if self.node(root).children.is_empty() && self.node(root).ends.is_empty() {
            self.nodes[root.0] = None;
            self.unused.push(root);
            self.roots.remove(&generation);
        }
    }

    /// Lets a sequence end after its first `n` tokens.
    fn truncate(&mut self, id: SequenceId, n: usize) {
        if n < self.evaluated(id) {
            self.ops.push(Op::Truncate { id, n });
        }
        let from = self.holder(id).node;
        let mut at = from;
        while n <= self.node(at).start
            && let Some(parent) = self.node(at).parent
        {
            at = parent;
        }
        let within = n - self.node(at).start;
        if within < self.node(at).tokens.len() {
            at = self.split(at, within);
        }
        if at != from {
            self.move_end(id, at);
        }
    }

    /// Makes a node of a node's first tokens, above it. The node keeps its number, and so the ids
    /// that end in it stay where they are.
    fn split(&mut self, id: NodeId, within: usize) -> NodeId {
        let node = self.node_mut(id);
        debug_assert!(0 < within && within < node.tokens.len());
        let rest = node.tokens.split_off(within);
        let tokens = std::mem::replace(&mut node.tokens, rest);
        let evaluated = node.evaluated.min(within);
        node.evaluated -= evaluated;
        let (parent, start) = (node.parent, node.start);
        let host = match &node.host {
            Host::Saved { copy, used } => Host::Saved { copy: Arc::clone(copy), used: *used },
            Host::No | Host::Saving(_) => Host::No,
        };
        node.start += within;
        let (children, ends) = (vec![id], Vec::new());
        let upper = self.add(Node { parent, start, tokens, evaluated, children, ends, host });
        self.node_mut(id).parent = Some(upper);
        let parent = parent.expect("a root has no tokens to split");
        for child in &mut self.node_mut(parent).children {
            if *child == id {
                *child = upper;
            }
        }
        upper
    }

    /// Removes a node that no id needs, and then its parents; joins a node with its only child when
    /// nothing ends between them.
    fn tidy(&mut self, mut id: NodeId) {
        loop {
            let node = self.node(id);
            let Some(parent) = node.parent else { return };
            if !node.ends.is_empty() || !node.is_in_context() {
                return;
            }
            if self.has_child_in_context(id) {
                if let [child] = self.node(id).children[..] {
                    self.join(id, child);
                }
                return;
            }
            // Without the cells before them, copies in host memory are of no use.
            self.node_mut(parent).children.retain(|&child| child != id);
            self.drop_subtree(id);
            id = parent;
        }
    }

    fn join(&mut self, upper: NodeId, child: NodeId) {
        let node = self.nodes[upper.0].take().expect("the node exists");
        self.unused.push(upper);
        let parent = node.parent.expect("a root is joined with nothing");
        for other in &mut self.node_mut(parent).children {
            if *other == upper {
                *other = child;
            }
        }
        let lower = self.node_mut(child);
        let mut tokens = node.tokens;
        tokens.append(&mut lower.tokens);
        lower.tokens = tokens;
        lower.evaluated += node.evaluated;
        lower.start = node.start;
        lower.parent = Some(parent);
    }

    fn move_end(&mut self, id: SequenceId, to: NodeId) {
        let from = self.holder(id).node;
        self.remove_end(id);
        self.place_end(id, to);
        if from != to {
            self.tidy(from);
        }
    }

    fn place_end(&mut self, id: SequenceId, node: NodeId) {
        self.node_mut(node).ends.push(id);
        if let Some(holder) = &mut self.ids[id.0] {
            holder.node = node;
        }
    }

    fn remove_end(&mut self, id: SequenceId) {
        let node = self.holder(id).node;
        self.node_mut(node).ends.retain(|&end| end != id);
    }

    /// From the root on.
    fn path(&self, mut id: NodeId) -> Vec<NodeId> {
        let mut path = vec![id];
        while let Some(parent) = self.node(id).parent {
            path.push(parent);
            id = parent;
        }
        path.reverse();
        path
    }

    fn root_of(&self, id: SequenceId) -> NodeId {
        self.path(self.holder(id).node)[0]
    }

    /// Notes that a cached sequence was of use.
    fn touch(&mut self, id: SequenceId) {
        let used = self.clock;
        if let Some(Holder { role: Role::Cached(value), .. }) = &mut self.ids[id.0] {
            value.used = used;
        }
    }

    fn cached(&self) -> impl Iterator<Item = (SequenceId, Value)> {
        self.ids.iter().enumerate().filter_map(|(id, holder)| match (*holder)?.role {
            Role::Cached(value) => Some((SequenceId(id), value)),
            Role::Running { .. } => None,
        })
    }

    fn is_cached(&self, id: SequenceId) -> bool {
        matches!(self.holder(id).role, Role::Cached(_))
    }

    fn is_alone_at_leaf(&self, id: SequenceId) -> bool {
        let node = self.node(self.holder(id).node);
        node.parent.is_some() && node.ends == [id] && node.children.is_empty()
    }

    /// Whether another id ends at or below the end of this one, and so holds its cells.
    fn is_held(&self, id: SequenceId) -> bool {
        let at = self.holder(id).node;
        1 < self.node(at).ends.len() || self.has_child_in_context(at)
    }

    fn has_child_in_context(&self, id: NodeId) -> bool {
        self.node(id).children.iter().any(|&child| self.node(child).is_in_context())
    }

    /// The position after a node's last token.
    fn end(&self, id: NodeId) -> usize {
        self.node(id).start + self.node(id).tokens.len()
    }

    fn set_role(&mut self, id: SequenceId, role: Role) {
        if let Some(holder) = &mut self.ids[id.0] {
            holder.role = role;
        }
    }

    fn holder(&self, id: SequenceId) -> Holder {
        self.ids[id.0].expect("a sequence that is asked for has an id")
    }

    fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.0].as_ref().expect("a node that is named exists")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.0].as_mut().expect("a node that is named exists")
    }

    fn add(&mut self, node: Node) -> NodeId {
        if let Some(id) = self.unused.pop() {
            self.nodes[id.0] = Some(node);
            return id;
        }
        self.nodes.push(Some(node));
        NodeId(self.nodes.len() - 1)
    }
}

impl Node {
    fn is_in_context(&self) -> bool {
        matches!(self.host, Host::No)
    }

    /// Tokens that are to be evaluated.
    fn pending(&self) -> usize {
        if self.is_in_context() { self.tokens.len() - self.evaluated } else { 0 }
    }
}

/// Tokens that both begin with.
pub(super) fn common_prefix(a: &[Token], b: &[Token]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
