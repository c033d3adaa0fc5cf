//! The files of `init`: agent, prompts and settings, written whole or not at all, and never over a
//! file that is there. The prompts are this repository's own, built in. Used by `init`.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::plan::Plan;
use super::questions::Length;

/// The settings of the daemon.
const SETTINGS: &str = "reflectd.yaml";

macro_rules! prompts {
    ($($path:literal),* $(,)?) => {
        [$(($path, include_str!(concat!("../../../", $path)))),*]
    };
}

/// How a model is asked to judge, to criticise and to revise, and the aspects that agents name.
const PROMPTS: [(&str, &str); 9] = prompts![
    "prompts/reflect.yaml",
    "prompts/aspects/completeness.yaml",
    "prompts/aspects/comprehension.yaml",
    "prompts/aspects/factuality.yaml",
    "prompts/aspects/harmlessness.yaml",
    "prompts/aspects/insightfulness.yaml",
    "prompts/aspects/logical_correctness.yaml",
    "prompts/aspects/metacognition.yaml",
    "prompts/aspects/readability.yaml",
];

/// A file's place below the root, and its content.
pub(super) type Content = (PathBuf, String);

/// All files for a plan.
pub(super) fn files(plan: &Plan) -> Vec<Content> {
    let prompts = PROMPTS.into_iter().map(|(path, text)| (path.into(), text.to_owned()));
    let agent = Path::new("agents").join(format!("{}.yaml", plan.name));
    prompts.chain([(agent, agent_yaml(plan)), (SETTINGS.into(), settings_yaml(plan))]).collect()
}

/// Refuses a folder that is configured already, before anything costly is done for it.
pub(super) fn refuse_configured(root: &Path) -> anyhow::Result<()> {
    if is_there(root) && !root.is_dir() {
        bail!("{} is no folder; name another one with --root", root.display());
    }
    let agents = root.join("agents");
    let entries = fs::read_dir(&agents).into_iter().flatten().flatten();
    let yaml = entries.map(|entry| entry.path());
    let mut taken: Vec<PathBuf> =
        yaml.filter(|path| path.extension().is_some_and(|end| end == "yaml")).collect();
    taken.sort();
    taken.extend(Some(root.join(SETTINGS)).filter(|path| is_there(path)));
    refuse(&taken)
}

fn refuse(taken: &[PathBuf]) -> anyhow::Result<()> {
    if taken.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = taken.iter().map(|path| path.display().to_string()).collect();
    bail!(
        "nothing is overwritten, and this is there already: {}; name a new folder with --root, or \
         move these files away",
        names.join(", ")
    )
}

/// Also of a link that leads nowhere.
fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// What was written, to be taken back when it turns out to be wrong.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Files and folders that were not there before, in the order of their making.
    placed: Vec<PathBuf>,
}

impl Written {
    /// Removes it all.
    pub(super) fn undo(self) -> io::Result<()> {
        for path in self.placed.iter().rev() {
            let is_folder = fs::symlink_metadata(path)?.is_dir();
            if is_folder { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        Ok(())
    }
}

/// Writes all files below the root, which is made when it is missing. A file that is there with the
/// same content stays; any other one is an error, and then nothing is written.
pub(super) fn write(root: &Path, files: &[Content]) -> anyhow::Result<Written> {
    let differs = |(path, text): &&Content| {
        let path = root.join(path);
        is_there(&path) && !fs::read(&path).is_ok_and(|old| old == text.as_bytes())
    };
    let taken: Vec<PathBuf> =
        files.iter().filter(differs).map(|(path, _)| root.join(path)).collect();
    refuse(&taken)?;

    let mut written = Written::default();
    let result = place_all(root, files, &mut written);
    if let Err(error) = result {
        written.undo().context("take back what was written")?;
        return Err(error.context(format!("write below {}", root.display())));
    }
    Ok(written)
}

/// Everything is first written into a folder of its own and then gets its name: in one step where
/// the root is new, else in a step for each of `prompts`, `agents` and the settings.
fn place_all(root: &Path, files: &[Content], written: &mut Written) -> anyhow::Result<()> {
    let parent = if root.is_dir() { root } else { make_parent(root, written)? };
    let new = parent.join(format!(".init.{}.tmp", std::process::id()));
    fs::create_dir(&new)?;
    let result = (|| {
        for (path, text) in files {
            let path = new.join(path);
            fs::create_dir_all(path.parent().unwrap_or(&new))?;
            files::write_atomic(&path, |file| file.write_all(text.as_bytes()))?;
        }
        place(&new, root, &mut written.placed)
    })();
    // A root that is new has taken the folder away.
    if new.exists() {
        fs::remove_dir_all(&new)?;
    }
    Ok(result?)
}

/// The folder that a new root comes into.
fn make_parent<'a>(root: &'a Path, written: &mut Written) -> io::Result<&'a Path> {
    let parent = root.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let missing: Vec<&Path> = parent.ancestors().take_while(|it| !is_there(it)).collect();
    for folder in missing.into_iter().rev().filter(|it| !it.as_os_str().is_empty()) {
        fs::create_dir(folder)?;
        written.placed.push(folder.to_owned());
    }
    Ok(parent)
}

/// Moves a file or a folder to where nothing is; into a folder that is there, what it holds.
fn place(from: &Path, to: &Path, placed: &mut Vec<PathBuf>) -> io::Result<()> {
    match files::rename_new(from, to) {
        Ok(()) => {
            placed.push(to.to_owned());
            Ok(())
        }
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Err(_) if from.is_dir() && to.is_dir() => {
            for entry in fs::read_dir(from)? {
                let entry = entry?;
                place(&entry.path(), &to.join(entry.file_name()), placed)?;
            }
            Ok(())
        }
        Err(_) if from.is_file() && fs::read(from)? == fs::read(to)? => Ok(()),
        Err(_) => {
            let reason = format!("{} has appeared meanwhile; run it again", to.display());
            Err(io::Error::new(io::ErrorKind::AlreadyExists, reason))
        }
    }
}

/// As a YAML text between quotation marks: every JSON text is one.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn agent_yaml(plan: &Plan) -> String {
    let Plan { name, description, model, max_tokens, answers, .. } = plan;
    let (description, model) = (quoted(description), quoted(model));
    let system = answers.system.as_ref().map_or_else(
        || "#system: You are a careful assistant who says what is uncertain.".to_owned(),
        |system| format!("system: {}", quoted(system)),
    );
    let examples = answers.examples.as_ref().map_or_else(
        || format!("#examples: agents/{name}/examples.jsonl"),
        |path| format!("examples: {}", quoted(&path.to_string_lossy())),
    );
    let verifier = answers.length.map_or_else(
        || r#"#verifier: { kind: regex, pattern: "^[^\n]+$" }"#.to_owned(),
        |Length { most, unit }| format!("verifier: {{ kind: length, {unit}: {{ max: {most} }} }}"),
    );
    format!(
        r#"# The agent {name}: how requests are answered that name it, or "default", as their model.
# Made by `reflectd init`. Change what you like: changes count at once, but for another model, and
# `reflectd check` names every mistake. Paths are relative to the folder of reflectd.yaml.

# What clients are shown.
description: {description}

# The GGUF file. It stays where it is, and nothing is ever written to it.
model: {model}

# What the model is told before a conversation that begins without instructions.
{system}

# How the words of an answer are chosen, unless a request says otherwise.
sampling:
  # 0 takes the likeliest word each time; the higher, the more varied.
  temperature: 0.8
  # Leaves out the unlikeliest words, which together have 5 % of the probability.
  top_p: 0.95
  # Where an answer is cut off, in tokens (100 English words are about 130).
  max_tokens: {max_tokens}

# What the model judges its answers by: files in prompts/aspects/, where you can add your own.
aspects:
  - comprehension
  - factuality
  - readability

# What is done with an answer.
reflection:
  # background: it is served at once, and judged and revised while nobody asks anything.
  # inline: it is served after that. off: it is only served.
  mode: background
  # Answers that are tried for a question, and revisions of one that falls short.
  drafts: 4
  refinements: 4
  # As sampling.temperature, for revisions.
  refine_temperature: 0.8

# Answers become training data; false: they never do.
learn: true

# Prompts with the answers that you want, one a line, for a task that the model cannot do yet; ten or
# more give it a start:
#   {{"prompt": "Lamp on", "answer": "{{\"device\": \"lamp\", \"on\": true}}"}}
{examples}

# A check that every answer has to pass, for tasks that have one: numeric, exact, regex, json,
# json_schema, contains, not_contains, length, all, any, or a program of yours (command). It counts
# beside the model's own judgement, which is poor in small models, and it is what tells the gate which
# answers are right where a prompt has no verifier of its own.
{verifier}

# Questions that a newly trained model has to answer better before it is served; it never trains on
# them. There is no training with fewer than 20.
# auto: one in five of the prompts that have a verifier or a reference, or that you have rated or
# edited, is set aside. You can also name a file with one question a line:
#   {{"prompt": "What is 6 times 7?", "verifier": {{"kind": "numeric", "expected": 42}}}}
#   {{"prompt": "What is the capital of France?", "reference": "Paris"}}
held_out: auto
"#
    )
}

fn settings_yaml(plan: &Plan) -> String {
    let Plan { name, context_tokens, model_context, answers, .. } = plan;
    let schedule = answers.hour.map_or_else(
        || r#"#schedule: { cron: "0 3 * * *", time_zone: UTC }"#.to_owned(),
        |hour| format!(r#"schedule: {{ cron: "0 {hour} * * *", time_zone: UTC }}"#),
    );
    format!(
        r#"# Settings of the daemon, made by `reflectd init`. What is not here has its default.
# Changes count at once, but for those below `engine`.

# The agent that answers when a request names the model "default".
default_agent: "{name}"

engine:
  # Tokens of all conversations that run at the same time, together; `reflectd doctor` says what
  # memory they take. The model was trained for conversations of {model_context} at most.
  context_tokens: {context_tokens}

learn:
  # When to train: minute, hour, day, month, weekday. A night that finds too little to learn from says
  # what is missing (`reflectd status`).
  {schedule}
"#
    )
}

#[cfg(test)]
mod tests;
