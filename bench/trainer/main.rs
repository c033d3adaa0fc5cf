//! `make bench-trainer`: DPO with LoRA by `reflectd-trainer` and by TRL with PEFT, on the same
//! random-weight base, start adapter and pairs, one after the other in every round. The other side's
//! Python, with `trl`, `peft`, `datasets` and `gguf`, is named by `TRL_PYTHON`; without it its columns stay
//! empty. Writes `results.json` and prints the table for `docs/internals/performance.md`. Both sides
//! say their losses, and must say the same.

#![expect(clippy::print_stderr, reason = "a benchmark says what it does")]

#[path = "../engine/machine.rs"]
mod machine;
mod model;
mod results;
mod side;
#[path = "../engine/statistics.rs"]
mod statistics;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use clap::Parser as _;
use protocol::{
    BaseKind, CHECKPOINT, Compute, Device, Job, Lora, Objective, Optimizer, Step, TrainerEvent,
    VERSION,
};
use serde_json::{Value, json};

use results::{Case, Measured, Results, Round};
use side::Seen;

const LORA: Lora = Lora { rank: 16, alpha: 32.0 };
const BETA: f64 = 0.1;
/// Losses of both sides after the same steps on the same numbers.
const MAX_LOSS_GAP: f64 = 0.02;

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
    /// Pairs that the other side computes at once.
    #[arg(long, default_value_t = 2)]
    micro: usize,
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

/// One comparison's files and settings.
struct Setting<'a> {
    arguments: &'a Arguments,
    compute: Compute,
    base: PathBuf,
    start: PathBuf,
    data: PathBuf,
    out: PathBuf,
    n_pairs: usize,
    batch_pairs: usize,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let ([n_pairs, batch_pairs], [prompt, answer]) =
        (arguments.pairs[..].try_into()?, arguments.lengths[..].try_into()?);
    let python = std::env::var_os("TRL_PYTHON").map(PathBuf::from);
    let folder = tempfile::tempdir().context("make a scratch folder")?;
    let mut results = Results::new(&arguments.device, arguments.threads)?;
    results.peer_flags =
        format!("{} pairs at once, without and with gradient checkpointing", arguments.micro);
    for &n_vocab in &arguments.vocabularies {
        let file = |name: &str| folder.path().join(format!("{n_vocab}-{name}"));
        model::write_base(&file("base.gguf"), n_vocab)?;
        model::write_start(&file("start.gguf"), &files::sha256(&file("base.gguf"))?, LORA)?;
        model::write_pairs(&file("data.jsonl"), n_pairs, [prompt, answer], n_vocab)?;
        for compute in &arguments.computes {
            let setting = Setting {
                arguments: &arguments,
                compute: serde_json::from_value(json!(compute))?,
                base: file("base.gguf"),
                start: file("start.gguf"),
                data: file("data.jsonl"),
                out: folder.path().to_owned(),
                n_pairs: n_pairs * arguments.epochs,
                batch_pairs,
            };
            let mut rounds = Vec::new();
            for round in 0..arguments.rounds {
                rounds.push(one_round(&setting, python.as_deref(), &mut results)?);
                eprintln!("{n_vocab} {compute}, round {}: {:?}", round + 1, rounds.last());
            }
            let (compute, lengths) = (compute.clone(), [prompt, answer]);
            results.add(Case { n_vocab, compute, lengths, rounds });
        }
    }
    results.write(&arguments.out)
}

fn one_round(
    setting: &Setting<'_>,
    python: Option<&Path>,
    results: &mut Results,
) -> anyhow::Result<Round> {
    let ours = ours(setting)?;
    let mut round = Round { ours, plain: None, checkpointed: None };
    let Some(python) = python else { return Ok(round) };
    for is_checkpointed in [false, true] {
        let seen = theirs(setting, python, is_checkpointed)?;
        let (_, said) = seen.line("seconds").context("the other side says nothing")?;
        results.peer = Some(said["versions"].clone());
        let seconds = said["seconds"].as_f64().context("it says no seconds")?;
        let measured = Measured::new(setting.n_pairs, seconds, &seen, losses(said));
        ensure!(
            round.ours.gap(&measured) < MAX_LOSS_GAP,
            "the losses differ: {:?} and {:?}",
            round.ours.losses,
            measured.losses
        );
        *(if is_checkpointed { &mut round.checkpointed } else { &mut round.plain }) =
            Some(measured);
    }
    Ok(round)
}

fn losses(said: &Value) -> Vec<f64> {
    said["losses"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

/// Reference log-probs and optimizer steps, without loading.
fn ours(setting: &Setting<'_>) -> anyhow::Result<Measured> {
    let arguments = setting.arguments;
    let job = Job {
        version: VERSION,
        run: "bench".into(),
        base: setting.base.clone(),
        base_sha256: files::sha256(&setting.base)?,
        start: Some(setting.start.clone()),
        data: setting.data.clone(),
        out: setting.out.clone(),
        reference_cache: None,
        objective: Objective::Dpo { beta: BETA, nll: 0.0 },
        lora: LORA,
        optimizer: optimizer(setting),
        validation_share: 0.0,
        validations: 1,
        checkpoint_s: 86_400.0,
        max_tokens: 2048,
        context_tokens: 2048,
        base_kind: BaseKind::Auto,
        compute: setting.compute,
        memory_limit_bytes: None,
        threads: arguments.threads,
        device: serde_json::from_value::<Device>(json!(arguments.device))?,
        seed: 1,
    };
    // From the run before, which would go on.
    drop(std::fs::remove_file(setting.out.join(CHECKPOINT)));
    let command = Command::new(&arguments.trainer);
    let on_gpu = arguments.device == "cuda";
    let seen = side::run(command, &serde_json::to_string(&job)?, on_gpu)?;
    let (began, _) = seen.line("started").context("our trainer does not start")?;
    let steps: Vec<(f64, Step)> = seen.lines.iter().filter_map(step).collect();
    let &(ended, _) = steps.last().context("our trainer makes no step")?;
    let losses = steps.iter().map(|(_, step)| step.loss).collect();
    Ok(Measured::new(setting.n_pairs, ended - began, &seen, losses))
}

fn step((at, line): &(f64, Value)) -> Option<(f64, Step)> {
    match serde_json::from_value(line.clone()) {
        Ok(TrainerEvent::Step(step)) => Some((*at, step)),
        _ => None,
    }
}

fn optimizer(setting: &Setting<'_>) -> Optimizer {
    Optimizer {
        learning_rate: 1e-4,
        epochs: setting.arguments.epochs,
        batch_pairs: setting.batch_pairs,
        warmup_ratio: 0.1,
        max_grad_norm: 1.0,
        weight_decay: 0.0,
    }
}

fn theirs(setting: &Setting<'_>, python: &Path, is_checkpointed: bool) -> anyhow::Result<Seen> {
    let arguments = setting.arguments;
    let Optimizer { learning_rate, warmup_ratio, .. } = optimizer(setting);
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
        "learning_rate": learning_rate,
        "warmup_ratio": warmup_ratio,
        "epochs": arguments.epochs,
        "batch_pairs": setting.batch_pairs,
        "micro": arguments.micro,
        "checkpointing": is_checkpointed,
    });
    let mut command = side::python(&arguments.peer, python);
    command.env("OMP_NUM_THREADS", arguments.threads.to_string());
    side::run(command, &input.to_string(), arguments.device == "cuda")
}
