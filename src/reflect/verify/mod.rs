//! Checks an answer without a model: [`Verifier`] (what a file says) -> [`Check`] (compiled) ->
//! [`Finding`]. Pure and total: no text can make it fail, and patterns have a size limit and run in
//! linear time. What a `command` says is found out by
//! `command` and handed in. Used by `assess`,
//! and by `api` to refuse a verifier before anything runs.

pub mod command;
mod json;
mod length;
mod number;
mod reference;
mod text;

use regex::{Regex, RegexBuilder};

use config::Verifier;
use prompt::Command;

use json::Schema;
use length::Length;
use number::Numeric;

pub use number::last_number;
pub(super) use reference::against_reference;
pub use reference::equals_reference;
pub use text::normalized;

/// What a check says of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// How far it is right, 0 to 1.
    pub score: f64,
    /// Whether it is right.
    pub passes: bool,
    /// What is wrong with it, for whoever answers again. It never names the expected value.
    pub reason: Option<String>,
    /// What the parts of an `all` say.
    pub parts: Vec<Part>,
}

/// What one part of an `all` says.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Its kind, with its number among the parts of the same kind from the second on.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// What it says.
    pub finding: Finding,
}

/// Characters of a reason at most: it becomes part of a prompt.
const REASON_CHARS: usize = 300;

impl Finding {
    /// All is right.
    pub(super) fn passed() -> Self {
        Self { score: 1.0, passes: true, reason: None, parts: Vec::new() }
    }

    /// It is wrong, for this reason.
    pub(super) fn refused(reason: impl Into<String>) -> Self {
        Self { score: 0.0, passes: false, reason: Some(clipped(&reason.into())), parts: Vec::new() }
    }

    fn when(passes: bool, reason: impl FnOnce() -> String) -> Self {
        if passes { Self::passed() } else { Self::refused(reason()) }
    }
}

/// One line of at most [`REASON_CHARS`] characters.
fn clipped(reason: &str) -> String {
    let mut words = reason.split(|c: char| c.is_whitespace() || c.is_control());
    let line = words.by_ref().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(REASON_CHARS) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

/// A compiled verifier.
#[derive(Debug)]
pub struct Check {
    node: Node,
    commands: Vec<Command>,
}

#[derive(Debug)]
enum Node {
    Numeric(Numeric),
    Exact(String),
    Regex {
        pattern: Regex,
        reason: Option<String>,
    },
    JsonSchema(Schema),
    Json(serde_json::Value),
    Contains {
        texts: Vec<String>,
        ignore_case: bool,
    },
    NotContains {
        texts: Vec<String>,
        ignore_case: bool,
    },
    Length(Length),
    All(Vec<(&'static str, Node)>),
    Any(Vec<Node>),
    /// Its place among the commands.
    Command(usize),
}

/// A verifier that cannot check anything.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("verifier {kind}: {reason}")]
pub struct VerifierError {
    /// `numeric`, `regex`, `json_schema`.
    pub kind: &'static str,
    /// What is wrong and what is allowed.
    pub reason: String,
}

/// Bytes of a compiled pattern at most; real patterns need a few thousand.
const PATTERN_BYTES: usize = 1 << 20;

impl Check {
    /// Compiles a verifier.
    pub fn new(verifier: &Verifier) -> Result<Self, VerifierError> {
        let faults = verifier.faults();
        if !faults.is_empty() {
            let texts = faults.iter().map(|it| format!("{} {}", it.place, it.message));
            let texts: Vec<String> = texts.map(|text| text.trim().to_owned()).collect();
            return Err(VerifierError { kind: verifier.kind(), reason: texts.join("; ") });
        }
        let mut commands = Vec::new();
        let node = compile(verifier, &mut commands)?;
        Ok(Self { node, commands })
    }

    /// The programs that have to be asked before [`Check::check`].
    pub fn commands(&self) -> &[Command] {
        &self.commands
    }

    /// What it says of an answer; `said`: what its commands say of it, in their order.
    pub fn check(&self, answer: &str, said: &[Finding]) -> Finding {
        self.node.check(answer, said)
    }

    /// Whether the answer is right, by a check without commands.
    pub fn holds(&self, answer: &str) -> bool {
        self.check(answer, &[]).passes
    }
}

fn compile(verifier: &Verifier, commands: &mut Vec<Command>) -> Result<Node, VerifierError> {
    Ok(match verifier {
        Verifier::Numeric { expected, tolerance, marker } => Node::Numeric(Numeric {
            expected: *expected,
            tolerance: *tolerance,
            marker: marker.clone(),
        }),
        Verifier::Exact { expected } => Node::Exact(expected.trim().to_owned()),
        Verifier::Regex { pattern, reason } => {
            let built = RegexBuilder::new(pattern)
                .size_limit(PATTERN_BYTES)
                .dfa_size_limit(PATTERN_BYTES)
                .build();
            let wrong = |error: regex::Error| VerifierError {
                kind: verifier.kind(),
                reason: error.to_string(),
            };
            Node::Regex { pattern: built.map_err(wrong)?, reason: reason.clone() }
        }
        Verifier::JsonSchema { schema } => Node::JsonSchema(Schema::new(schema)?),
        Verifier::Json { expected } => Node::Json(expected.clone()),
        Verifier::Contains { texts, ignore_case } => {
            let texts = texts.iter().map(|text| text::cased(text, *ignore_case).into_owned());
            Node::Contains { texts: texts.collect(), ignore_case: *ignore_case }
        }
        Verifier::NotContains { texts, ignore_case } => {
            let texts = texts.iter().map(|text| text::cased(text, *ignore_case).into_owned());
            Node::NotContains { texts: texts.collect(), ignore_case: *ignore_case }
        }
        Verifier::Length { words, sentences, lines } => {
            Node::Length(Length { words: *words, sentences: *sentences, lines: *lines })
        }
        Verifier::All { of } => {
            let parts = of.iter().map(|part| Ok((part.kind(), compile(part, commands)?)));
            Node::All(parts.collect::<Result<_, _>>()?)
        }
        Verifier::Any { of } => {
            let parts = of.iter().map(|part| compile(part, commands));
            Node::Any(parts.collect::<Result<_, _>>()?)
        }
        Verifier::Command(command) => {
            commands.push(command.clone());
            Node::Command(commands.len() - 1)
        }
    })
}

impl Node {
    fn check(&self, answer: &str, said: &[Finding]) -> Finding {
        match self {
            Self::Numeric(numeric) => numeric.check(answer),
            Self::Exact(expected) => text::exact(expected, answer),
            Self::Regex { pattern, reason } => Finding::when(pattern.is_match(answer), || {
                reason.clone().unwrap_or_else(|| "does not have the wanted form".to_owned())
            }),
            Self::JsonSchema(schema) => schema.check(answer),
            Self::Json(expected) => json::equals(expected, answer),
            Self::Contains { texts, ignore_case } => text::contains(texts, *ignore_case, answer),
            Self::NotContains { texts, ignore_case } => {
                text::not_contains(texts, *ignore_case, answer)
            }
            Self::Length(length) => length.check(answer),
            Self::All(parts) => all(parts, answer, said),
            Self::Any(parts) => any(parts, answer, said),
            // Nobody has asked the program: that is no pass.
            Self::Command(index) => said
                .get(*index)
                .cloned()
                .unwrap_or_else(|| Finding::refused("its program was not asked")),
        }
    }
}

fn all(parts: &[(&'static str, Node)], answer: &str, said: &[Finding]) -> Finding {
    let mut named: Vec<Part> = Vec::with_capacity(parts.len());
    for (kind, node) in parts {
        let before = named.iter().filter(|part| part.kind == *kind).count();
        let name = if before == 0 { (*kind).to_owned() } else { format!("{kind} {}", before + 1) };
        named.push(Part { name, kind, finding: node.check(answer, said) });
    }
    let findings = named.iter().map(|part| &part.finding);
    let passes = findings.clone().all(|finding| finding.passes);
    let score = statistics::mean(findings.clone().map(|finding| finding.score));
    let reasons: Vec<&str> = findings.filter_map(Finding::refusal).collect();
    let reason = (!passes).then(|| clipped(&reasons.join("; ")));
    Finding { score, passes, reason, parts: named }
}

fn any(parts: &[Node], answer: &str, said: &[Finding]) -> Finding {
    let findings: Vec<Finding> = parts.iter().map(|part| part.check(answer, said)).collect();
    let passes = findings.iter().any(|finding| finding.passes);
    let score = findings.iter().map(|finding| finding.score).fold(0.0, f64::max);
    let reasons: Vec<&str> = findings.iter().filter_map(Finding::refusal).collect();
    let reason = (!passes).then(|| clipped(&reasons.join("; or ")));
    Finding { score, passes, reason, parts: Vec::new() }
}

impl Finding {
    fn refusal(&self) -> Option<&str> {
        self.reason.as_deref().filter(|_| !self.passes)
    }
}

#[cfg(test)]
mod tests;
