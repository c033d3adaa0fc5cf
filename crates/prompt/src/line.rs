//! A prompt from a file, and how an answer to it is checked. Plain data: `config` reads and checks it,
//! `reflect` does the checking. Used by them, by `store` and by `nano`.

use serde::{Deserialize, Serialize};

/// Checks an answer without a model.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Verifier {
    /// The last number in the answer (after `marker` where one is given) equals `expected`.
    Numeric {
        /// The right number.
        expected: f64,
        /// Allowed difference.
        #[serde(default)]
        tolerance: f64,
        /// Only text after the last occurrence of this counts.
        #[serde(default)]
        marker: Option<String>,
    },
    /// The answer, trimmed, is this text.
    Exact {
        /// The right text.
        expected: String,
    },
    /// The pattern matches somewhere in the answer.
    Regex {
        /// Rust `regex` syntax.
        pattern: String,
    },
    /// The answer is JSON that fits the schema.
    JsonSchema {
        /// JSON Schema.
        schema: serde_json::Value,
    },
}

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
