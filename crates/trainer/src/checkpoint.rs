//! The state of a run between two steps, in a file: a run that is resumed from it ends with the same
//! bytes as one that was never interrupted. What follows from the job and its seed (order of the data,
//! learning rate, reference) is not in it. The file names its job by hash. Used by `train`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use protocol::{CHECKPOINT, Job};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tch::Tensor;

use crate::optimizer::AdamW;
use crate::{clock, tensors};

/// Raised when the meaning of the file or the order of the data changes.
const FORMAT: u32 = 1;

/// Everything that a step changes.
#[derive(Debug)]
pub(crate) struct State {
    /// Steps done.
    pub step: usize,
    /// Of the adapter, and with them the moments.
    pub optimizer: AdamW,
    pub best: Option<Best>,
}

/// The weights with the smallest validation loss so far.
#[derive(Debug)]
pub(crate) struct Best {
    pub step: usize,
    /// `None`: nothing is validated.
    pub loss: Option<f64>,
    pub weights: Vec<Tensor>,
}

/// The file's metadata.
#[derive(Debug, Deserialize, Serialize)]
struct Metadata {
    /// [`identity`] of the job.
    job: String,
    step: usize,
    /// Step and loss.
    best: Option<(usize, Option<f64>)>,
}

/// The checkpoint file of a run.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    path: PathBuf,
    job: String,
    interval: Duration,
    /// When the file was written last, or could not be.
    written: Duration,
    /// The step in the file.
    step: usize,
}

impl Checkpoint {
    /// Nothing is read or written yet.
    pub(crate) fn new(job: &Job) -> anyhow::Result<Self> {
        Ok(Self {
            path: job.out.join(CHECKPOINT),
            job: identity(job)?,
            interval: Duration::try_from_secs_f64(job.checkpoint_s).context("checkpoint_s")?,
            written: clock::active(),
            step: 0,
        })
    }
    /// Whether the job's interval has passed since the last checkpoint.
    pub(crate) fn is_due(&self) -> bool {
        self.interval <= clock::since(self.written)
    }
    /// Whether this state is in the file.
    pub(crate) fn has(&self, state: &State) -> bool {
        self.step == state.step
    }
    /// Writes the state, in place of the last one.
    pub(crate) fn save(&mut self, state: &State) -> anyhow::Result<()> {
        let metadata = Metadata {
            job: self.job.clone(),
            step: state.step,
            best: state.best.as_ref().map(|best| (best.step, best.loss)),
        };
        let (m, v) = state.optimizer.moments();
        let best = state.best.as_ref().map(|best| best.weights.as_slice()).unwrap_or_default();
        let parts =
            [("weights", state.optimizer.parameters()), ("m", &m), ("v", &v), ("best", best)];
        let mut named = Vec::new();
        for (part, list) in parts {
            let name =
                |(i, tensor): (usize, &Tensor)| (format!("{part}.{i}"), tensor.shallow_clone());
            named.extend(list.iter().enumerate().map(name));
        }
        // Also after a failure, so that a full disk is not tried again at every step.
        self.written = clock::active();
        tensors::save(&self.path, &metadata, &named)?;
        self.step = state.step;
        Ok(())
    }
    /// Sets a state of step 0 to that of the file, and returns its step. `None`: there is no file. After
    /// an error the state is unchanged.
    pub(crate) fn restore(&mut self, state: &mut State) -> anyhow::Result<Option<usize>> {
        if !self.path.exists() {
            return Ok(None);
        }
        let metadata: Metadata = tensors::metadata(&self.path)?;
        ensure!(metadata.job == self.job, "{} is one of another job", self.path.display());
        let mut file: HashMap<String, Tensor> = tensors::load(&self.path)?.into_iter().collect();
        let mut take = |part: &str| {
            let one = |(i, own): (usize, &Tensor)| {
                let stored = file.remove(&format!("{part}.{i}"));
                stored.filter(|stored| stored.size() == own.size())
            };
            let list: Option<Vec<Tensor>> =
                state.optimizer.parameters().iter().enumerate().map(one).collect();
            list.with_context(|| format!("{}: {part} does not fit", self.path.display()))
        };
        let (weights, moments) = (take("weights")?, [take("m")?, take("v")?]);
        let best = match metadata.best {
            Some((step, loss)) => Some(Best { step, loss, weights: take("best")? }),
            None => None,
        };
        state.optimizer.restore(i32::try_from(metadata.step)?, &weights, &moments);
        (state.step, state.best) = (metadata.step, best);
        (self.step, self.written) = (state.step, clock::active());
        Ok(Some(state.step))
    }
}

/// Hash of everything that the result depends on.
fn identity(job: &Job) -> anyhow::Result<String> {
    let sha256 =
        |path: &PathBuf| files::sha256(path).with_context(|| format!("read {}", path.display()));
    let start = job.start.as_ref().map(sha256).transpose()?;
    let all = (FORMAT, job.essence(), start, sha256(&job.data)?);
    Ok(files::hex(&Sha256::digest(serde_json::to_vec(&all)?)))
}
