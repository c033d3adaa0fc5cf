//! The package `reflectd` alone, that is the program without the trainer beside it: it serves and
//! explores, and says what is missing where somebody wants to train. And where its socket lies when
//! neither folder is named.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::daemon::Daemon;
use crate::explored::exploration;
use crate::scratch::Scratch;

/// The program in a folder of its own.
fn alone(scratch: &Scratch) -> PathBuf {
    let program = scratch.root().join("bin/reflectd");
    fs::create_dir(program.parent().unwrap()).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_reflectd"), &program).unwrap();
    program
}

async fn printed(program: &Path, folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder);
    for name in testkit::SETTINGS {
        command.env_remove(name);
    }
    let output = command.output().await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn it_serves_and_explores_and_says_what_training_needs() {
    let scratch = Scratch::new();
    let program = alone(&scratch);
    let daemon = Daemon::start_program(&program, scratch).await;
    let root = daemon.scratch().root().to_owned();
    let run = |arguments: &'static [&str]| printed(&program, &root, arguments);

    let (code, answer) = run(&["ask", "What is 2 + 3?", "--mode", "off"]).await;
    assert_eq!(code, Some(0), "{answer}");
    let explored = daemon.post("/v1/explore", &exploration(2, 7)).await;
    assert_eq!(explored["outcome"], "explored", "{explored}");

    let missing = "bin/reflectd-trainer is not installed: the package reflectd-trainer adds it";
    let ended = daemon.post("/v1/runs", &json!({})).await;
    assert_eq!((&ended["outcome"], &ended["run"]), (&json!("failed"), &Value::Null));
    assert!(ended["reason"].as_str().unwrap().contains(missing), "{ended}");
    assert_eq!(daemon.get("/v1/runs").await["data"], json!([]), "no run is recorded");
    let (code, words) = run(&["train"]).await;
    assert!(code == Some(1) && words.contains(missing), "{code:?}: {words}");
    let (code, words) = run(&["status"]).await;
    assert!(code == Some(0) && words.contains(missing), "{code:?}: {words}");
    let (code, words) = run(&["doctor"]).await;
    assert!(code == Some(0) && words.contains(missing), "{code:?}: {words}");
    assert!(words.contains("Nothing stands in the way."), "of serving: {words}");
    daemon.stop().await;
}

#[tokio::test]
async fn it_lies_in_the_users_runtime_folder_when_no_folder_is_named() {
    let (scratch, runtime) = (Scratch::new(), tempfile::tempdir().unwrap());
    let reflectd = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reflectd"));
        command.args(arguments).kill_on_drop(true);
        for name in testkit::SETTINGS {
            command.env_remove(name);
        }
        command.env("XDG_RUNTIME_DIR", runtime.path());
        command
    };
    let log = fs::File::create(scratch.log()).unwrap();
    let mut daemon = reflectd(&["serve"]).current_dir(scratch.root()).stderr(log).spawn().unwrap();
    let socket = runtime.path().join("reflectd/reflectd.sock");
    // A client from anywhere finds it. It is asked until the daemon has loaded its model.
    let elsewhere = tempfile::tempdir().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    let status = loop {
        assert!(std::time::Instant::now() < deadline, "the client never finds the daemon");
        let output = reflectd(&["status", "--json"]).current_dir(&elsewhere).output();
        let output = output.await.unwrap();
        if output.status.success() {
            break serde_json::from_slice::<Value>(&output.stdout).unwrap();
        }
        assert_eq!(output.status.code(), Some(69), "{output:?}");
        assert!(daemon.try_wait().unwrap().is_none(), "the daemon has ended");
    };
    assert_eq!(status["agents"], json!(["nano"]));
    assert!(socket.exists() && !scratch.socket().exists());

    // Another daemon on another folder has its own socket; a second one on the default folder is
    // refused.
    let other = Daemon::start(Scratch::new()).await;
    assert!(other.scratch().socket().exists());
    let root = other.stop().await;
    let second = reflectd(&["serve"]).current_dir(root.root()).output().await.unwrap();
    let words = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(71), "{words}");
    assert!(words.contains("another daemon answers there"), "{words}");
}
