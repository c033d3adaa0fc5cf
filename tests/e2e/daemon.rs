//! `reflectd serve` as a child process. It says that it is ready as it says it to systemd, so that
//! no test guesses how long a start takes.

use std::fs::{self, File};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use hyper::{Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::scratch::Scratch;
use testkit::client::{Answer, Reply, request, send};

/// Longer than any step takes on a busy machine, so that a daemon that hangs fails its test and
/// does not block the suite.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    /// What it tells systemd.
    notices: UnixDatagram,
    scratch: Scratch,
}

impl Daemon {
    /// Starts it and waits until it answers.
    pub(crate) async fn start(scratch: Scratch) -> Self {
        Self::start_program(Path::new(env!("CARGO_BIN_EXE_reflectd")), scratch).await
    }

    /// The same of a copy of the program.
    pub(crate) async fn start_program(program: &Path, scratch: Scratch) -> Self {
        let notify = scratch.root().join("notify.sock");
        // From the daemon before this one on the same folder.
        drop(fs::remove_file(&notify));
        let notices = UnixDatagram::bind(&notify).unwrap();
        let log = File::create(scratch.log()).unwrap();
        let mut command = Command::new(program);
        for name in testkit::SETTINGS {
            command.env_remove(name);
        }
        let child = command
            .arg("serve")
            .arg("--root")
            .arg(scratch.root())
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut daemon = Self { child, notices, scratch };
        daemon.told("READY=1").await;
        daemon
    }

    /// Waits for a notification to systemd.
    pub(crate) async fn told(&mut self, word: &str) {
        let words = async {
            let mut buffer = [0; 4096];
            loop {
                let length = self.notices.recv(&mut buffer).await.unwrap();
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if text.lines().any(|line| line == word) {
                    return;
                }
            }
        };
        tokio::select! {
            () = words => {}
            status = self.child.wait() => panic!("the daemon ended with {status:?}"),
            () = tokio::time::sleep(PATIENCE) => panic!("the daemon does not say {word}"),
        }
    }

    pub(crate) fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    pub(crate) fn pid(&self) -> Pid {
        let id = self.child.id().expect("nobody has waited for it yet");
        Pid::from_raw(id.cast_signed()).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// `kill -9`.
    pub(crate) async fn kill(self) -> Scratch {
        self.signal(Signal::KILL);
        self.ended().await.1
    }

    /// Drains it and sees it end well.
    pub(crate) async fn stop(self) -> Scratch {
        self.signal(Signal::TERM);
        let (status, scratch) = self.ended().await;
        assert!(status.success(), "the daemon ended with {status}");
        scratch
    }

    /// Waits for an end that was asked for.
    pub(crate) async fn ended(mut self) -> (ExitStatus, Scratch) {
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it does not end").unwrap();
        (status, self.scratch)
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.ask(Method::GET, path, String::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Value {
        self.ask(Method::POST, path, body.to_string()).await
    }

    async fn ask(&self, method: Method, path: &str, body: String) -> Value {
        let request = request(method, path, body);
        let reply = async { send(&self.scratch.socket(), request).await.unwrap().whole().await };
        let reply: Reply = timeout(PATIENCE, reply).await.expect("no answer comes");
        assert_eq!(reply.status, StatusCode::OK, "{path}: {}", reply.json());
        reply.json()
    }

    /// Asks for a long operation and follows it until an event fits. The operation goes on.
    pub(crate) async fn follow_until(
        &self,
        path: &str,
        mut body: Value,
        fits: impl Fn(&Value) -> bool,
    ) -> (Value, Answer) {
        body["stream"] = true.into();
        let request = request(Method::POST, path, body.to_string());
        let mut answer = send(&self.scratch.socket(), request).await.unwrap();
        let look = async {
            loop {
                let data = answer.event().await.expect("the stream ends before it happens");
                let event = serde_json::from_str(&data).unwrap_or_else(|_| panic!("{data}"));
                if fits(&event) {
                    return event;
                }
            }
        };
        let event = timeout(PATIENCE, look).await.expect("nothing of that kind happens");
        (event, answer)
    }
}
