//! A prompt from a file, and how an answer to it is checked. Plain data: `config` reads and checks it,
//! `reflect` does the checking. Used by them, by `store` and by `nano`.

use serde::{Deserialize, Serialize};

use super::Verifier;

/// A prompt from a file: held-out sets, `explore --prompts`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PromptLine {
    /// Unique in its file.
    pub id: String,
    /// The user's words.
    pub prompt: String,
    /// Shown to the judge, never to the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// How to check an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verifier: Option<Verifier>,
}
