//! `reflectd check` on files and programs that are wrong: all of it at once, and nothing is kept of it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::scratch::Scratch;

/// An agent of the nano model whose answers a program checks.
fn write_agent(scratch: &Scratch, name: &str, command: &str, more: &str) {
    let text = format!(
        "model: agents/nano/model.gguf\nprompts: agents/nano/prompts.yaml\naspects: [readability]\n\
         verifier: {{ kind: command, command: {command}, timeout_s: 1 }}\n{more}"
    );
    scratch.write(&format!("agents/{name}.yaml"), &text);
}

/// Its exit code and what it prints.
pub(crate) async fn check(root: &Path) -> (Option<i32>, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reflectd"));
    command.args(["check", "--json", "--root"]).arg(root);
    let output = command.output().await.unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

/// Its exit code, problems and warnings.
async fn found(root: &Path) -> (Option<i32>, Vec<String>, Vec<String>) {
    let (code, said) = check(root).await;
    let list = |key: &str| said[key].as_array().unwrap().iter().map(Value::to_string).collect();
    (code, list("problems"), list("warnings"))
}

#[tokio::test]
async fn whatever_is_wrong_with_files_and_programs_is_said_at_once() {
    let scratch = Scratch::new();
    write_agent(&scratch, "hangs", "[sleep, \"60\"]", "");
    write_agent(&scratch, "garbage", "[yes]", "");
    write_agent(&scratch, "missing", "[./no-such-program]", "explore: { prompts: long.jsonl }\n");
    let mut lines = String::new();
    for id in 0..10_001 {
        writeln!(lines, "{{\"id\":\"{id}\",\"prompt\":\"What is {id} + 1?\"}}").unwrap();
    }
    scratch.write("long.jsonl", &lines);
    write_agent(&scratch, "lines", "[\"true\"]", "examples: examples.jsonl\n");
    let example = "{\"prompt\":\"Hello\",\"answer\":\"Hi\",\"colour\":\"blue\"}\n{\"prompt\":\"Hello\"}\n\
         {\"prompt\":\"Bye\",\"answer\":\"a\"}\n{\"prompt\":\"Bye\",\"answer\":\"b\"}\n";
    scratch.write("examples.jsonl", example);

    let before = fs::read_dir(scratch.root().join("state")).map(Iterator::count).ok();
    let (code, problems, warnings) = found(scratch.root()).await;
    assert_eq!(code, Some(78), "{problems:?}");
    let told = |agent: &str, what: &str| {
        let is_it = |it: &&String| it.contains(agent) && it.contains(what);
        assert!(problems.iter().any(|it| is_it(&it)), "{agent}: {what}: {problems:#?}");
    };
    told("agents/hangs.yaml", "1 s");
    told("agents/garbage.yaml", "verifier");
    told("agents/missing.yaml", "no-such-program");
    told("examples.jsonl", "line 1");
    told("examples.jsonl", "line 2");
    told("examples.jsonl", "is that of line 3");
    let is_long = |it: &&String| it.contains("long.jsonl") && it.contains("10001 prompts");
    assert!(warnings.iter().any(|it| is_long(&it)), "{warnings:?}");
    let after = fs::read_dir(scratch.root().join("state")).map(Iterator::count).ok();
    assert_eq!(before, after, "a check stores nothing");
}

#[tokio::test]
async fn what_is_not_looked_at_because_of_a_key_is_said() {
    let scratch = Scratch::new();
    write_agent(&scratch, "missing", "[./no-such-program]", "colour: blue\n");
    let (code, problems, warnings) = found(scratch.root()).await;
    assert_eq!(code, Some(78));
    assert!(problems.iter().any(|it| it.contains("colour")), "{problems:?}");
    assert!(warnings[0].contains("not all files and programs"), "{warnings:?}");
}

#[tokio::test]
async fn what_a_practice_file_contradicts_is_told_by_its_line() {
    let scratch = Scratch::new();
    let text = "model: agents/nano/model.gguf\nprompts: agents/nano/prompts.yaml\n\
        aspects: [readability]\nsystem: Be brief.\nexplore: { prompts: practice.jsonl }\n\
        examples: examples.jsonl\nheld_out: auto\n";
    scratch.write("agents/mine.yaml", text);
    let exact = |answer: &str| json!({ "kind": "exact", "expected": answer });
    let system = json!({ "role": "system", "content": "Be brief." });
    let turns = json!([system, { "role": "user", "content": "2+2?" }]);
    let lines = [
        json!({ "prompt": "2+2?", "verifier": exact("4") }),
        json!({ "id": "again", "messages": turns, "verifier": exact("5") }),
        json!({ "id": "more", "prompt": "2+2?", "verifier": exact("4") }),
    ];
    scratch.write("practice.jsonl", &lines.map(|line| line.to_string() + "\n").concat());
    let example = json!({ "prompt": "2+2?", "answer": "four" });
    scratch.write("examples.jsonl", &format!("\n{example}\n"));
    let (code, problems, warnings) = found(scratch.root()).await;
    assert_eq!((code, problems.len()), (Some(0), 0), "{problems:?}");
    let told: Vec<_> = warnings.iter().filter(|it| it.contains(".jsonl")).collect();
    assert_eq!(told.len(), 2, "{warnings:#?}");
    assert!(told[0].contains("line 2") && told[0].contains("the prompt of line 1"), "{told:?}");
    let refused = "what checks its prompt in";
    assert!(told[1].contains("examples.jsonl") && told[1].contains("line 2"), "{told:?}");
    assert!(told[1].contains(refused), "{told:?}");
}
