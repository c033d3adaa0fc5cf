//! Our side: the real program, `reflectd serve`, on a root folder of its own with one agent. Used by
//! the workloads that speak HTTP.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use config::{self, Config};
use files::write_atomic;
use tempfile::TempDir;
use tokio::process::Command;

use crate::http::Endpoint;
use crate::process::Server;
use crate::setting::{ANSWER, BATCH, CELLS, SEQUENCES, Setting};

/// The aspects that every answer is judged by.
const ASPECTS: [&str; 6] = [
    "completeness",
    "comprehension",
    "factuality",
    "insightfulness",
    "logical_correctness",
    "readability",
];

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) server: Server,
    pub(crate) endpoint: Endpoint,
    root: TempDir,
}

impl Daemon {
    pub(crate) async fn start(setting: &Setting) -> anyhow::Result<Self> {
        Self::start_in(write_root(setting)?).await
    }

    /// Ends it and starts it again on the same root, where the model file is known by then.
    pub(crate) async fn restart(self) -> anyhow::Result<Self> {
        self.server.stop().await?;
        Self::start_in(self.root).await
    }

    async fn start_in(root: TempDir) -> anyhow::Result<Self> {
        let socket = root.path().join("socket");
        let endpoint = Endpoint::Socket(socket.clone());
        let mut command = Command::new(env!("CARGO_BIN_EXE_reflectd"));
        command
            .arg("serve")
            .args(["--root".as_ref(), root.path().as_os_str()])
            .args(["--state".as_ref(), root.path().join("state").as_os_str()])
            .args(["--socket".as_ref(), socket.as_os_str()]);
        let server = Server::start(command, &endpoint, root.path().join("log")).await?;
        Ok(Self { server, endpoint, root })
    }
}

/// The configuration that the daemon runs with, for those who render the same prompts elsewhere.
pub(crate) fn config(setting: &Setting) -> anyhow::Result<Config> {
    Ok(config::load(write_root(setting)?.path())?)
}

/// A pass mark of 1 is never reached, so that the whole budget of reflection is spent.
fn write_root(setting: &Setting) -> anyhow::Result<TempDir> {
    let root = tempfile::tempdir().context("make a folder for the daemon")?;
    let aspects = ASPECTS.map(|name| format!("  - {{ name: {name}, pass: 1.0 }}")).join("\n");
    let flash_attention = serde_json::to_string(&setting.flash_attention)?;
    let settings = format!(
        "engine:\n  context_tokens: {CELLS}\n  max_sequences: {SEQUENCES}\n  batch_tokens: {BATCH}\n  \
         threads: {}\n  gpu_layers: 0\n  flash_attention: {flash_attention}\nserver:\n  max_requests: 64\n",
        setting.threads
    );
    let agent = format!(
        "model: {}\naspects:\n{aspects}\nsampling: {{ temperature: 1.0, max_tokens: {ANSWER} }}\n\
         reflection:\n  mode: inline\n  drafts: 8\n  refinements: 4\n  rounds: 1\n  \
         critique_tokens: {ANSWER}\n  latency_s: 3600\n  tokens: 100000\nlearn: false\n",
        setting.model.display()
    );
    write(&root.path().join("reflectd.yaml"), &settings)?;
    write(&root.path().join("agents/bench.yaml"), &agent)?;
    for file in prompt_files() {
        let text = read(&file)?;
        let below = file.strip_prefix(env!("CARGO_MANIFEST_DIR")).context("a prompt file")?;
        write(&root.path().join(below), &text)?;
    }
    Ok(root)
}

/// The templates and aspects of the repository.
fn prompt_files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts");
    let mut files = vec![folder.join("reflect.yaml")];
    files.extend(ASPECTS.map(|name| folder.join("aspects").join(format!("{name}.yaml"))));
    files
}

/// Their words, which the benchmark's vocabulary knows.
pub(crate) fn prompt_texts() -> anyhow::Result<Vec<String>> {
    prompt_files().iter().map(|file| read(file)).collect()
}

fn read(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().context("a file lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    write_atomic(path, |file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}
