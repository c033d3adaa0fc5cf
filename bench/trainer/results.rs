//! What was measured, as numbers and as ratios: `results.json`, where the rows of other runs stay,
//! and a table for people. Used by `main`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use testkit::bench::results as shared;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::parity::Parity;
use crate::side::Seen;
use testkit::bench::machine;
use testkit::bench::results::{Goal, Peer, Provenance};
use testkit::bench::statistics::{median, range, ratios};

/// Our side is to be so many times as fast as the fastest setting of the other one, and to need the
/// memory of its smallest setting divided by it.
const TIMES: f64 = 2.0;

/// The rows of this run.
#[derive(Debug)]
pub(crate) struct Results {
    machine: String,
    commit: String,
    device: String,
    /// Versions of the other side.
    pub(crate) peer: Option<Value>,
    rows: Vec<Row>,
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
    pub(crate) parity: Option<Parity>,
    pub(crate) rounds: Vec<Round>,
}

/// Both sides, one after the other.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Round {
    pub(crate) ours: Measured,
    /// By setting. The first round has all of them, later ones the fastest and the smallest.
    pub(crate) theirs: BTreeMap<String, Measured>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) pairs_per_second: f64,
    pub(crate) peak_bytes: u64,
}

impl Measured {
    pub(crate) fn new(n_pairs: usize, seconds: f64, seen: &Seen) -> Self {
        Self { pairs_per_second: n_pairs as f64 / seconds, peak_bytes: seen.peak_bytes }
    }
}

/// A comparison's medians, and ratios above 1 where ours is better.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(skip)]
    name: String,
    #[serde(flatten)]
    provenance: Provenance,
    n_vocab: u64,
    compute: String,
    prompt_tokens: usize,
    answer_tokens: usize,
    /// `None`: nobody to compare with.
    parity: Option<Parity>,
    ours: Side,
    theirs: BTreeMap<String, Side>,
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

impl Side {
    /// Medians over the rounds that have both.
    fn new(rounds: &[(Measured, Measured)], tokens: f64) -> Option<Self> {
        let of = |number: &dyn Fn(&(Measured, Measured)) -> f64| -> Vec<f64> {
            rounds.iter().map(number).collect()
        };
        let ours = of(&|(ours, _)| ours.pairs_per_second * tokens);
        let theirs = of(&|(_, theirs)| theirs.pairs_per_second * tokens);
        let peaks = of(&|(_, theirs)| theirs.peak_bytes as f64);
        let faster = ratios(&ours, &theirs);
        let smaller = ratios(&peaks, &of(&|(ours, _)| ours.peak_bytes as f64));
        Some(Self {
            tokens_per_second: median(&theirs)?,
            peak_bytes: median(&peaks)?,
            speed_ratio: median(&faster),
            speed_range: range(&faster),
            memory_ratio: median(&smaller),
        })
    }
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
        Ok(Self { machine, commit, device: device.to_owned(), peer: None, rows: Vec::new() })
    }

    pub(crate) fn add(&mut self, case: Case) {
        let Case { n_vocab, compute, lengths: [prompt_tokens, answer_tokens], parity, rounds } =
            case;
        let tokens = 2.0 * (prompt_tokens + answer_tokens) as f64;
        let ours: Vec<_> = rounds.iter().map(|round| (round.ours, round.ours)).collect();
        let names = rounds.iter().flat_map(|round| round.theirs.keys());
        let theirs = names.filter_map(|name| {
            let both = |round: &Round| Some((round.ours, *round.theirs.get(name)?));
            let both: Vec<_> = rounds.iter().filter_map(both).collect();
            Some((name.clone(), Side::new(&both, tokens)?))
        });
        let on = if self.device == "cpu" { String::new() } else { format!("_{}", self.device) };
        let row = Row {
            name: format!("dpo_lora_{compute}_vocabulary_{n_vocab}{on}"),
            provenance: self.provenance(),
            n_vocab,
            prompt_tokens,
            answer_tokens,
            ours: Side::new(&ours, tokens).expect("there is a round"),
            theirs: theirs.collect(),
            parity,
            compute,
            rounds,
        };
        self.rows.push(row);
    }

    fn provenance(&self) -> Provenance {
        let versions = self.peer.as_ref().and_then(Value::as_object);
        let peer = versions.map(|versions| {
            let of = |(name, version): (&String, &Value)| {
                format!("{name} {}", version.as_str().unwrap_or_default())
            };
            let version = versions.iter().map(of).collect::<Vec<_>>().join(", ");
            let flags = "optim adamw_torch, adam_beta2 0.98, the micro-batches and gradient \
                         checkpointing that `theirs` names";
            Peer { version, flags: flags.to_owned() }
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
        for row in &self.rows {
            let value = serde_json::to_value(row).context("a row is plain data")?;
            file.rows.insert(row.name.clone(), value);
        }
        let goals = file.rows.iter().flat_map(|(name, row)| goals(name, row));
        file.goals = shared::with_reasons(goals.collect(), &file.goals);
        shared::write(&path, &file)?;
        eprintln!("{}", self.table());
        Ok(())
    }

    /// What differs by more than rounding explains, by row.
    pub(crate) fn faults(&self) -> Vec<String> {
        let fault = |row: &Row| {
            let fault = row.parity.as_ref()?.fault()?;
            Some(format!("{}: {fault}", row.name))
        };
        self.rows.iter().filter_map(fault).collect()
    }

    fn table(&self) -> String {
        let mut text = String::from(
            "| vocabulary | compute | side | tokens/s | peak MB | ours is faster | ours is smaller |\n\
             |---|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let theirs = row.theirs.iter().map(|(name, side)| (format!("TRL, {name}"), side));
            for (name, side) in [("ours".to_owned(), &row.ours)].into_iter().chain(theirs) {
                let ratio = |ratio: Option<f64>| match ratio.filter(|_| name != "ours") {
                    Some(ratio) => format!("{ratio:.2}"),
                    None => "-".to_owned(),
                };
                let (speed, memory) = (ratio(side.speed_ratio), ratio(side.memory_ratio));
                writeln!(
                    text,
                    "| {} | {} | {name} | {:.0} | {:.0} | {speed} | {memory} |",
                    row.n_vocab,
                    row.compute,
                    side.tokens_per_second,
                    side.peak_bytes / 1e6
                )
                .expect("writing to a string succeeds");
            }
        }
        text
    }
}

/// Speed and memory against whichever setting of the other side is best at it, and parity.
fn goals(name: &str, row: &Value) -> Vec<Goal> {
    let sides = row["theirs"].as_object().into_iter().flat_map(serde_json::Map::values);
    let sides: Vec<&Value> = sides.collect();
    let least = |ratio: &str| sides.iter().filter_map(|side| side[ratio].as_f64()).reduce(f64::min);
    let ratios = [("faster than TRL", "speed_ratio"), ("smaller than TRL", "memory_ratio")];
    let ratios = ratios
        .map(|(what, ratio)| Goal::at_least(format!("{name}, times {what}"), TIMES, least(ratio)));
    let differences = row["parity"]["differences"].as_array().into_iter().flatten();
    let parity = differences.filter_map(|it| {
        let what = format!("{name}, {}", it["name"].as_str()?);
        Some(Goal::at_most(what, it["at_most"].as_f64()?, it["value"].as_f64()))
    });
    ratios.into_iter().chain(parity).collect()
}
