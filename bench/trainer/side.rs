//! One side of the comparison as a child process: a line to its standard input, its lines back, and
//! how much memory it had at most. Used by `main`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

/// Between two looks at the memory.
const LOOK: Duration = Duration::from_millis(20);

/// What a run was seen to do.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Its lines that are JSON, with the seconds after its start.
    pub(crate) lines: Vec<(f64, Value)>,
    /// Most resident memory, or on a GPU most memory in use there beyond what was in use before.
    pub(crate) peak_bytes: u64,
}

impl Seen {
    /// The first line that has a key, or a value for the key `event`.
    pub(crate) fn line(&self, word: &str) -> Option<(f64, &Value)> {
        let is_it = |line: &Value| line["event"] == word || !line[word].is_null();
        self.lines.iter().find(|(_, line)| is_it(line)).map(|(at, line)| (*at, line))
    }
}

/// Runs a command to its end.
pub(crate) fn run(mut command: Command, input: &str, on_gpu: bool) -> anyhow::Result<Seen> {
    let before = if on_gpu { gpu_bytes()? } else { 0 };
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let mut stdin = child.stdin.take().context("standard input was asked for")?;
    writeln!(stdin, "{input}").context("write the setting")?;
    let stdout = BufReader::new(child.stdout.take().context("standard output was asked for")?);
    let mut stderr = child.stderr.take().context("standard error was asked for")?;
    let (has_ended, id) = (AtomicBool::new(false), child.id());
    let (lines, peak_bytes, words) = std::thread::scope(|scope| {
        let words = scope.spawn(move || {
            let mut words = String::new();
            stderr.read_to_string(&mut words).map(|_| words)
        });
        let peak = scope.spawn(|| watch_memory(id, on_gpu, &has_ended));
        let mut lines = Vec::new();
        for line in stdout.lines() {
            if let Ok(value) = serde_json::from_str(&line.context("read a line")?) {
                lines.push((began.elapsed().as_secs_f64(), value));
            }
        }
        has_ended.store(true, Ordering::Relaxed);
        let words = words.join().expect("reading does not panic").unwrap_or_default();
        anyhow::Ok((lines, peak.join().expect("looking does not panic"), words))
    })?;
    // Only now: its end tells our trainer that nobody waits for it.
    drop(stdin);
    ended_well(&mut child, &words)?;
    Ok(Seen { lines, peak_bytes: peak_bytes.saturating_sub(before) })
}

fn ended_well(child: &mut Child, words: &str) -> anyhow::Result<()> {
    let status = child.wait().context("wait for the end")?;
    let from = words.len().saturating_sub(4000);
    ensure!(status.success(), "{status}:\n{}", words.get(from..).unwrap_or(words));
    Ok(())
}

fn watch_memory(id: u32, on_gpu: bool, has_ended: &AtomicBool) -> u64 {
    let mut most = 0;
    while !has_ended.load(Ordering::Relaxed) {
        let now = if on_gpu { gpu_bytes().unwrap_or(0) } else { most_resident(id) };
        most = most.max(now);
        std::thread::sleep(LOOK);
    }
    most
}

/// What the kernel says was resident at most so far.
fn most_resident(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}

fn gpu_bytes() -> anyhow::Result<u64> {
    let query = ["--query-gpu=memory.used", "--format=csv,noheader,nounits"];
    let output = Command::new("nvidia-smi").args(query).output().context("ask nvidia-smi")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mib: u64 = text.lines().next().unwrap_or_default().trim().parse().context("nvidia-smi")?;
    Ok(mib << 20)
}

/// The program for the other side's script.
pub(crate) fn python(script: &Path, python: &Path) -> Command {
    let mut command = Command::new(python);
    command.arg(script).env("HF_HUB_OFFLINE", "1").env("TOKENIZERS_PARALLELISM", "false");
    command
}
