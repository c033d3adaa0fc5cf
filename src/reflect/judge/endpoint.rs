//! A judge behind OpenAI's chat completions: a level is one token, read from the log-probs of the
//! likeliest ones; nothing else of the reply counts. Requests are repeated while the fault may pass,
//! with growing pauses and an end. Used by `judge`; `http` carries it.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use serde_json::{Value, json};

use config::{Agent, EndpointConfig};
use engine::LabelScores;
use prompt::Message;

use super::super::assess::{Scored, view};
use super::http::{Fault, post};

/// Requests at once: a small server's batch.
const PARALLEL: usize = 4;
/// The most that OpenAI's format allows.
const TOP: u32 = 20;
/// The first pause before a request is repeated; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The judge cannot be asked.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the judge at {endpoint} {reason}{}", how_often(*.tries))]
pub struct JudgeError {
    /// Where it should be.
    pub endpoint: String,
    /// What it does instead.
    pub reason: String,
    /// How often it was asked.
    pub tries: u32,
}

fn how_often(tries: u32) -> String {
    if tries > 1 { format!(" ({tries} tries)") } else { String::new() }
}

/// How asking endpoints has gone so far.
#[derive(Debug, Default)]
pub(in crate::reflect) struct Calls {
    answered: AtomicU64,
    repeated: AtomicU64,
    failed: AtomicU64,
    last_error: Mutex<Option<String>>,
}

/// [`Calls`] as numbers.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct CallCounts {
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that were sent again.
    pub repeated: u64,
    /// Requests that were given up.
    pub failed: u64,
    /// Why the last one was given up; `None` after one that was answered.
    pub last_error: Option<String>,
}

impl Calls {
    pub(in crate::reflect) fn counts(&self) -> CallCounts {
        let last_error = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        CallCounts {
            answered: self.answered.load(Ordering::Relaxed),
            repeated: self.repeated.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            last_error: last_error.clone(),
        }
    }

    fn ended(&self, error: Option<String>) {
        let counter = if error.is_none() { &self.answered } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

/// An endpoint that is asked.
#[derive(Debug)]
pub(in crate::reflect) struct Asking<'a> {
    config: &'a EndpointConfig,
    calls: &'a Calls,
}

/// A text, and what it took.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::reflect) struct Written {
    pub(in crate::reflect) text: String,
    pub(in crate::reflect) tokens: usize,
}

impl<'a> Asking<'a> {
    pub(in crate::reflect) fn new(config: &'a EndpointConfig, calls: &'a Calls) -> Self {
        Self { config, calls }
    }

    /// As assessments name it. The fingerprint tells a server's states apart, such as another
    /// reflectd's generations.
    pub(super) fn name(&self, fingerprint: Option<&str>) -> String {
        let state = fingerprint.map(|it| format!(" ({it})")).unwrap_or_default();
        format!("{} at {}{state}", self.config.model, self.config)
    }

    /// See [`super::Judge::score`]; a group gets no levels when one of its conversations is too
    /// long, or is answered by no label.
    pub(super) async fn score(
        &self,
        labels: &[String; 3],
        groups: Vec<Vec<Vec<Message>>>,
    ) -> Result<Vec<Option<Vec<Scored>>>, JudgeError> {
        let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
        let asked: Vec<_> =
            groups.into_iter().flatten().map(|it| self.score_one(labels, it)).collect();
        let scored = stream::iter(asked).buffered(PARALLEL).try_collect::<Vec<_>>().await?;
        let mut scored = scored.into_iter();
        Ok(sizes.into_iter().map(|n| scored.by_ref().take(n).collect()).collect())
    }

    async fn score_one(
        &self,
        labels: &[String; 3],
        messages: Vec<Message>,
    ) -> Result<Option<Scored>, JudgeError> {
        let limits = json!({ "max_tokens": 1, "logprobs": true, "top_logprobs": TOP });
        let Some(reply) = self.ask(&messages, limits).await? else { return Ok(None) };
        let fingerprint = reply["system_fingerprint"].as_str();
        match read_levels(&reply, labels) {
            Ok(scores) => Ok(scores.map(|scores| Scored { judge: self.name(fingerprint), scores })),
            Err(reason) => {
                let error = self.error(reason, 1);
                self.calls.ended(Some(error.to_string()));
                Err(error)
            }
        }
    }

    /// Has a short text written.
    pub(in crate::reflect) async fn write(
        &self,
        messages: &[Message],
        max_tokens: u32,
    ) -> Result<Written, JudgeError> {
        let reply = self.ask(messages, json!({ "max_tokens": max_tokens })).await?;
        let Some(reply) = reply else { return Ok(Written { text: String::new(), tokens: 0 }) };
        let text = reply["choices"][0]["message"]["content"].as_str().unwrap_or_default();
        let tokens = reply["usage"]["completion_tokens"].as_u64().unwrap_or(0);
        Ok(Written { text: text.to_owned(), tokens: usize::try_from(tokens).unwrap_or(0) })
    }

    /// `None`: the conversation is too long.
    async fn ask(&self, messages: &[Message], more: Value) -> Result<Option<Value>, JudgeError> {
        let mut body = json!({
            "model": self.config.model,
            "messages": messages,
            "temperature": 0,
        });
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
            body.extend(more);
        }
        let mut tries = 1;
        loop {
            let fault = match post(self.config, "/chat/completions", &body).await {
                Ok(reply) => {
                    self.calls.ended(None);
                    return Ok(Some(reply));
                }
                Err(Fault { is_too_long: true, .. }) => {
                    self.calls.ended(None);
                    return Ok(None);
                }
                Err(fault) => fault,
            };
            if !fault.is_transient || self.config.retries < tries {
                let error = self.error(fault.reason, tries);
                self.calls.ended(Some(error.to_string()));
                return Err(error);
            }
            self.calls.repeated.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(pause(tries, fault.retry_after)).await;
            tries += 1;
        }
    }

    /// It has answered, but not with a label, or the conversation is too long for it.
    fn no_level(&self, labels: &[String; 3]) -> JudgeError {
        let labels = labels.join(", ");
        self.error(format!("gives none of the levels {labels}, or the request is too long"), 1)
    }

    fn error(&self, reason: String, tries: u32) -> JudgeError {
        JudgeError { endpoint: self.config.to_string(), reason, tries }
    }
}

/// Asks an endpoint once for a level, as judging would; its name as assessments have it. For
/// `reflectd doctor`.
pub async fn try_endpoint(agent: &Agent, config: &EndpointConfig) -> Result<String, JudgeError> {
    let calls = Calls::default();
    let asking = Asking::new(config, &calls);
    let prompts = &agent.prompts;
    let asked = agent.aspects.iter().take(1).map(view);
    let asked = asked.map(|aspect| prompts.assess("What is 2 + 2?", "4", None, &aspect));
    let asked = asked.collect::<Result<Vec<_>, _>>();
    let asked = asked.map_err(|error| asking.error(format!("is not asked: {error}"), 1))?;
    let scored = asking.score(prompts.labels(), vec![asked]).await?.pop().flatten();
    let scored = scored.and_then(|mut scored| scored.pop());
    scored.map(|scored| scored.judge).ok_or_else(|| asking.no_level(prompts.labels()))
}

/// How long to wait after so many tries.
fn pause(tries: u32, wanted: Option<Duration>) -> Duration {
    let growing = FIRST_PAUSE.saturating_mul(1 << (tries - 1).min(10));
    wanted.unwrap_or(growing).min(LONGEST_PAUSE)
}

/// The labels' distribution among the likeliest first tokens. A label that is not among them is
/// less likely than all of them and counts 0; `mass` is what the labels have of the whole.
/// `None`: none of them is there.
fn read_levels(reply: &Value, labels: &[String; 3]) -> Result<Option<LabelScores>, String> {
    let first = &reply["choices"][0]["logprobs"]["content"][0];
    let top = first["top_logprobs"].as_array().filter(|top| !top.is_empty()).ok_or(
        "answers without `top_logprobs`, from which levels are read; use a server that gives them",
    )?;
    let mut found = [0.0_f64; 3];
    for likely in top {
        let token = likely["token"].as_str().unwrap_or_default();
        // Some vocabularies have a label with and without a space before it.
        let Some(level) = labels.iter().position(|label| token.trim() == label.trim()) else {
            continue;
        };
        let p = likely["logprob"].as_f64().map_or(0.0, f64::exp);
        found[level] += if p.is_finite() { p } else { 0.0 };
    }
    let mass: f64 = found.iter().sum();
    if mass <= 0.0 {
        return Ok(None);
    }
    #[expect(clippy::cast_possible_truncation, reason = "a probability needs no more than an f32")]
    let narrow = |p: f64| p as f32;
    let probabilities = found.iter().map(|p| narrow(p / mass)).collect();
    Ok(Some(LabelScores { probabilities, mass: narrow(mass.min(1.0)) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(top: &[(&str, f64)]) -> Value {
        let top: Vec<Value> =
            top.iter().map(|(token, p)| json!({ "token": token, "logprob": p.ln() })).collect();
        json!({ "choices": [{ "logprobs": { "content": [{ "top_logprobs": top }] } }] })
    }

    fn labels() -> [String; 3] {
        ["1", "2", "3"].map(str::to_owned)
    }

    #[test]
    fn levels_are_the_labels_share_of_the_likeliest_tokens() {
        let reply = reply(&[("3", 0.4), (" 3", 0.2), ("1", 0.2), ("The", 0.1)]);
        let scores = read_levels(&reply, &labels()).unwrap().unwrap();
        let close = |a: f32, b: f32| (a - b).abs() < 1e-6;
        assert!(close(scores.mass, 0.8), "{scores:?}");
        assert!(close(scores.probabilities[0], 0.25) && close(scores.probabilities[2], 0.75));
        assert!(close(scores.probabilities[1], 0.0), "a label that is not there counts 0");
    }

    #[test]
    fn an_answer_without_any_label_has_no_levels() {
        assert_eq!(read_levels(&reply(&[("<think>", 1.0)]), &labels()), Ok(None));
    }

    #[test]
    fn a_reply_without_logprobs_says_what_is_missing() {
        for reply in [json!({}), json!({"choices": []}), reply(&[])] {
            let reason = read_levels(&reply, &labels()).unwrap_err();
            assert!(reason.contains("top_logprobs"), "{reason}");
        }
    }

    #[test]
    fn pauses_grow_and_have_an_end() {
        let millis = |tries, wanted| pause(tries, wanted).as_millis();
        assert_eq!([1, 2, 3].map(|tries| millis(tries, None)), [250, 500, 1000]);
        assert_eq!(millis(30, None), 10_000);
        assert_eq!(millis(1, Some(Duration::from_secs(2))), 2000);
        assert_eq!(millis(1, Some(Duration::from_hours(1))), 10_000);
    }
}
