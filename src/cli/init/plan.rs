//! What the written files say about one model: the agent's name, how much context memory has room
//! for, and where settings for a real model differ from the defaults. Pure but for headers that it
//! reads. Used by `init`.

use std::path::Path;

use anyhow::{Context as _, bail};

use super::Tried;
use super::found::Found;
use super::questions::Answers;
use crate::cli::doctor::Model;
use engine::llama::{self, MemoryPlan};
use engine::{EngineConfig, EngineError};
use files::gguf::Gguf;

/// Tokens of context: what is taken when nothing is known, the most, and the least that is tried.
const USUAL_CONTEXT: u32 = 8192;
const MOST_CONTEXT: u32 = 32_768;
const LEAST_CONTEXT: u32 = 1024;
/// llama.cpp rounds a context to this.
const CONTEXT_STEP: u32 = 256;
/// Tokens of an answer.
const MOST_ANSWER: u32 = 1024;
/// The agent's name when that of the model gives none.
const NAMELESS: &str = "assistant";
const MAX_NAME: usize = 40;

/// Everything that is not the same for all models.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// The agent's name.
    pub(super) name: String,
    /// What the agent's file calls the model.
    pub(super) description: String,
    /// As the agent's file names it: below the root relative to it, else whole.
    pub(super) model: String,
    pub(super) context_tokens: u32,
    /// Longest sequence in the model's own training.
    pub(super) model_context: u32,
    pub(super) max_tokens: u32,
    /// What the owner says.
    pub(super) answers: Answers,
}

impl Plan {
    /// For a model that has been tried.
    pub(super) fn new(
        name: Option<String>,
        root: &Path,
        tried: &Tried,
        answers: Answers,
    ) -> anyhow::Result<Self> {
        let Tried { model: Model { path: model, survey, .. }, context_tokens, title } = tried;
        let context_tokens = *context_tokens;
        let description = title.clone().unwrap_or_else(|| titled(model, survey.name.as_deref()));
        let model_context = model_context(model).unwrap_or(context_tokens);
        Ok(Self {
            name: name.unwrap_or_else(|| agent_name(&description)),
            model: path_in(root, model)?,
            context_tokens,
            model_context,
            max_tokens: MOST_ANSWER.min(context_tokens.min(model_context) / 2),
            description,
            answers,
        })
    }
}

/// What people call a model: its file without size of the weights and number of the part. A file
/// whose name says nothing is called what its header says.
fn titled(model: &Path, header: Option<&str>) -> String {
    let file = model.file_name().unwrap_or_default().to_string_lossy();
    let stem = file.strip_suffix(".gguf").unwrap_or(&file);
    let parts: Vec<&str> = stem.rsplitn(4, '-').collect();
    let stem = match parts[..] {
        [count, "of", number, rest] if [count, number].iter().all(|part| is_number(part)) => rest,
        _ => stem,
    };
    let mut title = stem;
    while let Some((rest, last)) = title.rsplit_once(['-', '.'])
        && is_type(last)
    {
        title = rest;
    }
    let says_nothing = ["", "model", "ggml-model"].contains(&&*title.to_lowercase());
    let header = header.map(str::trim).filter(|header| !header.is_empty());
    match header {
        Some(header) if says_nothing || title.starts_with("sha256-") => header.to_owned(),
        _ => title.to_owned(),
    }
}

fn is_number(word: &str) -> bool {
    word.len() == 5 && word.bytes().all(|byte| byte.is_ascii_digit())
}

/// The end of a file's name that says how its weights are stored.
fn is_type(word: &str) -> bool {
    let word = word.to_uppercase();
    let has_digit_after = |start: &&str| {
        word.strip_prefix(*start).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    ["Q", "IQ", "TQ"].iter().any(has_digit_after)
        || ["F32", "F16", "FP16", "BF16", "MXFP4", "NVFP4", "UD", "GGUF"].contains(&&*word)
}

/// An agent's name out of a model's.
pub(super) fn agent_name(title: &str) -> String {
    let mut name = String::new();
    for c in title.to_lowercase().chars() {
        match c {
            'a'..='z' | '0'..='9' | '.' | '_' => name.push(c),
            _ if name.ends_with('-') => {}
            _ => name.push('-'),
        }
    }
    let cut: String = name.trim_start_matches(['-', '.', '_']).chars().take(MAX_NAME).collect();
    let name = cut.trim_end_matches(['-', '.', '_']);
    if name.is_empty() || name == "default" { NAMELESS.to_owned() } else { name.to_owned() }
}

/// A name that the owner has chosen.
pub(super) fn parse_name(name: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty()
        || name == "default"
        || name.starts_with('.')
        || !name.chars().all(is_allowed)
    {
        return Err("letters, digits, '.', '_' and '-' are allowed; \"default\" and a '.' at the \
                    beginning are not"
            .to_owned());
    }
    Ok(name.to_owned())
}

/// The model as seen from the root folder.
fn path_in(root: &Path, model: &Path) -> anyhow::Result<String> {
    let model = std::path::absolute(model).context("find the current folder")?;
    let root = std::path::absolute(root).context("find the current folder")?;
    let real = std::fs::canonicalize(&root).unwrap_or(root.clone());
    let inside = model.strip_prefix(&root).or_else(|_| model.strip_prefix(&real));
    let path = inside.unwrap_or(&model);
    let Some(path) = path.to_str() else {
        bail!(
            "{} is no UTF-8 text, so a YAML file cannot name it; rename the file or link it",
            model.display()
        );
    };
    Ok(path.to_owned())
}

fn model_context(model: &Path) -> Option<u32> {
    let header = Gguf::open(model).ok()?;
    let architecture = header.string("general.architecture")?;
    let tokens = header.unsigned(&format!("{architecture}.context_length"))?;
    Some(u32::try_from(tokens).unwrap_or(u32::MAX))
}

/// The context that is written for a model: what the model can use, within what memory has room for.
pub(super) fn context_tokens(engine: &EngineConfig) -> u32 {
    let model_context = model_context(&engine.model).unwrap_or(USUAL_CONTEXT);
    fitting_context(model_context, |context_tokens| {
        let engine = EngineConfig { context_tokens, ..engine.clone() };
        llama::survey(&engine).ok()?.memory
    })
}

/// The largest that leaves half of main memory to others, training among them; else the largest that
/// fits. Fewer layers on a GPU are no fair price for a longer context.
fn fitting_context(model_context: u32, plan: impl Fn(u32) -> Option<MemoryPlan>) -> u32 {
    let largest = model_context.clamp(USUAL_CONTEXT, MOST_CONTEXT);
    let halves = std::iter::successors(Some(largest), |n| Some(n / 2));
    let sizes = halves.map(|n| n / CONTEXT_STEP * CONTEXT_STEP);
    let plans: Vec<(u32, MemoryPlan)> =
        sizes.take_while(|n| LEAST_CONTEXT <= *n).filter_map(|n| Some((n, plan(n)?))).collect();
    let most_layers = plans.iter().map(|(_, plan)| plan.gpu_layers).max().unwrap_or(0);
    let fits = |share: u64| {
        let fits = |(_, plan): &&(u32, MemoryPlan)| {
            plan.gpu_layers == most_layers
                && plan.host.without_judge() <= plan.host.available / share
        };
        plans.iter().find(fits).map(|(n, _)| *n)
    };
    fits(2).or_else(|| fits(1)).unwrap_or(USUAL_CONTEXT)
}

/// Models in the order in which they are offered: those that leave half of main memory free, the
/// largest first, then the others, the smallest first.
pub(super) fn rank(models: Vec<Found>, engine: &EngineConfig) -> Vec<Found> {
    let leaves_half = |found: &Found| {
        let engine = EngineConfig { model: found.path.clone(), ..engine.clone() };
        let survey = llama::survey(&engine).ok().filter(|survey| survey.refusal.is_none());
        let plan = survey.and_then(|survey| survey.memory);
        plan.is_some_and(|plan| plan.host.without_judge() <= plan.host.available / 2)
    };
    order(models.into_iter().map(|found| (leaves_half(&found), found)).collect())
}

fn order(mut models: Vec<(bool, Found)>) -> Vec<Found> {
    models.sort_by_key(|(leaves_half, found)| {
        let bytes = i128::from(found.bytes);
        (!leaves_half, if *leaves_half { -bytes } else { bytes }, found.source)
    });
    models.into_iter().map(|(_, found)| found).collect()
}

/// Why a file is not served, as an error with its exit code.
pub(super) fn refused(model: &Path, reason: String) -> anyhow::Error {
    EngineError::Load { path: model.to_owned(), reason }.into()
}

#[cfg(test)]
mod tests {
    use super::super::found::Source;
    use super::*;
    use engine::llama::MemoryShare;

    #[test]
    fn an_agent_is_called_after_its_model() {
        for (title, name) in [
            ("SmolLM2 135M Instruct", "smollm2-135m-instruct"),
            ("Qwen3 8B", "qwen3-8b"),
            ("  .Größe // (2)", "gr-e-2"),
            ("default", NAMELESS),
            ("模型", NAMELESS),
        ] {
            assert_eq!(agent_name(title), name);
            parse_name(&agent_name(title)).unwrap();
        }
        let long = agent_name(&"a-".repeat(100));
        assert!(long.len() <= MAX_NAME && parse_name(&long).is_ok(), "{long}");
        for wrong in ["", "default", "a b", ".a", "a/b", "ä"] {
            parse_name(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn a_model_is_called_as_its_file_unless_that_says_nothing() {
        let header = "Smollm2 135M 8k Lc100K Mix1 Ep2";
        for (file, title) in [
            ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
            ("Qwen2.5-7B-Instruct-Q4_K_M-00001-of-00002.gguf", "Qwen2.5-7B-Instruct"),
            ("Qwen3-8B-UD-Q4_K_XL.gguf", "Qwen3-8B"),
            ("gemma-3-1b-it-bf16", "gemma-3-1b-it"),
            ("QwQ-32B.gguf", "QwQ-32B"),
            ("model.gguf", header),
            ("ggml-model-q4_0.gguf", header),
            ("sha256-ab12", header),
        ] {
            assert_eq!(titled(&Path::new("/x").join(file), Some(header)), title);
        }
        assert_eq!(titled(Path::new("/x/model.gguf"), Some(" ")), "model");
        assert_eq!(titled(Path::new("/x/-Q4_0"), None), "");
    }

    #[test]
    fn a_model_below_the_root_is_named_from_there() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert_eq!(path_in(root, &root.join("models/a b.gguf")).unwrap(), "models/a b.gguf");
        assert_eq!(path_in(root, Path::new("/blobs/x")).unwrap(), "/blobs/x");
        let odd: std::ffi::OsString = std::os::unix::ffi::OsStringExt::from_vec(vec![b'/', 0xFF]);
        let error = path_in(root, Path::new(&odd)).unwrap_err().to_string();
        assert!(error.contains("rename the file"), "{error}");
    }

    /// A plan of a machine with this much memory, where a token takes a byte beside the weights.
    fn machine(weights: u64, available: u64) -> impl Fn(u32) -> Option<MemoryPlan> {
        move |n| {
            let host =
                MemoryShare { weights, kv_cache: n.into(), available, ..MemoryShare::default() };
            Some(MemoryPlan { gpu_layers: 0, host, gpu: None, judge_refusal: None })
        }
    }

    #[test]
    fn the_context_is_what_model_and_memory_have_room_for() {
        assert_eq!(fitting_context(8192, machine(0, 1 << 30)), 8192);
        assert_eq!(fitting_context(131_072, machine(0, 1 << 30)), MOST_CONTEXT);
        // A pool for several conversations, each within the model's limit.
        assert_eq!(fitting_context(2048, machine(0, 1 << 30)), USUAL_CONTEXT);
        assert_eq!(fitting_context(40_000, machine(10_000, 40_000)), 8192, "half stays free");
        assert_eq!(fitting_context(40_000, machine(10_000, 15_000)), 4096, "it fits at all");
        assert_eq!(fitting_context(10_000, machine(0, 10_100)), 4864, "whole steps");
        // The start says what is missing.
        assert_eq!(fitting_context(8192, machine(1 << 20, 1 << 10)), USUAL_CONTEXT);
        assert_eq!(fitting_context(8192, |_| None), USUAL_CONTEXT);
        let gpu = |n: u32| {
            let gpu_layers = if n <= 4096 { 33 } else { 20 };
            Some(MemoryPlan { gpu_layers, ..machine(0, 1 << 30)(n)? })
        };
        assert_eq!(fitting_context(32_768, gpu), 4096, "all layers stay on the GPU");
    }

    #[test]
    fn the_largest_model_that_leaves_room_is_offered_first() {
        let found = |bytes: u64| Found {
            path: "x".into(),
            name: bytes.to_string(),
            source: Source::Folder,
            bytes,
            n_parameters: 1,
            quantization: "Q8_0",
        };
        let models = [(true, 3), (false, 90), (true, 7), (false, 40), (true, 5)];
        let ordered = order(models.map(|(leaves_half, bytes)| (leaves_half, found(bytes))).into());
        assert_eq!(ordered.iter().map(|it| it.bytes).collect::<Vec<_>>(), [7, 5, 3, 40, 90]);
    }
}
