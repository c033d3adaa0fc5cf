//! What the backend is told to do between two batches. Made by `tree.rs` with every change of its
//! books; done by `step.rs`, in order.

use std::sync::Arc;

use inference::Generation;
use inference::backend::SequenceId;

/// A change of the context's cells or adapters.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Op {
    /// The empty sequence `to` shares the first `n` cells of `from`.
    Share { from: SequenceId, to: SequenceId, n: usize },
    /// A sequence keeps its first `n` cells.
    Truncate { id: SequenceId, n: usize },
    /// The cells of these positions are copied to host memory.
    Save { id: SequenceId, from: usize, to: usize, copy: u64 },
    /// `n` cells from position `at` on come back from a copy.
    Restore { id: SequenceId, at: usize, n: usize, copy: Arc<Copied> },
    /// An adapter is freed, which no sequence uses any more.
    Free(Generation),
}

/// Cells in host memory. Nodes share it that were one when it was made.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Copied {
    /// In the backend's own form.
    pub(super) state: Vec<u8>,
    /// Cells in it.
    pub(super) n: usize,
}
