//! Bad input and a full disk through the trainer's real process: it ends with the protocol's exit
//! status and a last line that says why, and leaves nothing of its own behind. What hundreds of
//! damaged files do to a run is tested beside the trainer, in one process.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use files::gguf::model_sha256;
use files::write_atomic;
use protocol::exit::Exit;
use protocol::{Example, Job, TrainerEvent};
use serde_json::{Value, json};

use crate::chats::{chat, questions};
use crate::daemon::Daemon;
use crate::explored::explored;
use crate::parity::{self, job, start_with};
use testkit::tiny;

fn program() -> PathBuf {
    testkit::trainer(env!("CARGO_BIN_EXE_reflectd"))
}
/// A shell that lets its program write files of a few KiB at most: to who writes more, the disk is
/// full. Without the trap a signal would come before the error.
const FULL_DISK: &str = "trap '' XFSZ; ulimit -f 4; exec \"$0\"";

fn examples() -> Vec<Example> {
    let example = |i: i32| Example {
        prompt_id: i.to_string(),
        prompt: vec![257, i, 7],
        chosen: vec![20, 21, 258],
        rejected: Some(vec![30, 258]),
    };
    (0..4).map(example).collect()
}

fn sound(folder: &Path) -> Job {
    let model = folder.join("model.gguf");
    tiny::model().write(&model);
    job(&model, &examples(), &folder.join("out"))
}

/// How the process ends that is given these words, and the message of its last line.
fn speak(command: &mut Command, words: &str) -> (ExitStatus, String) {
    let (child, stdin) = start_with(command.stderr(Stdio::null()), words);
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    let said = String::from_utf8(output.stdout).unwrap();
    let last = said.lines().last().unwrap_or_default();
    match serde_json::from_str(last) {
        Ok(TrainerEvent::Failed { message }) => (output.status, message),
        other => panic!("{words:.300}: {}, {other:?}: {last}", output.status),
    }
}

/// Nothing but the data set is in the run's folder.
fn assert_clean(out: &Path) {
    let entries = std::fs::read_dir(out).unwrap();
    let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["data.jsonl"]);
}

#[test]
fn a_job_that_cannot_be_done_ends_with_65_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let sound = sound(folder);
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        write_atomic(&path, |file| file.write_all(bytes)).unwrap();
        path
    };
    let model = std::fs::read(&sound.base).unwrap();
    let based_on = |name: &str, bytes: &[u8]| {
        let base = file(name, bytes);
        Job { base_sha256: model_sha256(&base).unwrap(), base, ..sound.clone() }
    };
    let with_data =
        |name: &str, text: &str| Job { data: file(name, text.as_bytes()), ..sound.clone() };
    let mut unknown = json!(sound);
    unknown["colour"] = json!("red");
    let mut other_base = tiny::adapter();
    other_base
        .metadata
        .push(("reflectd.base_sha256".into(), files::gguf::Value::String("0".into())));
    other_base.write(&folder.join("other.gguf"));
    let text = |job: &Job| serde_json::to_string(job).unwrap();
    let cases = [
        ("no job".to_owned(), "not a job"),
        (String::new(), "not a job"),
        (unknown.to_string(), "colour"),
        (text(&Job { version: 99, ..sound.clone() }), "version 99"),
        (text(&Job { base: folder.join("none.gguf"), ..sound.clone() }), "none.gguf"),
        (text(&Job { base_sha256: "0".into(), ..sound.clone() }), "not the file that is served"),
        (text(&based_on("cut.gguf", &model[..model.len() / 2])), "end of the file"),
        (text(&based_on("header.gguf", &model[..200])), "not a sound GGUF"),
        (text(&Job { data: folder.join("none.jsonl"), ..sound.clone() }), "none.jsonl"),
        (text(&Job { out: folder.join("gone"), ..sound.clone() }), "gone"),
        (text(&with_data("empty.jsonl", "")), "no example"),
        (text(&with_data("odd.jsonl", "{}")), "line 1"),
        (text(&Job { max_tokens: 3, ..sound.clone() }), "4 are longer"),
        (
            text(&Job { start: Some(folder.join("other.gguf")), ..sound.clone() }),
            "trained for another base",
        ),
        (
            text(&Job { start: Some(file("half.gguf", b"GGUF\x03")), ..sound.clone() }),
            "half.gguf is not a sound GGUF",
        ),
    ];
    for (words, expected) in cases {
        let (status, message) = speak(&mut Command::new(program()), &words);
        assert_eq!(status.code(), Some(Exit::BadData as i32), "{expected}: {message}");
        assert!(message.contains(expected), "{expected}: {message}");
        assert_clean(&sound.out);
    }
}

#[test]
fn a_run_that_cannot_write_may_be_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let sound = sound(folder.path());
    let words = serde_json::to_string(&sound).unwrap();
    let mut full = Command::new("sh");
    let (status, message) = speak(full.args(["-c", FULL_DISK]).arg(program()), &words);
    assert_eq!(status.code(), Some(Exit::TryAgain as i32), "{message}");
    assert!(message.contains("write ") && message.contains("too large"), "{message}");
    assert_clean(&sound.out);

    // With room it goes through.
    parity::train(&sound);
}

#[tokio::test]
async fn a_full_disk_fails_the_run_and_serving_goes_on() {
    let scratch = explored().await;
    let settings = scratch.root().join("reflectd.yaml");
    let text = std::fs::read_to_string(&settings).unwrap();
    let command = json!(["sh", "-c", FULL_DISK, program()]);
    let text = text.replace("trainer: {", &format!("trainer: {{ command: {command},"));
    write_atomic(&settings, |file| file.write_all(text.as_bytes())).unwrap();

    let daemon = Daemon::start(scratch).await;
    let question = &questions(1, 2)[0];
    let socket = daemon.scratch().socket();
    let ended = daemon.post("/v1/runs", &json!({})).await;
    // With room it may go on.
    assert_eq!(ended["outcome"], "interrupted", "{ended}");
    let reason = ended["reason"].as_str().unwrap();
    assert!(reason.contains("may be tried again") && reason.contains("too large"), "{reason}");
    let run = daemon.get(&format!("/v1/runs/{}", ended["run"])).await;
    let (state, generation) = (&run["state"], &run["generation"]);
    assert_eq!((state, generation), (&json!("interrupted"), &Value::Null), "{run}");
    let runs = daemon.scratch().state().join("runs");
    let folder = std::fs::read_dir(runs).unwrap().next().unwrap().unwrap().path();
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let is_left = name.starts_with('.') || ["adapter.gguf", "probe.json"].contains(&&*name);
        assert!(!is_left, "{name} is left");
    }
    assert_eq!(chat(&socket, question).await, 0);
    assert_eq!(daemon.get("/health").await["status"], "ok");
    daemon.stop().await;
}
