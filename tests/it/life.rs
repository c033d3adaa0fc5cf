//! Start, end, and restart on the same folder.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use protocol::exit::Exit;
use reflectd::daemon::{Control, StartError};
use serde_json::json;
use testkit::fake::Script;

use crate::harness::TestDaemon;

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_may_open_the_socket() {
    let daemon = TestDaemon::start(Script::new("Hi")).await;
    let mode = std::fs::metadata(daemon.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_running_chats_end_and_leaves_no_socket() {
    let script = Script::new(&"x".repeat(400)).step_delay(Duration::from_millis(1));
    let daemon = TestDaemon::start(script).await;
    let mut running = daemon.chat_stream(json!({"max_tokens": 200})).await;
    assert!(running.event().await.is_some());
    daemon.tell(Control::Drain).await;
    let (_, is_done) = running.events().await;
    assert!(is_done, "the chat was cut off");
    let socket = daemon.socket();
    assert_eq!(daemon.ended().await, Exit::Ok);
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_stop_cuts_the_drain_short() {
    let script = Script::new(&"x".repeat(3000)).step_delay(Duration::from_millis(5));
    let daemon = TestDaemon::start(script).await;
    let mut running = daemon.chat_stream(json!({"max_tokens": 2900})).await;
    assert!(running.event().await.is_some());
    daemon.tell(Control::Drain).await;
    daemon.tell(Control::ExitNow).await;
    assert_eq!(daemon.ended().await, Exit::Forced);
    let (events, is_done) = running.events().await;
    assert!(!is_done);
    assert_eq!(events.last().unwrap()["error"]["code"], "draining");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_when_its_grace_is_over() {
    let script = Script::new(&"x".repeat(3000)).step_delay(Duration::from_millis(5));
    let daemon = TestDaemon::start_with(script, "server: { shutdown_grace_s: 0.1 }").await;
    let mut running = daemon.chat_stream(json!({"max_tokens": 2900})).await;
    assert!(running.event().await.is_some());
    daemon.tell(Control::Drain).await;
    assert_eq!(daemon.ended().await, Exit::Forced);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_state_is_refused_and_harms_nobody() {
    let daemon = TestDaemon::start(Script::new("Hi")).await;
    let refused = daemon.start_second(Script::new("Hi")).await.unwrap_err();
    assert!(matches!(refused, StartError::Locked { .. }));
    assert_eq!(refused.exit(), Exit::System);
    assert_eq!(daemon.chat(json!({})).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_is_there_after_a_restart() {
    let daemon = TestDaemon::start(Script::new("Hi")).await;
    let body = daemon.chat(json!({"reflectd": {"mode": "explore"}})).await.json();
    let path = format!("/v1/reflections/{}", body["reflectd"]["exchange"]);
    let before = daemon.get(&path).await.json();
    let daemon = daemon.restart(Script::new("Hi")).await;
    assert_eq!(daemon.get(&path).await.json(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_with_problems_is_a_start_up_error_that_names_them() {
    let daemon = TestDaemon::start(Script::new("Hi")).await;
    crate::harness::write(&daemon.root().join("agents/test.yaml"), "description: no model");
    let folder = daemon.drained().await;
    let refused = crate::harness::start(folder.path(), Script::new("Hi")).await.unwrap_err();
    assert_eq!(refused.exit(), Exit::Config);
    assert!(refused.to_string().contains("agents/test.yaml: model"), "{refused}");
}
