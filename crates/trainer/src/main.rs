//! The trainer program: the only one that links libtorch. Without a subcommand it reads one job
//! (`protocol`) from standard input and answers with events on standard output.
//! The end of standard input means that the daemon has ended.

#[cfg(test)]
mod tests;

mod arch;
mod backward;
mod base;
mod batch;
mod checkpoint;
mod clock;
mod cross_entropy;
mod cuda;
mod data;
mod export;
mod lora;
mod model;
mod objective;
mod optimizer;
mod plan;
mod pretrain;
mod probe;
mod reference;
mod rope;
mod step;
mod survey;
mod tensors;
mod train;
mod weights;

use std::io::{BufRead as _, Read as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser as _;
use protocol::exit::Exit;
use protocol::{Job, SurveyJob, TrainerEvent};
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::train::Failure;

/// Longest job: it is a few paths and numbers.
const MAX_JOB_BYTES: u64 = 1 << 20;

#[derive(Debug, clap::Parser)]
#[command(version, about = "Trains an adapter for the model that reflectd serves")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Train the nano model from scratch on the nano world.
    Pretrain(pretrain::Options),
    /// Say what training on a model would take; `reflectd doctor` asks for it on standard input.
    #[command(hide = true)]
    Survey,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Some(Command::Pretrain(options)) => pretrain::run(&options).map_err(Failure::BadData),
        Some(Command::Survey) => run_survey(),
        None => {
            catch_unwind(AssertUnwindSafe(run_job)).unwrap_or_else(|panic| Err(from_panic(&*panic)))
        }
    };
    match result {
        Ok(()) => Exit::Ok,
        Err(Failure::Stopped) => Exit::TryAgain,
        Err(Failure::BadData(error)) => report_failure(&error, Exit::BadData),
        Err(Failure::TryAgain(error)) => report_failure(&error, Exit::TryAgain),
        Err(Failure::Bug(error)) => report_failure(&error, Exit::Internal),
    }
    .into()
}

fn run_job() -> Result<(), Failure> {
    // A backtrace allocates memory. When memory has run out, allocating panics again, and the second
    // backtrace would wait for ever for the lock that the first one holds.
    std::panic::set_hook(Box::new(|panic| drop(writeln!(std::io::stderr(), "{panic}"))));
    // The daemon stops this process (SIGSTOP) while somebody chats. If it is killed then, the kernel
    // has to continue this process, which then sees the end of standard input. The signal may also come
    // when a thread of the daemon ends, where it has no effect.
    if let Err(error) = set_parent_process_death_signal(Some(Signal::CONT)) {
        return Err(Failure::TryAgain(error.into()));
    }
    let job: Job = first_line()?;
    limit_memory(job.memory_limit_bytes)?;
    let device = cuda::device(job.device).map_err(Failure::BadData)?;
    let stop = watch_stdin();
    // SIGTERM ends the run after a checkpoint; SIGKILL ends it without.
    let registered = signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&stop));
    registered.map_err(|error| Failure::TryAgain(error.into()))?;
    train::run(&job, device, &emit, &stop)
}

fn run_survey() -> Result<(), Failure> {
    let job: SurveyJob = first_line()?;
    limit_memory(job.memory_limit_bytes)?;
    let device = cuda::device(job.device).map_err(Failure::BadData)?;
    let survey = survey::run(&job, device, print_line).map_err(Failure::BadData)?;
    print_line(&survey);
    Ok(())
}

/// Reads the first line of standard input.
fn first_line<T: DeserializeOwned>() -> Result<T, Failure> {
    let mut line = Vec::new();
    let read = std::io::stdin().lock().take(MAX_JOB_BYTES).read_until(b'\n', &mut line);
    read.map_err(|error| Failure::TryAgain(error.into()))?;
    serde_json::from_slice(&line).map_err(|error| {
        Failure::BadData(
            anyhow::Error::from(error).context("the first line of standard input is not a job"),
        )
    })
}

/// Limits the data segment, so that an allocation fails, to which a run reacts, before the system runs out
/// of memory and kills a process.
fn limit_memory(bytes: Option<u64>) -> Result<(), Failure> {
    let Some(bytes) = bytes else { return Ok(()) };
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    setrlimit(Resource::Data, limit).map_err(|error| Failure::TryAgain(error.into()))
}

/// A flag that is set when standard input ends.
fn watch_stdin() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let at_end = Arc::clone(&stop);
    std::thread::spawn(move || {
        drop(std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()));
        at_end.store(true, Ordering::Relaxed);
    });
    stop
}

fn emit(event: &TrainerEvent) {
    print_line(event);
}

fn print_line(message: &impl Serialize) {
    let line = serde_json::to_string(message).expect("messages have maps with string keys only");
    // A broken pipe means that the daemon has ended; the end of standard input says so too.
    drop(writeln!(std::io::stdout().lock(), "{line}"));
}

fn report_failure(error: &anyhow::Error, exit: Exit) -> Exit {
    emit(&TrainerEvent::Failed { message: format!("{error:#}") });
    exit
}

/// tch panics where libtorch throws. Only running out of memory is worth another try.
fn from_panic(panic: &(dyn std::any::Any + Send)) -> Failure {
    let text = step::panic_text(panic);
    let first = step::first_line(&text).to_owned();
    if step::is_out_of_memory(&text) {
        return Failure::TryAgain(anyhow::anyhow!(
            "{first}: lower learn.optimizer.batch_pairs or learn.max_tokens"
        ));
    }
    Failure::Bug(anyhow::anyhow!(first))
}
