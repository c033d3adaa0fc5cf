//! What was measured, as numbers and as ratios: `results.json`, where the rows of other runs stay,
//! and a table for people. Used by `main`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::parity::Parity;
use crate::side::Seen;
use testkit::bench::machine;
use testkit::bench::results as shared;
use testkit::bench::results::{Goal, Peer, Provenance};
use testkit::bench::statistics::{median, range, ratios};

/// Our side is to be so many times as fast as the fastest setting of the other one, and to need the
/// memory of its smallest setting divided by it.
const TIMES: f64 = 2.0;

/// Blocks of the model, unless somebody wants fewer.
pub(crate) const BLOCKS: u64 = 12;

/// What the name of a row about speed and memory begins with.
const SPEED: &str = "dpo_lora";

/// The rows of this run, and those of earlier ones.
#[derive(Debug)]
pub(crate) struct Results {
    path: PathBuf,
    file: File,
    machine: String,
    commit: String,
    device: String,
    threads: usize,
    beside: Option<String>,
    /// Versions of the other side.
    pub(crate) peer: Option<Value>,
    rows: Vec<SpeedRow>,
    parities: Vec<ParityRow>,
}

/// The file: rows by name. Those of other runs are kept as they are.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct File {
    pub(crate) goals: Vec<Goal>,
    rows: BTreeMap<String, Value>,
}

/// What is compared.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Case {
    pub(crate) n_blocks: u64,
    pub(crate) n_vocab: u64,
    pub(crate) compute: String,
    /// Tokens of the prompt and of each answer.
    pub(crate) lengths: [usize; 2],
}

/// Both sides, one after the other.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Round {
    pub(crate) ours: Measured,
    /// By setting. The first round has all of them, later ones the fastest and the smallest.
    pub(crate) theirs: BTreeMap<String, Measured>,
}

impl Case {
    /// Tokens of a pair, the prompt counted twice, as a trainer without sharing computes it.
    fn tokens(&self) -> f64 {
        2.0 * self.lengths.iter().sum::<usize>() as f64
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Measured {
    pub(crate) pairs_per_second: f64,
    pub(crate) peak_bytes: u64,
}

impl Measured {
    pub(crate) fn new(n_pairs: usize, seconds: f64, seen: &Seen) -> Self {
        Self { pairs_per_second: n_pairs as f64 / seconds, peak_bytes: seen.peak_bytes }
    }
}

/// Of the settings of one side the fastest and the one with the least memory.
pub(crate) fn best(settings: &BTreeMap<String, Measured>) -> [Option<&str>; 2] {
    let speed = |it: &(&String, &Measured)| it.1.pairs_per_second;
    let fastest = settings.iter().max_by(|a, b| speed(a).total_cmp(&speed(b)));
    let smallest = settings.iter().min_by_key(|(_, measured)| measured.peak_bytes);
    [fastest, smallest].map(|it| it.map(|(name, _)| name.as_str()))
}

/// What each row says about its origin.
#[derive(Debug, Deserialize, Serialize)]
struct Origin {
    #[serde(flatten)]
    provenance: Provenance,
    /// What else ran on the machine; `None`: nobody said.
    #[serde(skip_serializing_if = "Option::is_none")]
    beside: Option<String>,
}

/// Speed and memory: medians, and ratios above 1 where ours is better.
#[derive(Debug, Deserialize, Serialize)]
struct SpeedRow {
    #[serde(skip)]
    name: String,
    #[serde(flatten)]
    origin: Origin,
    #[serde(flatten)]
    case: Case,
    ours: Side,
    theirs: BTreeMap<String, Side>,
    rounds: Vec<Round>,
}

/// Whether both sides compute the same.
#[derive(Debug, Serialize)]
struct ParityRow {
    #[serde(skip)]
    name: String,
    #[serde(flatten)]
    origin: Origin,
    #[serde(flatten)]
    case: Case,
    n_pairs: usize,
    /// One for each seed of model, adapter and pairs.
    parities: Vec<Parity>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Side {
    /// As [`Case::tokens`] counts them.
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
    /// `path`: the file whose other rows stay.
    pub(crate) fn new(
        path: PathBuf,
        device: &str,
        threads: usize,
        beside: Option<String>,
    ) -> anyhow::Result<Self> {
        let file = shared::read(&path)?;
        let mut machine = machine::describe(u32::try_from(threads)?)?;
        if device == "cuda" {
            let query = ["--query-gpu=name,driver_version", "--format=csv,noheader"];
            let gpu = std::process::Command::new("nvidia-smi").args(query).output();
            let gpu = gpu.context("ask nvidia-smi")?;
            machine = format!("{}; {machine}", String::from_utf8_lossy(&gpu.stdout).trim());
        }
        // Where there is no git, as on a lent machine, whoever copies the results adds the commit.
        let commit = machine::commit().unwrap_or_default();
        let device = device.to_owned();
        let (peer, rows, parities) = (None, Vec::new(), Vec::new());
        Ok(Self { path, file, machine, commit, device, threads, beside, peer, rows, parities })
    }

    /// The name of a row about a case.
    fn name(&self, what: &str, case: &Case) -> String {
        let on = if self.device == "cpu" { String::new() } else { format!("_{}", self.device) };
        let blocks = match case.n_blocks {
            BLOCKS => String::new(),
            fewer => format!("_blocks_{fewer}"),
        };
        format!("{what}_{}_vocabulary_{}{blocks}{on}", case.compute, case.n_vocab)
    }

    /// A run that measures our side alone would take away what an earlier one found out about both.
    pub(crate) fn check_may_replace(&self, case: &Case) -> anyhow::Result<()> {
        let name = self.name(SPEED, case);
        let both = self.file.rows.get(&name).and_then(|row| row["theirs"].as_object());
        ensure!(
            both.is_none_or(serde_json::Map::is_empty),
            "{name} of {} compares with TRL, and this run would not: set TRL_PYTHON to a Python that \
             has it, or write elsewhere with --out",
            self.path.display()
        );
        Ok(())
    }

    /// Speed and memory, round by round.
    pub(crate) fn add(&mut self, case: Case, rounds: Vec<Round>) -> anyhow::Result<()> {
        let tokens = case.tokens();
        let ours: Vec<_> = rounds.iter().map(|round| (round.ours, round.ours)).collect();
        let names = rounds.iter().flat_map(|round| round.theirs.keys());
        let theirs = names.filter_map(|name| {
            let both = |round: &Round| Some((round.ours, *round.theirs.get(name)?));
            let both: Vec<_> = rounds.iter().filter_map(both).collect();
            Some((name.clone(), Side::new(&both, tokens)?))
        });
        let theirs: BTreeMap<String, Side> = theirs.collect();
        if theirs.is_empty() {
            self.check_may_replace(&case)?;
        }
        self.rows.push(SpeedRow {
            name: self.name(SPEED, &case),
            origin: self.origin("the micro-batches and gradient checkpointing that `theirs` names"),
            case,
            ours: Side::new(&ours, tokens).context("there is no round")?,
            theirs,
            rounds,
        });
        Ok(())
    }

    /// Whether both compute the same, by seed.
    pub(crate) fn add_parity(&mut self, case: Case, n_pairs: usize, parities: Vec<Parity>) {
        let name = self.name("parity", &case);
        let origin = self.origin("all pairs in one micro-batch");
        self.parities.push(ParityRow { name, origin, case, n_pairs, parities });
    }

    fn origin(&self, batches: &str) -> Origin {
        let versions = self.peer.as_ref().and_then(Value::as_object);
        let peer = versions.map(|versions| {
            let of = |(name, version): (&String, &Value)| {
                format!("{name} {}", version.as_str().unwrap_or_default())
            };
            let version = versions.iter().map(of).collect::<Vec<_>>().join(", ");
            let (threads, waiting) = (self.threads, protocol::program::waiting());
            let flags = format!(
                "OMP_NUM_THREADS={threads} {waiting}; optim adamw_torch, adam_beta2 0.98, {batches}"
            );
            Peer { version, flags }
        });
        let provenance = Provenance {
            machine: self.machine.clone(),
            commit: self.commit.clone(),
            command: Some(shared::command("trainer", &["TRL_PYTHON", "OMP_WAIT_POLICY"])),
            peer,
        };
        Origin { provenance, beside: self.beside.clone() }
    }

    /// Writes this run's rows into `results.json`.
    pub(crate) fn write(&mut self) -> anyhow::Result<()> {
        let rows = self.rows.iter().map(|row| (row.name.clone(), serde_json::to_value(row)));
        let parities =
            self.parities.iter().map(|row| (row.name.clone(), serde_json::to_value(row)));
        for (name, row) in rows.chain(parities) {
            self.file.rows.insert(name, row.context("a row is plain data")?);
        }
        self.file.renew_goals();
        shared::write(&self.path, &self.file)
    }

    /// What is in the file now.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// What differs by more than rounding explains, and planted faults that are not seen, by row.
    pub(crate) fn faults(&self) -> Vec<String> {
        let faults = |row: &ParityRow| -> Vec<String> {
            let faults = row.parities.iter().flat_map(Parity::faults);
            faults.map(|fault| format!("{}: {fault}", row.name)).collect()
        };
        self.parities.iter().flat_map(faults).collect()
    }
}

impl File {
    /// The goals follow from the rows.
    pub(crate) fn renew_goals(&mut self) {
        let goals = self.rows.iter().flat_map(|(name, row)| goals(name, row));
        self.goals = shared::with_reasons(goals.collect(), &self.goals);
    }

    /// Speed and memory for people, and where they were measured.
    pub(crate) fn table(&self) -> anyhow::Result<String> {
        let mut text = String::from(
            "| vocabulary | compute | side | tokens/s | peak MB | ours is faster | ours is smaller |\n\
             |---|---|---|---|---|---|---|\n",
        );
        let mut origins = BTreeSet::new();
        for (name, row) in self.rows.iter().filter(|(name, _)| name.starts_with(SPEED)) {
            let row: SpeedRow = serde_json::from_value(row.clone()).context(name.clone())?;
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
                    row.case.n_vocab,
                    row.case.compute,
                    side.tokens_per_second,
                    side.peak_bytes / 1e6
                )?;
            }
            let Provenance { machine, commit, command, peer: _ } = row.origin.provenance;
            let command = command.map_or("not recorded".to_owned(), |it| format!("`{it}`"));
            origins.insert(format!(
                "Vocabulary {}, {}: {machine}; commit {commit}; command: {command}; rounds: {}.",
                row.case.n_vocab,
                row.case.compute,
                row.rounds.len()
            ));
        }
        text.push('\n');
        for origin in origins {
            writeln!(text, "{origin}")?;
        }
        text.push('\n');
        for goal in self.goals.iter().filter(|goal| goal.is_reached() != Some(true)) {
            let value = goal.value.map_or("not measured".to_owned(), |value| format!("{value:.2}"));
            let why = goal.why.as_deref().unwrap_or_default();
            writeln!(text, "- {}: {value}, goal {}. {why}", goal.name, goal.goal)?;
        }
        Ok(text)
    }
}

/// Speed and memory against whichever setting of the other side is best at it, once it had more than one
/// micro-batch to be best at; the largest of each difference over the seeds.
fn goals(name: &str, row: &Value) -> Vec<Goal> {
    let theirs: Vec<(&String, &Value)> = row["theirs"].as_object().into_iter().flatten().collect();
    let micro_batches: BTreeSet<_> =
        theirs.iter().filter_map(|(name, _)| name.split(',').next()).collect();
    let least = |ratio: &str| {
        let ratios = theirs.iter().filter_map(|(_, side)| side[ratio].as_f64());
        ratios.reduce(f64::min).filter(|_| 1 < micro_batches.len())
    };
    let ratios = [("faster than TRL", "speed_ratio"), ("smaller than TRL", "memory_ratio")];
    let ratios = ratios
        .map(|(what, ratio)| Goal::at_least(format!("{name}, times {what}"), TIMES, least(ratio)));
    let ratios = ratios.into_iter().filter(|_| row["ours"].is_object());
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut largest: BTreeMap<String, Goal> = BTreeMap::new();
    for it in list(&row["parities"]).iter().flat_map(|parity| list(&parity["differences"])) {
        let (Some(what), Some(at_most)) = (it["name"].as_str(), it["at_most"].as_f64()) else {
            continue;
        };
        let goal = Goal::at_most(format!("{name}, {what}"), at_most, it["value"].as_f64());
        let known = largest.entry(what.to_owned()).or_insert_with(|| goal.clone());
        // A difference that is not a number is `null` in the file, and no other one is larger.
        let is_larger =
            goal.value.is_none_or(|value| known.value.is_some_and(|known| known < value));
        if is_larger {
            *known = goal;
        }
    }
    ratios.chain(largest.into_values()).collect()
}
