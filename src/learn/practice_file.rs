//! The prompts of an agent's practice file, as nights use them. Reads files alone. Used by `practice`,
//! and by `examples`, whose prompts a practice file may name too.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::held_out::{HeldOut, LeftOut};
use crate::reflect;
use config::prompt_file::{self, PromptFileError};
use config::{Agent, PromptLine, Verifier};

/// Prompts of a practice file that are used; of a longer file always the same ones.
pub(crate) const MOST_PROMPTS: usize = 10_000;

/// What checks answers to a prompt: its verifier and its reference.
pub(super) type Check = (Option<Verifier>, Option<String>);

/// The prompts of a practice file that no file holds out. One that the store would take for an earlier
/// one is left out: its verifier would change with each reading.
pub(super) fn used(
    agent: &Agent,
    path: &Path,
    held_out: &HeldOut,
) -> Result<(Vec<PromptLine>, LeftOut), PromptFileError> {
    Ok(chosen(agent, prompt_file::read(path)?, held_out))
}

/// The same prompts, as the store compares them, with what checks answers to them. Of those that a file
/// holds out some may be among them.
pub(super) fn named(
    agent: &Agent,
    path: &Path,
    held_out: &HeldOut,
) -> Result<HashMap<Vec<u8>, Check>, PromptFileError> {
    let mut lines = prompt_file::read(path)?;
    if MOST_PROMPTS < lines.len() {
        (lines, _) = chosen(agent, lines, &held_out.of_files_alone());
    }
    let mut named = HashMap::new();
    for line in lines {
        let prompt = reflect::stored(agent, &line.messages());
        named.entry(prompt).or_insert((line.verifier, line.reference));
    }
    Ok(named)
}

fn chosen(
    agent: &Agent,
    mut lines: Vec<PromptLine>,
    held_out: &HeldOut,
) -> (Vec<PromptLine>, LeftOut) {
    let mut left_out = LeftOut::default();
    lines.retain(|line| !left_out.counts(held_out, &line.messages()));
    let mut known = HashSet::new();
    lines.retain(|line| known.insert(reflect::stored(agent, &line.messages())));
    if MOST_PROMPTS < lines.len() {
        // Files are often sorted by kind.
        lines.sort_by_cached_key(|line| Sha256::digest(&line.id));
        lines.truncate(MOST_PROMPTS);
    }
    (lines, left_out)
}
