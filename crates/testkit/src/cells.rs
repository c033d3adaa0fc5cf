//! A model of llama.cpp's unified KV cache: cells that sequences share, and which batches it takes.
//! The rules are those of `llama_batch_allocr::init` and of `llama_kv_cache::find_slot`; a test of
//! the engine compares 10,000 batches with llama.cpp's own answers.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use inference::backend::{Entry, Limits, SequenceId};
use inference::{Generation, Token};

/// Of a cell in a copy: position, token, generation and hash.
pub const CELL_BYTES: usize = 24;

/// One token of a sequence.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cell {
    /// The token.
    pub token: Token,
    /// The weights that evaluated it.
    pub generation: Generation,
    /// Of all tokens up to this one and of the weights that evaluated them: what keys and values
    /// depend on.
    pub hash: u64,
}

/// All cells.
#[derive(Clone, Debug)]
pub struct Cells {
    limits: Limits,
    n_vocab: usize,
    content: Vec<Cell>,
    holders: Vec<u32>,
    free: Vec<usize>,
    sequences: Vec<Vec<usize>>,
}

impl Cells {
    /// All of them free.
    pub fn new(limits: Limits, n_vocab: usize) -> Self {
        let nothing = Cell { token: Token(0), generation: Generation::BASE, hash: 0 };
        Self {
            content: vec![nothing; limits.cells],
            holders: vec![0; limits.cells],
            free: (0..limits.cells).rev().collect(),
            sequences: vec![Vec::new(); limits.sequences],
            limits,
            n_vocab,
        }
    }

    /// Cells that a sequence holds.
    pub fn len(&self, id: SequenceId) -> usize {
        self.sequences[id.0].len()
    }

    /// Cells that any sequence holds.
    pub fn used(&self) -> usize {
        self.limits.cells - self.free.len()
    }

    /// A sequence's cells, in order.
    pub fn sequence(&self, id: SequenceId) -> impl DoubleEndedIterator<Item = Cell> {
        self.sequences[id.0].iter().map(|&cell| self.content[cell])
    }

    /// Why llama.cpp refuses a batch.
    pub fn refusal(&self, batch: &[Entry<'_>]) -> Option<String> {
        let Limits { batch_tokens, outputs, sequences, .. } = self.limits;
        let n_outputs = batch.iter().filter(|entry| entry.logits).count();
        if batch.is_empty() || batch_tokens < batch.len() || outputs < n_outputs {
            return Some(format!("{} tokens and {n_outputs} outputs", batch.len()));
        }
        let mut next: Vec<Option<usize>> = vec![None; sequences];
        let mut seen: Vec<Option<BTreeSet<usize>>> = vec![None; sequences];
        for entry in batch {
            if !usize::try_from(entry.token.0).is_ok_and(|token| token < self.n_vocab) {
                return Some(format!("token {}", entry.token.0));
            }
            let ids: BTreeSet<usize> = entry.sequences.iter().map(|id| id.0).collect();
            if ids.is_empty() || ids.iter().any(|&id| sequences <= id) {
                return Some(format!("sequences {ids:?}"));
            }
            for &id in &ids {
                let expected = next[id].unwrap_or(self.sequences[id].len());
                if entry.position != expected {
                    return Some(format!("a gap at {} of sequence {id}", entry.position));
                }
                next[id] = Some(expected + 1);
                let both: BTreeSet<usize> = match &seen[id] {
                    Some(before) => before.intersection(&ids).copied().collect(),
                    None => ids.clone(),
                };
                if both.is_empty() {
                    return Some(format!("sequence {id} belongs to incompatible sets"));
                }
                seen[id] = Some(both);
            }
            let first = entry.sequences[0].0;
            if ids.iter().any(|&id| self.sequences[id].len() != self.sequences[first].len()) {
                return Some(format!("sequences {ids:?} have diverged"));
            }
        }
        None
    }

    /// Whether there are cells for so many tokens.
    pub fn has_room(&self, tokens: usize) -> bool {
        tokens <= self.free.len()
    }

    /// Evaluates the first entries of a batch that is not refused and has room.
    pub fn evaluate(&mut self, batch: &[Entry<'_>], generation: Generation) {
        for entry in batch {
            self.evaluate_one(entry, generation, None);
        }
    }

    /// The same for one entry. With a shape, as of kernels that round in another way for another
    /// number of rows or another row, what follows depends on it and on the place of the cell.
    pub fn evaluate_one(
        &mut self,
        entry: &Entry<'_>,
        generation: Generation,
        shape: Option<[usize; 2]>,
    ) {
        let ids = entry.sequences;
        let before = self.hash(ids[0], generation);
        let mut hasher = DefaultHasher::new();
        (before, entry.token, generation).hash(&mut hasher);
        if let (Some(shape), Some(place)) = (shape, self.free.last()) {
            (shape, place).hash(&mut hasher);
        }
        let cell = Cell { token: entry.token, generation, hash: hasher.finish() };
        let ids: BTreeSet<usize> = ids.iter().map(|id| id.0).collect();
        self.put(&ids, cell);
    }

    /// What the next token of a sequence depends on.
    pub fn hash(&self, id: SequenceId, generation: Generation) -> u64 {
        let last = self.sequences[id.0].last();
        last.map_or(u64::from(generation.0), |&cell| self.content[cell].hash)
    }

    fn put(&mut self, ids: &BTreeSet<usize>, cell: Cell) {
        let place = self.free.pop().expect("the caller has seen that there is room");
        self.content[place] = cell;
        self.holders[place] = u32::try_from(ids.len()).expect("few sequences");
        for &id in ids {
            self.sequences[id].push(place);
        }
    }

    /// Lets the empty sequence `to` share the first `n` cells of `from`, or as many as it has.
    pub fn share(&mut self, from: SequenceId, to: SequenceId, n: usize) {
        assert!(self.sequences[to.0].is_empty(), "{to:?} is not empty");
        let n = n.min(self.sequences[from.0].len());
        let shared = self.sequences[from.0][..n].to_vec();
        for &cell in &shared {
            self.holders[cell] += 1;
        }
        self.sequences[to.0] = shared;
    }

    /// Keeps the first `n` cells of a sequence.
    pub fn truncate(&mut self, id: SequenceId, n: usize) {
        let sequence = &mut self.sequences[id.0];
        // The lowest is taken next, as `find_slot` does.
        for cell in sequence.drain(n.min(sequence.len())..).rev() {
            self.holders[cell] -= 1;
            if self.holders[cell] == 0 {
                self.free.push(cell);
            }
        }
    }

    /// A copy of some cells of a sequence.
    pub fn save(&self, id: SequenceId, positions: Range<usize>) -> Vec<u8> {
        let cells = positions.map(|at| (at, self.content[self.sequences[id.0][at]]));
        let bytes = cells.map(|(at, Cell { token, generation, hash })| {
            let at = u64::try_from(at).expect("few cells").to_le_bytes();
            let numbers = [token.0.to_le_bytes(), generation.0.to_le_bytes()].concat();
            [&at[..], &numbers, &hash.to_le_bytes()].concat()
        });
        bytes.flatten().collect()
    }

    /// Puts cells of a copy back at the end of a sequence. The whole copy must find room at first.
    pub fn restore(&mut self, id: SequenceId, positions: Range<usize>, state: &[u8]) {
        let start = positions.start;
        assert_eq!(self.sequences[id.0].len(), start, "a copy goes to the end of {id:?}");
        let (cells, _) = state.as_chunks::<CELL_BYTES>();
        assert!(self.has_room(cells.len()), "no cells for a copy of {}", cells.len());
        let is_wanted = |cell: &&[u8; CELL_BYTES]| {
            let [at, ..] = cell.as_chunks::<8>().0 else { return false };
            usize::try_from(u64::from_le_bytes(*at)).is_ok_and(|at| positions.contains(&at))
        };
        let wanted: Vec<[u8; CELL_BYTES]> = cells.iter().filter(is_wanted).copied().collect();
        assert_eq!(wanted.len(), positions.len(), "a copy has what it was made of");
        for [_, _, _, _, _, _, _, _, a, b, c, d, e, f, g, h, hash @ ..] in wanted {
            let cell = Cell {
                token: Token(i32::from_le_bytes([a, b, c, d])),
                generation: Generation(u32::from_le_bytes([e, f, g, h])),
                hash: u64::from_le_bytes(hash),
            };
            self.put(&BTreeSet::from([id.0]), cell);
        }
    }
}
