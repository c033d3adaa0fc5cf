//! A real daemon in this process, on a folder of its own, with a scripted model. The socket is the
//! interface.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use protocol::exit::Exit;
use reflectd::daemon::{self, Control, Daemon, EngineSource, Options, StartError};
use reflectd::socket_path::SocketPath;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::client::{self, Answer, Reply};
use testkit::fake::{Fake, Script};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Only a daemon that is broken takes this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A running daemon.
pub(crate) struct TestDaemon {
    folder: TempDir,
    pub(crate) control: mpsc::Sender<Control>,
    running: JoinHandle<Exit>,
}

/// The YAML that a test starts from; `reflectd.yaml` is the text given.
fn lay_out(root: &Path, settings: &str) {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::create_dir_all(root.join("agents")).unwrap();
    fs::create_dir_all(root.join("prompts/aspects")).unwrap();
    for file in ["reflect.yaml", "aspects/completeness.yaml", "aspects/readability.yaml"] {
        fs::copy(repository.join("prompts").join(file), root.join("prompts").join(file)).unwrap();
    }
    write(&root.join("model.gguf"), "not read: the model is scripted");
    write(&root.join("reflectd.yaml"), settings);
    write(&root.join("agents/test.yaml"), AGENT);
}

/// The agent of all tests.
pub(crate) const AGENT: &str = "\
description: For tests
model: model.gguf
aspects: [completeness, readability]
sampling: { temperature: 1.0, max_tokens: 16 }
reflection: { mode: off, drafts: 2, refinements: 1, rounds: 1 }
";

pub(crate) fn write(path: &Path, text: &str) {
    files::write_atomic(path, |file| std::io::Write::write_all(file, text.as_bytes())).unwrap();
}

impl TestDaemon {
    /// With default settings.
    pub(crate) async fn start(script: Script) -> Self {
        Self::start_with(script, "").await
    }

    /// With these settings.
    pub(crate) async fn start_with(script: Script, settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        lay_out(folder.path(), settings);
        Self::on(folder, script).await
    }

    async fn on(folder: TempDir, script: Script) -> Self {
        let daemon = start(folder.path(), script).await.unwrap();
        let control = daemon.control();
        Self { folder, control, running: tokio::spawn(daemon.run()) }
    }

    pub(crate) fn root(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("state/reflectd.sock")
    }

    /// Another daemon on the same folders.
    pub(crate) async fn start_second(&self, script: Script) -> Result<Daemon, StartError> {
        start(self.folder.path(), script).await
    }

    pub(crate) async fn tell(&self, control: Control) {
        self.control.send(control).await.unwrap();
    }

    /// Waits for the end.
    pub(crate) async fn ended(self) -> Exit {
        tokio::time::timeout(PATIENCE, self.running).await.expect("the daemon hangs").unwrap()
    }

    /// Drains; the folders stay.
    pub(crate) async fn drained(self) -> TempDir {
        self.tell(Control::Drain).await;
        let ended = tokio::time::timeout(PATIENCE, self.running).await;
        assert_eq!(ended.expect("the daemon hangs").unwrap(), Exit::Ok);
        self.folder
    }

    /// Drains, and starts again on the same folders.
    pub(crate) async fn restart(self, script: Script) -> Self {
        Self::on(self.drained().await, script).await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: impl Into<hyper::body::Bytes>,
    ) -> Answer {
        client::send(&self.socket(), client::request(method, path, body)).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, "").await.whole().await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(Method::POST, path, body.to_string()).await.whole().await
    }

    pub(crate) async fn chat(&self, fields: Value) -> Reply {
        self.post("/v1/chat/completions", &chat(fields)).await
    }

    pub(crate) async fn chat_stream(&self, fields: Value) -> Answer {
        let mut body = chat(fields);
        body["stream"] = json!(true);
        self.send(Method::POST, "/v1/chat/completions", body.to_string()).await
    }

    /// Asks until the answer is so. For what happens after a reply, like a reload.
    pub(crate) async fn until(&self, path: &str, mut is_so: impl FnMut(&Value) -> bool) -> Value {
        let asked = async {
            loop {
                let value = self.get(path).await.json();
                if is_so(&value) {
                    return value;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.expect("it never became so")
    }
}

/// A daemon on these folders.
pub(crate) async fn start(root: &Path, script: Script) -> Result<Daemon, StartError> {
    daemon::start(Options {
        root: root.to_owned(),
        state: root.join("state"),
        socket: SocketPath::default(),
        engine: EngineSource::Custom(Box::new(move |step_lock, queue| {
            let script = script.clone();
            Box::pin(engine::spawn_on(step_lock, queue, || Ok(Fake::new(script))))
        })),
    })
    .await
}

/// A chat with one user turn and these fields.
pub(crate) fn chat(fields: Value) -> Value {
    let mut body = json!({"model": "test", "messages": [{"role": "user", "content": "Hello"}]});
    let (Value::Object(all), Value::Object(fields)) = (&mut body, fields) else {
        panic!("fields are an object");
    };
    all.extend(fields);
    body
}
