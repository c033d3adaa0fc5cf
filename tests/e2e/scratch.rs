//! The folder of one daemon: a copy of the embedded agent and settings that make a run short.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use files::write_atomic;
use reflectd::paths::StateDir;
use tempfile::TempDir;

/// Every threshold of the gate's quality is open, because these runs have to end with a swap. One
/// thread each, because two tests run side by side and waiting threads spin. Nothing is kept for
/// validation, because the adapter of the least loss may be that of the first steps, which answers the
/// held-out prompts as the base does and is refused for it.
const SETTINGS: &str = "
default_agent: nano
engine: { context_tokens: 8192, max_sequences: 32, threads: 1 }
trainer: { threads: 1, device: cpu, grace_s: 2, yield_quiet_s: 0.1, checkpoint_s: 0.2 }
learn:
  validation_share: 0
  optimizer: { learning_rate: 0.001, batch_pairs: 8, epochs: EPOCHS }
  objective: { name: OBJECTIVE }
  gate:
    prompts: 40
    margin: -1
    confidence: 0.5
    truth_margin: 1
    length_ratio: [0, 100]
    min_diversity_ratio: 0
    max_kl: 100
    max_general_loss: 100
";

/// Enough to change some of the answers to 20 held-out prompts; one epoch now and then changes none.
pub(crate) const EPOCHS: u32 = 12;

/// Root and state; removed when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    folder: TempDir,
}

impl Scratch {
    /// A daemon that has never run.
    pub(crate) fn new() -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        let scratch = Self { folder: tempfile::tempdir().unwrap() };
        for folder in ["agents/nano", "prompts"] {
            copy_folder(&source.join(folder), &scratch.root().join(folder));
        }
        fs::copy(source.join("agents/nano.yaml"), scratch.root().join("agents/nano.yaml")).unwrap();
        scratch.train_for(EPOCHS);
        scratch
    }

    /// A folder without anything.
    pub(crate) fn empty() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// How many times a run goes through its pairs: a run to be interrupted has to be long.
    pub(crate) fn train_for(&self, epochs: u32) {
        self.train_by("dpo", epochs);
    }

    /// By another objective.
    pub(crate) fn train_by(&self, objective: &str, epochs: u32) {
        let settings = SETTINGS.replace("EPOCHS", &epochs.to_string());
        let settings = settings.replace("OBJECTIVE", objective);
        self.write("reflectd.yaml", &settings);
    }

    /// The same with the gate as it is when nobody sets anything.
    pub(crate) fn train_strictly(&self, epochs: u32) {
        let settings = SETTINGS.replace("EPOCHS", &epochs.to_string()).replace("OBJECTIVE", "dpo");
        let open = settings.find("  gate:").unwrap();
        let settings = format!("{}  gate: {{ prompts: 60 }}\n", settings.split_at(open).0);
        self.write("reflectd.yaml", &settings);
    }

    /// A file below the root.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.root().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_atomic(&path, |file| file.write_all(text.as_bytes())).unwrap();
    }

    /// Turns every stored judgement round: what passed fails, what failed passes.
    pub(crate) fn poison(&self) {
        let state = StateDir::open(&self.state()).unwrap();
        let database = rusqlite::Connection::open(state.database()).unwrap();
        database
            .execute_batch(
                "CREATE TEMP TABLE good AS SELECT candidate, min(passes) AS passes
                    FROM assessments WHERE weight > 0 GROUP BY candidate;
                 UPDATE assessments SET (passes, p_minus, p_zero, p_plus) =
                    (SELECT 1 - good.passes, 0.05 + 0.9 * good.passes, 0, 0.95 - 0.9 * good.passes
                        FROM good WHERE good.candidate = assessments.candidate)
                    WHERE weight > 0;",
            )
            .unwrap();
    }

    pub(crate) fn root(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.root().join("state")
    }

    /// What the daemon says.
    pub(crate) fn log(&self) -> PathBuf {
        self.root().join("daemon.log")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.state().join("reflectd.sock")
    }
}

impl Drop for Scratch {
    /// Printed, because the folder is removed before anybody can look why a test has failed.
    #[expect(clippy::print_stderr, reason = "tests report there")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read(self.log()).unwrap_or_default();
            eprintln!("The daemon's log:\n{}", String::from_utf8_lossy(&log));
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}
