//! Functions that a template can call by name, and what `loop` tells.

use std::sync::Arc;

use crate::arguments::Args;
use crate::error::TemplateError;
use crate::interpreter::Interpreter;
use crate::print;
use crate::text::Text;
use crate::value::{Kind, Loop, Value};

const FUNCTIONS: [&str; 5] = ["dict", "namespace", "raise_exception", "range", "strftime_now"];

/// Its name, for [`Kind::Function`].
pub(crate) fn find(name: &str) -> Option<&'static str> {
    FUNCTIONS.into_iter().find(|own| *own == name)
}

pub(crate) fn call(
    interpreter: &mut Interpreter<'_>,
    name: &str,
    mut args: Args,
) -> Result<Value, TemplateError> {
    match name {
        "range" => range(interpreter, args),
        "dict" => Value::from_entries(entries(interpreter, args)?),
        "namespace" => {
            let entries = entries(interpreter, args)?.into_iter();
            let attribute = |(key, value): (Value, Value)| {
                let name =
                    key.as_text().ok_or_else(|| TemplateError::render("names are strings"))?;
                Ok((Arc::from(name.as_str()), value))
            };
            Ok(interpreter.namespace(entries.map(attribute).collect::<Result<_, TemplateError>>()?))
        }
        "raise_exception" => {
            let message = args.require("message")?;
            let message = print::to_text(&message, &interpreter.budget)?;
            Err(TemplateError::raised(message.as_str()))
        }
        "strftime_now" => {
            let Some(format) = args.text("format")? else {
                return Err(TemplateError::render("strftime_now wants a format"));
            };
            args.finish()?;
            interpreter.budget.bytes(format.len().saturating_mul(16))?;
            let mut text = String::new();
            let time = interpreter.now.format(format.as_str());
            if std::fmt::Write::write_fmt(&mut text, format_args!("{time}")).is_err() {
                return Err(TemplateError::render(format!(
                    "strftime_now does not know {:?}",
                    format.as_str()
                )));
            }
            let mut date = Text::default();
            date.push_str(&text, format.origin());
            Ok(Value::text(date))
        }
        _ => Err(TemplateError::render(format!("there is no function `{name}`"))),
    }
}

/// A mapping's entries and the named arguments.
fn entries(
    interpreter: &Interpreter<'_>,
    mut args: Args,
) -> Result<Vec<(Value, Value)>, TemplateError> {
    let mut entries = Vec::new();
    let (positional, named) = match args.take("") {
        None => args.into_parts(),
        Some(first) => {
            let pairs = match &first.0 {
                Kind::Map(map) => map.entries.clone(),
                _ => {
                    let mut pairs = Vec::new();
                    for pair in first.items(&interpreter.budget)? {
                        let pair = pair.items(&interpreter.budget)?;
                        let [key, value] = <[Value; 2]>::try_from(pair)
                            .map_err(|_| TemplateError::render("a dictionary is made of pairs"))?;
                        pairs.push((key, value));
                    }
                    pairs
                }
            };
            for (key, value) in pairs {
                interpreter.insert(&mut entries, key, value)?;
            }
            args.into_parts()
        }
    };
    if !positional.is_empty() {
        return Err(TemplateError::render("there are too many arguments"));
    }
    for (name, value) in named {
        interpreter.insert(&mut entries, Value(Kind::Text(name)), value)?;
    }
    Ok(entries)
}

fn range(interpreter: &Interpreter<'_>, mut args: Args) -> Result<Value, TemplateError> {
    let first = args.int("start")?.ok_or_else(|| TemplateError::render("range wants a number"))?;
    let second = args.int("stop")?;
    let step = args.int("step")?.unwrap_or(1);
    args.finish()?;
    if step == 0 {
        return Err(TemplateError::render("a range cannot step by zero"));
    }
    let (mut at, stop) = second.map_or((0, first), |stop| (first, stop));
    let mut items = Vec::new();
    while if step < 0 { stop < at } else { at < stop } {
        interpreter.budget.steps(1)?;
        items.push(Value(Kind::Int(at)));
        at = at.saturating_add(step);
    }
    Value::list(items)
}

/// `loop.name`.
pub(crate) fn loop_attribute(state: &Loop, name: &str) -> Result<Option<Value>, TemplateError> {
    let items = &state.items.items;
    let (index, length) = (state.index.get(), items.len());
    let left = length.saturating_sub(index);
    let neighbour = |place: Option<usize>, name: &str| {
        let found = place.and_then(|at| items.get(at)).cloned();
        found.unwrap_or_else(|| Value::undefined(format!("loop.{name}")))
    };
    Ok(Some(match name {
        "index" => Value::count(index.saturating_add(1)),
        "index0" => Value::count(index),
        "revindex" => Value::count(left),
        "revindex0" => Value::count(left.saturating_sub(1)),
        "first" => Value::bool(index == 0),
        "last" => Value::bool(left <= 1),
        "length" => Value::count(length),
        "depth" => Value(Kind::Int(state.level.saturating_add(1))),
        "depth0" => Value(Kind::Int(state.level)),
        "previtem" => neighbour(index.checked_sub(1), name),
        "nextitem" => neighbour(index.checked_add(1), name),
        _ => return Ok(None),
    }))
}
