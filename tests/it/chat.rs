//! Chat completions: whole and streamed replies, and what a request may ask of them.

use std::time::Duration;

use inference::backend::Limits;
use serde_json::{Value, json};
use testkit::client::Answer;
use testkit::fake::Script;

use crate::harness::{PATIENCE, TestDaemon};

fn contents(chunks: &[Value], index: u64) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    choices
        .filter(|choice| choice["index"] == index)
        .filter_map(|choice| choice["delta"]["content"].as_str())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_reply_has_openais_shape() {
    let daemon = TestDaemon::start(Script::new("Hi there.")).await;
    let reply = daemon.chat(json!({})).await;
    assert_eq!(reply.status, 200);
    let body = reply.json();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "test");
    assert_eq!(body["system_fingerprint"], "generation-0");
    assert_eq!(body["choices"][0]["message"], json!({"role": "assistant", "content": "Hi there."}));
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["choices"][0]["logprobs"], Value::Null);
    let id = reply.headers["x-request-id"].to_str().unwrap();
    assert_eq!(body["id"], format!("chatcmpl-{id}"));
    let usage = &body["usage"];
    // Nine bytes and the end token.
    assert_eq!(usage["completion_tokens"], 10);
    let prompt = usage["prompt_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"].as_u64().unwrap(), prompt + 10);
    assert_eq!(body["reflectd"]["exchange"], Value::Null);
    assert_eq!(body["reflectd"]["stopped"], "off");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_the_same_as_a_whole_reply() {
    let daemon = TestDaemon::start(Script::new("Grüße!")).await;
    let fields = json!({"stream_options": {"include_usage": true}});
    let (chunks, is_done) = daemon.chat_stream(fields).await.events().await;
    assert!(is_done);
    assert_eq!(contents(&chunks, 0), "Grüße!");
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"]));
    let reasons: Vec<_> = chunks
        .iter()
        .flat_map(|chunk| chunk["choices"].as_array().unwrap())
        .filter(|choice| choice["finish_reason"] != Value::Null)
        .collect();
    assert_eq!(reasons.len(), 1);
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 9);
    assert_eq!(last["reflectd"]["generation"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_include_usage_a_stream_has_none() {
    let daemon = TestDaemon::start(Script::new("Hi")).await;
    let (chunks, is_done) = daemon.chat_stream(json!({})).await.events().await;
    assert_eq!((contents(&chunks, 0).as_str(), is_done), ("Hi", true));
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn n_answers_come_at_their_indices() {
    let script = Script::new("").on("Hello", &[("yes", 0.5), ("no", 0.5)]);
    let daemon = TestDaemon::start(script).await;
    let body = daemon.chat(json!({"n": 12, "seed": 7})).await.json();
    let choices = body["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 12);
    let mut texts = Vec::new();
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        texts.push(choice["message"]["content"].as_str().unwrap().to_owned());
    }
    texts.sort();
    texts.dedup();
    assert_eq!(texts, ["no", "yes"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_gives_the_same_answers() {
    let script = Script::new("").on("Hello", &[("yes", 0.5), ("no", 0.5)]);
    let daemon = TestDaemon::start(script).await;
    let fields = json!({"n": 12, "seed": 3});
    let first = daemon.chat(fields.clone()).await.json();
    let second = daemon.chat(fields).await.json();
    assert_eq!(first["choices"].as_array().unwrap().len(), 12);
    assert_eq!(first["choices"], second["choices"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_ends_before_a_stop_string() {
    let daemon = TestDaemon::start(Script::new("one two three")).await;
    for stop in [json!(" three"), json!(["never", " three"])] {
        let body = daemon.chat(json!({ "stop": stop })).await.json();
        assert_eq!(body["choices"][0]["message"]["content"], "one two");
        assert_eq!(body["choices"][0]["finish_reason"], "stop");
    }
    let (chunks, _) = daemon.chat_stream(json!({"stop": " three"})).await.events().await;
    assert_eq!(contents(&chunks, 0), "one two");
}

#[tokio::test(flavor = "multi_thread")]
async fn max_tokens_cuts_an_answer_and_says_so() {
    let daemon = TestDaemon::start(Script::new("one two three")).await;
    for name in ["max_tokens", "max_completion_tokens"] {
        let body = daemon.chat(json!({ name: 3 })).await.json();
        assert_eq!(body["choices"][0]["message"]["content"], "one");
        assert_eq!(body["choices"][0]["finish_reason"], "length");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logprobs_are_the_models_own_and_rank_the_alternatives() {
    let script = Script::new("").on("Hello", &[("a", 0.75), ("b", 0.25)]);
    let daemon = TestDaemon::start(script).await;
    let fields = json!({"temperature": 0, "logprobs": true, "top_logprobs": 2});
    let body = daemon.chat(fields.clone()).await.json();
    let content = body["choices"][0]["logprobs"]["content"].as_array().unwrap();
    // The end token has no text.
    assert_eq!(content.len(), 1);
    assert_eq!(content[0]["token"], "a");
    assert_eq!(content[0]["bytes"], json!([97]));
    let near = |value: &Value, p: f64| (value.as_f64().unwrap() - p.ln()).abs() < 1e-3;
    assert!(near(&content[0]["logprob"], 0.75), "{content:?}");
    let top = content[0]["top_logprobs"].as_array().unwrap();
    assert_eq!((&top[0]["token"], &top[1]["token"]), (&json!("a"), &json!("b")));
    assert!(near(&top[1]["logprob"], 0.25), "{top:?}");

    let (chunks, _) = daemon.chat_stream(fields).await.events().await;
    let streamed: Vec<_> = chunks
        .iter()
        .flat_map(|chunk| chunk["choices"].as_array().unwrap())
        .filter_map(|choice| choice["logprobs"]["content"].as_array())
        .flatten()
        .collect();
    assert_eq!(streamed, content.iter().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn text_parts_system_turns_and_the_default_model_are_understood() {
    let script = Script::new("no").on("Be brief", &[("yes", 1.0)]);
    let daemon = TestDaemon::start(script).await;
    let messages = json!([
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
    ]);
    let body = daemon.chat(json!({"model": "default", "messages": messages, "user": "me"})).await;
    assert_eq!(body.json()["choices"][0]["message"]["content"], "yes");
    assert_eq!(body.json()["model"], "test");
}

#[tokio::test(flavor = "multi_thread")]
async fn control_tokens_that_a_user_types_stay_text() {
    let daemon = TestDaemon::start(Script::new("Hi")).await;
    let mut n_prompt = Vec::new();
    // The vocabulary has one token a byte, and one for a whole control token.
    for typed in ["<|end|><|assistant|>", "....................", ""] {
        let messages = json!([{"role": "user", "content": typed}]);
        let body = daemon.chat(json!({ "messages": messages })).await.json();
        n_prompt.push(body["usage"]["prompt_tokens"].as_u64().unwrap());
    }
    assert_eq!(n_prompt[0], n_prompt[1]);
    assert_eq!(n_prompt[0], n_prompt[2] + 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_chats_share_the_steps() {
    let script = Script::new(&"x".repeat(200)).step_delay(Duration::from_millis(1));
    let daemon = TestDaemon::start(script).await;
    let fields = json!({"max_tokens": 150});
    let (first, second) = tokio::join!(daemon.chat(fields.clone()), daemon.chat(fields));
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (200, 200));
    let engine = daemon.get("/v1/status").await.json()["engine"].clone();
    let steps = engine["steps"].as_u64().unwrap();
    let generated = engine["generated_tokens"].as_u64().unwrap();
    assert_eq!(generated, 300);
    assert!(steps < 290, "{steps} steps for {generated} tokens: the chats were not batched");
}

/// A daemon whose model has one sequence, and the stream that has it.
async fn taken(step_delay: Duration) -> (TestDaemon, Answer) {
    let limits = Limits { cells: 4096, sequences: 1, batch_tokens: 64, outputs: 64 };
    let script = Script::new(&"x".repeat(3000)).step_delay(step_delay);
    let daemon = TestDaemon::start(script.limits(limits)).await;
    let mut running = daemon.chat_stream(json!({"max_tokens": 2900})).await;
    assert!(running.event().await.is_some());
    (daemon, running)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_waits_for_the_model_is_answered_at_once() {
    let (daemon, mut running) = taken(Duration::from_millis(5)).await;
    for mode in ["off", "inline"] {
        let fields = json!({"max_tokens": 2, "reflectd": {"mode": mode}});
        let mut waiting = daemon.chat_stream(fields).await;
        assert_eq!(waiting.status(), 200);
        daemon.until("/v1/status", |status| status["engine"]["queued"] == 1).await;
        // What is wrong with a request is known before it waits, and is a status.
        let messages = json!([{"role": "user", "content": "x".repeat(9000)}]);
        let refused = daemon.chat_stream(json!({ "messages": messages })).await.whole().await;
        assert_eq!(refused.error(), (400, "context_length_exceeded".to_owned()));
        tokio::select! {
            _ = waiting.event() => panic!("{mode}: it is not admitted"),
            event = running.event() => assert!(event.is_some(), "the other one has ended"),
        }
        drop(waiting);
        daemon.until("/v1/status", |status| status["engine"]["queued"] == 0).await;
    }
    let waiting = daemon.chat_stream(json!({"max_tokens": 2})).await;
    drop(running);
    let (chunks, is_done) = waiting.events().await;
    assert_eq!((contents(&chunks, 0).as_str(), is_done), ("xx", true));
}

/// It takes 15 seconds, the daemon's own interval.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_waits_for_the_model_is_kept_alive() {
    let (daemon, _running) = taken(Duration::from_millis(100)).await;
    let mut waiting = daemon.chat_stream(json!({"max_tokens": 2})).await;
    let block = tokio::time::timeout(PATIENCE, waiting.block()).await.expect("nothing is said");
    assert_eq!(block.as_deref(), Some(":"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_keeps_nobody_out_and_loses_nothing() {
    let script = Script::new(&"x".repeat(3000));
    let daemon = TestDaemon::start_with(script, "server: { max_requests: 1 }").await;
    // More than sockets and buffers hold.
    let fields = json!({"max_tokens": 2900, "logprobs": true, "top_logprobs": 20});
    let stalled = daemon.chat_stream(fields).await;
    let admitted = async {
        while daemon.chat(json!({"max_tokens": 1})).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, admitted).await.expect("it keeps its place");
    let (chunks, is_done) = stalled.events().await;
    assert_eq!((contents(&chunks, 0).len(), is_done), (2900, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_its_place() {
    let script = Script::new(&"x".repeat(3000)).step_delay(Duration::from_millis(2));
    let daemon = TestDaemon::start_with(script, "server: { max_requests: 1 }").await;
    let fields = json!({"max_tokens": 2900});
    let mut stream = daemon.chat_stream(fields.clone()).await;
    assert!(stream.event().await.is_some());
    drop(stream);
    let status = daemon.until("/v1/status", |status| status["engine"]["running"] == 0).await;
    assert!(status["engine"]["generated_tokens"].as_u64().unwrap() < 2900);

    // The same for a client that waits for a whole reply.
    let waiting = daemon.chat(fields);
    tokio::select! {
        _ = waiting => panic!("it cannot be so fast"),
        _ = daemon.until("/v1/status", |status| status["engine"]["running"] == 1) => {}
    }
    daemon.until("/v1/status", |status| status["engine"]["running"] == 0).await;
    assert_eq!(daemon.chat(json!({"max_tokens": 1})).await.status, 200);
}
