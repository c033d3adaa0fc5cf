//! Tests of the documents: links lead somewhere, marked examples run, the reference of keys is what
//! the code says, and quoted messages are in the code.
//!
//! A block of code in a Markdown file is an example that runs when its info string says so:
//!
//! | info string | what happens |
//! |---|---|
//! | `sh run` | All such blocks of a document are one script (`bash -euo pipefail`) in an empty folder with `MODEL.gguf`, the nano model. `reflectd` is the program under test; `reflectd serve` goes to the background and the next line waits until it answers. Every command has to succeed. |
//! | `yaml check PATH` | The block is written to PATH in a root folder that has prompts, one agent and the files that examples name (`FILES` in `examples.rs`); `reflectd check` has to accept it. An agent that leaves out `model` or `aspects` gets them. |
//! | `jsonl check prompts`, `jsonl check probes` | The lines are read as prompts, or as labelled answers. |
//!
//! `UPDATE_DOCS=1 cargo test --release --test docs` writes `docs/reference/configuration.md` anew.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]
#![expect(clippy::string_slice, reason = "every index comes from a search in the same text")]

mod configuration;
mod examples;
mod links;
mod messages;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use testkit::tree::texts;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A file of the project, its path relative to the root.
#[derive(Debug)]
struct Document {
    path: PathBuf,
    text: String,
}

/// A block of code in a document.
#[derive(Debug)]
struct Block<'a> {
    /// Of its first line of code, counted from 1.
    line: usize,
    info: &'a str,
    code: String,
}

/// The project's files with one of these extensions, in order.
fn files(extensions: &[&str]) -> Vec<Document> {
    texts(extensions).into_iter().map(|(path, text)| Document { path, text }).collect()
}

/// The Markdown files.
fn documents() -> Vec<Document> {
    files(&["md"])
}

/// One document.
fn document(path: &str) -> Document {
    let text = fs::read_to_string(Path::new(ROOT).join(path)).unwrap();
    Document { path: path.into(), text }
}

/// The lines that are not in blocks of code, with their numbers from 1, and the blocks.
fn parts(text: &str) -> (Vec<(usize, &str)>, Vec<Block<'_>>) {
    let mut prose = Vec::new();
    let mut blocks: Vec<Block<'_>> = Vec::new();
    let mut inside = false;
    for (at, line) in text.lines().enumerate() {
        match (inside, line.trim_start().strip_prefix("```")) {
            (false, Some(info)) => {
                blocks.push(Block { line: at + 2, info: info.trim(), code: String::new() });
                inside = true;
            }
            (true, Some(_)) => inside = false,
            (false, None) => prose.push((at + 1, line)),
            (true, None) => {
                let block = blocks.last_mut().unwrap();
                block.code.push_str(line);
                block.code.push('\n');
            }
        }
    }
    assert!(!inside, "a block of code is not closed:\n{text}");
    (prose, blocks)
}

/// Writes a file, in a new folder where there is none.
fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
}

#[test]
fn blocks_of_code_are_told_from_prose() {
    let (prose, blocks) = parts("a\n```sh run\nb\n```\nc\n");
    assert_eq!(prose, [(1, "a"), (5, "c")]);
    let [Block { line: 3, info: "sh run", code }] = blocks.as_slice() else { panic!("{blocks:?}") };
    assert_eq!(code, "b\n");
}
