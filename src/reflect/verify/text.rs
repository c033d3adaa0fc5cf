//! Checks of an answer as text, and texts made comparable. Pure and total.

use std::borrow::Cow;

use unicode_normalization::UnicodeNormalization as _;

use super::Finding;

/// Space around it aside, it is this text.
pub(super) fn exact(expected: &str, answer: &str) -> Finding {
    let answer = answer.trim();
    Finding::when(answer == expected, || {
        if !expected.is_empty() && answer.contains(expected) {
            "says more than the answer alone".to_owned()
        } else if normalized(answer) == normalized(expected) {
            "is right but for upper and lower case or punctuation".to_owned()
        } else {
            "is not the right answer".to_owned()
        }
    })
}

pub(super) fn contains(texts: &[String], ignore_case: bool, answer: &str) -> Finding {
    let answer = cased(answer, ignore_case);
    let missing = texts.iter().filter(|text| !answer.contains(text.as_str())).count();
    Finding::when(missing == 0, || match texts.len() {
        1 => "a text that is wanted is missing".to_owned(),
        n => format!("{missing} of {n} texts that are wanted are missing"),
    })
}

/// Names what must not be there: it is in the answer already.
pub(super) fn not_contains(texts: &[String], ignore_case: bool, answer: &str) -> Finding {
    let answer = cased(answer, ignore_case);
    match texts.iter().find(|text| answer.contains(text.as_str())) {
        Some(text) => Finding::refused(format!("contains {text:?}, which is not wanted")),
        None => Finding::passed(),
    }
}

/// The text in one case, where case does not count.
pub(super) fn cased(text: &str, ignore_case: bool) -> Cow<'_, str> {
    if ignore_case { Cow::Owned(text.to_lowercase()) } else { Cow::Borrowed(text) }
}

/// A text by its words alone: compatibility forms (NFKC), case, space, and the punctuation and
/// Markdown around words do not count. Signs that change the meaning of a word stay: `-5`, `C++`,
/// `50%`, `1.5`.
pub fn normalized(text: &str) -> String {
    let text: String = text.nfkc().flat_map(char::to_lowercase).collect();
    let words = text.split_whitespace().map(|word| {
        let bare = word.trim_matches(is_punctuation);
        let before = word.len() - word.trim_start_matches(is_punctuation).len();
        let is_minus = word.get(..before).is_some_and(|it| it.ends_with(['-', '\u{2212}']))
            && bare.starts_with(|c: char| c.is_ascii_digit());
        if is_minus { format!("-{bare}") } else { bare.to_owned() }
    });
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

fn is_punctuation(c: char) -> bool {
    c.is_control() || ".,;:!?…'\"“”„‘’‚«»‹›()[]{}*_`~-–—\u{2212}|·•。，、！？「」《》¿¡".contains(c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_are_equal_but_for_what_does_not_matter() {
        for (one, other) in [
            ("Paris", " **paris.** "),
            ("Play Music", "play\u{a0}music!"),
            ("Ｐａｒｉｓ", "Paris"),
            ("“Yes”", "yes"),
            ("ﬁne", "FINE"),
            ("a - b", "A, B"),
            ("-5", "\u{2212}5."),
        ] {
            assert_eq!(normalized(one), normalized(other));
        }
        for (one, other) in [("-5", "5"), ("1.5", "15"), ("C++", "C"), ("1/2", "12"), ("50%", "50")]
        {
            assert_ne!(normalized(one), normalized(other));
        }
    }

    #[test]
    fn reasons_never_name_what_was_wanted() {
        let reason = |finding: Finding| finding.reason.unwrap();
        assert_eq!(reason(exact("Paris", "It is Paris.")), "says more than the answer alone");
        assert!(reason(exact("Paris", "paris.")).contains("but for upper and lower case"));
        assert_eq!(reason(exact("Paris", "Rome")), "is not the right answer");
        let texts = ["one".to_owned(), "two".to_owned()];
        assert_eq!(
            reason(contains(&texts, false, "one")),
            "1 of 2 texts that are wanted are missing"
        );
        let found = reason(not_contains(&texts, true, "At Two"));
        assert_eq!(found, "contains \"two\", which is not wanted");
    }

    #[test]
    fn case_counts_unless_it_is_ignored() {
        let texts = ["straße".to_owned()];
        assert!(contains(&texts, true, "Lange STRAßE").passes);
        assert!(!contains(&texts, false, "STRAßE").passes);
        assert!(not_contains(&texts, false, "STRAßE").passes);
    }

    proptest! {
        #[test]
        fn normalizing_twice_changes_nothing(text in "\\PC*") {
            let once = normalized(&text);
            prop_assert_eq!(normalized(&once), once);
        }
    }
}
