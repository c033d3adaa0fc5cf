//! `reflectd check`: reads the configuration with the code that the daemon uses, and reports every
//! problem. Needs no daemon. Called by `cli::run`.

use std::collections::{BTreeSet, HashMap};
use std::error::Error as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Json, terminal};
use crate::learn::gate::Power;
use crate::learn::held_out::{self, HeldOut};
use crate::learn::near::Likeness;
use crate::learn::practice_file::MOST_PROMPTS;
use crate::reflect::verify::command::try_program;
use crate::reflect::{self, ExampleCheck};
use config::prompt_file::{self, Fault, Faults, PromptFileError};
use config::{self, Agent, Config, ConfigError, Problem, PromptLine};
use files::gguf::Gguf;
use prompt::{ChatTemplate, Message};
use protocol::exit::Exit;

pub(super) fn run(root: &Path, json: Json) -> anyhow::Result<Exit> {
    let (config, mut problems) = config::load_sound(root);
    let mut warnings = Vec::new();
    if !problems.is_empty() {
        let file = Config::file(root);
        let message =
            "as long as a key is wrong, not all files and programs that agents name are looked at";
        warnings.push(Problem { file, key: String::new(), message: message.to_owned() });
    }
    if let Some(config) = &config {
        problems.extend(templates(config));
        problems.extend(programs(config));
        problems.extend(files_of(config));
        warnings.extend(config.warnings.iter().cloned());
        warnings.extend(too_few_held_out(config));
        warnings.extend(near_copies(config));
        warnings.extend(long_files(config));
        warnings.extend(contradictions(config));
    }
    let loaded = match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(ConfigError(problems)),
    };
    if json.json {
        let problems = loaded.as_ref().err().map_or(&[][..], |error| &error.0);
        terminal::print_json(&json!({ "problems": problems, "warnings": warnings }))?;
        return Ok(if problems.is_empty() { Exit::Ok } else { Exit::Config });
    }
    for warning in &warnings {
        terminal::print(&format!("warning: {warning}\n"))?;
    }
    let config = loaded?;
    let agents: Vec<&str> = config.agents.keys().map(String::as_str).collect();
    let file = Config::file(&config.root);
    terminal::print(&format!("{} is good; agents: {}\n", file.display(), agents.join(", ")))?;
    Ok(Exit::Ok)
}

/// Held-out prompts with which nothing can be promoted, or which cannot be read.
fn too_few_held_out(config: &Config) -> Option<Problem> {
    let learning = || config.agents.values().filter(|agent| agent.learn);
    let first = learning().next()?;
    if learning().any(|agent| agent.held_out == Some(config::HeldOut::Auto)) {
        // Only the daemon knows how many it has set aside.
        return None;
    }
    let message = match held_out::load(learning()) {
        Ok(questions) => {
            let n_prompts = held_out::count(&questions.held_out);
            let power = Power::new(n_prompts, &config.learn.gate);
            (!power.is_enough()).then_some(power.says)?
        }
        Err(error) => format!("{:#}", anyhow::Error::from(error)),
    };
    let file = Path::new("agents").join(format!("{}.yaml", first.name));
    Some(Problem { file, key: "held_out".to_owned(), message })
}

/// Files with near copies of held-out prompts, which no night learns from. What cannot be read is told
/// of elsewhere.
fn near_copies(config: &Config) -> Vec<Problem> {
    let Ok(held_out) = held_out::of_files(config) else { return Vec::new() };
    let mut problems = Vec::new();
    for agent in config.agents.values().filter(|agent| agent.learn) {
        let mut add = |path: &Path, prompts: Vec<Vec<Message>>| {
            let like = prompts.iter().filter_map(|messages| held_out.find(messages));
            let n_copies = like.filter(|like| *like == Likeness::Near).count();
            let message = format!("{n_copies} near copies of held-out prompts are left out");
            let problem = Problem { file: path.to_owned(), key: String::new(), message };
            problems.extend((0 < n_copies).then_some(problem));
        };
        if let Some(path) = &agent.practice.prompts {
            let lines = prompt_file::read(path).unwrap_or_default();
            add(path, lines.iter().map(PromptLine::messages).collect());
        }
        if let Some(path) = &agent.examples {
            let lines = prompt_file::read_examples(path).unwrap_or_default();
            add(path, lines.iter().map(|(_, line)| line.messages()).collect());
        }
    }
    problems
}

/// Practice files of which a night uses a part.
fn long_files(config: &Config) -> Vec<Problem> {
    let problem = |path: &PathBuf| {
        let n_lines = prompt_file::read(path).ok()?.len();
        let message = format!(
            "has {n_lines} prompts, of which nights use {MOST_PROMPTS}, always the same ones: \
             split it to use others"
        );
        let is_long = MOST_PROMPTS < n_lines;
        is_long.then(|| Problem { file: path.clone(), key: String::new(), message })
    };
    let learning = config.agents.values().filter(|agent| agent.learn);
    let paths: BTreeSet<_> = learning.filter_map(|it| it.practice.prompts.as_ref()).collect();
    paths.into_iter().filter_map(problem).collect()
}

/// Lines that an agent's practice file contradicts, and that no night learns from: prompts that stand
/// there twice with another check, and examples that the check of their practice prompt refuses.
fn contradictions(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |file: &Path, number: usize, message: String| {
        let key = format!("line {number}");
        problems.push(Problem { file: file.to_owned(), key, message });
    };
    for agent in config.agents.values().filter(|agent| agent.learn) {
        let Some(path) = &agent.practice.prompts else { continue };
        let mut practised = HashMap::new();
        for (number, line) in prompt_file::read_numbered(path).unwrap_or_default() {
            let check = (line.verifier.clone(), line.reference.clone());
            let prompt = reflect::stored(agent, &line.messages());
            let (first, known) = practised.entry(prompt).or_insert((number, check.clone()));
            if *known != check {
                let message = format!(
                    "has the prompt of line {first} with another verifier or reference; the first one counts"
                );
                add(path, number, message);
            }
        }
        // Of a longer file only some prompts are stored.
        let Some(examples) = agent.examples.as_ref().filter(|_| practised.len() <= MOST_PROMPTS)
        else {
            continue;
        };
        for (number, line) in prompt_file::read_examples(examples).unwrap_or_default() {
            let prompt = reflect::stored(agent, &line.messages());
            let Some((_, (verifier, reference))) = practised.get(&prompt) else { continue };
            if reflect::refuses(agent, verifier.as_ref(), reference.as_deref(), &line.answer) {
                let path = path.display();
                let message = format!(
                    "is not learned, because what checks its prompt in {path} refuses its answer"
                );
                add(examples, number, message);
            }
        }
    }
    problems
}

/// Agents whose first turn the chat template cannot render. The daemon serves the others.
fn templates(config: &Config) -> Vec<Problem> {
    // A model that cannot be read is told of by `doctor` and at the start.
    let Ok(header) = Gguf::open(&config.engine.model) else { return Vec::new() };
    let template = ChatTemplate::of_model(&header, config.engine.chat_template.as_deref());
    let problem = |agent: &Agent| {
        let message = reflect::try_chat(agent, &template).err()?.to_string();
        let file = Path::new("agents").join(format!("{}.yaml", agent.name));
        Some(Problem { file, key: "model".to_owned(), message })
    };
    config.agents.values().filter_map(|agent| problem(agent)).collect()
}

/// Programs that check answers and give no verdict when they are asked for one.
fn programs(config: &Config) -> Vec<Problem> {
    let named = config.agents.values().filter_map(|agent| Some((agent, agent.verifier.as_ref()?)));
    let commands = named.flat_map(|(agent, verifier)| {
        verifier.commands().into_iter().map(|command| (agent.name.clone(), command.clone()))
    });
    let problem = |(agent, command)| {
        let message = try_program(&command).err()?;
        let file = Path::new("agents").join(format!("{agent}.yaml"));
        Some(Problem { file, key: "verifier".to_owned(), message })
    };
    commands.filter_map(problem).collect()
}

/// All that is wrong with the lines of the files that agents name.
fn files_of(config: &Config) -> Vec<Problem> {
    // Told of by `doctor` and at the start when it cannot be read.
    let template = Gguf::open(&config.engine.model)
        .ok()
        .map(|header| ChatTemplate::of_model(&header, config.engine.chat_template.as_deref()));
    let mut problems = Vec::new();
    for agent in config.agents.values() {
        for path in agent.held_out_file().into_iter().chain(&agent.general) {
            add(&mut problems, path, prompts(agent, path, template.as_ref()));
        }
        if let Some(path) = &agent.practice.prompts {
            add(&mut problems, path, prompts(agent, path, template.as_ref()));
        }
        if let Some(path) = &agent.examples {
            add(&mut problems, path, examples(agent, path, template.as_ref()));
        }
        if let Some(path) = &agent.probes {
            add(&mut problems, path, prompt_file::read_probes(path).map(|_| Faults::default()));
        }
    }
    problems
}

/// Conversations that the chat template refuses.
fn prompts(
    agent: &Agent,
    path: &Path,
    template: Option<&ChatTemplate>,
) -> Result<Faults, PromptFileError> {
    let mut faults = Faults::default();
    for (number, line) in prompt_file::read_numbered(path)? {
        // All single turns are rendered alike, and `templates` has tried one.
        let Some(template) = template.filter(|_| !line.earlier.is_empty()) else { continue };
        if let Err(error) = reflect::try_conversation(agent, template, &line.messages()) {
            faults.add(number, error.to_string());
        }
    }
    Ok(faults)
}

/// Examples that do not fit the chat template or their own verifier, or whose prompts are held out.
fn examples(
    agent: &Agent,
    path: &Path,
    template: Option<&ChatTemplate>,
) -> Result<Faults, PromptFileError> {
    // Faults of the held-out prompts are told of where they are.
    let held_out =
        agent.held_out_file().into_iter().filter_map(|path| prompt_file::read(path).ok()).flatten();
    let held_out = HeldOut::of_prompts(&held_out.collect::<Vec<_>>());
    let mut check = ExampleCheck::new(agent, template);
    let lines = prompt_file::read_good_examples(path, |number, line| {
        check.check(number, line)?;
        if held_out.names(&line.messages()) {
            return Err(held_out::NO_EXAMPLE.to_owned());
        }
        Ok(())
    });
    lines.map(|_| Faults::default())
}

fn add(problems: &mut Vec<Problem>, path: &Path, read: Result<Faults, PromptFileError>) {
    let problem = |key: String, message: String| Problem { file: path.to_owned(), key, message };
    let faults = match read {
        Ok(faults) | Err(PromptFileError::Lines { faults, .. }) => faults,
        Err(error @ PromptFileError::Read { .. }) => {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            return problems.push(problem(String::new(), format!("{error}{cause}")));
        }
    };
    let told = faults.told.into_iter();
    problems.extend(told.map(|Fault { line, message }| problem(format!("line {line}"), message)));
    if 0 < faults.n_more {
        problems.push(problem(String::new(), format!("{} more lines do not fit", faults.n_more)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_of_every_file_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let mut problems = Vec::new();
        let missing = folder.path().join("missing.jsonl");
        add(&mut problems, &missing, prompt_file::read(&missing).map(|_| Faults::default()));
        let path = folder.path().join("lines.jsonl");
        let text = "{\"id\":1}\n".repeat(102);
        files::write_atomic(&path, |it| std::io::Write::write_all(it, text.as_bytes())).unwrap();
        add(&mut problems, &path, prompt_file::read(&path).map(|_| Faults::default()));
        assert!(problems[0].message.contains("No such file"), "{}", problems[0]);
        assert!(problems[2].to_string().contains("lines.jsonl: line 2: "), "{}", problems[2]);
        assert!(problems[101].message.contains("2 more lines"), "{}", problems[101]);
        assert_eq!(problems.len(), 102);
    }
}
