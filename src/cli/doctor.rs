//! `reflectd doctor`: what this machine would serve with and what stands in the way of it, found out
//! with the code that the daemon starts with, and whether and how fast the model can be trained, as
//! the trainer says; or the same about one model file. It changes nothing and needs no daemon.
//! Called by `cli::run`; `init` uses its parts.

mod beside;
pub(super) mod training;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use self::beside::Beside;
use self::training::Training;
use super::table::{Table, pairs};
use super::{Places, terminal};
use crate::learn::program;
use config::{self, Config, Defaults, Problem};
use engine::llama::{self, Machine, MemoryPlan, MemoryShare, Survey};
use engine::{EngineConfig, EngineError, probe};
use prompt::{ChatTemplate, Message, Role};
use protocol::exit::Exit;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Look at this GGUF instead of the configured one.
    model: Option<PathBuf>,
    #[command(flatten)]
    training: training::Wishes,
    /// Print JSON for machines.
    #[arg(long)]
    json: bool,
}

/// All that was found out.
#[derive(Debug, Serialize)]
struct Report {
    /// Nothing stands in the way.
    ready: bool,
    problems: Vec<Problem>,
    machine: Option<Machine>,
    engine: Engine,
    model: Option<Model>,
    judges: Vec<Beside>,
    trainer: Option<Trainer>,
    training: Option<Training>,
}

/// The configured engine, with what the machine decides filled in.
#[derive(Debug, Serialize)]
struct Engine {
    context_tokens: u32,
    max_sequences: u32,
    batch_tokens: u32,
    threads: Option<usize>,
    batch_threads: Option<usize>,
    kv_cache: engine::KvCache,
    flash_attention: String,
    /// Where levels are read, and why not in a context of their own though they should.
    judgements: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Model {
    pub(super) path: PathBuf,
    /// `renders`, or why not.
    pub(super) chat_template: String,
    pub(super) servable: bool,
    #[serde(flatten)]
    pub(super) survey: Survey,
}

#[derive(Debug, Serialize)]
struct Trainer {
    command: String,
    device: protocol::Device,
    /// Why it does not run; `None`: it does, with its libtorch.
    fault: Option<String>,
}

pub(super) async fn run(places: &Places, arguments: Arguments) -> anyhow::Result<Exit> {
    let Arguments { model, training, json } = arguments;
    let is_about_file = model.is_some();
    let report = examine(&places.root(), model, &training).await;
    let exit = match &report {
        Report { ready: true, .. } => Exit::Ok,
        Report { machine: None, .. } => Exit::Config,
        _ if is_about_file => Exit::BadData,
        _ => Exit::Config,
    };
    if json {
        terminal::print_json(&json!(report))?;
    } else {
        terminal::print(&render(&report))?;
    }
    Ok(exit)
}

async fn examine(root: &Path, model: Option<PathBuf>, wishes: &training::Wishes) -> Report {
    let mut problems = Vec::new();
    let machine = llama::machine()
        .map_err(|error| problems.push(problem(Path::new("llama.cpp"), error.to_string())))
        .ok();
    let config = config::load(root);
    let is_about_file = model.is_some();
    let Defaults { mut engine, trainer: trainer_settings, learn } = match &config {
        Ok(config @ Config { trainer, learn, .. }) => Defaults {
            engine: config.served_engine(),
            trainer: trainer.clone(),
            learn: learn.clone(),
        },
        Err(_) => config::defaults(),
    };
    if let Some(model) = model {
        engine.model = model;
    } else if let Err(error) = &config {
        problems.extend(error.0.iter().cloned());
    }
    let is_there = machine.is_some() && !engine.model.as_os_str().is_empty();
    let model = if is_there { look_at_model(&engine, &mut problems).await } else { None };
    let (judges, trainer) = match &config {
        Ok(config) if !is_about_file => {
            let judges = beside::look_at(config, model.as_ref(), &mut problems).await;
            (judges, Some(look_at_trainer(config).await))
        }
        _ => (Vec::new(), None),
    };
    let can_be_asked = trainer.as_ref().is_none_or(|trainer| trainer.fault.is_none());
    let training = if model.is_some() && can_be_asked {
        Some(training::look_at(&engine, &trainer_settings, &learn, wishes).await)
    } else {
        None
    };
    Report {
        ready: problems.is_empty(),
        engine: decided(&engine, machine.as_ref(), model.as_ref()),
        problems,
        machine,
        model,
        judges,
        trainer,
        training,
    }
}

fn problem(file: &Path, message: String) -> Problem {
    Problem { file: file.to_owned(), key: String::new(), message }
}

fn decided(engine: &EngineConfig, machine: Option<&Machine>, model: Option<&Model>) -> Engine {
    let narrow = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    let cores = machine.map(|machine| machine.physical_cores);
    let threads = engine.threads.map(narrow).or(cores);
    let flash_attention = match model.map(|model| model.survey.flash_attention) {
        Some(Some(true)) => "on",
        Some(Some(false)) => "off",
        Some(None) | None => "auto",
    };
    Engine {
        context_tokens: engine.context_tokens,
        max_sequences: engine.max_sequences,
        batch_tokens: engine.batch_tokens,
        threads,
        batch_threads: engine.batch_threads.map(narrow).or(threads),
        kv_cache: engine.kv_cache,
        flash_attention: flash_attention.to_owned(),
        judgements: judgements(engine, model),
    }
}

fn judgements(engine: &EngineConfig, model: Option<&Model>) -> String {
    let plan = model.and_then(|model| model.survey.memory.as_ref());
    if engine.deterministic {
        return "beside answers, one after the other".to_owned();
    }
    if !engine.deterministic_judge {
        return "beside answers".to_owned();
    }
    match plan.and_then(|plan| plan.judge_refusal.as_ref()) {
        Some(reason) => format!("beside answers, not in a context of their own: {reason}"),
        None => "in a context of their own".to_owned(),
    }
}

/// `None` when the file is no GGUF at all.
pub(super) async fn look_at_model(
    engine: &EngineConfig,
    problems: &mut Vec<Problem>,
) -> Option<Model> {
    let path = engine.model.clone();
    let before = problems.len();
    let survey = llama::survey(engine);
    let survey = survey.map_err(|error| problems.push(problem(&path, reason(error)))).ok()?;
    if let Some(refusal) = &survey.refusal {
        problems.push(problem(&path, refusal.clone()));
    } else if let Err(error) = probe::probe(Path::new("/proc/self/exe"), &path, None).await {
        // No result is stored, because doctor changes nothing.
        problems.push(problem(&path, reason(error)));
    }
    let [begin, end] = &survey.begin_and_end;
    let template = ChatTemplate::new(survey.chat_template.as_deref(), begin, end);
    let turn = Message { role: Role::User, content: "?".into() };
    let chat_template = match template.render(&[turn]) {
        Ok(_) => "renders".to_owned(),
        Err(error) => {
            problems.push(problem(&path, error.to_string()));
            error.to_string()
        }
    };
    Some(Model { path, chat_template, servable: problems.len() == before, survey })
}

/// The file is named beside it.
fn reason(error: EngineError) -> String {
    match error {
        EngineError::Load { reason, .. } => reason,
        other => other.to_string(),
    }
}

/// Whether the program starts, which it only does with its libtorch. Serving goes on without it.
async fn look_at_trainer(config: &Config) -> Trainer {
    let device = config.trainer.device;
    let words = match program::command_line(&config.trainer) {
        Ok(words) => words,
        Err(error) => {
            let fault = Some(error.to_string());
            return Trainer { command: String::new(), device, fault };
        }
    };
    let started = program::command(&words)
        .arg("--version")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let patience = std::time::Duration::from_secs(30);
    let fault = match tokio::time::timeout(patience, started).await {
        Err(_) => Some("it does not say its version".to_owned()),
        Ok(Err(error)) => Some(error.to_string()),
        Ok(Ok(output)) if output.status.success() => None,
        Ok(Ok(output)) => {
            let words = String::from_utf8_lossy(&output.stderr);
            Some(words.lines().next().unwrap_or("it ends at once").to_owned())
        }
    };
    Trainer { command: words.join(" "), device, fault }
}

fn render(report: &Report) -> String {
    let Report { ready, problems, machine, engine, model, judges, trainer, training } = report;
    let mut rows = Vec::new();
    if let Some(machine) = machine {
        rows.push(("llama.cpp", machine.version.clone()));
        rows.push(("kernels", machine.kernels.clone()));
        for device in &machine.devices {
            let mut text = format!("{}, {}", device.name, device.description);
            // On a CPU ggml reports all of main memory as free.
            if device.is_gpu {
                let [free, total] = [device.free, device.total].map(mib);
                text = format!("{text}, {free} of {total} free");
            }
            rows.push(("device", text));
        }
    }
    let Engine { context_tokens, max_sequences, batch_tokens, kv_cache, .. } = engine;
    let word = |threads: Option<usize>| threads.map_or("unknown".to_owned(), |n| n.to_string());
    rows.push((
        "threads",
        format!("{} (batches {})", word(engine.threads), word(engine.batch_threads)),
    ));
    rows.push((
        "context",
        format!("{context_tokens} tokens for {max_sequences} sequences, {batch_tokens} a step"),
    ));
    rows.push(("KV cache", json!(kv_cache).as_str().unwrap_or_default().to_owned()));
    rows.push(("flash attention", engine.flash_attention.clone()));
    rows.push(("judgements", engine.judgements.clone()));
    let mut text = String::new();
    if let Some(Model { path, chat_template, survey, servable }) = model {
        rows.push(("model", path.display().to_string()));
        let name = survey.name.clone().unwrap_or_default();
        rows.push(("architecture", format!("{} {name}", survey.architecture).trim().to_owned()));
        let millions = survey.n_parameters as f64 / 1e6;
        let files = match survey.n_files {
            1 => String::new(),
            n => format!(" in {n} files"),
        };
        rows.push(("parameters", format!("{millions:.1} million{files}")));
        rows.push(("chat template", chat_template.clone()));
        rows.push(("servable", if *servable { "yes" } else { "no" }.to_owned()));
        text = tables(survey);
    }
    rows.extend(judges.iter().map(Beside::row));
    if let Some(Trainer { command, device, fault }) = trainer {
        rows.push((
            "trainer",
            fault.as_ref().map_or_else(
                || command.clone(),
                |fault| match command.as_str() {
                    "" => fault.clone(),
                    _ => format!("{command} does not run: {fault}"),
                },
            ),
        ));
        rows.push(("trainer device", json!(device).as_str().unwrap_or_default().to_owned()));
    }
    let tables = training.as_ref().and_then(|training| {
        rows.extend(training.rows());
        training.table()
    });
    let text = tables.map_or(text.clone(), |table| format!("{text}\n{table}"));
    let mut text = pairs(&rows) + &text;
    for problem in problems {
        text = format!("{text}\n{problem}\n");
    }
    text + if *ready { "\nNothing stands in the way.\n" } else { "" }
}

fn tables(survey: &Survey) -> String {
    let mut types = Table::new(["type", "tensors", "size"]);
    for stored in &survey.quantization {
        types.row([stored.kind.clone(), stored.tensors.to_string(), mib(stored.bytes)]);
    }
    let text = format!("\n{}", types.render());
    let Some(MemoryPlan { gpu_layers, host, gpu, .. }) = &survey.memory else { return text };
    let mut memory = Table::new([
        "memory",
        "weights",
        "KV cache",
        "compute",
        "logits",
        "judging",
        "copies",
        "total",
        "available",
    ]);
    let mut row = |place: &str, share: &MemoryShare| {
        let MemoryShare { weights, kv_cache, compute, logits, .. } = share;
        let MemoryShare { judge, prefix_cache, available, source, .. } = share;
        memory.row([
            place.to_owned(),
            mib(*weights),
            mib(*kv_cache),
            mib(*compute),
            mib(*logits),
            mib(*judge),
            mib(*prefix_cache),
            mib(share.total()),
            format!("{} ({source})", mib(*available)),
        ]);
    };
    row("main memory", host);
    if let Some(gpu) = gpu {
        row(&format!("GPU, {gpu_layers} layers"), gpu);
    }
    format!("{text}\n{}", memory.render())
}

pub(super) fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
