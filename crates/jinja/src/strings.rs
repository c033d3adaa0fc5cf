//! Python's string operations on texts with origin. Used by methods and filters.

use crate::budget::Budget;
use crate::error::TemplateError;
use crate::text::{Origin, Text, is_space};

/// Which ends are stripped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Side {
    Left,
    Right,
    Both,
}

/// Without these characters (`None`: blanks) at its ends.
pub(crate) fn strip(text: &Text, chars: Option<&str>, side: Side) -> Text {
    let is_out = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let mut part = text.as_str();
    if side != Side::Right {
        part = part.trim_start_matches(is_out);
    }
    if side != Side::Left {
        part = part.trim_end_matches(is_out);
    }
    text.part(part)
}

/// Every `old` becomes `new`, at most `most` times.
pub(crate) fn replace(
    text: &Text,
    old: &str,
    new: &Text,
    most: Option<i64>,
    budget: &Budget,
) -> Result<Text, TemplateError> {
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let string = text.as_str();
    budget.bytes(text.len())?;
    let mut replaced = Text::default();
    let mut from = 0;
    for (at, found) in string.match_indices(old).take(most) {
        budget.bytes(new.len())?;
        budget.steps(1)?;
        replaced.push(&text.slice(from..at));
        replaced.push(new);
        from = at + found.len();
    }
    replaced.push(&text.slice(from..string.len()));
    Ok(replaced)
}

/// Parts between separators, or between blanks where there is none. `from_right`: which are kept
/// together when there are more than `most` cuts.
pub(crate) fn split(
    text: &Text,
    separator: Option<&str>,
    most: Option<i64>,
    from_right: bool,
    budget: &Budget,
) -> Result<Vec<Text>, TemplateError> {
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    budget.bytes(text.len())?;
    let Some(separator) = separator else {
        return split_at_blanks(text, most, from_right, budget);
    };
    if separator.is_empty() {
        return Err(TemplateError::render("a separator must not be empty"));
    }
    let pieces = most.saturating_add(1);
    let mut parts: Vec<&str> = if from_right {
        text.as_str().rsplitn(pieces, separator).collect()
    } else {
        text.as_str().splitn(pieces, separator).collect()
    };
    if from_right {
        parts.reverse();
    }
    budget.steps(parts.len())?;
    Ok(parts.into_iter().map(|part| text.part(part)).collect())
}

fn split_at_blanks(
    text: &Text,
    most: usize,
    from_right: bool,
    budget: &Budget,
) -> Result<Vec<Text>, TemplateError> {
    // The blanks at the far end belong to the part that is not cut any more.
    fn trim(rest: &str, from_right: bool) -> &str {
        if from_right { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) }
    }
    let mut rest = trim(text.as_str(), from_right);
    let mut parts = Vec::new();
    while !rest.is_empty() {
        budget.steps(1)?;
        let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(cut) = cut.filter(|_| parts.len() < most) else {
            parts.push(rest);
            break;
        };
        let (left, right) = rest.split_at(cut);
        let (part, other) =
            if from_right { (right.trim_start_matches(is_space), left) } else { (left, right) };
        parts.push(part);
        rest = trim(other, from_right);
    }
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(|part| text.part(part)).collect())
}

/// Lines by every line end that Python knows.
pub(crate) fn split_lines(
    text: &Text,
    keeps_ends: bool,
    budget: &Budget,
) -> Result<Vec<Text>, TemplateError> {
    budget.bytes(text.len())?;
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        budget.steps(1)?;
        let end = rest.find(is_end).unwrap_or(rest.len());
        let (line, after) = rest.split_at(end);
        let n = if after.starts_with("\r\n") {
            2
        } else {
            after.chars().next().map_or(0, char::len_utf8)
        };
        let whole = rest.get(..end + n).unwrap_or(line);
        lines.push(text.part(if keeps_ends { whole } else { line }));
        rest = after.get(n..).unwrap_or_default();
    }
    Ok(lines)
}

/// The first character large, the others small.
pub(crate) fn capitalize(text: &Text) -> Text {
    let mut is_first = true;
    text.map(|c| case(c, std::mem::replace(&mut is_first, false)))
}

/// The first letter of each word large; what begins a word is the caller's to say, by the character
/// before.
pub(crate) fn title(text: &Text, begins_word: impl Fn(Option<char>) -> bool) -> Text {
    let mut before = None;
    text.map(|c| {
        let is_large = begins_word(before);
        before = Some(c);
        case(c, is_large)
    })
}

fn case(c: char, is_large: bool) -> Vec<char> {
    if is_large { c.to_uppercase().collect() } else { c.to_lowercase().collect() }
}

pub(crate) fn swap_case(text: &Text) -> Text {
    text.map(|c| case(c, c.is_lowercase()))
}

/// Joined by a separator.
pub(crate) fn join(
    parts: &[Text],
    separator: &Text,
    budget: &Budget,
) -> Result<Text, TemplateError> {
    let mut joined = Text::default();
    for (at, part) in parts.iter().enumerate() {
        budget.bytes(part.len().saturating_add(separator.len()))?;
        if 0 < at {
            joined.push(separator);
        }
        joined.push(part);
    }
    Ok(joined)
}

/// Where the text stands in the field of this width.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Align {
    Left,
    Right,
    Center,
}

pub(crate) fn pad(
    text: &Text,
    width: i64,
    (fill, origin): (char, Option<Origin>),
    align: Align,
    budget: &Budget,
) -> Result<Text, TemplateError> {
    let length = text.as_str().chars().count();
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(length);
    budget.bytes(missing.saturating_mul(4).saturating_add(text.len()))?;
    let before = match align {
        Align::Left => 0,
        Align::Right => missing,
        // CPython's own rounding.
        Align::Center => missing / 2 + (missing & usize::try_from(width).unwrap_or(0) & 1),
    };
    let mut padded = Text::default();
    (0..before).for_each(|_| padded.push_char(fill, origin));
    padded.push(text);
    (before..missing).for_each(|_| padded.push_char(fill, origin));
    Ok(padded)
}

/// Each line but the first behind this indentation; `is_first`: also that one, `is_blank`: also empty
/// ones.
pub(crate) fn indent(
    text: &Text,
    indentation: &Text,
    is_first: bool,
    is_blank: bool,
    budget: &Budget,
) -> Result<Text, TemplateError> {
    let mut whole = text.clone();
    whole.push_str("\n", None);
    let lines = split_lines(&whole, false, budget)?;
    let mut indented = Text::default();
    for (at, line) in lines.iter().enumerate() {
        budget.bytes(line.len().saturating_add(indentation.len()))?;
        if 0 < at {
            indented.push_str("\n", None);
        }
        let wanted = if at == 0 { is_first } else { is_blank || !line.is_empty() };
        if wanted {
            indented.push(indentation);
        }
        indented.push(line);
    }
    Ok(indented)
}
