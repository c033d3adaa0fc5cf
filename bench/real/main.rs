//! `make bench-real`: a real chat model learns overnight with the defaults. Every task is an agent as its
//! owner would write it, the real daemon serves and trains, and the answers are compared with the truth
//! here. Writes `results.json` and the tables of `docs/internals/real.md`. `arms` has the words, `task` what
//! is learned, `unit` the course of it, `night` and `measure` the steps.

#![expect(clippy::print_stderr, reason = "a benchmark says what it does")]
#![expect(clippy::print_stdout, reason = "and what it found")]

mod arms;
mod daemon;
mod data;
mod general;
mod measure;
mod night;
mod records;
mod results;
mod root;
mod setting;
mod table;
mod task;
mod unit;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Parser as _;

use arms::{Unit, Wanted};
use results::Results;
use setting::{Scale, Setting};
use testkit::bench::results as shared;
use testkit::bench::results::Provenance;
use testkit::bench::{machine, markers};
use unit::Lab;

#[derive(Debug, clap::Parser)]
struct Arguments {
    /// The chat model, a GGUF.
    #[arg(long, env = "MODEL")]
    model: Option<PathBuf>,
    /// The folder with snips, gsm8k and mt-bench [default: tasks of our own alone].
    #[arg(long, env = "DATA")]
    data: Option<PathBuf>,
    /// Every list cut to a few prompts; nothing in the repository is written.
    #[arg(long)]
    quick: bool,
    /// Only draw tables out of the numbers in results.json.
    #[arg(long)]
    render: bool,
    /// Only these units, or those that begin so (sentence, intent/auto, home/nights, control/coin).
    #[arg(long)]
    only: Vec<Wanted>,
    /// Repetitions of what is repeated.
    #[arg(long)]
    seeds: Option<u64>,
    /// Held-out prompts that are also sampled eight times.
    #[arg(long)]
    sampled: Option<usize>,
    /// CPU threads of daemon and trainer.
    #[arg(long, default_value_t = 2)]
    threads: u32,
    /// What else ran on the machine, for whoever reads the times.
    #[arg(long)]
    beside: Option<String>,
    /// Where roots, states and the steps that are done are kept. Another folder begins anew.
    #[arg(long, default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/real"))]
    work: PathBuf,
    /// The daemon's program, with its trainer beside it.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_reflectd"))]
    program: PathBuf,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = repository.join("bench/real/results.json");
    let mut results: Results = shared::read(&file)?;
    if arguments.render {
        return publish(repository, &results);
    }
    let absolute = |path: PathBuf| {
        path.canonicalize().with_context(|| format!("there is no {}", path.display()))
    };
    let mut scale = if arguments.quick { Scale::QUICK } else { Scale::FULL };
    scale.seeds = arguments.seeds.unwrap_or(scale.seeds);
    scale.sampled = arguments.sampled.unwrap_or(scale.sampled);
    let threads = arguments.threads;
    let beside = arguments.beside.map_or_else(String::new, |what| format!("; beside {what}"));
    let setting = Setting {
        scale,
        model: absolute(arguments.model.context("say MODEL=file.gguf")?)?,
        data: arguments.data.map(absolute).transpose()?,
        work: arguments.work,
        program: arguments.program,
        threads,
        provenance: Provenance {
            machine: format!("{}{beside}", machine::describe(threads)?),
            commit: machine::commit()?,
            command: Some(shared::command("real", &["MODEL", "DATA"])),
            peer: None,
        },
    };
    let mut units = Unit::all(&setting.scale, setting.data.is_some());
    if !arguments.only.is_empty() {
        units.retain(|unit| arguments.only.iter().any(|wanted| wanted.names(*unit)));
    }
    let mut lab = Lab::open(setting)?;
    for &unit in &units {
        lab.run(unit).await.with_context(|| unit.to_string())?;
        results.update(&lab.records, &units);
        if !arguments.quick {
            shared::write(&file, &results)?;
        }
    }
    if arguments.quick {
        println!("{}", table::render(&results));
        return Ok(());
    }
    publish(repository, &results)
}

/// Tables into the repository.
fn publish(repository: &Path, results: &Results) -> anyhow::Result<()> {
    let table = table::render(results);
    println!("{table}");
    markers::insert(&repository.join("docs/internals/real.md"), "real", &table)
}
