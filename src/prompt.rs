//! Prompts: the model's chat template and the project's own reflection templates, both minijinja.
//! Pure after load. Text from users and models never becomes a control token: a rendered prompt is
//! a list of [`TextPart`]s in which only the template's own parts count as control.
//! Used by `reflect`, `learn` and `nano`.

use serde::{Deserialize, Serialize};

use crate::engine::TextPart;

/// Who speaks.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Standing instructions.
    System,
    /// The owner.
    User,
    /// The model.
    Assistant,
}

/// One turn.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What.
    pub content: String,
}

/// A template does not parse or render.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PromptError(pub String);

/// The model's own chat template (Jinja, from the GGUF).
#[derive(Debug)]
pub struct ChatTemplate {}

#[expect(clippy::todo, reason = "the bodies follow")]
impl ChatTemplate {
    /// Compiles it.
    pub fn new(_source: &str, _bos: &str, _eos: &str) -> Result<Self, PromptError> {
        todo!()
    }
    /// Renders a conversation up to where the assistant goes on. Contents stay plain text.
    pub fn render(&self, _messages: &[Message]) -> Result<Vec<TextPart>, PromptError> {
        todo!()
    }
}

/// The project's reflection templates (`prompts/reflect.yaml`, or an agent's own file): each is a
/// short conversation whose contents are minijinja templates.
#[derive(Debug)]
pub struct PromptSet {}

/// What a critique or refinement template may show of one aspect.
#[derive(Clone, Debug, Serialize)]
pub struct AspectView<'a> {
    /// Name.
    pub name: &'a str,
    /// Description.
    pub description: &'a str,
    /// Levels -1, 0, +1.
    pub levels: &'a [String; 3],
}

#[expect(clippy::todo, reason = "the bodies follow")]
impl PromptSet {
    /// Compiles the templates from YAML text that `config` has read into strings:
    /// name -> list of (role, template). Names: `assess`, `critique`, `refine`.
    pub fn new(
        _labels: [String; 3],
        _templates: std::collections::BTreeMap<String, Vec<Message>>,
    ) -> Result<Self, PromptError> {
        todo!()
    }
    /// Text of the three level labels; each must be one token after the rendered `assess` prompt.
    pub fn labels(&self) -> &[String; 3] {
        todo!()
    }
    /// Asks for one level. Question and response come first, the aspect last, so that the KV of
    /// the former is shared by all aspects.
    pub fn assess(
        &self,
        _question: &str,
        _response: &str,
        _reference: Option<&str>,
        _aspect: &AspectView<'_>,
    ) -> Result<Vec<Message>, PromptError> {
        todo!()
    }
    /// Asks what falls short, for the aspects that did.
    pub fn critique(
        &self,
        _question: &str,
        _response: &str,
        _reference: Option<&str>,
        _aspects: &[AspectView<'_>],
    ) -> Result<Vec<Message>, PromptError> {
        todo!()
    }
    /// Asks for a better answer. No reference: it is never shown to the policy.
    pub fn refine(
        &self,
        _question: &str,
        _response: &str,
        _critique: &str,
    ) -> Result<Vec<Message>, PromptError> {
        todo!()
    }
}
