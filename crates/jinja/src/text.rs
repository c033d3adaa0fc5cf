//! A string that knows where its characters come from. Pure. Every string operation of the language is
//! made of [`Text::slice`] and the pushes, so that none can lose a content's origin.

use std::ops::Range;

/// Which content a character comes from: the number that the caller gave it.
pub type Origin = u32;

/// Bytes that come from one content.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Run {
    bytes: Range<usize>,
    origin: Origin,
}

/// A string with the origin of its characters; what no run covers is the template's own.
#[derive(Clone, Debug, Default)]
pub struct Text {
    string: String,
    /// In order, not empty, apart or of different origin.
    runs: Vec<Run>,
}

impl Text {
    /// Text of the template, or of the caller who vouches for it.
    pub fn template(string: impl Into<String>) -> Self {
        Self { string: string.into(), runs: Vec::new() }
    }

    /// Text that came from outside.
    pub fn content(string: impl Into<String>, origin: Origin) -> Self {
        let string = string.into();
        let run = Run { bytes: 0..string.len(), origin };
        let runs = if string.is_empty() { Vec::new() } else { vec![run] };
        Self { string, runs }
    }

    pub(crate) fn character(c: char, origin: Option<Origin>) -> Self {
        let mut text = Self::default();
        text.push_char(c, origin);
        text
    }

    /// The characters alone.
    pub fn as_str(&self) -> &str {
        &self.string
    }

    pub(crate) fn len(&self) -> usize {
        self.string.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.string.is_empty()
    }

    /// The stretches of one origin each; `None` is the template.
    pub fn pieces(&self) -> impl Iterator<Item = (&str, Option<Origin>)> {
        let mut at = 0;
        let mut runs = self.runs.iter().peekable();
        std::iter::from_fn(move || {
            let (end, origin) = match runs.peek() {
                Some(run) if run.bytes.start <= at => {
                    let found = (run.bytes.end, Some(run.origin));
                    runs.next();
                    found
                }
                Some(run) => (run.bytes.start, None),
                None => (self.string.len(), None),
            };
            let piece = self.string.get(at..end).filter(|piece| !piece.is_empty())?;
            at = end;
            Some((piece, origin))
        })
    }

    /// Each character with its origin.
    pub(crate) fn chars(&self) -> impl Iterator<Item = (char, Option<Origin>)> {
        self.pieces().flat_map(|(piece, origin)| piece.chars().map(move |c| (c, origin)))
    }

    /// The first content in it. What was computed from the whole text and cannot be mapped to its
    /// characters counts as this one's.
    pub(crate) fn origin(&self) -> Option<Origin> {
        self.runs.first().map(|run| run.origin)
    }

    /// Adds a text, each character with its origin.
    pub fn push(&mut self, other: &Self) {
        let base = self.string.len();
        for run in &other.runs {
            self.cover(base + run.bytes.start..base + run.bytes.end, run.origin);
        }
        self.string.push_str(&other.string);
    }

    pub(crate) fn push_str(&mut self, piece: &str, origin: Option<Origin>) {
        let start = self.string.len();
        self.string.push_str(piece);
        if let Some(origin) = origin {
            self.cover(start..self.string.len(), origin);
        }
    }

    pub(crate) fn push_char(&mut self, c: char, origin: Option<Origin>) {
        self.push_str(c.encode_utf8(&mut [0; 4]), origin);
    }

    fn cover(&mut self, bytes: Range<usize>, origin: Origin) {
        match self.runs.last_mut() {
            _ if bytes.is_empty() => {}
            Some(last) if last.bytes.end == bytes.start && last.origin == origin => {
                last.bytes.end = bytes.end;
            }
            _ => self.runs.push(Run { bytes, origin }),
        }
    }

    /// A part of it; empty where the bytes are not those of whole characters in it.
    pub(crate) fn slice(&self, bytes: Range<usize>) -> Self {
        let Some(part) = self.string.get(bytes.clone()) else { return Self::default() };
        let mut text = Self { string: part.to_owned(), runs: Vec::new() };
        let first = self.runs.partition_point(|run| run.bytes.end <= bytes.start);
        for run in self.runs.iter().skip(first).take_while(|run| run.bytes.start < bytes.end) {
            let start = run.bytes.start.max(bytes.start) - bytes.start;
            let end = run.bytes.end.min(bytes.end) - bytes.start;
            text.cover(start..end, run.origin);
        }
        text
    }

    /// The part that `part`, a slice of [`Text::as_str`], is.
    pub(crate) fn part(&self, part: &str) -> Self {
        let start = (part.as_ptr() as usize).saturating_sub(self.string.as_ptr() as usize);
        self.slice(start..start.saturating_add(part.len()))
    }

    /// Each character by what it becomes.
    pub(crate) fn map<I: IntoIterator<Item = char>>(&self, mut new: impl FnMut(char) -> I) -> Self {
        let mut text = Self::default();
        for (c, origin) in self.chars() {
            for new in new(c) {
                text.push_char(new, origin);
            }
        }
        text
    }
}

impl PartialEq for Text {
    /// Texts are equal by their characters, as a template compares them.
    fn eq(&self, other: &Self) -> bool {
        self.string == other.string
    }
}

/// What Python's `str.isspace` says.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixed() -> Text {
        let mut text = Text::template("ab");
        text.push(&Text::content("cé", 7));
        text.push(&Text::content("f", 7));
        text.push(&Text::content("g", 8));
        text.push_str("h", None);
        text
    }

    fn pieces(text: &Text) -> Vec<(&str, Option<Origin>)> {
        text.pieces().collect()
    }

    #[test]
    fn what_is_joined_is_told_apart_again() {
        let expected = [("ab", None), ("céf", Some(7)), ("g", Some(8)), ("h", None)];
        assert_eq!(pieces(&mixed()), expected);
        assert_eq!(pieces(&Text::default()), []);
    }

    #[test]
    fn slices_and_maps_keep_the_origin_of_each_character() {
        assert_eq!(pieces(&mixed().slice(1..5)), [("b", None), ("cé", Some(7))]);
        assert_eq!(pieces(&mixed().slice(6..8)), [("g", Some(8)), ("h", None)]);
        assert_eq!(pieces(&mixed().slice(4..99)), [], "no characters of it");
        assert_eq!(pieces(&mixed().slice(4..5)), [], "half a character");
        let upper = mixed().map(char::to_uppercase);
        let expected = [("AB", None), ("CÉF", Some(7)), ("G", Some(8)), ("H", None)];
        assert_eq!(pieces(&upper), expected);
    }
}
