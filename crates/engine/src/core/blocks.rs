//! In which batches the tokens of a sequence are evaluated when its answer must not depend on what
//! else runs. Kernels add up in another order for other numbers of rows, and attention in the order of
//! the cells; so a deterministic core has one sequence at a time, whose cells are its positions, and
//! evaluates its prompt in blocks of a fixed size from position 0 and each further token alone. Only
//! whole blocks of a prompt are shared with whoever begins alike: others would have been evaluated in
//! another batch. Pure; used by `core.rs` and `plan.rs`.

use inference::backend::Limits;

/// Tokens of a block, if it is evaluated in time. A multiple of the rows that kernels take at once (at
/// most 16). Smaller ones are evaluated slower for each token, of larger ones less is shared: a
/// reflection (six aspects over 400 common tokens) took 27 to 28 s with 32, 22 to 24 with 64, 20 with
/// 128 and 27 with 256; 17 to 19 where it is judged in the context of answers.
const BLOCK: usize = 128;
/// Parameters times tokens that a thread does in a step of two seconds: half of what was measured for a
/// prompt on two shared cores (`SmolLM2`, 135 million parameters: 300 tokens/s).
const WORK: u64 = 20_000_000_000;
/// A context has two sequence ids, one of them for copies, and a batch must hold a token of each.
const LEAST: usize = 2;

/// See the file's header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks(usize);

/// Tokens of the blocks of a model on the processor. They follow from what does not change from one day
/// to the next and not from the measured speed: another size would round in another way.
pub(crate) fn block_tokens(n_parameters: u64, threads: usize) -> usize {
    let fits = WORK.saturating_mul(threads as u64) / n_parameters.max(1);
    let fits = usize::try_from(fits).unwrap_or(usize::MAX).clamp(LEAST, BLOCK);
    // A power of two.
    1 << fits.ilog2()
}

impl Blocks {
    /// As large as a batch may be whatever it asks logits of.
    pub(super) fn new(limits: &Limits) -> Self {
        Self(BLOCK.min(limits.batch_tokens).min(limits.outputs))
    }

    /// Tokens of a block.
    pub(super) fn size(self) -> usize {
        self.0
    }

    /// Tokens of the batch that begins at a position of a sequence whose prompt has so many. Within
    /// a prompt that is always the beginning of a block.
    pub(super) fn next(self, position: usize, n_prompt: usize) -> usize {
        self.0.min(n_prompt.saturating_sub(position)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_a_model_that_is_large_for_its_threads_are_small() {
        let billion = 1_000_000_000;
        assert_eq!(block_tokens(billion / 8, 2), 128);
        assert_eq!(block_tokens(billion / 2, 2), 64);
        assert_eq!(block_tokens(billion, 2), 32);
        assert_eq!(block_tokens(3 * billion, 2), 8);
        assert_eq!(block_tokens(7 * billion, 2), 4);
        assert_eq!(block_tokens(7 * billion, 16), 32);
        assert_eq!(block_tokens(700 * billion, 1), 2);
        assert_eq!(block_tokens(0, 1), 128);
    }

    #[test]
    fn a_prompt_goes_block_by_block_and_an_answer_token_by_token() {
        let limits = Limits { cells: 999, sequences: 1, batch_tokens: 32, outputs: 512 };
        let blocks = Blocks::new(&limits);
        let batches = |n_prompt: usize, n: usize| {
            let mut position = 0;
            let mut found = Vec::new();
            while position < n {
                found.push(blocks.next(position, n_prompt));
                position += found[found.len() - 1];
            }
            found
        };
        assert_eq!(batches(70, 73), [32, 32, 6, 1, 1, 1]);
        assert_eq!(batches(64, 66), [32, 32, 1, 1]);
        assert_eq!(batches(1, 2), [1, 1]);
        let small = Limits { outputs: 5, ..limits };
        assert_eq!(Blocks::new(&small).next(5, 99), 5, "logits of a whole block fit");
    }
}
