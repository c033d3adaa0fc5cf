//! The key `verifier` of an agent: what a prompt's verifier may be, and `command`, which the owner's
//! YAML alone may name. Used by `check`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::raw::Section;
use prompt::{Command, Fault, Verifier};

/// A `command` as YAML has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandKeys {
    #[serde(rename = "kind")]
    _kind: String,
    command: Vec<String>,
    #[serde(default = "whole")]
    pass: f64,
    #[serde(default = "half_a_minute")]
    timeout_s: f64,
}

/// `all` or `any` as YAML has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartsKeys {
    #[serde(rename = "kind")]
    _kind: String,
    of: Vec<Value>,
}

fn whole() -> f64 {
    1.0
}

fn half_a_minute() -> f64 {
    30.0
}

/// `None`: there is none, or it cannot be read, which is noted.
pub(super) fn verifier(root: &Path, keys: &mut Section<'_>) -> Option<Verifier> {
    let value = keys.untyped::<Verifier>("verifier")?;
    let mut problems = Vec::new();
    let verifier = read(root, value, "", &mut problems);
    // The parts have been looked at one by one, because one that cannot be read hides the whole.
    for Fault { place, message } in verifier.iter().flat_map(Verifier::faults) {
        if !problems.contains(&(place.clone(), message.clone())) {
            problems.push((place, message));
        }
    }
    for (place, message) in problems {
        keys.problem(&format!("verifier{place}"), message);
    }
    verifier
}

/// All parts are read, so that all problems are found.
fn read(
    root: &Path,
    value: Value,
    place: &str,
    problems: &mut Vec<(String, String)>,
) -> Option<Verifier> {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut wrong = |error: serde_json::Error| problems.push((place.to_owned(), error.to_string()));
    let verifier = match kind.as_str() {
        "command" => {
            let keys: CommandKeys = serde_json::from_value(value).map_err(&mut wrong).ok()?;
            let CommandKeys { _kind: _, mut command, pass, timeout_s } = keys;
            if let Some(program) = command.first_mut().filter(|program| !program.is_empty()) {
                match find(root, program) {
                    Ok(found) => *program = found,
                    Err(fault) => problems.push((place.to_owned(), fault)),
                }
            }
            Verifier::Command(Command { command, pass, timeout_s, folder: root.into() })
        }
        "all" | "any" => {
            let keys: PartsKeys = serde_json::from_value(value).map_err(&mut wrong).ok()?;
            let parts = keys.of.into_iter().enumerate();
            let parts: Vec<_> = parts
                .map(|(index, part)| read(root, part, &format!("{place}.of[{index}]"), problems))
                .collect();
            let of = parts.into_iter().collect::<Option<Vec<_>>>()?;
            return Some(if kind == "all" { Verifier::All { of } } else { Verifier::Any { of } });
        }
        _ => serde_json::from_value(value).map_err(wrong).ok()?,
    };
    let messages = verifier.faults().into_iter().map(|fault| fault.message);
    let messages: Vec<String> = messages.chain(pattern_fault(&verifier)).collect();
    problems.extend(messages.into_iter().map(|message| (place.to_owned(), message)));
    Some(verifier)
}

/// The program's whole path: below the folder of the configuration where it has a slash, else in PATH.
fn find(root: &Path, program: &str) -> Result<String, String> {
    let is_program = |path: &PathBuf| {
        path.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        let path = root.join(program);
        let shown = path.display();
        let missing = format!(
            "names the program {shown}, which is no file that may be run; write it, or `chmod +x` it"
        );
        return if is_program(&path) { Ok(shown.to_string()) } else { Err(missing) };
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|it| it.join(program)).find(is_program);
    found.map(|path| path.to_string_lossy().into_owned()).ok_or_else(|| {
        format!("names the program {program}, which is not in PATH; give its path, or install it")
    })
}

/// A pattern or schema that does not compile.
fn pattern_fault(verifier: &Verifier) -> Option<String> {
    match verifier {
        Verifier::Regex { pattern, .. } => regex::Regex::new(pattern).err().map(|error| {
            // The message draws the pattern over several lines; the last line has the reason.
            error.to_string().lines().last().unwrap_or_default().to_owned()
        }),
        Verifier::JsonSchema { schema } => {
            jsonschema::validator_for(schema).err().map(|it| it.to_string())
        }
        _ => None,
    }
}
