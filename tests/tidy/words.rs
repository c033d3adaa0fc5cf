//! Words of a private language that may not be parts of identifiers and of file names: each has a standard
//! term of the field (admission, step lock, adapter or generation, host prefix cache, threshold ...). The
//! folders where they may still stand get their names in the issues that rebuild them.

use std::collections::BTreeSet;

use crate::{is_word, without_comment};
use testkit::tree::{assert_none, texts};

/// (word, the term instead).
const WORDS: &[(&str, &str)] = &[
    ("bar", "threshold"),
    ("bars", "thresholds"),
    ("door", "admission"),
    ("doors", "admission"),
    ("floor", "step lock"),
    ("floors", "step locks"),
    ("lane", "adapter or generation"),
    ("lanes", "adapters or generations"),
    ("parked", "host prefix cache"),
    ("seat", "ticket"),
    ("seats", "tickets"),
    ("segment", "span"),
    ("segments", "spans"),
    ("stranger", "mismatched answer"),
    ("strangers", "mismatched answers"),
    ("suspend", "preempt"),
    ("suspended", "preempted"),
    ("tail", "suffix or remainder"),
    ("tails", "suffixes or remainders"),
    ("worth", "value or verdict"),
];

/// Where all of these may still stand: what judges and learns.
const OWED: &[&str] = &["src/learn/", "src/reflect/", "src/trust/"];

/// Names that those folders or other crates make public, and the files that use them.
const FOREIGN: &[(&str, &[&str])] = &[
    // Of a SIMD register.
    ("LANES", &["crates/engine/src/softmax.rs"]),
    ("lanes", &["crates/engine/src/softmax.rs"]),
    // The largest integer below a number.
    ("floor", &["crates/jinja/src/filters.rs", "crates/jinja/src/operators.rs"]),
    // The crate indicatif.
    ("ProgressBar", &["bench/rlrf/lab.rs", "src/cli/progress.rs"]),
];

/// The words of an identifier in lower case: `JudgeBar`, `judge_bar` and `JUDGE_BAR` have two.
fn parts(identifier: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut before = '_';
    for character in identifier.chars() {
        let begins = character == '_' || character.is_uppercase() && before.is_lowercase();
        if begins {
            parts.push(String::new());
        }
        if character != '_' {
            parts.last_mut().expect("there is always one").extend(character.to_lowercase());
        }
        before = character;
    }
    parts
}

/// The identifiers of a line, without those in its strings.
fn identifiers(line: &str) -> Vec<&str> {
    let code = without_comment(line).split('"').step_by(2);
    code.flat_map(|code| code.split(|c| !is_word(c))).filter(|word| !word.is_empty()).collect()
}

/// The field's term, if a part of the identifier is one of the words.
fn term_instead(identifier: &str) -> Option<&'static str> {
    let parts = parts(identifier);
    let (_, term) = WORDS.iter().find(|(word, _)| parts.iter().any(|part| part == word))?;
    Some(term)
}

#[test]
fn identifiers_use_the_terms_of_the_field() {
    let mut findings = Vec::new();
    let mut n_identifiers = 0;
    let uses =
        FOREIGN.iter().flat_map(|(name, files)| files.iter().map(move |file| (*name, *file)));
    let mut unused: BTreeSet<(&str, &str)> = uses.collect();
    for (path, text) in texts(&["rs"]) {
        let path = path.display().to_string();
        if OWED.iter().any(|folder| path.starts_with(folder)) {
            continue;
        }
        // The names of folders and files first, as if they stood in a line before the first.
        let names = path.replace(['/', '.', '-'], " ");
        for (at, line) in std::iter::once(names.as_str()).chain(text.lines()).enumerate() {
            for identifier in identifiers(line) {
                n_identifiers += 1;
                let Some(term) = term_instead(identifier) else { continue };
                let foreign = FOREIGN.iter().find(|(name, _)| *name == identifier);
                let of_file = foreign.and_then(|(name, files)| {
                    Some((*name, *files.iter().find(|file| **file == path)?))
                });
                if let Some(of_file) = of_file {
                    unused.remove(&of_file);
                } else {
                    findings.push(format!("{path}:{at}: {identifier}; say {term}"));
                }
            }
        }
    }
    let unused =
        unused.into_iter().map(|(name, file)| format!("{file} does not use {name} any more"));
    findings.extend(unused);
    assert!(n_identifiers > 100_000, "only {n_identifiers} identifiers were found");
    assert_none(&findings);
}

#[test]
fn the_check_takes_identifiers_apart() {
    assert_eq!(parts("JudgeBar"), ["judge", "bar"]);
    assert_eq!(parts("MIN_BAR"), ["min", "bar"]);
    assert_eq!(parts("barrier"), ["barrier"]);
    assert_eq!(term_instead("two_doors"), Some("admission"));
    assert_eq!(identifiers("let a = f(\"not this\"); // nor this"), ["let", "a", "f"]);
}
