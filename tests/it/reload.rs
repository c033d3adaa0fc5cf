//! The configuration changes while the daemon runs.

use reflectd::daemon::Control;
use serde_json::{Value, json};
use testkit::fake::Script;

use crate::harness::{AGENT, PATIENCE, TestDaemon, write};

fn is_rolled_back(health: &Value) -> bool {
    health["config"]["state"] == "rolled_back"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_in_force_without_a_word() {
    let daemon = TestDaemon::start(Script::new("Hi")).await;
    let changed = AGENT.replace("For tests", "Changed");
    write(&daemon.root().join("agents/test.yaml"), &changed);
    daemon
        .until("/v1/models", |models| models["data"][0]["reflectd"]["description"] == "Changed")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_keeps_the_last_good_configuration_and_says_so() {
    let daemon = TestDaemon::start(Script::new("Hi")).await;
    let file = daemon.root().join("agents/test.yaml");
    write(&file, "aspects: [unheard_of]");
    daemon.tell(Control::Reload).await;
    let health = daemon.until("/health", is_rolled_back).await;
    assert_eq!(health["status"], "degraded");
    let problems = health["config"]["problems"].as_array().unwrap();
    assert!(problems.iter().any(|it| it["file"] == "agents/test.yaml"), "{problems:?}");
    assert_eq!(daemon.chat(json!({})).await.status, 200);

    write(&file, AGENT);
    daemon.tell(Control::Reload).await;
    daemon.until("/health", |health| health["status"] == "ok").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_change_live_is_named_and_nothing_else_of_it_applies() {
    let daemon = TestDaemon::start(Script::new("Hi")).await;
    let settings = "engine: { context_tokens: 4096 }\nserver: { max_body_bytes: 1024 }";
    write(&daemon.root().join("reflectd.yaml"), settings);
    daemon.tell(Control::Reload).await;
    let health = daemon.until("/health", is_rolled_back).await;
    let keys: Vec<_> =
        health["config"]["problems"].as_array().unwrap().iter().map(|it| &it["key"]).collect();
    assert_eq!(keys, ["engine.context_tokens"]);
    let large = json!([{"role": "user", "content": "x".repeat(2000)}]);
    assert_eq!(daemon.chat(json!({ "messages": large })).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_live() {
    let daemon = TestDaemon::start(Script::new("Hi")).await;
    write(&daemon.root().join("reflectd.yaml"), "server: { max_body_bytes: 1024 }");
    daemon.tell(Control::Reload).await;
    let large = json!([{"role": "user", "content": "x".repeat(2000)}]);
    let body = crate::harness::chat(json!({ "messages": large })).to_string();
    let refused = async {
        loop {
            let chat = "/v1/chat/completions";
            let answer = daemon.send(hyper::Method::POST, chat, body.clone()).await;
            if answer.status() == 413 {
                return answer.whole().await.error().1;
            }
        }
    };
    let code = tokio::time::timeout(PATIENCE, refused).await.expect("the limit stays what it was");
    assert_eq!(code, "body_too_large");
}
