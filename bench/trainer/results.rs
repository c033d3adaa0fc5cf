//! What was measured, as numbers and as ratios: `results.json`, where the rows of other runs stay,
//! and a table for people. Used by `main`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use statistics::mean;

use crate::machine;
use crate::side::Seen;
use crate::statistics::{median, range, ratios};
use shared::{Goal, Peer, Provenance};

#[path = "../results.rs"]
#[allow(dead_code, reason = "other benchmarks use the rest")]
mod shared;

/// Ours is to be so many times as fast as the faster of the other sides, and to need the memory of
/// the smaller one divided by it.
const TIMES: f64 = 2.0;

/// The rows of this run.
#[derive(Debug)]
pub(crate) struct Results {
    machine: String,
    commit: String,
    device: String,
    /// Versions of the other side.
    pub(crate) peer: Option<Value>,
    /// What the other side is started with.
    pub(crate) peer_flags: String,
    cases: Vec<Summary>,
}

/// The file: rows by name. Those of other runs are kept as they are.
#[derive(Debug, Default, Deserialize, Serialize)]
struct File {
    goals: Vec<Goal>,
    rows: BTreeMap<String, Value>,
}

/// One comparison.
pub(crate) struct Case {
    pub(crate) n_vocab: u64,
    pub(crate) compute: String,
    /// Tokens of the prompt and of each answer.
    pub(crate) lengths: [usize; 2],
    pub(crate) rounds: Vec<Round>,
}

/// Both sides, one after the other.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Round {
    pub(crate) ours: Measured,
    /// TRL that keeps everything for the backward pass, and that computes blocks again.
    pub(crate) plain: Option<Measured>,
    pub(crate) checkpointed: Option<Measured>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) pairs_per_second: f64,
    pub(crate) peak_bytes: u64,
    pub(crate) losses: Vec<f64>,
}

impl Measured {
    pub(crate) fn new(n_pairs: usize, seconds: f64, seen: &Seen, losses: Vec<f64>) -> Self {
        Self { pairs_per_second: n_pairs as f64 / seconds, peak_bytes: seen.peak_bytes, losses }
    }
    /// How far the means of the losses lie apart (the orders of the pairs differ); not a number
    /// when a side has none.
    pub(crate) fn gap(&self, other: &Self) -> f64 {
        let [own, other] = [self, other].map(|side| mean(side.losses.iter().copied()));
        (own - other).abs()
    }
}

/// A comparison's medians, and ratios above 1 where ours is better.
#[derive(Debug, Serialize)]
struct Summary {
    #[serde(skip)]
    name: String,
    #[serde(flatten)]
    provenance: Provenance,
    n_vocab: u64,
    compute: String,
    prompt_tokens: usize,
    answer_tokens: usize,
    ours: Side,
    plain: Option<Side>,
    checkpointed: Option<Side>,
    rounds: Vec<Round>,
}

#[derive(Debug, Serialize)]
struct Side {
    /// Of the pair's own tokens, the prompt counted twice, as a trainer without sharing computes it.
    tokens_per_second: f64,
    peak_bytes: f64,
    /// Ours over theirs.
    speed_ratio: Option<f64>,
    speed_range: Option<(f64, f64)>,
    /// Theirs over ours.
    memory_ratio: Option<f64>,
}

impl Results {
    pub(crate) fn new(device: &str, threads: usize) -> anyhow::Result<Self> {
        let threads = u32::try_from(threads)?;
        let mut machine = machine::describe(threads)?;
        if device == "cuda" {
            let query = ["--query-gpu=name,driver_version", "--format=csv,noheader"];
            let gpu = std::process::Command::new("nvidia-smi").args(query).output();
            let gpu = gpu.context("ask nvidia-smi")?;
            machine = format!("{}; {machine}", String::from_utf8_lossy(&gpu.stdout).trim());
        }
        // Where there is no git, as on a lent machine, whoever copies the results adds the commit.
        let commit = machine::commit().unwrap_or_default();
        let (peer_flags, device) = (String::new(), device.to_owned());
        Ok(Self { machine, commit, device, peer: None, peer_flags, cases: Vec::new() })
    }

    pub(crate) fn add(&mut self, case: Case) {
        let Case { n_vocab, compute, lengths: [prompt_tokens, answer_tokens], rounds } = case;
        let tokens = 2.0 * (prompt_tokens + answer_tokens) as f64;
        let ours: Vec<&Measured> = rounds.iter().map(|round| &round.ours).collect();
        let side = |of: &dyn Fn(&Round) -> Option<&Measured>| -> Option<Side> {
            let theirs: Vec<&Measured> = rounds.iter().filter_map(of).collect();
            let speeds = |side: &[&Measured]| -> Vec<f64> {
                side.iter().map(|measured| measured.pairs_per_second * tokens).collect()
            };
            let peaks = |side: &[&Measured]| -> Vec<f64> {
                side.iter().map(|measured| measured.peak_bytes as f64).collect()
            };
            let faster = ratios(&speeds(&ours), &speeds(&theirs));
            let smaller = ratios(&peaks(&theirs), &peaks(&ours));
            Some(Side {
                tokens_per_second: median(&speeds(&theirs))?,
                peak_bytes: median(&peaks(&theirs))?,
                speed_ratio: median(&faster),
                speed_range: range(&faster),
                memory_ratio: median(&smaller),
            })
        };
        let on = if self.device == "cpu" { String::new() } else { format!("_{}", self.device) };
        let summary = Summary {
            name: format!("dpo_lora_{compute}_vocabulary_{n_vocab}{on}"),
            provenance: self.provenance(),
            n_vocab,
            prompt_tokens,
            answer_tokens,
            ours: side(&|round| Some(&round.ours)).expect("there is a round"),
            plain: side(&|round| round.plain.as_ref()),
            checkpointed: side(&|round| round.checkpointed.as_ref()),
            compute,
            rounds,
        };
        self.cases.push(summary);
    }

    fn provenance(&self) -> Provenance {
        let versions = self.peer.as_ref().and_then(Value::as_object);
        let peer = versions.map(|versions| {
            let of = |(name, version): (&String, &Value)| {
                format!("{name} {}", version.as_str().unwrap_or_default())
            };
            let version = versions.iter().map(of).collect::<Vec<_>>().join(", ");
            Peer { version, flags: self.peer_flags.clone() }
        });
        Provenance {
            machine: self.machine.clone(),
            commit: self.commit.clone(),
            command: Some(shared::command("trainer", &["TRL_PYTHON"])),
            peer,
        }
    }

    /// Writes this run's rows into `results.json` and prints their table.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let path = folder.join("results.json");
        let mut file: File = shared::read(&path)?;
        for case in &self.cases {
            let row = serde_json::to_value(case).context("a row is plain data")?;
            file.rows.insert(case.name.clone(), row);
        }
        let goals = file.rows.iter().flat_map(|(name, row)| goals(name, row));
        file.goals = shared::with_reasons(goals.collect(), &file.goals);
        shared::write(&path, &file)?;
        eprintln!("{}", self.table());
        Ok(())
    }

    fn table(&self) -> String {
        let mut text = String::from(
            "| vocabulary | compute | side | tokens/s | peak MB | ours is faster | ours is smaller |\n\
             |---|---|---|---|---|---|---|\n",
        );
        for case in &self.cases {
            let sides = [
                ("ours", Some(&case.ours)),
                ("TRL", case.plain.as_ref()),
                ("TRL, checkpointing", case.checkpointed.as_ref()),
            ];
            for (name, side) in sides.iter().filter_map(|(name, side)| Some((name, (*side)?))) {
                let ratio = |ratio: Option<f64>| match ratio.filter(|_| *name != "ours") {
                    Some(ratio) => format!("{ratio:.2}"),
                    None => "-".to_owned(),
                };
                let (speed, memory) = (ratio(side.speed_ratio), ratio(side.memory_ratio));
                writeln!(
                    text,
                    "| {} | {} | {name} | {:.0} | {:.0} | {speed} | {memory} |",
                    case.n_vocab,
                    case.compute,
                    side.tokens_per_second,
                    side.peak_bytes / 1e6
                )
                .expect("writing to a string succeeds");
            }
        }
        text
    }
}

/// Speed and memory against whichever of the other sides is better at it.
fn goals(name: &str, row: &Value) -> [Goal; 2] {
    let least = |ratio: &str| {
        let sides = ["plain", "checkpointed"].iter().filter_map(|side| row[side][ratio].as_f64());
        sides.reduce(f64::min)
    };
    [("faster than TRL", "speed_ratio"), ("smaller than TRL", "memory_ratio")]
        .map(|(what, ratio)| Goal::at_least(format!("{name}, times {what}"), TIMES, least(ratio)))
}
