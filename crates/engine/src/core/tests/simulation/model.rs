//! A model for the simulation: what it says next depends on all tokens that its cells were made of,
//! so that a cell in the wrong place changes an answer. It fails, and is interrupted, by chance.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use inference::backend::{Backend, Entry, Limits, SequenceId};
use inference::{EngineError, Generation, ModelInfo, TextPart, Token, Vocabulary};
use testkit::cells::{CELL_BYTES, Cells};

/// Tokens 0 to 6 are letters, and this one ends an answer.
pub(super) const END: Token = Token(7);
pub(super) const N_VOCAB: usize = 9;
/// A batch with this token fails, always.
pub(super) const POISON: Token = Token(8);

/// See the file's header.
#[derive(Debug)]
pub(in super::super) struct Model {
    pub(super) cells: Cells,
    limits: Limits,
    selected: Generation,
    /// By generation what is loaded under its number, which comes again with other weights.
    weights: BTreeMap<Generation, Generation>,
    n_loaded: u32,
    rows: Vec<Option<Vec<f32>>>,
    random: fastrand::Rng,
    pub(super) chances: Chances,
    /// What a copy of cells takes.
    pub(in super::super) copy_takes: Duration,
    /// Whether what it says depends on the batches too, in which its tokens were evaluated.
    has_shapes: bool,
    /// Only poison fails.
    pub(super) is_steady: bool,
    pub(super) n_failed: u64,
    pub(super) n_interrupted: u64,
    pub(super) n_restored: u64,
    pub(super) n_poisoned: u64,
}

/// How likely each mishap is.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Chances {
    pub(super) fail: f64,
    pub(super) interrupt: f64,
    pub(super) lose_copy: f64,
}

impl Model {
    pub(in super::super) fn new(
        limits: Limits,
        seed: u64,
        chances: Chances,
        has_shapes: bool,
    ) -> Self {
        Self {
            cells: Cells::new(limits, N_VOCAB),
            limits,
            selected: Generation::BASE,
            weights: BTreeMap::from([(Generation::BASE, Generation::BASE)]),
            n_loaded: 0,
            rows: Vec::new(),
            random: fastrand::Rng::with_seed(seed),
            chances,
            copy_takes: Duration::ZERO,
            has_shapes,
            is_steady: false,
            n_failed: 0,
            n_interrupted: 0,
            n_restored: 0,
            n_poisoned: 0,
        }
    }

    /// Loads weights that there have not been before.
    pub(super) fn load_new(&mut self, generation: Generation) {
        self.n_loaded += 1;
        let before = self.weights.insert(generation, Generation(self.n_loaded));
        assert_eq!(before, None, "generation {generation} was not freed");
    }

    /// What is loaded as a generation.
    pub(super) fn weights(&self, generation: Generation) -> Generation {
        self.weights[&generation]
    }

    /// Evaluates the first `n` entries of a batch.
    fn evaluate(&mut self, batch: &[Entry<'_>], n: usize) {
        let weights = self.weights(self.selected);
        for (i, entry) in batch[..n].iter().enumerate() {
            let shape = self.has_shapes.then_some([batch.len(), i]);
            self.cells.evaluate_one(entry, weights, shape);
            let hash = self.cells.hash(entry.sequences[0], weights);
            self.rows.push(entry.logits.then(|| row(hash)));
        }
    }

    fn chance(&mut self, chance: f64) -> bool {
        self.random.f64() < chance
    }
}

/// The logits after tokens with this hash.
pub(super) fn row(hash: u64) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(hash);
    (0..N_VOCAB).map(|_| random.f32() * 6.0).take(N_VOCAB - 1).chain([-60.0]).collect()
}

impl Backend for Model {
    fn info(&self) -> ModelInfo {
        unreachable!("the simulation validates nothing")
    }

    fn vocabulary(&self) -> Arc<dyn Vocabulary> {
        Arc::new(Letters)
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn decode(
        &mut self,
        batch: &[Entry<'_>],
        interrupt: Option<&AtomicBool>,
    ) -> Result<usize, EngineError> {
        self.rows.clear();
        if let Some(refusal) = self.cells.refusal(batch) {
            panic!("llama.cpp refuses the batch: {refusal}: {batch:?}");
        }
        assert!(self.cells.has_room(batch.len()), "no cells for {} tokens", batch.len());
        let n = batch.len();
        let is_poisoned = batch.iter().any(|entry| entry.token == POISON);
        let fail = self.chances.fail;
        if is_poisoned || !self.is_steady && self.chance(fail) {
            self.n_poisoned += u64::from(is_poisoned);
            self.n_failed += u64::from(!is_poisoned);
            // Part of it may be there.
            let part = self.random.usize(0..=n);
            self.evaluate(batch, part);
            return Err(EngineError::Failed("by chance".to_owned()));
        }
        let interrupted = self.chances.interrupt;
        if interrupt.is_some() && self.chance(interrupted) {
            self.n_interrupted += 1;
            let part = self.random.usize(0..n);
            self.evaluate(batch, part);
            return Ok(part);
        }
        self.evaluate(batch, n);
        Ok(n)
    }

    fn logits(&self, index: usize) -> Result<&[f32], EngineError> {
        let row = self.rows.get(index).and_then(Option::as_deref);
        Ok(row.unwrap_or_else(|| panic!("entry {index} has no logits")))
    }

    fn copy(&mut self, from: SequenceId, to: SequenceId, n: usize) {
        self.cells.share(from, to, n);
    }

    fn truncate(&mut self, sequence: SequenceId, n: usize) {
        self.cells.truncate(sequence, n);
    }

    fn save(&mut self, sequence: SequenceId, positions: Range<usize>) -> Option<Vec<u8>> {
        let lose = self.chances.lose_copy;
        std::thread::sleep(self.copy_takes);
        let copy = self.cells.save(sequence, positions);
        (!self.chance(lose)).then_some(copy)
    }

    fn restore(&mut self, sequence: SequenceId, positions: Range<usize>, state: &[u8]) -> bool {
        let lose = self.chances.lose_copy;
        if self.chance(lose) {
            return false;
        }
        self.n_restored += 1;
        self.cells.restore(sequence, positions, state);
        true
    }

    fn host_cache_bytes(&self) -> usize {
        unreachable!("the simulation says how many")
    }

    fn cell_bytes(&self) -> usize {
        CELL_BYTES
    }

    fn load(&mut self, _: Generation, _: &Path) -> Result<(), EngineError> {
        unreachable!("the core loads nothing")
    }

    fn select(&mut self, generation: Generation) -> Result<(), EngineError> {
        self.selected = generation;
        Ok(())
    }

    fn free(&mut self, generation: Generation) {
        self.weights.remove(&generation).expect("a loaded generation is freed");
    }
}

/// One letter a token.
#[derive(Debug)]
pub(in super::super) struct Letters;

impl Vocabulary for Letters {
    fn tokenize(&self, _: &[TextPart]) -> Vec<Token> {
        unreachable!("the simulation makes tokens")
    }

    fn piece(&self, token: Token) -> Vec<u8> {
        b"abcdefg".get(usize::try_from(token.0).unwrap_or(99)).map_or_else(Vec::new, |&b| vec![b])
    }

    fn is_end(&self, token: Token) -> bool {
        token == END
    }
}
