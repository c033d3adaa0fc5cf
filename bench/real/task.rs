//! What is learned: for each task the owner's words, examples, practice, what the gate holds out, and what
//! measures. No prompt that measures is in a file that the daemon gets. Used by `root` and `unit`.

use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tasks::home::{self, Counts, Home};
use tasks::{Item, messages};

use crate::data;
use crate::setting::Setting;

/// A task by its name.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    /// One short sentence to a customer's message.
    Sentence,
    /// The same, its check written as parts that are aspects.
    SentenceParts,
    /// The intent of a SNIPS request.
    Intent,
    /// Its intent and slots as JSON.
    Slots,
    /// Commands to a home as JSON.
    Home,
    /// School maths: too hard for the model.
    Maths,
}

/// Tasks in the order of the table.
pub(crate) const KINDS: [Kind; 6] =
    [Kind::Sentence, Kind::SentenceParts, Kind::Intent, Kind::Slots, Kind::Home, Kind::Maths];

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) kind: Kind,
    /// The owner's standing words.
    pub(crate) system: String,
    /// Of an answer.
    pub(crate) max_tokens: u32,
    /// The agent's; `None`: every prompt brings its own.
    pub(crate) verifier: Option<Value>,
    pub(crate) examples: Vec<Item>,
    pub(crate) practice: Vec<Item>,
    /// The agent's `held_out`.
    pub(crate) gate: Vec<Item>,
    /// What measures, by name.
    pub(crate) measured: Vec<(&'static str, Vec<Item>)>,
    /// The longest a night may take.
    pub(crate) night_s: f64,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sentence => "sentence",
            Self::SentenceParts => "sentence_parts",
            Self::Intent => "intent",
            Self::Slots => "slots",
            Self::Home => "home",
            Self::Maths => "maths",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Sentence => "one short sentence",
            Self::SentenceParts => "one short sentence, `all` with parts",
            Self::Intent => "SNIPS intent",
            Self::Slots => "SNIPS intent and slots",
            Self::Home => "smart-home commands",
            Self::Maths => "GSM8K (control)",
        }
    }

    /// Whether the owner has examples.
    pub(crate) fn has_examples(self) -> bool {
        matches!(self, Self::Intent | Self::Slots | Self::Home)
    }

    /// Whether it needs the folder of public data.
    pub(crate) fn is_public(self) -> bool {
        matches!(self, Self::Intent | Self::Slots | Self::Maths)
    }

    /// `has_all`: the prompts of the night are examples too, for comparison.
    pub(crate) fn load(self, setting: &Setting, seed: u64, has_all: bool) -> anyhow::Result<Task> {
        let data =
            || setting.data.as_deref().context("say DATA=folder, the one with snips and gsm8k");
        let mut task = match self {
            Self::Sentence => sentence(seed),
            Self::SentenceParts => {
                let verifier = Some(json!({ "kind": "all", "of": [
                    { "kind": "length", "sentences": [1, 1], "lines": [1, 1] },
                    { "kind": "length", "words": [3, 20] },
                    { "kind": "regex", "pattern": "^[A-Z]" },
                ] }));
                Task { kind: self, verifier, ..sentence(seed) }
            }
            Self::Intent => intent(data()?, seed)?,
            Self::Slots => slots(data()?, seed)?,
            Self::Home => of_home(seed),
            Self::Maths => maths(data()?)?,
        };
        if has_all {
            let practice = std::mem::take(&mut task.practice);
            task.examples.extend(practice);
        }
        for list in [&mut task.examples, &mut task.practice, &mut task.gate] {
            *list = setting.cut(std::mem::take(list));
        }
        let measured = task.measured.into_iter();
        task.measured = measured.map(|(name, items)| (name, setting.cut(items))).collect();
        Ok(task)
    }
}

impl Task {
    /// Every prompt that measures, in order.
    pub(crate) fn all_measured(&self) -> impl Iterator<Item = &Item> {
        self.measured.iter().flat_map(|(_, items)| items)
    }
}

fn sentence(seed: u64) -> Task {
    /// The same messages measure every seed.
    const MEASURED: u64 = 1;
    let mut held_out = messages::held_out(300, MEASURED);
    let gate = held_out.split_off(200);
    Task {
        kind: Kind::Sentence,
        system: messages::SYSTEM.to_owned(),
        max_tokens: 96,
        verifier: Some(json!({ "kind": "regex", "pattern": messages::PATTERN })),
        examples: Vec::new(),
        practice: messages::practice(150, seed),
        gate,
        measured: vec![("held out", held_out)],
        night_s: 900.0,
    }
}

/// Three lists of these lengths, one after the other.
fn split(items: Vec<Item>, lengths: [usize; 3]) -> anyhow::Result<[Vec<Item>; 3]> {
    let (wanted, found) = (lengths.iter().sum::<usize>(), items.len());
    ensure!(wanted <= found, "the data has {found} lines, and {wanted} are needed");
    let mut items = items.into_iter();
    Ok(lengths.map(|length| items.by_ref().take(length).collect()))
}

fn intent(data: &Path, seed: u64) -> anyhow::Result<Task> {
    let train = data::snips(data, "train")?;
    let names = data::intents(&train).join(", ");
    let of =
        |requests: Vec<data::Request>| requests.into_iter().map(data::Request::intent).collect();
    // The gate asks 200 of the 400 (`learn.gate.prompts`).
    let [chosen, practice, gate] = split(of(data::balanced(&train, seed)), [70, 230, 400])?;
    Ok(Task {
        kind: Kind::Intent,
        system: format!("Which intent has the request? Answer with one of: {names}."),
        max_tokens: 16,
        verifier: None,
        examples: chosen,
        practice,
        gate,
        measured: vec![("test", of(data::snips(data, "test")?))],
        night_s: 900.0,
    })
}

fn slots(data: &Path, seed: u64) -> anyhow::Result<Task> {
    let train = data::snips(data, "train")?;
    let names = data::intents(&train).join(", ");
    let of =
        |requests: Vec<data::Request>| requests.into_iter().map(data::Request::slots).collect();
    let [chosen, practice, gate] = split(of(data::balanced(&train, seed)), [300, 300, 200])?;
    Ok(Task {
        kind: Kind::Slots,
        system: format!(
            "Turn the request into JSON with its intent and its slots. The intent is one of: {names}."
        ),
        max_tokens: 96,
        verifier: None,
        examples: chosen,
        practice,
        gate,
        measured: vec![("test", of(data::snips(data, "test")?))],
        night_s: 2700.0,
    })
}

fn of_home(seed: u64) -> Task {
    let Home { examples, practice, known, unseen, gate } = Home::new(Counts::FULL, seed);
    Task {
        kind: Kind::Home,
        system: home::SYSTEM.to_owned(),
        max_tokens: 48,
        verifier: None,
        examples,
        practice,
        gate,
        measured: vec![("known templates", known), ("unseen templates", unseen)],
        night_s: 900.0,
    }
}

fn maths(data: &Path) -> anyhow::Result<Task> {
    let [practice, gate, measured] = split(data::gsm8k(data)?, [100; 3])?;
    Ok(Task {
        kind: Kind::Maths,
        system: "Solve the problem. End with the number.".to_owned(),
        max_tokens: 160,
        verifier: None,
        examples: Vec::new(),
        practice,
        gate,
        measured: vec![("problems", measured)],
        night_s: 900.0,
    })
}
