//! What makes an answer right, and the same as the verifier that an owner would write. Total: no answer
//! makes it fail. Used by the generators and whoever measures.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::{Value, json};

/// What makes an answer right. Space around an answer never counts.
#[derive(Clone, Debug, PartialEq)]
pub enum Truth {
    /// The answer is this text.
    Exact(String),
    /// The answer is JSON and equal to this; order of keys, space and the spelling of numbers are free.
    Json(Value),
    /// The pattern matches.
    Regex(&'static str),
    /// The last number of the answer is this one.
    Number(f64),
    /// The answer has this form.
    Format(Format),
}

/// Forms that any chat model may be asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// Yes or no and nothing else.
    YesOrNo,
    /// So many lines with text.
    Lines(usize),
    /// So many words at most, and one at least.
    WordsAtMost(usize),
    /// Capitals alone, and one at least.
    Capitals,
    /// These words stand in it.
    Contains(&'static str),
    /// This word does not, and there is an answer.
    ContainsNot(&'static str),
    /// It ends with these words.
    EndsWith(&'static str),
    /// A JSON object with these keys and no other.
    JsonWith(&'static [&'static str]),
}

impl Truth {
    /// Whether an answer is right.
    pub fn holds(&self, answer: &str) -> bool {
        let answer = answer.trim();
        match self {
            Self::Exact(expected) => answer == expected.trim(),
            Self::Json(expected) => {
                serde_json::from_str(answer).is_ok_and(|found| is_equal(&found, expected))
            }
            Self::Regex(pattern) => Regex::new(pattern).is_ok_and(|it| it.is_match(answer)),
            Self::Number(expected) => {
                last_number(answer).is_some_and(|found| (found - expected).abs() < 1e-9)
            }
            Self::Format(format) => format.holds(answer),
        }
    }

    /// The verifier of a prompt file; `None`: formats are only measured.
    pub fn verifier(&self) -> Option<Value> {
        match self {
            Self::Exact(expected) => Some(json!({ "kind": "exact", "expected": expected })),
            Self::Json(expected) => Some(json!({ "kind": "json", "expected": expected })),
            Self::Regex(pattern) => Some(json!({ "kind": "regex", "pattern": pattern })),
            Self::Number(expected) => Some(json!({ "kind": "numeric", "expected": expected })),
            Self::Format(_) => None,
        }
    }
}

impl Format {
    /// The kind, without what it is about.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::YesOrNo => "yes or no",
            Self::Lines(_) => "lines",
            Self::WordsAtMost(_) => "words",
            Self::Capitals => "capitals",
            Self::Contains(_) => "contains",
            Self::ContainsNot(_) => "contains not",
            Self::EndsWith(_) => "ends with",
            Self::JsonWith(_) => "JSON",
        }
    }

    fn holds(&self, answer: &str) -> bool {
        let lower = answer.to_lowercase();
        let has = |word: &str| lower.contains(&word.to_lowercase());
        match self {
            Self::YesOrNo => ["yes", "no"].contains(&lower.trim_end_matches('.')),
            Self::Lines(n) => answer.lines().filter(|line| !line.trim().is_empty()).count() == *n,
            Self::WordsAtMost(n) => (1..=*n).contains(&answer.split_whitespace().count()),
            Self::Capitals => {
                answer.contains(char::is_uppercase) && !answer.contains(char::is_lowercase)
            }
            Self::Contains(words) => has(words),
            Self::ContainsNot(word) => !answer.is_empty() && !has(word),
            Self::EndsWith(words) => lower.ends_with(&words.to_lowercase()),
            Self::JsonWith(keys) => {
                let found = serde_json::from_str::<Value>(answer).ok();
                let found = found.as_ref().and_then(Value::as_object);
                let keys: BTreeSet<&str> = keys.iter().copied().collect();
                found.is_some_and(|it| {
                    it.keys().map(String::as_str).collect::<BTreeSet<_>>() == keys
                })
            }
        }
    }
}

/// Numbers by their value, objects by their keys in any order.
fn is_equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| is_equal(a, b)))
        }
        _ => a == b,
    }
}

/// With commas between thousands, as in "1,234.5".
fn last_number(text: &str) -> Option<f64> {
    let pattern = Regex::new(r"-?\d[\d,]*(\.\d+)?").expect("the pattern is a constant");
    let last = pattern.find_iter(text).last()?;
    last.as_str().replace(',', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_compared_by_its_meaning() {
        let truth = Truth::Json(json!({"device": "light", "value": 40, "list": [1, {"a": "b"}]}));
        for right in [
            r#"{"device":"light","value":40,"list":[1,{"a":"b"}]}"#,
            " {\"list\": [1.0, {\"a\": \"b\"}], \"value\": 4e1, \"device\": \"light\"}\n",
        ] {
            assert!(truth.holds(right), "{right}");
        }
        for wrong in [
            r#"{"device":"light","value":41,"list":[1,{"a":"b"}]}"#,
            r#"{"device":"light","value":"40","list":[1,{"a":"b"}]}"#,
            r#"{"device":"light","value":40}"#,
            r#"{"device":"light","value":40,"list":[1,{"a":"b"}],"more":1}"#,
            r#"{"device":"light","value":40,"list":[{"a":"b"},1]}"#,
            "light",
            "",
        ] {
            assert!(!truth.holds(wrong), "{wrong}");
        }
    }

    #[test]
    fn texts_and_numbers() {
        assert!(Truth::Exact("PlayMusic".into()).holds(" PlayMusic\n"));
        assert!(!Truth::Exact("PlayMusic".into()).holds("PlayMusic."));
        let truth = Truth::Number(1234.5);
        assert!(truth.holds("first 7, then 1,234.50 dollars"));
        assert!(!truth.holds("1234.5 of 8") && !truth.holds("none"));
        assert!(Truth::Regex("^a+$").holds(" aaa ") && !Truth::Regex("^a+$").holds("aab"));
    }

    #[test]
    fn every_form_accepts_and_refuses() {
        for (format, right, wrong) in [
            (Format::YesOrNo, "Yes.", "Yes, it is"),
            (Format::Lines(3), "a\n\nb\nc", "a\nb"),
            (Format::WordsAtMost(3), "one two three", "one two three four"),
            (Format::Capitals, "IT IS 7.", "It is"),
            (Format::Contains("blue whale"), "The Blue whale.", "the whale is blue"),
            (Format::ContainsNot("water"), "It is wet.", "Waterfall"),
            (Format::EndsWith("the end."), "So it was. The End.", "The end. Really"),
            (Format::JsonWith(&["a", "b"]), r#"{"b":1,"a":2}"#, r#"{"a":1,"b":2,"c":3}"#),
        ] {
            let truth = Truth::Format(format);
            assert!(truth.holds(right) && !truth.holds(wrong) && !truth.holds(""), "{truth:?}");
            assert_eq!(truth.verifier(), None);
        }
    }
}
