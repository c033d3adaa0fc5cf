//! Finished sequences outside the context: their KV is copied to memory and copied back when a
//! request begins with the same tokens. Inside the context they would slow every step, because
//! attention looks at all cells up to the last one in use: with 10,000 idle cells eight chats were
//! half as fast. Pure but for the bytes that it holds. Used by `kv.rs`.

use std::collections::VecDeque;

use super::kv::common_prefix;
use super::{Generation, Token};

/// What is kept, least worth first.
#[derive(Debug)]
pub(super) struct Parked {
    sequences: VecDeque<Sequence>,
    /// Tokens of all sequences at most.
    most_tokens: usize,
}

/// One sequence.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) generation: Generation,
    pub(super) tokens: Vec<Token>,
    /// The backend's own form.
    pub(super) state: Vec<u8>,
}

impl Parked {
    pub(super) fn new(most_tokens: usize) -> Self {
        Self { sequences: VecDeque::new(), most_tokens }
    }

    /// Bytes that are held.
    pub(super) fn n_bytes(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.state.len()).sum()
    }

    /// Whether a sequence has all of these tokens.
    pub(super) fn has(&self, generation: Generation, tokens: &[Token]) -> bool {
        let holds = |s: &Sequence| s.generation == generation && s.tokens.starts_with(tokens);
        self.sequences.iter().any(holds)
    }

    /// Takes a sequence in, instead of those that it continues; what was of use longest ago goes
    /// when there is no room.
    pub(super) fn push(&mut self, new: Sequence) {
        let is_part = |old: &Sequence| {
            old.generation == new.generation && new.tokens.starts_with(&old.tokens)
        };
        self.sequences.retain(|old| !is_part(old));
        self.sequences.push_back(new);
        let mut tokens: usize = self.sequences.iter().map(|s| s.tokens.len()).sum();
        while self.most_tokens < tokens {
            tokens -= self.sequences.pop_front().map_or(tokens, |oldest| oldest.tokens.len());
        }
    }

    /// The sequence of a lane that shares the longest prefix with `tokens`, its whole length, and
    /// how much that is.
    pub(super) fn find(&self, generation: Generation, tokens: &[Token]) -> Option<Found> {
        let of_lane = self.sequences.iter().enumerate().filter(|(_, s)| s.generation == generation);
        let found = of_lane.map(|(index, s)| Found {
            index,
            whole: s.tokens.len(),
            shared: common_prefix(&s.tokens, tokens),
        });
        found.filter(|found| 0 < found.shared).max_by_key(|found| found.shared)
    }

    /// A sequence that is of use now.
    pub(super) fn recall(&mut self, found: Found) -> &Sequence {
        let sequence = self.sequences.remove(found.index).expect("it was just found");
        self.sequences.push_back(sequence);
        self.sequences.back().expect("it was just put there")
    }

    /// Drops all sequences of a lane.
    pub(super) fn forget(&mut self, generation: Generation) {
        self.sequences.retain(|sequence| sequence.generation != generation);
    }
}

/// A sequence that begins like a request; valid until the next change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Found {
    index: usize,
    /// Its tokens.
    pub(super) whole: usize,
    /// Of these, the first ones that are wanted.
    pub(super) shared: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Generation = Generation::BASE;

    fn tokens(text: &str) -> Vec<Token> {
        text.bytes().map(|byte| Token(i32::from(byte))).collect()
    }

    fn push(parked: &mut Parked, text: &str) {
        parked.push(Sequence {
            generation: BASE,
            tokens: tokens(text),
            state: vec![0; text.len()],
        });
    }

    #[test]
    fn the_longest_prefix_of_the_lane_is_found() {
        let mut parked = Parked::new(100);
        push(&mut parked, "abx");
        push(&mut parked, "abcx");
        let found = parked.find(BASE, &tokens("abcd")).unwrap();
        assert_eq!((found.whole, found.shared), (4, 3));
        assert_eq!(parked.recall(found).tokens, tokens("abcx"));
        assert_eq!(parked.find(BASE, &tokens("x")), None);
        assert_eq!(parked.find(Generation(1), &tokens("abcd")), None);
        parked.forget(BASE);
        assert_eq!(parked.n_bytes(), 0);
    }

    #[test]
    fn a_longer_sequence_replaces_what_it_continues() {
        let mut parked = Parked::new(100);
        push(&mut parked, "ab");
        push(&mut parked, "abcd");
        assert_eq!(parked.n_bytes(), 4);
        assert!(parked.has(BASE, &tokens("abc")) && !parked.has(BASE, &tokens("b")));
    }

    #[test]
    fn what_was_of_use_longest_ago_goes_first() {
        let mut parked = Parked::new(6);
        push(&mut parked, "aa");
        push(&mut parked, "bb");
        push(&mut parked, "cc");
        let used = parked.find(BASE, &tokens("aa")).unwrap();
        parked.recall(used);
        push(&mut parked, "dd");
        assert!(parked.has(BASE, &tokens("aa")) && !parked.has(BASE, &tokens("bb")));
        push(&mut parked, "too long for all");
        assert_eq!(parked.n_bytes(), 0);
    }
}
