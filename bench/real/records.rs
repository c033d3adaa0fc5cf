//! What is done: one JSON line a step in `steps.jsonl`, appended when the step has ended. Steps of other
//! settings stay in the file and are not seen. Used by `unit` (writes) and `results` (reads).

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use testkit::bench::results::Provenance;

/// The steps of one setting by name.
#[derive(Debug)]
pub(crate) struct Records {
    path: PathBuf,
    key: String,
    /// Of the steps that are added.
    provenance: Provenance,
    steps: BTreeMap<String, Step>,
}

/// A line of the file.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Step {
    /// See `Setting::key`.
    key: String,
    #[serde(flatten)]
    pub(crate) provenance: Provenance,
    /// `<unit>/check`, `<unit>/round-1`, `<unit>/answered-1`, ...
    pub(crate) name: String,
    pub(crate) wall_s: f64,
    pub(crate) finding: Finding,
}

/// What a step found.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(crate) enum Finding {
    Checked(Checked),
    Trained(Trained),
    Answered(Answered),
    /// The step was not possible.
    Failed {
        why: String,
    },
}

/// Whether the product takes the owner's form.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Checked {
    /// Empty: it does.
    pub(crate) refused: Vec<String>,
}

/// A round of a night.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Trained {
    /// `promoted`, `rejected`, `failed`, ...
    pub(crate) outcome: String,
    pub(crate) reason: Option<String>,
    pub(crate) n_pairs: Option<u64>,
    /// Of the gate.
    pub(crate) verdict: Option<Value>,
    /// What is served afterwards.
    pub(crate) generation: u64,
    /// By stage.
    pub(crate) seconds: BTreeMap<String, f64>,
    /// What the exploration said; `None`: there was none.
    pub(crate) explored: Option<Value>,
    /// The exploration was stopped because its time was over.
    pub(crate) is_cut: bool,
}

/// How what is served answers the prompts that measure.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Answered {
    pub(crate) generation: u64,
    /// Of each set: 1 where the greedy answer is right, else 0.
    pub(crate) greedy: BTreeMap<String, String>,
    /// Of the first prompts, right ones of the samples, a digit a prompt.
    pub(crate) samples: String,
    /// Mean tokens of the greedy answers.
    pub(crate) tokens: f64,
    /// Greedy answers that were cut off.
    pub(crate) cut: usize,
    /// Greedy answers that no earlier prompt has.
    pub(crate) different: usize,
    /// Those of them that share a word with their prompt.
    pub(crate) different_on_topic: usize,
    /// 1 where a general format is kept, else 0.
    pub(crate) formats: String,
    /// Mean log p(base) - log p(served) of a token over the base's own answers to general questions;
    /// `None`: there is no public data.
    pub(crate) general_nats: Option<f64>,
    /// For people: the first prompts and what is answered to them. Tasks of our own alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) shown: Vec<(String, String)>,
}

impl Records {
    /// Reads what is there. A last line that a kill has cut off is passed over; its step is done again.
    pub(crate) fn open(path: &Path, key: &str, run: &Provenance) -> anyhow::Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let steps = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Step>(line).ok())
            .filter(|step| step.key == key)
            .map(|step| (step.name.clone(), step))
            .collect();
        Ok(Self { path: path.to_owned(), key: key.to_owned(), provenance: run.clone(), steps })
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Step> {
        self.steps.get(name)
    }

    /// The steps whose names begin with a unit's, in the order of their names.
    pub(crate) fn of_unit(&self, unit: &str) -> impl Iterator<Item = &Step> {
        let prefix = format!("{unit}/");
        self.steps.values().filter(move |step| step.name.starts_with(&prefix))
    }

    pub(crate) fn add(&mut self, name: &str, wall_s: f64, finding: Finding) -> anyhow::Result<()> {
        let (key, provenance) = (self.key.clone(), self.provenance.clone());
        let step = Step { key, provenance, name: name.to_owned(), wall_s, finding };
        let line = serde_json::to_string(&step).context("a step is plain data")?;
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        // A new line first ends what a kill has cut off.
        file.and_then(|mut file| file.write_all(format!("\n{line}\n").as_bytes()))
            .with_context(|| format!("append to {}", self.path.display()))?;
        self.steps.insert(step.name.clone(), step);
        Ok(())
    }
}
