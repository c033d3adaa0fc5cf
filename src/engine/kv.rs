//! The books of the KV cache: which sequence holds which tokens in which cells, which ids are
//! free, and which finished sequences stay as a prefix cache. Every change goes to the backend in
//! the same call, so that books and cache cannot drift apart. Used by the engine thread alone.

use super::backend::{Backend, SequenceId};
use super::{Generation, Token};

/// The books.
#[derive(Debug)]
pub(super) struct Kv {
    sequences: Vec<Sequence>,
    /// For each cell how many sequences share it.
    holders: Vec<u32>,
    free_cells: Vec<usize>,
    /// Counts up; orders idle sequences by their last use.
    clock: u64,
}

#[derive(Debug, Default)]
struct Sequence {
    state: State,
    tokens: Vec<Token>,
    cells: Vec<usize>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    #[default]
    Free,
    Busy,
    /// Kept for whoever begins with the same tokens in the same lane.
    Idle {
        generation: Generation,
        used: u64,
    },
}

impl Kv {
    /// Nothing in use.
    pub(super) fn new(cells: usize, sequences: usize) -> Self {
        Self {
            sequences: (0..sequences).map(|_| Sequence::default()).collect(),
            holders: vec![0; cells],
            free_cells: (0..cells).rev().collect(),
            clock: 0,
        }
    }

    /// Cells that any sequence holds, idle ones too.
    pub(super) fn used(&self) -> usize {
        self.holders.len() - self.free_cells.len()
    }

    /// Cells that no sequence holds.
    pub(super) fn free(&self) -> usize {
        self.free_cells.len()
    }

    /// Ids that no sequence has.
    pub(super) fn free_sequences(&self) -> usize {
        self.sequences.iter().filter(|s| s.state == State::Free).count()
    }

    /// Tokens of a sequence.
    pub(super) fn len(&self, id: SequenceId) -> usize {
        self.sequences[id.0].tokens.len()
    }

    /// An empty sequence. The caller has looked at [`Self::free_sequences`].
    pub(super) fn start(&mut self) -> SequenceId {
        let free = self.sequences.iter().position(|s| s.state == State::Free);
        let id = free.expect("admission counted the free sequences");
        self.sequences[id].state = State::Busy;
        SequenceId(id)
    }

    /// Notes evaluated tokens that these sequences share. Admission has reserved the cells.
    pub(super) fn append(&mut self, ids: &[SequenceId], tokens: &[Token]) {
        let holders = u32::try_from(ids.len()).expect("there are at most 256 sequences");
        for &token in tokens {
            let cell = self.free_cells.pop().expect("admission reserved the cells");
            self.holders[cell] = holders;
            for id in ids {
                self.sequences[id.0].tokens.push(token);
                self.sequences[id.0].cells.push(cell);
            }
        }
    }

    /// Lets the empty sequence `to` share the first `n` tokens of `from`.
    pub(super) fn share(
        &mut self,
        backend: &mut impl Backend,
        from: SequenceId,
        to: SequenceId,
        n: usize,
    ) {
        backend.copy(from, to, n);
        let tokens = self.sequences[from.0].tokens[..n].to_vec();
        let cells = self.sequences[from.0].cells[..n].to_vec();
        for &cell in &cells {
            self.holders[cell] += 1;
        }
        self.sequences[to.0].tokens = tokens;
        self.sequences[to.0].cells = cells;
    }

    /// Keeps the first `n` tokens.
    pub(super) fn truncate(&mut self, backend: &mut impl Backend, id: SequenceId, n: usize) {
        backend.truncate(id, n);
        let sequence = &mut self.sequences[id.0];
        sequence.tokens.truncate(n);
        for cell in sequence.cells.drain(n.min(sequence.cells.len())..) {
            self.holders[cell] -= 1;
            if self.holders[cell] == 0 {
                self.free_cells.push(cell);
            }
        }
    }

    /// Gives a sequence back, tokens and id.
    pub(super) fn remove(&mut self, backend: &mut impl Backend, id: SequenceId) {
        self.truncate(backend, id, 0);
        self.sequences[id.0].state = State::Free;
    }

    /// Keeps a finished sequence for later requests of its lane, unless another one has all of its
    /// tokens anyway. Idle sequences that it continues are dropped for the same reason.
    pub(super) fn keep(
        &mut self,
        backend: &mut impl Backend,
        id: SequenceId,
        generation: Generation,
    ) {
        let idle: Vec<SequenceId> = self.idle(generation).collect();
        let tokens = |id: SequenceId| self.sequences[id.0].tokens.as_slice();
        if tokens(id).is_empty() || idle.iter().any(|&other| tokens(other).starts_with(tokens(id)))
        {
            self.remove(backend, id);
            return;
        }
        let continued: Vec<SequenceId> =
            idle.into_iter().filter(|&other| tokens(id).starts_with(tokens(other))).collect();
        for other in continued {
            self.remove(backend, other);
        }
        self.clock += 1;
        self.sequences[id.0].state = State::Idle { generation, used: self.clock };
    }

    /// The idle sequence of a lane that shares the longest prefix with `tokens`, and how long.
    pub(super) fn find(
        &self,
        generation: Generation,
        tokens: &[Token],
    ) -> Option<(SequenceId, usize)> {
        self.idle(generation)
            .map(|id| (id, common_prefix(&self.sequences[id.0].tokens, tokens)))
            .filter(|&(_, n)| n > 0)
            .max_by_key(|&(_, n)| n)
    }

    /// Notes that an idle sequence was of use.
    pub(super) fn touch(&mut self, id: SequenceId) {
        self.clock += 1;
        if let State::Idle { used, .. } = &mut self.sequences[id.0].state {
            *used = self.clock;
        }
    }

    /// Drops the idle sequence that was of use longest ago; `keep` goes last of all. False when
    /// there is none.
    pub(super) fn evict(&mut self, backend: &mut impl Backend, keep: Option<SequenceId>) -> bool {
        let oldest = self
            .sequences
            .iter()
            .enumerate()
            .filter_map(|(id, sequence)| match sequence.state {
                State::Idle { used, .. } => Some((keep == Some(SequenceId(id)), used, id)),
                State::Free | State::Busy => None,
            })
            .min();
        if let Some((_, _, id)) = oldest {
            self.remove(backend, SequenceId(id));
        }
        oldest.is_some()
    }

    /// Drops all idle sequences of a lane.
    pub(super) fn forget(&mut self, backend: &mut impl Backend, generation: Generation) {
        let idle: Vec<SequenceId> = self.idle(generation).collect();
        for id in idle {
            self.remove(backend, id);
        }
    }

    fn idle(&self, lane: Generation) -> impl Iterator<Item = SequenceId> {
        self.sequences.iter().enumerate().filter_map(move |(id, s)| match s.state {
            State::Idle { generation, .. } if generation == lane => Some(SequenceId(id)),
            _ => None,
        })
    }
}

/// Tokens that both begin with.
pub(super) fn common_prefix(a: &[Token], b: &[Token]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
