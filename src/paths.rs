//! Where files of the daemon lie. Nothing else joins path names below `state/`.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// The folder of everything that the daemon writes.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// Creates the folder and its parts (mode 0700) when missing.
    pub fn open(root: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        for folder in [root.to_owned(), root.join("adapters"), root.join("runs")] {
            builder.create(folder)?;
        }
        // Absolute, because the trainer runs in a folder of its own.
        Ok(Self { root: fs::canonicalize(root)? })
    }
    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// The database.
    pub fn database(&self) -> PathBuf {
        self.root.join("reflectd.db")
    }
    /// Held with `flock` while a daemon owns this folder.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }
    /// A small file for every model and adapter that was tried and was good.
    pub fn probes(&self) -> PathBuf {
        self.root.join("probes")
    }
    /// Folders of the training runs.
    pub fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }
    /// Files of one training run.
    pub fn run(&self, run: &str) -> PathBuf {
        self.runs().join(run)
    }
    /// Log-probs of reference policies, a file a policy.
    pub fn references(&self) -> PathBuf {
        self.root.join("references")
    }
    /// The base's answers to general prompts, a file a model and set of prompts.
    pub fn general(&self) -> PathBuf {
        self.root.join("general")
    }
    /// The adapter of a promoted generation.
    pub fn adapter(&self, generation: u32) -> PathBuf {
        self.root.join("adapters").join(generation.to_string()).join("adapter.gguf")
    }
}
