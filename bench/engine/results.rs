//! What was measured: figures by name and curves, read from and written to `results.json`. A run of
//! some workloads replaces their entries and keeps the others. Used by every workload, `table` and
//! `plot`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use files::write_atomic;
use serde::{Deserialize, Serialize};

use crate::statistics::{median, range, ratios};

/// All that is known.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Results {
    /// Processor, cores, memory, system.
    pub(crate) machine: String,
    /// Its version and flags; `None`: the last run had none.
    pub(crate) peer: Option<String>,
    /// By name.
    pub(crate) figures: BTreeMap<String, Figure>,
    /// By name.
    pub(crate) curves: BTreeMap<String, Curve>,
}

/// One comparison.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Figure {
    pub(crate) workload: String,
    /// For people.
    pub(crate) title: String,
    pub(crate) unit: String,
    /// Median.
    pub(crate) ours: f64,
    /// Median; `None`: no peer, or nothing to compare with.
    pub(crate) other: Option<f64>,
    /// Above 1: ours is better. Median of the rounds' ratios.
    pub(crate) ratio: Option<f64>,
    /// Least and most of the rounds' ratios, or of ours without another side.
    pub(crate) range: Option<(f64, f64)>,
    pub(crate) goal: Option<Goal>,
    pub(crate) rounds: usize,
    /// What was measured, and what the other side was.
    pub(crate) commit: String,
    /// What the other side was.
    pub(crate) against: Option<String>,
}

/// What must be reached.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    /// The ratio.
    RatioAtLeast(f64),
    /// Our own number.
    AtMost(f64),
}

/// Which way a number is better.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Better {
    /// Tokens a second.
    Higher,
    /// Seconds, bytes.
    Lower,
}

/// A measurement before it becomes a [`Figure`].
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    /// A number a round.
    pub(crate) ours: Vec<f64>,
    /// A number a round; empty: none.
    pub(crate) other: Vec<f64>,
    /// What the other side is.
    pub(crate) against: Option<String>,
    pub(crate) goal: Option<Goal>,
}

/// How a cost grows.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Curve {
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) y: String,
    /// (x, y), by what they show.
    pub(crate) lines: BTreeMap<String, Vec<(f64, f64)>>,
    pub(crate) commit: String,
}

/// What a workload hands back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    pub(crate) measured: Vec<Measured>,
    /// By name, without commit.
    pub(crate) curves: Vec<(String, Curve)>,
}

impl Measured {
    pub(crate) fn figure(&self, workload: &str, commit: &str) -> Option<Figure> {
        let compared = match self.better {
            Better::Higher => ratios(&self.ours, &self.other),
            Better::Lower => ratios(&self.other, &self.ours),
        };
        Some(Figure {
            workload: workload.to_owned(),
            title: self.title.clone(),
            unit: self.unit.to_owned(),
            ours: median(&self.ours)?,
            other: median(&self.other),
            ratio: median(&compared),
            range: range(if compared.is_empty() { &self.ours } else { &compared }),
            goal: self.goal,
            rounds: self.ours.len(),
            commit: commit.to_owned(),
            against: self.against.clone().filter(|_| !self.other.is_empty()),
        })
    }
}

impl Figure {
    /// Whether the goal is reached; `None` without a goal or without a peer.
    pub(crate) fn holds(&self) -> Option<bool> {
        match self.goal? {
            Goal::RatioAtLeast(least) => self.ratio.map(|ratio| least <= ratio),
            Goal::AtMost(most) => Some(self.ours <= most),
        }
    }
}

impl Results {
    /// What earlier runs have left; nothing when there is no file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Replaces what a workload found before.
    pub(crate) fn replace(&mut self, workload: &str, commit: &str, findings: Findings) {
        self.figures.retain(|_, figure| figure.workload != workload);
        for measured in findings.measured {
            let figure = measured.figure(workload, commit);
            self.figures.extend(figure.map(|figure| (measured.name, figure)));
        }
        for (name, curve) in findings.curves {
            self.curves.insert(name, Curve { commit: commit.to_owned(), ..curve });
        }
    }

    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self).context("results are plain data")?;
        write_atomic(path, |file| writeln!(file, "{text}"))
            .with_context(|| format!("write {}", path.display()))
    }
}
