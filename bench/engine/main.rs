//! `make bench-engine`: the engine and the daemon, measured side by side with llama-server (its program
//! in the environment variable `LLAMA_SERVER`; without it the columns of the other side stay empty).
//! Writes `results.json`, plots, and the table of `docs/internals/performance.md`. This file is
//! the table of contents: one file a workload, and below them the two servers, their client and the model.

#![expect(clippy::print_stderr, reason = "a benchmark says what it does")]
#![expect(clippy::print_stdout, reason = "and what it found")]

mod chat;
mod chats;
mod client;
mod daemon;
mod deterministic;
mod drafts;
mod explore;
mod growth;
mod http;
mod inside;
mod model;
mod overhead;
mod peer;
mod plot;
mod process;
mod refinement;
mod reflection;
mod results;
mod setting;
mod swap;
mod table;
mod texts;
mod vocabulary;

use std::path::{Path, PathBuf};
use std::time::Instant;
use testkit::bench::results as shared;
use testkit::bench::{machine, markers};

use anyhow::Context as _;
use clap::Parser as _;
use engine::FlashAttention;

use model::Kind;
use results::{Findings, Results, WORKLOADS};
use setting::Setting;
use testkit::bench::results::Provenance;
use texts::Texts;

#[derive(Debug, clap::Parser)]
struct Arguments {
    /// Only these workloads; the others keep what an earlier run found.
    #[arg(long, value_parser = WORKLOADS)]
    only: Vec<String>,
    /// Rounds of each comparison [default: each workload's own number].
    #[arg(long)]
    rounds: Option<usize>,
    /// One round of everything, to see that it works; nothing is written.
    #[arg(long)]
    quick: bool,
    /// Only draw table and plots, out of the numbers in results.json.
    #[arg(long)]
    render: bool,
    /// CPU threads of both sides [default: all].
    #[arg(long)]
    threads: Option<u32>,
    /// `auto`, `on` or `off`, of ours [default: the daemon's].
    #[arg(long, default_value = "auto", value_parser = flash_attention)]
    flash_attention: FlashAttention,
    /// A GGUF of a chat model for the workload `deterministic` [default: random weights].
    #[arg(long)]
    model: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn flash_attention(word: &str) -> Result<FlashAttention, serde_json::Error> {
    serde_json::from_value(serde_json::Value::String(word.to_owned()))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/engine");
    let mut results: Results = shared::read(&folder.join("results.json"))?;
    if arguments.render {
        return publish(&folder, &results);
    }
    let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let prompts = daemon::prompt_texts()?;
    let all_threads = u32::try_from(std::thread::available_parallelism()?.get())?;
    let setting = Setting {
        model: model::make(&cache, &prompts, Kind::Random)?,
        predictable_model: model::make(&cache, &prompts, Kind::Predictable)?,
        threads: arguments.threads.unwrap_or(all_threads),
        flash_attention: arguments.flash_attention,
        peer: std::env::var_os("LLAMA_SERVER").map(PathBuf::from),
        real_model: arguments.model,
        rounds: arguments.rounds,
        is_quick: arguments.quick,
    };
    let mut texts = Texts::new(&setting.engine()).await?;
    let run = Provenance {
        machine: machine::describe(setting.threads)?,
        commit: machine::commit()?,
        command: Some(shared::command("engine", &["LLAMA_SERVER", "LLAMA_SERVER_FLAGS"])),
        peer: match &setting.peer {
            Some(program) => Some(peer::describe(program, setting.threads).await?),
            None => None,
        },
    };

    for workload in WORKLOADS {
        if !arguments.only.is_empty() && !arguments.only.iter().any(|only| only == workload) {
            continue;
        }
        let began = Instant::now();
        let findings = measure(workload, &setting, &mut texts)
            .await
            .with_context(|| format!("workload {workload}"))?;
        eprintln!("{workload}: {:.0} s", began.elapsed().as_secs_f64());
        results.replace(workload, &run, findings);
        if !setting.is_quick {
            shared::write(&folder.join("results.json"), &results)?;
        }
    }

    if setting.is_quick {
        println!("{}", table::render(&results, &WORKLOADS));
        return Ok(());
    }
    publish(&folder, &results)
}

/// Table and plots into the repository.
fn publish(folder: &Path, results: &Results) -> anyhow::Result<()> {
    let table = table::render(results, &WORKLOADS);
    println!("{table}");
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/internals/performance.md");
    markers::insert(&document, "engine", &table)?;
    for (name, curve) in &results.curves {
        plot::draw(&folder.join(format!("{name}.svg")), curve)?;
    }
    Ok(())
}

async fn measure(workload: &str, setting: &Setting, texts: &mut Texts) -> anyhow::Result<Findings> {
    match workload {
        "chats" => chats::run(setting, texts).await,
        "drafts" => drafts::run(setting, texts).await,
        "reflection" => reflection::run(setting, texts).await,
        "refinement" => refinement::run(setting, texts).await,
        "overhead" => overhead::run(setting, texts).await,
        "explore" => explore::run(setting, texts).await,
        "swap" => swap::run(setting, texts).await,
        "deterministic" => deterministic::run(setting).await,
        "growth" => growth::run(setting, texts).await,
        other => anyhow::bail!("{other} is no workload"),
    }
}
