//! Files of prompts: one [`PromptLine`] as JSON a line. Used by `learn` (held-out sets) and `cli`.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::PromptLine;

/// Why a file of prompts cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PromptFileError {
    /// It cannot be read.
    #[error("read the prompts in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// A line is not a prompt.
    #[error(
        "{}:{line}: each line is a JSON object with `id`, `prompt` and, if you like, `reference` \
         and `verifier`", path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
}

/// Reads all prompts of a file; empty lines are skipped.
pub fn read(path: &Path) -> Result<Vec<PromptLine>, PromptFileError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| PromptFileError::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|(line, source)| PromptFileError::Line {
        path: path.to_owned(),
        line,
        source,
    })
}

fn parse(text: &str) -> Result<Vec<PromptLine>, (usize, serde_json::Error)> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(i, line)| serde_json::from_str(line).map_err(|error| (i + 1, error)))
        .collect()
}

/// The text of a file with these prompts.
pub fn render(prompts: &[PromptLine]) -> String {
    let line = |prompt| serde_json::to_string(prompt).expect("a prompt has only string keys");
    prompts.iter().map(line).map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Verifier;

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
        assert_eq!(parse(&render(&prompts)).unwrap(), prompts);
    }

    #[test]
    fn a_bad_line_is_named_by_its_number() {
        let text = "{\"id\":\"a\",\"prompt\":\"x\"}\n\n{\"id\":\"b\"}\n";
        assert_eq!(parse(text).unwrap_err().0, 3);
        assert_eq!(parse("{\"id\":\"a\",\"prompt\":\"x\",\"answer\":1}").unwrap_err().0, 1);
    }
}
