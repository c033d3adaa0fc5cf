//! What the daemon tells about itself, its answers and its learning.

use serde_json::{Value, json};
use testkit::fake::Script;

use crate::harness::TestDaemon;

/// Answers well, judges well: the judge's labels are digits.
fn script() -> Script {
    Script::new("Hi there.").on("Answer with one digit", &[("3", 0.9), ("2", 0.1)])
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_the_agents() {
    let daemon = TestDaemon::start(script()).await;
    let models = daemon.get("/v1/models").await.json();
    assert_eq!(models["object"], "list");
    let model = &models["data"][0];
    assert_eq!(model["id"], "test");
    let extra = json!({"description": "For tests", "generation": 0,
        "aspects": ["completeness", "readability"], "mode": "off"});
    assert_eq!(model["reflectd"], extra);
    assert_eq!(&daemon.get("/v1/models/test").await.json(), model);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_status_tell_how_it_is() {
    let daemon = TestDaemon::start(script()).await;
    let health = daemon.get("/health").await.json();
    assert_eq!(health["status"], "ok");
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(health["generation"], 0);
    assert_eq!(health["config"], json!({"state": "ok", "problems": []}));
    let status = daemon.get("/v1/status").await.json();
    assert_eq!(status["model"]["name"], "fake");
    assert_eq!(status["agents"], json!(["test"]));
    let judge = &status["judges"][0];
    assert_eq!(judge["agent"], "test");
    assert_eq!(judge["judge"], "generation 0 of 000000000000");
    assert_eq!(judge["scalar"], "mean of the aspects");
    assert_eq!(judge["standing"], "unmeasured");
    assert_eq!(status["endpoint_calls"]["failed"], 0);
    assert_eq!(status["stage"]["stage"], "idle");
    assert_eq!((&status["next_run"], &status["last_run"]), (&Value::Null, &Value::Null));
    assert_eq!(status["counts"]["exchanges"], 0);
    assert_eq!(status["config"], health["config"]);
    let guards = &status["guards"];
    assert_eq!((&guards["paused"], &guards["watch"]), (&Value::Null, &Value::Null));
    assert_eq!((&guards["alarms"], &guards["held_out"]["prompts"]), (&json!([]), &json!(0)));
    let resumed = daemon.post("/v1/runs/resume", &json!({})).await;
    assert_eq!(resumed.json(), json!({ "paused": null }));
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_requests_by_route_and_never_by_made_up_paths() {
    let daemon = TestDaemon::start(script()).await;
    daemon.chat(json!({})).await;
    daemon.get("/made/up").await;
    let reply = daemon.get("/metrics").await;
    assert!(reply.headers["content-type"].to_str().unwrap().contains("openmetrics"));
    let text = String::from_utf8(reply.body.to_vec()).unwrap();
    for line in [
        r#"reflectd_http_requests_total{route="/v1/chat/completions",status="200"} 1"#,
        r#"reflectd_http_requests_total{route="unknown",status="404"} 1"#,
        "reflectd_chat_answer_seconds_count 1",
        "reflectd_engine_generated_tokens_total 10",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("made"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inline_answer_is_judged_and_its_receipt_leads_to_the_reflection() {
    let daemon = TestDaemon::start(script()).await;
    let body = daemon.chat(json!({"reflectd": {"mode": "inline"}})).await.json();
    let receipt = &body["reflectd"];
    let answer = &receipt["answers"][0];
    assert_eq!(answer["index"], 0);
    assert_eq!(answer["passes"], true);
    assert!((answer["value"].as_f64().unwrap() - 0.9).abs() < 0.01, "{answer}");
    assert_eq!(answer["aspects"].as_object().unwrap().len(), 2);
    assert!(body["choices"][0]["message"]["reasoning_content"].is_string());
    assert_eq!(body["choices"][0]["message"]["content"], "Hi there.");

    let id = &receipt["exchange"];
    let exchange = daemon.get(&format!("/v1/reflections/{id}")).await.json();
    assert_eq!(&exchange["id"], id);
    assert_eq!(exchange["served"], answer["candidate"]);
    let candidates = exchange["candidates"].as_array().unwrap();
    assert_eq!(json!(candidates.len()), receipt["candidates"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inline_stream_reasons_before_it_answers() {
    let daemon = TestDaemon::start(script()).await;
    let fields = json!({"reflectd": {"mode": "inline"}});
    let (chunks, is_done) = daemon.chat_stream(fields).await.events().await;
    assert!(is_done);
    let has = |chunk: &Value, field: &str| chunk["choices"][0]["delta"][field].is_string();
    let reasoned = chunks.iter().rposition(|chunk| has(chunk, "reasoning_content")).unwrap();
    let answered = chunks.iter().position(|chunk| has(chunk, "content")).unwrap();
    assert!(reasoned < answered);
    assert_eq!(chunks.last().unwrap()["reflectd"]["answers"][0]["passes"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_answer_is_stored_at_once_and_judged_later() {
    let daemon = TestDaemon::start(script()).await;
    let body = daemon.chat(json!({"reflectd": {"mode": "background"}})).await.json();
    assert_eq!(body["reflectd"]["answers"], json!([]));
    let path = format!("/v1/reflections/{}", body["reflectd"]["exchange"]);
    let judged = |exchange: &Value| {
        let served = exchange["served"].as_u64();
        let candidates = exchange["candidates"].as_array().unwrap();
        let first = candidates.iter().find(|it| it["id"].as_u64() == served).unwrap();
        !first["assessments"].as_array().unwrap().is_empty()
    };
    daemon.until(&path, judged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reflections_come_newest_first_and_in_pages() {
    let daemon = TestDaemon::start(script()).await;
    for _ in 0..3 {
        daemon.chat(json!({"reflectd": {"mode": "explore"}})).await;
    }
    let ids = |page: &Value| -> Vec<i64> {
        let data = page["data"].as_array().unwrap();
        data.iter().map(|exchange| exchange["id"].as_i64().unwrap()).collect()
    };
    let first = ids(&daemon.get("/v1/reflections?limit=2").await.json());
    assert_eq!(first.len(), 2);
    assert!(first[0] > first[1]);
    let rest = daemon.get(&format!("/v1/reflections?before={}", first[1])).await.json();
    assert_eq!(ids(&rest).len(), 1);
    let refused = daemon.get("/v1/reflections?limit=1001").await;
    assert_eq!(refused.error(), (400, "invalid_value".to_owned()));
    let refused = daemon.get("/v1/reflections?limit=many").await;
    assert_eq!(refused.error(), (400, "invalid_value".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn feedback_is_stored_by_receipt() {
    let daemon = TestDaemon::start(script()).await;
    let body = daemon.chat(json!({"reflectd": {"mode": "explore"}})).await.json();
    let exchange = &body["reflectd"]["exchange"];
    let stored = daemon.post("/v1/feedback", &json!({"exchange": exchange, "rating": -1})).await;
    assert_eq!(stored.json(), json!({"stored": true}));
    assert_eq!(daemon.get("/v1/status").await.json()["counts"]["feedback"], 1);
    for refused in [
        json!({"exchange": exchange, "rating": 5}),
        json!({"exchange": exchange, "rating": 1, "aspect": "wit"}),
        json!({"exchange": exchange, "edit": " "}),
    ] {
        let refused = daemon.post("/v1/feedback", &refused).await;
        assert_eq!(refused.error(), (400, "invalid_value".to_owned()));
    }
    let foreign = json!({"exchange": exchange, "candidate": 99, "rating": 1});
    assert_eq!(daemon.post("/v1/feedback", &foreign).await.error(), (404, "not_found".to_owned()));
    let fine = json!({"exchange": exchange, "rating": 1, "aspect": "readability"});
    assert_eq!(daemon.post("/v1/feedback", &fine).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn ratings_and_examples_change_what_status_says_of_learning_at_once() {
    let daemon = TestDaemon::start(script()).await;
    let learning = async || daemon.get("/v1/status").await.json()["learning"].clone();
    // What the daemon looks at when it starts is known by now.
    daemon.until("/v1/status", |status| status["learning"].is_object()).await;
    let body = daemon.chat(json!({"reflectd": {"mode": "explore"}})).await.json();
    assert_eq!(learning().await["yield"]["answers"], 0, "nobody has judged it");
    let rated = json!({"exchange": body["reflectd"]["exchange"], "rating": 1});
    assert_eq!(daemon.post("/v1/feedback", &rated).await.status, 200);
    let found = learning().await;
    assert_eq!((&found["yield"]["answers"], &found["yield"]["passing"]), (&json!(1), &json!(1)));
    let sentence = found["sentence"].as_str().unwrap();
    assert!(sentence.contains("agent test has no held-out prompts"), "{sentence}");
    let examples = json!({"examples": [{"prompt": "And now?", "answer": "Hello."}]});
    assert_eq!(daemon.post("/v1/examples", &examples).await.status, 200);
    assert_eq!(learning().await["examples"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_becomes_an_answer_that_ends_like_a_served_one() {
    let daemon = TestDaemon::start(script()).await;
    let body = daemon.chat(json!({"reflectd": {"mode": "explore"}})).await.json();
    let exchange = &body["reflectd"]["exchange"];
    let said = json!({"exchange": exchange, "edit": "Hello, friend.\n"});
    let stored = daemon.post("/v1/feedback", &said).await.json();
    let found = daemon.get(&format!("/v1/reflections/{exchange}")).await.json();
    let [served, edit] = found["candidates"].as_array().unwrap().as_slice() else {
        panic!("{found}")
    };
    assert_eq!((&edit["id"], &edit["text"]), (&stored["edit"], &json!("Hello, friend.")));
    assert_eq!((&edit["author"], &served["author"]), (&json!("owner"), &json!("model")));
    assert_eq!((&edit["parent"], &found["served"]), (&served["id"], &served["id"]));
    assert_eq!(found["feedback"][0]["candidate"], served["id"], "the served one was meant");

    // Longer than the context: refused at once, and nothing is stored.
    let long = json!({"exchange": exchange, "edit": "x".repeat(20_000)});
    let refused = daemon.post("/v1/feedback", &long).await;
    assert_eq!(refused.error(), (400, "context_length_exceeded".to_owned()));
    assert_eq!(daemon.get("/v1/status").await.json()["counts"]["feedback"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn exploration_of_one_agent_leaves_the_prompts_of_others_alone() {
    let daemon = TestDaemon::start(script()).await;
    let twin = crate::harness::AGENT;
    crate::harness::write(&daemon.root().join("agents/twin.yaml"), twin);
    let settings = "default_agent: test\n";
    crate::harness::write(&daemon.root().join("reflectd.yaml"), settings);
    let daemon = daemon.restart(script()).await;
    let prompts = |id: &str| json!([{"id": id, "prompt": format!("{id}?")}]);
    let body = |agent: &str, prompts: Value| json!({"agent": agent, "prompts": prompts, "limit": 0, "n": 2, "m": 0});
    for agent in ["test", "twin"] {
        daemon.post("/v1/explore", &body(agent, prompts(agent))).await;
    }
    let mut wish = body("twin", json!([]));
    wish["limit"] = 9.into();
    let ended = daemon.post("/v1/explore", &wish).await.json();
    assert_eq!((&ended["prompts"], &ended["candidates"]), (&json!(1), &json!(2)), "{ended}");
    let found = daemon.get("/v1/reflections").await.json();
    let explored = found["data"].as_array().unwrap().iter();
    let explored = explored.filter(|it| !it["candidates"].as_array().unwrap().is_empty());
    assert_eq!(explored.map(|it| it["agent"].clone()).collect::<Vec<_>>(), [json!("twin")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_base_is_a_generation_to_go_back_to() {
    let daemon = TestDaemon::start(script()).await;
    let adapters = daemon.get("/v1/adapters").await.json();
    assert_eq!(adapters["active"], 0);
    assert_eq!(adapters["data"], json!([{"generation": 0}]));
    let back = daemon.post("/v1/adapters/rollback", &json!({"generation": 0})).await;
    assert_eq!(back.json(), json!({"active": 0}));
}

#[tokio::test(flavor = "multi_thread")]
async fn exploration_stores_new_prompts_and_is_followed_to_its_end() {
    let daemon = TestDaemon::start(script()).await;
    let prompts = json!([{"id": "a", "prompt": "One?"}, {"id": "b", "prompt": "Two?"}]);
    let body = json!({"prompts": prompts, "n": 2, "m": 0, "stream": true});
    let answer = daemon.send(hyper::Method::POST, "/v1/explore", body.to_string()).await;
    let (events, is_done) = answer.events().await;
    assert!(is_done);
    let (last, stages) = events.split_last().unwrap();
    assert!(!stages.is_empty());
    assert!(stages.iter().all(|event| event["stage"].is_string()), "{stages:?}");
    assert_eq!(last["outcome"], "explored");
    assert_eq!(last["prompts"], 2);
    let positives = last["positives"].as_f64().unwrap();
    let tokens = last["generated_tokens"].as_f64().unwrap();
    let per_1000 = last["positives_per_1000_tokens"].as_f64().unwrap();
    assert!((per_1000 - 1000.0 * positives / tokens).abs() < 1e-9 && 0.0 < per_1000, "{last}");
    let metrics = daemon.get("/metrics").await.body;
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    let expected = format!("reflectd_explore_generated_tokens_total {tokens}");
    assert!(metrics.lines().any(|line| line == expected), "{metrics}");
    assert_eq!(daemon.get("/v1/status").await.json()["counts"]["candidates"], 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_pairs_fails_with_its_reason_and_serving_goes_on() {
    let daemon = TestDaemon::start(script()).await;
    let ended = daemon.post("/v1/runs", &json!({})).await.json();
    assert_eq!(ended["outcome"], "failed", "{ended}");
    assert!(!ended["reason"].as_str().unwrap().is_empty());
    assert_eq!(daemon.chat(json!({})).await.status, 200);
    let idle = daemon.send(hyper::Method::DELETE, "/v1/runs/current", "").await.whole().await;
    assert_eq!(idle.json(), json!({"cancelled": false}));
}
