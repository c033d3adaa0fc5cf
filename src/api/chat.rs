//! `POST /v1/chat/completions`: body to [`Task`], progress to a reply or a stream. The client's
//! leaving drops the progress receiver, which is how `reflect` and the engine learn of it.
//! Values are checked here and named by field; `reply.rs` has the replies' shape.

use std::convert::Infallible;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::{Stream, StreamExt as _};
use serde_json::Value;
use tokio::sync::mpsc;
use tracing::Instrument as _;

use super::error::ApiError;
use super::outlet::{Gone, Outlet, Patience};
use super::read::Body;
use super::reply::{Reply, Shape};
use super::wire::{ChatBody, ChatExtra, ChatMessage, Content, Stop};
use super::{Api, Permit, RequestId};
use crate::reflect::{Outcome, Progress, Task};
use config::{Agent, Mode};
use engine::Sampling;
use inference::ranges;
use prompt::{Message, Role};

/// Tokens under way from `reflect` to one client. A client that reads slower than this holds its
/// own request back and nobody else's.
const PROGRESS: usize = 64;
/// After so long without an event a stream says that it is there. Proxies give up after 30 s or more.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(super) async fn complete(
    State(api): State<Api>,
    Extension(id): Extension<RequestId>,
    Body(body): Body<ChatBody>,
) -> Result<Response, ApiError> {
    let agent = api.agent(body.model.as_deref().unwrap_or("default"))?;
    let streamed = body.stream.unwrap_or(false);
    let shape = Shape {
        id: format!("chatcmpl-{}", id.0),
        created: chrono::Utc::now().timestamp(),
        model: agent.name.clone(),
        logprobs: body.logprobs.unwrap_or(false),
        usage: body.stream_options.unwrap_or_default().include_usage,
    };
    let max_n = api.config().engine.max_sequences;
    let task = task(body, agent, max_n)?;
    let permit = api.permit()?;

    let (sender, progress) = mpsc::channel(PROGRESS);
    let live = Live {
        agent: Arc::clone(&task.agent),
        mode: task.mode,
        progress,
        api: api.clone(),
        started: std::time::Instant::now(),
    };
    let reflector = api.parts.reflector.clone();
    // A task of its own: the handler may be dropped at any await, and the store's transaction of an
    // answer that is complete should not be lost with it.
    tokio::spawn(async move { reflector.run(task, sender).await }.in_current_span());
    let reply = async {
        if streamed {
            stream_reply(live, shape, permit).await
        } else {
            whole_reply(live, shape, permit).await
        }
    };
    tokio::select! {
        reply = reply => reply,
        () = api.ending() => Err(ApiError::Draining),
    }
}

/// A running task as its handler sees it.
struct Live {
    agent: Arc<Agent>,
    mode: Mode,
    progress: mpsc::Receiver<Progress>,
    api: Api,
    started: std::time::Instant,
}

impl Live {
    /// The next step, or why there is none.
    async fn next(&mut self) -> Result<Progress, ApiError> {
        match self.progress.recv().await {
            Some(Progress::Failed(error)) => Err(error.into()),
            Some(progress) => {
                self.note(&progress);
                Ok(progress)
            }
            None => Err(ApiError::Internal("a task ended without a last word".to_owned())),
        }
    }

    fn note(&self, progress: &Progress) {
        match progress {
            Progress::Started { .. } => self.api.metrics.admitted(self.started.elapsed()),
            Progress::Done(outcome) => {
                self.api.metrics.answered(self.started.elapsed());
                self.reflect_later(outcome);
            }
            _ => {}
        }
    }

    fn reflect_later(&self, outcome: &Outcome) {
        if let (Mode::Background, Some(exchange)) = (self.mode, outcome.exchange) {
            self.api.later.offer(Arc::clone(&self.agent), exchange);
        }
    }
}

async fn whole_reply(mut live: Live, shape: Shape, _permit: Permit) -> Result<Response, ApiError> {
    let mut reply = Reply::new(shape);
    loop {
        let progress = live.next().await?;
        let done = matches!(progress, Progress::Done(_));
        reply.take(progress);
        if done {
            return Ok(Json(reply.finish()).into_response());
        }
    }
}

/// Answers as soon as the request is found to be sound; until it is admitted, comments keep the
/// connection alive.
async fn stream_reply(mut live: Live, shape: Shape, permit: Permit) -> Result<Response, ApiError> {
    // A refusal that comes before anything else still gets its status.
    let first = live.next().await?;
    let (mut outlet, events) = Outlet::new(permit, Patience::default());
    let (client, ending) = (outlet.sender(), live.api.ending());
    let streamed = async move {
        tokio::select! {
            // An error: the client has left.
            _ = tell(&mut live, Reply::new(shape), first, &mut outlet) => {}
            () = client.closed() => {}
            // A client that reads nothing does not hold up the end.
            () = ending => drop(client.try_send(json_event(&ApiError::Draining.into_reply()))),
        }
    };
    // A task of its own: while a client reads nothing, nobody asks the response for more.
    tokio::spawn(streamed.in_current_span());
    Ok(sse(events, KEEP_ALIVE))
}

/// Tells a client everything from `progress` on.
async fn tell(
    live: &mut Live,
    mut reply: Reply,
    mut progress: Progress,
    outlet: &mut Outlet,
) -> Result<(), Gone> {
    loop {
        let done = matches!(progress, Progress::Done(_));
        for chunk in reply.chunks(progress) {
            outlet.send(json_event(&chunk)).await?;
        }
        if done {
            return outlet.send(Event::default().data("[DONE]")).await;
        }
        progress = match live.next().await {
            Ok(progress) => progress,
            Err(error) => return outlet.send(json_event(&error.into_reply())).await,
        };
    }
}

pub(super) fn json_event(value: &impl serde::Serialize) -> Event {
    let text = serde_json::to_string(value).expect("our wire types have string keys only");
    Event::default().data(text)
}

/// A stream of events, with a comment whenever there has been none for so long.
pub(super) fn sse(
    events: impl Stream<Item = Event> + Send + 'static,
    keep_alive: Duration,
) -> Response {
    let keep_alive = KeepAlive::new().interval(keep_alive);
    Sse::new(events.map(Ok::<_, Infallible>)).keep_alive(keep_alive).into_response()
}

/// A checked task.
fn task(body: ChatBody, agent: Arc<Agent>, max_n: u32) -> Result<Task, ApiError> {
    refuse_unsupported(&body.rest)?;
    let messages = messages(&body.messages)?;
    let n = within("n", body.n.unwrap_or(1), &(1..=max_n))?;
    let top_logprobs =
        within("top_logprobs", body.top_logprobs.unwrap_or(0), &ranges::TOP_LOGPROBS)?;
    if top_logprobs > 0 && body.logprobs != Some(true) {
        return Err(ApiError::invalid("top_logprobs", "needs `logprobs: true`"));
    }
    let sampling = sampling(&body, agent.sampling)?;
    let stop = match body.stop {
        None => Vec::new(),
        Some(Stop::One(text)) => vec![text],
        Some(Stop::Many(texts)) => texts,
    };
    if stop.len() > ranges::MAX_STOPS || stop.iter().any(String::is_empty) {
        let message = format!("at most {} strings, none of them empty", ranges::MAX_STOPS);
        return Err(ApiError::invalid("stop", message));
    }
    let ChatExtra { mode, reference, verifier, .. } = body.reflectd.unwrap_or_default();
    let mode = mode.unwrap_or(agent.reflection.mode);
    Ok(Task { agent, messages, mode, sampling, n, stop, top_logprobs, reference, verifier })
}

fn sampling(body: &ChatBody, default: Sampling) -> Result<Sampling, ApiError> {
    let extra = body.reflectd.clone().unwrap_or_default();
    let max_tokens = body.max_completion_tokens.or(body.max_tokens).unwrap_or(default.max_tokens);
    let temperature = body.temperature.unwrap_or(default.temperature);
    Ok(Sampling {
        temperature: within("temperature", temperature, &ranges::TEMPERATURE)?,
        top_p: within("top_p", body.top_p.unwrap_or(default.top_p), &ranges::TOP_P)?,
        top_k: extra.top_k.unwrap_or(default.top_k),
        min_p: within("reflectd.min_p", extra.min_p.unwrap_or(default.min_p), &ranges::MIN_P)?,
        max_tokens: within("max_tokens", max_tokens, &(1..=u32::MAX))?,
        seed: body.seed.map(i64::cast_unsigned).or(default.seed),
    })
}

/// NaN is in no range.
fn within<T: PartialOrd + std::fmt::Display>(
    param: &str,
    value: T,
    range: &RangeInclusive<T>,
) -> Result<T, ApiError> {
    if range.contains(&value) {
        return Ok(value);
    }
    let message = format!("{value} is not between {} and {}", range.start(), range.end());
    Err(ApiError::invalid(param, message))
}

/// Fields that change what an answer means and that we do not have. Their neutral values, which
/// clients send by habit, are taken.
fn refuse_unsupported(rest: &serde_json::Map<String, Value>) -> Result<(), ApiError> {
    for (name, value) in rest {
        let neutral = match name.as_str() {
            "tools" | "functions" => value.as_array().is_some_and(Vec::is_empty),
            "tool_choice" | "function_call" => matches!(value.as_str(), Some("none" | "auto")),
            "response_format" => value["type"] == "text",
            "modalities" => value.as_array().is_some_and(|list| list.iter().all(|m| m == "text")),
            "audio" | "web_search_options" => false,
            "frequency_penalty" | "presence_penalty" => value.as_f64() == Some(0.0),
            "logit_bias" => value.as_object().is_some_and(serde_json::Map::is_empty),
            _ => true,
        };
        if !neutral && !value.is_null() {
            return Err(ApiError::invalid(name, "this server does not have it; leave it out"));
        }
    }
    Ok(())
}

fn messages(given: &[ChatMessage]) -> Result<Vec<Message>, ApiError> {
    let messages = given
        .iter()
        .enumerate()
        .map(|(index, message)| {
            let role = match message.role.as_str() {
                "system" | "developer" => Role::System,
                "user" => Role::User,
                "assistant" => Role::Assistant,
                _ => {
                    let param = format!("messages[{index}].role");
                    let allowed = "use `system`, `developer`, `user` or `assistant`";
                    return Err(ApiError::invalid(&param, allowed));
                }
            };
            Ok(Message { role, content: text(message.content.as_ref(), index)? })
        })
        .collect::<Result<Vec<_>, _>>()?;
    match messages.last() {
        Some(Message { role: Role::User, .. }) => Ok(messages),
        Some(_) => Err(ApiError::invalid("messages", "the last message must be the user's")),
        None => Err(ApiError::invalid("messages", "at least one message is needed")),
    }
}

fn text(content: Option<&Content>, index: usize) -> Result<String, ApiError> {
    match content {
        Some(Content::Text(text)) => Ok(text.clone()),
        Some(Content::Parts(parts)) => parts
            .iter()
            .map(|part| match (part.kind.as_str(), &part.text) {
                ("text", Some(text)) => Ok(text.as_str()),
                _ => {
                    let param = format!("messages[{index}].content");
                    Err(ApiError::invalid(&param, "only parts of type `text` are understood"))
                }
            })
            .collect(),
        None => {
            let param = format!("messages[{index}].content");
            Err(ApiError::invalid(&param, "text is needed"))
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use serde_json::json;

    use super::*;

    fn param<T: std::fmt::Debug>(result: Result<T, ApiError>) -> String {
        match result.unwrap_err() {
            ApiError::InvalidValue { param, .. } => param.unwrap_or_default(),
            other => panic!("another error: {other}"),
        }
    }

    fn body(value: Value) -> ChatBody {
        serde_json::from_value(value).unwrap()
    }

    #[tokio::test]
    async fn a_stream_without_an_event_says_now_and_then_that_it_is_there() {
        let waiting = sse(futures_util::stream::pending(), Duration::from_millis(1));
        let mut body = waiting.into_body();
        for _ in 0..3 {
            let frame = tokio::time::timeout(KEEP_ALIVE, body.frame()).await;
            let frame = frame.expect("it says nothing").unwrap().unwrap();
            assert_eq!(frame.data_ref().unwrap(), ":\n\n");
        }
    }

    #[test]
    fn fields_that_change_the_meaning_are_refused_and_harmless_ones_are_not() {
        for (name, value) in [
            ("tools", json!([{"type": "function"}])),
            ("response_format", json!({"type": "json_object"})),
            ("frequency_penalty", json!(0.5)),
            ("logit_bias", json!({"50256": -100})),
            ("modalities", json!(["text", "audio"])),
        ] {
            let rest = [(name.to_owned(), value)].into_iter().collect();
            assert_eq!(param(refuse_unsupported(&rest)), name);
        }
        let harmless = json!({"user": "me", "metadata": {}, "store": true, "tools": [],
            "response_format": {"type": "text"}, "presence_penalty": 0, "audio": null});
        let Value::Object(rest) = harmless else { unreachable!() };
        refuse_unsupported(&rest).unwrap();
    }

    #[test]
    fn text_parts_are_joined_and_images_are_refused() {
        let parts = body(json!({"messages": [{"role": "user", "content": [
            {"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 2?"}]}]}));
        assert_eq!(messages(&parts.messages).unwrap()[0].content, "What is 2 + 2?");
        let image = body(json!({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "x"}}]}]}));
        assert_eq!(param(messages(&image.messages)), "messages[0].content");
    }

    #[test]
    fn a_conversation_ends_with_the_user() {
        assert_eq!(param(messages(&[])), "messages");
        let assistant = body(json!({"messages": [{"role": "assistant", "content": "Hi"}]}));
        assert_eq!(param(messages(&assistant.messages)), "messages");
        let tool = body(json!({"messages": [{"role": "tool", "content": "4"}]}));
        assert_eq!(param(messages(&tool.messages)), "messages[0].role");
    }

    #[test]
    fn numbers_out_of_range_name_their_field() {
        let default = Sampling::default();
        for (field, value) in [
            ("temperature", json!(-0.1)),
            ("temperature", json!(11)),
            ("top_p", json!(0)),
            ("max_tokens", json!(0)),
        ] {
            let body = body(json!({ field: value }));
            assert_eq!(param(sampling(&body, default)), field);
        }
        assert_eq!(param(within("x", f32::NAN, &(0.0..=1.0))), "x");
    }

    #[test]
    fn a_request_overrides_the_agent_and_a_negative_seed_is_a_seed() {
        let body = body(json!({"max_tokens": 5, "max_completion_tokens": 7, "seed": -1,
            "reflectd": {"top_k": 3}}));
        let got = sampling(&body, Sampling { temperature: 0.5, ..Sampling::default() }).unwrap();
        assert_eq!((got.max_tokens, got.top_k, got.seed), (7, 3, Some(u64::MAX)));
        assert!((got.temperature - 0.5).abs() < f32::EPSILON);
    }
}
