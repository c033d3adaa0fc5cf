//! Evaluates expressions. Operators are Python's; what is missing follows Jinja2's `Undefined`: it
//! prints as nothing and has no items, but nothing can be read from it or added to it.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::arguments::Args;
use crate::ast::{Arguments, Comparison, Expression, Node};
use crate::budget::Budget;
use crate::error::TemplateError;
use crate::interpreter::Interpreter;
use crate::operators;
use crate::text::Text;
use crate::value::{Kind, Value};
use crate::{functions, methods, print};

impl Interpreter<'_> {
    pub(crate) fn evaluate(&mut self, node: &Node) -> Result<Value, TemplateError> {
        match &node.expression {
            Expression::None => Ok(Value::NONE),
            Expression::Bool(value) => Ok(Value::bool(*value)),
            Expression::Int(number) => Ok(Value(Kind::Int(*number))),
            Expression::Float(number) => Ok(Value(Kind::Float(*number))),
            Expression::Text(text) => Ok(Value(Kind::Text(Arc::clone(text)))),
            Expression::Name(symbol) => {
                self.budget.steps(1)?;
                if let Some(value) = self.lookup(*symbol) {
                    return Ok(value.clone());
                }
                let name = self.name(*symbol);
                let function = functions::find(&name);
                Ok(function.map_or_else(|| Value::undefined(name), |it| Value(Kind::Function(it))))
            }
            _ => self.nested(|it| it.compound(node)).map_err(|error| error.at(node.line)),
        }
    }

    fn evaluate_all(&mut self, nodes: &[Node]) -> Result<Vec<Value>, TemplateError> {
        nodes.iter().map(|node| self.evaluate(node)).collect()
    }

    fn compound(&mut self, node: &Node) -> Result<Value, TemplateError> {
        match &node.expression {
            Expression::List(items) => Value::list(self.evaluate_all(items)?),
            Expression::Tuple(items) => Value::tuple(self.evaluate_all(items)?),
            Expression::Map(entries) => {
                let mut map = Vec::new();
                for (key, value) in entries {
                    let (key, value) = (self.evaluate(key)?, self.evaluate(value)?);
                    self.insert(&mut map, key, value)?;
                }
                Value::from_entries(map)
            }
            Expression::Attribute(receiver, name) => {
                let receiver = self.evaluate(receiver)?;
                attribute(&receiver, name)
            }
            Expression::Item(receiver, index) => {
                let receiver = self.evaluate(receiver)?;
                let index = self.evaluate(index)?;
                item(&receiver, &index, &self.budget)
            }
            Expression::Slice(receiver, bounds) => {
                let receiver = self.evaluate(receiver)?;
                let mut numbers = [None; 3];
                for (number, bound) in numbers.iter_mut().zip(bounds.iter()) {
                    let Some(bound) = bound else { continue };
                    let value = self.evaluate(bound)?;
                    if !matches!(value.0, Kind::None) {
                        let wrong =
                            || TemplateError::render("the bounds of a slice are whole numbers");
                        *number = Some(value.as_int().ok_or_else(wrong)?);
                    }
                }
                operators::slice(&receiver, numbers, &self.budget)
            }
            Expression::Call(..) => self.call_with(node, None),
            Expression::Filter(value, filter) => {
                let value = self.evaluate(value)?;
                let args = self.arguments(&filter.arguments)?;
                self.filter(&filter.name, value, args)
            }
            Expression::Test { value, test, is_negated } => {
                let value = self.evaluate(value)?;
                let args = self.arguments(&test.arguments)?;
                Ok(Value::bool(self.test(&test.name, &value, args)? != *is_negated))
            }
            Expression::Not(value) => Ok(Value::bool(!self.evaluate(value)?.is_true())),
            Expression::Negative(value) => operators::negative(&self.evaluate(value)?),
            Expression::Positive(value) => operators::positive(&self.evaluate(value)?),
            Expression::Binary(operator, left, right) => {
                let left = self.evaluate(left)?;
                let right = self.evaluate(right)?;
                operators::binary(*operator, &left, &right, &self.budget)
            }
            Expression::Compare(first, others) => {
                let mut left = self.evaluate(first)?;
                for (comparison, node) in others {
                    let right = self.evaluate(node)?;
                    if !self.compare(*comparison, &left, &right)? {
                        return Ok(Value::bool(false));
                    }
                    left = right;
                }
                Ok(Value::bool(true))
            }
            Expression::Concat(items) => {
                let mut text = Text::default();
                for item in items {
                    let value = self.evaluate(item)?;
                    print::write(&value, &mut text, &self.budget)?;
                }
                Ok(Value::text(text))
            }
            Expression::And(left, right) => {
                let left = self.evaluate(left)?;
                if left.is_true() { self.evaluate(right) } else { Ok(left) }
            }
            Expression::Or(left, right) => {
                let left = self.evaluate(left)?;
                if left.is_true() { Ok(left) } else { self.evaluate(right) }
            }
            Expression::Conditional(test, value, otherwise) => {
                if self.evaluate(test)?.is_true() {
                    return self.evaluate(value);
                }
                match otherwise {
                    Some(otherwise) => self.evaluate(otherwise),
                    None => Ok(Value::undefined("the else of a conditional")),
                }
            }
            _ => self.evaluate(node),
        }
    }

    /// Adds to a dictionary, in whose place Python would have the key's old value.
    pub(crate) fn insert(
        &self,
        map: &mut Vec<(Value, Value)>,
        key: Value,
        value: Value,
    ) -> Result<(), TemplateError> {
        if matches!(key.0, Kind::Map(_)) || matches!(&key.0, Kind::List(it) if !it.is_tuple) {
            return Err(TemplateError::render(format!("{} cannot be a key", key.type_name())));
        }
        self.budget.steps(map.len())?;
        for (own, old) in map.iter_mut() {
            if own.equals(&key, &self.budget)? {
                *old = value;
                return Ok(());
            }
        }
        map.push((key, value));
        Ok(())
    }

    pub(crate) fn arguments(&mut self, arguments: &Arguments) -> Result<Args, TemplateError> {
        let mut positional = self.evaluate_all(&arguments.positional)?;
        let mut named = Vec::new();
        for (name, node) in &arguments.named {
            named.push((Arc::clone(name), self.evaluate(node)?));
        }
        if let Some(rest) = &arguments.rest {
            positional.extend(self.evaluate(rest)?.items(&self.budget)?);
        }
        if let Some(rest) = &arguments.named_rest {
            let rest = self.evaluate(rest)?;
            let Kind::Map(map) = &rest.0 else {
                return Err(TemplateError::render(format!(
                    "`**` wants a mapping, not {}",
                    rest.named()
                )));
            };
            for (key, value) in &map.entries {
                let name =
                    key.as_text().ok_or_else(|| TemplateError::render("names are strings"))?;
                named.push((Arc::clone(name), value.clone()));
            }
        }
        self.budget.steps(positional.len() + named.len())?;
        Ok(Args::new(positional, named))
    }

    /// Evaluates a call, for a `call` block with its body.
    pub(crate) fn call_with(
        &mut self,
        node: &Node,
        caller: Option<Value>,
    ) -> Result<Value, TemplateError> {
        let Expression::Call(callee, arguments) = &node.expression else {
            return Err(TemplateError::render("a call block wants a call").at(node.line));
        };
        let (callee, method) = match &callee.expression {
            Expression::Attribute(receiver, name) => {
                let receiver = self.evaluate(receiver)?;
                if methods::has(&receiver, name) {
                    (receiver, Some(name))
                } else {
                    (attribute(&receiver, name)?, None)
                }
            }
            _ => (self.evaluate(callee)?, None),
        };
        let mut args = self.arguments(arguments)?;
        if let Some(caller) = caller {
            args.push_named("caller", caller);
        }
        match (&callee.0, method) {
            (_, Some(method)) => methods::call(self, &callee, method, args),
            (Kind::Function(name), _) => functions::call(self, name, args),
            (Kind::Macro(closure), _) => self.call_macro(closure, args),
            (Kind::Method(method), _) => methods::call(self, &method.receiver, &method.name, args),
            (Kind::Loop(state), _) => self.repeat_loop(state, args),
            _ => Err(TemplateError::render(format!("{} cannot be called", callee.named()))),
        }
    }

    pub(crate) fn compare(
        &self,
        comparison: Comparison,
        left: &Value,
        right: &Value,
    ) -> Result<bool, TemplateError> {
        let order = |wanted: &[Ordering]| {
            Ok(left.compare(right, &self.budget)?.is_some_and(|order| wanted.contains(&order)))
        };
        match comparison {
            Comparison::Equal => left.equals(right, &self.budget),
            Comparison::NotEqual => Ok(!left.equals(right, &self.budget)?),
            Comparison::Less => order(&[Ordering::Less]),
            Comparison::LessOrEqual => order(&[Ordering::Less, Ordering::Equal]),
            Comparison::Greater => order(&[Ordering::Greater]),
            Comparison::GreaterOrEqual => order(&[Ordering::Greater, Ordering::Equal]),
            Comparison::In => operators::contains(right, left, &self.budget),
            Comparison::NotIn => Ok(!operators::contains(right, left, &self.budget)?),
        }
    }
}

/// `value.name`: a method before an item, as Jinja2 has it.
pub(crate) fn attribute(value: &Value, name: &Arc<str>) -> Result<Value, TemplateError> {
    if methods::has(value, name) {
        return Value::method(value.clone(), Arc::clone(name));
    }
    let found = match &value.0 {
        Kind::Undefined(_) => {
            let message = format!("{} has no `{name}`", value.named());
            return Err(TemplateError::render(message));
        }
        Kind::Map(map) => map.get_str(name).cloned(),
        Kind::Namespace(namespace) => namespace.get(name),
        Kind::Loop(state) => functions::loop_attribute(state, name)?,
        _ => None,
    };
    Ok(found.unwrap_or_else(|| Value::undefined(Arc::clone(name))))
}

/// `value[index]`: an item before an attribute.
pub(crate) fn item(value: &Value, index: &Value, budget: &Budget) -> Result<Value, TemplateError> {
    let found = match (&value.0, &index.0) {
        (Kind::Undefined(_), _) => {
            let message = format!("{} has no items", value.named());
            return Err(TemplateError::render(message));
        }
        (Kind::Map(map), Kind::Text(key)) => map.get_str(key.as_str()).cloned(),
        (Kind::Map(map), _) => map.get(index, budget)?.cloned(),
        (Kind::List(list), _) => index
            .as_int()
            .and_then(|at| operators::place(at, list.items.len()))
            .and_then(|at| list.items.get(at).cloned()),
        (Kind::Text(text), _) => match index.as_int() {
            Some(at) => {
                let place = operators::place(at, value.length(budget)?);
                let found = place.and_then(|at| text.chars().nth(at));
                found.map(|(c, origin)| Value::text(Text::character(c, origin)))
            }
            None => None,
        },
        _ => None,
    };
    match (found, index.as_text()) {
        (Some(found), _) => Ok(found),
        (None, Some(name)) => attribute(value, &name.as_str().into()),
        (None, None) => Ok(Value::undefined("an item")),
    }
}
