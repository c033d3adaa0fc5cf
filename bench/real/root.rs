//! The folder of one daemon: the agent as its owner would write it, its files, and two agents that only
//! answer what measures. Used by `unit`.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use files::write_atomic;
use serde::Deserialize;
use serde_json::{Value, json};
use tasks::Item;

use crate::arms::{Arm, Round};
use crate::setting::Setting;
use crate::task::Task;

/// Answers what measures with the owner's system text; learns nothing of it.
pub(crate) const MEASURE: &str = "measure";
/// The same without a system text.
pub(crate) const PLAIN: &str = "plain";

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    folder: PathBuf,
}

impl Root {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Writes everything but the state. `task` without the agent that learns: only what measures.
    pub(crate) fn write(
        &self,
        setting: &Setting,
        task: &Task,
        learns: Option<Arm>,
    ) -> anyhow::Result<()> {
        copy_folder(&testkit::repository().join("prompts"), &self.folder.join("prompts"))?;
        for (name, system) in [(MEASURE, Some(task.system.as_str())), (PLAIN, None)] {
            let text = answering(setting, system, task.max_tokens);
            self.put(&format!("agents/{name}.yaml"), &text)?;
        }
        let Some(arm) = learns else { return self.settings(setting, None) };
        self.put("agents/mine.yaml", &agent(setting, task, arm))?;
        let lines = |items: &[Item]| -> String {
            items.iter().map(|item| prompt_line(task, item).to_string() + "\n").collect()
        };
        self.put("agents/mine/held-out.jsonl", &lines(&task.gate))?;
        self.put("agents/mine/practice.jsonl", &lines(&task.practice))?;
        self.put("agents/mine/examples.jsonl", &tasks::example_lines(&task.examples))?;
        self.settings(setting, None)
    }

    /// Settings of the daemon for a round; an owner would have none of them.
    pub(crate) fn settings(&self, setting: &Setting, round: Option<Round>) -> anyhow::Result<()> {
        let threads = setting.threads;
        let mine = self.folder.join("agents/mine.yaml").exists();
        let agent = if mine { "mine" } else { MEASURE };
        let learn = match round {
            Some(Round::Practice(Some(objective))) => {
                format!("learn: {{ objective: {{ name: {objective} }} }}\n")
            }
            Some(Round::Examples | Round::Practice(None)) | None => String::new(),
        };
        let text = format!(
            "engine: {{ threads: {threads} }}\ntrainer: {{ threads: {threads} }}\n\
             default_agent: {agent}\n{learn}"
        );
        self.put("reflectd.yaml", &text)
    }

    /// What `reflectd check` finds wrong, one problem a line; empty: it takes the folder.
    pub(crate) fn problems(&self, program: &Path) -> anyhow::Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Problem {
            file: PathBuf,
            key: String,
            message: String,
        }
        #[derive(Deserialize)]
        struct Report {
            problems: Vec<Problem>,
        }
        let mut command = Command::new(program);
        for name in testkit::SETTINGS {
            command.env_remove(name);
        }
        let output = command.args(["check", "--json", "--root"]).arg(&self.folder).output();
        let output = output.with_context(|| format!("start {}", program.display()))?;
        let report: Report = serde_json::from_slice(&output.stdout).with_context(|| {
            let error = String::from_utf8_lossy(&output.stderr);
            format!("`reflectd check` does not answer in JSON: {error}")
        })?;
        let line = |problem: Problem| {
            format!("{}: {}: {}", problem.file.display(), problem.key, problem.message)
        };
        Ok(report.problems.into_iter().map(line).map(|text| self.relative(&text)).collect())
    }

    /// What the product says, without the folder of this machine.
    pub(crate) fn relative(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.folder.display()), "")
    }

    fn put(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        let folder = path.parent().context("a file lies in a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        write_atomic(&path, |file| file.write_all(text.as_bytes()))
            .with_context(|| format!("write {}", path.display()))
    }
}

/// The agent of the owner: JSON values are YAML.
pub(crate) fn agent(setting: &Setting, task: &Task, arm: Arm) -> String {
    let mut lines = vec![
        format!("model: {}", json!(setting.model)),
        format!("system: {}", json!(task.system)),
        format!("sampling: {{ max_tokens: {} }}", task.max_tokens),
        "held_out: agents/mine/held-out.jsonl".to_owned(),
        "judge: none".to_owned(),
        "aspects: []".to_owned(),
    ];
    if let Some(verifier) = &task.verifier {
        lines.push(format!("verifier: {verifier}"));
    }
    // Without an end before it is filled, a prompt gets its refinements whether they pay or not.
    let filled = if arm == Arm::AutoRefined { ", enough: 0" } else { "" };
    lines.push(format!("explore: {{ prompts: agents/mine/practice.jsonl{filled} }}"));
    if !task.examples.is_empty() {
        lines.push("examples: agents/mine/examples.jsonl".to_owned());
    }
    lines.join("\n") + "\n"
}

/// An agent that answers and neither reflects nor learns.
fn answering(setting: &Setting, system: Option<&str>, max_tokens: u32) -> String {
    let system = system.map_or_else(String::new, |text| format!("system: {}\n", json!(text)));
    // Forms that are no task of the agent want longer answers.
    let max_tokens = if system.is_empty() { 128 } else { max_tokens };
    format!(
        "model: {}\n{system}sampling: {{ temperature: 0.8, top_p: 0.95, max_tokens: {max_tokens} }}\n\
         aspects: [readability]\nreflection: {{ mode: off }}\nlearn: false\n",
        json!(setting.model)
    )
}

/// A line of practice or of the held-out set.
pub(crate) fn prompt_line(task: &Task, item: &Item) -> Value {
    item.prompt_line(item.truth.verifier().filter(|_| task.verifier.is_none()))
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    ensure!(from.is_dir(), "{} is missing", from.display());
    fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let from = entry.with_context(|| format!("read {}", from.display()))?.path();
        let to = to.join(from.file_name().context("an entry has a name")?);
        if from.is_dir() {
            copy_folder(&from, &to)?;
        } else {
            fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        }
    }
    Ok(())
}
