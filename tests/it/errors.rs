//! Every code of `docs/reference/api.md`.

use std::time::Duration;

use hyper::Method;
use reflectd::daemon::Control;
use serde_json::{Value, json};
use testkit::fake::Script;
use tokio::net::UnixStream;

use crate::harness::{TestDaemon, chat};

fn code(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

async fn refused(daemon: &TestDaemon, fields: Value) -> (u16, String, Value) {
    let reply = daemon.chat(fields).await;
    let (status, code) = reply.error();
    (status, code, reply.json()["error"]["param"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_json_is_invalid_json() {
    let daemon = TestDaemon::start(Script::new("Hi")).await;
    let reply = daemon.send(Method::POST, "/v1/chat/completions", "{").await.whole().await;
    assert_eq!(reply.error(), code(400, "invalid_json"));
    assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
    assert!(reply.headers.contains_key("x-request-id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_out_of_range_names_its_field() {
    let daemon = TestDaemon::start(Script::new("Hi")).await;
    for (fields, param) in [
        (json!({"temperature": -1}), "temperature"),
        (json!({"temperature": "warm"}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"n": 0}), "n"),
        (json!({"n": 100_000}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"top_logprobs": 21, "logprobs": true}), "top_logprobs"),
        (json!({"top_logprobs": 1}), "top_logprobs"),
        (json!({"stop": [""]}), "stop"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].role"),
        (json!({"tools": [{"type": "function"}]}), "tools"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"reflectd": {"mode": "sometimes"}}), "reflectd.mode"),
        (json!({"reflectd": {"verifier": {"kind": "regex", "pattern": "("}}}), "reflectd.verifier"),
    ] {
        let expected = (400, "invalid_value".to_owned(), json!(param));
        assert_eq!(refused(&daemon, fields.clone()).await, expected, "{fields}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_does_not_fit_says_both_numbers() {
    let daemon = TestDaemon::start(Script::new("Hi")).await;
    let messages = json!([{"role": "user", "content": "x".repeat(100_000)}]);
    for stream in [false, true] {
        let reply = daemon.chat(json!({"messages": messages, "stream": stream})).await;
        assert_eq!(reply.error(), code(400, "context_length_exceeded"));
        let body = reply.json();
        let message = body["error"]["message"].as_str().unwrap();
        // A hundred thousand bytes and the template's own tokens; the fake has 4096 cells.
        let numbers: Vec<usize> = message.split(' ').filter_map(|it| it.parse().ok()).collect();
        let limit = message.split("holds ").nth(1).and_then(|rest| rest.split(';').next());
        assert!(100_000 < numbers[0] && numbers[0] < 100_100, "{message}");
        assert_eq!(limit, Some("4096"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found() {
    let daemon = TestDaemon::start(Script::new("Hi")).await;
    let reply = daemon.chat(json!({"model": "other"})).await;
    assert_eq!(reply.error(), code(404, "model_not_found"));
    assert_eq!(daemon.get("/v1/models/other").await.error(), code(404, "model_not_found"));
    for path in
        ["/v1/nothing", "/v1/reflections/99", "/v1/reflections/x", "/v1/runs/99", "/v1/adapters/99"]
    {
        assert_eq!(daemon.get(path).await.error(), code(404, "not_found"), "{path}");
    }
    let feedback = json!({"exchange": 99, "rating": 1});
    assert_eq!(daemon.post("/v1/feedback", &feedback).await.error(), code(404, "not_found"));
    let rollback = daemon.post("/v1/adapters/rollback", &json!({"generation": 99})).await;
    assert_eq!(rollback.error(), code(404, "not_found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_method_is_not_allowed() {
    let daemon = TestDaemon::start(Script::new("Hi")).await;
    let reply = daemon.get("/v1/chat/completions").await;
    assert_eq!(reply.error(), code(405, "method_not_allowed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_is_too_large() {
    let daemon =
        TestDaemon::start_with(Script::new("Hi"), "server: { max_body_bytes: 1024 }").await;
    let messages = json!([{"role": "user", "content": "x".repeat(2000)}]);
    let reply = daemon.chat(json!({ "messages": messages })).await;
    assert_eq!(reply.error(), code(413, "body_too_large"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_chat_too_many_is_overloaded_and_told_when_to_come_back() {
    let script = Script::new(&"x".repeat(3000)).step_delay(Duration::from_millis(2));
    let daemon = TestDaemon::start_with(script, "server: { max_requests: 1 }").await;
    let mut running = daemon.chat_stream(json!({"max_tokens": 2900})).await;
    assert!(running.event().await.is_some());
    let reply = daemon.chat(json!({})).await;
    assert_eq!(reply.error(), code(429, "overloaded"));
    assert!(reply.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_fails_is_an_engine_failure_also_inside_a_stream() {
    let daemon = TestDaemon::start(Script::new("Hi").poison("Hello")).await;
    let reply = daemon.chat(json!({})).await;
    assert_eq!(reply.error(), code(503, "engine_failed"));
    let (events, is_done) = daemon.chat_stream(json!({})).await.events().await;
    assert!(!is_done, "a stream that failed says [DONE]");
    assert_eq!(events.last().unwrap()["error"]["code"], "engine_failed");
    let unharmed = json!({"messages": [{"role": "user", "content": "Bye"}]});
    assert_eq!(daemon.chat(unharmed).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_long_operation_is_refused_until_the_first_is_cancelled() {
    let script = Script::new(&"x".repeat(100)).step_delay(Duration::from_millis(5));
    let daemon = TestDaemon::start(script).await;
    let prompts: Vec<_> =
        (0..50).map(|id| json!({"id": id.to_string(), "prompt": format!("{id}?")})).collect();
    let body = json!({"prompts": prompts, "n": 8, "m": 0, "stream": true}).to_string();
    let mut first = daemon.send(Method::POST, "/v1/explore", body).await;
    assert!(first.event().await.is_some());
    // The client has left, and the operation goes on.
    drop(first);
    assert_eq!(daemon.post("/v1/runs", &json!({})).await.error(), code(409, "learner_busy"));
    let streamed = daemon.post("/v1/runs", &json!({"stream": true})).await;
    assert!(String::from_utf8_lossy(&streamed.body).contains("learner_busy"));
    let cancel = daemon.send(Method::DELETE, "/v1/runs/current", "").await.whole().await;
    assert_eq!(cancel.json(), json!({"cancelled": true}));
    daemon.until("/v1/status", |status| status["stage"]["stage"] == "idle").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_drains_takes_nothing_new() {
    let script = Script::new(&"x".repeat(400)).step_delay(Duration::from_millis(2));
    let daemon = TestDaemon::start(script).await;
    let mut running = daemon.chat_stream(json!({"max_tokens": 300})).await;
    assert!(running.event().await.is_some());
    // The second request waits on a connection that is already there.
    let socket = daemon.socket();
    let stream = UnixStream::connect(&socket).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let connection = tokio::spawn(connection);
    let ask = |path: &str, body: String| {
        let method = if body.is_empty() { Method::GET } else { Method::POST };
        testkit::client::request(method, path, body)
    };
    let health = sender.send_request(ask("/health", String::new())).await.unwrap();
    assert_eq!(health.status(), 200);
    drop(health);
    daemon.tell(Control::Drain).await;
    // The daemon looks at the word in its own time; it drains when it takes no connection any more.
    while UnixStream::connect(&socket).await.is_ok() {
        tokio::task::yield_now().await;
    }
    // Either the idle connection is closed or the request is refused; it is never answered.
    if let Ok(()) = sender.ready().await {
        let body = chat(json!({})).to_string();
        if let Ok(response) = sender.send_request(ask("/v1/chat/completions", body)).await {
            assert_eq!(response.status(), 503);
        }
    }
    let (_, is_done) = running.events().await;
    assert!(is_done, "the running request was cut off");
    drop(connection);
}
