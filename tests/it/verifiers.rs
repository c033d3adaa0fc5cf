//! An agent whose answers programs decide on, over the socket: with parts, with a program of the owner's,
//! and without any judge.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};
use testkit::fake::Script;

use crate::harness::{TestDaemon, write};
use reflectd::daemon::Control;

const AGENT: &str = "\
description: Checked by programs
model: model.gguf
judge: none
sampling: { temperature: 1.0, max_tokens: 32 }
reflection: { mode: inline, drafts: 1, refinements: 1, rounds: 1 }
verifier:
  kind: all
  of:
    - { kind: length, sentences: 1 }
    - { kind: command, command: [./check.sh], timeout_s: 30 }
";

/// Passes what does not say `two`.
const CHECK: &str = "#!/bin/sh
while read -r line; do
  case \"$line\" in
    *'\"answer\":\"'*two*) echo '{\"score\": 0, \"reason\": \"says two\"}' ;;
    *) echo '{\"score\": 1}' ;;
  esac
done
";

async fn daemon() -> TestDaemon {
    let script = Script::new("?")
        .on("2 sentences, 1 wanted; says two", &[("Only one.", 1.0)])
        .on("ask", &[("Here are. two.", 1.0)]);
    let daemon = TestDaemon::start(script).await;
    let check = daemon.root().join("check.sh");
    write(&check, CHECK);
    std::fs::set_permissions(&check, std::fs::Permissions::from_mode(0o755)).unwrap();
    write(&daemon.root().join("agents/test.yaml"), AGENT);
    daemon.tell(Control::Reload).await;
    daemon
        .until("/v1/models", |models| {
            models["data"][0]["reflectd"]["description"] == "Checked by programs"
        })
        .await;
    daemon
}

fn aspects(candidate: &Value) -> Vec<(&str, bool)> {
    let said = candidate["assessments"].as_array().unwrap().iter();
    said.map(|it| (it["aspect"].as_str().unwrap(), it["passes"].as_bool().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_alone_refuse_an_answer_say_why_and_accept_the_better_one() {
    let daemon = daemon().await;
    let messages = json!([{"role": "user", "content": "ask"}]);
    let reply = daemon.chat(json!({ "messages": messages })).await.json();
    assert_eq!(reply["choices"][0]["message"]["content"], "Only one.", "{reply}");
    let stored =
        daemon.get(&format!("/v1/reflections/{}", reply["reflectd"]["exchange"])).await.json();
    assert_eq!(stored["verifier"], Value::Null, "a program is not stored");
    let [draft, refined] = stored["candidates"].as_array().unwrap().as_slice() else { panic!() };
    assert_eq!(
        aspects(draft),
        [("verifier", false), ("verifier.length", false), ("verifier.command", false)]
    );
    assert_eq!(draft["assessments"][2]["reason"], "says two");
    assert_eq!(draft["critic"], Value::Null);
    assert_eq!(refined["critique"], "2 sentences, 1 wanted; says two");
    assert_eq!(refined["critic"], "verifier");
    assert_eq!(
        aspects(refined),
        [("verifier", true), ("verifier.length", true), ("verifier.command", true)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_can_name_a_program() {
    let daemon = daemon().await;
    let folder = daemon.root().join("ran");
    let command = json!({"kind": "command", "command": ["touch", folder], "pass": 1,
                         "timeout_s": 1, "folder": "/"});
    for verifier in [command.clone(), json!({"kind": "all", "of": [command]})] {
        let chat = daemon.chat(json!({ "reflectd": { "verifier": verifier } })).await;
        assert_eq!(chat.status, 400);
        let message = chat.json()["error"]["message"].to_string();
        assert!(message.contains("only the agent's own YAML"), "{message}");
        let prompts = json!([{"id": "1", "prompt": "ask", "verifier": verifier}]);
        let explored = daemon.post("/v1/explore", &json!({ "prompts": prompts })).await;
        assert_eq!(explored.status, 400, "{:?}", explored.json());
    }
    assert!(!folder.exists());
    assert_eq!(daemon.get("/v1/reflections").await.json()["data"], json!([]));
}
