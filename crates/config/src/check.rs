//! From files to a checked [`Config`], or to all problems of all files at once. What the keys of
//! `reflectd.yaml` may be stands in `settings`, those of agents here. Reads files, changes
//! nothing. Used by `daemon` (start and reload) and `reflectd check`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use sha2::Digest as _;

use super::judge::{aspect_choice, judge, scalar};
use super::prompt_file;
use super::raw::{Problems, Section};
use super::settings::{Settings, auto_or_number};
use super::verifier::verifier;
use super::{
    Agent, AgentAspect, Aspect, Config, ConfigError, HeldOut, JudgeConfig, Mode, Pass, Practice,
    Problem, Promising, REWARD, Reflection, ScalarConfig, StopEarly, VERIFIER,
};
use inference::{EngineConfig, Sampling, ranges};
use prompt::{Message, PromptSet, Role, is_of_verifier};

/// Requests name the default agent so; no agent may.
const DEFAULT: &str = "default";
/// Names of assessments that no aspect may have.
const RESERVED: [&str; 2] = [VERIFIER, REWARD];

/// Reads and checks everything below a root folder.
pub fn load(root: &Path) -> Result<Config, ConfigError> {
    match load_sound(root) {
        (Some(config), problems) if problems.is_empty() => Ok(config),
        (_, problems) => Err(ConfigError(problems)),
    }
}

/// The same, with what is sound beside what is not: enough to look on for more problems, and not to serve.
pub fn load_sound(root: &Path) -> (Option<Config>, Vec<Problem>) {
    let problems = Problems::default();
    // Whole paths, because the trainer runs in a folder of its own.
    let root = fs::canonicalize(root).unwrap_or_else(|error| {
        problems.add(root, "", format!("cannot be opened: {error}"));
        root.to_owned()
    });
    (check(&root, &problems), problems.into_inner())
}

/// Reads and checks one file of reflection templates (the nano model is trained on its own).
pub fn load_prompts(file: &Path) -> Result<PromptSet, ConfigError> {
    let problems = Problems::default();
    let set = Section::read(Path::new(""), file, &problems).and_then(prompt_set);
    let problems = problems.into_inner();
    set.filter(|_| problems.is_empty()).ok_or(ConfigError(problems))
}

/// `None` only when a problem was noted.
fn check(root: &Path, problems: &Problems) -> Option<Config> {
    let settings_file = Path::new("reflectd.yaml");
    let mut keys = if Config::file(root).exists() {
        Section::read(root, settings_file, problems)?
    } else {
        Section::empty(settings_file, problems)
    };
    let mut settings = Settings::check(root, &mut keys);
    let wanted_default = settings.default_agent.take();

    let mut files = Files { root, problems, prompts: BTreeMap::new(), aspects: BTreeMap::new() };
    let mut agents = BTreeMap::new();
    let mut model: Option<(String, PathBuf)> = None;
    let names = stems(&root.join("agents"));
    if names.is_empty() {
        problems.add(
            Path::new("agents"),
            "",
            "has no agent; one YAML file an agent is needed, which `reflectd init` writes",
        );
    }
    for name in &names {
        let file = Path::new("agents").join(format!("{name}.yaml"));
        let Some((agent, path)) = files.agent(name, &file, &settings) else { continue };
        match &model {
            Some((first, same)) if *same != path => problems.add(
                &file,
                "model",
                format!("is not the model of {first} ({}); all agents share one", same.display()),
            ),
            Some(_) => {}
            None => model = Some((name.clone(), path)),
        }
        agents.insert(name.clone(), Arc::new(agent));
    }
    let judge = one_file(problems, &agents, "judge", |agent| match &agent.judge {
        JudgeConfig::Model(model) => Some(model),
        JudgeConfig::Nobody | JudgeConfig::Own | JudgeConfig::Endpoint(_) => None,
    });
    let reward = one_file(problems, &agents, "scalar", |agent| match &agent.scalar {
        ScalarConfig::Reward(reward) => Some(&reward.model),
        ScalarConfig::Aspects => None,
    });

    let default_agent = match (wanted_default, names.first()) {
        (Some(wanted), _) if names.contains(&wanted) => Some(wanted),
        (None, Some(only)) if names.len() == 1 => Some(only.clone()),
        (None, None) => None,
        (wanted, _) => {
            let fault = wanted.map_or("is missing".into(), |wanted| format!("is {wanted:?}"));
            keys.problem("default_agent", format!("{fault}; {}", one_of(&names)));
            None
        }
    };
    let Settings { server, trainer, learn, trust, log_text, .. } = settings;
    settings.engine.model = model?.1;
    let engine = settings.engine;
    let default_agent = default_agent?;
    let beside = |model: PathBuf| EngineConfig { model, chat_template: None, ..engine.clone() };
    Some(Config {
        root: root.into(),
        judge_engine: judge.map(beside),
        // It has one sequence at a time, so that its number depends on nothing else.
        reward_engine: reward
            .map(|model| EngineConfig { deterministic_judge: false, ..beside(model) }),
        engine,
        server,
        trainer,
        learn,
        trust,
        agents,
        default_agent,
        log_text,
        warnings: problems.warnings(),
    })
}

/// The one file that agents name for a purpose: each is a model in memory.
fn one_file(
    problems: &Problems,
    agents: &BTreeMap<String, Arc<Agent>>,
    key: &str,
    file_of: impl Fn(&Agent) -> Option<&PathBuf>,
) -> Option<PathBuf> {
    let named = agents.values().filter_map(|agent| Some((agent, file_of(agent)?)));
    let mut first: Option<(&Agent, &PathBuf)> = None;
    for (agent, file) in named {
        match first {
            None => first = Some((agent, file)),
            Some((other, same)) if same != file => problems.add(
                &Path::new("agents").join(format!("{}.yaml", agent.name)),
                key,
                format!(
                    "is not the model of {} ({}); all agents share one",
                    other.name,
                    same.display()
                ),
            ),
            Some(_) => {}
        }
    }
    first.map(|(_, file)| file.clone())
}

/// The stems of a folder's YAML files; none when there is no such folder.
fn stems(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".yaml")?.to_owned()))
        // Editors keep their copies under names that begin with a dot.
        .filter(|stem| !stem.starts_with('.') && !stem.is_empty())
        .collect()
}

fn one_of<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let names: Vec<_> = names.into_iter().map(String::as_str).collect();
    if names.is_empty() { "there is none".into() } else { format!("allowed: {}", names.join(", ")) }
}

/// What an agent's file says, as far as nothing is wrong with it.
pub(super) fn agent(
    root: &Path,
    keys: Section<'_>,
    settings: &Settings,
    problems: &Problems,
) -> Option<(Agent, PathBuf)> {
    let mut files = Files { root, problems, prompts: BTreeMap::new(), aspects: BTreeMap::new() };
    files.agent_of("NAME", keys, settings)
}

/// Reads what agents refer to, each file once.
struct Files<'a> {
    root: &'a Path,
    problems: &'a Problems,
    prompts: BTreeMap<PathBuf, Option<Arc<PromptSet>>>,
    aspects: BTreeMap<PathBuf, Option<Arc<Aspect>>>,
}

impl Files<'_> {
    /// An agent and its model; `None` when a part that every agent needs is wrong.
    fn agent(&mut self, name: &str, file: &Path, settings: &Settings) -> Option<(Agent, PathBuf)> {
        let keys = Section::read(self.root, file, self.problems)?;
        self.agent_of(name, keys, settings)
    }

    fn agent_of(
        &mut self,
        name: &str,
        mut keys: Section<'_>,
        settings: &Settings,
    ) -> Option<(Agent, PathBuf)> {
        if name == DEFAULT || !name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        {
            keys.problem(
                "",
                format!("is an agent named {name:?}; letters, digits, '.', '_' and '-' are allowed, {DEFAULT:?} is not"),
            );
        }
        let model = self.model(&mut keys);
        let prompts_file = keys.value("prompts", PathBuf::from("prompts/reflect.yaml"));
        let prompts = self.prompts(&prompts_file);
        let items = keys.named_items("aspects");
        let names_aspects = !items.is_empty();
        let aspects = self.agent_aspects(name, items);
        let held_out = self.held_out(&mut keys);
        let general = self.prompts_of(&mut keys, "general");
        let examples = self.prompts_of(&mut keys, "examples");
        let mut explore = keys.section("explore");
        let practice = Practice {
            prompts: self.prompts_of(&mut explore, "prompts"),
            shots: explore.number("shots", 0, &(0..=64)),
            temperature: auto_or_number(&mut explore, "temperature", &ranges::TEMPERATURE),
            top_p: top_p(&mut explore, 0.95),
        };
        // Faults of the prompts are reported already.
        let can_choose = prompts.as_ref().is_none_or(|prompts| prompts.can_choose());
        let probes = self.prompts_of(&mut keys, "probes");
        let agent = Agent {
            aspect_choice: aspect_choice(&mut keys, aspects.len(), can_choose),
            judge: judge(self.root, &mut keys, settings.judge.clone()),
            scalar: scalar(self.root, &mut keys),
            description: keys.value("description", String::new()),
            system: keys.optional("system"),
            sampling: sampling(&mut keys.section("sampling"), &settings.engine),
            reflection: reflection(&mut keys.section("reflection"), &mut explore),
            verifier: verifier(self.root, &mut keys),
            learn: keys.value("learn", true),
            held_out,
            probes,
            general,
            examples,
            practice,
            aspects,
            prompts: prompts?,
            name: name.to_owned(),
        };
        // What is wrong with the aspects of a list is reported already.
        if !agent.is_judged() && (!names_aspects || !agent.aspects.is_empty()) {
            without_aspects(&agent, &keys);
        }
        if !agent.aspects.is_empty() && agent.judge == JudgeConfig::Nobody {
            keys.problem("judge", "is none, but aspects need a judge; name one, or no aspects");
        }
        Some((agent, model?))
    }

    fn model(&self, keys: &mut Section<'_>) -> Option<PathBuf> {
        let model = self.root.join(keys.text("model")?);
        if !model.is_file() {
            let path = model.display();
            keys.problem(
                "model",
                format!("names {path}, which is not a file; put a GGUF chat model there"),
            );
        }
        Some(model)
    }

    /// A file of prompts, or the word `auto`.
    fn held_out(&self, keys: &mut Section<'_>) -> Option<HeldOut> {
        const ALLOWED: &str = "auto or a path";
        let given = keys.mixed_optional::<PathBuf>("held_out", ALLOWED)?;
        if given == Path::new("auto") {
            return Some(HeldOut::Auto);
        }
        Some(HeldOut::File(self.file("held_out", given, keys)))
    }

    /// A file of prompts, if one is named.
    fn prompts_of(&self, keys: &mut Section<'_>, key: &'static str) -> Option<PathBuf> {
        let path = keys.optional::<PathBuf>(key)?;
        Some(self.file(key, path, keys))
    }

    fn file(&self, key: &'static str, path: PathBuf, keys: &Section<'_>) -> PathBuf {
        let path = self.root.join(path);
        if !path.is_file() {
            keys.problem(key, format!("names {}, which is not a file", path.display()));
        }
        path
    }

    fn prompts(&mut self, file: &Path) -> Option<Arc<PromptSet>> {
        if let Some(known) = self.prompts.get(file) {
            return known.clone();
        }
        let set = Section::read(self.root, file, self.problems).and_then(prompt_set).map(Arc::new);
        self.prompts.insert(file.into(), set.clone());
        set
    }

    fn agent_aspects(&mut self, agent: &str, items: Vec<Section<'_>>) -> Vec<AgentAspect> {
        let folders = [Path::new("agents").join(agent).join("aspects"), "prompts/aspects".into()];
        let known = folders.each_ref().map(|folder| stems(&self.root.join(folder)));
        let mut taken = BTreeSet::new();
        let mut aspects = Vec::new();
        for mut item in items {
            let name = item.text("name");
            let weight = item.number("weight", 1.0, &(0.0..=1000.0));
            let pass = pass(&mut item);
            let Some(name) = name else { continue };
            let folder = known.iter().position(|stems| stems.contains(&name));
            let Some(folder) = folder.and_then(|index| folders.get(index)) else {
                let all: BTreeSet<_> = known.iter().flatten().collect();
                item.problem("name", format!("is {name:?}; {}", one_of(all)));
                continue;
            };
            if !taken.insert(name.clone()) {
                item.problem("name", format!("is {name:?} for the second time"));
            }
            if let Some(aspect) = self.aspect(&folder.join(format!("{name}.yaml")), &name) {
                aspects.push(AgentAspect { aspect, weight, pass });
            }
        }
        aspects
    }

    fn aspect(&mut self, file: &Path, name: &str) -> Option<Arc<Aspect>> {
        if let Some(known) = self.aspects.get(file) {
            return known.clone();
        }
        let keys = Section::read(self.root, file, self.problems);
        let aspect = keys.and_then(|keys| aspect(name, keys)).map(Arc::new);
        self.aspects.insert(file.into(), aspect.clone());
        aspect
    }
}

/// Without aspects something else has to say which answers are right.
fn without_aspects(agent: &Agent, keys: &Section<'_>) {
    let has_truth = |path: &PathBuf| {
        let lines = prompt_file::read(path).unwrap_or_default();
        lines.iter().any(|line| line.verifier.is_some() || line.reference.is_some())
    };
    // With `auto` the held-out prompts are some of those that are practised on.
    let questions = match agent.held_out {
        Some(HeldOut::Auto) => agent.practice.prompts.as_ref(),
        _ => agent.held_out_file(),
    };
    let has_reward = matches!(agent.scalar, ScalarConfig::Reward(_));
    let is_checked = agent.verifier.is_some() || questions.is_some_and(has_truth);
    if !has_reward && !is_checked {
        keys.problem(
            "aspects",
            "has none that counts, and nothing else says which answers are right; name aspects, a \
             `verifier` or a `scalar.reward_model`, or give the prompts of `held_out` (or, with \
             `held_out: auto`, of `explore.prompts`) verifiers or references",
        );
    } else if !has_reward && agent.reflection.verifier_weight <= 0.0 {
        keys.problem(
            "reflection.verifier_weight",
            "is 0, which only measures; without aspects it must be above 0",
        );
    }
}

/// The owner's number, or the word `calibrated`.
fn pass(keys: &mut Section<'_>) -> Pass {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        Number(f64),
        Word(String),
        Other(serde::de::IgnoredAny),
    }
    const DEFAULT: f64 = 0.5;
    const WANTED: &str = "calibrated or a number from 0 to 1";
    let given = keys.mixed("pass", &DEFAULT.to_string(), WANTED);
    match given.unwrap_or(Given::Number(DEFAULT)) {
        Given::Number(number) if (0.0..=1.0).contains(&number) => Pass::Fixed(number),
        Given::Word(word) if word == "calibrated" => Pass::Calibrated,
        Given::Number(_) | Given::Word(_) | Given::Other(_) => {
            keys.problem("pass", format!("must be {WANTED}"));
            Pass::Calibrated
        }
    }
}

pub(super) fn aspect(name: &str, mut keys: Section<'_>) -> Option<Aspect> {
    if RESERVED.contains(&name) || is_of_verifier(name) {
        keys.problem("", format!("is an aspect named {name:?}, which is reserved"));
    }
    let description = keys.text("description");
    let correctness = keys.value("correctness", false);
    let wanted = "three texts are needed: what levels -1, 0 and +1 mean";
    let levels = keys.required::<[String; 3]>("levels", wanted)?;
    if levels.iter().any(|level| level.trim().is_empty()) {
        keys.problem("levels", wanted);
    }
    let description = description?;
    let mut digest = sha2::Sha256::new();
    for text in [name, &description].into_iter().chain(levels.iter().map(String::as_str)) {
        // Without the lengths `ab`, `c` and `a`, `bc` would have the same hash.
        digest.update(text.len().to_le_bytes());
        digest.update(text);
    }
    let version = files::hex(&digest.finalize()).chars().take(12).collect();
    Some(Aspect { name: name.into(), description, levels, version, correctness })
}

/// One turn of a reflection template.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Turn {
    role: Role,
    content: String,
}

pub(super) fn prompt_set(mut keys: Section<'_>) -> Option<PromptSet> {
    let form = keys.optional::<String>("form");
    let labels = keys.required("labels", "three texts, one token each, stand for levels -1, 0, +1");
    let mut templates = BTreeMap::new();
    let wanted = "a list of turns {role, content} is needed";
    let insert = |templates: &mut BTreeMap<_, _>, name: &str, turns: Vec<Turn>| {
        let turn = |Turn { role, content }| Message { role, content };
        templates.insert(name.to_owned(), turns.into_iter().map(turn).collect());
    };
    for name in ["assess", "critique", "refine"] {
        if let Some(turns) = keys.required::<Vec<Turn>>(name, wanted) {
            insert(&mut templates, name, turns);
        }
    }
    let is_whole = templates.len() == 3;
    if let Some(turns) = keys.optional::<Vec<Turn>>("choose") {
        insert(&mut templates, "choose", turns);
    }
    if !is_whole {
        return None;
    }
    let mut set = PromptSet::new(labels?, templates)
        .map_err(|error| keys.problem("", error.to_string()))
        .ok()?;
    if let Some(form) = form {
        set.set_form(&form).map_err(|error| keys.problem("form", error.to_string())).ok()?;
    }
    Some(set)
}

/// A mass below a thousandth leaves one token, which temperature 0 says more clearly.
fn top_p(keys: &mut Section<'_>, default: f32) -> f32 {
    keys.number("top_p", default, &(0.001..=*ranges::TOP_P.end()))
}

fn sampling(keys: &mut Section<'_>, engine: &EngineConfig) -> Sampling {
    let default = Sampling::default();
    Sampling {
        temperature: keys.number("temperature", default.temperature, &ranges::TEMPERATURE),
        top_p: top_p(keys, default.top_p),
        top_k: keys.number("top_k", default.top_k, &(0..=1_000_000)),
        min_p: keys.number("min_p", default.min_p, &ranges::MIN_P),
        // The prompt needs at least one cell.
        max_tokens: keys.number(
            "max_tokens",
            default.max_tokens.min(engine.context_tokens / 2),
            &(1..=engine.context_tokens - 1),
        ),
        seed: keys.optional("seed"),
    }
}

fn reflection(keys: &mut Section<'_>, explore: &mut Section<'_>) -> Reflection {
    if keys.forget("explore") {
        keys.problem("explore", "has moved: `explore` is a key of the agent, with the same keys");
    }
    Reflection {
        mode: keys.value("mode", Mode::Background),
        drafts: keys.number("drafts", 4, &ranges::CONTINUATIONS),
        refinements: keys.number("refinements", 4, &(0..=64)),
        rounds: keys.number("rounds", 1, &(0..=8)),
        margin: keys.number("margin", 0.1, &(0.0..=2.0)),
        promising: keys.value("promising", Promising::BestFaulty),
        refine_temperature: keys.number("refine_temperature", 1.0, &ranges::TEMPERATURE),
        critique_tokens: keys.number("critique_tokens", 200, &(1..=4096)),
        latency: keys.seconds("latency_s", 20.0).max(Duration::from_millis(1)),
        tokens: keys.number("tokens", 8192, &(1..=10_000_000)),
        explore: (
            explore.number("drafts", 10, &ranges::CONTINUATIONS),
            explore.number("refinements", 20, &(0..=64)),
        ),
        stop_early: StopEarly {
            enough: explore.number("enough", 2, &(0..=64)),
            give_up: explore.number("give_up", 20, &(0..=128)),
        },
        verifier_weight: keys.number("verifier_weight", 1.0, &(0.0..=1000.0)),
    }
}
