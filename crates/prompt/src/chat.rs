//! The model's own chat template (Jinja, from the GGUF). It sees the real contents; which characters of
//! the prompt are its own words, and may therefore be control tokens, is known of each. Used by
//! `reflect` and `nano`.

use chrono::{DateTime, Local};
use files::gguf::Gguf;
use jinja::{ErrorKind, Limits, Origin, Template, Text, Value};

use inference::TextPart;

use crate::{Message, PromptError, Role};

/// The model's own chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    /// Or why there is none: one model's fault must not be the end of the daemon.
    template: Result<Template, PromptError>,
    bos: String,
    eos: String,
}

/// A turn as the template gets it. The origin of its text is the place of the message.
struct Turn {
    role: Role,
    content: Text,
}

impl ChatTemplate {
    /// Parses it. One that does not parse, or that the model lacks, is an error at every rendering.
    pub fn new(source: Option<&str>, bos: &str, eos: &str) -> Self {
        let template = match source {
            None => Err(PromptError::Unusable("the model has no chat template".into())),
            Some(source) => Template::new(source).map_err(|error| {
                PromptError::Unusable(format!("the chat template does not parse: {error}"))
            }),
        };
        Self { template, bos: bos.to_owned(), eos: eos.to_owned() }
    }

    /// The one in a model file's header, which `own` replaces.
    pub fn of_model(header: &Gguf, own: Option<&str>) -> Self {
        let token = |key: &str| {
            let id = header.unsigned(&format!("tokenizer.ggml.{key}_token_id"))?;
            match header.array("tokenizer.ggml.tokens")?.get(usize::try_from(id).ok()?)? {
                files::gguf::Value::String(text) => Some(text.as_str()),
                _ => None,
            }
        };
        let [bos, eos] = ["bos", "eos"].map(|key| token(key).unwrap_or_default());
        Self::new(own.or_else(|| header.string("tokenizer.chat_template")), bos, eos)
    }

    /// Renders a conversation up to where the assistant goes on. Contents stay plain text.
    pub fn render(&self, messages: &[Message]) -> Result<Vec<TextPart>, PromptError> {
        self.render_at(messages, true, Local::now())
    }

    /// Renders a conversation that has ended, as a reward model reads it.
    pub fn render_whole(&self, messages: &[Message]) -> Result<Vec<TextPart>, PromptError> {
        self.render_at(messages, false, Local::now())
    }

    /// Renders a conversation as at a given time, which some templates tell the model.
    ///
    /// A template that refuses turns of the system, as Gemma 2's does, or leaves them out gets them at
    /// the head of the user's next turn.
    pub fn render_at(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        now: DateTime<Local>,
    ) -> Result<Vec<TextPart>, PromptError> {
        let render = |turns| self.render_turns(turns, add_generation_prompt, now);
        let rendered = render(turns(messages));
        let has_system = messages.iter().any(is_system);
        let text = match rendered {
            Ok(text) if !has_system || !leaves_out_system(messages, &text, render) => text,
            first if has_system => match render(without_system(messages)) {
                Ok(text) => text,
                Err(_) => first?,
            },
            first => first?,
        };
        match messages.iter().zip(0..).last() {
            Some((last, origin)) if is_said(last) && !shows(&text, origin) => {
                let fault = "the chat template leaves out the last message";
                Err(PromptError::Unusable(fault.into()))
            }
            _ => Ok(parts(&text)),
        }
    }

    fn render_turns(
        &self,
        turns: Vec<Turn>,
        add_generation_prompt: bool,
        now: DateTime<Local>,
    ) -> Result<Text, PromptError> {
        let template = self.template.as_ref().map_err(PromptError::clone)?;
        let limits = Limits::for_contents(turns.iter().map(|it| it.content.as_str().len()).sum());
        let word = |text: &str| Value::text(Text::template(text));
        let turn = |turn: Turn| {
            let role = word(turn.role.as_str());
            Value::map([("role", role), ("content", Value::text(turn.content))])
        };
        let turns = turns.into_iter().map(turn).collect::<Result<_, _>>().and_then(Value::list);
        let render = |others: [(&'static str, Value); 2]| {
            let values = [
                ("messages", turns.clone()?),
                ("add_generation_prompt", Value::bool(add_generation_prompt)),
                ("bos_token", word(&self.bos)),
                ("eos_token", word(&self.eos)),
            ];
            template.render(values.into_iter().chain(others), now, &limits)
        };
        // What Hugging Face gives: templates ask `is none` as well as `is defined` of these.
        let rendered = match render([("tools", Value::NONE), ("documents", Value::NONE)]) {
            // A template that goes through its tools without asking, or is told of none by these names.
            Err(error) if error.kind == ErrorKind::Render => {
                let time = now.to_utc().format("%b %d %Y %H:%M:%S GMT").to_string();
                render([("functions", word("[]")), ("datetime", word(&time))]).map_err(|_| error)
            }
            rendered => rendered,
        };
        rendered.map_err(|error| match error.kind {
            ErrorKind::Raised => PromptError::Refused(error.message),
            _ => PromptError::Unusable(format!("the chat template cannot be rendered: {error}")),
        })
    }
}

fn is_system(message: &Message) -> bool {
    message.role == Role::System
}

fn is_said(message: &Message) -> bool {
    !message.content.trim().is_empty()
}

/// Whether the prompt has nothing of a turn of the system and would be the same without any. One that
/// shows nothing may still be a switch, such as `/no_think`.
fn leaves_out_system(
    messages: &[Message],
    text: &Text,
    render: impl Fn(Vec<Turn>) -> Result<Text, PromptError>,
) -> bool {
    let mut said = messages.iter().zip(0..).filter(|(it, _)| is_system(it) && is_said(it));
    if said.all(|(_, origin)| shows(text, origin)) {
        return false;
    }
    let others = turns(messages).into_iter().filter(|turn| turn.role != Role::System).collect();
    render(others).is_ok_and(|without| without.as_str() == text.as_str())
}

fn turns(messages: &[Message]) -> Vec<Turn> {
    let turn = |(message, origin): (&Message, Origin)| Turn {
        role: message.role,
        content: Text::content(message.content.as_str(), origin),
    };
    messages.iter().zip(0..).map(turn).collect()
}

/// Each turn of the system at the head of the user's next one, or in its place where none follows.
fn without_system(messages: &[Message]) -> Vec<Turn> {
    let mut merged: Vec<Turn> = Vec::new();
    let mut head = Text::default();
    for turn in turns(messages) {
        if turn.role == Role::Assistant {
            merged.push(turn);
            continue;
        }
        if head.as_str().trim().is_empty() {
            head = Text::default();
        } else {
            head.push(&Text::template("\n\n"));
        }
        head.push(&turn.content);
        if turn.role == Role::User {
            merged.push(Turn { role: Role::User, content: std::mem::take(&mut head) });
        }
    }
    if !head.as_str().is_empty() {
        merged.push(Turn { role: Role::User, content: head });
    }
    merged
}

/// Whether anything of a content is to be seen.
fn shows(text: &Text, origin: Origin) -> bool {
    text.pieces().any(|(piece, own)| own == Some(origin) && !piece.trim().is_empty())
}

/// What the template wrote, and what it copied.
fn parts(text: &Text) -> Vec<TextPart> {
    let mut parts: Vec<TextPart> = Vec::new();
    for (piece, origin) in text.pieces() {
        let control = origin.is_none();
        match parts.last_mut() {
            Some(last) if last.control == control => last.text.push_str(piece),
            _ => parts.push(TextPart { text: piece.to_owned(), control }),
        }
    }
    parts
}
