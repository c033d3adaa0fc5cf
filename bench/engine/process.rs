//! A server as a child process: its start to the first healthy reply, its memory by what it is for,
//! its end. Used by `daemon` and `peer`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tokio::process::{Child, Command};
use tokio::time::sleep;

use crate::http::Endpoint;

/// A server that is not ready then never will be.
const START: Duration = Duration::from_mins(1);
/// Between two looks; bounds how exactly the start is measured.
const LOOK: Duration = Duration::from_millis(1);

/// A running server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    log: PathBuf,
    /// From the start of the process to the first healthy reply.
    pub(crate) start_to_ready: Duration,
}

/// Resident memory in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Resident {
    pub(crate) total: u64,
    /// Pages of the model file.
    pub(crate) model: u64,
}

impl Server {
    pub(crate) async fn start(
        mut command: Command,
        endpoint: &Endpoint,
        log: PathBuf,
    ) -> anyhow::Result<Self> {
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let began = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("share the log")?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let mut server = Self { child, log, start_to_ready: Duration::ZERO };
        while endpoint.get("/health").await.is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("{command:?} ended with {status}:\n{}", server.last_words());
            }
            ensure!(began.elapsed() < START, "no start:\n{}", server.last_words());
            sleep(LOOK).await;
        }
        server.start_to_ready = began.elapsed();
        Ok(server)
    }

    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("end a server")
    }

    /// What `/proc` says of the process, with the pages that map `model` apart.
    pub(crate) fn resident(&self, model: &Path) -> anyhow::Result<Resident> {
        let id = self.child.id().context("the server has ended")?;
        resident(&format!("/proc/{id}/smaps"), model)
    }

    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// The resident memory of this process.
pub(crate) fn own_resident(model: &Path) -> anyhow::Result<Resident> {
    resident("/proc/self/smaps", model)
}

fn resident(smaps: &str, model: &Path) -> anyhow::Result<Resident> {
    let text = fs::read_to_string(smaps).with_context(|| format!("read {smaps}"))?;
    Ok(sum(&text, &model.to_string_lossy()))
}

/// Adds up the mappings of a `smaps` file.
pub(crate) fn sum(smaps: &str, model: &str) -> Resident {
    let mut sum = Resident::default();
    let mut is_model = false;
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some(rest) = line.strip_prefix("Rss:") {
            let kilobytes = rest.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
            let bytes = kilobytes.unwrap_or(0) * 1024;
            sum.total += bytes;
            sum.model += if is_model { bytes } else { 0 };
        } else if first.contains('-') && !first.ends_with(':') {
            is_model = line.ends_with(model);
        }
    }
    sum
}
