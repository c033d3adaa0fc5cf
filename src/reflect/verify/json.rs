//! Checks of an answer as JSON. Total: what is too deep for the parser is no JSON.

use jsonschema::error::ValidationErrorKind;
use jsonschema::{PatternOptions, Validator};
use serde_json::{Number, Value};

use super::{Finding, PATTERN_BYTES, VerifierError};

const NO_JSON: &str = "is not JSON";

/// A compiled JSON Schema.
#[derive(Debug)]
pub(super) struct Schema(Box<Validator>);

impl Schema {
    pub(super) fn new(schema: &Value) -> Result<Self, VerifierError> {
        let patterns =
            PatternOptions::regex().size_limit(PATTERN_BYTES).dfa_size_limit(PATTERN_BYTES);
        let built = jsonschema::options().with_pattern_options(patterns).build(schema);
        let wrong = |error: String| VerifierError { kind: "json_schema", reason: error };
        Ok(Self(Box::new(built.map_err(|error| wrong(error.to_string()))?)))
    }

    /// The reason names the place and the keyword, and of the schema only what asks for a form: never a
    /// value.
    pub(super) fn check(&self, answer: &str) -> Finding {
        let Some(json) = find_json(answer) else { return Finding::refused(NO_JSON) };
        let Err(error) = self.0.validate(&json) else { return Finding::passed() };
        let path = error.instance_path().to_string();
        let place = if path.is_empty() { "the value".to_owned() } else { format!("`{path}`") };
        Finding::refused(match error.kind() {
            ValidationErrorKind::Required { property } => {
                format!("{place} lacks the key {property}")
            }
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                format!("{place} has keys that are not wanted: {}", unexpected.join(", "))
            }
            ValidationErrorKind::Constant { .. } | ValidationErrorKind::Enum { .. } => {
                format!("{place} is not an allowed value")
            }
            kind => format!("{place} does not fit the schema's `{}`", kind.keyword()),
        })
    }
}

/// The answer's JSON has the expected value.
pub(super) fn equals(expected: &Value, answer: &str) -> Finding {
    let Some(json) = find_json(answer) else { return Finding::refused(NO_JSON) };
    let mut compared = Compared::default();
    compared.look(Some(expected), Some(&json), "");
    let Compared { right, total, place } = compared;
    if right == total {
        return Finding::passed();
    }
    // A place that the answer has, so that it gives nothing away.
    let place = match place {
        Some(place) if !place.is_empty() => format!(", `{place}` is not"),
        _ => String::new(),
    };
    let finding = Finding::refused(format!("{right} of {total} values are right{place}"));
    Finding { score: right as f64 / total as f64, ..finding }
}

/// Whether two values are the same but for the order of keys and the form of numbers.
pub(super) fn equal(one: &Value, other: &Value) -> bool {
    let mut compared = Compared::default();
    compared.look(Some(one), Some(other), "");
    compared.right == compared.total
}

/// Two values compared leaf by leaf. Empty objects and lists are leaves.
#[derive(Debug, Default)]
struct Compared {
    right: usize,
    total: usize,
    /// The first leaf of the answer that differs.
    place: Option<String>,
}

impl Compared {
    fn look(&mut self, expected: Option<&Value>, found: Option<&Value>, place: &str) {
        match (expected, found) {
            (Some(Value::Object(wanted)), Some(Value::Object(there)))
                if !(wanted.is_empty() && there.is_empty()) =>
            {
                for (key, value) in wanted {
                    self.look(Some(value), there.get(key), &format!("{place}/{key}"));
                }
                for (key, value) in there.iter().filter(|(key, _)| !wanted.contains_key(*key)) {
                    self.look(None, Some(value), &format!("{place}/{key}"));
                }
            }
            (Some(Value::Array(wanted)), Some(Value::Array(there)))
                if !(wanted.is_empty() && there.is_empty()) =>
            {
                for index in 0..wanted.len().max(there.len()) {
                    let place = format!("{place}/{index}");
                    self.look(wanted.get(index), there.get(index), &place);
                }
            }
            (Some(wanted), Some(there)) => self.leaf(same_leaf(wanted, there), place, true),
            (_, found) => self.leaf(false, place, found.is_some()),
        }
    }

    fn leaf(&mut self, is_right: bool, place: &str, is_in_answer: bool) {
        self.total += 1;
        self.right += usize::from(is_right);
        if !is_right && is_in_answer && self.place.is_none() {
            self.place = Some(place.to_owned());
        }
    }
}

fn same_leaf(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => same_number(one, other),
        _ => one == other,
    }
}

fn same_number(one: &Number, other: &Number) -> bool {
    // Whole numbers of the same form are compared without rounding.
    one == other
        || (one.is_f64() || other.is_f64())
            && one.as_f64().zip(other.as_f64()).is_some_and(|(one, other)| {
                #[expect(clippy::float_cmp, reason = "1 and 1.0 are exactly the same number")]
                let same = one == other;
                same
            })
}

/// The JSON of an answer: all of it, or its first fenced block that is JSON.
pub(super) fn find_json(answer: &str) -> Option<Value> {
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
    use serde_json::json;

    use super::*;

    fn schema(value: &Value) -> Schema {
        Schema::new(value).unwrap()
    }

    #[test]
    fn json_is_found_alone_and_in_a_fence() {
        let one = schema(
            &json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}),
        );
        assert!(one.check(r#" {"a": 1} "#).passes);
        assert!(one.check("Here:\n```json\n{\"a\": 1}\n```\nDone.").passes);
        assert!(one.check("```{\"a\": 1}```").passes);
        assert!(!one.check("```json\n{\"a\": \"x\"}\n```").passes);
        assert_eq!(one.check("a is 1").reason.unwrap(), "is not JSON");
        assert_eq!(one.check(r#"{"b": 1}"#).reason.unwrap(), "the value lacks the key \"a\"");
    }

    #[test]
    fn a_schema_tells_the_place_and_never_a_value() {
        let one = schema(&json!({"properties": {
            "a": {"const": "secret"}, "b": {"enum": ["secret"]}, "c": {"type": "integer"}},
            "additionalProperties": false}));
        let reason = |text: &str| one.check(text).reason.unwrap();
        assert_eq!(reason(r#"{"a": 1}"#), "`/a` is not an allowed value");
        assert_eq!(reason(r#"{"b": 1}"#), "`/b` is not an allowed value");
        assert_eq!(reason(r#"{"c": "x"}"#), "`/c` does not fit the schema's `type`");
        assert_eq!(reason(r#"{"d": 1}"#), "the value has keys that are not wanted: d");
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let one = schema(&json!({"properties": {"next": {"$ref": "#"}}, "required": ["n"]}));
        assert!(one.check(r#"{"n": 1, "next": {"n": 2}}"#).passes);
        assert!(!one.check(r#"{"n": 1, "next": {}}"#).passes);
    }

    #[test]
    fn values_are_equal_whatever_the_order_of_keys_and_the_form_of_numbers() {
        let wanted = json!({"a": 1, "b": [1, {"c": null}], "d": {}, "e": 1e2});
        for text in [
            r#"{"e": 100, "d": {}, "b": [1.0, {"c": null}], "a": 1.0}"#,
            "```json\n{\"a\": 1, \"b\": [1, {\"c\": null}], \"d\": {}, \"e\": 100.0}\n```",
        ] {
            let finding = equals(&wanted, text);
            assert!(finding.passes && (finding.score - 1.0).abs() < 1e-9, "{text}: {finding:?}");
        }
        let large = json!(9_007_199_254_740_993_u64);
        assert!(!equals(&large, "9007199254740992").passes);
        assert!(!equals(&json!("1"), "1").passes);
        assert!(!equals(&json!([]), "{}").passes);
        assert!(!equals(&json!(true), "1").passes);
    }

    #[test]
    fn the_reason_counts_and_names_only_places_that_the_answer_has() {
        let wanted = json!({"intent": "PlayMusic", "slots": {"artist": "Bach", "year": 1720}});
        let finding = equals(&wanted, r#"{"intent": "AddToPlaylist", "slots": {"year": 1720}}"#);
        assert_eq!(finding.reason.unwrap(), "1 of 3 values are right, `/intent` is not");
        assert!((finding.score - 1.0 / 3.0).abs() < 1e-9);
        let finding = equals(&wanted, r#"{"intent": "PlayMusic", "slots": {"year": 1720}}"#);
        assert_eq!(finding.reason.unwrap(), "2 of 3 values are right");
        let more = r#"{"intent": "PlayMusic", "slots": {"artist": "Bach", "year": 1720, "x": 1}}"#;
        assert_eq!(
            equals(&wanted, more).reason.unwrap(),
            "3 of 4 values are right, `/slots/x` is not"
        );
        assert_eq!(equals(&wanted, "[]").reason.unwrap(), "0 of 1 values are right");
    }

    #[test]
    fn deep_and_large_json_ends() {
        let deep = format!("{}{}", "[".repeat(1 << 19), "]".repeat(1 << 19));
        assert_eq!(equals(&json!([]), &deep).reason.unwrap(), "is not JSON");
        let fences = "```[".repeat(1 << 18);
        assert!(!equals(&json!([]), &fences).passes);
        let wide = format!("[{}1]", "1,".repeat(1 << 19));
        let finding = equals(&json!([1]), &wide);
        assert!(!finding.passes && finding.score < 0.01);
    }
}
