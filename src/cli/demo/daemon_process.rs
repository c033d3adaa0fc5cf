//! The demo's daemon: this same program as `serve`, a child process. Apart from `learn::child` the
//! only starter of a process, because the demo has to show the daemon as users run it, from
//! outside. Used by `demo`.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::scratch::Scratch;
use crate::cli::client::Client;

/// Loading the embedded model takes about a second; a slow disk may need more.
const START: Duration = Duration::from_mins(1);
/// Between two looks at a daemon that starts.
const LOOK: Duration = Duration::from_millis(50);
/// For a drain; nothing runs any more when the demo ends.
const STOP: Duration = Duration::from_secs(30);

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub(super) struct DaemonProcess {
    child: Child,
    log: PathBuf,
    client: Client,
}

impl DaemonProcess {
    /// Starts the daemon and waits until it answers.
    pub(super) async fn start(scratch: &Scratch) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let log_path = scratch.log();
        let log =
            File::create(&log_path).with_context(|| format!("create {}", log_path.display()))?;
        let socket = scratch.state().join("reflectd.sock");
        let child = Command::new(&program)
            .arg("serve")
            .args(["--root".as_ref(), scratch.root().as_os_str()])
            .args(["--state".as_ref(), scratch.state().as_os_str()])
            .args(["--socket".as_ref(), socket.as_os_str()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            // Ctrl-C must reach the demo alone, which then ends the daemon.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let mut daemon = Self { child, log: log_path, client: Client::new(vec![socket]) };
        daemon.wait_until_ready().await?;
        Ok(daemon)
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        while self.client.get::<Value>("/health").await.is_err() {
            if let Some(status) = self.child.try_wait().context("look after the daemon")? {
                bail!("the daemon ended with {status}:\n{}", self.last_words());
            }
            ensure!(Instant::now() < deadline, "the daemon does not start:\n{}", self.last_words());
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Drains and ends it. A daemon that ends in another way than asked is an error.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let Some(pid) = pid else { bail!("the daemon had ended:\n{}", self.last_words()) };
        kill_process(pid, Signal::TERM).context("ask the daemon to end")?;
        let status = timeout(STOP, self.child.wait())
            .await
            .with_context(|| format!("the daemon does not end:\n{}", self.last_words()))?
            .context("wait for the daemon")?;
        ensure!(status.success(), "the daemon ended with {status}:\n{}", self.last_words());
        Ok(())
    }

    /// The end of its log, because a scratch folder is gone when somebody wants to look.
    pub(super) fn last_words(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}
