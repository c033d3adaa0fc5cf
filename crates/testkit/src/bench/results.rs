//! What the `results.json` of every benchmark has in common: each row says where and how it was
//! measured, and a list of goals says for machines what is reached. A run replaces its own rows and
//! keeps all others with their own provenance. Used by the benchmarks.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use files::write_atomic;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Where and how a row was measured; its fields stand in the row itself.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Provenance {
    /// Processor, cores, memory, system.
    #[serde(default)]
    pub machine: String,
    /// Of the code under test; `+` when the code differed from it.
    pub commit: String,
    /// What was typed; `None`: measured before commands were written down.
    #[serde(default)]
    pub command: Option<String>,
    /// `None`: the row is not about another program.
    #[serde(default)]
    pub peer: Option<Peer>,
}

/// Another program that we are compared with.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Peer {
    /// What it calls itself.
    pub version: String,
    /// What it was started with.
    pub flags: String,
}

/// What must be reached, and what was measured.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Goal {
    /// Of the row, and of the number in it where a row has several.
    pub name: String,
    pub goal: f64,
    /// `None`: not measured, because the run had nobody to compare with.
    pub value: Option<f64>,
    /// Less is better.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_most: bool,
    /// Where the goal is missed: what was profiled and tried. A person writes it into the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Provenance {
    /// Of a number that rests on several measurements: everything that differs, each once.
    pub fn of_all<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        let [mut machines, mut commits, mut commands] = [(); 3].map(|()| BTreeSet::new());
        let mut peer = None;
        for one in all {
            machines.extend((!one.machine.is_empty()).then_some(one.machine.as_str()));
            commits.insert(one.commit.as_str());
            commands.extend(one.command.as_deref());
            peer = peer.or(one.peer.as_ref());
        }
        let join = |words: BTreeSet<&str>, between| Vec::from_iter(words).join(between);
        Self {
            machine: join(machines, "; "),
            commit: join(commits, ", "),
            command: (!commands.is_empty()).then(|| join(commands, "; ")),
            peer: peer.cloned(),
        }
    }
}

impl Goal {
    /// More is better.
    pub fn at_least(name: impl Into<String>, goal: f64, value: Option<f64>) -> Self {
        Self { name: name.into(), goal, value, at_most: false, why: None }
    }

    /// Less is better.
    pub fn at_most(name: impl Into<String>, goal: f64, value: Option<f64>) -> Self {
        Self { at_most: true, ..Self::at_least(name, goal, value) }
    }

    /// `None`: not measured.
    pub fn is_reached(&self) -> Option<bool> {
        let value = self.value?;
        Some(if self.at_most { value <= self.goal } else { self.goal <= value })
    }
}

/// The new goals, each with the reason that an older list gives for missing it, as long as it is
/// missed.
pub fn with_reasons(mut goals: Vec<Goal>, older: &[Goal]) -> Vec<Goal> {
    for goal in goals.iter_mut().filter(|goal| goal.is_reached() != Some(true)) {
        let same = older.iter().find(|older| older.name == goal.name);
        goal.why = same.and_then(|older| older.why.clone());
    }
    goals
}

/// The command line of this benchmark: the variables that it reads, `cargo bench`, and its own
/// arguments. Of files only the name is told, because folders are those of one machine.
pub fn command(bench: &str, variables: &[&str]) -> String {
    let set = variables.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
    command_of(bench, set, std::env::args_os().skip(1))
}

pub fn command_of<'a>(
    bench: &str,
    variables: impl IntoIterator<Item = (&'a str, OsString)>,
    arguments: impl IntoIterator<Item = OsString>,
) -> String {
    let word = |word: OsString| {
        let path = Path::new(&word);
        let word = path.file_name().filter(|_| path.is_absolute()).unwrap_or(&word);
        let word = word.to_string_lossy().into_owned();
        if word.contains(' ') { format!("'{word}'") } else { word }
    };
    let mut words: Vec<String> =
        variables.into_iter().map(|(name, value)| format!("{name}={}", word(value))).collect();
    words.push(format!("cargo bench --bench {bench}"));
    // Cargo adds this one.
    let mut arguments = arguments.into_iter().filter(|it| it != "--bench").map(word).peekable();
    if arguments.peek().is_some() {
        words.push("--".to_owned());
    }
    words.extend(arguments);
    words.join(" ")
}

/// What earlier runs have left; nothing when there is no file.
pub fn read<T: Default + DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    if !path.exists() {
        return Ok(T::default());
    }
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}

/// Writes the whole file anew.
pub fn write(path: &Path, results: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(results).context("results are plain data")?;
    write_atomic(path, |file| writeln!(file, "{text}"))
        .with_context(|| format!("write {}", path.display()))
}
