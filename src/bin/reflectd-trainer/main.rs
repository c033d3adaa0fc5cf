//! The trainer program: the only one that links libtorch. Without a subcommand it reads one job
//! (`reflectd::protocol`) from standard input and answers with events on standard output.
//! End of standard input means that the daemon has gone.

#[cfg(test)]
mod tests;

mod arch;
mod base;
mod batch;
mod checkpoint;
mod clock;
mod cuda;
mod data;
mod export;
mod head;
mod lora;
mod model;
mod objective;
mod optimizer;
mod plan;
mod pretrain;
mod reference;
mod step;
mod sweep;
mod tensors;
mod train;
mod weights;

use std::io::{BufRead as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser as _;
use reflectd::exit::Exit;
use reflectd::protocol::{Job, TrainerEvent};
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};

use crate::train::Failure;

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
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Some(Command::Pretrain(options)) => pretrain::run(&options).map_err(Failure::BadData),
        None => {
            catch_unwind(AssertUnwindSafe(run_job)).unwrap_or_else(|panic| Err(from_panic(&*panic)))
        }
    };
    match result {
        Ok(()) => Exit::Ok,
        Err(Failure::Stopped) => Exit::TryAgain,
        Err(Failure::BadData(error)) => say_failed(&error, Exit::BadData),
        Err(Failure::TryAgain(error)) => say_failed(&error, Exit::TryAgain),
        Err(Failure::Bug(error)) => say_failed(&error, Exit::Internal),
    }
    .into()
}

fn run_job() -> Result<(), Failure> {
    // The daemon stops us while somebody chats. Should it be killed then, nobody would let us go on
    // and see the end of standard input. It may also come when a thread ends; it does no harm.
    if let Err(error) = set_parent_process_death_signal(Some(Signal::CONT)) {
        return Err(Failure::TryAgain(error.into()));
    }
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.map_err(|error| Failure::TryAgain(error.into()))?;
    let job: Job = serde_json::from_str(&line).map_err(|error| {
        Failure::BadData(
            anyhow::Error::from(error).context("the first line of standard input is not a job"),
        )
    })?;
    if let Some(limit) = job.memory_limit_bytes {
        // Then an allocation fails, to which the run reacts, before the system has to.
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        setrlimit(Resource::Data, limit).map_err(|error| Failure::TryAgain(error.into()))?;
    }
    let device = cuda::device(job.device).map_err(Failure::BadData)?;
    let stop = watch_stdin();
    // Told to end, it writes its state down first; who has no time for that sends SIGKILL.
    let registered = signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&stop));
    registered.map_err(|error| Failure::TryAgain(error.into()))?;
    train::run(&job, device, &emit, &stop)
}

/// Set when standard input ends.
fn watch_stdin() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    std::thread::spawn(move || {
        drop(std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()));
        seen.store(true, Ordering::Relaxed);
    });
    stop
}

fn emit(event: &TrainerEvent) {
    let line =
        serde_json::to_string(event).expect("events have no maps with other keys than strings");
    // A broken pipe means that the daemon has gone; the end of standard input says so too.
    drop(writeln!(std::io::stdout().lock(), "{line}"));
}

fn say_failed(error: &anyhow::Error, exit: Exit) -> Exit {
    emit(&TrainerEvent::Failed { message: format!("{error:#}") });
    exit
}

/// tch panics where libtorch throws; being out of memory is the one case that may pass.
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
