//! What a call, filter or test is given. Used by everything that is called.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::TemplateError;
use crate::text::Text;
use crate::value::{Kind, Value};

/// Arguments that are taken one by one, in the order in which the callee declares them.
#[derive(Debug, Default)]
pub(crate) struct Args {
    positional: VecDeque<Value>,
    named: Vec<(Arc<Text>, Value)>,
}

impl Args {
    pub(crate) fn new(positional: Vec<Value>, named: Vec<(Arc<Text>, Value)>) -> Self {
        Self { positional: positional.into(), named }
    }

    /// The next one, by place or by name.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.positional.pop_front().or_else(|| self.take_named(name))
    }

    pub(crate) fn take_named(&mut self, name: &str) -> Option<Value> {
        let at = self.named.iter().position(|(own, _)| own.as_str() == name)?;
        Some(self.named.remove(at).1)
    }

    pub(crate) fn push_named(&mut self, name: &str, value: Value) {
        self.named.push((Arc::new(Text::template(name)), value));
    }

    pub(crate) fn require(&mut self, name: &str) -> Result<Value, TemplateError> {
        self.take(name)
            .ok_or_else(|| TemplateError::render(format!("the argument `{name}` is missing")))
    }

    /// A string that steers what is done and never gets into a text itself.
    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, TemplateError> {
        Ok(self.text(name)?.map(|text| text.as_str().to_owned()))
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<Option<Arc<Text>>, TemplateError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match &value.0 {
            Kind::None => Ok(None),
            Kind::Text(text) => Ok(Some(Arc::clone(text))),
            _ => Err(TemplateError::render(format!(
                "`{name}` must be a string, not {}",
                value.named()
            ))),
        }
    }

    pub(crate) fn int(&mut self, name: &str) -> Result<Option<i64>, TemplateError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match &value.0 {
            Kind::None => Ok(None),
            _ => value.as_int().map(Some).ok_or_else(|| {
                TemplateError::render(format!(
                    "`{name}` must be a whole number, not {}",
                    value.named()
                ))
            }),
        }
    }

    pub(crate) fn flag(&mut self, name: &str) -> bool {
        self.take(name).is_some_and(|value| value.is_true())
    }

    pub(crate) fn into_parts(self) -> (Vec<Value>, Vec<(Arc<Text>, Value)>) {
        (self.positional.into(), self.named)
    }

    /// Refuses what nobody has taken.
    pub(crate) fn finish(self) -> Result<(), TemplateError> {
        match self.named.first() {
            Some((name, _)) => {
                Err(TemplateError::render(format!("there is no argument `{}`", name.as_str())))
            }
            None if self.positional.is_empty() => Ok(()),
            None => Err(TemplateError::render("there are too many arguments")),
        }
    }
}
