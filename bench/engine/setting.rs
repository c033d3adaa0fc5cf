//! What every workload is measured with: model, threads, sizes, rounds, the peer's program. The same
//! numbers go to both sides. Used by every workload.

use std::path::PathBuf;

use engine::{EngineConfig, FlashAttention};

/// KV cells on both sides.
pub(crate) const CELLS: u32 = 16_384;
/// Tokens a step on both sides; llama.cpp computes 512 at once.
pub(crate) const BATCH: u32 = 512;
/// Sequences of ours; the peer has slots, see `peer`.
pub(crate) const SEQUENCES: u32 = 64;
/// Tokens of a prompt, unless a workload is about something else.
pub(crate) const PROMPT: usize = 256;
/// New tokens of an answer.
pub(crate) const ANSWER: u32 = 64;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) model: PathBuf,
    /// Of the same shape, for greedy answers that can be repeated.
    pub(crate) predictable_model: PathBuf,
    /// A chat model whose words mean something, where one is given.
    pub(crate) real_model: Option<PathBuf>,
    pub(crate) threads: u32,
    /// Of ours; the peer has its best.
    pub(crate) flash_attention: FlashAttention,
    /// The peer's `llama-server`; `None`: its columns stay empty.
    pub(crate) peer: Option<PathBuf>,
    /// Instead of a workload's own number of rounds.
    pub(crate) rounds: Option<usize>,
    /// One round, few points: only to see that everything works.
    pub(crate) is_quick: bool,
}

impl Setting {
    /// Rounds of a workload that wants `usual` of them.
    pub(crate) fn rounds(&self, usual: usize) -> usize {
        if self.is_quick { 1 } else { self.rounds.unwrap_or(usual) }
    }

    /// The engine as the daemon of this benchmark sets it up.
    pub(crate) fn engine(&self) -> EngineConfig {
        EngineConfig {
            context_tokens: CELLS,
            max_sequences: SEQUENCES,
            batch_tokens: BATCH,
            threads: Some(self.threads),
            flash_attention: self.flash_attention,
            queue: 64,
            ..EngineConfig::small(self.model.clone())
        }
    }
}
