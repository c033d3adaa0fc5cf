//! The kinds together: nesting, reasons, hostile texts.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn verifier(value: Value) -> Verifier {
    serde_json::from_value(value).unwrap()
}

fn check(value: Value, answer: &str) -> Finding {
    Check::new(&verifier(value)).unwrap().check(answer, &[])
}

/// One of each kind that asks nobody.
fn kinds() -> Vec<Value> {
    vec![
        json!({"kind": "numeric", "expected": 1, "tolerance": 0.5}),
        json!({"kind": "numeric", "expected": 1, "marker": "#"}),
        json!({"kind": "exact", "expected": "a"}),
        json!({"kind": "regex", "pattern": "a.*b$"}),
        json!({"kind": "json_schema", "schema": {"type": "object"}}),
        json!({"kind": "json", "expected": {"a": [1]}}),
        json!({"kind": "contains", "texts": ["a"], "ignore_case": true}),
        json!({"kind": "not_contains", "texts": ["a", "\u{0}"]}),
        json!({"kind": "length", "words": 1, "sentences": {"min": 1}, "lines": {"max": 2}}),
    ]
}

#[test]
fn all_says_what_each_part_says() {
    let both = json!({"kind": "all", "of": [
        {"kind": "length", "sentences": 1},
        {"kind": "regex", "pattern": "^[A-Z]", "reason": "Begin with a capital."},
        {"kind": "length", "words": {"max": 3}},
    ]});
    let finding = check(both.clone(), "one. two");
    let parts: Vec<_> =
        finding.parts.iter().map(|part| (part.name.as_str(), part.finding.passes)).collect();
    assert_eq!(parts, [("length", false), ("regex", false), ("length 2", true)]);
    assert!((finding.score - 1.0 / 3.0).abs() < 1e-9 && !finding.passes);
    assert_eq!(finding.reason.unwrap(), "2 sentences, 1 wanted; Begin with a capital.");
    let finding = check(both, "One two.");
    assert!(finding.passes && finding.reason.is_none() && finding.parts.len() == 3);
}

#[test]
fn any_passes_with_one_part_and_says_all_that_is_missing() {
    let either = json!({"kind": "any", "of": [
        {"kind": "exact", "expected": "yes"},
        {"kind": "all", "of": [{"kind": "numeric", "expected": 1}, {"kind": "length", "words": 1}]},
    ]});
    assert!(check(either.clone(), "yes").passes);
    assert!(check(either.clone(), "1").passes);
    let finding = check(either, "2 no");
    assert_eq!(
        finding.reason.unwrap(),
        "is not the right answer; or 2 is not the right number; 2 words, 1 wanted"
    );
    assert!(finding.parts.is_empty());
}

#[test]
fn a_pattern_matches_somewhere() {
    let paris = json!({"kind": "regex", "pattern": r"(?i)\bparis\b"});
    assert!(check(paris.clone(), "It is Paris.").passes);
    assert_eq!(check(paris, "Parisian").reason.unwrap(), "does not have the wanted form");
}

#[test]
fn exact_ignores_space_around_and_nothing_else() {
    let yes = json!({"kind": "exact", "expected": "Yes\n"});
    assert!(check(yes.clone(), "  Yes ").passes);
    assert!(!check(yes.clone(), "yes").passes && !check(yes, "Yes.").passes);
}

#[test]
fn a_verifier_that_cannot_work_is_refused() {
    for wrong in [
        json!({"kind": "numeric", "expected": 1, "tolerance": -1}),
        json!({"kind": "numeric", "expected": 1, "marker": ""}),
        json!({"kind": "regex", "pattern": "("}),
        json!({"kind": "regex", "pattern": r"\w{1000}{1000}"}),
        json!({"kind": "json_schema", "schema": {"type": "nothing"}}),
        json!({"kind": "json_schema", "schema": {"$ref": "http://localhost/schema"}}),
        json!({"kind": "contains", "texts": [""]}),
        json!({"kind": "length"}),
        json!({"kind": "any", "of": [{"kind": "all", "of": [{"kind": "regex", "pattern": "("}]}]}),
        json!({"kind": "all", "of": []}),
    ] {
        let error = Check::new(&verifier(wrong.clone())).err();
        assert!(error.is_some_and(|it| !it.reason.is_empty()), "{wrong}");
    }
    let nan = Verifier::Numeric { expected: f64::NAN, tolerance: 0.0, marker: None };
    assert!(Check::new(&nan).unwrap_err().reason.contains("finite"));
    let wrong =
        json!({"kind": "all", "of": [{"kind": "length"}, {"kind": "contains", "texts": []}]});
    let error = Check::new(&verifier(wrong)).unwrap_err().to_string();
    assert!(error.contains(".of[0] needs") && error.contains(".of[1] `texts`"), "{error}");
}

#[test]
fn a_command_that_nobody_asked_passes_nothing() {
    let command =
        Command { command: vec!["true".into()], pass: 1.0, timeout_s: 1.0, folder: "/".into() };
    let part = Verifier::Command(command.clone());
    let check = Check::new(&Verifier::All { of: vec![part.clone(), part] }).unwrap();
    assert_eq!(check.commands(), [command.clone(), command]);
    assert!(!check.holds("a"));
    assert!(!check.check("a", &[Finding::passed()]).passes);
    assert!(check.check("a", &[Finding::passed(), Finding::passed()]).passes);
}

#[test]
fn a_reason_is_one_line_of_bounded_length() {
    let finding = Finding::refused(format!("a\nb\u{0}c {}", "x".repeat(10_000)));
    let reason = finding.reason.unwrap();
    assert!(reason.starts_with("a b c x") && reason.chars().count() == REASON_CHARS + 1);
}

#[test]
fn hostile_texts_of_a_megabyte_end_in_a_finding() {
    let units = ["\u{0}", "1", "٣", "a. ", "[", "```{", "\u{202e}é", "🙂", "\n\n", "-1,5 "];
    for unit in units {
        let text = unit.repeat((1 << 20) / unit.len());
        for kind in kinds() {
            let finding = check(kind.clone(), &text);
            assert!((0.0..=1.0).contains(&finding.score), "{kind}");
            assert_eq!(finding.passes, finding.reason.is_none(), "{kind} {unit:?}");
        }
    }
}

proptest! {
    #[test]
    fn no_text_makes_a_check_panic(
        text in "\\PC*", fence in "[-0-9.,eE_^`{}\\[\\]\"\n #a\u{2212}]*",
    ) {
        for kind in kinds() {
            check(kind.clone(), &text);
            check(kind, &fence);
        }
    }

    #[test]
    fn a_pattern_that_compiles_is_run_on_any_text(
        // Few letters, so that most patterns compile and about half of them are found.
        pattern in prop_oneof!["[ab.?|()^$]{0,6}", "\\PC*"],
        text in prop_oneof!["[ab]{0,6}", "\\PC*"],
    ) {
        let regex = Verifier::Regex { pattern: pattern.clone(), reason: None };
        if let Ok(check) = Check::new(&regex) {
            let expected = Regex::new(&pattern).unwrap().is_match(&text);
            prop_assert_eq!(check.holds(&text), expected);
        }
    }
}
