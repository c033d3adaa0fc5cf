//! What stands behind `is`, as Jinja2 defines it.

use crate::arguments::Args;
use crate::ast::Comparison;
use crate::error::TemplateError;
use crate::interpreter::Interpreter;
use crate::value::{Kind, Value};

impl Interpreter<'_> {
    /// `value is name(args)`.
    pub(crate) fn test(
        &mut self,
        name: &str,
        value: &Value,
        mut args: Args,
    ) -> Result<bool, TemplateError> {
        let kind = &value.0;
        let is = match name {
            "defined" => !value.is_undefined(),
            "undefined" => value.is_undefined(),
            "none" => matches!(kind, Kind::None),
            "boolean" => matches!(kind, Kind::Bool(_)),
            "true" => matches!(kind, Kind::Bool(true)),
            "false" => matches!(kind, Kind::Bool(false)),
            "integer" => matches!(kind, Kind::Int(_)),
            "float" => matches!(kind, Kind::Float(_)),
            "number" => value.as_float().is_some(),
            "string" => matches!(kind, Kind::Text(_)),
            "mapping" => matches!(kind, Kind::Map(_)),
            // What has a length and items, which includes strings and dictionaries.
            "sequence" => matches!(kind, Kind::Text(_) | Kind::List(_) | Kind::Map(_)),
            "iterable" => {
                matches!(kind, Kind::Text(_) | Kind::List(_) | Kind::Map(_) | Kind::Undefined(_))
            }
            "callable" => {
                matches!(kind, Kind::Macro(_) | Kind::Function(_) | Kind::Method(_) | Kind::Loop(_))
            }
            "lower" | "upper" => {
                let text = value.as_text().map(|text| text.as_str()).unwrap_or_default();
                self.budget.reading(text.len())?;
                let has_lower = text.chars().any(char::is_lowercase);
                let has_upper = text.chars().any(char::is_uppercase);
                if name == "lower" { has_lower && !has_upper } else { has_upper && !has_lower }
            }
            "odd" | "even" => {
                let number = value.as_int().ok_or_else(|| {
                    TemplateError::render(format!(
                        "a whole number is wanted, not {}",
                        value.named()
                    ))
                })?;
                (number % 2 == 0) == (name == "even")
            }
            "divisibleby" => {
                let by = args.int("num")?.unwrap_or(0);
                let rest = value.as_int().and_then(|number| number.checked_rem(by));
                rest.ok_or_else(|| TemplateError::render("`divisibleby` wants whole numbers"))? == 0
            }
            "escaped" => false,
            "sameas" => {
                let other = args.require("other")?;
                value.type_name() == other.type_name() && value.equals(&other, &self.budget)?
            }
            _ => {
                let Some(comparison) = comparison(name) else {
                    return Err(TemplateError::render(format!("there is no test `{name}`")));
                };
                let other = args.require("other")?;
                self.compare(comparison, value, &other)?
            }
        };
        args.finish()?;
        Ok(is)
    }
}

fn comparison(name: &str) -> Option<Comparison> {
    Some(match name {
        "eq" | "equalto" | "==" => Comparison::Equal,
        "ne" | "!=" => Comparison::NotEqual,
        "lt" | "lessthan" | "<" => Comparison::Less,
        "le" | "<=" => Comparison::LessOrEqual,
        "gt" | "greaterthan" | ">" => Comparison::Greater,
        "ge" | ">=" => Comparison::GreaterOrEqual,
        "in" => Comparison::In,
        _ => return None,
    })
}
