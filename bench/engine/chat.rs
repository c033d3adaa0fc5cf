//! Chat requests as both servers understand them, and what a stream of their replies tells. Used by
//! the workloads that speak HTTP.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::http::Endpoint;
use crate::setting::ANSWER;

const PATH: &str = "/v1/chat/completions";

/// What one streamed chat took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chat {
    pub(crate) first_token: Duration,
    /// All of it.
    pub(crate) whole: Duration,
}

impl Chat {
    /// After the first token.
    pub(crate) fn tokens_per_second(self) -> f64 {
        f64::from(ANSWER - 1) / self.whole.saturating_sub(self.first_token).as_secs_f64()
    }
}

/// The body of a chat. Both sides sample from the whole distribution: `samplers` takes the peer's
/// cuts away, and ours ignores it.
pub(crate) fn body(question: &str, n: u32) -> Value {
    json!({
        "messages": [{"role": "user", "content": question}],
        "max_tokens": ANSWER,
        "temperature": 1.0,
        "samplers": ["temperature"],
        "n": n,
        "seed": fastrand::i32(0..i32::MAX),
        "reflectd": {"mode": "off"},
    })
}

/// One chat, read as it comes.
pub(crate) async fn stream(endpoint: &Endpoint, question: &str) -> anyhow::Result<Chat> {
    let mut body = body(question, 1);
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let began = Instant::now();
    let mut events = endpoint.stream(PATH, &body).await?;
    let mut first_token = None;
    let mut generated = None;
    while let Some((at, event)) = events.next().await? {
        let content = event["choices"][0]["delta"]["content"].as_str();
        if content.is_some_and(|text| !text.is_empty()) {
            first_token = first_token.or(Some(at - began));
        }
        generated = event["usage"]["completion_tokens"].as_u64().or(generated);
    }
    let generated = generated.context("a stream did not report its usage")?;
    ensure!(generated == u64::from(ANSWER), "a chat has {generated} tokens");
    let first_token = first_token.context("a chat had no text")?;
    Ok(Chat { first_token, whole: began.elapsed() })
}

/// `n` answers to one prompt in one request.
pub(crate) async fn complete(endpoint: &Endpoint, question: &str, n: u32) -> anyhow::Result<()> {
    let reply = endpoint.post(PATH, &body(question, n)).await?;
    let choices = reply["choices"].as_array().context("a reply has no choices")?;
    ensure!(choices.len() == n as usize, "{} answers instead of {n}", choices.len());
    for choice in choices {
        // Each token of this benchmark is a word; the peer's `usage` counts the first answer only.
        let text = choice["message"]["content"].as_str().unwrap_or_default();
        let n_words = text.split_whitespace().count();
        ensure!(n_words == ANSWER as usize, "an answer has {n_words} tokens: {text}");
    }
    Ok(())
}
