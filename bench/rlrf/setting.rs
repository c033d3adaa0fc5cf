//! What the experiment is run with: sizes, folders, programs. What changes a result goes into the
//! key under which results are kept. Used by everything here.

use std::path::PathBuf;

use config::{Agent, Config};
use files::hex;
use nano::world::Split;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use testkit::bench::results::Provenance;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) scale: Scale,
    /// The folder of `reflectd.yaml` and the nano agent.
    pub(crate) root: PathBuf,
    /// Stores, adapters and `steps.jsonl`; what is there is not done again.
    pub(crate) work: PathBuf,
    /// The trainer program.
    pub(crate) trainer: PathBuf,
    /// CPU threads of the engine and of the trainer.
    pub(crate) threads: u32,
    /// Of this run, for the records.
    pub(crate) provenance: Provenance,
}

/// How much is done.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Scale {
    /// Repetitions, each with prompts and random numbers of its own.
    pub(crate) seeds: u64,
    /// Problems that every arm answers, never in training.
    pub(crate) held_out: usize,
    /// Of these, problems that are also sampled [`SAMPLES`](crate::measure::SAMPLES) times.
    pub(crate) sampled: usize,
    /// Of these, problems that the gate is asked about.
    pub(crate) gate: usize,
    /// Problems that each round explores.
    pub(crate) prompts: usize,
    /// Drafts a problem (the paper's n).
    pub(crate) drafts: u32,
    /// Refinements a problem (the paper's m).
    pub(crate) refinements: u32,
    /// Settings are tried on another set of problems than the one that is reported.
    pub(crate) is_development: bool,
}

impl Scale {
    /// What is reported.
    pub(crate) const FULL: Self = Self {
        seeds: 3,
        held_out: 1000,
        sampled: 250,
        gate: 400,
        prompts: 150,
        drafts: 10,
        refinements: 20,
        is_development: false,
    };
    /// Everything once, in minutes.
    pub(crate) const QUICK: Self = Self {
        seeds: 1,
        held_out: 200,
        sampled: 50,
        gate: 100,
        prompts: 60,
        drafts: 10,
        refinements: 20,
        is_development: false,
    };

    /// Which problems measure. None of the sets shares template and numbers with the live set, from
    /// which training takes its problems, or with each other.
    pub(crate) fn measured_split(&self) -> Split {
        if self.is_development { Split::Train } else { Split::HeldOut }
    }
}

impl Setting {
    /// Names everything that a result depends on but chance.
    pub(crate) fn key(&self, config: &Config, model_sha256: &str) -> String {
        // The seeds are left out: with more of them the first ones stay what they are.
        let scale = Scale { seeds: 0, ..self.scale.clone() };
        let agents = config.agents.values().map(|agent| {
            let Agent { name, system, sampling, aspects, reflection, .. } = &**agent;
            format!("{name} {system:?} {sampling:?} {aspects:?} {reflection:?}")
        });
        let agents: Vec<String> = agents.collect();
        let text = format!("{scale:?} {:?} {agents:?} {model_sha256}", config.learn);
        hex(&Sha256::digest(text)[..6])
    }
}
