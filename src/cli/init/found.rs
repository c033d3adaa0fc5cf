//! Chat models that are on this machine already: in the caches of Ollama, LM Studio and Hugging Face,
//! in the cache of `init --sample`, and in the current folder. Reads headers of files and manifests,
//! changes nothing. Used by `init`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::sample;
use files::gguf::{self, Gguf, Parts, TensorInfo};

/// Ollama keeps its models here when its service runs as a user of its own.
const OLLAMA_SERVICE: &str = "/usr/share/ollama/.ollama/models";
/// Named registries and namespaces are left out of the names that people type.
const OLLAMA_DEFAULTS: [&str; 2] = ["registry.ollama.ai/", "library/"];
/// Manifests are some hundred bytes long.
const MAX_MANIFEST: u64 = 1 << 20;
/// Folders below folders, and files in all of them: a cache has fewer.
const MAX_DEPTH: usize = 6;
const MAX_FILES: usize = 100_000;

/// Who has brought a model to this machine.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(super) enum Source {
    #[serde(rename = "ollama")]
    Ollama,
    #[serde(rename = "lm studio")]
    LmStudio,
    #[serde(rename = "hugging face")]
    HuggingFace,
    #[serde(rename = "sample")]
    Sample,
    #[serde(rename = "folder")]
    Folder,
}

impl Source {
    /// For people.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Ollama => "Ollama",
            Self::LmStudio => "LM Studio",
            Self::HuggingFace => "Hugging Face",
            Self::Sample => "init --sample",
            Self::Folder => "this folder",
        }
    }
}

/// A file that looks like a chat model. Whether it serves is not known yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Found {
    /// What is given to llama.cpp; of a model in several files the first.
    pub(super) path: PathBuf,
    /// What people call it.
    pub(super) name: String,
    pub(super) source: Source,
    /// All of its files.
    pub(super) bytes: u64,
    /// Values in all of its tensors.
    pub(super) n_parameters: u64,
    /// As people write it: `Q4_K_M`.
    pub(super) quantization: &'static str,
}

/// What was found, and what was seen and is not offered.
#[derive(Debug, Default)]
pub(super) struct Search {
    pub(super) models: Vec<Found>,
    /// GGUF files that are no chat models, and folders that cannot be read, with the reason.
    pub(super) refused: Vec<(PathBuf, String)>,
}

/// Folders in which models may lie. One that is not there is no error.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Locations {
    pub(super) ollama: Vec<PathBuf>,
    pub(super) lm_studio: Vec<PathBuf>,
    pub(super) hugging_face: Vec<PathBuf>,
    pub(super) sample: Option<PathBuf>,
    pub(super) folders: Vec<PathBuf>,
}

impl Locations {
    /// Of the user whose environment this is.
    pub(super) fn of(
        variable: impl Fn(&str) -> Option<OsString>,
        current: &Path,
        root: &Path,
    ) -> Self {
        let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = set("HOME");
        let in_home = |path: &str| home.as_ref().map(|home| home.join(path));

        let ollama = match set("OLLAMA_MODELS") {
            Some(models) => vec![models],
            None => in_home(".ollama/models").into_iter().chain([OLLAMA_SERVICE.into()]).collect(),
        };

        let moved = in_home(".lmstudio-home-pointer").and_then(|pointer| first_line(&pointer));
        let lm_studio_homes = [moved, in_home(".lmstudio"), in_home(".cache/lm-studio")];
        let mut lm_studio = Vec::new();
        for folder in lm_studio_homes.into_iter().flatten() {
            lm_studio.extend(lm_studio_downloads(&folder.join("settings.json")));
            lm_studio.push(folder.join("models"));
        }

        let cache = set("XDG_CACHE_HOME").or_else(|| in_home(".cache"));
        let hugging_face = set("HF_HUB_CACHE")
            .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(set("HF_HOME")?.join("hub")))
            .or_else(|| Some(cache.as_ref()?.join("huggingface/hub")));

        let mut folders = vec![current.to_owned()];
        if fs::canonicalize(root).ok() != fs::canonicalize(current).ok() {
            folders.push(root.to_owned());
        }
        Self {
            ollama,
            lm_studio,
            hugging_face: hugging_face.into_iter().collect(),
            sample: sample::folder(&variable),
            folders,
        }
    }

    /// All of them, for an error that says where nothing was found.
    pub(super) fn all(&self) -> impl Iterator<Item = &Path> {
        let Self { ollama, lm_studio, hugging_face, sample: _, folders } = self;
        [ollama, lm_studio, hugging_face, folders].into_iter().flatten().map(PathBuf::as_path)
    }
}

/// A folder that LM Studio was told to keep its models in.
fn lm_studio_downloads(settings: &Path) -> Option<PathBuf> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Settings {
        downloads_folder: Option<PathBuf>,
    }
    serde_json::from_slice::<Settings>(&small_file(settings)?).ok()?.downloads_folder
}

fn first_line(path: &Path) -> Option<PathBuf> {
    let text = String::from_utf8(small_file(path)?).ok()?;
    text.lines().next().map(str::trim).filter(|line| !line.is_empty()).map(PathBuf::from)
}

/// `None` when it cannot be read, or is longer than any file that is looked for.
fn small_file(path: &Path) -> Option<Vec<u8>> {
    let file = File::open(path).ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.len() > MAX_MANIFEST {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_MANIFEST).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Looks everywhere. A file that several caches hold is listed once.
pub(super) fn search(locations: &Locations) -> Search {
    let mut looking = Looking::default();
    for models in &locations.ollama {
        looking.ollama(models);
    }
    for models in &locations.lm_studio {
        looking.tree(models, Source::LmStudio, MAX_DEPTH);
    }
    for hub in &locations.hugging_face {
        looking.hugging_face(hub);
    }
    if let Some(folder) = &locations.sample {
        looking.tree(folder, Source::Sample, MAX_DEPTH);
    }
    for folder in &locations.folders {
        // Deeper folders are not this folder's.
        looking.tree(folder, Source::Folder, 1);
    }
    looking.search
}

#[derive(Default)]
struct Looking {
    search: Search,
    /// Real paths of the files that were looked at.
    seen: BTreeSet<PathBuf>,
}

impl Looking {
    /// `manifests/REGISTRY/NAMESPACE/MODEL/TAG` names a blob by its hash: `blobs/sha256-...`.
    /// Newer versions write to `manifests-v2` and read both.
    fn ollama(&mut self, models: &Path) {
        for name in ["manifests-v2", "manifests"] {
            let manifests = models.join(name);
            for manifest in self.files(&manifests, MAX_DEPTH) {
                let Ok(relative) = manifest.strip_prefix(&manifests) else { continue };
                let name = ollama_name(relative);
                let blobs = small_file(&manifest).map(|json| ollama_blobs(&json, models));
                for blob in blobs.unwrap_or_default() {
                    self.look(&blob, &name, Source::Ollama);
                }
            }
        }
    }

    /// `models--ORGANISATION--NAME/snapshots/REVISION/FILE`, where a file is a link to a blob. The
    /// link is kept: its name says which part of a model in several files it is.
    fn hugging_face(&mut self, hub: &Path) {
        for repository in self.entries(hub) {
            let name = repository.file_name().unwrap_or_default().to_string_lossy();
            let Some(name) = name.strip_prefix("models--") else { continue };
            let name = name.replace("--", "/");
            for file in self.files(&repository.join("snapshots"), MAX_DEPTH) {
                let name = format!("{name} {}", file_name(&file));
                self.look(&file, &name, Source::HuggingFace);
            }
        }
    }

    /// Files in a folder and below it.
    fn tree(&mut self, folder: &Path, source: Source, depth: usize) {
        for file in self.files(folder, depth) {
            let name = match source {
                Source::LmStudio => {
                    file.strip_prefix(folder).unwrap_or(&file).display().to_string()
                }
                _ => file_name(&file),
            };
            self.look(&file, &name, source);
        }
    }

    /// Notes a file that is a GGUF.
    fn look(&mut self, path: &Path, name: &str, source: Source) {
        let Ok(real) = fs::canonicalize(path) else { return };
        if !self.seen.insert(real) || !is_gguf(path) {
            return;
        }
        match facts(path) {
            Ok(Some(Facts { bytes, n_parameters, quantization })) => {
                let (path, name) = (path.to_owned(), name.to_owned());
                self.search.models.push(Found {
                    path,
                    name,
                    source,
                    bytes,
                    n_parameters,
                    quantization,
                });
            }
            Ok(None) => {}
            Err(reason) => self.search.refused.push((path.to_owned(), reason)),
        }
    }

    /// The entries of a folder in order; none of one that is not there. Hidden ones are left out:
    /// they are other programs' working files.
    fn entries(&mut self, folder: &Path) -> Vec<PathBuf> {
        let mut entries: Vec<PathBuf> = match fs::read_dir(folder) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                self.search.refused.push((folder.to_owned(), error.to_string()));
                Vec::new()
            }
        };
        entries.retain(|path| !file_name(path).starts_with('.'));
        entries.sort();
        entries
    }

    /// Files below a folder, links followed. A link back up is followed once.
    fn files(&mut self, folder: &Path, depth: usize) -> Vec<PathBuf> {
        let mut visited = BTreeSet::new();
        let mut files = Vec::new();
        let mut folders = vec![(folder.to_owned(), depth)];
        while let Some((folder, depth)) = folders.pop() {
            let is_new = fs::canonicalize(&folder).is_ok_and(|real| visited.insert(real));
            if !is_new {
                continue;
            }
            for path in self.entries(&folder) {
                match fs::metadata(&path) {
                    Ok(metadata) if metadata.is_dir() && 0 < depth => {
                        folders.push((path, depth - 1));
                    }
                    Ok(metadata) if metadata.is_file() && files.len() < MAX_FILES => {
                        files.push(path);
                    }
                    _ => {}
                }
            }
        }
        files.sort();
        files
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// `registry.ollama.ai/library/qwen3/8b` is what people call `qwen3:8b`.
fn ollama_name(manifest: &Path) -> String {
    let path = manifest.to_string_lossy();
    let mut name = path.as_ref();
    for default in OLLAMA_DEFAULTS {
        name = name.strip_prefix(default).unwrap_or(name);
    }
    match name.rsplit_once('/') {
        Some((model, tag)) => format!("{model}:{tag}"),
        None => name.to_owned(),
    }
}

/// A manifest, or a list of manifests of which an entry may be the hash of another file.
#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
    #[serde(default)]
    manifests: Vec<Self>,
    digest: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    digest: String,
}

/// Paths of the weights that a manifest names; templates, licences and image projectors are other
/// layers.
fn ollama_blobs(json: &[u8], models: &Path) -> Vec<PathBuf> {
    let blob = |digest: &str| {
        let hash = digest.strip_prefix("sha256:").or_else(|| digest.strip_prefix("sha256-"))?;
        let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hash.then(|| models.join("blobs").join(format!("sha256-{hash}")))
    };
    let weights = |manifest: &Manifest| -> Vec<PathBuf> {
        let layers = manifest.layers.iter();
        let models =
            layers.filter(|layer| layer.media_type == "application/vnd.ollama.image.model");
        models.filter_map(|layer| blob(&layer.digest)).collect()
    };
    let Ok(manifest) = serde_json::from_slice::<Manifest>(json) else { return Vec::new() };
    let mut found = weights(&manifest);
    for child in &manifest.manifests {
        found.extend(weights(child));
        let file = child.digest.as_deref().filter(|_| child.layers.is_empty()).and_then(blob);
        let other = file.and_then(|file| small_file(&file));
        let other = other.and_then(|json| serde_json::from_slice::<Manifest>(&json).ok());
        found.extend(other.iter().flat_map(weights));
    }
    found
}

fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == *gguf::MAGIC
}

struct Facts {
    bytes: u64,
    n_parameters: u64,
    quantization: &'static str,
}

/// What the header says. `None` for a later part of a model, whose first part stands for it; an
/// error for what no chat can be had with.
fn facts(path: &Path) -> Result<Option<Facts>, String> {
    let header = Gguf::open(path).map_err(|error| match error {
        gguf::GgufError::Io { source, .. } => source.to_string(),
        gguf::GgufError::Malformed { reason, .. } => reason,
        other @ gguf::GgufError::Unsupported { .. } => other.to_string(),
    })?;
    if header.unsigned("split.no").unwrap_or(0) != 0 {
        return Ok(None);
    }
    let kind = header.string("general.type").unwrap_or("model");
    if header.string("general.architecture") == Some("clip") || kind == "mmproj" {
        return Err("it is the image part of another model".to_owned());
    }
    if kind != "model" {
        return Err(format!("it is of type {kind:?} and no model by itself"));
    }
    if header.string("tokenizer.chat_template").is_none() {
        let advice = "use the chat or instruct version of the model";
        return Err(format!("it has no chat template; {advice}"));
    }
    let parts = Parts::open(path).map_err(|error| error.to_string())?;
    let n_parameters = parts.tensors().map(TensorInfo::n_values).fold(0, u64::saturating_add);
    if n_parameters == 0 {
        return Err("it is a vocabulary without weights".to_owned());
    }
    let bytes = gguf::model_size(path).map_err(|error| error.to_string())?;
    let file_type = header.unsigned("general.file_type");
    Ok(Some(Facts { bytes, n_parameters, quantization: quantization(file_type) }))
}

/// `enum llama_ftype` as people write it.
fn quantization(file_type: Option<u64>) -> &'static str {
    match file_type {
        Some(0) => "F32",
        Some(1) => "F16",
        Some(2) => "Q4_0",
        Some(3) => "Q4_1",
        Some(7) => "Q8_0",
        Some(8) => "Q5_0",
        Some(9) => "Q5_1",
        Some(10) => "Q2_K",
        Some(11) => "Q3_K_S",
        Some(12) => "Q3_K_M",
        Some(13) => "Q3_K_L",
        Some(14) => "Q4_K_S",
        Some(15) => "Q4_K_M",
        Some(16) => "Q5_K_S",
        Some(17) => "Q5_K_M",
        Some(18) => "Q6_K",
        Some(19) => "IQ2_XXS",
        Some(20) => "IQ2_XS",
        Some(21) => "Q2_K_S",
        Some(22) => "IQ3_XS",
        Some(23) => "IQ3_XXS",
        Some(24) => "IQ1_S",
        Some(25) => "IQ4_NL",
        Some(26) => "IQ3_S",
        Some(27) => "IQ3_M",
        Some(28) => "IQ2_S",
        Some(29) => "IQ2_M",
        Some(30) => "IQ4_XS",
        Some(31) => "IQ1_M",
        Some(32) => "BF16",
        Some(36) => "TQ1_0",
        Some(37) => "TQ2_0",
        Some(38) => "MXFP4",
        Some(39) => "NVFP4",
        Some(40) => "Q1_0",
        Some(41) => "Q2_0",
        _ => "?",
    }
}

#[cfg(test)]
mod tests;
