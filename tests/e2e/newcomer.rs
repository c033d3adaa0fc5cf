//! A user who runs `reflectd init`: what a newcomer has, types and reads.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use tempfile::TempDir;
use tokio::process::Command;

use crate::scratch::Scratch;
use testkit::skipped;

/// The exit code of a sample that cannot be fetched here and now.
pub(crate) const TRY_AGAIN: i32 = 75;

/// A user of this machine who has nothing: an empty home, which is also the current folder.
pub(crate) struct Newcomer {
    home: TempDir,
    variables: Vec<(&'static str, OsString)>,
}

impl Newcomer {
    pub(crate) fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), variables: Vec::new() }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // Where models are looked for.
        let caches = ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"];
        for name in testkit::SETTINGS.into_iter().chain(caches) {
            command.env_remove(name);
        }
        command.env("HOME", self.home()).current_dir(self.home()).stdin(Stdio::null());
        // Ignores an Ollama service of this machine.
        command.env("OLLAMA_MODELS", self.home().join(".ollama/models"));
        for (name, value) in &self.variables {
            command.env(name, value);
        }
        command
    }

    pub(crate) async fn init(&self, arguments: &[&str]) -> Said {
        let mut command = self.command(env!("CARGO_BIN_EXE_reflectd"));
        Said::of(command.arg("init").args(arguments).output().await.unwrap())
    }

    /// Types a command line.
    pub(crate) async fn types(&self, line: &str) -> Said {
        Said::of(self.command("sh").args(["-c", line]).output().await.unwrap())
    }
}

/// What a program has said and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// The commands below "Next:".
    pub(crate) fn next(&self) -> [&str; 3] {
        let (_, next) = self.out.split_once("\nNext:\n").unwrap_or_else(|| panic!("{self:?}"));
        let lines: Vec<&str> = next.lines().take(3).map(str::trim).collect();
        lines.try_into().unwrap_or_else(|lines| panic!("{lines:?}"))
    }
}

/// Files and folders below a folder.
pub(crate) fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    let folders = found.clone().into_iter().filter(|path| path.is_dir());
    found.extend(folders.collect::<Vec<_>>().iter().flat_map(|folder| below(folder)));
    found
}

/// `init --sample` into an empty folder, and what it says. The model comes from the cache of the user who
/// runs the tests, so that it is downloaded once; `None`: it is not to be had here, which is said.
pub(crate) async fn with_sample() -> (Newcomer, Scratch, Option<Said>) {
    let mut newcomer = Newcomer::new();
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(Path::new(&variable("HOME")?).join(".cache")));
    if let Some(cache) = cache {
        newcomer = newcomer.with("XDG_CACHE_HOME", cache);
    }
    let scratch = Scratch::empty();
    let root = scratch.root().to_str().unwrap().to_owned();
    let said = newcomer.init(&["--sample", "--yes", "--json", "--root", &root]).await;
    if said.code == Some(TRY_AGAIN) {
        skipped(said.err.trim());
        assert_eq!(below(scratch.root()), Vec::<PathBuf>::new(), "nothing is half written");
        return (newcomer, scratch, None);
    }
    assert_eq!(said.code, Some(0), "{said:?}");
    (newcomer, scratch, Some(said))
}
