//! Prompts: the model's chat template and the project's own reflection templates.
//! Pure after load. Text from users and models never becomes a control token: a rendered prompt is
//! a list of [`inference::TextPart`]s in which only the template's own parts count as control.
//! Used by `reflect`, `learn`, `store` and `nano`.

mod chat;
mod line;
mod neutral;
mod set;
#[cfg(test)]
mod tests;
mod verifier;

use serde::{Deserialize, Serialize};

pub use chat::ChatTemplate;
pub use line::{ExampleLine, PromptLine};
pub use set::{AspectView, PromptSet};
pub use verifier::{Bounds, Command, Fault, REWARD, Range, VERIFIER, Verifier, is_of_verifier};

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

impl Role {
    /// The word that chat templates know.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What.
    pub content: String,
}

/// Why there is no prompt.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PromptError {
    /// The chat template refuses this conversation.
    #[error("the chat template refuses the conversation: {0}")]
    Refused(String),
    /// The model has no chat template that can be used, whatever the conversation.
    #[error("{0}; name a file with another one in `engine.chat_template`")]
    Unusable(String),
    /// A reflection prompt, or what it asks for, is wrong.
    #[error("{0}")]
    Invalid(String),
}
