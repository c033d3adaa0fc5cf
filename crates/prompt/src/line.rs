//! A prompt from a file, and how an answer to it is checked. Plain data: `config` reads and checks it,
//! `reflect` does the checking. Used by them, by `store` and by `nano`.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{Message, Role, Verifier};

/// A prompt from a file: held-out and general sets, practice, `explore --prompts`. A line has `prompt`
/// alone, or a whole conversation in `messages`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct PromptLine {
    /// Unique in its file. A line without one has a hash of its prompt, which stays when lines are moved.
    pub id: String,
    /// What was said before, a turn of the system first where there is one.
    pub earlier: Vec<Message>,
    /// The user's last words.
    pub prompt: String,
    /// Shown to the judge, never to the policy.
    pub reference: Option<String>,
    /// How to check an answer.
    pub verifier: Option<Verifier>,
}

impl PromptLine {
    /// A first turn that nothing is known about.
    pub fn new(id: impl Into<String>, prompt: impl Into<String>) -> Self {
        let (id, prompt) = (id.into(), prompt.into());
        Self { id, earlier: Vec::new(), prompt, reference: None, verifier: None }
    }
    /// The whole conversation.
    pub fn messages(&self) -> Vec<Message> {
        messages(&self.earlier, &self.prompt)
    }
}

/// An example: a prompt, in the same form, with the answer that the owner wants.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(try_from = "WrittenExample", into = "WrittenExample")]
pub struct ExampleLine {
    /// As of [`PromptLine`].
    pub earlier: Vec<Message>,
    /// The user's last words.
    pub prompt: String,
    /// What the model should say; not blank.
    pub answer: String,
    /// Shown to the judge of the model's own answers; absent: the answer is.
    pub reference: Option<String>,
    /// How to check an answer.
    pub verifier: Option<Verifier>,
}

impl ExampleLine {
    /// The whole conversation, without the answer.
    pub fn messages(&self) -> Vec<Message> {
        messages(&self.earlier, &self.prompt)
    }
}

/// How a file spells a [`PromptLine`].
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    messages: Option<Vec<Turn>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    verifier: Option<Verifier>,
}

/// How a file spells an [`ExampleLine`].
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct WrittenExample {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    messages: Option<Vec<Turn>>,
    answer: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    verifier: Option<Verifier>,
}

/// A turn in a file, where a misspelt key is a fault.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Turn {
    role: Role,
    content: String,
}

impl TryFrom<Written> for PromptLine {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let Written { id, prompt, messages, reference, verifier } = written;
        let (earlier, prompt) = apart(prompt, messages)?;
        let id = id.unwrap_or_else(|| id_of(&earlier, &prompt));
        Ok(Self { id, earlier, prompt, reference, verifier })
    }
}

impl From<PromptLine> for Written {
    fn from(line: PromptLine) -> Self {
        let PromptLine { id, earlier, prompt, reference, verifier } = line;
        let (prompt, messages) = together(earlier, prompt);
        Self { id: Some(id), prompt, messages, reference, verifier }
    }
}

impl TryFrom<WrittenExample> for ExampleLine {
    type Error = &'static str;

    fn try_from(written: WrittenExample) -> Result<Self, Self::Error> {
        let WrittenExample { prompt, messages, answer, reference, verifier } = written;
        let (earlier, prompt) = apart(prompt, messages)?;
        if answer.trim().is_empty() {
            return Err("`answer` is blank; it is the whole answer that the model should give");
        }
        Ok(Self { earlier, prompt, answer, reference, verifier })
    }
}

impl From<ExampleLine> for WrittenExample {
    fn from(line: ExampleLine) -> Self {
        let ExampleLine { earlier, prompt, answer, reference, verifier } = line;
        let (prompt, messages) = together(earlier, prompt);
        Self { prompt, messages, answer, reference, verifier }
    }
}

fn id_of(earlier: &[Message], prompt: &str) -> String {
    let text = serde_json::to_vec(&messages(earlier, prompt)).expect("messages are plain data");
    let mut id = files::hex(&Sha256::digest(text));
    id.truncate(16);
    id
}

fn messages(earlier: &[Message], prompt: &str) -> Vec<Message> {
    let last = Message { role: Role::User, content: prompt.to_owned() };
    earlier.iter().cloned().chain([last]).collect()
}

/// What was said before, and the user's last words.
fn apart(
    prompt: Option<String>,
    messages: Option<Vec<Turn>>,
) -> Result<(Vec<Message>, String), &'static str> {
    let (earlier, prompt) = match (prompt, messages) {
        (Some(prompt), None) => (Vec::new(), prompt),
        (None, Some(mut turns)) => match turns.pop() {
            Some(Turn { role: Role::User, content }) => {
                let message = |Turn { role, content }| Message { role, content };
                (turns.into_iter().map(message).collect(), content)
            }
            _ => return Err("the last turn of `messages` must be the user's"),
        },
        (Some(_), Some(_)) => return Err("`prompt` and `messages` exclude each other"),
        (None, None) => return Err("`prompt` or `messages` is needed"),
    };
    if earlier.iter().skip(1).any(|turn| turn.role == Role::System) {
        return Err("only the first turn of `messages` may be the system's");
    }
    if prompt.trim().is_empty() {
        return Err("the prompt is blank");
    }
    Ok((earlier, prompt))
}

fn together(earlier: Vec<Message>, prompt: String) -> (Option<String>, Option<Vec<Turn>>) {
    if earlier.is_empty() {
        return (Some(prompt), None);
    }
    let turn = |Message { role, content }| Turn { role, content };
    let last = Turn { role: Role::User, content: prompt };
    (None, Some(earlier.into_iter().map(turn).chain([last]).collect()))
}
