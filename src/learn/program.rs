//! The trainer program: where it is, and how a process of it begins. Used by `child` (runs),
//! `survey` and `reflectd doctor`.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use config::TrainerConfig;
use protocol::program;
use rustix::process::{Pid, setpriority_process};
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, Command};
use tracing::{debug, warn};

/// Nothing is at the place where the trainer is installed.
#[derive(Debug, thiserror::Error)]
#[error(
    "the trainer {} is not installed: the package reflectd-trainer adds it with libtorch (`make build` \
     in the sources builds it); without it reflectd serves, reflects, explores and exports, but trains \
     nothing", program.display()
)]
pub struct NotInstalled {
    /// Where it would be.
    pub program: PathBuf,
}

/// What `trainer.command` says, else the program beside this one, which has to be there.
pub fn command_line(config: &TrainerConfig) -> Result<Vec<String>, NotInstalled> {
    if let Some(command) = &config.command {
        return Ok(command.clone());
    }
    let program = std::env::current_exe().unwrap_or_default().with_file_name(program::NAME);
    if !program.exists() {
        return Err(NotInstalled { program });
    }
    Ok(vec![program.to_string_lossy().into_owned()])
}

/// The trainer by these words of [`command_line`], with its OpenMP threads told how to wait. Every
/// process of it begins here; nothing has been started yet.
pub fn command(words: &[String]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    program::wait_passively(command.as_std_mut());
    command
}

/// Starts a trainer with pipes, at the lowest priority, and gives it its job. Dropping the child
/// kills it; dropping its standard input tells it that nobody waits for it any more.
pub(super) async fn start(
    command: &mut Command,
    job: &impl Serialize,
) -> io::Result<(Child, ChildStdin)> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    if let Err(error) = setpriority_process(pid, 19) {
        warn!(%error, "The trainer keeps its priority.");
    }
    let mut stdin = child.stdin.take().expect("standard input was asked for");
    let mut line = serde_json::to_vec(job).expect("a job is plain data");
    line.push(b'\n');
    // A job is smaller than any pipe, so this does not wait for the trainer. One that does not read
    // its job ends by itself, and its exit status says more than a broken pipe.
    if let Err(error) = stdin.write_all(&line).await {
        debug!(%error, "The trainer does not read its job.");
    }
    Ok((child, stdin))
}
