//! How long an answer is. Pure and total; linear in the text.

use prompt::Bounds;

use super::Finding;

/// How many words, sentences and lines are allowed.
#[derive(Debug)]
pub(super) struct Length {
    pub(super) words: Option<Bounds>,
    pub(super) sentences: Option<Bounds>,
    pub(super) lines: Option<Bounds>,
}

impl Length {
    /// The reason names what is too many or too few: `3 sentences, 1 wanted`.
    pub(super) fn check(&self, answer: &str) -> Finding {
        let counted = [
            ("word", self.words, words as fn(&str) -> usize),
            ("sentence", self.sentences, sentences),
            ("line", self.lines, lines),
        ];
        let reasons: Vec<String> = counted
            .into_iter()
            .filter_map(|(unit, bounds, count)| wrong(unit, count(answer), bounds?))
            .collect();
        Finding::when(reasons.is_empty(), || reasons.join("; "))
    }
}

fn wrong(unit: &str, n: usize, bounds: Bounds) -> Option<String> {
    let range = bounds.range();
    let at_least = usize::try_from(range.min.unwrap_or(0)).unwrap_or(usize::MAX);
    let at_most = range.max.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
    let wanted = match (range.min, range.max) {
        (Some(min), Some(max)) if min == max => format!("{min}"),
        (Some(min), Some(max)) => format!("{min} to {max}"),
        (Some(min), None) => format!("at least {min}"),
        (None, Some(max)) => format!("at most {max}"),
        (None, None) => return None,
    };
    let plural = if n == 1 { "" } else { "s" };
    (!(at_least..=at_most).contains(&n)).then(|| format!("{n} {unit}{plural}, {wanted} wanted"))
}

fn words(text: &str) -> usize {
    text.split_whitespace().filter(|word| word.chars().any(char::is_alphanumeric)).count()
}

/// Blank lines do not count.
fn lines(text: &str) -> usize {
    text.lines().filter(|line| !line.trim().is_empty()).count()
}

/// Shortened words, whose point ends no sentence.
const SHORTENED: &[&str] = &[
    "mr", "mrs", "ms", "dr", "prof", "st", "vs", "etc", "e.g", "i.e", "fig", "approx", "z.b",
    "d.h", "bzw", "ca", "usw", "u.s", "a.m", "p.m",
];

/// A sentence has a letter or digit and ends with `.`, `!`, `?` or `…` before white space or at the end
/// of the text, with quotes and brackets behind it; a blank line and the end of the text end one too.
/// Points in numbers, of a shortened word or a numbered line (`1.`) end none.
fn sentences(text: &str) -> usize {
    text.split("\n\n").map(in_paragraph).sum()
}

fn in_paragraph(text: &str) -> usize {
    let mut n = 0;
    let mut is_open = false;
    let mut words = text.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let was_open = is_open;
        is_open |= word.chars().any(char::is_alphanumeric);
        let bare = word.trim_end_matches(['"', '\'', ')', ']', '*', '_', '”', '’', '»', '`']);
        let ends = bare.ends_with(['.', '!', '?', '…', '。', '！', '？']);
        let is_short = bare.strip_suffix('.').is_some_and(|stem| {
            let stem = stem.trim_start_matches(|c: char| !c.is_alphanumeric());
            let numbers_a_line = !was_open && stem.chars().all(|c| c.is_ascii_digit());
            numbers_a_line || SHORTENED.contains(&stem.to_lowercase().as_str())
        });
        let is_last = words.peek().is_none();
        if ends && is_open && (is_last || !is_short) {
            n += 1;
            is_open = false;
        }
    }
    n + usize::from(is_open)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(length: &Length, answer: &str) -> Option<String> {
        length.check(answer).reason
    }

    #[test]
    fn words_sentences_and_lines_are_counted_as_a_reader_would() {
        for (text, expected) in [
            ("", 0),
            ("...", 0),
            ("One.", 1),
            ("No end", 1),
            ("It is 3.5 m. Yes!", 2),
            ("Dr. Smith came, e.g. at 5 p.m. or so.", 1),
            ("He said \"Stop!\" Then he left.", 2),
            ("Really?! Yes...", 2),
            ("Wait... what?", 2),
            ("One\n\nTwo", 2),
            ("A line\nthat goes on.", 1),
            ("1. First", 1),
            ("See https://a.example/b.c for it.", 1),
            ("It is 42. That is all.", 2),
        ] {
            assert_eq!(sentences(text), expected, "{text:?}");
        }
        assert_eq!(words("one - two\u{a0}three , 4"), 4);
        assert_eq!(lines("a\r\n\r\n  \nb\n"), 2);
    }

    #[test]
    fn the_reason_says_how_many_there_are_and_how_many_are_wanted() {
        let bounds = |min, max| Some(Bounds::Between(prompt::Range { min, max }));
        let one = Length { words: None, sentences: Some(Bounds::Exactly(1)), lines: None };
        assert_eq!(reason(&one, "A. B. C.").unwrap(), "3 sentences, 1 wanted");
        assert_eq!(reason(&one, "").unwrap(), "0 sentences, 1 wanted");
        assert_eq!(reason(&one, "Yes."), None);
        let all = Length {
            words: bounds(Some(2), Some(3)),
            sentences: bounds(None, Some(1)),
            lines: bounds(Some(2), None),
        };
        assert_eq!(
            reason(&all, "One. Two. Three. Four.").unwrap(),
            "4 words, 2 to 3 wanted; 4 sentences, at most 1 wanted; 1 line, at least 2 wanted"
        );
    }
}
