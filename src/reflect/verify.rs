//! Checks an answer without a model: [`Verifier`] (what a file says) -> [`Check`] (compiled) ->
//! yes or no. Pure and total: no text can make it fail, and patterns have a size limit and run in
//! linear time. Used by `assess`, and by `api` to refuse a verifier before anything runs.

use std::sync::LazyLock;

use jsonschema::{PatternOptions, Validator};
use regex::{Regex, RegexBuilder};

use config::Verifier;

/// A compiled verifier.
#[derive(Debug)]
pub struct Check {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Numeric { expected: f64, tolerance: f64, marker: Option<String> },
    Exact(String),
    Regex(Regex),
    JsonSchema(Box<Validator>),
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
        let kind = kind(verifier);
        let wrong = |reason: String| VerifierError { kind, reason };
        let kind = match verifier {
            Verifier::Numeric { expected, tolerance, marker } => {
                if !expected.is_finite() {
                    return Err(wrong("`expected` must be a finite number".into()));
                }
                if !(tolerance.is_finite() && 0.0 <= *tolerance) {
                    return Err(wrong("`tolerance` must be 0 or more".into()));
                }
                if marker.as_deref() == Some("") {
                    return Err(wrong("`marker` must not be empty; leave it out".into()));
                }
                Kind::Numeric { expected: *expected, tolerance: *tolerance, marker: marker.clone() }
            }
            Verifier::Exact { expected } => Kind::Exact(expected.trim().to_owned()),
            Verifier::Regex { pattern } => Kind::Regex(
                RegexBuilder::new(pattern)
                    .size_limit(PATTERN_BYTES)
                    .dfa_size_limit(PATTERN_BYTES)
                    .build()
                    .map_err(|error| wrong(error.to_string()))?,
            ),
            Verifier::JsonSchema { schema } => Kind::JsonSchema(Box::new(
                jsonschema::options()
                    .with_pattern_options(
                        PatternOptions::regex()
                            .size_limit(PATTERN_BYTES)
                            .dfa_size_limit(PATTERN_BYTES),
                    )
                    .build(schema)
                    .map_err(|error| wrong(error.to_string()))?,
            )),
        };
        Ok(Self { kind })
    }

    /// Whether the answer is right.
    pub fn holds(&self, answer: &str) -> bool {
        match &self.kind {
            Kind::Numeric { expected, tolerance, marker } => last_number(answer, marker.as_deref())
                .is_some_and(|number| (number - expected).abs() <= *tolerance),
            Kind::Exact(expected) => answer.trim() == expected,
            Kind::Regex(pattern) => pattern.is_match(answer),
            Kind::JsonSchema(schema) => {
                find_json(answer).is_some_and(|json| schema.is_valid(&json))
            }
        }
    }
}

/// The word for a verifier's kind, as files write it.
pub fn kind(verifier: &Verifier) -> &'static str {
    match verifier {
        Verifier::Numeric { .. } => "numeric",
        Verifier::Exact { .. } => "exact",
        Verifier::Regex { .. } => "regex",
        Verifier::JsonSchema { .. } => "json_schema",
    }
}

/// The last number of a text, after the last `marker` where one is given (no marker in the text:
/// no number). Digits that belong to a word (`m2`, `x_1`, `10^3`) are not numbers; a minus counts
/// only where nothing but space or an operator stands before it.
pub fn last_number(text: &str, marker: Option<&str>) -> Option<f64> {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(concat!(
            r"(?<grouped>[0-9]{1,3}(?:[,_'\u{a0}\u{202f}][0-9]{3})+\b(?:\.[0-9]+)?)",
            r"|(?<plain>(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+\b)?)",
        ))
        .expect("the pattern is a constant that the tests compile")
    });
    let text = match marker {
        Some(marker) => text.rsplit_once(marker)?.1,
        None => text,
    };
    let mut last = None;
    for found in NUMBER.find_iter(text) {
        let mut before = text.get(..found.start()).unwrap_or_default().chars().rev();
        let previous = before.next();
        if previous.is_some_and(|c| c.is_alphabetic() || c == '^' || c == '_') {
            continue;
        }
        let negative = matches!(previous, Some('-' | '\u{2212}'))
            && before.next().is_none_or(|c| !c.is_alphanumeric() && c != ')');
        let digits: String = found
            .as_str()
            .chars()
            .filter(|c| !matches!(c, ',' | '_' | '\'' | '\u{a0}' | '\u{202f}'))
            .collect();
        let Some(value) = digits.parse::<f64>().ok().filter(|value| value.is_finite()) else {
            continue;
        };
        last = Some(if negative { -value } else { value });
    }
    last
}

/// The JSON of an answer: all of it, or its first fenced block that is JSON.
fn find_json(answer: &str) -> Option<serde_json::Value> {
    if let Ok(json) = serde_json::from_str(answer.trim()) {
        return Some(json);
    }
    // Odd pieces of a split at fences lie inside a block; their first line may name the language.
    answer.split("```").skip(1).step_by(2).find_map(|block| {
        let body = block.split_once('\n').map_or(block, |(first, rest)| {
            if first.trim().chars().all(char::is_alphanumeric) { rest } else { block }
        });
        serde_json::from_str(body.trim()).ok()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn holds(verifier: &Verifier, answer: &str) -> bool {
        Check::new(verifier).unwrap().holds(answer)
    }

    fn numeric(expected: f64, tolerance: f64, marker: Option<&str>) -> Verifier {
        Verifier::Numeric { expected, tolerance, marker: marker.map(str::to_owned) }
    }

    #[test]
    fn the_last_number_is_found_in_many_spellings() {
        for (text, expected) in [
            ("42", Some(42.0)),
            ("The answer is 42.", Some(42.0)),
            ("3 + 4 = 7", Some(7.0)),
            ("it costs $1,234,567.50 in all", Some(1_234_567.5)),
            ("1'000 or 1_000", Some(1000.0)),
            ("1\u{202f}000", Some(1000.0)),
            ("12,3456", Some(3456.0)),
            ("1, 2, 3", Some(3.0)),
            ("-5", Some(-5.0)),
            ("= -5 degrees", Some(-5.0)),
            ("\u{2212}5", Some(-5.0)),
            ("from 10-7", Some(7.0)),
            ("10 - 7", Some(7.0)),
            ("(3)-2", Some(2.0)),
            (".5", Some(0.5)),
            ("0.50", Some(0.5)),
            ("1.5e3 m", Some(1500.0)),
            ("2e", Some(2.0)),
            ("The area is 42 m2", Some(42.0)),
            ("42 m^2", Some(42.0)),
            ("50%", Some(50.0)),
            ("5kg", Some(5.0)),
            ("**12**", Some(12.0)),
            (r"\boxed{12}", Some(12.0)),
            ("none", None),
            ("", None),
            ("x1", None),
        ] {
            assert_eq!(last_number(text, None), expected, "{text:?}");
        }
        let huge = "9".repeat(400);
        assert_eq!(last_number(&huge, None), None);
    }

    #[test]
    fn only_text_after_the_last_marker_counts() {
        let marked = numeric(7.0, 0.0, Some("####"));
        assert!(holds(&marked, "3 + 4 #### 6\nno: #### 7"));
        assert!(!holds(&marked, "3 + 4 = 7"));
        assert!(!holds(&marked, "7 ####"));
    }

    #[test]
    fn a_number_may_differ_by_the_tolerance_and_no_more() {
        assert!(holds(&numeric(3.0, 0.25, None), "3.25"));
        assert!(!holds(&numeric(3.0, 0.25, None), "3.5"));
        assert!(holds(&numeric(0.3, 0.0, None), "0.30"));
    }

    #[test]
    fn exact_ignores_space_around_and_nothing_else() {
        let yes = Verifier::Exact { expected: "Yes\n".into() };
        assert!(holds(&yes, "  Yes "));
        assert!(!holds(&yes, "yes"));
        assert!(!holds(&yes, "Yes."));
    }

    #[test]
    fn a_pattern_matches_somewhere() {
        let pattern = Verifier::Regex { pattern: r"(?i)\bparis\b".into() };
        assert!(holds(&pattern, "It is Paris."));
        assert!(!holds(&pattern, "Parisian"));
    }

    #[test]
    fn json_is_found_alone_and_in_a_fence() {
        let schema = Verifier::JsonSchema {
            schema: json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}),
        };
        assert!(holds(&schema, r#" {"a": 1} "#));
        assert!(holds(&schema, "Here:\n```json\n{\"a\": 1}\n```\nDone."));
        assert!(holds(&schema, "```{\"a\": 1}```"));
        assert!(!holds(&schema, "```json\n{\"a\": \"x\"}\n```"));
        assert!(!holds(&schema, "a is 1"));
        assert!(!holds(&schema, r#"{"b": 1}"#));
    }

    #[test]
    fn a_verifier_that_cannot_work_is_refused() {
        for verifier in [
            numeric(f64::NAN, 0.0, None),
            numeric(1.0, -1.0, None),
            numeric(1.0, f64::INFINITY, None),
            numeric(1.0, 0.0, Some("")),
            Verifier::Regex { pattern: "(".into() },
            Verifier::Regex { pattern: r"\w{1000}{1000}".into() },
            Verifier::JsonSchema { schema: json!({"type": "nothing"}) },
            Verifier::JsonSchema { schema: json!({"$ref": "http://localhost/schema"}) },
        ] {
            assert!(Check::new(&verifier).is_err(), "{verifier:?}");
        }
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let schema = Verifier::JsonSchema {
            schema: json!({"properties": {"next": {"$ref": "#"}}, "required": ["n"]}),
        };
        assert!(holds(&schema, r#"{"n": 1, "next": {"n": 2}}"#));
        assert!(!holds(&schema, r#"{"n": 1, "next": {}}"#));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_check_panic(text in "\\PC*", fence in "[-0-9.,eE_^`{}\\[\\]\"\n #a\u{2212}]*") {
            for verifier in [
                numeric(1.0, 0.5, None),
                numeric(1.0, 0.5, Some("#")),
                Verifier::Exact { expected: "a".into() },
                Verifier::Regex { pattern: "a.*b$".into() },
                Verifier::JsonSchema { schema: json!({"type": "object"}) },
            ] {
                let check = Check::new(&verifier).unwrap();
                check.holds(&text);
                check.holds(&fence);
            }
        }

        #[test]
        fn a_written_number_is_read_back(number in -1_000_000_i32..1_000_000, words in "[a-z ]*") {
            let text = format!("{words} {number} apples");
            prop_assert_eq!(last_number(&text, None), Some(f64::from(number)));
        }

        #[test]
        fn a_pattern_that_compiles_is_run_on_any_text(
            // Few letters, so that most patterns compile and about half of them are found.
            pattern in prop_oneof!["[ab.?|()^$]{0,6}", "\\PC*"],
            text in prop_oneof!["[ab]{0,6}", "\\PC*"],
        ) {
            if let Ok(check) = Check::new(&Verifier::Regex { pattern: pattern.clone() }) {
                let expected = Regex::new(&pattern).unwrap().is_match(&text);
                prop_assert_eq!(check.holds(&text), expected);
            }
        }
    }
}
