//! The trainer process of a run. It owns the child's group, pipes and
//! end; it must not retry (that is `schedule`'s decision) and must not touch the store.
//! Used by `run`.
//!
//! Success is three things together: exit status 0, a `Done` line, and a file with the hash that
//! the line names. Everything else is a [`TrainerError`], and serving never notices.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::cancel::{Cancel, Stop};
use super::program::{self, NotInstalled};
use config::TrainerConfig;
use protocol::exit::Exit;
use protocol::{Job, TrainerEvent};

/// Lines of standard error that become part of the error.
const TAIL_LINES: usize = 50;
/// Longer lines are cut; then they do not parse and count as noise.
const LINE_BYTES: usize = 64 * 1024;
/// How often the clocks and the engine's quiet time are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How long the pipes may stay open after the child has been reaped.
const DRAIN: Duration = Duration::from_secs(2);

/// What the caller hears while the trainer works.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// A line of the protocol.
    Event(TrainerEvent),
    /// The trainer was stopped (true) because somebody chats, or goes on.
    Paused(bool),
}

/// An adapter that a run has made.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// The adapter file, whose hash has been compared.
    pub adapter: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
    /// Log-probs for the parity check; `None`: it was not trained here.
    pub probe: Option<PathBuf>,
}

/// What a run has made.
#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    /// The weights with the smallest validation loss.
    pub best: Trained,
    /// Their step.
    pub best_step: usize,
    /// Their validation loss.
    pub best_loss: Option<f64>,
    /// The weights after the last step, where these are others.
    pub last: Option<Trained>,
}

/// Why there is no adapter.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// It could not be started.
    #[error("start the trainer {program}: {source}; set trainer.command")]
    Start {
        /// What was started.
        program: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// There is no trainer.
    #[error(transparent)]
    NotInstalled(#[from] NotInstalled),
    /// Exit status 65: the job or its data are wrong, and stay so.
    #[error("the trainer refuses the job: {0}")]
    BadData(String),
    /// Exit status 75: not enough memory or another passing want.
    #[error("the trainer lacks something and may be tried again: {0}")]
    TryAgain(String),
    /// Any other exit status that is not 0.
    #[error("the trainer failed with exit status {status}: {words}")]
    Crashed {
        /// 70 is the trainer's own word for its bug.
        status: i32,
        /// What it said last.
        words: String,
    },
    /// A signal ended it.
    #[error("signal {signal} ended the trainer{}: {words}",
        if *.signal == 9 { " (the system kills so when memory runs out)" } else { "" })]
    Killed {
        /// Its number.
        signal: i32,
        /// What it said last.
        words: String,
    },
    /// It said nothing for too long.
    #[error("the trainer said nothing for {} s and was stopped: {words}", .after.as_secs_f32())]
    Stalled {
        /// `trainer.stall`.
        after: Duration,
        /// What it said last.
        words: String,
    },
    /// It had said its last word but did not end.
    #[error("the trainer was done or had closed its output, but did not end in {} s",
        .after.as_secs_f32())]
    Lingered {
        /// `trainer.stall`.
        after: Duration,
    },
    /// It ended well without the `Done` line.
    #[error("the trainer ended without naming an adapter: {0}")]
    NoAdapter(String),
    /// The file is not the one that the `Done` line names.
    #[error("the adapter {path} is not what the trainer said: {reason}")]
    Lied {
        /// The file.
        path: PathBuf,
        /// How they differ.
        reason: String,
    },
    /// The owner or the end of the daemon stopped it.
    #[error("{0}")]
    Cancelled(Stop),
}

/// Runs one job to its end. `quiet` says for how long no chat has run.
pub async fn train(
    config: &TrainerConfig,
    job: &Job,
    quiet: &(dyn Fn() -> Duration + Sync),
    update: &mut (dyn FnMut(Update) + Send),
    cancel: Cancel,
) -> Result<Product, TrainerError> {
    let (mut child, stdin) = start(config, job).await?;
    let supervisor = Supervisor::new(config, &mut child);
    let (status, said) = supervisor.watch(&mut child, quiet, update, cancel).await?;
    // Only now: end of standard input tells the trainer that the daemon has gone.
    drop(stdin);
    let words = said.words();
    match (status.code(), std::os::unix::process::ExitStatusExt::signal(&status)) {
        (Some(0), _) => {}
        (Some(code), _) if code == Exit::BadData as i32 => {
            return Err(TrainerError::BadData(words));
        }
        (Some(code), _) if code == Exit::TryAgain as i32 => {
            return Err(TrainerError::TryAgain(words));
        }
        (Some(status), _) => return Err(TrainerError::Crashed { status, words }),
        (None, signal) => {
            return Err(TrainerError::Killed { signal: signal.unwrap_or_default(), words });
        }
    }
    let product = said.done.ok_or(TrainerError::NoAdapter(words))?;
    for trained in [&product.best].into_iter().chain(&product.last) {
        check_done(trained, &job.out).await?;
    }
    Ok(product)
}

/// The file that the last line names exists in the run's folder and has the hash.
pub(super) async fn check_done(trained: &Trained, out: &Path) -> Result<(), TrainerError> {
    let lied = |reason| TrainerError::Lied { path: trained.adapter.clone(), reason };
    let files = std::iter::once(&trained.adapter).chain(&trained.probe);
    if files.into_iter().any(|path| path.parent() != Some(out)) {
        return Err(lied(format!("adapter and probe have to be in {}", out.display())));
    }
    let path = trained.adapter.clone();
    let sha256 = tokio::task::spawn_blocking(move || files::sha256(&path))
        .await
        .expect("hashing a file does not panic")
        .map_err(|error| lied(error.to_string()))?;
    if sha256 != trained.sha256 {
        return Err(lied(format!("its SHA-256 is {sha256}, not {}", trained.sha256)));
    }
    Ok(())
}

async fn start(config: &TrainerConfig, job: &Job) -> Result<(Child, ChildStdin), TrainerError> {
    let mut words = program::command_line(config)?;
    let path = PathBuf::from(&words[0]);
    let failed = |source| TrainerError::Start { program: path.clone(), source };
    if words[0].contains('/') {
        // Looked at here, because `chrt` below would say less clearly that it is missing; absolute,
        // because the trainer runs in its run's folder.
        words[0] = std::fs::canonicalize(&path).map_err(failed)?.to_string_lossy().into_owned();
    }
    // SCHED_IDLE gives the trainer only what nobody else wants: ggml's spin barriers make any
    // competing process cost the chat far more than its share. Without `chrt`, nice 19 remains.
    if let Some(chrt) = find_program("chrt") {
        words.splice(0..0, [chrt, "-i".into(), "0".into()]);
    }
    let mut command = program::command(&words);
    command.current_dir(&job.out).process_group(0);
    program::start(&mut command, job).await.map_err(failed)
}

fn find_program(name: &str) -> Option<String> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|p| p.is_file());
    found.map(|program| program.to_string_lossy().into_owned())
}

/// A line of the child, or the end of its standard output.
#[derive(Debug)]
enum Line {
    Out(Vec<u8>),
    Err(Vec<u8>),
    OutEnd,
}

/// What the child has said so far.
#[derive(Debug, Default)]
struct Said {
    done: Option<Product>,
    failed: Option<String>,
    tail: VecDeque<String>,
}

impl Said {
    /// Its own reason, else the end of its standard error.
    fn words(&self) -> String {
        let tail = || self.tail.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
        match &self.failed {
            Some(message) => message.clone(),
            None if self.tail.is_empty() => "it said nothing".into(),
            None => tail(),
        }
    }
}

/// How a supervised child comes to its end.
#[derive(Debug)]
enum Phase {
    /// It works; by the deadline it has to say something. `last_word`: nothing more is expected,
    /// so the deadline is for its end.
    Working { deadline: Instant, last_word: bool },
    /// It was asked to end (SIGTERM); after the deadline it is killed.
    Ending { why: TrainerError, deadline: Option<Instant> },
}

struct Supervisor<'a> {
    config: &'a TrainerConfig,
    group: Pid,
    lines: mpsc::Receiver<Line>,
    said: Said,
    phase: Phase,
    paused: bool,
    last_tick: Instant,
}

impl<'a> Supervisor<'a> {
    fn new(config: &'a TrainerConfig, child: &mut Child) -> Self {
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        // 64 lines: a trainer that talks faster than we listen waits in its own pipe.
        let (sender, lines) = mpsc::channel(64);
        let stdout = child.stdout.take().expect("standard output was asked for");
        let stderr = child.stderr.take().expect("standard error was asked for");
        let errors = sender.clone();
        tokio::spawn(async move {
            read_lines(stdout, &sender, Line::Out).await;
            // The supervisor may have gone; then nobody wants to know.
            drop(sender.send(Line::OutEnd).await);
        });
        tokio::spawn(async move { read_lines(stderr, &errors, Line::Err).await });
        let now = Instant::now();
        Self {
            config,
            group: pid.expect("a child that nobody has waited for has an id"),
            lines,
            said: Said::default(),
            phase: Phase::Working { deadline: now + config.stall, last_word: false },
            paused: false,
            last_tick: now,
        }
    }

    /// Until the child has been reaped and its pipes are drained.
    async fn watch(
        mut self,
        child: &mut Child,
        quiet: &(dyn Fn() -> Duration + Sync),
        update: &mut (dyn FnMut(Update) + Send),
        mut cancel: Cancel,
    ) -> Result<(ExitStatus, Said), TrainerError> {
        let mut ticks = tokio::time::interval(TICK);
        let status = loop {
            let working = matches!(self.phase, Phase::Working { .. });
            tokio::select! {
                status = child.wait() => break status,
                Some(line) = self.lines.recv() => self.hear(line, update),
                stop = cancel.cancelled(), if working => self.end(TrainerError::Cancelled(stop)),
                _ = ticks.tick() => self.tick(quiet(), update),
            }
        };
        self.drain(update).await;
        match self.phase {
            Phase::Ending { why, .. } => Err(why),
            Phase::Working { .. } => {
                Ok((status.expect("nobody else waits for our child"), self.said))
            }
        }
    }

    fn hear(&mut self, line: Line, update: &mut (dyn FnMut(Update) + Send)) {
        match line {
            Line::Out(line) => match serde_json::from_slice::<TrainerEvent>(&line) {
                Ok(event) => self.take(event, update),
                // C++ libraries print where they like.
                Err(_) => debug!(line = %String::from_utf8_lossy(&line), "The trainer prints."),
            },
            Line::Err(line) => {
                let line = String::from_utf8_lossy(&line).into_owned();
                debug!(line, "The trainer prints.");
                if self.said.tail.len() == TAIL_LINES {
                    self.said.tail.pop_front();
                }
                self.said.tail.push_back(line);
            }
            Line::OutEnd => self.expect_the_end(),
        }
    }

    fn take(&mut self, event: TrainerEvent, update: &mut (dyn FnMut(Update) + Send)) {
        if let Phase::Working { deadline, last_word: false } = &mut self.phase {
            *deadline = Instant::now() + self.config.stall;
        }
        match &event {
            TrainerEvent::Done { adapter, sha256, probe, best_step, best_loss, last } => {
                let trained = |adapter: &PathBuf, sha256: &String, probe: &PathBuf| Trained {
                    adapter: adapter.clone(),
                    sha256: sha256.clone(),
                    probe: Some(probe.clone()),
                };
                self.said.done = Some(Product {
                    best: trained(adapter, sha256, probe),
                    best_step: *best_step,
                    best_loss: *best_loss,
                    last: last.as_ref().map(|it| trained(&it.adapter, &it.sha256, &it.probe)),
                });
                self.expect_the_end();
            }
            TrainerEvent::Failed { message } => {
                self.said.failed = Some(message.clone());
                self.expect_the_end();
            }
            TrainerEvent::Warning { message } => warn!(reason = message, "The trainer warns."),
            TrainerEvent::Started { .. }
            | TrainerEvent::Reference { .. }
            | TrainerEvent::Resumed { .. }
            | TrainerEvent::Step(_)
            | TrainerEvent::Checkpoint { .. }
            | TrainerEvent::Validation { .. } => {}
        }
        update(Update::Event(event));
    }

    /// End of output is not end of process: it may close its pipes and stay.
    fn expect_the_end(&mut self) {
        if let Phase::Working { deadline, last_word } = &mut self.phase
            && !*last_word
        {
            *last_word = true;
            // With the priority of idle work its end may take as long as any word of it.
            *deadline = Instant::now() + self.config.stall;
        }
    }

    fn tick(&mut self, quiet: Duration, update: &mut (dyn FnMut(Update) + Send)) {
        let now = Instant::now();
        let since = now - std::mem::replace(&mut self.last_tick, now);
        match &mut self.phase {
            Phase::Working { deadline, last_word } => {
                if self.paused {
                    // A stopped trainer cannot speak; that is not a stall.
                    *deadline += since;
                }
                if now >= *deadline {
                    let words = self.said.words();
                    let why = if *last_word {
                        TrainerError::Lingered { after: self.config.stall }
                    } else {
                        TrainerError::Stalled { after: self.config.stall, words }
                    };
                    self.end(why);
                    return;
                }
                let pause = quiet < self.config.yield_quiet;
                if pause != self.paused {
                    self.paused = pause;
                    self.signal(if pause { Signal::STOP } else { Signal::CONT });
                    update(Update::Paused(pause));
                }
            }
            Phase::Ending { deadline, .. } => {
                if deadline.is_some_and(|deadline| now >= deadline) {
                    *deadline = None;
                    warn!("The trainer ignores SIGTERM and is killed.");
                    self.signal(Signal::KILL);
                }
            }
        }
    }

    fn end(&mut self, why: TrainerError) {
        info!(reason = %why, "The trainer is told to end.");
        self.phase = Phase::Ending { why, deadline: Some(Instant::now() + self.config.grace) };
        self.signal(Signal::TERM);
        // A stopped process takes its SIGTERM when it goes on.
        self.signal(Signal::CONT);
    }

    /// To the whole group. Should the daemon die while the group is stopped, it becomes an
    /// orphaned one, and the kernel sends it SIGHUP and SIGCONT: nothing stays stopped for ever.
    fn signal(&self, signal: Signal) {
        if let Err(error) = kill_process_group(self.group, signal) {
            debug!(%error, ?signal, "The trainer's group takes no signal.");
        }
    }

    /// What was still in the pipes. Grandchildren that hold them open are killed.
    async fn drain(&mut self, update: &mut (dyn FnMut(Update) + Send)) {
        let rest = async {
            while let Some(line) = self.lines.recv().await {
                self.hear(line, update);
            }
        };
        if tokio::time::timeout(DRAIN, rest).await.is_err() {
            self.signal(Signal::KILL);
        }
    }
}

/// Sends each line without its end; what is longer than [`LINE_BYTES`] is thrown away.
async fn read_lines(
    pipe: impl AsyncRead + Unpin,
    sender: &mpsc::Sender<Line>,
    line_of: fn(Vec<u8>) -> Line,
) {
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        let Ok(chunk) = reader.fill_buf().await else { return };
        if chunk.is_empty() {
            break;
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let part = &chunk[..end.unwrap_or(chunk.len())];
        line.extend_from_slice(&part[..part.len().min(LINE_BYTES - line.len())]);
        let consumed = part.len() + usize::from(end.is_some());
        reader.consume(consumed);
        if end.is_some() && sender.send(line_of(std::mem::take(&mut line))).await.is_err() {
            return;
        }
    }
    if !line.is_empty() {
        drop(sender.send(line_of(line)).await);
    }
}

#[cfg(test)]
mod tests;
