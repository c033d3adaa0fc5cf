//! The books of the KV cache: which sequence holds which tokens in which cells, which ids are
//! free, and which finished sequences stay for later. Sequences of one lane that begin alike are a
//! prefix tree: they share the cells of their common tokens, and a cell is free when its last
//! sequence goes. Every change goes to the backend in the same call, so that books and cache
//! cannot drift apart. Used by the engine thread alone.

use super::parked::{Found, Parked, Sequence as Copied};
use super::{Generation, Token};
use inference::backend::{Backend, SequenceId};

/// Idle cells that stay in the context. The next wave of a request finds its prefix there, and
/// more than that would slow every step.
const IDLE: usize = 512;
/// Shorter sequences are evaluated again as fast as they are copied.
const WORTH_PARKING: usize = 16;

/// The books.
#[derive(Debug)]
pub(super) struct Kv {
    sequences: Vec<Sequence>,
    /// For each cell how many sequences share it.
    holders: Vec<u32>,
    free_cells: Vec<usize>,
    /// Counts up; orders idle sequences by their last use.
    clock: u64,
    parked: Parked,
}

/// Where the KV of a prefix is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// In the first so many cells of a sequence, which can be shared.
    Sequence(SequenceId, usize),
    /// Outside the context.
    Parked(Found),
}

impl Source {
    /// Tokens of the prefix.
    pub(super) fn n_tokens(self) -> usize {
        match self {
            Self::Sequence(_, n) => n,
            Self::Parked(found) => found.shared,
        }
    }

    /// The sequence that should stay for it.
    pub(super) fn sequence(self) -> Option<SequenceId> {
        match self {
            Self::Sequence(id, _) => Some(id),
            Self::Parked(_) => None,
        }
    }

    /// Free cells that it takes to get at it.
    pub(super) fn n_cells(self) -> usize {
        match self {
            Self::Sequence(..) => 0,
            Self::Parked(found) => found.whole,
        }
    }
}

#[derive(Debug, Default)]
struct Sequence {
    state: State,
    generation: Generation,
    tokens: Vec<Token>,
    cells: Vec<usize>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    #[default]
    Free,
    Busy,
    /// Kept for whoever begins with the same tokens in the same lane.
    Idle(Worth),
}

/// What an idle sequence is kept for; the least goes first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Worth {
    /// Of a chat, and not of work that nobody waits for.
    is_urgent: bool,
    /// When it was of use last.
    used: u64,
}

impl Kv {
    /// Nothing in use.
    pub(super) fn new(cells: usize, sequences: usize) -> Self {
        Self {
            sequences: (0..sequences).map(|_| Sequence::default()).collect(),
            holders: vec![0; cells],
            free_cells: (0..cells).rev().collect(),
            clock: 0,
            parked: Parked::new(cells / 2),
        }
    }

    /// Memory of the sequences that are kept outside the context.
    pub(super) fn parked_bytes(&self) -> usize {
        self.parked.n_bytes()
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

    /// An empty sequence of a lane. The caller has looked at [`Self::free_sequences`].
    pub(super) fn start(&mut self, generation: Generation) -> SequenceId {
        let free = self.sequences.iter().position(|s| s.state == State::Free);
        let id = free.expect("admission counted the free sequences");
        self.sequences[id].state = State::Busy;
        self.sequences[id].generation = generation;
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
    fn share(&mut self, backend: &mut impl Backend, from: SequenceId, to: SequenceId, n: usize) {
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
    pub(super) fn keep(&mut self, backend: &mut impl Backend, id: SequenceId, is_urgent: bool) {
        let lane = self.sequences[id.0].generation;
        let idle: Vec<SequenceId> = self.idle(lane).collect();
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
        self.sequences[id.0].state = State::Idle(Worth { is_urgent, used: self.clock });
    }

    /// Where the longest prefix of `tokens` is that any sequence of the lane has, idle, busy or
    /// parked.
    pub(super) fn find(&self, generation: Generation, tokens: &[Token]) -> Option<Source> {
        let inside = self.find_inside(generation, tokens);
        let n_inside = inside.map_or(0, Source::n_tokens);
        let parked = self.parked.find(generation, tokens);
        let parked = parked.filter(|parked| n_inside + WORTH_PARKING <= parked.shared);
        parked.map(Source::Parked).or(inside)
    }

    /// The same without the parked ones, which need cells for all of their tokens at first.
    pub(super) fn find_inside(&self, generation: Generation, tokens: &[Token]) -> Option<Source> {
        let of_lane = |s: &&Sequence| s.state != State::Free && s.generation == generation;
        let found = self.sequences.iter().enumerate().filter(|(_, s)| of_lane(s));
        found
            .map(|(id, s)| (SequenceId(id), common_prefix(&s.tokens, tokens)))
            .filter(|&(_, n)| 0 < n)
            .max_by_key(|&(_, n)| n)
            .map(|(id, n)| Source::Sequence(id, n))
    }

    /// Lets the empty sequence `to` begin with a prefix that was found.
    pub(super) fn begin(&mut self, backend: &mut impl Backend, to: SequenceId, source: Source) {
        match source {
            Source::Sequence(from, n) => {
                self.touch(from);
                self.share(backend, from, to, n);
            }
            Source::Parked(found) => {
                let copied = self.parked.recall(found);
                if !backend.restore(to, &copied.state) {
                    // Nothing is lost but time: the tokens are evaluated again.
                    tracing::warn!("A parked sequence could not be restored.");
                    return;
                }
                let tokens = copied.tokens.clone();
                self.append(&[to], &tokens);
                self.truncate(backend, to, found.shared);
            }
        }
    }

    /// Notes that a sequence was of use.
    fn touch(&mut self, id: SequenceId) {
        self.clock += 1;
        if let State::Idle(worth) = &mut self.sequences[id.0].state {
            worth.used = self.clock;
        }
    }

    /// Takes idle sequences out of the context while they hold many cells.
    pub(super) fn park(&mut self, backend: &mut impl Backend) {
        while IDLE < self.evictable() && self.evict(backend, None) {}
    }

    /// Takes the idle sequence that is worth least out of the context; `keep` goes last of all.
    /// False when there is none.
    pub(super) fn evict(&mut self, backend: &mut impl Backend, keep: Option<SequenceId>) -> bool {
        let least = self
            .sequences
            .iter()
            .enumerate()
            .filter_map(|(id, sequence)| match sequence.state {
                State::Idle(worth) => Some((keep == Some(SequenceId(id)), worth, id)),
                State::Free | State::Busy => None,
            })
            .min();
        if let Some((_, _, id)) = least {
            self.copy_out(backend, SequenceId(id));
            self.remove(backend, SequenceId(id));
        }
        least.is_some()
    }

    fn copy_out(&mut self, backend: &mut impl Backend, id: SequenceId) {
        let Sequence { generation, tokens, .. } = &self.sequences[id.0];
        if tokens.len() < WORTH_PARKING || self.parked.has(*generation, tokens) {
            return;
        }
        if let Some(state) = backend.save(id) {
            self.parked.push(Copied { generation: *generation, tokens: tokens.clone(), state });
        }
    }

    /// Cells that would be free without the idle sequences.
    pub(super) fn evictable(&self) -> usize {
        let mut idle = vec![0; self.holders.len()];
        for sequence in self.sequences.iter().filter(|s| matches!(s.state, State::Idle(_))) {
            for &cell in &sequence.cells {
                idle[cell] += 1;
            }
        }
        idle.iter().zip(&self.holders).filter(|&(&idle, &all)| 0 < idle && idle == all).count()
    }

    /// Drops all idle sequences of a lane.
    pub(super) fn forget(&mut self, backend: &mut impl Backend, generation: Generation) {
        let idle: Vec<SequenceId> = self.idle(generation).collect();
        for id in idle {
            self.remove(backend, id);
        }
        self.parked.forget(generation);
    }

    fn idle(&self, lane: Generation) -> impl Iterator<Item = SequenceId> {
        let is_idle = move |s: &Sequence| s.generation == lane && matches!(s.state, State::Idle(_));
        let sequences = self.sequences.iter().enumerate();
        sequences.filter(move |(_, s)| is_idle(s)).map(|(id, _)| SequenceId(id))
    }
}

/// Tokens that both begin with.
pub(super) fn common_prefix(a: &[Token], b: &[Token]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use inference::backend::{Entry, Limits};
    use testkit::fake::{Fake, Script};

    const BASE: Generation = Generation::BASE;

    fn tokens(text: &str) -> Vec<Token> {
        text.bytes().map(|byte| Token(i32::from(byte))).collect()
    }

    fn books() -> (Kv, Fake) {
        (Kv::new(20, 4), Fake::new(Script::new("")))
    }

    /// The fake refuses what does not fit the books.
    fn append(kv: &mut Kv, fake: &mut Fake, ids: &[SequenceId], text: &str) {
        let position = kv.len(ids[0]);
        let batch = tokens(text).into_iter().enumerate().map(|(i, token)| Entry {
            token,
            position: position + i,
            sequences: ids,
            logits: false,
        });
        fake.decode(&batch.collect::<Vec<_>>()).unwrap();
        kv.append(ids, &tokens(text));
    }

    fn found(kv: &Kv, text: &str) -> Option<(SequenceId, usize)> {
        let source = kv.find(BASE, &tokens(text))?;
        Some((source.sequence()?, source.n_tokens()))
    }

    fn keep(kv: &mut Kv, fake: &mut Fake, text: &str) -> SequenceId {
        let id = kv.start(BASE);
        append(kv, fake, &[id], text);
        kv.keep(fake, id, true);
        id
    }

    #[test]
    fn a_shared_cell_is_free_when_its_last_holder_goes() {
        let (mut kv, mut fake) = books();
        let [a, b, c] = [kv.start(BASE), kv.start(BASE), kv.start(BASE)];
        append(&mut kv, &mut fake, &[a, b], "four");
        append(&mut kv, &mut fake, &[a], "ab");
        kv.share(&mut fake, a, c, 5);
        assert_eq!(kv.used(), 6);
        kv.remove(&mut fake, a);
        assert_eq!(kv.used(), 5);
        kv.truncate(&mut fake, c, 2);
        assert_eq!((kv.used(), kv.len(c)), (4, 2));
        kv.remove(&mut fake, b);
        kv.remove(&mut fake, c);
        assert_eq!((kv.used(), kv.free(), kv.free_sequences()), (0, 20, 4));
    }

    #[test]
    fn the_longest_prefix_of_the_own_lane_is_found() {
        let (mut kv, mut fake) = books();
        keep(&mut kv, &mut fake, "abx");
        let longest = keep(&mut kv, &mut fake, "abcx");
        assert_eq!(found(&kv, "abcd"), Some((longest, 3)));
        assert_eq!(found(&kv, "zz"), None);
        assert!(kv.find(Generation(1), &tokens("abcd")).is_none());
    }

    #[test]
    fn a_prefix_is_found_while_its_sequence_is_busy() {
        let (mut kv, mut fake) = books();
        let busy = kv.start(BASE);
        append(&mut kv, &mut fake, &[busy], "abcd");
        assert_eq!(found(&kv, "abx"), Some((busy, 2)));
        kv.remove(&mut fake, busy);
        assert_eq!(found(&kv, "abx"), None);
    }

    #[test]
    fn what_nobody_waits_for_is_dropped_before_a_chat() {
        let (mut kv, mut fake) = books();
        let chat = keep(&mut kv, &mut fake, "chat");
        let idle = kv.start(BASE);
        append(&mut kv, &mut fake, &[idle], "idle");
        kv.keep(&mut fake, idle, false);
        assert!(kv.evict(&mut fake, None));
        assert_eq!(found(&kv, "idle"), None);
        assert_eq!(found(&kv, "chat"), Some((chat, 4)));
    }

    #[test]
    fn cells_that_somebody_uses_cannot_be_evicted() {
        let (mut kv, mut fake) = books();
        let idle = keep(&mut kv, &mut fake, "abcd");
        let busy = kv.start(BASE);
        kv.share(&mut fake, idle, busy, 3);
        append(&mut kv, &mut fake, &[busy], "x");
        assert_eq!((kv.used(), kv.evictable()), (5, 1));
        kv.remove(&mut fake, busy);
        assert_eq!(kv.evictable(), 4);
    }

    #[test]
    fn what_leaves_the_context_comes_back_when_it_is_wanted() {
        let mut kv = Kv::new(2000, 4);
        let limits = Limits { cells: 2000, sequences: 4, batch_tokens: 2000, outputs: 9 };
        let mut fake = Fake::new(Script::new("").limits(limits));
        let [old, new] = ["o", "n"].map(|letter| letter.repeat(IDLE));
        keep(&mut kv, &mut fake, &old);
        kv.park(&mut fake);
        assert_eq!(kv.parked_bytes(), 0, "a few idle cells stay");
        keep(&mut kv, &mut fake, &new);
        kv.park(&mut fake);
        assert_eq!((kv.used(), kv.free_sequences()), (IDLE, 3));
        let source = kv.find(BASE, &tokens(&old)[..100]).unwrap();
        assert_eq!((source.n_tokens(), source.n_cells()), (100, IDLE));
        let id = kv.start(BASE);
        kv.begin(&mut fake, id, source);
        assert_eq!((kv.len(id), kv.used()), (100, IDLE + 100));
        // The fake refuses tokens that do not follow.
        append(&mut kv, &mut fake, &[id], "more");
    }

    #[test]
    fn only_the_longest_of_a_family_is_kept() {
        let (mut kv, mut fake) = books();
        keep(&mut kv, &mut fake, "ab");
        keep(&mut kv, &mut fake, "abcd");
        keep(&mut kv, &mut fake, "abc");
        assert_eq!((kv.used(), kv.free_sequences()), (4, 3));
    }

    #[test]
    fn the_one_unused_longest_goes_first_and_the_wanted_one_last() {
        let (mut kv, mut fake) = books();
        let first = keep(&mut kv, &mut fake, "a");
        let second = keep(&mut kv, &mut fake, "b");
        keep(&mut kv, &mut fake, "c");
        kv.touch(first);
        assert!(kv.evict(&mut fake, Some(second)));
        assert_eq!(found(&kv, "c"), None, "the third was older than the touched one");
        assert!(kv.evict(&mut fake, Some(second)) && kv.evict(&mut fake, Some(second)));
        assert!(!kv.evict(&mut fake, None));
        assert_eq!(kv.used(), 0);
    }
}
