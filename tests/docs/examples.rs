//! Runs the examples that documents mark as runnable; `main.rs` says how they are marked.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use config::prompt_file;
use tempfile::TempDir;

use super::{Block, ROOT, documents, parts, write};
use testkit::tree::assert_none;

const PROGRAM: &str = env!("CARGO_BIN_EXE_reflectd");
const MODEL: &str = "agents/nano/model.gguf";

/// Files that YAML examples name, all of them the nano model: `check` looks whether they are there.
const FILES: [&str; 4] = ["models/my-model-q4_k_m.gguf", "judges/other.gguf", "rm.gguf", "key.txt"];

/// Files of lines that YAML examples name: `check` reads them.
const LINES: [(&str, &str); 5] = [
    ("agents/mine/held-out.jsonl", r#"{"id": "1", "prompt": "What is 2 + 2?"}"#),
    ("agents/mine/practice.jsonl", r#"{"id": "1", "prompt": "What is 3 + 2?"}"#),
    ("agents/mine/examples.jsonl", r#"{"prompt": "What is 3 + 3?", "answer": "Six."}"#),
    ("agents/mine/general.jsonl", r#"{"id": "1", "prompt": "Name a colour."}"#),
    ("agents/mine/probes.jsonl", r#"{"id": "1", "prompt": "?", "answer": "!", "good": false}"#),
];

/// What an agent cannot be without.
const AGENT: [(&str, &str); 2] =
    [("model:", "model: models/my-model-q4_k_m.gguf\n"), ("aspects:", "aspects: [completeness]\n")];

/// Longer than any script takes on a busy machine.
const LIMIT_S: &str = "300";

/// `reflectd serve` as a reader starts it in another terminal.
const PRELUDE: &str = r#"
reflectd() {
  if [[ $1 != serve ]]; then
    command reflectd "$@"
    return
  fi
  command reflectd "$@" </dev/null &>daemon.log &
  until command reflectd status "${@:2}" &>/dev/null; do
    kill -0 $! || { cat daemon.log >&2; return 1; }
    sleep 0.1
  done
}
stop() {
  local jobs
  jobs=$(jobs -p)
  if [[ -n $jobs ]]; then kill $jobs; wait $jobs || true; fi
}
trap stop EXIT
"#;

fn link(from: &str, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    symlink(Path::new(ROOT).join(from), to).unwrap();
}

/// Runs a program with nothing of the caller's settings; what it printed when it failed.
fn run(command: &mut Command) -> Result<(), String> {
    for name in testkit::SETTINGS {
        command.env_remove(name);
    }
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    if status.success() {
        return Ok(());
    }
    let [stdout, stderr] = [stdout, stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
    Err(format!("{status}\n{stdout}{stderr}"))
}

/// A root folder for YAML examples.
fn root() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for file in FILES {
        link(MODEL, &root.path().join(file));
    }
    for (file, text) in LINES {
        write(&root.path().join(file), text);
    }
    link("prompts/reflect.yaml", &root.path().join("prompts/reflect.yaml"));
    for entry in fs::read_dir(Path::new(ROOT).join("prompts/aspects")).unwrap() {
        let name = PathBuf::from("prompts/aspects").join(entry.unwrap().file_name());
        link(name.to_str().unwrap(), &root.path().join(&name));
    }
    root
}

/// Whether `reflectd check` accepts a file.
fn check_yaml(path: &str, text: &str) -> Result<(), String> {
    let root = root();
    let mut agent = AGENT.map(|(_, line)| line).concat();
    let mut text = text.to_owned();
    if path.starts_with("agents/") {
        for (key, line) in AGENT {
            if !text.lines().any(|other| other.starts_with(key)) {
                text.insert_str(0, line);
            }
        }
    } else {
        if let Some(aspect) = path.strip_prefix("prompts/aspects/") {
            agent = agent.replace("completeness", aspect.trim_end_matches(".yaml"));
        }
        write(&root.path().join("agents/mine.yaml"), &agent);
    }
    write(&root.path().join(path), &text);
    run(Command::new(PROGRAM).args(["check", "--root"]).arg(root.path()))
}

/// Whether a file of JSON lines is read.
fn check_lines(what: &str, text: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lines.jsonl");
    write(&path, text);
    let read = match what {
        "prompts" => prompt_file::read(&path).map(|lines| lines.len()),
        "examples" => prompt_file::read_examples(&path).map(|lines| lines.len()),
        "probes" => prompt_file::read_probes(&path).map(|lines| lines.len()),
        _ => return Err("prompts, examples or probes is wanted".to_owned()),
    };
    match read {
        Ok(0) => Err("has no line".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{error}: {:?}", std::error::Error::source(&error))),
    }
}

/// Runs the lines of a document as a reader would.
fn run_script(script: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    link(MODEL, &folder.path().join("MODEL.gguf"));
    let programs = Path::new(PROGRAM).parent().unwrap().display();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap_or_default());
    let script = format!("{PRELUDE}\nset -x\n{script}");
    run(Command::new("timeout")
        .args(["--kill-after=10", LIMIT_S, "bash", "-euo", "pipefail", "-c", &script])
        .current_dir(folder.path())
        .env("PATH", path)
        // Where `init` looks for models.
        .env("HOME", folder.path())
        // Other tests run beside, and ggml's threads spin while they wait for each other.
        .env("OMP_WAIT_POLICY", "passive"))
}

/// What a block is, by its info string; `None`: it is only shown.
#[derive(Debug, Eq, PartialEq)]
enum Example<'a> {
    Script,
    Yaml(&'a str),
    Lines(&'a str),
}

fn example<'a>(block: &Block<'a>) -> Option<Example<'a>> {
    match block.info.split(' ').collect::<Vec<_>>().as_slice() {
        ["sh", "run"] => Some(Example::Script),
        ["yaml", "check", path] => Some(Example::Yaml(path)),
        ["jsonl", "check", what] => Some(Example::Lines(what)),
        _ => None,
    }
}

#[test]
fn yaml_and_json_examples_are_accepted() {
    let mut n_checked = [0, 0];
    let mut findings = Vec::new();
    for document in documents() {
        for block in parts(&document.text).1 {
            let (kind, result) = match example(&block) {
                Some(Example::Yaml(path)) => (0, check_yaml(path, &block.code)),
                Some(Example::Lines(what)) => (1, check_lines(what, &block.code)),
                Some(Example::Script) | None => continue,
            };
            n_checked[kind] += 1;
            if let Err(fault) = result {
                findings.push(format!("{}:{}: {fault}", document.path.display(), block.line));
            }
        }
    }
    assert_none(&findings);
    assert!(n_checked.iter().all(|n| 0 < *n), "no example is marked: {n_checked:?}");
}

#[test]
fn commands_that_are_marked_succeed() {
    let mut n_scripts = 0;
    let mut findings = Vec::new();
    for document in documents() {
        let blocks = parts(&document.text).1;
        let scripts = blocks.iter().filter(|block| example(block) == Some(Example::Script));
        let script: String = scripts.map(|block| block.code.as_str()).collect();
        if script.is_empty() {
            continue;
        }
        n_scripts += 1;
        if let Err(fault) = run_script(&script) {
            findings.push(format!("{}: {fault}", document.path.display()));
        }
    }
    assert_none(&findings);
    assert!(0 < n_scripts, "no command line is marked");
}

#[test]
fn wrong_examples_are_found() {
    let fault = check_yaml("agents/mine.yaml", "smapling: {}\n").unwrap_err();
    assert!(fault.contains("smapling"), "{fault}");
    check_yaml("reflectd.yaml", "learn: { min_new_pairs: none }\n").unwrap_err();
    check_yaml("prompts/aspects/new.yaml", "description: Is it new?\n").unwrap_err();
    check_lines("prompts", "{\"id\": \"1\"}\n").unwrap_err();
    let fault = run_script("reflectd check --root nowhere\ntouch here\n").unwrap_err();
    assert!(fault.contains("nowhere") && !fault.contains("touch"), "{fault}");
}

/// What a newcomer types first is run here, and cannot fall out of it unnoticed.
#[test]
fn the_examples_of_the_readme_are_marked() {
    let readme = documents().into_iter().find(|it| it.path == Path::new("README.md")).unwrap();
    let unmarked: Vec<String> = parts(&readme.text)
        .1
        .iter()
        .filter(|block| ["sh", "yaml"].contains(&block.info.split(' ').next().unwrap_or_default()))
        .filter(|block| example(block).is_none())
        .map(|block| block.code.clone())
        .collect();
    // They fetch, build and install.
    let allowed = unmarked.iter().all(|code| code.contains("make ") || code.contains("git clone"));
    assert!(allowed, "{unmarked:?}");
    let marked: Vec<_> = parts(&readme.text).1.iter().filter_map(example).collect();
    assert!(marked.contains(&Example::Script), "no command line of README is run");
    assert!(marked.iter().any(|it| matches!(it, Example::Yaml(_))), "no YAML of README is checked");
}
