//! Filters, as Jinja2 defines them: those on one value here, those on many in `sequences`.

mod sequences;

use std::sync::Arc;

use crate::arguments::Args;
use crate::error::TemplateError;
use crate::interpreter::Interpreter;
use crate::methods::soft_text;
use crate::print::{self, JsonForm};
use crate::strings::{self, Align, Side};
use crate::text::Text;
use crate::value::{Kind, Value};

impl Interpreter<'_> {
    /// `value | name(args)`.
    pub(crate) fn filter(
        &mut self,
        name: &str,
        value: Value,
        mut args: Args,
    ) -> Result<Value, TemplateError> {
        let filtered = match name {
            "default" | "d" => {
                let default = args.take("default_value");
                let default = default.unwrap_or_else(|| Value::text(Text::default()));
                let replaces_false = args.flag("boolean");
                let is_missing = value.is_undefined() || replaces_false && !value.is_true();
                if is_missing { default } else { value }
            }
            // Nothing is escaped here, so that marking a text as safe changes nothing.
            "string" | "safe" => Value(Kind::Text(soft_text(self, &value)?)),
            "length" | "count" => Value::count(value.length(&self.budget)?),
            "tojson" => {
                let form = json_form(&mut args)?;
                let mut text = Text::default();
                print::json(&value, &form, &mut text, &self.budget)?;
                Value::text(text)
            }
            "abs" => match value.as_int().map(i64::checked_abs) {
                Some(Some(number)) => Value(Kind::Int(number)),
                Some(None) => {
                    return Err(TemplateError::render("a whole number has more than 64 bits"));
                }
                None => Value(Kind::Float(number(&value)?.abs())),
            },
            "int" => {
                let default = args.int("default")?.unwrap_or(0);
                let base = args.int("base")?.unwrap_or(10);
                Value(Kind::Int(int(&value, base).unwrap_or(default)))
            }
            "float" => {
                let default = args.take("default").and_then(|it| it.as_float()).unwrap_or(0.0);
                Value(Kind::Float(float(&value).unwrap_or(default)))
            }
            "round" => {
                let precision = args.int("precision")?.unwrap_or(0).clamp(-15, 15);
                let method = args.string("method")?;
                let scale = 10_f64.powi(i32::try_from(precision).unwrap_or(0));
                let number = number(&value)? * scale;
                let rounded = match method.as_deref() {
                    Some("ceil") => number.ceil(),
                    Some("floor") => number.floor(),
                    _ => number.round_ties_even(),
                };
                Value(Kind::Float(rounded / scale))
            }
            "attr" => {
                let name = args.string("name")?.unwrap_or_default();
                crate::evaluate::attribute(&value, &name.into())?
            }
            "format" => {
                let form = soft_text(self, &value)?;
                let (positional, named) = std::mem::take(&mut args).into_parts();
                let values = if named.is_empty() {
                    Value::tuple(positional)?
                } else {
                    Value::from_named(named)?
                };
                Value::text(crate::format::percent(&form, &values, &self.budget)?)
            }
            "trim" | "upper" | "lower" | "capitalize" | "title" | "replace" | "indent"
            | "center" | "wordcount" | "escape" | "e" | "forceescape" => {
                let text = soft_text(self, &value)?;
                self.text_filter(name, &text, &mut args)?
            }
            _ => return self.sequence_filter(name, &value, args),
        };
        args.finish()?;
        Ok(filtered)
    }

    fn text_filter(
        &self,
        name: &str,
        text: &Arc<Text>,
        args: &mut Args,
    ) -> Result<Value, TemplateError> {
        let budget = &self.budget;
        Ok(Value::text(match name {
            "trim" => strings::strip(text, args.string("chars")?.as_deref(), Side::Both),
            "upper" => text.map(char::to_uppercase),
            "lower" => text.map(char::to_lowercase),
            "capitalize" => strings::capitalize(text),
            "title" => strings::title(text, |before| {
                before.is_none_or(|c| c.is_whitespace() || "-({[<".contains(c))
            }),
            "replace" => {
                let (old, new) = (args.require("old")?, args.require("new")?);
                let (old, new) = (soft_text(self, &old)?, soft_text(self, &new)?);
                let most = args.int("count")?;
                strings::replace(text, old.as_str(), &new, most, budget)?
            }
            "indent" => {
                let width = args.take("width").unwrap_or(Value(Kind::Int(4)));
                let indentation = match width.as_int() {
                    Some(width) => {
                        let width = usize::try_from(width).unwrap_or(0);
                        budget.bytes(width)?;
                        Arc::new(Text::template(" ".repeat(width)))
                    }
                    None => soft_text(self, &width)?,
                };
                let (is_first, is_blank) = (args.flag("first"), args.flag("blank"));
                strings::indent(text, &indentation, is_first, is_blank, budget)?
            }
            "center" => {
                let width = args.int("width")?.unwrap_or(80);
                strings::pad(text, width, (' ', None), Align::Center, budget)?
            }
            "wordcount" => {
                let is_word = |c: char| c == '_' || c.is_alphanumeric();
                let words = text.as_str().split(|c| !is_word(c)).filter(|it| !it.is_empty());
                return Ok(Value::count(words.count()));
            }
            _ => {
                budget.bytes(text.len().saturating_mul(5))?;
                let mut escaped = Text::default();
                for (c, origin) in text.chars() {
                    match c {
                        '&' => escaped.push_str("&amp;", origin),
                        '<' => escaped.push_str("&lt;", origin),
                        '>' => escaped.push_str("&gt;", origin),
                        '\'' => escaped.push_str("&#39;", origin),
                        '"' => escaped.push_str("&#34;", origin),
                        c => escaped.push_char(c, origin),
                    }
                }
                escaped
            }
        }))
    }
}

/// As Hugging Face's `tojson` takes its arguments: `json.dumps` without escapes for HTML.
fn json_form(args: &mut Args) -> Result<JsonForm, TemplateError> {
    let is_ascii = args.flag("ensure_ascii");
    let indent = match args.take("indent") {
        None | Some(Value(Kind::None)) => None,
        Some(Value(Kind::Text(text))) => Some(Text::clone(&text)),
        Some(value) => {
            let width =
                value.as_int().ok_or_else(|| TemplateError::render("`indent` is a number"))?;
            Some(Text::template(" ".repeat(usize::try_from(width.clamp(0, 64)).unwrap_or(0))))
        }
    };
    let separators = match args.take("separators") {
        None | Some(Value(Kind::None)) => None,
        Some(Value(Kind::List(list))) => match list.items.as_slice() {
            [Value(Kind::Text(item)), Value(Kind::Text(key))] => {
                Some((Text::clone(item), Text::clone(key)))
            }
            _ => return Err(TemplateError::render("`separators` are two strings")),
        },
        Some(_) => return Err(TemplateError::render("`separators` are two strings")),
    };
    let item = if indent.is_some() { "," } else { ", " };
    let (item_separator, key_separator) =
        separators.unwrap_or_else(|| (Text::template(item), Text::template(": ")));
    let is_sorted = args.flag("sort_keys");
    Ok(JsonForm { indent, item_separator, key_separator, is_ascii, is_sorted })
}

fn int(value: &Value, base: i64) -> Option<i64> {
    if let Some(text) = value.as_text() {
        let digits = text.as_str().trim().replace('_', "");
        let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base))?;
        let prefixes = [(16, ["0x", "0X"]), (8, ["0o", "0O"]), (2, ["0b", "0B"])];
        let prefix = prefixes.into_iter().find(|(own, _)| *own == base).map(|(_, it)| it);
        let bare = prefix.and_then(|it| it.into_iter().find_map(|it| digits.strip_prefix(it)));
        let whole = i64::from_str_radix(bare.unwrap_or(&digits), base).ok();
        return whole.or_else(|| truncated(float(value)?));
    }
    value.as_int().or_else(|| truncated(value.as_float()?))
}

#[expect(clippy::cast_possible_truncation, reason = "the range is looked at first")]
fn truncated(number: f64) -> Option<i64> {
    (-9e18..9e18).contains(&number).then_some(number as i64)
}

fn float(value: &Value) -> Option<f64> {
    match value.as_text() {
        Some(text) => text.as_str().trim().replace('_', "").parse().ok(),
        None => value.as_float(),
    }
}

fn number(value: &Value) -> Result<f64, TemplateError> {
    let message = || TemplateError::render(format!("a number is wanted, not {}", value.named()));
    value.as_float().ok_or_else(message)
}
