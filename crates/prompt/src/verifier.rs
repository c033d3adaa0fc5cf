//! How an answer is checked without a model, as data that a file, a client or the owner's YAML gives.
//! `config` and `reflect` refuse what [`Verifier::faults`] finds; `reflect` does the checking.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

/// The aspect name of a verifier's assessments; those of its parts have a point and a name behind it. No
/// aspect of an agent may begin so.
pub const VERIFIER: &str = "verifier";

/// Whether an assessment of this aspect is a verifier's: its word, or that of one of its parts.
#[must_use]
pub fn is_of_verifier(aspect: &str) -> bool {
    aspect.strip_prefix(VERIFIER).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The aspect name of a reward model's assessments; no aspect of an agent may have it.
pub const REWARD: &str = "reward";

/// Checks an answer without a model.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Verifier {
    /// The last number in the answer (after `marker` where one is given) equals `expected`.
    Numeric {
        /// The right number.
        expected: f64,
        /// Allowed difference.
        #[serde(default)]
        tolerance: f64,
        /// Only text after the last occurrence of this counts.
        #[serde(default)]
        marker: Option<String>,
    },
    /// The answer, trimmed, is this text.
    Exact {
        /// The right text.
        expected: String,
    },
    /// The pattern matches somewhere in the answer.
    Regex {
        /// Rust `regex` syntax.
        pattern: String,
        /// What an answer is told that does not match.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The answer is JSON that fits the schema.
    JsonSchema {
        /// JSON Schema.
        schema: Value,
    },
    /// The answer is JSON that equals the expected value; the order of keys and the form of numbers
    /// do not count.
    Json {
        /// The right value.
        expected: Value,
    },
    /// Every text is somewhere in the answer.
    Contains {
        /// At least one, none empty.
        texts: Vec<String>,
        /// Upper and lower case are the same.
        #[serde(default)]
        ignore_case: bool,
    },
    /// No text is anywhere in the answer.
    NotContains {
        /// At least one, none empty.
        texts: Vec<String>,
        /// Upper and lower case are the same.
        #[serde(default)]
        ignore_case: bool,
    },
    /// The answer has as many words, sentences and lines as allowed.
    Length {
        /// Runs of characters between white space that have a letter or digit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        words: Option<Bounds>,
        /// Ended by `.`, `!`, `?` or `…`, or by the end of the text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sentences: Option<Bounds>,
        /// Lines that are not blank.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lines: Option<Bounds>,
    },
    /// Every part passes.
    All {
        /// The parts.
        of: Vec<Verifier>,
    },
    /// At least one part passes.
    Any {
        /// The parts.
        of: Vec<Verifier>,
    },
    /// The owner's program says so.
    Command(Command),
}

/// How many are allowed: so many, or at least `min` and at most `max`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(untagged, expecting = "a whole number or { min, max } is needed")]
pub enum Bounds {
    /// So many.
    Exactly(u32),
    /// Between two numbers, both allowed.
    Between(Range),
}

/// Two numbers, both allowed; one of them at least is set.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// No less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// No more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
}

impl Bounds {
    /// As a range.
    pub fn range(self) -> Range {
        match self {
            Self::Exactly(n) => Range { min: Some(n), max: Some(n) },
            Self::Between(range) => range,
        }
    }
}

/// A program of the owner's that checks answers. It is trusted code, so no prompt, no client and no
/// stored row can name one: it is never deserialized, and only `config` makes one, from an agent's
/// YAML.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Command {
    /// Program and arguments; no shell sees them.
    pub command: Vec<String>,
    /// The score from which on an answer passes.
    pub pass: f64,
    /// Seconds for one answer.
    pub timeout_s: f64,
    /// Where it runs.
    pub folder: PathBuf,
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(de::Error::custom(
            "a `command` verifier runs a program, so only the agent's own YAML file may name one",
        ))
    }
}

/// Parts within parts at most.
const MAX_DEPTH: usize = 4;
/// Checks of one verifier at most.
const MAX_CHECKS: usize = 64;

/// What is wrong with a part of a verifier.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// Where: empty at the top, else like `.of[1]`.
    pub place: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl Verifier {
    /// The word for its kind, as files write it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Numeric { .. } => "numeric",
            Self::Exact { .. } => "exact",
            Self::Regex { .. } => "regex",
            Self::JsonSchema { .. } => "json_schema",
            Self::Json { .. } => "json",
            Self::Contains { .. } => "contains",
            Self::NotContains { .. } => "not_contains",
            Self::Length { .. } => "length",
            Self::All { .. } => "all",
            Self::Any { .. } => "any",
            Self::Command(_) => "command",
        }
    }

    /// The parts of `all` and `any`; empty for other kinds.
    pub fn parts(&self) -> &[Verifier] {
        match self {
            Self::All { of } | Self::Any { of } => of,
            _ => &[],
        }
    }

    /// The full text of a right answer; `None` for verifiers that only describe one.
    pub fn whole_answer(&self) -> Option<String> {
        match self {
            Self::Exact { expected } => Some(expected.trim().to_owned()),
            Self::Json { expected } => Some(expected.to_string()),
            _ => None,
        }
    }

    /// The programs that it runs, in order.
    pub fn commands(&self) -> Vec<&Command> {
        match self {
            Self::Command(command) => vec![command],
            _ => self.parts().iter().flat_map(Self::commands).collect(),
        }
    }

    /// All that is wrong with its values, but for patterns and schemas.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut n_checks = 0;
        self.look("", 0, &mut n_checks, &mut faults);
        if MAX_CHECKS < n_checks {
            let message = format!("has more than {MAX_CHECKS} parts in all; use a `command`");
            faults.push(Fault { place: String::new(), message });
        }
        faults
    }

    fn look(&self, place: &str, depth: usize, n_checks: &mut usize, faults: &mut Vec<Fault>) {
        *n_checks += 1;
        let mut fault = |message: String| faults.push(Fault { place: place.to_owned(), message });
        match self {
            Self::Numeric { expected, tolerance, marker } => {
                if !expected.is_finite() {
                    fault("`expected` must be a finite number".into());
                }
                if !(tolerance.is_finite() && 0.0 <= *tolerance) {
                    fault("`tolerance` must be 0 or more".into());
                }
                if marker.as_deref() == Some("") {
                    fault("`marker` must not be empty; leave it out".into());
                }
            }
            Self::Contains { texts, .. } | Self::NotContains { texts, .. } => {
                if texts.is_empty() || texts.iter().any(String::is_empty) {
                    fault("`texts` must be a list of at least one text, none of them empty".into());
                }
            }
            Self::Length { words, sentences, lines } => {
                let named = [("words", words), ("sentences", sentences), ("lines", lines)];
                if named.iter().all(|(_, bounds)| bounds.is_none()) {
                    fault("needs `words`, `sentences` or `lines`".into());
                }
                for (name, bounds) in named {
                    match bounds.map(Bounds::range) {
                        Some(Range { min: None, max: None }) => {
                            fault(format!("`{name}` needs `min` or `max`"));
                        }
                        Some(Range { min: Some(min), max: Some(max) }) if max < min => {
                            fault(format!("`{name}` has min {min}, which is above max {max}"));
                        }
                        _ => {}
                    }
                }
            }
            Self::All { of } | Self::Any { of } => {
                if of.is_empty() {
                    fault("`of` must be a list of at least one verifier".into());
                }
                if MAX_DEPTH < depth + 1 {
                    return fault(format!("lies more than {MAX_DEPTH} deep; flatten it"));
                }
                for (index, part) in of.iter().enumerate() {
                    part.look(&format!("{place}.of[{index}]"), depth + 1, n_checks, faults);
                }
            }
            Self::Command(Command { command, pass, timeout_s, .. }) => {
                if command.first().is_none_or(String::is_empty) {
                    fault("`command` must be a list: the program, then its arguments".into());
                }
                if !(0.0 < *pass && *pass <= 1.0) {
                    fault("`pass` must be above 0 and at most 1".into());
                }
                if !(0.001..=3600.0).contains(timeout_s) {
                    fault("`timeout_s` must be 0.001 to 3600".into());
                }
            }
            Self::Exact { .. }
            | Self::Regex { .. }
            | Self::JsonSchema { .. }
            | Self::Json { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn assessments_of_verifiers_are_told_from_those_of_aspects() {
        assert!(["verifier", "verifier.json 2"].into_iter().all(is_of_verifier));
        assert!(!["verifiers", "verifier_style", "kind", "reward"].into_iter().any(is_of_verifier));
    }

    fn read(value: Value) -> Result<Verifier, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_that_is_read_names_a_command() {
        let command = json!({"kind": "command", "command": ["sh"], "pass": 1, "timeout_s": 1,
                             "folder": "/"});
        for value in [
            command.clone(),
            json!({"kind": "all", "of": [{"kind": "exact", "expected": "a"}, command]}),
            json!({"kind": "any", "of": [{"kind": "all", "of": [command]}]}),
            json!({"kind": "command"}),
        ] {
            let error = read(value.clone()).unwrap_err();
            assert!(error.contains("only the agent's own YAML"), "{value}: {error}");
            let text = value.to_string();
            assert!(serde_json::from_str::<Verifier>(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn bounds_are_one_number_or_two() {
        let length = read(json!({"kind": "length", "sentences": 1, "words": {"max": 9}})).unwrap();
        let Verifier::Length { words, sentences, lines: None } = &length else { panic!() };
        assert_eq!(sentences.unwrap().range(), Range { min: Some(1), max: Some(1) });
        assert_eq!(words.unwrap().range(), Range { min: None, max: Some(9) });
        assert_eq!(read(serde_json::to_value(&length).unwrap()), Ok(length));
        for wrong in [json!(-1), json!("one"), json!({"most": 1}), json!(1.5)] {
            let error = read(json!({"kind": "length", "words": wrong})).unwrap_err();
            assert!(error.contains("a whole number or { min, max }"), "{error}");
        }
    }

    #[test]
    fn all_faults_are_found_at_once_with_their_places() {
        let mut deep = json!({"kind": "exact", "expected": "a"});
        for _ in 0..6 {
            deep = json!({"kind": "any", "of": [deep]});
        }
        let verifier = read(json!({"kind": "all", "of": [
            {"kind": "numeric", "expected": 1, "tolerance": -1, "marker": ""},
            {"kind": "contains", "texts": []},
            {"kind": "length"},
            {"kind": "any", "of": [{"kind": "length", "words": {"min": 3, "max": 2}, "lines": {}}]},
            deep,
            {"kind": "all", "of": []},
        ]}))
        .unwrap();
        let faults = verifier.faults();
        let places: Vec<&str> = faults.iter().map(|fault| fault.place.as_str()).collect();
        assert_eq!(
            places,
            [
                ".of[0]",
                ".of[0]",
                ".of[1]",
                ".of[2]",
                ".of[3].of[0]",
                ".of[3].of[0]",
                ".of[4].of[0].of[0].of[0]",
                ".of[5]"
            ]
        );
        let part = json!({"kind": "exact", "expected": "a"});
        let many = read(json!({"kind": "all", "of": vec![part; 100]})).unwrap();
        assert!(many.faults()[0].message.contains("more than 64 parts"));
    }
}
