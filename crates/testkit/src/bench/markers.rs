//! Text between two markers of a document, so that a benchmark can renew its own table and nothing
//! else. Used by the benchmarks.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use files::write_atomic;

/// The markers of a benchmark.
pub fn markers(name: &str) -> (String, String) {
    (format!("<!-- bench/{name} begins -->"), format!("<!-- bench/{name} ends -->"))
}

/// Puts text between a benchmark's markers.
pub fn insert(document: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let old =
        fs::read_to_string(document).with_context(|| format!("read {}", document.display()))?;
    let new = between(&old, name, text)
        .with_context(|| format!("{} lacks the markers of bench/{name}", document.display()))?;
    write_atomic(document, |file| file.write_all(new.as_bytes()))
        .with_context(|| format!("write {}", document.display()))
}

pub fn between(document: &str, name: &str, text: &str) -> Option<String> {
    let (begin, end) = markers(name);
    let (before, rest) = document.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n{}\n{end}{after}", text.trim_end()))
}
