//! `make bench-rlrf`: the method's experiment on the nano model. Arms of the paper and ours under
//! three judges, on held-out problems that no training has seen. Writes `results.json`, a plot, and
//! the tables of `docs/internals/rlrf.md`. `arms` has the words, `unit` the course of it, `explore`,
//! `train` and `measure` the steps; all that they do is done by the library's own parts.

#![expect(clippy::print_stderr, reason = "a benchmark says what it does")]
#![expect(clippy::print_stdout, reason = "and what it found")]

mod arms;
mod experiment;
mod explore;
mod lab;
mod measure;
mod plot;
mod records;
mod results;
mod setting;
mod statistics;
mod table;
mod train;
mod unit;

use std::path::{Path, PathBuf};
use testkit::bench::results as shared;
use testkit::bench::{machine, markers};

use clap::Parser as _;

use arms::Unit;
use results::Results;
use setting::{Scale, Setting};
use testkit::bench::results::Provenance;

#[derive(Debug, clap::Parser)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
struct Arguments {
    /// Everything once and small, in minutes; nothing in the repository is written.
    #[arg(long)]
    quick: bool,
    /// Only draw tables and plot, out of the numbers in results.json.
    #[arg(long)]
    render: bool,
    /// Only these units (own-1, reference-2, gold-3, ...), without writing results: several
    /// processes can share the work, and a last call without this puts it together.
    #[arg(long)]
    only: Vec<Unit>,
    /// Measure with other problems, to choose settings by; nothing in the repository is written.
    #[arg(long)]
    development: bool,
    /// Problems that each round explores.
    #[arg(long)]
    prompts: Option<usize>,
    /// CPU threads of engine and trainer [default: all].
    #[arg(long)]
    threads: Option<u32>,
    /// Where reflectd.yaml and the nano agent are.
    #[arg(long, default_value = env!("CARGO_MANIFEST_DIR"))]
    root: PathBuf,
    /// Where stores, adapters and the steps that are done are kept.
    #[arg(long, default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/rlrf"))]
    work: PathBuf,
    /// The trainer program.
    #[arg(long, default_value_os_t = testkit::trainer(env!("CARGO_BIN_EXE_reflectd")))]
    trainer: PathBuf,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = repository.join("bench/rlrf/results.json");
    let older: Results = shared::read(&file)?;
    if arguments.render {
        return publish(repository, &older);
    }
    let all_threads = u32::try_from(std::thread::available_parallelism()?.get())?;
    let mut scale = if arguments.quick { Scale::QUICK } else { Scale::FULL };
    scale.prompts = arguments.prompts.unwrap_or(scale.prompts);
    scale.is_development = arguments.development;
    let threads = arguments.threads.unwrap_or(all_threads);
    let setting = Setting {
        scale,
        root: arguments.root,
        work: arguments.work,
        trainer: arguments.trainer,
        threads,
        provenance: Provenance {
            machine: machine::describe(threads)?,
            commit: machine::commit()?,
            command: Some(shared::command("rlrf", &[])),
            peer: None,
        },
    };
    let records = experiment::run(&setting, &arguments.only).await?;
    if !arguments.only.is_empty() {
        return Ok(());
    }
    let results = Results::new(&records, &setting.scale, &older.goals)?;
    if setting.scale == Scale::FULL {
        shared::write(&file, &results)?;
        return publish(repository, &results);
    }
    println!("{}", table::render(&results));
    Ok(())
}

/// Tables and plot into the repository.
fn publish(repository: &Path, results: &Results) -> anyhow::Result<()> {
    let table = table::render(results);
    println!("{table}");
    markers::insert(&repository.join("docs/internals/rlrf.md"), "rlrf", &table)?;
    plot::draw(&repository.join("bench/rlrf/accuracy.svg"), results)
}
