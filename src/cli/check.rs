//! `reflectd check`: reads the configuration with the code that the daemon uses, and reports every
//! problem. Needs no daemon. Called by `cli::run`.

use std::path::Path;

use serde_json::json;

use super::{Json, terminal};
use crate::learn::gate::Power;
use crate::learn::held_out;
use crate::reflect;
use crate::reflect::verify::command::try_program;
use config::{self, Config, ConfigError, Problem};
use files::gguf::Gguf;
use prompt::ChatTemplate;
use protocol::exit::Exit;

pub(super) fn run(root: &Path, json: Json) -> anyhow::Result<Exit> {
    let loaded = config::load(root).and_then(|mut config| {
        let problems: Vec<_> = templates(&config).into_iter().chain(programs(&config)).collect();
        config.warnings.extend(too_few_held_out(&config));
        if problems.is_empty() { Ok(config) } else { Err(ConfigError(problems)) }
    });
    if json.json {
        let problems = loaded.as_ref().err().map_or(&[][..], |error| &error.0);
        let warnings = loaded.as_ref().map_or(&[][..], |config| &config.warnings);
        terminal::print_json(&json!({ "problems": problems, "warnings": warnings }))?;
        return Ok(if problems.is_empty() { Exit::Ok } else { Exit::Config });
    }
    let config = loaded?;
    for warning in &config.warnings {
        terminal::print(&format!("warning: {warning}\n"))?;
    }
    let agents: Vec<&str> = config.agents.keys().map(String::as_str).collect();
    let file = Config::file(&config.root);
    terminal::print(&format!("{} is good; agents: {}\n", file.display(), agents.join(", ")))?;
    Ok(Exit::Ok)
}

/// Held-out prompts with which nothing can be promoted, or which cannot be read.
fn too_few_held_out(config: &Config) -> Option<Problem> {
    let learning = || config.agents.values().filter(|agent| agent.learn);
    let first = learning().next()?;
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

/// Agents whose first turn the chat template cannot render. The daemon serves the others.
fn templates(config: &Config) -> Vec<Problem> {
    // A model that cannot be read is told of by `doctor` and at the start.
    let Ok(header) = Gguf::open(&config.engine.model) else { return Vec::new() };
    let template = ChatTemplate::of_model(&header, config.engine.chat_template.as_deref());
    let problem = |agent: &config::Agent| {
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
