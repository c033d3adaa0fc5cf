//! What one rendering may use. A template comes from a model file and may be made to never end, to
//! double a string forty times or to call itself; each costs steps, bytes or depth, and those end.

use std::cell::Cell;

use crate::error::TemplateError;

/// Bounds of one rendering.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Expressions, statements and list items.
    pub steps: u64,
    /// Bytes of all strings that are made.
    pub bytes: u64,
    /// Statements, expressions and macros inside each other.
    pub depth: u32,
}

impl Limits {
    /// For contents of this many bytes in total. Real templates use at most 200 steps a turn and copy
    /// a content ten times; steps are what bounds the time, at about 50 ns each.
    pub fn for_contents(n_bytes: usize) -> Self {
        let n_bytes = u64::try_from(n_bytes).unwrap_or(u64::MAX);
        Self {
            steps: n_bytes.saturating_mul(16).saturating_add(4_000_000),
            bytes: n_bytes.saturating_mul(256).saturating_add(128 << 20),
            depth: 300,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Budget {
    steps: Cell<u64>,
    bytes: Cell<u64>,
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { steps: Cell::new(limits.steps), bytes: Cell::new(limits.bytes) }
    }

    /// Before so much is done.
    pub(crate) fn steps(&self, n: usize) -> Result<(), TemplateError> {
        let left = self.steps.get().checked_sub(u64::try_from(n).unwrap_or(u64::MAX));
        self.steps.set(left.unwrap_or(0));
        left.map(drop).ok_or_else(|| TemplateError::limit("the template takes too many steps"))
    }

    /// Before a string of so many bytes is looked through, which is fast.
    pub(crate) fn reading(&self, n: usize) -> Result<(), TemplateError> {
        self.steps(n / 32)
    }

    /// Before a string of so many bytes is made.
    pub(crate) fn bytes(&self, n: usize) -> Result<(), TemplateError> {
        let left = self.bytes.get().checked_sub(u64::try_from(n).unwrap_or(u64::MAX));
        self.bytes.set(left.unwrap_or(0));
        left.map(drop).ok_or_else(|| TemplateError::limit("the template makes too much text"))
    }
}
