//! What can go wrong with a template, with the line of its source.

/// A template does not parse or render.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message} (line {line})")]
pub struct TemplateError {
    /// Which reaction it wants.
    pub kind: ErrorKind,
    /// What is wrong.
    pub message: String,
    /// Where, counted from 1.
    pub line: u32,
}

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ErrorKind {
    /// The source is no template.
    Syntax,
    /// It does something that cannot be done.
    Render,
    /// The template itself refuses, by `raise_exception`.
    Raised,
    /// It takes more time, memory or depth than it may.
    Limit,
}

impl TemplateError {
    pub(crate) fn syntax(message: impl Into<String>, line: u32) -> Self {
        Self { kind: ErrorKind::Syntax, message: message.into(), line }
    }

    /// The line is added on the way up.
    pub(crate) fn render(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Render, message: message.into(), line: 0 }
    }

    pub(crate) fn raised(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Raised, message: message.into(), line: 0 }
    }

    pub(crate) fn limit(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Limit, message: message.into(), line: 0 }
    }

    /// Names the line unless an inner one is known.
    pub(crate) fn at(mut self, line: u32) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self
    }
}
