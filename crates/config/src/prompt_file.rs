//! Files of JSON lines: prompts ([`PromptLine`]) and labelled answers ([`ProbeLine`]). Used by `learn`
//! (held-out sets), `trust` and `cli`.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{ProbeLine, PromptLine};

/// Why a file of prompts cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PromptFileError {
    /// It cannot be read.
    #[error("read the prompts in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A line does not fit.
    #[error("{}:{line}: each line is a JSON object with {wanted}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What would.
        wanted: &'static str,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
}

/// Reads all prompts of a file; empty lines are skipped.
pub fn read(path: &Path) -> Result<Vec<PromptLine>, PromptFileError> {
    read_lines(path, "`id`, `prompt` and, if you like, `reference` and `verifier`")
}

/// Reads all labelled answers of a file; empty lines are skipped.
pub fn read_probes(path: &Path) -> Result<Vec<ProbeLine>, PromptFileError> {
    const WANTED: &str = "`id`, `prompt`, `answer`, a label (`good`: true or false, `aspects`: \
                          levels -1, 0 or 1 by name) and, if you like, `reference`";
    let probes: Vec<ProbeLine> = read_lines(path, WANTED)?;
    let is_labelled = |probe: &ProbeLine| probe.good.is_some() || !probe.aspects.is_empty();
    let in_range = |probe: &ProbeLine| probe.aspects.values().all(|level| level.abs() <= 1);
    match probes.iter().position(|probe| !is_labelled(probe) || !in_range(probe)) {
        None => Ok(probes),
        Some(index) => Err(PromptFileError::Line {
            path: path.to_owned(),
            line: index + 1,
            wanted: WANTED,
            source: <serde_json::Error as serde::de::Error>::custom(
                "the label is missing or out of range",
            ),
        }),
    }
}

/// Reads a file of JSON lines; `wanted` says what is in each.
pub fn read_lines<T: DeserializeOwned>(
    path: &Path,
    wanted: &'static str,
) -> Result<Vec<T>, PromptFileError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| PromptFileError::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|(line, source)| PromptFileError::Line {
        path: path.to_owned(),
        line,
        wanted,
        source,
    })
}

/// The objects of a text of JSON lines, or the number of the line that is none.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<Vec<T>, (usize, serde_json::Error)> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(i, line)| serde_json::from_str(line).map_err(|error| (i + 1, error)))
        .collect()
}

/// The text of a file with these lines.
pub fn render<T: Serialize>(lines: &[T]) -> String {
    let line = |line| serde_json::to_string(line).expect("a line has only string keys");
    lines.iter().map(line).map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verifier;

    #[test]
    fn what_is_written_is_read_again() {
        let verifier = Verifier::Numeric { expected: 4.0, tolerance: 0.0, marker: None };
        let prompts = [
            PromptLine {
                id: "a".into(),
                prompt: "2+2?".into(),
                reference: None,
                verifier: Some(verifier),
            },
            PromptLine {
                id: "b".into(),
                prompt: "two\nlines".into(),
                reference: Some("r".into()),
                verifier: None,
            },
        ];
        assert_eq!(parse::<PromptLine>(&render(&prompts)).unwrap(), prompts);
    }

    #[test]
    fn a_bad_line_is_named_by_its_number() {
        let text = "{\"id\":\"a\",\"prompt\":\"x\"}\n\n{\"id\":\"b\"}\n";
        assert_eq!(parse::<PromptLine>(text).unwrap_err().0, 3);
        let text = "{\"id\":\"a\",\"prompt\":\"x\",\"answer\":1}";
        assert_eq!(parse::<PromptLine>(text).unwrap_err().0, 1);
    }

    #[test]
    fn a_probe_needs_a_label_in_range() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("probes.jsonl");
        let read = |labels: &str| {
            let line = format!("{{\"id\":\"a\",\"prompt\":\"x\",\"answer\":\"y\"{labels}}}\n");
            files::write_atomic(&path, |file| std::io::Write::write_all(file, line.as_bytes()))
                .unwrap();
            read_probes(&path)
        };
        assert_eq!(read(",\"good\":false").unwrap()[0].good, Some(false));
        assert_eq!(read(",\"aspects\":{\"kind\":-1}").unwrap()[0].aspects["kind"], -1);
        for wrong in ["", ",\"aspects\":{\"kind\":2}", ",\"good\":1"] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains("probes.jsonl:1") && error.contains("`good`"), "{error}");
        }
    }
}
