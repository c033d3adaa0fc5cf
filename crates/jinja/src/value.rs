//! What expressions give: Python's values as far as templates know them. No value nests more than
//! [`DEPTH`] deep, so that printing, comparing and dropping one cannot overflow the stack.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::rc::Rc;
use std::sync::Arc;

use crate::ast;
use crate::budget::Budget;
use crate::error::TemplateError;
use crate::text::Text;

/// The deepest value.
pub(crate) const DEPTH: u32 = 100;

/// A value of the language.
#[derive(Clone, Debug)]
pub struct Value(pub(crate) Kind);

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// What is missing, by its name.
    Undefined(Arc<str>),
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Arc<Text>),
    List(Rc<List>),
    Map(Rc<Map>),
    Namespace(Rc<Namespace>),
    Macro(Rc<Closure>),
    Loop(Rc<Loop>),
    /// A method that was read and not called yet.
    Method(Rc<Method>),
    /// A function of the language, by its name.
    Function(&'static str),
}

#[derive(Debug)]
pub(crate) struct List {
    pub(crate) items: Vec<Value>,
    pub(crate) is_tuple: bool,
    depth: u32,
}

/// In the order of insertion; small, so that it is searched from the front.
#[derive(Debug)]
pub(crate) struct Map {
    pub(crate) entries: Vec<(Value, Value)>,
    depth: u32,
}

/// The one value that changes. It counts as flat: the interpreter owns all of them and empties them at
/// the end, which also ends circles.
#[derive(Debug, Default)]
pub(crate) struct Namespace {
    pub(crate) attributes: RefCell<Vec<(Arc<str>, Value)>>,
}

/// A macro with the local names around it.
#[derive(Debug)]
pub(crate) struct Closure {
    pub(crate) definition: Arc<ast::Macro>,
    pub(crate) scope: Vec<(ast::Symbol, Value)>,
    depth: u32,
}

#[derive(Debug)]
pub(crate) struct Loop {
    pub(crate) items: Rc<List>,
    pub(crate) index: Cell<usize>,
    /// Of loops that call themselves, counted from 0.
    pub(crate) level: i64,
    /// What `loop.changed` saw last.
    pub(crate) seen: RefCell<Option<Value>>,
    pub(crate) definition: Arc<ast::For>,
}

#[derive(Debug)]
pub(crate) struct Method {
    pub(crate) receiver: Value,
    pub(crate) name: Arc<str>,
    depth: u32,
}

fn deeper<'a>(values: impl IntoIterator<Item = &'a Value>) -> Result<u32, TemplateError> {
    let depth = 1 + values.into_iter().map(Value::depth).max().unwrap_or(0);
    if depth <= DEPTH { Ok(depth) } else { Err(TemplateError::limit("a value nests too deeply")) }
}

impl Value {
    /// `none`.
    pub const NONE: Self = Self(Kind::None);

    /// `true` or `false`.
    pub fn bool(value: bool) -> Self {
        Self(Kind::Bool(value))
    }

    /// A whole number.
    pub fn int(value: i64) -> Self {
        Self(Kind::Int(value))
    }

    /// A number with a fraction.
    pub fn float(value: f64) -> Self {
        Self(Kind::Float(value))
    }

    /// A string.
    pub fn text(text: Text) -> Self {
        Self(Kind::Text(Arc::new(text)))
    }

    /// A list.
    pub fn list(items: Vec<Self>) -> Result<Self, TemplateError> {
        let depth = deeper(&items)?;
        Ok(Self(Kind::List(Rc::new(List { items, is_tuple: false, depth }))))
    }

    /// A dictionary. The keys are the caller's own words.
    pub fn map<'a>(
        entries: impl IntoIterator<Item = (&'a str, Self)>,
    ) -> Result<Self, TemplateError> {
        let entries = entries.into_iter();
        let entries = entries.map(|(key, value)| (Self::text(Text::template(key)), value));
        Self::from_entries(entries.collect())
    }

    /// Named arguments as a dictionary.
    pub(crate) fn from_named(named: Vec<(Arc<Text>, Self)>) -> Result<Self, TemplateError> {
        let entries = named.into_iter().map(|(name, value)| (Self(Kind::Text(name)), value));
        Self::from_entries(entries.collect())
    }

    /// The keys must differ.
    pub(crate) fn from_entries(entries: Vec<(Self, Self)>) -> Result<Self, TemplateError> {
        let depth = deeper(entries.iter().flat_map(|(key, value)| [key, value]))?;
        Ok(Self(Kind::Map(Rc::new(Map { entries, depth }))))
    }

    pub(crate) fn tuple(items: Vec<Self>) -> Result<Self, TemplateError> {
        let depth = deeper(&items)?;
        Ok(Self(Kind::List(Rc::new(List { items, is_tuple: true, depth }))))
    }

    /// A length or place.
    pub(crate) fn count(value: usize) -> Self {
        Self(Kind::Int(i64::try_from(value).unwrap_or(i64::MAX)))
    }

    pub(crate) fn undefined(name: impl Into<Arc<str>>) -> Self {
        Self(Kind::Undefined(name.into()))
    }

    pub(crate) fn closure(
        definition: Arc<ast::Macro>,
        scope: Vec<(ast::Symbol, Self)>,
    ) -> Result<Self, TemplateError> {
        let depth = deeper(scope.iter().map(|(_, value)| value))?;
        Ok(Self(Kind::Macro(Rc::new(Closure { definition, scope, depth }))))
    }

    pub(crate) fn method(receiver: Self, name: Arc<str>) -> Result<Self, TemplateError> {
        let depth = deeper([&receiver])?;
        Ok(Self(Kind::Method(Rc::new(Method { receiver, name, depth }))))
    }

    fn depth(&self) -> u32 {
        match &self.0 {
            Kind::List(list) => list.depth,
            Kind::Map(map) => map.depth,
            Kind::Macro(closure) => closure.depth,
            Kind::Loop(each) => each.items.depth + 1,
            Kind::Method(method) => method.depth,
            _ => 0,
        }
    }

    /// As Python names its type, for errors.
    pub(crate) fn type_name(&self) -> &'static str {
        match &self.0 {
            Kind::Undefined(_) => "undefined",
            Kind::None => "none",
            Kind::Bool(_) => "boolean",
            Kind::Int(_) => "integer",
            Kind::Float(_) => "float",
            Kind::Text(_) => "string",
            Kind::List(list) if list.is_tuple => "tuple",
            Kind::List(_) => "list",
            Kind::Map(_) => "mapping",
            Kind::Namespace(_) => "namespace",
            Kind::Macro(_) => "macro",
            Kind::Loop(_) => "loop",
            Kind::Method(_) | Kind::Function(_) => "function",
        }
    }

    pub(crate) fn is_true(&self) -> bool {
        match &self.0 {
            Kind::Undefined(_) | Kind::None => false,
            Kind::Bool(value) => *value,
            Kind::Int(number) => *number != 0,
            Kind::Float(number) => *number != 0.0,
            Kind::Text(text) => !text.is_empty(),
            Kind::List(list) => !list.items.is_empty(),
            Kind::Map(map) => !map.entries.is_empty(),
            _ => true,
        }
    }

    pub(crate) fn is_undefined(&self) -> bool {
        matches!(self.0, Kind::Undefined(_))
    }

    pub(crate) fn as_text(&self) -> Option<&Arc<Text>> {
        match &self.0 {
            Kind::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whole numbers and truth values.
    pub(crate) fn as_int(&self) -> Option<i64> {
        match self.0 {
            Kind::Int(number) => Some(number),
            Kind::Bool(value) => Some(i64::from(value)),
            _ => None,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "what Python's float(int) does")]
    pub(crate) fn as_float(&self) -> Option<f64> {
        match self.0 {
            Kind::Float(number) => Some(number),
            _ => self.as_int().map(|number| number as f64),
        }
    }

    /// Python's `==`. Lists may share items, so that walking them costs steps.
    pub(crate) fn equals(&self, other: &Self, budget: &Budget) -> Result<bool, TemplateError> {
        Ok(match (&self.0, &other.0) {
            (Kind::Undefined(_), Kind::Undefined(_)) | (Kind::None, Kind::None) => true,
            (Kind::Text(a), Kind::Text(b)) => {
                budget.reading(a.len().min(b.len()))?;
                a == b
            }
            (Kind::List(a), Kind::List(b)) => {
                if a.is_tuple != b.is_tuple || a.items.len() != b.items.len() {
                    return Ok(false);
                }
                budget.steps(a.items.len())?;
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !a.equals(b, budget)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Kind::Map(a), Kind::Map(b)) => {
                if a.entries.len() != b.entries.len() {
                    return Ok(false);
                }
                for (key, value) in &a.entries {
                    let same = match b.get(key, budget)? {
                        Some(other) => value.equals(other, budget)?,
                        None => false,
                    };
                    if !same {
                        return Ok(false);
                    }
                }
                true
            }
            (Kind::Namespace(a), Kind::Namespace(b)) => Rc::ptr_eq(a, b),
            (Kind::Macro(a), Kind::Macro(b)) => Rc::ptr_eq(a, b),
            (Kind::Loop(a), Kind::Loop(b)) => Rc::ptr_eq(a, b),
            (Kind::Function(a), Kind::Function(b)) => a == b,
            _ => match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => a == b,
                _ => match (self.as_float(), other.as_float()) {
                    (Some(a), Some(b)) => a.partial_cmp(&b) == Some(Ordering::Equal),
                    _ => false,
                },
            },
        })
    }

    /// Python's `<`, which not all values know; `None` for numbers that are none.
    pub(crate) fn compare(
        &self,
        other: &Self,
        budget: &Budget,
    ) -> Result<Option<Ordering>, TemplateError> {
        if let (Some(a), Some(b)) = (self.as_text(), other.as_text()) {
            budget.reading(a.len().min(b.len()))?;
            return Ok(Some(a.as_str().cmp(b.as_str())));
        }
        if let (Some(a), Some(b)) = (self.as_int(), other.as_int()) {
            return Ok(Some(a.cmp(&b)));
        }
        if let (Some(a), Some(b)) = (self.as_float(), other.as_float()) {
            return Ok(a.partial_cmp(&b));
        }
        if let (Kind::List(a), Kind::List(b)) = (&self.0, &other.0) {
            for (a, b) in a.items.iter().zip(&b.items) {
                if !a.equals(b, budget)? {
                    return a.compare(b, budget);
                }
            }
            return Ok(Some(a.items.len().cmp(&b.items.len())));
        }
        let (a, b) = (self.type_name(), other.type_name());
        Err(TemplateError::render(format!("{a} and {b} have no order")))
    }

    /// What a loop goes through; Python's `iter`.
    pub(crate) fn items(&self, budget: &Budget) -> Result<Vec<Self>, TemplateError> {
        match &self.0 {
            Kind::Undefined(_) => Ok(Vec::new()),
            Kind::List(list) => {
                budget.steps(list.items.len())?;
                Ok(list.items.clone())
            }
            Kind::Map(map) => {
                budget.steps(map.entries.len())?;
                Ok(map.entries.iter().map(|(key, _)| key.clone()).collect())
            }
            Kind::Text(text) => {
                budget.steps(text.len())?;
                let character = |(c, origin)| Self::text(Text::character(c, origin));
                Ok(text.chars().map(character).collect())
            }
            _ => Err(TemplateError::render(format!("{} cannot be gone through", self.named()))),
        }
    }

    /// Python's `len`.
    pub(crate) fn length(&self, budget: &Budget) -> Result<usize, TemplateError> {
        match &self.0 {
            Kind::Undefined(_) => Ok(0),
            Kind::Text(text) => {
                budget.reading(text.len())?;
                Ok(text.as_str().chars().count())
            }
            Kind::List(list) => Ok(list.items.len()),
            Kind::Map(map) => Ok(map.entries.len()),
            Kind::Loop(each) => Ok(each.items.items.len()),
            _ => Err(TemplateError::render(format!("{} has no length", self.named()))),
        }
    }

    /// The value for errors: by name where it is missing, by type otherwise.
    pub(crate) fn named(&self) -> String {
        match &self.0 {
            Kind::Undefined(name) => format!("`{name}`, which is undefined,"),
            _ => self.type_name().to_owned(),
        }
    }
}

impl Map {
    pub(crate) fn get(
        &self,
        key: &Value,
        budget: &Budget,
    ) -> Result<Option<&Value>, TemplateError> {
        budget.steps(self.entries.len())?;
        for (own, value) in &self.entries {
            if own.equals(key, budget)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    pub(crate) fn get_str(&self, key: &str) -> Option<&Value> {
        let mut entries = self.entries.iter();
        let is_it = |own: &Value| own.as_text().is_some_and(|own| own.as_str() == key);
        entries.find(|(own, _)| is_it(own)).map(|(_, value)| value)
    }
}

impl Namespace {
    pub(crate) fn get(&self, name: &str) -> Option<Value> {
        let attributes = self.attributes.borrow();
        attributes.iter().find(|(own, _)| &**own == name).map(|(_, value)| value.clone())
    }

    pub(crate) fn set(&self, name: &Arc<str>, value: Value) {
        let mut attributes = self.attributes.borrow_mut();
        match attributes.iter_mut().find(|(own, _)| own == name) {
            Some((_, own)) => *own = value,
            None => attributes.push((Arc::clone(name), value)),
        }
    }
}
