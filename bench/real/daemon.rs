//! The real program, `reflectd serve`, as a child process, and its socket as users see it. Used by `night`,
//! `measure` and `unit`.

use std::fs::{self, File};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use hyper::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::client::{Answer, request, send};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::root::Root;
use crate::setting::Setting;

/// A model that was never tried is tried first; the machine may be busy.
const START: Duration = Duration::from_mins(5);
/// A run that is under way is written down first.
const STOP: Duration = Duration::from_mins(2);
/// Between two looks at a daemon that starts.
const LOOK: Duration = Duration::from_millis(50);

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    root: Root,
}

impl Daemon {
    /// Starts it on a folder that is written, and waits until it answers.
    pub(crate) async fn start(setting: &Setting, root: &Root) -> anyhow::Result<Self> {
        let log = root.log();
        let log = File::options().create(true).append(true).open(&log);
        let log = log.with_context(|| format!("open {}", root.log().display()))?;
        let mut command = Command::new(&setting.program);
        for name in testkit::SETTINGS {
            command.env_remove(name);
        }
        let child = command
            .arg("serve")
            .args(["--root".as_ref(), root.folder().as_os_str()])
            .args(["--state".as_ref(), root.state().as_os_str()])
            .args(["--socket".as_ref(), root.socket().as_os_str()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", setting.program.display()))?;
        let mut daemon = Self { child, root: root.clone() };
        let began = Instant::now();
        while UnixStream::connect(root.socket()).await.is_err()
            || daemon.get("/health").await.is_err()
        {
            if let Some(status) = daemon.child.try_wait()? {
                bail!("the daemon ended with {status}:\n{}", daemon.last_words());
            }
            ensure!(began.elapsed() < START, "no start:\n{}", daemon.last_words());
            sleep(LOOK).await;
        }
        Ok(daemon)
    }

    /// Drains it.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let id = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let id = id.with_context(|| format!("the daemon had ended:\n{}", self.last_words()))?;
        kill_process(id, Signal::TERM).context("ask the daemon to end")?;
        let status =
            timeout(STOP, self.child.wait()).await.context("the daemon does not end")??;
        ensure!(status.success(), "the daemon ended with {status}:\n{}", self.last_words());
        Ok(())
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(Method::GET, path, String::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.ask(Method::POST, path, body.to_string()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(Method::DELETE, path, String::new()).await
    }

    async fn ask(&self, method: Method, path: &str, body: String) -> anyhow::Result<Value> {
        let reply = send(&self.root.socket(), request(method, path, body)).await?.whole().await;
        let json = reply.json();
        ensure!(reply.status.is_success(), "{path}: {}", json["error"]["message"]);
        Ok(json)
    }

    /// A long operation as it goes on; the last event has an `outcome`.
    pub(crate) async fn follow(&self, path: &str, mut body: Value) -> anyhow::Result<Answer> {
        body["stream"] = true.into();
        let request = request(Method::POST, path, body.to_string());
        let answer = send(&self.root.socket(), request).await?;
        if !answer.status().is_success() {
            bail!("{path}: {}", answer.whole().await.json()["error"]["message"]);
        }
        Ok(answer)
    }

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        let text = fs::read(self.root.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}
