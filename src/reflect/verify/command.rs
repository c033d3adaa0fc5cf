//! Asks the owner's programs: each is started when it is first asked, answers one line with one line
//! as long as it lives, and is ended when nobody has asked it for a while. It owns the processes,
//! their pipes and their end. A program that is missing, hangs, says what is no verdict or ends is an
//! error that says so; never a pass. Used by `assess` and `cli check`.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader,
};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{debug, info};

use super::Finding;
use prompt::Command;

/// Questions that wait for one program; one more waits to be queued.
const QUEUE: usize = 64;
/// A line is no longer, so that a program cannot fill the memory.
const LINE_BYTES: usize = 64 * 1024;
/// What of its standard error becomes part of an error.
const ERROR_BYTES: usize = 1000;
/// How long one that has closed its output may take to end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// A program that nobody has asked for so long is ended.
const IDLE: Duration = Duration::from_mins(5);

/// What a program is asked.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Question<'a> {
    /// As a judge would see it.
    pub prompt: &'a str,
    /// What is checked.
    pub answer: &'a str,
    /// What is known to be right.
    pub reference: Option<&'a str>,
}

/// What a program says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Verdict {
    score: f64,
    #[serde(default)]
    reason: Option<String>,
}

/// A program that gives no verdict.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the verifier's program {program} {fault}")]
pub struct CommandError {
    /// What was started.
    pub program: String,
    /// What is wrong with it and what is expected.
    pub fault: String,
}

/// The programs that are running.
#[derive(Debug, Default)]
pub struct Programs {
    /// By all that was said of them. Bounded: an idle one ends and its place is taken by the next.
    running: Mutex<HashMap<String, mpsc::Sender<Wanted>>>,
}

/// A question on its way to the task that owns the program.
#[derive(Debug)]
struct Wanted {
    line: Vec<u8>,
    reply: oneshot::Sender<Result<Verdict, String>>,
}

impl Programs {
    /// What a program says of an answer.
    pub async fn ask(
        &self,
        command: &Command,
        question: Question<'_>,
    ) -> Result<Finding, CommandError> {
        let program = command.command.first().cloned().unwrap_or_default();
        let mut line = serde_json::to_vec(&question).expect("a question is plain data");
        line.push(b'\n');
        // The task may end for want of questions between the look at it and the question.
        for _ in 0..3 {
            let (reply, answer) = oneshot::channel();
            let sent = self.sender(command).send(Wanted { line: line.clone(), reply }).await;
            let Ok(answer) = (match sent {
                Ok(()) => answer.await,
                Err(_) => continue,
            }) else {
                continue;
            };
            return match answer {
                Ok(verdict) => Ok(finding(&verdict, command.pass)),
                Err(fault) => Err(CommandError { program, fault }),
            };
        }
        Err(CommandError { program, fault: "was ended three times while it was asked".into() })
    }

    fn sender(&self, command: &Command) -> mpsc::Sender<Wanted> {
        let key = serde_json::to_string(command).expect("a command is plain data");
        let mut running = self.running.lock().expect("nobody panics while holding the programs");
        running.retain(|_, sender| !sender.is_closed());
        let start = || {
            let (sender, wanted) = mpsc::channel(QUEUE);
            tokio::spawn(own(command.clone(), wanted));
            sender
        };
        running.entry(key).or_insert_with(start).clone()
    }
}

/// Asks a program once, outside any runtime; why it gives no verdict. For `reflectd check`.
pub fn try_program(command: &Command) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot be tried: {error}"))?;
    let question = Question { prompt: "What is 2 + 2?", answer: "4", reference: Some("4") };
    let asked = runtime.block_on(async { Programs::default().ask(command, question).await });
    asked.map(drop).map_err(|error| error.to_string())
}

fn finding(verdict: &Verdict, pass: f64) -> Finding {
    if pass <= verdict.score {
        return Finding { score: verdict.score, ..Finding::passed() };
    }
    let reason = verdict.reason.as_deref().filter(|reason| !reason.trim().is_empty());
    let refused = Finding::refused(reason.unwrap_or("does not pass the program's check"));
    Finding { score: verdict.score, ..refused }
}

/// The life of one program: questions one after the other.
async fn own(command: Command, mut wanted: mpsc::Receiver<Wanted>) {
    let mut process = None;
    while let Ok(Some(Wanted { line, reply })) = timeout(IDLE, wanted.recv()).await {
        if reply.is_closed() {
            continue;
        }
        let was_running = process.is_some();
        let mut verdict = ask(&mut process, &command, &line).await;
        if was_running && matches!(verdict, Err(Fault::Ended(_))) {
            info!(program = command.command[0], "A verifier's program has ended and is restarted.");
            verdict = ask(&mut process, &command, &line).await;
        }
        if reply.send(verdict.map_err(Fault::into_words)).is_err() {
            debug!("Nobody waits for a verifier's verdict any more.");
        }
    }
}

/// Why there is no verdict.
#[derive(Debug)]
enum Fault {
    /// It is not running any more: another one may do better.
    Ended(String),
    /// Another one would do the same.
    Wrong(String),
}

impl Fault {
    fn into_words(self) -> String {
        match self {
            Self::Ended(words) | Self::Wrong(words) => words,
        }
    }
}

/// Asks the process, which is started first where there is none. After a fault there is none.
async fn ask(
    process: &mut Option<Process>,
    command: &Command,
    line: &[u8],
) -> Result<Verdict, Fault> {
    let mut asked = match process.take() {
        Some(running) => running,
        None => Process::start(command).map_err(|error| {
            Fault::Wrong(format!("cannot be started: {error}; install it or correct its path"))
        })?,
    };
    let limit = Duration::from_secs_f64(command.timeout_s);
    let said = match timeout(limit, asked.exchange(line)).await {
        Ok(said) => said,
        Err(_) => Err(Fault::Wrong(format!(
            "said nothing for {} s; let it print one line for each line that it reads and flush \
             it, or raise `timeout_s`",
            command.timeout_s
        ))),
    };
    match said.and_then(|line| verdict(&line)) {
        Ok(verdict) => {
            *process = Some(asked);
            Ok(verdict)
        }
        Err(Fault::Ended(words)) => {
            let last = asked.last_words().await;
            Err(Fault::Ended(if last.is_empty() { words } else { format!("{words}: {last}") }))
        }
        Err(fault) => Err(fault),
    }
}

fn verdict(line: &[u8]) -> Result<Verdict, Fault> {
    let wanted = "; one line {\"score\": 0 to 1, \"reason\": TEXT} is needed";
    let shown: String = String::from_utf8_lossy(line).chars().take(80).collect();
    // An object: a list of one number could be read as one too.
    let object = serde_json::from_slice::<serde_json::Map<_, _>>(line);
    let verdict = object.and_then(|it| serde_json::from_value(serde_json::Value::Object(it)));
    let verdict: Verdict = verdict.map_err(|error| {
        Fault::Wrong(format!("says {shown:?}, which is no verdict ({error}){wanted}"))
    })?;
    if (0.0..=1.0).contains(&verdict.score) {
        return Ok(verdict);
    }
    Err(Fault::Wrong(format!("says {shown:?}, whose score is out of range{wanted}")))
}

/// A running program in a process group of its own, which ends when this is dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    group: Option<Pid>,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// The last of its standard error, when that has ended.
    errors: JoinHandle<Vec<u8>>,
}

impl Process {
    fn start(command: &Command) -> std::io::Result<Self> {
        let [program, arguments @ ..] = command.command.as_slice() else {
            return Err(std::io::ErrorKind::NotFound.into());
        };
        let mut child = tokio::process::Command::new(program)
            .args(arguments)
            .current_dir(&command.folder)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let pipe = "the pipe was asked for";
        let (input, output) = (child.stdin.take().expect(pipe), child.stdout.take().expect(pipe));
        let errors = tokio::spawn(last_of(child.stderr.take().expect(pipe)));
        Ok(Self { child, group, input, output: BufReader::new(output), errors })
    }

    /// One line in, one line out.
    async fn exchange(&mut self, line: &[u8]) -> Result<Vec<u8>, Fault> {
        // What it has said without being asked would be taken for the answer.
        match timeout(Duration::ZERO, self.output.fill_buf()).await {
            Ok(Ok([])) => return Err(ended()),
            Ok(Ok(_)) => {
                let words = "says a line that nobody asked for; one for each line that it reads, and \
                             nothing else on its standard output, is needed";
                return Err(Fault::Wrong(words.into()));
            }
            Ok(Err(error)) => return Err(Fault::Ended(format!("cannot be read: {error}"))),
            Err(_) => {}
        }
        let Self { input, output, .. } = self;
        let write = async {
            input.write_all(line).await?;
            input.flush().await
        };
        // Together, because a program may begin to answer before it has read everything. One that
        // has ended says so by its output.
        let (_, line) = tokio::join!(write, read_line(output));
        line
    }

    /// Why it has ended, in its own words and its exit status.
    async fn last_words(&mut self) -> String {
        let status = timeout(LAST_WORDS, self.child.wait()).await;
        let status = status.ok().and_then(Result::ok).map(|it| it.to_string());
        let errors = timeout(LAST_WORDS, &mut self.errors).await;
        let errors = errors.ok().and_then(Result::ok).unwrap_or_default();
        let errors = String::from_utf8_lossy(&errors);
        let last = errors.lines().rev().find(|line| !line.trim().is_empty());
        let words = [status.as_deref(), last].into_iter().flatten();
        words.collect::<Vec<_>>().join(", ")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // What it has started itself ends with it.
        if let Some(group) = self.group
            && let Err(error) = kill_process_group(group, Signal::KILL)
        {
            debug!(%error, "A verifier's program takes no signal.");
        }
    }
}

fn ended() -> Fault {
    Fault::Ended("has ended instead of giving a verdict".into())
}

async fn read_line(output: &mut BufReader<ChildStdout>) -> Result<Vec<u8>, Fault> {
    let mut line = Vec::new();
    let mut limited = output.take(LINE_BYTES as u64);
    match limited.read_until(b'\n', &mut line).await {
        Err(error) => Err(Fault::Ended(format!("cannot be read: {error}"))),
        Ok(_) if line.ends_with(b"\n") => Ok(line),
        Ok(LINE_BYTES) => Err(Fault::Wrong(format!("says a line of more than {LINE_BYTES} bytes"))),
        Ok(_) => Err(ended()),
    }
}

/// Reads all and keeps what came last.
async fn last_of(mut pipe: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut chunk = [0; 1024];
    while let Ok(n @ 1..) = pipe.read(&mut chunk).await {
        kept.extend_from_slice(chunk.get(..n).unwrap_or_default());
        let surplus = kept.len().saturating_sub(ERROR_BYTES);
        kept.drain(..surplus);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout_s: f64) -> Command {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).into();
        Command { command, pass: 1.0, timeout_s, folder: "/".into() }
    }

    const QUESTION: Question<'_> =
        Question { prompt: "two\nlines", answer: "a \"quoted\" $(answer)", reference: None };

    async fn fault(script: &str, timeout_s: f64) -> String {
        let error = Programs::default().ask(&shell(script, timeout_s), QUESTION).await;
        error.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn one_process_answers_line_by_line_as_long_as_it_lives() {
        let programs = Programs::default();
        let counts = shell(
            "n=0; while read -r line; do n=$((n + 1)); \
             echo \"{\\\"score\\\": 0.5, \\\"reason\\\": \\\"line $n\\\"}\"; done",
            30.0,
        );
        for n in 1..=3 {
            let finding = programs.ask(&counts, QUESTION).await.unwrap();
            assert_eq!(finding.reason, Some(format!("line {n}")));
            assert!(!finding.passes && (finding.score - 0.5).abs() < 1e-9);
        }
        let generous = Command { pass: 0.5, ..counts };
        let finding = programs.ask(&generous, QUESTION).await.unwrap();
        assert!(finding.passes && finding.reason.is_none());
    }

    #[tokio::test]
    async fn it_reads_one_line_of_json_that_no_shell_has_seen() {
        let script =
            "read -r line; printf '%s' \"$line\" | tr -d '\\n' > \"$0\"; echo '{\"score\":1}'";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seen");
        let mut command = shell(script, 30.0);
        command.command.push(path.to_string_lossy().into_owned());
        assert!(Programs::default().ask(&command, QUESTION).await.unwrap().passes);
        let seen: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(seen["answer"], QUESTION.answer);
        assert_eq!((&seen["prompt"], &seen["reference"]), (&"two\nlines".into(), &().into()));
    }

    #[tokio::test]
    async fn one_that_has_ended_is_restarted_and_asked_again() {
        let programs = Programs::default();
        let once = shell("read -r line; echo '{\"score\": 1}'", 30.0);
        for _ in 0..3 {
            assert!(programs.ask(&once, QUESTION).await.unwrap().passes);
        }
        let text = fault("echo no module >&2; exit 3", 30.0).await;
        assert!(text.contains("has ended instead of giving a verdict"), "{text}");
        assert!(text.contains("exit status: 3") && text.contains("no module"), "{text}");
    }

    #[tokio::test]
    async fn what_is_no_verdict_is_an_error_and_never_a_pass() {
        for (said, expected) in [
            ("ok", "no verdict"),
            ("{\"score\": 2}", "out of range"),
            ("{\"score\": -0.1}", "out of range"),
            ("{\"score\": \"1\"}", "no verdict"),
            ("{\"score\": 1, \"pass\": true}", "no verdict"),
            ("{\"score\": 1e999}", "no verdict"),
            ("", "no verdict"),
            ("[1]", "no verdict"),
        ] {
            let text = fault(&format!("read -r line; echo '{said}'; read -r line"), 30.0).await;
            assert!(text.contains(expected), "{said:?}: {text}");
        }
        let text =
            fault("read -r line; head -c 1000000 /dev/zero | tr '\\0' x; read -r line", 30.0).await;
        assert!(text.contains("more than 65536 bytes"), "{text}");
    }

    #[tokio::test]
    async fn lines_that_nobody_asked_for_are_not_taken_for_verdicts() {
        let programs = Programs::default();
        let talks =
            shell("while read -r line; do printf '{\"score\": 0}\\n{\"score\": 1}\\n'; done", 30.0);
        assert!(!programs.ask(&talks, QUESTION).await.unwrap().passes);
        let text = programs.ask(&talks, QUESTION).await.unwrap_err().to_string();
        assert!(text.contains("nobody asked for"), "{text}");
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let mut hangs = shell("sleep 1000 & echo $! > \"$0\"; wait", 2.0);
        hangs.command.push(path.to_string_lossy().into_owned());
        let error = Programs::default().ask(&hangs, QUESTION).await.unwrap_err().to_string();
        assert!(error.contains("said nothing for 2 s"), "{error}");
        let pid = std::fs::read_to_string(&path).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        // Killed, and gone as soon as its new parent has looked at it.
        let is_alive = || std::fs::read_to_string(&stat).is_ok_and(|it| !it.contains(") Z "));
        for _ in 0..500 {
            if !is_alive() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the program's own child is still running");
    }

    #[tokio::test]
    async fn one_that_does_not_exist_says_so() {
        let command = Command { command: vec!["/no/such".into()], ..shell("", 1.0) };
        let error = Programs::default().ask(&command, QUESTION).await.unwrap_err().to_string();
        assert!(error.contains("/no/such cannot be started"), "{error}");
    }
}
