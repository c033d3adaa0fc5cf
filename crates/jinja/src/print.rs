//! How values become text: Python's `str`, `repr` and `json.dumps`. What is written of a content keeps
//! its origin, escapes included. Used by the interpreter and by filters.

use crate::budget::Budget;
use crate::error::TemplateError;
use crate::text::{Origin, Text};
use crate::value::{Kind, Value};

/// Python's `str`, as `{{ }}` prints.
pub(crate) fn write(value: &Value, out: &mut Text, budget: &Budget) -> Result<(), TemplateError> {
    match &value.0 {
        Kind::Undefined(_) => Ok(()),
        Kind::Text(text) => {
            budget.bytes(text.len())?;
            out.push(text);
            Ok(())
        }
        _ => repr(value, out, budget),
    }
}

/// The same as a text of its own.
pub(crate) fn to_text(value: &Value, budget: &Budget) -> Result<Text, TemplateError> {
    let mut text = Text::default();
    write(value, &mut text, budget)?;
    Ok(text)
}

/// Python's `repr`.
pub(crate) fn repr(value: &Value, out: &mut Text, budget: &Budget) -> Result<(), TemplateError> {
    budget.steps(1)?;
    match &value.0 {
        Kind::Text(text) => {
            budget.bytes(text.len().saturating_mul(2))?;
            quote(text, out);
        }
        Kind::List(list) => {
            let [open, close] = if list.is_tuple { ["(", ")"] } else { ["[", "]"] };
            out.push_str(open, None);
            for (at, item) in list.items.iter().enumerate() {
                if 0 < at {
                    out.push_str(", ", None);
                }
                repr(item, out, budget)?;
            }
            if list.is_tuple && list.items.len() == 1 {
                out.push_str(",", None);
            }
            out.push_str(close, None);
        }
        Kind::Map(map) => {
            out.push_str("{", None);
            for (at, (key, value)) in map.entries.iter().enumerate() {
                if 0 < at {
                    out.push_str(", ", None);
                }
                repr(key, out, budget)?;
                out.push_str(": ", None);
                repr(value, out, budget)?;
            }
            out.push_str("}", None);
        }
        Kind::None => out.push_str("None", None),
        Kind::Bool(value) => out.push_str(if *value { "True" } else { "False" }, None),
        Kind::Int(number) => out.push_str(&number.to_string(), None),
        Kind::Float(number) => out.push_str(&float(*number), None),
        Kind::Undefined(_) => out.push_str("Undefined", None),
        _ => out.push_str(&format!("<{}>", value.type_name()), None),
    }
    Ok(())
}

fn quote(text: &Text, out: &mut Text) {
    let has = |quote| text.as_str().contains(quote);
    let quote = if has('\'') && !has('"') { '"' } else { '\'' };
    out.push_char(quote, None);
    for (c, origin) in text.chars() {
        match c {
            '\n' => out.push_str("\\n", origin),
            '\r' => out.push_str("\\r", origin),
            '\t' => out.push_str("\\t", origin),
            '\\' => out.push_str("\\\\", origin),
            c if c == quote => {
                out.push_char('\\', origin);
                out.push_char(c, origin);
            }
            c if c < ' ' || ('\u{7f}'..'\u{a1}').contains(&c) || c == '\u{ad}' => {
                out.push_str(&format!("\\x{:02x}", u32::from(c)), origin);
            }
            c => out.push_char(c, origin),
        }
    }
    out.push_char(quote, None);
}

/// Python's `repr` of a float: the shortest digits that give it back, with an exponent where it is
/// far from 1.
pub(crate) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number < 0.0 { "-inf" } else { "inf" }.to_owned();
    }
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |it| ('-', it));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = number.to_string();
    if text.contains('.') { text } else { format!("{text}.0") }
}

/// How JSON is laid out.
#[derive(Debug)]
pub(crate) struct JsonForm {
    pub(crate) indent: Option<Text>,
    pub(crate) item_separator: Text,
    pub(crate) key_separator: Text,
    pub(crate) is_ascii: bool,
    pub(crate) is_sorted: bool,
}

/// Python's `json.dumps`.
pub(crate) fn json(
    value: &Value,
    form: &JsonForm,
    out: &mut Text,
    budget: &Budget,
) -> Result<(), TemplateError> {
    json_at(value, form, 0, out, budget)
}

fn json_at(
    value: &Value,
    form: &JsonForm,
    level: usize,
    out: &mut Text,
    budget: &Budget,
) -> Result<(), TemplateError> {
    budget.steps(1)?;
    match &value.0 {
        Kind::None => out.push_str("null", None),
        Kind::Bool(value) => out.push_str(if *value { "true" } else { "false" }, None),
        Kind::Int(number) => out.push_str(&number.to_string(), None),
        Kind::Float(number) if number.is_nan() => out.push_str("NaN", None),
        Kind::Float(number) if number.is_infinite() => {
            out.push_str(if *number < 0.0 { "-Infinity" } else { "Infinity" }, None);
        }
        Kind::Float(number) => out.push_str(&float(*number), None),
        Kind::Text(text) => {
            budget.bytes(text.len().saturating_mul(2))?;
            json_text(text, form.is_ascii, out);
        }
        Kind::List(list) if list.items.is_empty() => out.push_str("[]", None),
        Kind::List(list) => {
            out.push_str("[", None);
            for (at, item) in list.items.iter().enumerate() {
                begin_item(at, form, level + 1, out, budget)?;
                json_at(item, form, level + 1, out, budget)?;
            }
            new_line(form, level, out, budget)?;
            out.push_str("]", None);
        }
        Kind::Map(map) if map.entries.is_empty() => out.push_str("{}", None),
        Kind::Map(map) => {
            let mut entries: Vec<_> = map.entries.iter().collect();
            if form.is_sorted {
                let text = |value: &Value| value.as_text().map(|it| it.as_str().to_owned());
                entries.sort_by_cached_key(|(key, _)| text(key));
            }
            out.push_str("{", None);
            for (at, (key, value)) in entries.into_iter().enumerate() {
                begin_item(at, form, level + 1, out, budget)?;
                match &key.0 {
                    Kind::Text(_) => json_at(key, form, level + 1, out, budget)?,
                    _ => {
                        out.push_str("\"", None);
                        json_at(key, form, level + 1, out, budget)?;
                        out.push_str("\"", None);
                    }
                }
                out.push(&form.key_separator);
                json_at(value, form, level + 1, out, budget)?;
            }
            new_line(form, level, out, budget)?;
            out.push_str("}", None);
        }
        _ => {
            return Err(TemplateError::render(format!(
                "{} cannot be written as JSON",
                value.named()
            )));
        }
    }
    Ok(())
}

fn begin_item(
    at: usize,
    form: &JsonForm,
    level: usize,
    out: &mut Text,
    budget: &Budget,
) -> Result<(), TemplateError> {
    if 0 < at {
        out.push(&form.item_separator);
    }
    new_line(form, level, out, budget)
}

fn new_line(
    form: &JsonForm,
    level: usize,
    out: &mut Text,
    budget: &Budget,
) -> Result<(), TemplateError> {
    let Some(indent) = &form.indent else { return Ok(()) };
    budget.bytes(indent.len().saturating_mul(level))?;
    out.push_str("\n", None);
    for _ in 0..level {
        out.push(indent);
    }
    Ok(())
}

fn json_text(text: &Text, is_ascii: bool, out: &mut Text) {
    out.push_str("\"", None);
    for (c, origin) in text.chars() {
        json_char(c, is_ascii, origin, out);
    }
    out.push_str("\"", None);
}

fn json_char(c: char, is_ascii: bool, origin: Option<Origin>, out: &mut Text) {
    match c {
        '"' => out.push_str("\\\"", origin),
        '\\' => out.push_str("\\\\", origin),
        '\n' => out.push_str("\\n", origin),
        '\r' => out.push_str("\\r", origin),
        '\t' => out.push_str("\\t", origin),
        '\u{8}' => out.push_str("\\b", origin),
        '\u{c}' => out.push_str("\\f", origin),
        c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c)), origin),
        c if is_ascii && !c.is_ascii() => {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"), origin);
            }
        }
        c => out.push_char(c, origin),
    }
}
