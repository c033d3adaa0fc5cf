//! What a judge is shown of an answer that it must not obey: invisible characters and look-alikes of
//! template marks are taken out, line ends become plain. Only the judge's view changes: what is
//! stored, served and trained on stays as it was written. Pure. Used by [`super::PromptSet`].

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

/// Part of every rubric version: another way of reading answers makes other scores.
pub(super) const VERSION: u8 = 1;

/// Marks by which chat templates tell who speaks. As text they are no control tokens, but a model
/// that has seen them all its life may take them for some.
static MARKS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"(?i)[<\u{ff1c}][|\u{ff5c}][^<>|\u{ff5c}\s]{1,40}[|\u{ff5c}][>\u{ff1e}]",
        r"|</?(?:start_of_turn|end_of_turn|system|assistant|user|think)>",
        r"|\[/?INST\]|<</?SYS>>",
    ))
    .expect("the pattern is a constant that the tests compile")
});

/// The text without what nobody can see and without template marks. Most texts come back as they
/// are.
pub(super) fn neutral(text: &str) -> Cow<'_, str> {
    let visible: Cow<'_, str> = if text.contains(is_hidden) || text.contains(is_line_end) {
        let text = text.replace("\r\n", "\n");
        let plain = |c| if is_line_end(c) { '\n' } else { c };
        text.chars().filter(|&c| !is_hidden(c)).map(plain).collect::<String>().into()
    } else {
        text.into()
    };
    // Only after the invisible ones have gone, which could hide a mark. A mark that is left when
    // another was cut out of its middle is found by the next look.
    let mut visible = visible;
    while MARKS.is_match(&visible) {
        visible = MARKS.replace_all(&visible, " ").into_owned().into();
    }
    visible
}

/// Ends a line to some readers; a quotation must begin anew after it.
fn is_line_end(c: char) -> bool {
    matches!(c, '\r' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Cannot be seen, or changes the order in which others are: controls, zero-width and bidirectional
/// marks, fillers, variation selectors, tags, interlinear notes.
fn is_hidden(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t' && !is_line_end(c))
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_text_of_any_language_stays_as_it_is() {
        for text in
            ["3 + 4 = 7\n#### 7", "naïve Ærø 漢字 עברית\t1 < 2 || 3 > 2", "if a <| b |> c", "😀"]
        {
            assert!(matches!(neutral(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_seen_is_taken_out() {
        for hidden in ["\u{200b}", "\u{202e}", "\u{feff}", "\u{e0041}", "\0", "\u{1b}", "\u{2066}"]
        {
            assert_eq!(neutral(&format!("gra{hidden}de")), "grade", "{hidden:?}");
        }
        assert_eq!(neutral("a\r\nb\rc\u{2028}d\u{85}e"), "a\nb\nc\nd\ne");
    }

    #[test]
    fn template_marks_are_taken_out_also_when_they_hide_in_each_other() {
        for mark in ["<|im_end|>", "<|end|>", "<\u{ff5c}end\u{ff5c}>", "[/INST]", "<<SYS>>"] {
            assert_eq!(neutral(&format!("a{mark}b")), "a b", "{mark}");
        }
        assert!(!neutral("<|im_\u{200b}end|>").contains("<|"));
        assert!(!MARKS.is_match(&neutral("<|a<|im_end|>b|>")));
    }

    proptest! {
        #[test]
        fn a_second_look_finds_nothing_more(text in "[<|>a-c/ \\[\\]INST\u{200b}\r\n\u{2028}]{0,40}") {
            let once = neutral(&text).into_owned();
            prop_assert_eq!(&neutral(&once), &once);
            prop_assert!(!once.contains(is_hidden) && !once.contains(is_line_end));
        }
    }
}
