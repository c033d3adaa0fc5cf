//! Tasks whose answers a program can check: what a customer writes, commands to a home, general formats.
//! Pure: the same seed gives the same prompts, examples and truth. Knows nothing of the daemon, so that its
//! measure of the truth is not the product's. Used by `demo` and by the benchmark `bench/real`.

mod commands;
mod fill;
pub mod formats;
pub mod home;
pub mod messages;
mod truth;

use serde_json::{Value, json};

pub use truth::{Format, Truth};

/// A prompt with its truth.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Unique in its task.
    pub id: String,
    /// The user's words.
    pub prompt: String,
    /// What the owner would answer; `None`: the task has no examples.
    pub answer: Option<String>,
    /// What makes an answer right.
    pub truth: Truth,
}

impl Item {
    /// A line of a file of prompts; `None` as the verifier: the agent names one for all of them.
    pub fn prompt_line(&self, verifier: Option<Value>) -> Value {
        match verifier {
            Some(verifier) => json!({ "id": self.id, "prompt": self.prompt, "verifier": verifier }),
            None => json!({ "id": self.id, "prompt": self.prompt }),
        }
    }

    /// A line of a file of examples; `None`: there is no answer to show.
    pub fn example_line(&self) -> Option<Value> {
        let answer = self.answer.as_ref()?;
        Some(json!({ "prompt": self.prompt, "answer": answer }))
    }
}

/// A file of prompts, each with its verifier.
pub fn prompt_lines(items: &[Item]) -> String {
    let line = |item: &Item| item.prompt_line(item.truth.verifier()).to_string() + "\n";
    items.iter().map(line).collect()
}

/// A file of examples.
pub fn example_lines(items: &[Item]) -> String {
    items.iter().filter_map(Item::example_line).map(|line| line.to_string() + "\n").collect()
}
