//! The folder in which a demo runs: a copy of the embedded agent, or an agent of the demo's own, and a
//! fresh state. The held-out problems that the demo measures with are taken out of what the daemon's own
//! gate may ask, so that no promotion was chosen by the numbers in the table. Used by `demo`.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use config::PromptLine;
use config::prompt_file;
use files::write_atomic;

/// What is copied from the root folder.
const FILES: [&str; 2] = ["reflectd.yaml", "agents/nano.yaml"];
const FOLDERS: [&str; 2] = ["agents/nano", "prompts"];
const HELD_OUT: &str = "agents/nano/held-out.jsonl";

/// The folder; removed when dropped, unless the owner has chosen it.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: PathBuf,
    is_temporary: bool,
}

impl Scratch {
    /// Copies the agent, and takes `n_measured` held-out problems (half of the file at most) aside.
    pub(super) fn create(
        root: &Path,
        folder: Option<&Path>,
        n_measured: usize,
    ) -> anyhow::Result<(Self, Vec<PromptLine>)> {
        ensure!(
            root.join(FILES[1]).is_file(),
            "no {} in {}: pass --root with the folder of reflectd.yaml",
            FILES[1],
            root.display()
        );
        let scratch = Self::empty(folder)?;
        for file in FILES {
            copy_file(&root.join(file), &scratch.folder.join(file))?;
        }
        for folder in FOLDERS {
            scratch.copy(root, folder)?;
        }
        let mut gate = prompt_file::read(&scratch.folder.join(HELD_OUT))?;
        let measured = gate.split_off(gate.len() - n_measured.min(gate.len() / 2));
        scratch.write(HELD_OUT, &prompt_file::render(&gate))?;
        Ok((scratch, measured))
    }

    /// A folder without anything.
    pub(super) fn empty(folder: Option<&Path>) -> anyhow::Result<Self> {
        let scratch = Self {
            folder: folder.map_or_else(
                || std::env::temp_dir().join(format!("reflectd-demo-{}", std::process::id())),
                Path::to_owned,
            ),
            is_temporary: folder.is_none(),
        };
        fs::create_dir(&scratch.folder).with_context(|| {
            format!("create {}: the demo wants a folder of its own", scratch.folder.display())
        })?;
        Ok(scratch)
    }

    /// Copies a folder of the root.
    pub(super) fn copy(&self, root: &Path, folder: &str) -> anyhow::Result<()> {
        copy_folder(&root.join(folder), &self.folder.join(folder))
    }

    /// Writes a file, with its folders.
    pub(super) fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        write_atomic(&path, |file| file.write_all(text.as_bytes()))
            .with_context(|| format!("write {}", path.display()))
    }

    /// The configuration.
    pub(super) fn root(&self) -> &Path {
        &self.folder
    }

    /// What the daemon writes.
    pub(super) fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// What the daemon prints.
    pub(super) fn log(&self) -> PathBuf {
        self.folder.join("daemon.log")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.is_temporary {
            // A failure to remove it is ignored: the folder is small and lies where the system
            // cleans up.
            drop(fs::remove_dir_all(&self.folder));
        }
    }
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(from).with_context(|| format!("read {}", from.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", from.display()))?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().with_context(|| format!("look at {}", from.display()))?.is_dir() {
            copy_folder(&from, &to)?;
        } else {
            copy_file(&from, &to)?;
        }
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    fs::copy(from, to)
        .with_context(|| format!("copy {} to {}", from.display(), to.display()))
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_atomic(path, |file| file.write_all(text.as_bytes())).unwrap();
    }

    fn root(n_held_out: usize) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in
            ["reflectd.yaml", "agents/nano.yaml", "agents/other.yaml", "prompts/aspects/a.yaml"]
        {
            write(&root.path().join(file), file);
        }
        let prompt = |i: usize| PromptLine::new(i.to_string(), format!("problem {i}"));
        let prompts: Vec<PromptLine> = (0..n_held_out).map(prompt).collect();
        write(&root.path().join(HELD_OUT), &prompt_file::render(&prompts));
        root
    }

    #[test]
    fn the_gate_never_sees_what_is_measured() {
        for (n_measured, expected) in [(3, 3), (100, 5)] {
            let root = root(10);
            let target = root.path().join("scratch");
            let (scratch, measured) =
                Scratch::create(root.path(), Some(&target), n_measured).unwrap();
            let gate = prompt_file::read(&scratch.root().join(HELD_OUT)).unwrap();
            assert_eq!((gate.len(), measured.len()), (10 - expected, expected));
            assert!(gate.iter().all(|prompt| !measured.contains(prompt)));
        }
    }

    #[test]
    fn only_the_embedded_agent_is_copied_and_a_chosen_folder_stays() {
        let root = root(4);
        let target = root.path().join("scratch");
        drop(Scratch::create(root.path(), Some(&target), 1).unwrap());
        assert!(target.join("prompts/aspects/a.yaml").is_file());
        assert!(target.join("agents/nano.yaml").is_file());
        assert!(!target.join("agents/other.yaml").exists());
        Scratch::create(root.path(), Some(&target), 1).expect_err("the folder is in use");
    }

    #[test]
    fn a_root_without_the_agent_is_refused_with_advice() {
        let root = tempfile::tempdir().unwrap();
        let error = Scratch::create(root.path(), None, 1).unwrap_err();
        assert!(error.to_string().contains("--root"), "{error}");
    }
}
