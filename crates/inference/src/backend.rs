//! What the engine thread needs of a model: the seam between the engine's `thread.rs` and llama.cpp. It is
//! implemented by the engine's `llama.rs` and, for tests, by `testkit::fake`; nobody else calls it.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::{EngineError, Generation, ModelInfo, Token, Vocabulary};

/// Names one sequence of the KV cache; below [`Limits::sequences`].
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct SequenceId(pub usize);

/// What fits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// KV cells that all sequences share.
    pub cells: usize,
    /// Sequences at once.
    pub sequences: usize,
    /// Tokens of one batch; at least `sequences`, so that every running sequence can go on.
    pub batch_tokens: usize,
    /// Rows of logits of one batch; at least `sequences`.
    pub outputs: usize,
}

/// One token of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The token.
    pub token: Token,
    /// Its position: the length of its sequences before it.
    pub position: usize,
    /// The sequences that it belongs to: one, or all that share this prefix.
    pub sequences: &'a [SequenceId],
    /// Whether the logits after it are wanted.
    pub logits: bool,
}

/// A model with one context. Lives in the engine thread and nowhere else.
pub trait Backend {
    /// Facts about the model.
    fn info(&self) -> ModelInfo;
    /// Text to tokens and back.
    fn vocabulary(&self) -> Arc<dyn Vocabulary>;
    /// What fits.
    fn limits(&self) -> Limits;
    /// Evaluates a batch under the selected weights. The number of its entries that are evaluated,
    /// from the first one: all, or fewer when `interrupt` is or becomes true. A backend that cannot
    /// be interrupted does its work. After an error, and beyond what is evaluated, the cells of the
    /// batch's sequences are in doubt: they must be truncated to what they had before.
    fn decode(
        &mut self,
        batch: &[Entry<'_>],
        interrupt: Option<&AtomicBool>,
    ) -> Result<usize, EngineError>;
    /// The logits after entry `index` of the last batch, which must have asked for them.
    fn logits(&self, index: usize) -> Result<&[f32], EngineError>;
    /// Makes the empty sequence `to` share the first `n` cells of `from`.
    fn copy(&mut self, from: SequenceId, to: SequenceId, n: usize);
    /// Keeps the first `n` cells of a sequence.
    fn truncate(&mut self, sequence: SequenceId, n: usize);
    /// A copy of a sequence's cells at these positions, in a form of the backend's own; `None` when
    /// it has none.
    fn save(&mut self, sequence: SequenceId, positions: Range<usize>) -> Option<Vec<u8>>;
    /// Puts the cells of these positions back from a copy, at the end of a sequence that has all
    /// before them. Cells for the whole copy are free. False: the sequence has what it had.
    fn restore(&mut self, sequence: SequenceId, positions: Range<usize>, state: &[u8]) -> bool;
    /// Host memory that copies of cells may take.
    fn host_cache_bytes(&self) -> usize;
    /// Host memory that a cell takes in a copy, about.
    fn cell_bytes(&self) -> usize;
    /// Whether each sequence must be evaluated as if it were alone; then it has one sequence.
    fn is_deterministic(&self) -> bool {
        false
    }
    /// Loads an adapter.
    fn load(&mut self, generation: Generation, path: &Path) -> Result<(), EngineError>;
    /// Decodes with these weights from now on; they are loaded.
    fn select(&mut self, generation: Generation) -> Result<(), EngineError>;
    /// Forgets an adapter that no sequence uses any more.
    fn free(&mut self, generation: Generation);
}

/// A model that says how good a conversation's end is. It has one sequence at a time.
pub trait RewardBackend {
    /// Facts about the model.
    fn info(&self) -> ModelInfo;
    /// Text to tokens and back.
    fn vocabulary(&self) -> Arc<dyn Vocabulary>;
    /// What fits; the tokens of one step too.
    fn limits(&self) -> Limits;
    /// Reads tokens behind the first `position` ones that it has read; what was behind them is
    /// forgotten, all of it at 0. The number of tokens that are read, from the first one: all, or
    /// fewer when `interrupt` is or becomes true. A backend that cannot be interrupted does its work.
    fn read(
        &mut self,
        tokens: &[Token],
        position: usize,
        interrupt: Option<&AtomicBool>,
    ) -> Result<usize, EngineError>;
    /// What it has read is worth. The last step was whole.
    fn reward(&mut self) -> Result<f64, EngineError>;
}
