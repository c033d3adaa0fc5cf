//! `make bench-trainer`: DPO with LoRA by `reflectd-trainer` and by TRL with PEFT, on the same
//! random-weight base, start adapter and pairs. First both make twenty steps with the same learning
//! rates: where gradient norm, log-probs or losses differ by more than rounding explains, or where a
//! planted fault of ours is not seen, the exit code is not 0. Then their speed and memory are measured in
//! turn, TRL's with several micro-batches. The other side's Python, with `trl`, `peft`, `datasets` and
//! `gguf`, is named by `TRL_PYTHON`; without it only our side's speed is measured, which replaces no row
//! that has both. Writes `results.json` and prints the table for `docs/internals/performance.md`.

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

use parity::{Difference, N_UPDATES, PLANTED, Parity, Rounding, compare, tolerance};
use results::{Case, File, Measured, Results, Round, best};
use side::Seen;
use testkit::bench::{markers, results as shared};

const LORA: Lora = Lora { rank: 16, alpha: 32.0 };
const BETA: f64 = 0.1;
const LEARNING_RATE: f64 = 1e-4;

#[derive(Debug, clap::Parser)]
struct Arguments {
    /// Rounds in which speed and memory are measured; 0: only whether both compute the same.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Of model, adapter and pairs. Both sides are compared with each; speed is that of the first.
    #[arg(long, value_delimiter = ',', default_value = "1,2,3")]
    seeds: Vec<u64>,
    /// What else runs on this machine meanwhile, for the rows.
    #[arg(long)]
    beside: Option<String>,
    /// Sizes of the vocabulary.
    #[arg(long, value_delimiter = ',', default_value = "32000,151936")]
    vocabularies: Vec<u64>,
    /// Blocks of the model. Fewer make it possible to compare both sides in bf16 on a processor that has
    /// no units for it.
    #[arg(long, default_value_t = results::BLOCKS)]
    blocks: u64,
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
    /// Prints the table of what is in the file, puts it into the document, and measures nothing.
    #[arg(long)]
    render: bool,
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
    beta: f64,
    learning_rate: f64,
}

/// A way to start the other side.
#[derive(Clone, Copy, Debug)]
struct PeerSetting {
    micro: usize,
    is_checkpointed: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if arguments.render {
        return publish(&arguments.out, &shared::read(&arguments.out.join("results.json"))?);
    }
    let [n_pairs, batch_pairs]: [usize; 2] = arguments.pairs[..].try_into()?;
    let lengths: [usize; 2] = arguments.lengths[..].try_into()?;
    let [parity_pairs, parity_lengths @ ..]: [usize; 3] = arguments.parity[..].try_into()?;
    let divides = |micro: &usize| 0 < *micro && batch_pairs % micro == 0;
    ensure!(arguments.micros.iter().all(divides), "each of --micros divides the pairs a step");
    let seed = *arguments.seeds.first().context("--seeds names none")?;
    let python = std::env::var_os("TRL_PYTHON").map(PathBuf::from);
    ensure!(0 < arguments.rounds || python.is_some(), "--rounds 0 needs TRL_PYTHON");
    let folder = tempfile::tempdir().context("make a scratch folder")?;
    let mut results = {
        let path = arguments.out.join("results.json");
        Results::new(path, &arguments.device, arguments.threads, arguments.beside.clone())?
    };
    let computes = &arguments.computes;
    for &n_vocab in &arguments.vocabularies {
        let case = |compute: &String, lengths| {
            let (n_blocks, compute) = (arguments.blocks, compute.clone());
            Case { n_blocks, n_vocab, compute, lengths }
        };
        if python.is_none() {
            computes.iter().try_for_each(|it| results.check_may_replace(&case(it, lengths)))?;
        }
        let mut parities = vec![Vec::new(); computes.len()];
        for &seed in arguments.seeds.iter().filter(|_| python.is_some()) {
            let python = python.as_deref().context("there is a Python")?;
            let sizes = (parity_pairs, parity_lengths);
            let setting = Setting::write(&arguments, folder.path(), n_vocab, seed, sizes)?;
            let (batch_pairs, epochs) = (parity_pairs, N_UPDATES + 1);
            let setting = Setting { batch_pairs, epochs, ..setting };
            let found = parity_of(&setting, seed, python, &mut results)?;
            parities.iter_mut().zip(found).for_each(|(all, one)| all.push(one));
        }
        for (compute, parities) in computes.iter().zip(parities).filter(|it| !it.1.is_empty()) {
            results.add_parity(case(compute, parity_lengths), parity_pairs, parities);
        }
        if arguments.rounds == 0 {
            continue;
        }
        let sizes = (n_pairs, lengths);
        let setting = Setting::write(&arguments, folder.path(), n_vocab, seed, sizes)?;
        let setting = Setting { batch_pairs, epochs: arguments.epochs, ..setting };
        for compute in computes {
            let setting = Setting { compute: kind(compute)?, ..setting.clone() };
            let rounds = rounds(&setting, python.as_deref(), &mut results)?;
            results.add(case(compute, lengths), rounds)?;
        }
    }
    results.write()?;
    publish(&arguments.out, results.file())?;
    let faults = results.faults();
    ensure!(faults.is_empty(), "the two sides do not compute the same:\n{}", faults.join("\n"));
    Ok(())
}

/// The table, and into the repository that of the repository's results.
fn publish(out: &Path, file: &File) -> anyhow::Result<()> {
    let table = file.table()?;
    eprintln!("{table}");
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    if out != repository.join("bench/trainer") {
        return Ok(());
    }
    markers::insert(&repository.join("docs/internals/performance.md"), "trainer", &table)
}

fn kind(compute: &str) -> anyhow::Result<Compute> {
    serde_json::from_value(json!(compute)).with_context(|| format!("--computes {compute}"))
}

impl<'a> Setting<'a> {
    /// Writes model, adapter and so many pairs of such lengths into a folder.
    fn write(
        arguments: &'a Arguments,
        folder: &Path,
        n_vocab: u64,
        seed: u64,
        (n_pairs, lengths): (usize, [usize; 2]),
    ) -> anyhow::Result<Self> {
        let file = |name: &str| folder.join(name);
        let setting = Self {
            arguments,
            compute: Compute::F32,
            base: file("base.gguf"),
            start: file("start.gguf"),
            data: file("data.jsonl"),
            out: folder.to_owned(),
            n_pairs,
            batch_pairs: n_pairs,
            epochs: 1,
            beta: BETA,
            learning_rate: LEARNING_RATE,
        };
        let n_blocks = arguments.blocks;
        model::write_base(&setting.base, [n_blocks, n_vocab], seed)?;
        let sha256 = files::sha256(&setting.base)?;
        model::write_start(&setting.start, &sha256, LORA, n_blocks, seed)?;
        model::write_pairs(&setting.data, n_pairs, lengths, n_vocab, seed)?;
        Ok(setting)
    }
}

/// Both sides in each kind of numbers that the arguments name.
fn parity_of(
    setting: &Setting<'_>,
    seed: u64,
    python: &Path,
    results: &mut Results,
) -> anyhow::Result<Vec<Parity>> {
    let mut parities: Vec<Parity> = Vec::new();
    let mut in_f32: Option<(Vec<parity::Step>, Vec<parity::Step>)> = None;
    for compute in &setting.arguments.computes {
        let setting = Setting { compute: kind(compute)?, ..setting.clone() };
        let compare = |ours: &[parity::Step], theirs: &[parity::Step]| {
            let differences = compare(ours, theirs, tolerance(setting.compute));
            differences.context("a side has not made all steps")
        };
        let (ours, rates) = our_steps(&setting)?;
        let theirs = their_steps(&setting, python, &rates, results)?;
        let mut planted = BTreeMap::new();
        for (name, faulty) in [
            ("beta", Setting { beta: PLANTED * BETA, ..setting.clone() }),
            (
                "learning rate",
                Setting { learning_rate: PLANTED * LEARNING_RATE, ..setting.clone() },
            ),
        ] {
            planted.insert(name, compare(&our_steps(&faulty)?.0, &theirs)?);
        }
        let differences = compare(&ours, &theirs)?;
        let rounding = match &in_f32 {
            Some((ours_f32, theirs_f32)) => Some(Rounding {
                ours: compare(&ours, ours_f32)?,
                theirs: compare(&theirs, theirs_f32)?,
            }),
            None => None,
        };
        let values = |differences: &[Difference]| {
            let values = differences.iter().map(|it| format!("{:.1e}", it.value));
            values.collect::<Vec<_>>().join(", ")
        };
        eprintln!("seed {seed}, {compute}: {}", values(&differences));
        for (name, differences) in &planted {
            eprintln!("  planted fault of {name}: {}", values(differences));
        }
        if let Some(rounding) = &rounding {
            eprintln!("  from f32, ours: {}", values(&rounding.ours));
            eprintln!("  from f32, theirs: {}", values(&rounding.theirs));
        }
        if setting.compute == Compute::F32 {
            in_f32 = Some((ours.clone(), theirs.clone()));
        }
        parities.push(Parity { seed, differences, planted, rounding, ours, theirs });
    }
    Ok(parities)
}

/// Twenty steps over the same pairs, one more that shows what they led to, and the learning rates.
fn our_steps(setting: &Setting<'_>) -> anyhow::Result<(Vec<parity::Step>, Vec<f64>)> {
    let (_, steps) = ours(setting)?;
    let rates: Vec<f64> = steps.iter().map(|step| step.learning_rate).collect();
    let trained = rates.iter().take(N_UPDATES);
    ensure!(trained.clone().all(|rate| 0.0 < *rate), "a learning rate is 0: {rates:?}");
    Ok((steps.iter().map(compared).collect(), rates))
}

/// The same steps by the other side with these learning rates.
fn their_steps(
    setting: &Setting<'_>,
    python: &Path,
    rates: &[f64],
    results: &mut Results,
) -> anyhow::Result<Vec<parity::Step>> {
    let peer_setting = PeerSetting { micro: setting.batch_pairs, is_checkpointed: false };
    let seen = theirs(setting, python, peer_setting, rates)?;
    let (_, said) = seen.line("steps").context("the other side reports no steps")?;
    results.peer = Some(said["versions"].clone());
    let their_rates = said["steps"].as_array().into_iter().flatten();
    let their_rates: Vec<f64> =
        their_rates.filter_map(|step| step["learning_rate"].as_f64()).collect();
    let same = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-9 * a.abs();
    ensure!(
        their_rates.len() == rates.len() && rates.iter().zip(&their_rates).all(same),
        "the other side used other learning rates: {rates:?}, {their_rates:?}"
    );
    serde_json::from_value(said["steps"].clone()).context("its steps lack a number")
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
            let seen = theirs(setting, python, peer_setting, &[LEARNING_RATE])?;
            let (_, said) = seen.line("seconds").context("the other side says nothing")?;
            results.peer = Some(said["versions"].clone());
            let seconds = said["seconds"].as_f64().context("it says no seconds")?;
            let n_pairs = setting.n_pairs * setting.epochs;
            theirs_by_name.insert(peer_setting.name(), Measured::new(n_pairs, seconds, &seen));
        }
        if number == 0 {
            let best = best(&theirs_by_name);
            peer_settings.retain(|it| best.contains(&Some(&it.name())));
        }
        rounds.push(Round { ours, theirs: theirs_by_name });
        eprintln!("round {}: {:?}", number + 1, rounds.last());
    }
    Ok(rounds)
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
        objective: Objective::Dpo { beta: setting.beta, nll: 0.0 },
        lora: LORA,
        optimizer: Optimizer {
            learning_rate: setting.learning_rate,
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
    let mut command = Command::new(&arguments.trainer);
    protocol::program::wait_passively(&mut command);
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
        "beta": setting.beta,
        "rates": rates,
        "epochs": setting.epochs,
        "batch_pairs": setting.batch_pairs,
        "micro": peer_setting.micro,
        "checkpointing": peer_setting.is_checkpointed,
    });
    let mut command = side::python(&arguments.peer, python);
    // Both sides' threads wait alike, so that what else runs on the machine hinders both alike.
    protocol::program::wait_passively(&mut command);
    command.env("OMP_NUM_THREADS", arguments.threads.to_string());
    side::run(command, &input.to_string(), arguments.device == "cuda")
}
