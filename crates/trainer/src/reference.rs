//! Log-probs of the reference policy, kept from run to run: what was computed of an example is not
//! computed again as long as the policy is the same. One file a policy, named by hash; in it the
//! examples of the last data set, each by hash. It must not compute them. Used by `train`.

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

/// Raised when the same policy gives other numbers, or the file another meaning.
const FORMAT: u32 = 1;

/// SHA-256 of an example's tokens.
type Key = [u8; 32];

/// What is known of an example.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    /// See [`Packed::reference`].
    logprobs: Vec<f32>,
    /// See [`crate::data::Stranger::reference`]; 0 where there is none.
    stranger: f64,
}

/// The file's text.
#[derive(Debug, Deserialize, Serialize)]
struct About {
    policy: String,
}

/// What is known so far.
#[derive(Debug)]
pub(crate) struct References {
    /// `None`: nothing is kept.
    path: Option<PathBuf>,
    policy: String,
    /// By the file.
    old: HashMap<Key, Known>,
    /// Of this data set.
    current: HashMap<Key, Known>,
    has_news: bool,
}

impl References {
    /// Reads what is known of the job's reference policy.
    pub(crate) fn open(job: &Job, device: Device) -> anyhow::Result<Self> {
        let policy = policy(job, device)?;
        let path = job.reference_cache.as_ref();
        let path = path.map(|folder| folder.join(format!("{policy}.safetensors")));
        let (old, current) = (HashMap::new(), HashMap::new());
        Ok(Self { path, policy, old, current, has_news: false })
    }
    /// Reads the file, if there is one. One that cannot be used changes nothing.
    pub(crate) fn read(&mut self) -> anyhow::Result<()> {
        if let Some(path) = self.path.as_ref().filter(|path| path.exists()) {
            self.old = read(path, &self.policy)?;
        }
        Ok(())
    }
    /// Sets an example's log-probs if they are known.
    pub(crate) fn recall(&mut self, example: &mut Packed) -> bool {
        let key = key(example);
        let n_wanted: usize = example.sequences.iter().map(|s| s.tokens.len() - s.from).sum();
        let Some(known) = self.old.remove(&key).or_else(|| self.current.get(&key).cloned()) else {
            return false;
        };
        if known.logprobs.len() != n_wanted {
            return false;
        }
        example.reference.clone_from(&known.logprobs);
        if let Kind::Single { stranger: Some(stranger), .. } = &mut example.kind {
            stranger.reference = known.stranger;
        }
        self.current.insert(key, known);
        true
    }
    /// Keeps what was computed of an example.
    pub(crate) fn learn(&mut self, example: &Packed) {
        let stranger = match &example.kind {
            Kind::Single { stranger: Some(stranger), .. } => stranger.reference,
            _ => 0.0,
        };
        let known = Known { logprobs: example.reference.clone(), stranger };
        self.current.insert(key(example), known);
        self.has_news = true;
    }
    /// Writes what is known of the examples that were asked for.
    pub(crate) fn save(&mut self) -> anyhow::Result<()> {
        let Some(path) = self.path.as_ref().filter(|_| self.has_news) else { return Ok(()) };
        let folder = path.parent().expect("a file in a folder");
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let (mut keys, mut lengths) = (Vec::<u8>::new(), Vec::new());
        let (mut logprobs, mut strangers) = (Vec::<f32>::new(), Vec::<f64>::new());
        for (key, known) in &self.current {
            keys.extend(key);
            lengths.push(i64::try_from(known.logprobs.len())?);
            logprobs.extend(&known.logprobs);
            strangers.push(known.stranger);
        }
        let tensors = [
            ("keys", Tensor::from_slice(&keys)),
            ("lengths", Tensor::from_slice(&lengths)),
            ("logprobs", Tensor::from_slice(&logprobs)),
            ("strangers", Tensor::from_slice(&strangers)),
        ]
        .map(|(name, tensor)| (name.to_owned(), tensor));
        tensors::save(path, &About { policy: self.policy.clone() }, &tensors)?;
        self.has_news = false;
        Ok(())
    }
}

fn read(path: &Path, policy: &str) -> anyhow::Result<HashMap<Key, Known>> {
    let about: About = tensors::about(path)?;
    ensure!(about.policy == policy, "{} is of another policy", path.display());
    let file: HashMap<String, Tensor> = tensors::load(path)?.into_iter().collect();
    let part = |name: &str| {
        file.get(name).with_context(|| format!("{}: {name} is missing", path.display()))
    };
    let keys = Vec::<u8>::try_from(part("keys")?)?;
    let lengths = Vec::<i64>::try_from(part("lengths")?)?;
    let logprobs = Vec::<f32>::try_from(part("logprobs")?)?;
    let strangers = Vec::<f64>::try_from(part("strangers")?)?;
    let sound = |logprob: &f32| logprob.is_finite();
    ensure!(logprobs.iter().all(sound), "{}: a log-prob is no number", path.display());
    let mut rest = logprobs.as_slice();
    let mut known = HashMap::new();
    for ((key, length), stranger) in keys.as_chunks::<32>().0.iter().zip(lengths).zip(strangers) {
        let (own, others) = usize::try_from(length)
            .ok()
            .and_then(|length| rest.split_at_checked(length))
            .with_context(|| format!("{} is too short", path.display()))?;
        known.insert(*key, Known { logprobs: own.to_vec(), stranger });
        rest = others;
    }
    Ok(known)
}

/// What of a job the log-probs do not depend on. All else counts, also what will be added to it.
const OTHERS: [&str; 7] =
    ["objective", "lora", "optimizer", "validation_share", "validations", "max_tokens", "seed"];

/// Everything that the numbers depend on but the tokens. Quantized and decoded weights are the same
/// numbers; rounded ones are not.
fn policy(job: &Job, device: Device) -> anyhow::Result<String> {
    let sha256 =
        |path: &PathBuf| files::sha256(path).with_context(|| format!("read {}", path.display()));
    let start = job.start.as_ref().map(sha256).transpose()?;
    let mut settings = serde_json::to_value(job.essence())?;
    let settings = settings.as_object_mut().context("a job is an object")?;
    settings.retain(|name, _| !OTHERS.contains(&name.as_str()));
    let is_rounded = job.base_kind == BaseKind::Bf16;
    let all = (FORMAT, settings, start, is_rounded, device == Device::Cpu);
    Ok(files::hex(&Sha256::digest(serde_json::to_vec(&all)?)))
}

fn key(example: &Packed) -> Key {
    let mut digest = Sha256::new();
    let mut add = |sequence: &Sequence| {
        // Lengths keep apart what would be the same when joined.
        digest.update((sequence.tokens.len() as u64).to_le_bytes());
        digest.update((sequence.from as u64).to_le_bytes());
        sequence.tokens.iter().for_each(|token| digest.update(token.to_le_bytes()));
    };
    example.sequences.iter().for_each(&mut add);
    if let Kind::Single { stranger: Some(stranger), .. } = &example.kind {
        add(&stranger.sequence);
    }
    digest.finalize().into()
}
