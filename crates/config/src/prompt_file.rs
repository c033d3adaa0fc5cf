//! Files of JSON lines: prompts ([`PromptLine`]), examples ([`ExampleLine`]) and labelled answers
//! ([`ProbeLine`]). All that is wrong with a file is found at once, and no more of a file is held than
//! its lines. Used by `learn` (held-out sets, practice), `trust` and `cli`.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::{ExampleLine, ProbeLine, PromptLine};
use prompt::Message;

/// Lines of a file at most.
const MAX_LINES: usize = 1_000_000;
/// Bytes of a line at most.
const MAX_LINE_BYTES: usize = 1 << 20;
/// Bytes of a file at most.
const MAX_BYTES: u64 = 1 << 28;
/// Faults of a file that are told in words; the others are counted.
const MAX_FAULTS: usize = 100;

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
    /// Some lines do not fit.
    #[error("{}", in_words(path, wanted, faults))]
    Lines {
        /// The file.
        path: PathBuf,
        /// What is in each line.
        wanted: &'static str,
        /// All that does not fit.
        faults: Faults,
    },
}

/// What is wrong with the lines of a file, in their order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Faults {
    /// The first ones.
    pub told: Vec<Fault>,
    /// How many more there are.
    pub n_more: usize,
}

/// What is wrong with one line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// Counted from 1.
    pub line: usize,
    /// What does not fit, and what would.
    pub message: String,
}

impl Faults {
    /// Notes one more.
    pub fn add(&mut self, line: usize, message: impl Into<String>) {
        if self.told.len() < MAX_FAULTS {
            self.told.push(Fault { line, message: message.into() });
        } else {
            self.n_more += 1;
        }
    }
    /// Nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.told.is_empty()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { told, n_more } = self;
        let lines: Vec<_> =
            told.iter().map(|it| format!("line {}: {}", it.line, it.message)).collect();
        formatter.write_str(&lines.join("; "))?;
        if 0 < *n_more { write!(formatter, "; and {n_more} more") } else { Ok(()) }
    }
}

fn in_words(path: &Path, wanted: &str, faults: &Faults) -> String {
    let path = path.display();
    let told = faults.told.iter().map(|it| format!("{path}:{}: {}", it.line, it.message));
    let more =
        (0 < faults.n_more).then(|| format!("{path}: {} more lines do not fit", faults.n_more));
    let lines: Vec<_> =
        told.chain(more).chain([format!("each line is a JSON object with {wanted}")]).collect();
    lines.join("\n")
}

const PROMPT: &str =
    "`prompt` or `messages` and, if you like, an `id` of its own, `reference` and `verifier`";
const EXAMPLE: &str =
    "`prompt` or `messages`, `answer` and, if you like, `reference` and `verifier`";

/// Reads all prompts of a file; empty lines are skipped.
pub fn read(path: &Path) -> Result<Vec<PromptLine>, PromptFileError> {
    Ok(read_numbered(path)?.into_iter().map(|(_, line)| line).collect())
}

/// Reads all prompts of a file with the numbers of their lines.
pub fn read_numbered(path: &Path) -> Result<Vec<(usize, PromptLine)>, PromptFileError> {
    let mut known: HashMap<[u8; 32], usize> = HashMap::new();
    read_checked(path, PROMPT, |number, line: &PromptLine| {
        match known.insert(Sha256::digest(&line.id).into(), number) {
            Some(first) => Err(format!(
                "its id {:?} is that of line {first}; leave one of them out, or give each an `id`",
                line.id
            )),
            None => Ok(()),
        }
    })
}

/// The prompts of examples with their lines. A prompt has one answer: two that differ would teach neither.
#[derive(Debug, Default)]
pub struct UniquePrompts {
    known: HashMap<[u8; 32], usize>,
}

impl UniquePrompts {
    /// Takes the next one in, or tells which it repeats.
    pub fn add(&mut self, number: usize, messages: &[Message]) -> Result<(), String> {
        let prompt = serde_json::to_vec(messages).expect("messages are plain data");
        match self.known.insert(Sha256::digest(prompt).into(), number) {
            Some(first) => {
                Err(format!("its prompt is that of line {first}; leave one of them out"))
            }
            None => Ok(()),
        }
    }
}

/// Reads all examples of a file with the numbers of their lines.
pub fn read_examples(path: &Path) -> Result<Vec<(usize, ExampleLine)>, PromptFileError> {
    let mut prompts = UniquePrompts::default();
    read_good_examples(path, |number, line| prompts.add(number, &line.messages()))
}

/// A file of examples with these faults.
pub fn faulty_examples(path: PathBuf, faults: Faults) -> PromptFileError {
    PromptFileError::Lines { path, wanted: EXAMPLE, faults }
}

/// Reads all examples of a file, with all that a check finds wrong among the faults.
pub fn read_good_examples(
    path: &Path,
    check: impl FnMut(usize, &ExampleLine) -> Result<(), String>,
) -> Result<Vec<(usize, ExampleLine)>, PromptFileError> {
    read_checked(path, EXAMPLE, check)
}

/// Reads all labelled answers of a file; empty lines are skipped.
pub fn read_probes(path: &Path) -> Result<Vec<ProbeLine>, PromptFileError> {
    const WANTED: &str = "`id`, `prompt`, `answer`, a label (`good`: true or false, `aspects`: \
                          levels -1, 0 or 1 by name) and, if you like, `reference`";
    let probes = read_checked(path, WANTED, |_, probe: &ProbeLine| {
        let is_labelled = probe.good.is_some() || !probe.aspects.is_empty();
        let in_range = probe.aspects.values().all(|level| level.abs() <= 1);
        let fault = "the label is missing or out of range";
        if is_labelled && in_range { Ok(()) } else { Err(fault.to_owned()) }
    })?;
    Ok(probes.into_iter().map(|(_, probe)| probe).collect())
}

/// Reads a file of JSON lines; `wanted` says what is in each.
pub fn read_lines<T: DeserializeOwned>(
    path: &Path,
    wanted: &'static str,
) -> Result<Vec<T>, PromptFileError> {
    let lines = read_checked(path, wanted, |_, _: &T| Ok(()))?;
    Ok(lines.into_iter().map(|(_, line)| line).collect())
}

fn read_checked<T: DeserializeOwned>(
    path: &Path,
    wanted: &'static str,
    check: impl FnMut(usize, &T) -> Result<(), String>,
) -> Result<Vec<(usize, T)>, PromptFileError> {
    let failed = |source| PromptFileError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    if MAX_BYTES < file.metadata().map_err(failed)?.len() {
        let reason = format!("it is larger than {} MiB; split it", MAX_BYTES >> 20);
        return Err(failed(io::Error::other(reason)));
    }
    // A pipe has no size.
    let file = BufReader::new(file.take(MAX_BYTES));
    match collect(file, check).map_err(failed)? {
        (lines, faults) if faults.is_empty() => Ok(lines),
        (_, faults) => Err(PromptFileError::Lines { path: path.to_owned(), wanted, faults }),
    }
}

/// The objects of a text of JSON lines, or what is wrong with it.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<Vec<T>, Faults> {
    let (lines, faults) = collect(text.as_bytes(), |_, _| Ok(())).expect("a text can be read");
    if faults.is_empty() {
        Ok(lines.into_iter().map(|(_, line)| line).collect())
    } else {
        Err(faults)
    }
}

/// The lines that fit, with their numbers, and what is wrong with the others.
fn collect<T: DeserializeOwned>(
    mut text: impl BufRead,
    mut check: impl FnMut(usize, &T) -> Result<(), String>,
) -> io::Result<(Vec<(usize, T)>, Faults)> {
    let (mut lines, mut faults) = (Vec::new(), Faults::default());
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let limit = u64::try_from(MAX_LINE_BYTES + 1).unwrap_or(u64::MAX);
        if text.by_ref().take(limit).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if MAX_LINE_BYTES < line.len() && line.last() != Some(&b'\n') {
            faults.add(number, format!("is longer than {MAX_LINE_BYTES} bytes"));
            text.skip_until(b'\n')?;
            continue;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        if MAX_LINES < number {
            faults.add(number, format!("is beyond the {MAX_LINES} lines that a file may have"));
            break;
        }
        let read = serde_json::from_slice(&line).map_err(|error| fault_of(&error));
        match read.and_then(|value| check(number, &value).map(|()| value)) {
            Ok(value) => lines.push((number, value)),
            Err(message) => faults.add(number, message),
        }
    }
    Ok((lines, faults))
}

/// The parser's words without its line, which is always the first.
fn fault_of(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(fault) if 0 < error.column() => format!("column {}: {fault}", error.column()),
        Some(fault) => fault.to_owned(),
        None => text,
    }
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
    use prompt::Role;

    #[test]
    fn what_is_written_is_read_again() {
        let verifier = Verifier::Numeric { expected: 4.0, tolerance: 0.0, marker: None };
        let turn = |role, text: &str| Message { role, content: text.into() };
        let earlier = vec![turn(Role::User, "2+2?"), turn(Role::Assistant, "5")];
        let prompts = [
            PromptLine { verifier: Some(verifier), ..PromptLine::new("a", "2+2?") },
            PromptLine { reference: Some("r".into()), ..PromptLine::new("b", "two\nlines") },
            PromptLine { earlier, ..PromptLine::new("c", "Really?") },
        ];
        let text = render(&prompts);
        assert_eq!(parse::<PromptLine>(&text).unwrap(), prompts);
        assert_eq!(text.matches("messages").count(), 1, "one prompt alone is written as ever");
    }

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines.jsonl");
        files::write_atomic(&path, |file| io::Write::write_all(file, text.as_bytes())).unwrap();
        (folder, path)
    }

    #[test]
    fn all_bad_lines_are_told_at_once_by_their_numbers() {
        let (_folder, path) = file(concat!(
            "{\"id\":\"a\",\"prompt\":\"x\"}\n\n",
            "{\"id\":\"b\"}\n",
            "{\"id\":\"a\",\"prompt\":\"y\"}\n",
            "{\"id\":\"c\",\"prompt\":\"x\",\"answer\":1}\n",
            "{\"id\":\"d\",\"prompt\":\"x\",\"messages\":[]}\n",
            "{\"id\":\"e\",\"messages\":[{\"role\":\"assistant\",\"content\":\"x\"}]}\n",
            "{\"id\":\"f\",\"messages\":[{\"role\":\"user\",\"text\":\"x\"}]}\n",
            "{\"id\":\"g\",\"prompt\":\" \"}\n",
            "{\"id\":\"h\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"},\
                {\"role\":\"system\",\"content\":\"x\"},{\"role\":\"user\",\"content\":\"x\"}]}\n",
            "nonsense",
        ));
        let PromptFileError::Lines { faults, .. } = read(&path).unwrap_err() else { panic!() };
        let told = |line: usize| {
            let fault = faults.told.iter().find(|it| it.line == line);
            fault.unwrap_or_else(|| panic!("line {line}: {faults}")).message.clone()
        };
        assert!(told(3).contains("`prompt` or `messages` is needed"), "{faults}");
        assert!(told(4).contains("line 1"), "{faults}");
        assert!(told(5).contains("answer"), "{faults}");
        assert!(told(6).contains("exclude each other"), "{faults}");
        assert!(told(7).contains("last turn"), "{faults}");
        assert!(told(8).contains("text"), "{faults}");
        assert!(told(9).contains("blank"), "{faults}");
        assert!(told(10).contains("first turn"), "{faults}");
        assert!(told(11).starts_with("column 2"), "{faults}");
        assert_eq!((faults.told.len(), faults.n_more), (9, 0));
        let text = read(&path).unwrap_err().to_string();
        assert!(text.contains("lines.jsonl:11: ") && text.contains("`id`"), "{text}");
    }

    #[test]
    fn a_file_of_bad_lines_without_end_is_told_in_a_bounded_text() {
        let (_folder, path) = file(&"{\"prompt\":1}\n".repeat(100_000));
        let error = read(&path).unwrap_err();
        assert!(error.to_string().len() < 20_000, "{}", error.to_string().len());
        assert!(error.to_string().contains("99900 more lines"), "{error}");
        let (_folder, path) = file(&format!("\"{}\"\n{{\"id\": 1}}\n", "x".repeat(2 << 20)));
        let PromptFileError::Lines { faults, .. } = read(&path).unwrap_err() else { panic!() };
        assert_eq!(faults.told.iter().map(|it| it.line).collect::<Vec<_>>(), [1, 2], "{faults}");
    }

    #[test]
    fn a_prompt_without_an_id_has_a_hash_of_its_words() {
        let spoken = r#"{"messages":[{"role":"user","content":"x"}]}"#;
        let (_folder, path) = file(&format!("{spoken}\n{{\"prompt\":\"y\"}}\n"));
        let (_other, moved) = file("{\"prompt\":\"y\"}\n{\"prompt\":\"x\"}\n");
        let (first, moved) = (read(&path).unwrap(), read(&moved).unwrap());
        assert_eq!((&first[0].id, &first[1].id), (&moved[1].id, &moved[0].id));
        assert!(first[0].id.len() == 16 && first[0].id != first[1].id, "{first:?}");
        // Other turns before the same last one make another prompt.
        let turn =
            |role: &str, text: &str| format!("{{\"role\":\"{role}\",\"content\":\"{text}\"}}");
        let after = |text: &str| {
            let turns = [turn("user", text), turn("assistant", "yes"), turn("user", "x")];
            format!("{{\"messages\":[{}]}}\n", turns.join(","))
        };
        let (_folder, path) = file(&["a", "b"].map(after).concat());
        let conversations = read(&path).unwrap();
        assert_ne!(conversations[0].id, conversations[1].id);
        let (_folder, path) = file(&format!("{spoken}\n{{\"prompt\":\"x\"}}\n"));
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains(":2: ") && error.contains("give each an `id`"), "{error}");
    }

    #[test]
    fn an_example_has_an_answer_and_a_prompt_has_one_example() {
        let example = |prompt: &str, answer: &str| {
            format!("{{\"prompt\":\"{prompt}\",\"answer\":\"{answer}\"}}\n")
        };
        let (_folder, path) = file(&(example("a", "1") + "\n" + &example("b", "2")));
        let read = read_examples(&path).unwrap();
        assert_eq!(read.iter().map(|it| it.0).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(
            parse::<ExampleLine>(&render(&[read[0].1.clone()])).unwrap(),
            [read[0].1.clone()]
        );
        let (_folder, path) = file(&(example("a", "1") + &example("a", "2") + &example("c", "  ")));
        let error = read_examples(&path).unwrap_err().to_string();
        assert!(error.contains(":2: its prompt is that of line 1"), "{error}");
        assert!(error.contains(":3: ") && error.contains("blank"), "{error}");
        let is_one = |number, line: &ExampleLine| match line.answer.as_str() {
            "1" => Ok(()),
            other => Err(format!("{number} has {other}")),
        };
        let error = read_good_examples(&path, is_one).unwrap_err().to_string();
        assert!(error.contains(":2: 2 has 2"), "{error}");
        assert!(error.contains(":3: ") && error.contains("blank"), "{error}");
    }

    #[test]
    fn a_probe_needs_a_label_in_range() {
        let read = |labels: &str| {
            let line = format!("{{\"id\":\"a\",\"prompt\":\"x\",\"answer\":\"y\"{labels}}}\n");
            let (_folder, path) = file(&line);
            read_probes(&path)
        };
        assert_eq!(read(",\"good\":false").unwrap()[0].good, Some(false));
        assert_eq!(read(",\"aspects\":{\"kind\":-1}").unwrap()[0].aspects["kind"], -1);
        for wrong in ["", ",\"aspects\":{\"kind\":2}", ",\"good\":1"] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains("lines.jsonl:1") && error.contains("`good`"), "{error}");
        }
    }
}
