//! `"%s" % value` and `"{}".format(value)`, as far as templates use them.

use std::sync::Arc;

use crate::budget::Budget;
use crate::error::TemplateError;
use crate::print;
use crate::strings::{self, Align};
use crate::text::Text;
use crate::value::{Kind, Value};

/// How one value is written.
#[derive(Debug)]
struct Form {
    fill: char,
    align: Option<Align>,
    /// `+` or a blank before numbers that are not negative.
    sign: Option<char>,
    width: i64,
    precision: Option<usize>,
    kind: Option<char>,
}

/// The most digits behind the point, so that a form cannot ask for a book of zeros.
const PRECISION: usize = 64;

/// `[fill][align][sign][0][width][.precision][kind]`, the rest of the two languages' forms being refused.
fn parse(form: &str) -> Result<Form, TemplateError> {
    let unknown = || TemplateError::render(format!("the format {form:?} is not known"));
    let mut chars: Vec<char> = form.chars().collect();
    chars.reverse();
    let align = |c: &char| match c {
        '<' => Some(Align::Left),
        '>' => Some(Align::Right),
        '^' => Some(Align::Center),
        _ => None,
    };
    let mut parsed =
        Form { fill: ' ', align: None, sign: None, width: 0, precision: None, kind: None };
    let second = chars.len().checked_sub(2).and_then(|at| chars.get(at)).and_then(align);
    if second.is_some() {
        parsed.fill = chars.pop().unwrap_or(' ');
    }
    if let Some(found) = chars.last().and_then(align) {
        parsed.align = Some(found);
        chars.pop();
    }
    while let Some(&flag) = chars.last() {
        match flag {
            '+' | ' ' => parsed.sign = Some(flag),
            '-' => parsed.align = Some(Align::Left),
            '0' if parsed.align.is_none() => {
                parsed.fill = '0';
                parsed.align = Some(Align::Right);
            }
            _ => break,
        }
        chars.pop();
    }
    parsed.width = i64::try_from(digits(&mut chars)).unwrap_or(i64::MAX);
    if chars.last() == Some(&'.') {
        chars.pop();
        parsed.precision = Some(digits(&mut chars).min(PRECISION));
    }
    parsed.kind = chars.pop();
    if chars.is_empty() { Ok(parsed) } else { Err(unknown()) }
}

/// The number at the end of reversed characters; 0 without one.
fn digits(chars: &mut Vec<char>) -> usize {
    let mut number = 0_usize;
    while let Some(digit) = chars.last().and_then(|c| c.to_digit(10)) {
        number = number.saturating_mul(10).saturating_add(digit as usize);
        chars.pop();
    }
    number
}

/// What the form itself puts in, such as what it fills with, is of the form's origin.
fn write(
    value: &Value,
    form: &Text,
    text_align: Align,
    out: &mut Text,
    budget: &Budget,
) -> Result<(), TemplateError> {
    let origin = form.origin();
    let form = parse(form.as_str())?;
    let number = match form.kind {
        Some('d' | 'i') => {
            let whole = value.as_int().or_else(|| value.as_float().and_then(whole));
            Some(whole.ok_or_else(|| not_a_number(value))?.to_string())
        }
        Some('x') => Some(format!("{:x}", value.as_int().ok_or_else(|| not_a_number(value))?)),
        Some('f') => {
            let number = value.as_float().ok_or_else(|| not_a_number(value))?;
            Some(format!("{number:.*}", form.precision.unwrap_or(6)))
        }
        None | Some('s' | 'r') => None,
        Some(kind) => {
            return Err(TemplateError::render(format!("the format `{kind}` is not known")));
        }
    };
    let is_number = number.is_some() || form.kind.is_none() && value.as_float().is_some();
    let mut text = match number {
        Some(number) => Text::template(number),
        None if form.kind == Some('r') => {
            let mut text = Text::default();
            print::repr(value, &mut text, budget)?;
            text
        }
        None => print::to_text(value, budget)?,
    };
    if is_number && let Some(sign) = form.sign.filter(|_| !text.as_str().starts_with('-')) {
        let mut signed = Text::character(sign, origin);
        signed.push(&text);
        text = signed;
    }
    if let Some(precision) = form.precision.filter(|_| !is_number) {
        let end = text.as_str().char_indices().nth(precision).map(|(at, _)| at);
        text = text.slice(0..end.unwrap_or(text.len()));
    }
    let align = form.align.unwrap_or(if is_number { Align::Right } else { text_align });
    if form.fill == '0' && align == Align::Right && text.as_str().starts_with(['-', '+']) {
        out.push(&text.slice(0..1));
        let digits = text.slice(1..text.len());
        out.push(&strings::pad(
            &digits,
            form.width.saturating_sub(1),
            ('0', origin),
            align,
            budget,
        )?);
        return Ok(());
    }
    out.push(&strings::pad(&text, form.width, (form.fill, origin), align, budget)?);
    Ok(())
}

#[expect(clippy::cast_possible_truncation, reason = "the range is looked at first")]
fn whole(number: f64) -> Option<i64> {
    (-9e18..9e18).contains(&number).then_some(number as i64)
}

fn not_a_number(value: &Value) -> TemplateError {
    TemplateError::render(format!("a number is wanted, not {}", value.named()))
}

/// `form % values`.
pub(crate) fn percent(form: &Text, values: &Value, budget: &Budget) -> Result<Text, TemplateError> {
    let list = match &values.0 {
        Kind::List(list) if list.is_tuple => list.items.clone(),
        _ => vec![values.clone()],
    };
    let mut list = list.into_iter();
    let mut out = Text::default();
    let mut rest = form.as_str();
    while let Some(at) = rest.find('%') {
        budget.steps(1)?;
        let (before, after) = rest.split_at(at);
        out.push(&form.part(before));
        let after = after.get(1..).unwrap_or_default();
        let named = after.strip_prefix('(').and_then(|after| after.split_once(')'));
        let (name, after) = named.map_or((None, after), |(name, after)| (Some(name), after));
        let Some(end) = after.find(|c: char| c.is_alphabetic() || c == '%') else {
            return Err(TemplateError::render("a `%` in a format has no kind"));
        };
        let end = end + after.get(end..).and_then(|it| it.chars().next()).map_or(0, char::len_utf8);
        let (one, after) = after.split_at(end);
        rest = after;
        if one == "%" {
            out.push(&form.part(one));
            continue;
        }
        let value = match (name, &values.0) {
            (Some(name), Kind::Map(map)) => map.get_str(name).cloned(),
            _ => list.next(),
        };
        let value = value.ok_or_else(|| TemplateError::render("a format wants more values"))?;
        write(&value, &form.part(one), Align::Right, &mut out, budget)?;
    }
    if list.next().is_some() && !matches!(values.0, Kind::Map(_)) {
        return Err(TemplateError::render("a format wants fewer values"));
    }
    out.push(&form.part(rest));
    budget.bytes(out.len())?;
    Ok(out)
}

/// `form.format(values)`.
pub(crate) fn braces(
    form: &Text,
    positional: &[Value],
    named: &[(Arc<Text>, Value)],
    budget: &Budget,
) -> Result<Text, TemplateError> {
    let mut out = Text::default();
    let mut rest = form.as_str();
    let mut next = 0_usize;
    while let Some(at) = rest.find(['{', '}']) {
        budget.steps(1)?;
        let (before, after) = rest.split_at(at);
        out.push(&form.part(before));
        if after.starts_with("{{") || after.starts_with("}}") {
            out.push(&form.part(after.get(..1).unwrap_or_default()));
            rest = after.get(2..).unwrap_or_default();
            continue;
        }
        let inner = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let Some((field, after)) = inner else {
            return Err(TemplateError::render("a brace in a format has no partner"));
        };
        rest = after;
        let (field, one) = field.split_once(':').unwrap_or((field, ""));
        let (field, conversion) = field.split_once('!').unwrap_or((field, ""));
        let value = match (field, field.parse::<usize>()) {
            ("", _) => {
                next += 1;
                positional.get(next - 1)
            }
            (_, Ok(place)) => positional.get(place),
            (name, Err(_)) => named.iter().find(|(own, _)| own.as_str() == name).map(|(_, it)| it),
        };
        let value =
            value.ok_or_else(|| TemplateError::render(format!("there is no value {field:?}")))?;
        let mut one = form.part(one);
        if conversion == "r" {
            one.push_str("r", None);
        }
        write(value, &one, Align::Left, &mut out, budget)?;
    }
    out.push(&form.part(rest));
    budget.bytes(out.len())?;
    Ok(out)
}
