//! What `init` says when the files are there: five lines about the model on this machine, and the
//! next three commands. Pure: facts in, text out. Used by `init`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::found::Found;
use crate::cli::doctor::training::{Training, duration};
use crate::cli::doctor::{Model, mib};
use crate::cli::table::{Table, pairs};
use crate::learn::examples::FEWEST_EXAMPLES;
use crate::learn::gate::MIN_PROMPTS;
use config::Agent;
use engine::llama::MemoryPlan;
use protocol::TrainingSurvey;

/// Follows a time that was measured beside other programs.
const BUSY: &str = "; other programs keep this machine busy, so it may be far less";

/// All that was done and found out.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Folder of the configuration.
    pub(super) root: PathBuf,
    pub(super) agent: String,
    /// Files below the root.
    pub(super) files: Vec<PathBuf>,
    pub(super) context_tokens: u32,
    pub(super) model: Model,
    pub(super) trainer: Trainer,
    /// Other programs have kept the processors busy while the trainer measured.
    pub(super) is_busy: bool,
    /// What learning still needs, in plain words.
    pub(super) missing: Vec<String>,
    /// Command lines, as they are typed.
    pub(super) next: [String; 3],
}

/// What the trainer says about the model, or why nobody was asked.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Trainer {
    /// Its program is not on this machine.
    NotInstalled { program: PathBuf },
    /// It was asked.
    Asked(Box<Training>),
}

impl Report {
    /// For people.
    pub(super) fn text(&self) -> String {
        let rows = [
            ("serves", self.serves()),
            ("trains", self.trains()),
            ("memory", self.memory()),
            ("1,000 pairs", self.time()),
            ("missing", format!("for learning: {}", self.missing.join("; "))),
        ];
        let [first, second, third] = &self.next;
        format!(
            "{}\nNext:\n  {first}\n  {second}\n  {third}\nThe last one is for another terminal, in \
             the same folder.\n",
            pairs(&rows)
        )
    }

    fn serves(&self) -> String {
        let Model { survey, .. } = &self.model;
        let kind = survey.quantization.first().map_or("?", |stored| stored.kind.as_str());
        let parameters = survey.n_parameters as f64;
        let parameters = match parameters {
            n if n < 1e9 => format!("{:.0} million", n / 1e6),
            n => format!("{:.1} billion", n / 1e9),
        };
        format!("yes: {}, {parameters} parameters, mostly {kind}", survey.architecture)
    }

    fn trains(&self) -> String {
        let training = match &self.trainer {
            Trainer::NotInstalled { program } => {
                return format!(
                    "no: there is no {}; the package reflectd-trainer (93 MB packed, about \
                     470 MB installed) adds training and the swap to the trained model, the rest \
                     works without it",
                    program.display()
                );
            }
            Trainer::Asked(training) => training,
        };
        match (&training.survey, &training.fault) {
            (Some(TrainingSurvey { refusal: Some(refusal), .. }), _) => {
                format!("no: {refusal}; serving does not need it")
            }
            (Some(TrainingSurvey { device, threads, .. }), _) if device == "cpu" => {
                format!("yes: on the processor, {threads} threads")
            }
            (Some(TrainingSurvey { device, .. }), _) => format!("yes: on {device}"),
            (None, fault) => {
                let fault = fault.as_deref().unwrap_or("it does not answer");
                format!("unknown, because of the trainer: {fault}")
            }
        }
    }

    fn memory(&self) -> String {
        let serving = match &self.model.survey.memory {
            Some(MemoryPlan { host, gpu, .. }) => {
                let gpu = gpu.as_ref().map(|gpu| format!(" and {} of the GPU", mib(gpu.total())));
                format!(
                    "{}{} to serve {} tokens of context, {} free",
                    mib(host.total()),
                    gpu.unwrap_or_default(),
                    self.context_tokens,
                    mib(host.available)
                )
            }
            None => "unknown".to_owned(),
        };
        let memory = match &self.trainer {
            Trainer::Asked(training) => training.survey.as_ref().and_then(|it| it.memory.as_ref()),
            Trainer::NotInstalled { .. } => None,
        };
        let way = memory.and_then(|memory| memory.ways.iter().find(|way| way.base == memory.taken));
        way.map_or(serving.clone(), |way| {
            let room = if way.fits { "" } else { ", which are not there" };
            format!("{serving}; {} to train{room}", mib(way.total_bytes()))
        })
    }

    fn time(&self) -> String {
        let Trainer::Asked(training) = &self.trainer else {
            return "unknown: only the trainer can measure it".to_owned();
        };
        let speed = training.survey.as_ref().and_then(|survey| survey.speed.as_ref());
        match (training.seconds_per_1000_pairs, speed) {
            (Some(seconds), Some(speed)) => format!(
                "{} for {}, with prompts of {} and answers of {} tokens{}",
                duration(seconds),
                if training.epochs == 1 {
                    "1 epoch".into()
                } else {
                    format!("{} epochs", training.epochs)
                },
                speed.pair.prompt,
                speed.pair.answer,
                if self.is_busy { BUSY } else { "" }
            ),
            _ => {
                let fault = match &training.survey {
                    Some(survey) => survey.speed_fault.as_deref(),
                    None => Some("the trainer has not answered"),
                };
                format!("not measured: {}", fault.unwrap_or("the model is not trained here"))
            }
        }
    }
}

/// What an agent still lacks before a night can make its model better: `init` has no prompts to hold out.
pub(super) fn missing(agent: &Agent, n_examples: usize) -> Vec<String> {
    let truth = if agent.verifier.is_some() {
        "prompts, of chats or of a file (`explore`)"
    } else {
        "prompts with a verifier or a reference, or your ratings (/good and /bad in chat)"
    };
    let held_out = format!(
        "{truth}: of a hundred, {MIN_PROMPTS} are set aside as held out, without which nothing is trained \
         (agents/{}.yaml)",
        agent.name
    );
    let examples = (n_examples < FEWEST_EXAMPLES).then(|| {
        format!(
            "examples of right answers ({} more), if it cannot do your task at all (reflectd learn FILE)",
            FEWEST_EXAMPLES - n_examples
        )
    });
    [held_out].into_iter().chain(examples).collect()
}

/// The three commands after this one: as this program was called, with the places it was given.
pub(super) fn next(program: &str, places: &[(&str, &Path)]) -> [String; 3] {
    let options = places.iter().filter(|(option, path)| {
        // What is the default without being typed.
        !(*option == "--root" && *path == Path::new("."))
    });
    let words = options
        .flat_map(|(option, path)| [(*option).to_owned(), shell_word(&path.display().to_string())]);
    let words: Vec<String> = words.collect();
    ["check", "serve", "chat"].map(|command| {
        let line = [&[shell_word(program), command.to_owned()], &words[..]].concat();
        line.join(" ")
    })
}

/// As a shell reads it back.
fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_-./=:,+@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Bytes as people know them from downloads.
pub(super) fn size(bytes: u64) -> String {
    match bytes as f64 {
        n if n < 1e9 => format!("{:.0} MB", (n / 1e6).ceil()),
        n => format!("{:.1} GB", n / 1e9),
    }
}

/// What was found, numbered from 1 in the order of the offer.
pub(super) fn list(models: &[Found]) -> String {
    let mut table = Table::new(["no.", "model", "size", "parameters", "type", "from"]);
    for (index, found) in models.iter().enumerate() {
        let parameters = found.n_parameters as f64 / 1e9;
        table.row([
            (index + 1).to_string(),
            found.name.clone(),
            size(found.bytes),
            if parameters < 1.0 {
                format!("{:.0} M", parameters * 1e3)
            } else {
                format!("{parameters:.1} B")
            },
            found.quantization.to_owned(),
            found.source.label().to_owned(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests;
