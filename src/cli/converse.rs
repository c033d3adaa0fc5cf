//! One chat request and its streamed reply. It notices when a reply names two generations, which
//! the daemon promises never to do. Used by `chat`, `ask` and `demo`.

use std::collections::BTreeSet;
use std::io;

use serde::Serialize;

use super::client::Client;
use super::reply::{Chunk, Receipt};
use config::Mode;
use engine::Generation;
use prompt::{Message, Role};

/// The body of `POST /v1/chat/completions`, as far as the command line uses it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Question {
    pub(super) model: String,
    pub(super) messages: Vec<Message>,
    pub(super) stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) temperature: Option<f32>,
    pub(super) reflectd: Own,
}

/// Our own part of a [`Question`].
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Own {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mode: Option<Mode>,
}

/// The agent that answers when none is named.
pub(super) const DEFAULT_AGENT: &str = "default";

impl Question {
    /// One turn of the user, answered as a stream.
    pub(super) fn new(prompt: &str, mode: Option<Mode>) -> Self {
        Self {
            model: DEFAULT_AGENT.to_owned(),
            messages: vec![Message { role: Role::User, content: prompt.to_owned() }],
            stream: true,
            seed: None,
            temperature: None,
            reflectd: Own { mode },
        }
    }
}

/// A piece of a reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part<'a> {
    /// Scores and critique (inline mode).
    Reasoning(&'a str),
    /// The answer.
    Content(&'a str),
}

/// A whole reply.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) text: String,
    /// Absent when the daemon did not send its last chunk.
    pub(super) receipt: Option<Receipt>,
    /// What the chunks named.
    fingerprints: BTreeSet<String>,
}

impl Reply {
    /// The one generation that every chunk names; `None` when they disagree or name none.
    pub(super) fn generation(&self) -> Option<Generation> {
        let generation = self.receipt?.generation;
        let expected = format!("generation-{generation}");
        self.fingerprints.iter().all(|name| *name == expected).then_some(generation)
    }

    fn add(
        &mut self,
        chunk: Chunk,
        mut show: impl FnMut(Part<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.fingerprints.extend(chunk.system_fingerprint);
        self.receipt = chunk.reflectd.or(self.receipt);
        for choice in chunk.choices {
            if let Some(text) = choice.delta.reasoning_content.filter(|text| !text.is_empty()) {
                show(Part::Reasoning(&text))?;
            }
            if let Some(text) = choice.delta.content.filter(|text| !text.is_empty()) {
                show(Part::Content(&text))?;
                self.text.push_str(&text);
            }
        }
        Ok(())
    }
}

/// Asks, shows the parts as they come, and returns the whole.
pub(super) async fn converse(
    client: &Client,
    question: &Question,
    mut show: impl FnMut(Part<'_>) -> io::Result<()>,
) -> anyhow::Result<Reply> {
    let mut events = client.stream("/v1/chat/completions", question).await?;
    let mut reply = Reply::default();
    while let Some(chunk) = events.next::<Chunk>().await? {
        reply.add(chunk, &mut show)?;
    }
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use serde_json::{Value, json};

    fn reply(chunks: Vec<Value>) -> (Reply, String) {
        let mut reply = Reply::default();
        let mut shown = String::new();
        for chunk in chunks {
            reply
                .add(serde_json::from_value(chunk).unwrap(), |part| {
                    write!(shown, "{part:?} ").unwrap();
                    Ok(())
                })
                .unwrap();
        }
        (reply, shown)
    }

    fn content(generation: u32, text: &str) -> Value {
        json!({"system_fingerprint": format!("generation-{generation}"),
               "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]})
    }

    fn last(generation: u32) -> Value {
        json!({"system_fingerprint": format!("generation-{generation}"), "choices": [],
               "reflectd": {"exchange": 5, "generation": generation, "candidates": 1}})
    }

    #[test]
    fn a_reply_is_the_sum_of_its_chunks() {
        let reasoning = json!({"choices": [{"delta": {"reasoning_content": "hm"}}]});
        let (reply, shown) =
            reply(vec![reasoning, content(3, "4"), content(3, ""), content(3, "2"), last(3)]);
        assert_eq!(shown, "Reasoning(\"hm\") Content(\"4\") Content(\"2\") ");
        assert_eq!(reply.text, "42");
        assert_eq!(reply.generation(), Some(Generation(3)));
        assert_eq!(reply.receipt.unwrap().exchange.unwrap().0, 5);
    }

    #[test]
    fn a_reply_that_names_two_generations_has_none() {
        assert_eq!(reply(vec![content(1, "a"), content(2, "b"), last(2)]).0.generation(), None);
        assert_eq!(reply(vec![content(1, "a"), last(2)]).0.generation(), None);
        assert_eq!(reply(vec![content(1, "a")]).0.generation(), None);
    }

    #[test]
    fn a_question_says_only_what_was_asked_for() {
        let question = serde_json::to_value(Question::new("hi", None)).unwrap();
        let expected = json!({"model": "default", "messages": [{"role": "user", "content": "hi"}],
                              "stream": true, "reflectd": {}});
        assert_eq!(question, expected);
        let question = serde_json::to_value(Question::new("hi", Some(Mode::Off))).unwrap();
        assert_eq!(question["reflectd"], json!({"mode": "off"}));
    }
}
