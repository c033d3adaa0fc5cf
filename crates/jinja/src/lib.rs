//! Chat templates: Jinja as Hugging Face sets it up, over strings that know where each character comes
//! from. What a template copies out of a content stays that content's through every filter, method,
//! slice and concatenation, so that the caller can tell what the template wrote itself; what cannot be
//! mapped counts as content. Numbers carry no origin. A template is untrusted: parsing and rendering are
//! total and bounded in time, memory and depth. Used by `prompt`.

mod arguments;
mod ast;
mod budget;
mod error;
mod evaluate;
mod filters;
mod format;
mod functions;
mod interpreter;
mod lexer;
mod methods;
mod operators;
mod parser;
mod predicates;
mod print;
mod strings;
#[cfg(test)]
mod tests;
mod text;
mod value;

use chrono::{DateTime, Local};

pub use budget::Limits;
pub use error::{ErrorKind, TemplateError};
pub use text::{Origin, Text};
pub use value::Value;

use interpreter::Interpreter;

/// The longest source; the longest known one has 30 kB.
const MAX_SOURCE: usize = 1 << 20;

/// A template that was parsed.
#[derive(Debug)]
pub struct Template {
    parsed: parser::Parsed,
}

impl Template {
    /// Parses a template with the block rules of Hugging Face: a tag takes the line end behind it and
    /// the blanks before it on its line.
    pub fn new(source: &str) -> Result<Self, TemplateError> {
        if MAX_SOURCE < source.len() {
            return Err(TemplateError::syntax("the template is longer than 1 MiB", 1));
        }
        Ok(Self { parsed: parser::parse(source)? })
    }

    /// Renders it with these values. `now` is what `strftime_now` formats.
    pub fn render<'a>(
        &self,
        values: impl IntoIterator<Item = (&'a str, Value)>,
        now: DateTime<Local>,
        limits: &Limits,
    ) -> Result<Text, TemplateError> {
        let names = &self.parsed.names;
        let known = values.into_iter().filter_map(|(name, value)| {
            let place = names.iter().position(|own| &**own == name)?;
            Some((ast::Symbol::try_from(place).ok()?, value))
        });
        Interpreter::new(names, known.collect(), limits, now).run(&self.parsed.body)
    }
}
