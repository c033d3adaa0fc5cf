//! Other programs against the real daemon: our own command line, and OpenAI's client.

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use tokio::process::Command;

use crate::daemon::Daemon;
use crate::scratch::Scratch;
use testkit::skipped;

const QUESTION: &str = "Tom has 3 apples and buys 4 more. How many has he now?";

async fn reflectd(root: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reflectd"));
    command.args(arguments).arg("--root").arg(root);
    for name in testkit::SETTINGS {
        command.env_remove(name);
    }
    command.output().await.unwrap()
}

/// What it prints when it ends well.
async fn printed(root: &Path, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = reflectd(root, arguments).await;
    let stderr = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(0), "reflectd {arguments:?}: {stderr}");
    String::from_utf8(stdout).unwrap()
}

async fn json(root: &Path, arguments: &[&str]) -> Value {
    let text = printed(root, arguments).await;
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
}

#[tokio::test]
async fn the_command_line_talks_to_the_daemon() {
    let daemon = Daemon::start(Scratch::new()).await;
    let root = daemon.scratch().root().to_owned();
    let root = root.as_path();

    let greedy = ["ask", QUESTION, "--mode", "off", "--temperature", "0"];
    let answer = printed(root, &greedy).await;
    assert!(!answer.trim().is_empty(), "the model says something");
    let whole = json(root, &[&greedy[..], &["--json"]].concat()).await;
    assert_eq!(whole["choices"][0]["message"]["content"].as_str().unwrap().trim(), answer.trim());

    let status = json(root, &["status", "--json"]).await;
    assert_eq!(status["agents"], serde_json::json!(["nano"]), "{status}");
    json(root, &["runs", "--json"]).await;
    json(root, &["adapters", "list", "--json"]).await;
    printed(root, &["check"]).await;

    let scratch = daemon.stop().await;
    let Output { status, stdout, stderr } = reflectd(scratch.root(), &greedy).await;
    assert_eq!((status.code(), stdout.as_slice()), (Some(69), &b""[..]));
    let words = String::from_utf8_lossy(&stderr);
    assert!(words.contains("reflectd.sock"), "it says where nobody answers: {words}");
}

#[tokio::test]
async fn the_openai_client_works_unchanged() {
    /// What the script ends with when the package is not there.
    const SKIPPED: i32 = 77;
    let daemon = Daemon::start(Scratch::new()).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai_client.py");
    let socket = daemon.scratch().socket();
    let python = Command::new("python3").arg(script).arg(&socket).arg("nano").output().await;
    match python {
        Ok(output) if output.status.code() != Some(SKIPPED) => {
            let words = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{words}");
            let checks = String::from_utf8(output.stdout).unwrap();
            assert_eq!(checks.lines().count(), 5, "{checks}");
        }
        Ok(_) => {
            skipped("python3 has no `openai` package; curl is asked instead");
            curl(&socket).await;
        }
        Err(error) => {
            skipped(&format!("python3: {error}; curl is asked instead"));
            curl(&socket).await;
        }
    }
    daemon.stop().await;
}

/// A client that is not ours, and on nearly every machine.
async fn curl(socket: &Path) {
    let body = serde_json::json!({
        "model": "nano",
        "messages": [{ "role": "user", "content": QUESTION }],
        "n": 2,
        "max_tokens": 16,
    });
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--unix-socket"])
        .arg(socket)
        .args(["--json", &body.to_string(), "http://reflectd/v1/chat/completions"])
        .output()
        .await;
    let output = match output {
        Ok(output) => output,
        Err(error) => return skipped(&format!("curl: {error}")),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(reply["object"], "chat.completion", "{reply}");
    assert_eq!(reply["choices"].as_array().unwrap().len(), 2, "{reply}");
}
