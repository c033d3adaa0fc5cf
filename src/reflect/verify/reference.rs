//! An answer compared with the one that is known to be right, by program. Pure and total. It says only
//! that they are equal: what differs may still be right in other words.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Finding, json, number, text};

/// Labels of a set at most, and characters of one.
const LABELS: std::ops::RangeInclusive<usize> = 2..=64;
const LABEL_CHARS: usize = 60;

/// Whether an answer is the reference: the same number, text (case, punctuation and form of characters
/// aside), JSON value or set of labels.
pub fn equals_reference(reference: &str, answer: &str) -> bool {
    let wanted = text::normalized(reference);
    if !wanted.is_empty() && wanted == text::normalized(answer) {
        return true;
    }
    // Nothing is left of a text of punctuation alone.
    if !reference.trim().is_empty() && reference.trim() == answer.trim() {
        return true;
    }
    if let Some(wanted) = number::only_number(reference) {
        return number::last_number(answer, None)
            .is_some_and(|number| number::equal(number, wanted, 0.0));
    }
    // A bare word or number in JSON is one of the cases around this one.
    if let Ok(wanted @ (Value::Object(_) | Value::Array(_))) = serde_json::from_str(reference) {
        return json::find_json(answer).is_some_and(|found| json::equal(&wanted, &found));
    }
    labels(reference).is_some_and(|wanted| labels(answer).as_ref() == Some(&wanted))
}

/// The reference decides alone: an answer that is not equal is refused.
pub(in crate::reflect) fn against_reference(reference: &str, answer: &str) -> Finding {
    Finding::when(equals_reference(reference, answer), || "is not the right answer".to_owned())
}

/// A list of short texts as a set: by commas, semicolons, lines or `and`. `None`: it is no list.
fn labels(text: &str) -> Option<BTreeSet<String>> {
    let text = text.trim();
    if *LABELS.end() * (LABEL_CHARS + 8) < text.len() {
        return None;
    }
    let parts = text.split([',', ';', '\n']).flat_map(|part| part.split(" and "));
    let labels: BTreeSet<String> = parts
        .map(|part| text::normalized(part.trim().trim_start_matches("and ")))
        .filter(|part| !part.is_empty())
        .collect();
    let are_short = labels.iter().all(|label| label.chars().count() <= LABEL_CHARS);
    (LABELS.contains(&labels.len()) && are_short).then_some(labels)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_answers_are_seen_without_a_judge() {
        for (reference, answer) in [
            ("Paris", "**paris.**"),
            ("Ｐａｒｉｓ", "Paris"),
            ("42", "The answer is 42 (see step 3)."),
            ("1/2", "It is 0.5"),
            ("$1,234.50", "1234.5"),
            ("0.5", "50/100"),
            (r#"{"a": 1, "b": [2]}"#, "```json\n{\"b\": [2.0], \"a\": 1.0}\n```"),
            ("red, green; blue", "- Blue\n- red\n- green"),
            ("cat and dog", "Dog, cat."),
            ("-", " -"),
        ] {
            assert!(equals_reference(reference, answer), "{reference:?} {answer:?}");
        }
    }

    #[test]
    fn what_cannot_be_told_is_not_equal() {
        for (reference, answer) in [
            ("Paris", "It is Paris."),
            ("Paris", ""),
            ("", ""),
            ("...", "!"),
            ("42", "43"),
            ("42 of 50 people", "50"),
            ("-5", "5"),
            (r#"{"a": 1}"#, r#"{"a": 2}"#),
            (r#"{"a": "x"}"#, "a is x"),
            ("red, green", "red, green, blue"),
            ("red, green", "red"),
            ("C++", "C"),
        ] {
            assert!(!equals_reference(reference, answer), "{reference:?} {answer:?}");
        }
    }

    #[test]
    fn the_reason_does_not_name_the_reference() {
        let finding = against_reference("Paris", "Rome");
        assert_eq!(finding.reason.as_deref(), Some("is not the right answer"));
        assert!(against_reference("Paris", "paris").passes);
    }

    proptest! {
        #[test]
        fn every_text_with_a_word_equals_itself(text in "\\PC*", mark in "[.,!* ]{0,3}") {
            let marked = format!("{text}{mark}");
            let is_word = !text::normalized(&text).is_empty();
            let is_same = !text.trim().is_empty() && text.trim() == marked.trim();
            prop_assert_eq!(equals_reference(&text, &marked), is_word || is_same);
        }
    }
}
