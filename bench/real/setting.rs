//! What the benchmark is run with: sizes, folders, programs. What changes a result goes into the key
//! under which results are kept. Used by everything here.

use std::path::PathBuf;

use anyhow::Context as _;
use files::hex;
use sha2::{Digest as _, Sha256};

use testkit::bench::results::Provenance;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) scale: Scale,
    /// The chat model.
    pub(crate) model: PathBuf,
    /// The folder with `snips`, `gsm8k` and `mt-bench`; `None`: tasks of our own alone.
    pub(crate) data: Option<PathBuf>,
    /// Roots, states and `steps.jsonl`; what is there is not done again.
    pub(crate) work: PathBuf,
    /// The daemon's program.
    pub(crate) program: PathBuf,
    /// CPU threads of daemon and trainer.
    pub(crate) threads: u32,
    /// Of this run, for the records.
    pub(crate) provenance: Provenance,
}

/// How much is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scale {
    /// Repetitions, each with examples and practice of its own.
    pub(crate) seeds: u64,
    /// Of each list of prompts at most so many.
    pub(crate) most: usize,
    /// Held-out prompts that are also sampled [`SAMPLES`](crate::measure::SAMPLES) times.
    pub(crate) sampled: usize,
    /// Questions of mt-bench.
    pub(crate) general: usize,
    /// Nights of the coin.
    pub(crate) coins: u32,
}

impl Scale {
    /// What is reported.
    pub(crate) const FULL: Self =
        Self { seeds: 3, most: usize::MAX, sampled: 100, general: 80, coins: 20 };
    /// Everything once, in minutes.
    pub(crate) const QUICK: Self = Self { seeds: 1, most: 24, sampled: 8, general: 4, coins: 2 };
}

impl Setting {
    /// Names everything that a result depends on but chance and the code: after a change of the code another
    /// folder of work begins anew.
    pub(crate) fn key(&self) -> anyhow::Result<String> {
        let model = files::sha256(&self.model)
            .with_context(|| format!("read the model {}", self.model.display()))?;
        let Scale { seeds: _, ref most, ref sampled, ref general, coins: _ } = self.scale;
        // The seeds are left out: with more of them the first ones stay what they are.
        let text = format!("{most} {sampled} {general} {model}");
        Ok(hex(&Sha256::digest(text)[..6]))
    }

    /// The head of a list.
    pub(crate) fn cut<T>(&self, mut list: Vec<T>) -> Vec<T> {
        list.truncate(self.scale.most);
        list
    }
}
