//! What was measured: figures by name and curves, read from and written to `results.json`. A run of
//! some workloads replaces their entries and keeps the others. Used by every workload, `table` and
//! `plot`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use testkit::bench::results::{self as shared, Provenance};
use testkit::bench::statistics::{median, range, ratios};

/// In the order of the table.
pub(crate) const WORKLOADS: [&str; 9] = [
    "chats",
    "drafts",
    "reflection",
    "refinement",
    "overhead",
    "explore",
    "swap",
    "deterministic",
    "growth",
];

/// How our other side is called that is another program.
pub(crate) const LLAMA_SERVER: &str = "llama-server";

/// All that is known.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Results {
    /// One for each figure that has a goal.
    pub(crate) goals: Vec<shared::Goal>,
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
    /// What the other side was.
    pub(crate) against: Option<String>,
    #[serde(flatten)]
    pub(crate) provenance: Provenance,
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
    #[serde(flatten)]
    pub(crate) provenance: Provenance,
}

/// What a workload hands back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    pub(crate) measured: Vec<Measured>,
    /// By name, without provenance.
    pub(crate) curves: Vec<(String, Curve)>,
}

impl Measured {
    /// `run`: where and how; the peer stays in it where it is the other side.
    pub(crate) fn figure(&self, workload: &str, run: &Provenance) -> Option<Figure> {
        let compared = match self.better {
            Better::Higher => ratios(&self.ours, &self.other),
            Better::Lower => ratios(&self.other, &self.ours),
        };
        let against = self.against.clone().filter(|_| !self.other.is_empty());
        let is_peer = against.as_ref().is_some_and(|it| it.starts_with(LLAMA_SERVER));
        let peer = run.peer.clone().filter(|_| is_peer);
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
            against,
            provenance: Provenance { peer, ..run.clone() },
        })
    }
}

impl Figure {
    /// The goal for machines; `None`: there is none.
    pub(crate) fn goal_of(&self, name: &str) -> Option<shared::Goal> {
        Some(match self.goal? {
            Goal::RatioAtLeast(least) => shared::Goal::at_least(name, least, self.ratio),
            Goal::AtMost(most) => shared::Goal::at_most(name, most, Some(self.ours)),
        })
    }

    /// Whether the goal is reached; `None` without a goal or without a peer.
    pub(crate) fn holds(&self) -> Option<bool> {
        self.goal_of("")?.is_reached()
    }
}

impl Results {
    /// Replaces what a workload found before.
    pub(crate) fn replace(&mut self, workload: &str, run: &Provenance, findings: Findings) {
        self.figures.retain(|_, figure| figure.workload != workload);
        for measured in findings.measured {
            let figure = measured.figure(workload, run);
            self.figures.extend(figure.map(|figure| (measured.name, figure)));
        }
        for (name, curve) in findings.curves {
            let provenance = Provenance { peer: None, ..run.clone() };
            self.curves.insert(name, Curve { provenance, ..curve });
        }
        self.renew_goals();
    }

    /// The goals follow from the figures.
    pub(crate) fn renew_goals(&mut self) {
        let goals = self.figures.iter().filter_map(|(name, figure)| figure.goal_of(name));
        self.goals = shared::with_reasons(goals.collect(), &self.goals);
    }
}
