//! The steps of a benchmark that are done: one JSON line a step, appended when the step has ended, so that
//! an interrupted benchmark goes on where it was. Steps of other settings stay in the file and are not
//! seen. Several processes may append to one file.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::results::Provenance;

/// The steps of one setting by name.
#[derive(Debug)]
pub struct Records<F> {
    path: PathBuf,
    key: String,
    /// Of the steps that are added.
    provenance: Provenance,
    steps: BTreeMap<String, Step<F>>,
}

/// A line of the file.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Step<F> {
    /// Of its setting.
    key: String,
    /// Where and how it was done.
    #[serde(flatten)]
    pub provenance: Provenance,
    /// `<unit>/<what>`, or a name alone.
    pub name: String,
    /// Seconds.
    pub wall_s: f64,
    /// What it found.
    pub finding: F,
}

impl<F: Clone + DeserializeOwned + Serialize> Records<F> {
    /// Reads what is there. A last line that a kill has cut off is passed over; its step is done again.
    pub fn open(path: &Path, key: &str, run: &Provenance) -> anyhow::Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let steps = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Step<F>>(line).ok())
            .filter(|step| step.key == key)
            .map(|step| (step.name.clone(), step))
            .collect();
        Ok(Self { path: path.to_owned(), key: key.to_owned(), provenance: run.clone(), steps })
    }

    /// The setting whose steps are seen.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// A step by its name.
    pub fn get(&self, name: &str) -> Option<&Step<F>> {
        self.steps.get(name)
    }

    /// All steps in the order of their names.
    pub fn steps(&self) -> impl Iterator<Item = &Step<F>> {
        self.steps.values()
    }

    /// Those whose names begin with a unit's, in the order of their names.
    pub fn of_unit(&self, unit: &str) -> impl Iterator<Item = &Step<F>> {
        let prefix = format!("{unit}/");
        self.steps().filter(move |step| step.name.starts_with(&prefix))
    }

    /// Appends a step that has taken `wall_s` seconds.
    pub fn add(&mut self, name: impl Into<String>, wall_s: f64, finding: F) -> anyhow::Result<()> {
        let (key, provenance) = (self.key.clone(), self.provenance.clone());
        let step = Step { key, provenance, name: name.into(), wall_s, finding };
        let line = serde_json::to_string(&step).context("a step is plain data")?;
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        // In one write, so that lines of several processes do not mix; a new line first ends what a
        // kill has cut off.
        file.and_then(|mut file| file.write_all(format!("\n{line}\n").as_bytes()))
            .with_context(|| format!("append to {}", self.path.display()))?;
        self.steps.insert(step.name.clone(), step);
        Ok(())
    }
}
