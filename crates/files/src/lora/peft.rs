//! A LoRA adapter as a PEFT folder: `adapter_config.json` and `adapter_model.safetensors`, with the
//! names of `transformers` and rows in its order. What PEFT can do and a GGUF cannot is refused by
//! name: an adapter that is taken computes what it computed there. Used by `reflectd export` and by
//! `learn::import`.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;

use half::{bf16, f16};
use regex::Regex;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::names::{Names, Rows};
use super::{Adapter, BASE_KEY, LoraError, Matrix, Pair};
use crate::gguf::Gguf;

/// What an adapter is.
pub const CONFIG: &str = "adapter_config.json";
/// Its numbers.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before the name of a module.
const ROOT: &str = "base_model.model.";
/// Larger ones are no adapters; this bounds what a file can make us allocate.
const MAX_BYTES: u64 = 16 << 30;
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Heads of a base whose rows are permuted by head.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Heads {
    queries: usize,
    keys: usize,
}

impl Heads {
    /// Those of a base, by its header.
    pub fn of(base: &Gguf) -> Result<Self, LoraError> {
        let architecture = base.string("general.architecture").unwrap_or_default();
        let count = |key: &str| {
            let key = format!("{architecture}.attention.{key}");
            let Some(value) = base.metadata(&key) else { return Ok(None) };
            let heads = base.unsigned(&key).and_then(|n| usize::try_from(n).ok());
            let heads = heads.filter(|heads| 0 < *heads);
            heads.map(Some).ok_or_else(|| {
                LoraError::refused(base.path(), format!("{key} is {value:?}, not one number"))
            })
        };
        let queries = count("head_count")?;
        let missing = || LoraError::refused(base.path(), "it does not say how many heads it has");
        let queries = queries.ok_or_else(missing)?;
        Ok(Self { queries, keys: count("head_count_kv")?.unwrap_or(queries) })
    }

    /// `None`: rows of this kind lie alike in both worlds.
    fn permuted(self, rows: Rows) -> Option<usize> {
        match rows {
            Rows::Same => None,
            Rows::QueryHeads => Some(self.queries),
            Rows::KeyHeads => Some(self.keys),
        }
    }
}

/// Row i of a half s of a head is row 2 i + s of that head in the GGUF.
fn to_gguf(matrix: &Matrix, n_heads: usize) -> Matrix {
    let half = matrix.n_rows() / n_heads / 2;
    matrix.reordered(|row| {
        let (head, within) = (row / (2 * half), row % (2 * half));
        head * 2 * half + within % 2 * half + within / 2
    })
}

fn from_gguf(matrix: &Matrix, n_heads: usize) -> Matrix {
    let half = matrix.n_rows() / n_heads / 2;
    matrix.reordered(|row| {
        let (head, within) = (row / (2 * half), row % (2 * half));
        head * 2 * half + within % half * 2 + within / half
    })
}

/// Rows of whole heads with two halves.
fn fits_heads(matrix: &Matrix, n_heads: usize) -> bool {
    0 < matrix.n_rows() && matrix.n_rows().is_multiple_of(2 * n_heads)
}

/// Writes the two files into an existing folder. `base_name` is what the base is called in
/// `transformers`: a folder or a name on a hub.
pub fn write(
    adapter: &Adapter,
    base: &Gguf,
    base_name: Option<&str>,
    folder: &Path,
) -> Result<(), LoraError> {
    let names = names(base.path(), &adapter.architecture)?;
    let heads = Heads::of(base)?;
    let mut tensors = BTreeMap::new();
    let mut modules = BTreeMap::new();
    for (tensor, pair) in &adapter.pairs {
        let unknown = || {
            let reason = format!("{} has no name for its tensor {tensor}", names.class);
            LoraError::refused(base.path(), reason)
        };
        let (module, rows) = names.module(tensor).ok_or_else(unknown)?;
        let b = match heads.permuted(rows) {
            None => pair.b.clone(),
            Some(n) if fits_heads(&pair.b, n) => from_gguf(&pair.b, n),
            Some(n) => {
                let reason = format!("{tensor} has {} rows for {n} heads", pair.b.n_rows());
                return Err(LoraError::refused(base.path(), reason));
            }
        };
        for (half, matrix) in [("A", &pair.a), ("B", &b)] {
            let bytes: Vec<u8> = matrix.values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let shape = vec![matrix.n_rows(), matrix.width];
            tensors.insert(format!("{ROOT}{module}.lora_{half}.weight"), (shape, bytes));
        }
        modules.insert(module, pair.rank());
    }
    let views: BTreeMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(name, (shape, bytes))| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
            (name.as_str(), view.expect("a matrix has as many bytes as its shape says"))
        })
        .collect();
    let mut about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    about.extend(adapter.base_sha256.clone().map(|sha256| (BASE_KEY.to_owned(), sha256)));
    let bytes = safetensors::serialize(views, Some(about)).map_err(io::Error::other)?;
    write_file(&folder.join(WEIGHTS), &bytes)?;
    let config = config(adapter, names, base_name, &modules);
    let mut text = serde_json::to_string_pretty(&config).expect("a config is plain data");
    text.push('\n');
    Ok(write_file(&folder.join(CONFIG), text.as_bytes())?)
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = std::fs::File::create_new(path)?;
    io::Write::write_all(&mut file, bytes)
}

fn config(
    adapter: &Adapter,
    names: &Names,
    base_name: Option<&str>,
    modules: &BTreeMap<String, usize>,
) -> Value {
    // The rank of most is the rank; the others are named.
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for rank in modules.values() {
        *counts.entry(*rank).or_default() += 1;
    }
    let rank = counts.into_iter().max_by_key(|(_, count)| *count).map_or(0, |(rank, _)| rank);
    let odd: Map<String, Value> = modules
        .iter()
        .filter(|(_, other)| **other != rank)
        .map(|(module, other)| (module.replace('.', "\\."), json!(other)))
        .collect();
    let is_used = |module: &str| modules.keys().any(|name| name.ends_with(module));
    let used = names.linears.iter().filter(|linear| is_used(linear.module));
    let targets: Vec<&str> =
        used.map(|linear| linear.module.rsplit('.').next().unwrap_or_default()).collect();
    // PEFT's own is an integer.
    let alpha = if adapter.alpha.fract() == 0.0 && adapter.alpha < 1e9 {
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and below 2^30")]
        let whole = adapter.alpha as i64;
        json!(whole)
    } else {
        json!(adapter.alpha)
    };
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": true,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets,
        "rank_pattern": odd,
        "alpha_pattern": {},
        "modules_to_save": null,
        "fan_in_fan_out": false,
        "use_rslora": false,
        "use_dora": false,
        "init_lora_weights": true,
    })
}

/// `adapter_config.json`, as far as it says what is computed.
#[derive(Debug, Deserialize)]
struct Config {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    rank_pattern: Option<Map<String, Value>>,
    #[serde(default)]
    alpha_pattern: Option<Map<String, Value>>,
    #[serde(default)]
    init_lora_weights: Option<Value>,
    #[serde(default)]
    bias: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Keys that say how an adapter was trained or where, and nothing of what it computes.
const HARMLESS: [&str; 19] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "velora_config",
];

/// Initialisations that change the base, so that the adapter fits no other.
const OTHER_BASE: [&str; 5] = ["corda", "loftq", "lora_ga", "olora", "pissa"];

impl Config {
    /// What it has that a GGUF adapter cannot have.
    fn refusal(&self) -> Option<String> {
        if self.peft_type != "LORA" {
            return Some(format!("peft_type is {}, and only LORA is known", self.peft_type));
        }
        if let Some(bias) = self.bias.as_deref().filter(|bias| *bias != "none") {
            return Some(format!("bias is {bias:?}: trained biases have no place in an adapter"));
        }
        if let Some(Value::String(kind)) = &self.init_lora_weights
            && OTHER_BASE.iter().any(|other| kind.to_lowercase().starts_with(other))
        {
            return Some(format!(
                "init_lora_weights is {kind:?}, which changes the base: convert the adapter to a \
                 plain one with PEFT first"
            ));
        }
        if self.r == 0 || !self.lora_alpha.is_finite() || self.lora_alpha <= 0.0 {
            return Some(format!("r is {} and lora_alpha {}", self.r, self.lora_alpha));
        }
        let is_set = |value: &Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(entries) => !entries.is_empty(),
            Value::Object(entries) => !entries.is_empty(),
            _ => true,
        };
        let mut set = self.rest.iter().filter(|(_, value)| is_set(value));
        let (key, value) = set.find(|(key, _)| !HARMLESS.contains(&key.as_str()))?;
        let value: String = value.to_string().chars().take(60).collect();
        Some(match key.as_str() {
            "use_dora" => "use_dora is set: DoRA scales the base's columns too".to_owned(),
            "modules_to_save" => {
                format!("modules_to_save is {value}: whole layers have no place in an adapter")
            }
            key => format!("{key} is {value}, which is not known here"),
        })
    }

    /// Rank and scale of one module.
    fn of(&self, patterns: &Patterns, module: &str) -> (f64, f64) {
        let rank = find(&patterns.ranks, module).unwrap_or(self.r as f64);
        let alpha = find(&patterns.alphas, module).unwrap_or(self.lora_alpha);
        (rank, alpha / if self.use_rslora { rank.sqrt() } else { rank })
    }
}

/// The patterns as PEFT matches them: the first that fits counts.
struct Patterns {
    ranks: Vec<(Regex, f64)>,
    alphas: Vec<(Regex, f64)>,
}

fn compile(patterns: Option<&Map<String, Value>>) -> Result<Vec<(Regex, f64)>, String> {
    let compiled = patterns.into_iter().flatten().map(|(key, value)| {
        let number = value.as_f64().filter(|number| 0.0 < *number);
        match (Regex::new(&format!(r"^(.*\.)?({key})$")), number) {
            (Ok(regex), Some(number)) => Ok((regex, number)),
            _ => Err(format!("its pattern {key:?}: {value} is not understood")),
        }
    });
    compiled.collect()
}

fn find(patterns: &[(Regex, f64)], module: &str) -> Option<f64> {
    patterns.iter().find(|(regex, _)| regex.is_match(module)).map(|(_, number)| *number)
}

/// Whether a path looks like one.
pub fn is_folder(path: &Path) -> bool {
    path.join(CONFIG).is_file()
}

/// Reads a PEFT folder as an adapter of this base.
pub fn read(folder: &Path, base: &Gguf) -> Result<Adapter, LoraError> {
    let refused = |reason: String| LoraError::refused(folder, reason);
    let text = bytes(&folder.join(CONFIG), MAX_CONFIG_BYTES)?;
    let config: Config = serde_json::from_slice(&text)
        .map_err(|error| refused(format!("{CONFIG} is not understood: {error}")))?;
    if let Some(reason) = config.refusal() {
        return Err(refused(reason));
    }
    let path = folder.join(WEIGHTS);
    if !path.exists() && folder.join("adapter_model.bin").exists() {
        let reason = "it has adapter_model.bin, which is a program: save it as safetensors";
        return Err(refused(reason.to_owned()));
    }
    let file = bytes(&path, MAX_BYTES)?;
    let unsound = |error| refused(format!("{WEIGHTS} is not sound: {error}"));
    let weights = SafeTensors::deserialize(&file).map_err(unsound)?;
    let (_, about) = SafeTensors::read_metadata(&file).map_err(unsound)?;
    let base_sha256 = about.metadata().as_ref().and_then(|about| about.get(BASE_KEY)).cloned();
    let architecture = base.string("general.architecture").unwrap_or_default();
    let adapter = Reading {
        config: &config,
        names: names(base.path(), architecture)?,
        heads: Heads::of(base)?,
    }
    .adapter(&weights)
    .map_err(refused)?;
    Ok(Adapter { base_sha256, ..adapter })
}

fn names(base: &Path, architecture: &str) -> Result<&'static Names, LoraError> {
    Names::of(architecture).ok_or_else(|| {
        let known: Vec<&str> = super::names::ALL.iter().map(|names| names.architecture).collect();
        let reason = format!(
            "the names that transformers has for architecture {architecture:?} are not known here \
             ({} are)",
            known.join(", ")
        );
        LoraError::refused(base, reason)
    })
}

fn bytes(path: &Path, most: u64) -> Result<Vec<u8>, LoraError> {
    let read = || {
        let file = std::fs::File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        let mut bytes = Vec::new();
        if io::Read::read_to_end(&mut io::Read::take(file, most + 1), &mut bytes)? as u64 > most {
            return Err(io::Error::other(format!("it has more than {most} bytes")));
        }
        Ok(bytes)
    };
    read().map_err(|source| LoraError::Read { path: path.to_owned(), source })
}

/// What turns PEFT's tensors into pairs.
struct Reading<'a> {
    config: &'a Config,
    names: &'static Names,
    heads: Heads,
}

impl Reading<'_> {
    fn adapter(&self, weights: &SafeTensors<'_>) -> Result<Adapter, String> {
        let mut halves: BTreeMap<String, [Option<Matrix>; 2]> = BTreeMap::new();
        for (name, view) in weights.iter() {
            let (module, half) = parse(name)?;
            halves.entry(module.to_owned()).or_default()[half] = Some(matrix(name, &view)?);
        }
        let patterns = Patterns {
            ranks: compile(self.config.rank_pattern.as_ref())?,
            alphas: compile(self.config.alpha_pattern.as_ref())?,
        };
        let mut pairs = BTreeMap::new();
        let mut scales = BTreeMap::new();
        for (module, halves) in halves {
            let [Some(a), Some(b)] = halves else {
                return Err(format!("{module} has one half of a LoRA pair"));
            };
            let (rank, scale) = self.config.of(&patterns, &module);
            let is_rank = |n: usize| (n as f64 - rank).abs() < 0.5;
            if !is_rank(a.n_rows()) || !is_rank(b.width) {
                return Err(format!(
                    "{module} should have rank {rank} by {CONFIG}, and its matrices have {} and {}",
                    a.n_rows(),
                    b.width
                ));
            }
            let (tensor, pair) = self.pair(&module, a, b)?;
            if pairs.insert(tensor.clone(), pair).is_some() {
                return Err(format!("two of its modules are {tensor}"));
            }
            scales.insert(tensor, scale);
        }
        // A GGUF has one alpha: that of the first pair, and what differs goes into the other B.
        let first = pairs.first_key_value().zip(scales.first_key_value());
        let ((_, pair), (_, scale)) = first.ok_or("it has no tensors")?;
        let alpha = scale * pair.rank() as f64;
        // As the file will have it, so that the others are scaled to what is stored.
        #[expect(clippy::cast_possible_truncation, reason = "the format's float is 32 bits wide")]
        let alpha = f64::from(alpha as f32);
        for (tensor, pair) in &mut pairs {
            let factor = scales[tensor] / (alpha / pair.rank() as f64);
            if (factor - 1.0).abs() > f64::from(f32::EPSILON) {
                #[expect(clippy::cast_possible_truncation, reason = "the matrices are f32")]
                pair.b.values.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
            }
        }
        let architecture = self.names.architecture.to_owned();
        Ok(Adapter { architecture, alpha, base_sha256: None, pairs })
    }

    fn pair(&self, module: &str, a: Matrix, b: Matrix) -> Result<(String, Pair), String> {
        let (tensor, rows) = self.names.tensor(module).ok_or_else(|| {
            let known: Vec<&str> = self.names.linears.iter().map(|linear| linear.module).collect();
            format!(
                "it adapts {module}; of {} these layers can be adapted here: {}",
                self.names.class,
                known.join(", ")
            )
        })?;
        let b = match self.heads.permuted(rows) {
            None => b,
            Some(n) if fits_heads(&b, n) => to_gguf(&b, n),
            Some(n) => return Err(format!("{module} has {} rows for {n} heads", b.n_rows())),
        };
        Ok((tensor, Pair { a, b }))
    }
}

/// Module and half of a tensor's name.
fn parse(name: &str) -> Result<(&str, usize), String> {
    let inner = name.strip_prefix(ROOT).unwrap_or(name);
    for (half, ends) in
        [[".lora_A.weight", ".lora_A.default.weight"], [".lora_B.weight", ".lora_B.default.weight"]]
            .iter()
            .enumerate()
    {
        if let Some(module) = ends.iter().find_map(|end| inner.strip_suffix(end)) {
            return Ok((module, half));
        }
    }
    let why = if name.contains("lora_magnitude_vector") {
        "belongs to DoRA"
    } else if name.contains("lora_embedding") {
        "adapts an embedding"
    } else if name.contains("lora_") && name.rsplit('.').next() == Some("bias") {
        "is a trained bias"
    } else {
        "is no half of a LoRA pair; whole layers have no place in an adapter"
    };
    Err(format!("its tensor {name} {why}"))
}

fn matrix(name: &str, view: &TensorView<'_>) -> Result<Matrix, String> {
    let &[_, width] = view.shape() else {
        return Err(format!(
            "its tensor {name} has shape {:?}, not that of a matrix",
            view.shape()
        ));
    };
    let data = view.data();
    let halves = || data.as_chunks::<2>().0.iter().copied();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => halves().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => halves().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        other => return Err(format!("its tensor {name} has numbers of type {other:?}")),
    };
    if width == 0 || values.is_empty() {
        return Err(format!("its tensor {name} is empty"));
    }
    if !values.iter().all(|value| value.is_finite()) {
        return Err(format!("its tensor {name} has values that are not finite"));
    }
    Ok(Matrix { width, values })
}

#[cfg(test)]
mod tests;
