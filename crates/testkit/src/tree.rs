//! The files of the project as tests of its text read them. Used by `tests/tidy` and `tests/docs`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::repository;

/// Every file of the project that a person wrote, relative to the root, in order.
pub fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(Path::new(""), &mut found);
    found.sort();
    found
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(repository().join(folder)).unwrap() {
        let path = folder.join(entry.unwrap().file_name());
        let name = path.file_name().unwrap_or_default();
        let is_generated = ["target", ".git", ".deps", "Cargo.lock"].iter().any(|it| name == *it);
        // As `.gitignore` has it: what a daemon keeps there is not the project's.
        let is_state = folder == Path::new("state") && name != "README.md";
        match repository().join(&path).is_dir() {
            _ if is_generated || is_state => {}
            true => walk(&path, found),
            false => found.push(path),
        }
    }
}

/// The files with one of these extensions and their text.
pub fn texts(extensions: &[&str]) -> Vec<(PathBuf, String)> {
    let is_meant = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extensions.iter().any(|it| extension == *it))
    };
    let read = |path: PathBuf| {
        let text = fs::read_to_string(repository().join(&path)).unwrap();
        (path, text)
    };
    files().into_iter().filter(is_meant).map(read).collect()
}

/// Fails with all findings at once.
pub fn assert_none(findings: &[String]) {
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}
