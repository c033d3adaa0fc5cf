//! Methods of strings, dictionaries, lists and loops. Those that would change a value are refused, as in
//! Hugging Face's sandbox: a template must not change what it was given.

use std::sync::Arc;

use crate::arguments::Args;
use crate::error::TemplateError;
use crate::interpreter::Interpreter;
use crate::strings::{self, Align, Side};
use crate::text::{Text, is_space};
use crate::value::{Kind, List, Loop, Map, Value};
use crate::{format, print};

const TEXT: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isdecimal",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];
const MAP: &[&str] =
    &["clear", "copy", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];
const LIST: &[&str] = &[
    "append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse",
    "sort",
];

/// Whether the value has a method of this name.
pub(crate) fn has(value: &Value, name: &str) -> bool {
    let methods = match &value.0 {
        Kind::Text(_) => TEXT,
        Kind::Map(_) => MAP,
        Kind::List(list) if list.is_tuple => &["count", "index"],
        Kind::List(_) => LIST,
        Kind::Loop(_) => &["changed", "cycle"],
        _ => return false,
    };
    methods.contains(&name)
}

pub(crate) fn call(
    interpreter: &mut Interpreter<'_>,
    receiver: &Value,
    name: &str,
    args: Args,
) -> Result<Value, TemplateError> {
    match &receiver.0 {
        Kind::Text(text) => {
            interpreter.budget.bytes(text.len())?;
            text_method(interpreter, text, name, args)
        }
        Kind::Map(map) => map_method(interpreter, receiver, map, name, args),
        Kind::List(list) => list_method(interpreter, receiver, list, name, args),
        Kind::Loop(state) => loop_method(interpreter, state, name, args),
        _ => Err(TemplateError::render(format!("{} has no method `{name}`", receiver.named()))),
    }
}

fn changes(name: &str) -> TemplateError {
    TemplateError::render(format!("`{name}` would change a value, which a chat template may not"))
}

fn required(args: &mut Args, name: &str) -> Result<Arc<Text>, TemplateError> {
    let value = args.require(name)?;
    let text = value.as_text().cloned();
    text.ok_or_else(|| {
        TemplateError::render(format!("`{name}` must be a string, not {}", value.named()))
    })
}

fn texts(values: Vec<Text>) -> Result<Value, TemplateError> {
    Value::list(values.into_iter().map(Value::text).collect())
}

fn text_method(
    interpreter: &mut Interpreter<'_>,
    text: &Arc<Text>,
    name: &str,
    mut args: Args,
) -> Result<Value, TemplateError> {
    let string = text.as_str();
    let budget = &interpreter.budget;
    let all = |is: fn(char) -> bool| Value::bool(!string.is_empty() && string.chars().all(is));
    let value = match name {
        "strip" | "lstrip" | "rstrip" => {
            let chars = args.string("chars")?;
            let side = match name {
                "lstrip" => Side::Left,
                "rstrip" => Side::Right,
                _ => Side::Both,
            };
            Value::text(strings::strip(text, chars.as_deref(), side))
        }
        "split" | "rsplit" => {
            let separator = args.string("sep")?;
            let most = args.int("maxsplit")?;
            texts(strings::split(text, separator.as_deref(), most, name == "rsplit", budget)?)?
        }
        "splitlines" => texts(strings::split_lines(text, args.flag("keepends"), budget)?)?,
        "partition" | "rpartition" => {
            let separator = required(&mut args, "sep")?;
            let found = match (name, separator.as_str()) {
                (_, "") => return Err(TemplateError::render("a separator must not be empty")),
                ("partition", separator) => string.find(separator),
                (_, separator) => string.rfind(separator),
            };
            let parts = match found {
                Some(at) => {
                    let end = at + separator.len();
                    [text.slice(0..at), text.slice(at..end), text.slice(end..string.len())]
                }
                None if name == "partition" => {
                    [Text::clone(text), Text::default(), Text::default()]
                }
                None => [Text::default(), Text::default(), Text::clone(text)],
            };
            Value::tuple(parts.map(Value::text).into())?
        }
        "startswith" | "endswith" => {
            let wanted = args.require("prefix")?;
            let wanted = match &wanted.0 {
                Kind::List(list) => list.items.clone(),
                _ => vec![wanted],
            };
            let start = args.int("start")?;
            let from = if start.is_none() { string } else { from_char(string, start) };
            let mut found = false;
            for one in &wanted {
                let one = one.as_text().ok_or_else(|| {
                    TemplateError::render(format!("`{name}` wants a string, not {}", one.named()))
                })?;
                let one = one.as_str();
                budget.reading(one.len())?;
                found |=
                    if name == "startswith" { from.starts_with(one) } else { from.ends_with(one) };
            }
            Value::bool(found)
        }
        "replace" => {
            let (old, new) = (required(&mut args, "old")?, required(&mut args, "new")?);
            let most = args.int("count")?;
            Value::text(strings::replace(text, old.as_str(), &new, most, budget)?)
        }
        "removeprefix" => {
            let prefix = required(&mut args, "prefix")?;
            Value::text(text.part(string.strip_prefix(prefix.as_str()).unwrap_or(string)))
        }
        "removesuffix" => {
            let suffix = required(&mut args, "suffix")?;
            Value::text(text.part(string.strip_suffix(suffix.as_str()).unwrap_or(string)))
        }
        "find" | "rfind" | "index" => {
            let wanted = required(&mut args, "sub")?;
            let start = args.int("start")?;
            let remainder = from_char(string, start);
            let found = match name {
                "rfind" => remainder.rfind(wanted.as_str()),
                _ => remainder.find(wanted.as_str()),
            };
            let base = string.len() - remainder.len();
            let place = found.and_then(|at| string.get(..base + at)).map(|it| it.chars().count());
            match place {
                Some(place) => Value::count(place),
                None if name == "index" => {
                    return Err(TemplateError::render("`index` finds nothing"));
                }
                None => Value(Kind::Int(-1)),
            }
        }
        "count" => match required(&mut args, "sub")?.as_str() {
            "" => Value::count(string.chars().count().saturating_add(1)),
            wanted => Value::count(string.matches(wanted).count()),
        },
        "upper" => Value::text(text.map(char::to_uppercase)),
        "lower" | "casefold" => Value::text(text.map(char::to_lowercase)),
        "capitalize" => Value::text(strings::capitalize(text)),
        "title" => {
            let begins = |before: Option<char>| !before.is_some_and(char::is_alphabetic);
            Value::text(strings::title(text, begins))
        }
        "swapcase" => Value::text(strings::swap_case(text)),
        "join" => {
            let mut parts = Vec::new();
            for item in args.require("iterable")?.items(budget)? {
                let part = item.as_text().ok_or_else(|| {
                    TemplateError::render(format!("`join` wants strings, not {}", item.named()))
                })?;
                budget.bytes(part.len())?;
                parts.push(Text::clone(part));
            }
            Value::text(strings::join(&parts, text, budget)?)
        }
        "center" | "ljust" | "rjust" => {
            let width = args.int("width")?.unwrap_or(0);
            let fill = args.text("fillchar")?.and_then(|fill| fill.chars().next());
            let align = match name {
                "ljust" => Align::Left,
                "rjust" => Align::Right,
                _ => Align::Center,
            };
            Value::text(strings::pad(text, width, fill.unwrap_or((' ', None)), align, budget)?)
        }
        "zfill" => {
            let width = args.int("width")?.unwrap_or(0);
            let sign = usize::from(string.starts_with(['-', '+']));
            let digits = text.slice(sign..string.len());
            let width = width.saturating_sub(i64::from(sign == 1));
            let mut padded = text.slice(0..sign);
            padded.push(&strings::pad(&digits, width, ('0', None), Align::Right, budget)?);
            Value::text(padded)
        }
        "format" => {
            let (positional, named) = std::mem::take(&mut args).into_parts();
            Value::text(format::braces(text, &positional, &named, budget)?)
        }
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isdigit" | "isdecimal" | "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "islower" => Value::bool(
            string.chars().any(char::is_lowercase) && !string.chars().any(char::is_uppercase),
        ),
        "isupper" => Value::bool(
            string.chars().any(char::is_uppercase) && !string.chars().any(char::is_lowercase),
        ),
        _ => return Err(TemplateError::render(format!("a string has no method `{name}`"))),
    };
    args.finish()?;
    Ok(value)
}

/// What follows from a character's place on, which may count from the end.
fn from_char(string: &str, start: Option<i64>) -> &str {
    let Some(start) = start else { return string };
    let length = i64::try_from(string.chars().count()).unwrap_or(i64::MAX);
    let start = if start < 0 { start.saturating_add(length).max(0) } else { start };
    let at = string.char_indices().nth(usize::try_from(start).unwrap_or(usize::MAX));
    at.and_then(|(at, _)| string.get(at..)).unwrap_or_default()
}

fn map_method(
    interpreter: &mut Interpreter<'_>,
    receiver: &Value,
    map: &Map,
    name: &str,
    mut args: Args,
) -> Result<Value, TemplateError> {
    interpreter.budget.steps(map.entries.len())?;
    let entries = map.entries.iter();
    let value = match name {
        "get" => {
            let key = args.require("key")?;
            let default = args.take("default").unwrap_or(Value::NONE);
            map.get(&key, &interpreter.budget)?.cloned().unwrap_or(default)
        }
        "items" => Value::list(pairs(map)?)?,
        "keys" => Value::list(entries.map(|(key, _)| key.clone()).collect())?,
        "values" => Value::list(entries.map(|(_, value)| value.clone()).collect())?,
        "copy" => receiver.clone(),
        _ => return Err(changes(name)),
    };
    args.finish()?;
    Ok(value)
}

/// A dictionary as pairs of key and value.
pub(crate) fn pairs(map: &Map) -> Result<Vec<Value>, TemplateError> {
    let pair = |(key, value): &(Value, Value)| Value::tuple(vec![key.clone(), value.clone()]);
    map.entries.iter().map(pair).collect()
}

fn list_method(
    interpreter: &mut Interpreter<'_>,
    receiver: &Value,
    list: &List,
    name: &str,
    mut args: Args,
) -> Result<Value, TemplateError> {
    let value = match name {
        "copy" => receiver.clone(),
        "count" | "index" => {
            let wanted = args.require("value")?;
            let mut places = Vec::new();
            interpreter.budget.steps(list.items.len())?;
            for (at, item) in list.items.iter().enumerate() {
                if item.equals(&wanted, &interpreter.budget)? {
                    places.push(at);
                }
            }
            match (name, places.first()) {
                ("count", _) => Value::count(places.len()),
                (_, Some(place)) => Value::count(*place),
                (_, None) => return Err(TemplateError::render("`index` finds nothing")),
            }
        }
        _ => return Err(changes(name)),
    };
    args.finish()?;
    Ok(value)
}

fn loop_method(
    interpreter: &mut Interpreter<'_>,
    state: &Loop,
    name: &str,
    args: Args,
) -> Result<Value, TemplateError> {
    let (values, _) = args.into_parts();
    if name == "cycle" {
        let at = state.index.get().checked_rem(values.len());
        let value = at.and_then(|at| values.get(at)).cloned();
        return value.ok_or_else(|| TemplateError::render("`cycle` wants values"));
    }
    let new = Value::tuple(values)?;
    let old = state.seen.replace(Some(new.clone()));
    let is_same = match old {
        Some(old) => old.equals(&new, &interpreter.budget)?,
        None => false,
    };
    Ok(Value::bool(!is_same))
}

/// Writes any value as a string, as it is where it is one.
pub(crate) fn soft_text(
    interpreter: &Interpreter<'_>,
    value: &Value,
) -> Result<Arc<Text>, TemplateError> {
    match value.as_text() {
        Some(text) => {
            interpreter.budget.bytes(text.len())?;
            Ok(Arc::clone(text))
        }
        None => print::to_text(value, &interpreter.budget).map(Arc::new),
    }
}
