//! Python's operators on values. Whole numbers have 64 bits; beyond them is an error.

use crate::ast::Operator;
use crate::budget::Budget;
use crate::error::TemplateError;
use crate::text::Text;
use crate::value::{Kind, Value};
use crate::{format, print};

pub(crate) fn negative(value: &Value) -> Result<Value, TemplateError> {
    match (value.as_int(), value.as_float()) {
        (Some(number), _) => number.checked_neg().map(|it| Value(Kind::Int(it))).ok_or_else(large),
        (None, Some(number)) => Ok(Value(Kind::Float(-number))),
        (None, None) => Err(TemplateError::render(format!("{} has no negative", value.named()))),
    }
}

pub(crate) fn positive(value: &Value) -> Result<Value, TemplateError> {
    match (value.as_int(), value.as_float()) {
        (Some(number), _) => Ok(Value(Kind::Int(number))),
        (None, Some(number)) => Ok(Value(Kind::Float(number))),
        (None, None) => Err(TemplateError::render(format!("{} is no number", value.named()))),
    }
}

fn large() -> TemplateError {
    TemplateError::render("a whole number has more than 64 bits")
}

pub(crate) fn binary(
    operator: Operator,
    left: &Value,
    right: &Value,
    budget: &Budget,
) -> Result<Value, TemplateError> {
    match (operator, &left.0, &right.0) {
        (Operator::Add, Kind::Text(a), Kind::Text(b)) => {
            budget.bytes(a.len().saturating_add(b.len()))?;
            let mut text = Text::clone(a);
            text.push(b);
            return Ok(Value::text(text));
        }
        (Operator::Add, Kind::List(a), Kind::List(b)) if a.is_tuple == b.is_tuple => {
            budget.steps(a.items.len().saturating_add(b.items.len()))?;
            let items = a.items.iter().chain(&b.items).cloned().collect();
            return if a.is_tuple { Value::tuple(items) } else { Value::list(items) };
        }
        (Operator::Modulo, Kind::Text(form), _) => {
            return format::percent(form, right, budget).map(Value::text);
        }
        (Operator::Multiply, Kind::Text(_) | Kind::List(_), _) => {
            if let Some(n) = right.as_int() {
                return repeat(left, n, budget);
            }
        }
        (Operator::Multiply, _, Kind::Text(_) | Kind::List(_)) => {
            if let Some(n) = left.as_int() {
                return repeat(right, n, budget);
            }
        }
        _ => {}
    }
    if let (Some(a), Some(b)) = (left.as_int(), right.as_int())
        && operator != Operator::Divide
        && !(operator == Operator::Power && b < 0)
    {
        return integers(operator, a, b).map(|number| Value(Kind::Int(number)));
    }
    match (left.as_float(), right.as_float()) {
        (Some(a), Some(b)) => floats(operator, a, b).map(|number| Value(Kind::Float(number))),
        _ => {
            let sign = match operator {
                Operator::Add => "+",
                Operator::Subtract => "-",
                Operator::Multiply => "*",
                Operator::Divide => "/",
                Operator::IntegerDivide => "//",
                Operator::Modulo => "%",
                Operator::Power => "**",
            };
            let (a, b) = (left.named(), right.named());
            Err(TemplateError::render(format!("`{sign}` does not work on {a} and {b}")))
        }
    }
}

fn zero() -> TemplateError {
    TemplateError::render("nothing can be divided by zero")
}

fn integers(operator: Operator, a: i64, b: i64) -> Result<i64, TemplateError> {
    match operator {
        Operator::Add => a.checked_add(b),
        Operator::Subtract => a.checked_sub(b),
        Operator::Multiply => a.checked_mul(b),
        Operator::IntegerDivide | Operator::Modulo | Operator::Divide if b == 0 => {
            return Err(zero());
        }
        // Python rounds down, Rust to zero.
        Operator::IntegerDivide | Operator::Divide => a
            .checked_div_euclid(b)
            .map(|quotient| if b < 0 && a.rem_euclid(b) != 0 { quotient - 1 } else { quotient }),
        Operator::Modulo => a
            .checked_rem(b)
            .map(|rest| if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }),
        Operator::Power => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
    }
    .ok_or_else(large)
}

fn floats(operator: Operator, a: f64, b: f64) -> Result<f64, TemplateError> {
    Ok(match operator {
        Operator::Add => a + b,
        Operator::Subtract => a - b,
        Operator::Multiply => a * b,
        Operator::Divide | Operator::IntegerDivide | Operator::Modulo if b == 0.0 => {
            return Err(zero());
        }
        Operator::Divide => a / b,
        Operator::IntegerDivide => (a / b).floor(),
        Operator::Modulo => a - b * (a / b).floor(),
        Operator::Power => a.powf(b),
    })
}

fn repeat(value: &Value, n: i64, budget: &Budget) -> Result<Value, TemplateError> {
    let n = usize::try_from(n).unwrap_or(0);
    match &value.0 {
        Kind::Text(text) => {
            budget.bytes(text.len().saturating_mul(n))?;
            let mut repeated = Text::default();
            if !text.is_empty() {
                (0..n).for_each(|_| repeated.push(text));
            }
            Ok(Value::text(repeated))
        }
        Kind::List(list) => {
            budget.steps(list.items.len().saturating_mul(n))?;
            let n = if list.items.is_empty() { 0 } else { n };
            let items = (0..n).flat_map(|_| list.items.iter().cloned()).collect();
            if list.is_tuple { Value::tuple(items) } else { Value::list(items) }
        }
        _ => Err(TemplateError::render(format!("{} cannot be repeated", value.named()))),
    }
}

/// `item in container`.
pub(crate) fn contains(
    container: &Value,
    item: &Value,
    budget: &Budget,
) -> Result<bool, TemplateError> {
    match (&container.0, &item.0) {
        (Kind::Text(text), Kind::Text(part)) => {
            budget.reading(text.len())?;
            Ok(text.as_str().contains(part.as_str()))
        }
        (Kind::Text(_), _) => {
            Err(TemplateError::render(format!("{} cannot be in a string", item.named())))
        }
        (Kind::Map(map), _) => Ok(map.get(item, budget)?.is_some()),
        (Kind::List(list), _) => {
            budget.steps(list.items.len())?;
            for own in &list.items {
                if own.equals(item, budget)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        (Kind::Undefined(_), _) => Ok(false),
        _ => Err(TemplateError::render(format!("nothing can be in {}", container.named()))),
    }
}

/// A Python index, which may count from the end, as a place.
pub(crate) fn place(index: i64, length: usize) -> Option<usize> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let at = if index < 0 { index.saturating_add(length) } else { index };
    usize::try_from(at).ok().filter(|_| at < length)
}

/// `value[start:stop:step]`.
pub(crate) fn slice(
    value: &Value,
    [start, stop, step]: [Option<i64>; 3],
    budget: &Budget,
) -> Result<Value, TemplateError> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(TemplateError::render("a slice cannot step by zero"));
    }
    let length = match &value.0 {
        Kind::Text(_) | Kind::List(_) => i64::try_from(value.length(budget)?).unwrap_or(i64::MAX),
        _ => return Err(TemplateError::render(format!("{} cannot be sliced", value.named()))),
    };
    let (least, most) = if step < 0 { (-1, length - 1) } else { (0, length) };
    let clamp = |bound: i64| {
        let bound = if bound < 0 { bound.saturating_add(length) } else { bound };
        bound.clamp(least, most)
    };
    let start = start.map_or(if step < 0 { most } else { least }, clamp);
    let stop = stop.map_or(if step < 0 { least } else { most }, clamp);
    if let (Kind::Text(text), 1) = (&value.0, step) {
        budget.bytes(text.len())?;
        let string = text.as_str();
        let byte = |place: i64| {
            let place = usize::try_from(place).unwrap_or(0);
            string.char_indices().nth(place).map_or(string.len(), |(at, _)| at)
        };
        let (start, stop) = (byte(start), byte(stop));
        return Ok(Value::text(text.slice(start..stop.max(start))));
    }
    let mut places = Vec::new();
    let mut at = start;
    while if step < 0 { stop < at } else { at < stop } {
        budget.steps(1)?;
        places.push(usize::try_from(at).unwrap_or(0));
        at = at.saturating_add(step);
    }
    match &value.0 {
        Kind::Text(text) => {
            budget.steps(text.len())?;
            let all: Vec<_> = text.chars().collect();
            let mut picked = Text::default();
            for (c, origin) in places.into_iter().filter_map(|at| all.get(at)) {
                picked.push_char(*c, *origin);
            }
            Ok(Value::text(picked))
        }
        Kind::List(list) => {
            let items = places.into_iter().filter_map(|at| list.items.get(at).cloned()).collect();
            if list.is_tuple { Value::tuple(items) } else { Value::list(items) }
        }
        _ => print::to_text(value, budget).map(Value::text),
    }
}
