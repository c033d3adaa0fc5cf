//! `make bench-trainer`: DPO with LoRA by `reflectd-trainer` and by TRL with PEFT, on the same
//! random-weight base, start adapter and pairs. First both make twenty steps with the same learning
//! rates: where gradient norm, log-probs or losses differ by more than rounding explains, the exit code
//! is not 0. Then their speed and memory are measured in turn, TRL's with several micro-batches. The other
//! side's Python, with `trl`, `peft`, `datasets` and `gguf`, is named by `TRL_PYTHON`; without it only our
//! side is measured. Writes `results.json` and prints the table for `docs/internals/performance.md`.

#![expect(clippy::print_stderr, reason = "a benchmark says what it does")]

mod model;
mod parity;
mod results;
mod side;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use clap::Parser as _;
use protocol::{CHECKPOINT, Compute, Device, Job, Lora, Objective, Optimizer, Step, TrainerEvent};
use serde_json::{Value, json};

use parity::{N_UPDATES, Parity};
use results::{Case, Measured, Results, Round};
use side::Seen;

const LORA: Lora = Lora { rank: 16, alpha: 32.0 };
const BETA: f64 = 0.1;

#[derive(Debug, clap::Parser)]
struct Arguments {
    /// Rounds of each comparison.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Sizes of the vocabulary.
    #[arg(long, value_delimiter = ',', default_value = "32000,151936")]
    vocabularies: Vec<u64>,
    /// What both sides compute in.
    #[arg(long, value_delimiter = ',', default_value = "f32,bf16")]
    computes: Vec<String>,
    /// Pairs, and pairs a step.
    #[arg(long, value_delimiter = ',', default_value = "16,4")]
    pairs: Vec<usize>,
    /// Tokens of the prompt and of each answer.
    #[arg(long, value_delimiter = ',', default_value = "256,128")]
    lengths: Vec<usize>,
    /// Passes over the pairs.
    #[arg(long, default_value_t = 1)]
    epochs: usize,
    /// CPU threads of both sides.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Pairs and tokens of the twenty steps that both sides are compared by: pairs, of the prompt, of each
    /// answer.
    #[arg(long, value_delimiter = ',', default_value = "4,64,32")]
    parity: Vec<usize>,
    /// Micro-batches of the other side, each without and with gradient checkpointing.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4")]
    micros: Vec<usize>,
    /// Where both sides compute: cpu or cuda.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Our program.
    #[arg(long, default_value_os_t = testkit::trainer(env!("CARGO_BIN_EXE_reflectd")))]
    trainer: PathBuf,
    /// The other side's script.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/trainer/peer.py"))]
    peer: PathBuf,
    /// Where results are written.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/trainer"))]
    out: PathBuf,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What both sides train: files and settings.
#[derive(Clone, Debug)]
struct Setting<'a> {
    arguments: &'a Arguments,
    compute: Compute,
    base: PathBuf,
    start: PathBuf,
    data: PathBuf,
    out: PathBuf,
    n_pairs: usize,
    batch_pairs: usize,
    epochs: usize,
}

/// A way to start the other side.
#[derive(Clone, Copy, Debug)]
struct PeerSetting {
    micro: usize,
    is_checkpointed: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let ([n_pairs, batch_pairs], lengths) =
        (arguments.pairs[..].try_into()?, arguments.lengths[..].try_into()?);
    let [parity_pairs, parity_lengths @ ..]: [usize; 3] = arguments.parity[..].try_into()?;
    let divides = |micro: &usize| 0 < *micro && batch_pairs % micro == 0;
    ensure!(arguments.micros.iter().all(divides), "each of --micros divides the pairs a step");
    let python = std::env::var_os("TRL_PYTHON").map(PathBuf::from);
    let folder = tempfile::tempdir().context("make a scratch folder")?;
    let mut results = Results::new(&arguments.device, arguments.threads)?;
    for &n_vocab in &arguments.vocabularies {
        let file = |name: &str| folder.path().join(format!("{n_vocab}-{name}"));
        model::write_base(&file("base.gguf"), n_vocab)?;
        model::write_start(&file("start.gguf"), &files::sha256(&file("base.gguf"))?, LORA)?;
        model::write_pairs(&file("data.jsonl"), n_pairs, lengths, n_vocab)?;
        model::write_pairs(&file("parity.jsonl"), parity_pairs, parity_lengths, n_vocab)?;
        for compute in &arguments.computes {
            let speed = Setting {
                arguments: &arguments,
                compute: serde_json::from_value(json!(compute))?,
                base: file("base.gguf"),
                start: file("start.gguf"),
                data: file("data.jsonl"),
                out: folder.path().to_owned(),
                n_pairs,
                batch_pairs,
                epochs: arguments.epochs,
            };
            let parity = match &python {
                Some(python) => {
                    let data = file("parity.jsonl");
                    let (n_pairs, batch_pairs, epochs) =
                        (parity_pairs, parity_pairs, N_UPDATES + 1);
                    let setting = Setting { data, n_pairs, batch_pairs, epochs, ..speed.clone() };
                    Some(parity_of(&setting, python)?)
                }
                None => None,
            };
            eprintln!("{n_vocab} {compute}: {:?}", parity.as_ref().map(|it| &it.differences));
            let rounds = rounds(&speed, python.as_deref(), &mut results)?;
            let compute = compute.clone();
            results.add(Case { n_vocab, compute, lengths, parity, rounds });
        }
    }
    results.write(&arguments.out)?;
    let faults = results.faults();
    ensure!(faults.is_empty(), "the two sides do not compute the same:\n{}", faults.join("\n"));
    Ok(())
}

/// Twenty steps of both sides over the same pairs, and one more that shows what they led to.
fn parity_of(setting: &Setting<'_>, python: &Path) -> anyhow::Result<Parity> {
    let (_, ours) = ours(setting)?;
    let rates: Vec<f64> = ours.iter().map(|step| step.learning_rate).collect();
    let trained = rates.iter().take(N_UPDATES);
    ensure!(trained.clone().all(|rate| 0.0 < *rate), "a learning rate is 0: {rates:?}");
    let peer_setting = PeerSetting { micro: setting.batch_pairs, is_checkpointed: false };
    let seen = theirs(setting, python, peer_setting, &rates)?;
    let (_, said) = seen.line("steps").context("the other side reports no steps")?;
    let their_rates = said["steps"].as_array().into_iter().flatten();
    let their_rates: Vec<f64> =
        their_rates.filter_map(|step| step["learning_rate"].as_f64()).collect();
    let same = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-9 * a.abs();
    ensure!(
        their_rates.len() == rates.len() && rates.iter().zip(&their_rates).all(same),
        "the other side used other learning rates: {rates:?}, {their_rates:?}"
    );
    let ours: Vec<parity::Step> = ours.iter().map(compared).collect();
    let theirs: Vec<parity::Step> = serde_json::from_value(said["steps"].clone())?;
    let tolerance = parity::tolerance(setting.compute);
    parity::compare(&ours, &theirs, tolerance).context("a side has not made all steps")
}

fn compared(step: &Step) -> parity::Step {
    parity::Step {
        loss: step.loss,
        grad_norm: step.grad_norm,
        logps_chosen: step.logps_chosen,
        logps_rejected: step.logps_rejected,
    }
}

/// Both sides in turn. The first round tries all ways to start the other side, the later ones the
/// fastest and the one with the least memory.
fn rounds(
    setting: &Setting<'_>,
    python: Option<&Path>,
    results: &mut Results,
) -> anyhow::Result<Vec<Round>> {
    let micros = setting.arguments.micros.iter();
    let both = |&micro| [false, true].map(|is_checkpointed| PeerSetting { micro, is_checkpointed });
    let mut peer_settings: Vec<PeerSetting> = micros.flat_map(both).collect();
    let mut rounds: Vec<Round> = Vec::new();
    for number in 0..setting.arguments.rounds {
        let mut theirs_by_name = BTreeMap::new();
        let ours = measured(setting)?;
        for &peer_setting in peer_settings.iter().filter(|_| python.is_some()) {
            let python = python.context("there is a Python")?;
            let seen = theirs(setting, python, peer_setting, &[1e-4])?;
            let (_, said) = seen.line("seconds").context("the other side says nothing")?;
            results.peer = Some(said["versions"].clone());
            let seconds = said["seconds"].as_f64().context("it says no seconds")?;
            let n_pairs = setting.n_pairs * setting.epochs;
            theirs_by_name.insert(peer_setting.name(), Measured::new(n_pairs, seconds, &seen));
        }
        if number == 0 {
            let best = best(&theirs_by_name);
            peer_settings.retain(|peer_setting| best.contains(&peer_setting.name()));
        }
        rounds.push(Round { ours, theirs: theirs_by_name });
        eprintln!("round {}: {:?}", number + 1, rounds.last());
    }
    Ok(rounds)
}

/// The fastest and the one with the least memory.
fn best(theirs: &BTreeMap<String, Measured>) -> Vec<String> {
    let speed = |it: &(&String, &Measured)| it.1.pairs_per_second;
    let fastest = theirs.iter().max_by(|a, b| speed(a).total_cmp(&speed(b)));
    let smallest = theirs.iter().min_by_key(|(_, measured)| measured.peak_bytes);
    [fastest, smallest].into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

impl PeerSetting {
    fn name(self) -> String {
        let checkpointed = if self.is_checkpointed { ", checkpointing" } else { "" };
        format!("micro-batch {}{checkpointed}", self.micro)
    }
}

fn measured(setting: &Setting<'_>) -> anyhow::Result<Measured> {
    let (seen, _) = ours(setting)?;
    let (began, _) = seen.line("started").context("our trainer does not start")?;
    let (ended, _) =
        seen.lines.iter().rev().find(|line| step(line).is_some()).context("no step")?;
    Ok(Measured::new(setting.n_pairs * setting.epochs, ended - began, &seen))
}

/// Reference log-probs and optimizer steps.
fn ours(setting: &Setting<'_>) -> anyhow::Result<(Seen, Vec<Step>)> {
    let arguments = setting.arguments;
    let example = testkit::job();
    let job = Job {
        base: setting.base.clone(),
        base_sha256: files::sha256(&setting.base)?,
        start: Some(setting.start.clone()),
        data: setting.data.clone(),
        out: setting.out.clone(),
        objective: Objective::Dpo { beta: BETA, nll: 0.0 },
        lora: LORA,
        optimizer: Optimizer {
            learning_rate: 1e-4,
            epochs: setting.epochs,
            batch_pairs: setting.batch_pairs,
            ..example.optimizer
        },
        validations: 1,
        checkpoint_s: 86_400.0,
        compute: setting.compute,
        threads: arguments.threads,
        device: serde_json::from_value::<Device>(json!(arguments.device))?,
        ..example
    };
    // From the run before, which would be resumed.
    drop(std::fs::remove_file(setting.out.join(CHECKPOINT)));
    let command = Command::new(&arguments.trainer);
    let on_gpu = arguments.device == "cuda";
    let seen = side::run(command, &serde_json::to_string(&job)?, on_gpu)?;
    let steps = seen.lines.iter().filter_map(step).collect();
    Ok((seen, steps))
}

fn step((_, line): &(f64, Value)) -> Option<Step> {
    match serde_json::from_value(line.clone()) {
        Ok(TrainerEvent::Step(step)) => Some(step),
        _ => None,
    }
}

/// The other side with these learning rates, the last of which stays.
fn theirs(
    setting: &Setting<'_>,
    python: &Path,
    peer_setting: PeerSetting,
    rates: &[f64],
) -> anyhow::Result<Seen> {
    let arguments = setting.arguments;
    let input = json!({
        "base": setting.base,
        "start": setting.start,
        "data": setting.data,
        "out": setting.out,
        "end": model::END,
        "dtype": if setting.compute == Compute::Bf16 { "bfloat16" } else { "float32" },
        "device": arguments.device,
        "threads": arguments.threads,
        "rank": LORA.rank,
        "alpha": LORA.alpha,
        "beta": BETA,
        "rates": rates,
        "epochs": setting.epochs,
        "batch_pairs": setting.batch_pairs,
        "micro": peer_setting.micro,
        "checkpointing": peer_setting.is_checkpointed,
    });
    let mut command = side::python(&arguments.peer, python);
    command.env("OMP_NUM_THREADS", arguments.threads.to_string());
    side::run(command, &input.to_string(), arguments.device == "cuda")
}
