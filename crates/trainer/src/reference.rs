//! A cache of the reference policy's log-probs: those of an example are not computed again as long as
//! the policy is the same. Each policy has a file, named by hash, with the examples of the last data
//! set, each by hash. Computes no log-probs. Used by `train`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use protocol::{BaseKind, Job};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tch::{Device, Tensor};

use crate::batch::Sequence;
use crate::data::{Kind, Packed};
use crate::tensors;

/// Raised when the same policy gives other log-probs, or the meaning of the file changes. 2: the
/// tensor `mismatched` had another name.
const FORMAT: u32 = 2;

/// SHA-256 of an example's tokens.
type Key = [u8; 32];

/// The log-probs of an example.
#[derive(Clone, Debug, PartialEq)]
struct Cached {
    /// See [`Packed::reference`].
    logprobs: Vec<f32>,
    /// See [`crate::data::Mismatched::reference`]; 0 where there is none.
    mismatched: f64,
}

/// The file's metadata.
#[derive(Debug, Deserialize, Serialize)]
struct Metadata {
    policy: String,
}

/// The cache of a run's reference policy.
#[derive(Debug)]
pub(crate) struct ReferenceCache {
    /// `None`: nothing is written.
    path: Option<PathBuf>,
    policy: String,
    /// Entries of the file that no example has asked for yet.
    unused: HashMap<Key, Cached>,
    /// Entries of this data set.
    current: HashMap<Key, Cached>,
    is_changed: bool,
}

impl ReferenceCache {
    /// An empty cache for the job's reference policy.
    pub(crate) fn new(job: &Job, device: Device) -> anyhow::Result<Self> {
        let policy = policy(job, device)?;
        let path = job.reference_cache.as_ref();
        let path = path.map(|folder| folder.join(format!("{policy}.safetensors")));
        let (unused, current) = (HashMap::new(), HashMap::new());
        Ok(Self { path, policy, unused, current, is_changed: false })
    }
    /// Reads the file, if there is one. After an error the cache is empty.
    pub(crate) fn read(&mut self) -> anyhow::Result<()> {
        if let Some(path) = self.path.as_ref().filter(|path| path.exists()) {
            self.unused = read(path, &self.policy)?;
        }
        Ok(())
    }
    /// Sets an example's log-probs if they are in the cache.
    pub(crate) fn get(&mut self, example: &mut Packed) -> bool {
        let key = key(example);
        let Some(cached) = self.unused.remove(&key).or_else(|| self.current.get(&key).cloned())
        else {
            return false;
        };
        if cached.logprobs.len() != example.n_targets() {
            return false;
        }
        example.reference.clone_from(&cached.logprobs);
        if let Kind::Single { mismatched: Some(mismatched), .. } = &mut example.kind {
            mismatched.reference = cached.mismatched;
        }
        self.current.insert(key, cached);
        true
    }
    /// Adds the log-probs that were computed of an example.
    pub(crate) fn insert(&mut self, example: &Packed) {
        let mismatched = match &example.kind {
            Kind::Single { mismatched: Some(mismatched), .. } => mismatched.reference,
            _ => 0.0,
        };
        let cached = Cached { logprobs: example.reference.clone(), mismatched };
        self.current.insert(key(example), cached);
        self.is_changed = true;
    }
    /// Writes the entries of this data set, if there are new ones.
    pub(crate) fn save(&mut self) -> anyhow::Result<()> {
        let Some(path) = self.path.as_ref().filter(|_| self.is_changed) else { return Ok(()) };
        let folder = path.parent().expect("a file in a folder");
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let (mut keys, mut lengths) = (Vec::<u8>::new(), Vec::new());
        let (mut logprobs, mut mismatched) = (Vec::<f32>::new(), Vec::<f64>::new());
        for (key, cached) in &self.current {
            keys.extend(key);
            lengths.push(i64::try_from(cached.logprobs.len())?);
            logprobs.extend(&cached.logprobs);
            mismatched.push(cached.mismatched);
        }
        let tensors = [
            ("keys", Tensor::from_slice(&keys)),
            ("lengths", Tensor::from_slice(&lengths)),
            ("logprobs", Tensor::from_slice(&logprobs)),
            ("mismatched", Tensor::from_slice(&mismatched)),
        ]
        .map(|(name, tensor)| (name.to_owned(), tensor));
        tensors::save(path, &Metadata { policy: self.policy.clone() }, &tensors)?;
        self.is_changed = false;
        Ok(())
    }
}

fn read(path: &Path, policy: &str) -> anyhow::Result<HashMap<Key, Cached>> {
    let metadata: Metadata = tensors::metadata(path)?;
    ensure!(metadata.policy == policy, "{} is of another policy", path.display());
    let file: HashMap<String, Tensor> = tensors::load(path)?.into_iter().collect();
    let part = |name: &str| {
        file.get(name).with_context(|| format!("{}: {name} is missing", path.display()))
    };
    let keys = Vec::<u8>::try_from(part("keys")?)?;
    let lengths = Vec::<i64>::try_from(part("lengths")?)?;
    let logprobs = Vec::<f32>::try_from(part("logprobs")?)?;
    let mismatched = Vec::<f64>::try_from(part("mismatched")?)?;
    let is_finite = |logprob: &f32| logprob.is_finite();
    ensure!(logprobs.iter().all(is_finite), "{}: a log-prob is no number", path.display());
    let mut rest = logprobs.as_slice();
    let mut entries = HashMap::new();
    for ((key, length), mismatched) in keys.as_chunks::<32>().0.iter().zip(lengths).zip(mismatched)
    {
        let (own, others) = usize::try_from(length)
            .ok()
            .and_then(|length| rest.split_at_checked(length))
            .with_context(|| format!("{} is too short", path.display()))?;
        entries.insert(*key, Cached { logprobs: own.to_vec(), mismatched });
        rest = others;
    }
    Ok(entries)
}

/// Settings of a job on which the log-probs do not depend. All others count, also future ones.
const IRRELEVANT: [&str; 7] =
    ["objective", "lora", "optimizer", "validation_share", "validations", "max_tokens", "seed"];

/// Hash of everything that the log-probs depend on besides the tokens. Quantized and decoded weights
/// give the same log-probs, weights that are rounded to bf16 do not.
fn policy(job: &Job, device: Device) -> anyhow::Result<String> {
    let sha256 =
        |path: &PathBuf| files::sha256(path).with_context(|| format!("read {}", path.display()));
    let start = job.start.as_ref().map(sha256).transpose()?;
    let mut settings = serde_json::to_value(job.essence())?;
    let settings = settings.as_object_mut().context("a job is an object")?;
    settings.retain(|name, _| !IRRELEVANT.contains(&name.as_str()));
    let is_rounded = job.base_kind == BaseKind::Bf16;
    let all = (FORMAT, settings, start, is_rounded, device == Device::Cpu);
    Ok(files::hex(&Sha256::digest(serde_json::to_vec(&all)?)))
}

fn key(example: &Packed) -> Key {
    let mut digest = Sha256::new();
    let mut add = |sequence: &Sequence| {
        // With their lengths, because different sequences may be equal when concatenated.
        digest.update((sequence.tokens.len() as u64).to_le_bytes());
        digest.update((sequence.from as u64).to_le_bytes());
        sequence.tokens.iter().for_each(|token| digest.update(token.to_le_bytes()));
    };
    example.sequences.iter().for_each(&mut add);
    if let Kind::Single { mismatched: Some(mismatched), .. } = &example.kind {
        add(&mismatched.sequence);
    }
    digest.finalize().into()
}
