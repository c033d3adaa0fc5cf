//! Runs a template's statements. Owns scopes, namespaces and the budget of one rendering. Used by `lib`;
//! expressions are `evaluate`'s.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use chrono::{DateTime, Local};

use crate::arguments::Args;
use crate::ast::{Block, Filter, For, Macro, Node, Statement, Symbol, Target};
use crate::budget::{Budget, Limits};
use crate::error::TemplateError;
use crate::print;
use crate::text::Text;
use crate::value::{Closure, Kind, Loop, Namespace, Value};

/// How a block ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Flow {
    Normal,
    Break,
    Continue,
}

type Scope = Vec<(Symbol, Value)>;

// The places of `parser::OWN_NAMES`.
const LOOP: Symbol = 0;
const CALLER: Symbol = 1;
const VARARGS: Symbol = 2;
const KWARGS: Symbol = 3;

#[derive(Debug)]
pub(crate) struct Interpreter<'t> {
    pub(crate) names: &'t [Arc<str>],
    pub(crate) budget: Budget,
    pub(crate) now: DateTime<Local>,
    /// The first one holds the caller's values and what the template sets outside loops and macros.
    scopes: Vec<Scope>,
    /// Only the first scope and those from here on are visible; a macro does not see its caller's.
    base: usize,
    depth: u32,
    max_depth: u32,
    /// All that were made, see [`Namespace`].
    namespaces: RefCell<Vec<Rc<Namespace>>>,
}

impl Drop for Interpreter<'_> {
    fn drop(&mut self) {
        for namespace in self.namespaces.borrow().iter() {
            namespace.attributes.borrow_mut().clear();
        }
    }
}

impl<'t> Interpreter<'t> {
    pub(crate) fn new(
        names: &'t [Arc<str>],
        globals: Scope,
        limits: &Limits,
        now: DateTime<Local>,
    ) -> Self {
        Self {
            names,
            budget: Budget::new(limits),
            now,
            scopes: vec![globals],
            base: 1,
            depth: 0,
            max_depth: limits.depth,
            namespaces: RefCell::default(),
        }
    }

    pub(crate) fn run(&mut self, body: &Block) -> Result<Text, TemplateError> {
        let mut out = Text::default();
        self.block(body, &mut out)?;
        Ok(out)
    }

    /// Everything that may nest without end passes here.
    pub(crate) fn nested<T>(
        &mut self,
        inner: impl FnOnce(&mut Self) -> Result<T, TemplateError>,
    ) -> Result<T, TemplateError> {
        self.budget.steps(1)?;
        if self.max_depth <= self.depth {
            return Err(TemplateError::limit("the template calls itself too deeply"));
        }
        self.depth += 1;
        let done = inner(self);
        self.depth -= 1;
        done
    }

    fn scoped<T>(
        &mut self,
        scope: Scope,
        inner: impl FnOnce(&mut Self) -> Result<T, TemplateError>,
    ) -> Result<T, TemplateError> {
        self.scopes.push(scope);
        let done = inner(self);
        self.scopes.pop();
        done
    }

    pub(crate) fn lookup(&self, symbol: Symbol) -> Option<&Value> {
        let visible = self.scopes.get(self.base..).unwrap_or_default().iter().rev();
        let find = |scope: &'_ Scope| scope.iter().rposition(|(own, _)| *own == symbol);
        visible
            .chain(self.scopes.first())
            .find_map(|scope| find(scope).and_then(|at| scope.get(at)))
            .map(|(_, value)| value)
    }

    fn define(&mut self, symbol: Symbol, value: Value) {
        let Some(scope) = self.scopes.last_mut() else { return };
        match scope.iter_mut().find(|(own, _)| *own == symbol) {
            Some((_, own)) => *own = value,
            None => scope.push((symbol, value)),
        }
    }

    pub(crate) fn name(&self, symbol: Symbol) -> Arc<str> {
        let name = usize::try_from(symbol).ok().and_then(|at| self.names.get(at));
        name.map_or_else(|| "".into(), Arc::clone)
    }

    /// The local names, for a macro that is defined here.
    fn locals(&self) -> Scope {
        let mut all = Scope::new();
        for (symbol, value) in self.scopes.get(self.base..).unwrap_or_default().iter().flatten() {
            match all.iter_mut().find(|(own, _)| own == symbol) {
                Some((_, own)) => *own = value.clone(),
                None => all.push((*symbol, value.clone())),
            }
        }
        all
    }

    pub(crate) fn namespace(&self, attributes: Vec<(Arc<str>, Value)>) -> Value {
        let namespace = Rc::new(Namespace { attributes: RefCell::new(attributes) });
        self.namespaces.borrow_mut().push(Rc::clone(&namespace));
        Value(Kind::Namespace(namespace))
    }

    fn block(&mut self, block: &Block, out: &mut Text) -> Result<Flow, TemplateError> {
        for statement in block {
            let flow = self.nested(|it| it.statement(statement, out))?;
            if flow != Flow::Normal {
                return Ok(flow);
            }
        }
        Ok(Flow::Normal)
    }

    fn capture(&mut self, body: &Block) -> Result<Text, TemplateError> {
        let mut text = Text::default();
        self.scoped(Scope::new(), |it| it.block(body, &mut text))?;
        Ok(text)
    }

    fn statement(&mut self, statement: &Statement, out: &mut Text) -> Result<Flow, TemplateError> {
        match statement {
            Statement::Data(text) => {
                self.budget.bytes(text.len())?;
                out.push(text);
            }
            Statement::Output(node) => {
                let value = self.evaluate(node)?;
                print::write(&value, out, &self.budget).map_err(|error| error.at(node.line))?;
            }
            Statement::If { branches, otherwise } => {
                for (test, body) in branches {
                    if self.evaluate(test)?.is_true() {
                        return self.block(body, out);
                    }
                }
                return self.block(otherwise, out);
            }
            Statement::For(each) => {
                let items = self.evaluate(&each.items)?;
                self.for_loop(each, &items, 0, out)?;
            }
            Statement::Set(target, node) => {
                let value = self.evaluate(node)?;
                self.assign(target, value).map_err(|error| error.at(node.line))?;
            }
            Statement::SetBlock { target, filters, body } => {
                let text = self.capture(body)?;
                let value = self.filter_all(filters, text)?;
                self.assign(target, value)?;
            }
            Statement::Macro(definition) => {
                let closure = Value::closure(Arc::clone(definition), self.locals())?;
                self.define(definition.name, closure);
            }
            Statement::CallBlock { caller, call } => self.call_block(caller, call, out)?,
            Statement::FilterBlock { filters, body } => {
                let text = self.capture(body)?;
                let value = self.filter_all(filters, text)?;
                print::write(&value, out, &self.budget)?;
            }
            Statement::With { targets, body } => {
                let mut values = Vec::new();
                for (_, node) in targets {
                    values.push(self.evaluate(node)?);
                }
                return self.scoped(Scope::new(), |it| {
                    for ((target, _), value) in targets.iter().zip(values) {
                        it.assign(target, value)?;
                    }
                    it.block(body, out)
                });
            }
            Statement::Break => return Ok(Flow::Break),
            Statement::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Normal)
    }

    fn filter_all(&mut self, filters: &[Filter], text: Text) -> Result<Value, TemplateError> {
        let mut value = Value::text(text);
        for filter in filters {
            let args = self.arguments(&filter.arguments)?;
            let filtered = self.filter(&filter.name, value, args);
            value = filtered.map_err(|error| error.at(filter.line))?;
        }
        Ok(value)
    }

    fn assign(&mut self, target: &Target, value: Value) -> Result<(), TemplateError> {
        match target {
            Target::Name(symbol) => self.define(*symbol, value),
            Target::Tuple(targets) => {
                let values = value.items(&self.budget)?;
                if values.len() != targets.len() {
                    let (n, wanted) = (values.len(), targets.len());
                    let message = format!("{n} values cannot be assigned to {wanted} names");
                    return Err(TemplateError::render(message));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value)?;
                }
            }
            Target::Attribute(symbol, attribute) => match self.lookup(*symbol).map(|it| &it.0) {
                Some(Kind::Namespace(namespace)) => namespace.set(attribute, value),
                _ => {
                    return Err(TemplateError::render(
                        "only a namespace's attributes can be assigned to",
                    ));
                }
            },
        }
        Ok(())
    }

    fn for_loop(
        &mut self,
        each: &Arc<For>,
        items: &Value,
        level: i64,
        out: &mut Text,
    ) -> Result<(), TemplateError> {
        let mut items = items.items(&self.budget).map_err(|error| error.at(each.line))?;
        if let Some(filter) = &each.filter {
            let mut kept = Vec::new();
            for item in items {
                let keeps = self.scoped(Scope::new(), |it| {
                    it.assign(&each.target, item.clone())?;
                    Ok(it.evaluate(filter)?.is_true())
                });
                if keeps? {
                    kept.push(item);
                }
            }
            items = kept;
        }
        if items.is_empty() {
            return self.scoped(Scope::new(), |it| it.block(&each.otherwise, out)).map(drop);
        }
        let Kind::List(items) = Value::list(items)?.0 else { return Ok(()) };
        let state = Rc::new(Loop {
            items: Rc::clone(&items),
            index: std::cell::Cell::new(0),
            level,
            seen: RefCell::default(),
            definition: Arc::clone(each),
        });
        for (index, item) in items.items.iter().enumerate() {
            state.index.set(index);
            let scope = vec![(LOOP, Value(Kind::Loop(Rc::clone(&state))))];
            let flow = self.scoped(scope, |it| {
                it.assign(&each.target, item.clone())?;
                it.block(&each.body, out)
            });
            if flow.map_err(|error| error.at(each.line))? == Flow::Break {
                break;
            }
        }
        Ok(())
    }

    /// `loop(items)`: the same loop on others, as text.
    pub(crate) fn repeat_loop(
        &mut self,
        state: &Loop,
        mut args: Args,
    ) -> Result<Value, TemplateError> {
        if !state.definition.is_recursive {
            return Err(TemplateError::render("a loop that calls itself must say `recursive`"));
        }
        let items = args.require("items")?;
        args.finish()?;
        let mut text = Text::default();
        let level = state.level.saturating_add(1);
        self.nested(|it| it.for_loop(&state.definition, &items, level, &mut text))?;
        Ok(Value::text(text))
    }

    fn call_block(
        &mut self,
        caller: &Arc<Macro>,
        call: &Node,
        out: &mut Text,
    ) -> Result<(), TemplateError> {
        let caller = Value::closure(Arc::clone(caller), self.locals())?;
        let value = self.call_with(call, Some(caller))?;
        print::write(&value, out, &self.budget)
    }

    pub(crate) fn call_macro(
        &mut self,
        closure: &Closure,
        mut args: Args,
    ) -> Result<Value, TemplateError> {
        let scope = closure.scope.clone();
        let definition = &closure.definition;
        let base = std::mem::replace(&mut self.base, self.scopes.len());
        let mut bind = |it: &mut Self| {
            for (symbol, default) in &definition.parameters {
                let name = it.name(*symbol);
                let value = match (args.take(&name), default) {
                    (Some(value), _) => value,
                    (None, Some(default)) => it.evaluate(default)?,
                    (None, None) => Value::undefined(name),
                };
                it.define(*symbol, value);
            }
            if let Some(caller) = args.take_named("caller") {
                it.define(CALLER, caller);
            }
            let (positional, named) = std::mem::take(&mut args).into_parts();
            it.define(VARARGS, Value::tuple(positional)?);
            it.define(KWARGS, Value::from_named(named)?);
            let mut text = Text::default();
            it.block(&definition.body, &mut text)?;
            Ok(Value::text(text))
        };
        let value = self.nested(|it| it.scoped(scope, |it| it.scoped(Scope::new(), &mut bind)));
        self.base = base;
        value
    }
}
