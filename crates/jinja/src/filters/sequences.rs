//! Filters on lists and dictionaries.

use std::cmp::Ordering;

use crate::arguments::Args;
use crate::budget::Budget;
use crate::error::TemplateError;
use crate::evaluate::item;
use crate::interpreter::Interpreter;
use crate::methods::{pairs, soft_text};
use crate::operators;
use crate::print;
use crate::strings;
use crate::text::Text;
use crate::value::{Kind, Value};

impl Interpreter<'_> {
    pub(super) fn sequence_filter(
        &mut self,
        name: &str,
        value: &Value,
        mut args: Args,
    ) -> Result<Value, TemplateError> {
        let filtered = match name {
            "map" => return self.map_filter(value, args),
            "select" | "reject" => return self.select(value, args, name == "select", false),
            "selectattr" | "rejectattr" => {
                return self.select(value, args, name == "selectattr", true);
            }
            "items" => match &value.0 {
                Kind::Undefined(_) => Value::list(Vec::new())?,
                Kind::Map(map) => Value::list(pairs(map)?)?,
                _ => {
                    return Err(TemplateError::render(format!("{} has no items", value.named())));
                }
            },
            "dictsort" => self.dictsort(value, &mut args)?,
            "first" => {
                let first = value.items(&self.budget)?.into_iter().next();
                first.unwrap_or_else(|| Value::undefined("the first of nothing"))
            }
            "last" => {
                let last = value.items(&self.budget)?.pop();
                last.unwrap_or_else(|| Value::undefined("the last of nothing"))
            }
            "list" => Value::list(value.items(&self.budget)?)?,
            "reverse" => match value.as_text() {
                Some(_) => operators::slice(value, [None, None, Some(-1)], &self.budget)?,
                None => Value::list(value.items(&self.budget)?.into_iter().rev().collect())?,
            },
            "join" => {
                let separator = args.take("d").map(|it| soft_text(self, &it)).transpose()?;
                let attribute = args.take("attribute");
                let mut parts = Vec::new();
                for part in value.items(&self.budget)? {
                    let part = self.read(part, attribute.as_ref())?;
                    parts.push(print::to_text(&part, &self.budget)?);
                }
                let separator = separator.unwrap_or_default();
                Value::text(strings::join(&parts, &separator, &self.budget)?)
            }
            "sum" => {
                let attribute = args.take("attribute");
                let mut sum = args.take("start").unwrap_or(Value(Kind::Int(0)));
                for part in value.items(&self.budget)? {
                    let part = self.read(part, attribute.as_ref())?;
                    let add = crate::ast::Operator::Add;
                    sum = operators::binary(add, &sum, &part, &self.budget)?;
                }
                sum
            }
            "min" | "max" => {
                let minds_case = args.flag("case_sensitive");
                let attribute = args.take("attribute");
                let items = value.items(&self.budget)?;
                let sorted =
                    self.sorted(items, |it, item| it.key(item, minds_case, attribute.as_ref()))?;
                let found = if name == "min" { sorted.first() } else { sorted.last() };
                found.cloned().unwrap_or_else(|| Value::undefined("the extreme of nothing"))
            }
            "sort" => {
                let is_reversed = args.flag("reverse");
                let minds_case = args.flag("case_sensitive");
                let attribute = args.take("attribute");
                let mut items = value.items(&self.budget)?;
                // Python keeps the order of equal ones also when it sorts the other way round.
                if is_reversed {
                    items.reverse();
                }
                let mut sorted =
                    self.sorted(items, |it, item| it.key(item, minds_case, attribute.as_ref()))?;
                if is_reversed {
                    sorted.reverse();
                }
                Value::list(sorted)?
            }
            "unique" => {
                let minds_case = args.flag("case_sensitive");
                let attribute = args.take("attribute");
                let mut seen: Vec<Value> = Vec::new();
                let mut kept = Vec::new();
                'items: for item in value.items(&self.budget)? {
                    let key = self.key(&item, minds_case, attribute.as_ref())?;
                    self.budget.steps(seen.len())?;
                    for other in &seen {
                        if other.equals(&key, &self.budget)? {
                            continue 'items;
                        }
                    }
                    seen.push(key);
                    kept.push(item);
                }
                Value::list(kept)?
            }
            "groupby" => self.group_by(value, &mut args)?,
            "batch" => {
                let size = usize::try_from(args.int("linecount")?.unwrap_or(1)).unwrap_or(0).max(1);
                let fill = args.take("fill_with");
                let items = value.items(&self.budget)?;
                let mut batches = Vec::new();
                for part in items.chunks(size) {
                    let mut batch = part.to_vec();
                    if let Some(fill) = &fill {
                        self.budget.steps(size)?;
                        batch.resize(size, fill.clone());
                    }
                    batches.push(Value::list(batch)?);
                }
                Value::list(batches)?
            }
            _ => return Err(TemplateError::render(format!("there is no filter `{name}`"))),
        };
        args.finish()?;
        Ok(filtered)
    }

    /// A value's attribute by a path such as `function.name` or `0`.
    fn read(&self, value: Value, attribute: Option<&Value>) -> Result<Value, TemplateError> {
        let Some(attribute) = attribute.filter(|it| !matches!(it.0, Kind::None)) else {
            return Ok(value);
        };
        let Some(path) = attribute.as_text() else {
            return item(&value, attribute, &self.budget);
        };
        let mut value = value;
        for name in path.as_str().split('.') {
            self.budget.steps(1)?;
            let index = match name.parse() {
                Ok(number) => Value(Kind::Int(number)),
                Err(_) => Value::text(Text::template(name)),
            };
            value = item(&value, &index, &self.budget)?;
        }
        Ok(value)
    }

    /// What a value is sorted by.
    fn key(
        &self,
        value: &Value,
        minds_case: bool,
        attribute: Option<&Value>,
    ) -> Result<Value, TemplateError> {
        let key = self.read(value.clone(), attribute)?;
        match key.as_text() {
            Some(text) if !minds_case => {
                self.budget.bytes(text.len())?;
                Ok(Value::text(text.map(char::to_lowercase)))
            }
            _ => Ok(key),
        }
    }

    /// Stable, and safe with values that have no total order, which the library's sort is not.
    fn sorted(
        &self,
        items: Vec<Value>,
        key: impl Fn(&Self, &Value) -> Result<Value, TemplateError>,
    ) -> Result<Vec<Value>, TemplateError> {
        let mut sorted: Vec<(Value, Value)> = Vec::new();
        for item in items {
            let key = key(self, &item)?;
            let place = upper_bound(&sorted, &key, &self.budget)?;
            self.budget.steps(sorted.len() / 8)?;
            sorted.insert(place, (key, item));
        }
        Ok(sorted.into_iter().map(|(_, item)| item).collect())
    }

    fn dictsort(&mut self, value: &Value, args: &mut Args) -> Result<Value, TemplateError> {
        let minds_case = args.flag("case_sensitive");
        let by = args.string("by")?;
        let is_reversed = args.flag("reverse");
        let Kind::Map(map) = &value.0 else {
            return Err(TemplateError::render(format!("{} has no items", value.named())));
        };
        let place = Value(Kind::Int(i64::from(by.as_deref() == Some("value"))));
        let mut pairs = pairs(map)?;
        if is_reversed {
            pairs.reverse();
        }
        let mut sorted = self.sorted(pairs, |it, pair| it.key(pair, minds_case, Some(&place)))?;
        if is_reversed {
            sorted.reverse();
        }
        Value::list(sorted)
    }

    fn group_by(&mut self, value: &Value, args: &mut Args) -> Result<Value, TemplateError> {
        let attribute = args.require("attribute")?;
        let default = args.take("default");
        let minds_case = args.flag("case_sensitive");
        let read = |it: &Self, item: &Value| {
            let key = it.read(item.clone(), Some(&attribute))?;
            let key = if key.is_undefined() { default.clone().unwrap_or(key) } else { key };
            it.key(&key, minds_case, None)
        };
        let sorted = self.sorted(value.items(&self.budget)?, read)?;
        let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
        for item in sorted {
            let key = read(self, &item)?;
            match groups.last_mut() {
                Some((own, _, items)) if own.equals(&key, &self.budget)? => items.push(item),
                _ => {
                    let name = self.read(item.clone(), Some(&attribute))?;
                    groups.push((key, name, vec![item]));
                }
            }
        }
        let group = |(_, name, items): (_, Value, _)| {
            let name = if name.is_undefined() { default.clone().unwrap_or(name) } else { name };
            Value::tuple(vec![name, Value::list(items)?])
        };
        Value::list(groups.into_iter().map(group).collect::<Result<_, TemplateError>>()?)
    }

    fn map_filter(&mut self, value: &Value, mut args: Args) -> Result<Value, TemplateError> {
        let items = self.items_if_any(value)?;
        if let Some(attribute) = args.take_named("attribute") {
            let default = args.take_named("default");
            args.finish()?;
            let read = |item| {
                let found = self.read(item, Some(&attribute))?;
                Ok(match &default {
                    Some(default) if found.is_undefined() => default.clone(),
                    _ => found,
                })
            };
            return Value::list(items.into_iter().map(read).collect::<Result<_, TemplateError>>()?);
        }
        let Some(name) = args.string("filter")? else {
            return Err(TemplateError::render("`map` wants a filter or an attribute"));
        };
        let (positional, named) = args.into_parts();
        let mut mapped = Vec::new();
        for item in items {
            let args = Args::new(positional.clone(), named.clone());
            mapped.push(self.nested(|it| it.filter(&name, item, args))?);
        }
        Value::list(mapped)
    }

    /// These filters take whatever is false, such as `none`, for nothing.
    fn items_if_any(&self, value: &Value) -> Result<Vec<Value>, TemplateError> {
        if value.is_true() { value.items(&self.budget) } else { Ok(Vec::new()) }
    }

    fn select(
        &mut self,
        value: &Value,
        mut args: Args,
        keeps: bool,
        has_attribute: bool,
    ) -> Result<Value, TemplateError> {
        let attribute = if has_attribute { Some(args.require("attribute")?) } else { None };
        let test = args.string("test")?;
        let (positional, named) = args.into_parts();
        let mut kept = Vec::new();
        for item in self.items_if_any(value)? {
            let tested = self.read(item.clone(), attribute.as_ref())?;
            let passes = match &test {
                None => tested.is_true(),
                Some(test) => {
                    let args = Args::new(positional.clone(), named.clone());
                    self.nested(|it| it.test(test, &tested, args))?
                }
            };
            if passes == keeps {
                kept.push(item);
            }
        }
        Value::list(kept)
    }
}

/// The place behind all keys that are not greater.
fn upper_bound(
    sorted: &[(Value, Value)],
    key: &Value,
    budget: &Budget,
) -> Result<usize, TemplateError> {
    let (mut low, mut high) = (0, sorted.len());
    while low < high {
        budget.steps(1)?;
        let middle = low.midpoint(high);
        let order = match sorted.get(middle) {
            Some((own, _)) => key.compare(own, budget)?,
            None => None,
        };
        if order == Some(Ordering::Less) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(low)
}
