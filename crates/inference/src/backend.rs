//! What the engine thread needs of a model: the seam between the engine's `thread.rs` and llama.cpp. It is
//! implemented by the engine's `llama.rs` and, for tests, by `testkit::fake`; nobody else calls it.

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
    /// Evaluates a batch under the selected weights. After an error the KV of the batch's
    /// sequences is in doubt: they must be truncated to 0.
    fn decode(&mut self, batch: &[Entry<'_>]) -> Result<(), EngineError>;
    /// The same, unless `signal` is or becomes true: then it gives up as soon as it can, and the
    /// answer is false. The KV of the batch's sequences is then in doubt beyond what it was. A
    /// backend that cannot be interrupted does its work.
    fn decode_unless(
        &mut self,
        batch: &[Entry<'_>],
        signal: &AtomicBool,
    ) -> Result<bool, EngineError>;
    /// The logits after entry `index` of the last batch, which must have asked for them.
    fn logits(&self, index: usize) -> Result<&[f32], EngineError>;
    /// Makes the empty sequence `to` share the first `n` cells of `from`.
    fn copy(&mut self, from: SequenceId, to: SequenceId, n: usize);
    /// Keeps the first `n` cells of a sequence.
    fn truncate(&mut self, sequence: SequenceId, n: usize);
    /// A copy of a sequence's cells, in a form of the backend's own; `None` when it has none.
    fn save(&mut self, sequence: SequenceId) -> Option<Vec<u8>>;
    /// Puts a copy into an empty sequence; the cells are free. False: it stays empty.
    fn restore(&mut self, sequence: SequenceId, state: &[u8]) -> bool;
    /// Loads an adapter.
    fn load(&mut self, generation: Generation, path: &Path) -> Result<(), EngineError>;
    /// Decodes with these weights from now on; they are loaded.
    fn select(&mut self, generation: Generation) -> Result<(), EngineError>;
    /// Forgets an adapter that no sequence uses any more.
    fn free(&mut self, generation: Generation);
}
