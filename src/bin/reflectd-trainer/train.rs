//! One run, top to bottom: data -> trees -> reference log-probs (the policy at step 0) -> optimizer steps with
//! validation -> the best weights -> adapter file and parity probe. Called by `main`.

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use reflectd::protocol::{Job, Objective, Probe, ProbeSequence, Step, TrainerEvent};
use reflectd::{paths, protocol};
use tch::{Device, Tensor};

use crate::arch::Shape;
use crate::batch::{Batch, Sequence, Tree};
use crate::data::{self, Packed};
use crate::lora::Lora;
use crate::model::Model;
use crate::optimizer::{AdamW, learning_rate};
use crate::plan::{self, Manner, Plan};
use crate::step::{self, Unfinished};
use crate::{base, cuda, export, weights};

/// Validations of one run, evenly spread; the best one's weights are exported.
const VALIDATIONS: usize = 4;
/// Sequences of the parity probe.
const PROBES: usize = 8;

/// How a run ends early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The job, the model or the data is wrong; trying again will not help.
    BadData(anyhow::Error),
    /// Disk or memory; trying again may help.
    TryAgain(anyhow::Error),
    /// The daemon has gone.
    Stopped,
    /// Our own bug.
    Bug(anyhow::Error),
}

impl From<Unfinished> for Failure {
    fn from(unfinished: Unfinished) -> Self {
        match unfinished {
            Unfinished::OutOfMemory(error) => Self::TryAgain(error),
            Unfinished::NotFinite(error) => Self::BadData(error),
        }
    }
}

/// Everything that the job names, loaded and checked.
struct Prepared {
    model: Model,
    examples: Vec<Packed>,
    n_too_long: usize,
    plan: Plan,
}

/// Runs a job. `emit` sends an event to the daemon; `stop` is set when it has gone.
pub(crate) fn run(
    job: &Job,
    device: Device,
    emit: &dyn Fn(&TrainerEvent),
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let Prepared { mut model, examples, n_too_long, mut plan } =
        prepare(job, device).map_err(Failure::BadData)?;
    let probed = probed(&examples);
    let (mut train_set, mut validation_set) = data::split(examples, job.validation_share, job.seed);
    let n_steps = train_set.len().div_ceil(job.optimizer.batch_pairs) * job.optimizer.epochs;
    let parameters = model.lora.as_ref().map(Lora::parameters).unwrap_or_default();
    emit(&TrainerEvent::Started {
        n_train: train_set.len(),
        n_validation: validation_set.len(),
        n_too_long,
        n_steps,
        n_parameters: parameters.iter().map(|p| p.numel() as u64).sum(),
        device: if device == Device::Cpu { "cpu".into() } else { "cuda:0".into() },
    });
    let total = train_set.len() + validation_set.len();
    let mut done = 0;
    for set in [&mut train_set, &mut validation_set] {
        if let Objective::Kto { .. } = job.objective {
            data::introduce_strangers(set, job.max_tokens);
        }
        for chunk in set.chunks_mut(job.optimizer.batch_pairs) {
            check(stop)?;
            step::add_reference(&model, chunk, &mut plan)?;
            done += chunk.len();
            emit(&TrainerEvent::Reference { done, total });
        }
    }

    let mut optimizer =
        AdamW::new(parameters, job.optimizer.weight_decay, job.optimizer.max_grad_norm);
    let mut best = Best { step: 0, loss: f64::INFINITY, weights: Vec::new() };
    let mut rng = Rng::with_seed(job.seed);
    let (mut step, started, mut n_tokens) = (0, Instant::now(), 0);
    for _ in 0..job.optimizer.epochs {
        let mut order: Vec<usize> = (0..train_set.len()).collect();
        rng.shuffle(&mut order);
        for indices in order.chunks(job.optimizer.batch_pairs) {
            check(stop)?;
            let batch: Vec<&Packed> = indices.iter().map(|&i| &train_set[i]).collect();
            let rate = job.optimizer.learning_rate
                * learning_rate(step, n_steps, job.optimizer.warmup_ratio, 0.0);
            let mut metrics = optimize(&model, job, &batch, &mut optimizer, &mut plan, rate)?;
            step += 1;
            n_tokens += batch.iter().map(|packed| packed.tree.len()).sum::<usize>();
            let seconds = started.elapsed().as_secs_f64().max(1e-6);
            metrics.step = step;
            metrics.epoch = step as f64 * job.optimizer.epochs as f64 / n_steps as f64;
            metrics.tokens_per_second = n_tokens as f64 / seconds;
            metrics.eta_s = seconds / step as f64 * (n_steps - step) as f64;
            metrics.memory_bytes = memory_in_use(device);
            emit(&TrainerEvent::Step(metrics));
            if step == n_steps || step.is_multiple_of(n_steps.div_ceil(VALIDATIONS)) {
                // Without a validation set the last weights are kept.
                let loss = if validation_set.is_empty() {
                    -(step as f64)
                } else {
                    step::validate(&model, job.objective, &validation_set, &mut plan)?
                };
                if !validation_set.is_empty() {
                    emit(&TrainerEvent::Validation { step, loss });
                }
                best.offer(step, loss, model.lora.as_ref());
            }
        }
    }
    best.restore(model.lora.as_mut());
    finish(job, &model, &best, &probed, emit).map_err(Failure::TryAgain)
}

fn check(stop: &AtomicBool) -> Result<(), Failure> {
    if stop.load(Ordering::Relaxed) { Err(Failure::Stopped) } else { Ok(()) }
}

/// Loads and checks everything that the job names.
fn prepare(job: &Job, device: Device) -> anyhow::Result<Prepared> {
    ensure!(
        job.version == protocol::VERSION,
        "the job has version {}, this trainer knows {}",
        job.version,
        protocol::VERSION
    );
    ensure!(
        (1..=1024).contains(&job.lora.rank),
        "lora.rank {} is not between 1 and 1024",
        job.lora.rank
    );
    ensure!(
        job.optimizer.batch_pairs > 0 && job.optimizer.epochs > 0,
        "batch_pairs and epochs must be at least 1"
    );
    let sha256 =
        paths::sha256(&job.base).with_context(|| format!("read {}", job.base.display()))?;
    ensure!(
        sha256 == job.base_sha256,
        "{} is not the file that is served: restart the daemon",
        job.base.display()
    );
    tch::set_num_threads(i32::try_from(job.threads.clamp(1, 1024))?);
    tch::manual_seed(job.seed.cast_signed());
    let mut model = load(job, device)?;
    model.lora = Some(match &job.start {
        Some(path) => export::load(path, &sha256, &model.shape, job.lora.rank, device)?,
        None => Lora::new(&model.shape, job.lora.rank, job.lora.alpha, device),
    });
    let sizes = model.shape.sizes;
    let (examples, n_too_long) = data::read(job, sizes.n_vocab, sizes.n_ctx)?;
    let longest = examples.iter().map(|example| example.tree.len()).max().unwrap_or(0);
    let limit = job.memory_limit_bytes.map(|limit| limit.saturating_sub(resident_bytes()));
    let left = plan::memory_bytes(device, limit);
    let manner = Manner {
        shape: &model.shape,
        compute: model.compute,
        device,
        weights_are_transient: model.weights.are_transient(model.compute),
    };
    let plan = Plan::new(manner, longest, left);
    Ok(Prepared { model, examples, n_too_long, plan })
}

/// The base as it is held and computed with.
fn load(job: &Job, device: Device) -> anyhow::Result<Model> {
    let memory = plan::memory_bytes(device, job.memory_limit_bytes);
    let file = base::BaseFile::open(&job.base)?;
    let width = Shape::read(&file, job.context_tokens)?.sizes.n_embd;
    let compute = plan::compute(job.compute, device, width);
    let kind = plan::base_kind(job.base_kind, compute, &file, memory);
    let mut model = weights::load(&job.base, kind, job.context_tokens, device)?;
    model.compute = compute;
    model.stack_matrices();
    Ok(model)
}

/// One optimizer step over a batch.
fn optimize(
    model: &Model,
    job: &Job,
    batch: &[&Packed],
    optimizer: &mut AdamW,
    plan: &mut Plan,
    rate: f64,
) -> Result<Step, Failure> {
    let mut metrics =
        step::gradients(model, job.objective, batch, plan, &mut || optimizer.zero_grad())?;
    metrics.learning_rate = rate;
    metrics.grad_norm = optimizer.update(rate);
    step::finite(metrics.grad_norm, "gradient").map_err(Failure::BadData)?;
    Ok(metrics)
}

/// The checkpoint with the smallest validation loss.
#[derive(Debug)]
struct Best {
    step: usize,
    loss: f64,
    weights: Vec<Tensor>,
}

impl Best {
    fn offer(&mut self, step: usize, loss: f64, lora: Option<&Lora>) {
        if loss < self.loss {
            let weights = lora.map(Lora::parameters).unwrap_or_default();
            *self =
                Self { step, loss, weights: weights.iter().map(|w| w.detach().copy()).collect() };
        }
    }
    fn restore(&self, lora: Option<&mut Lora>) {
        let parameters = lora.map(|lora| lora.parameters()).unwrap_or_default();
        for (mut parameter, best) in parameters.into_iter().zip(&self.weights) {
            tch::no_grad(|| parameter.copy_(best));
        }
    }
}

/// Writes adapter and probe, then says so.
fn finish(
    job: &Job,
    model: &Model,
    best: &Best,
    probed: &[Sequence],
    emit: &dyn Fn(&TrainerEvent),
) -> anyhow::Result<()> {
    let (adapter, probe) = (job.out.join("adapter.gguf"), job.out.join("probe.json"));
    export::save(model, &job.base_sha256, &job.run, &adapter)?;
    write_probe(&probe, model, probed)?;
    let sha256 = paths::sha256(&adapter).with_context(|| format!("read {}", adapter.display()))?;
    emit(&TrainerEvent::Done {
        adapter,
        sha256,
        probe,
        best_step: best.step,
        best_loss: best.loss,
    });
    Ok(())
}

/// Answers of examples all over the data set.
fn probed(examples: &[Packed]) -> Vec<Sequence> {
    let every = examples.len().div_ceil(PROBES).max(1);
    examples.iter().step_by(every).map(|example| example.sequences[0].clone()).collect()
}

fn write_probe(path: &Path, model: &Model, probed: &[Sequence]) -> anyhow::Result<()> {
    let mut sequences = Vec::new();
    for sequence in probed {
        let tree = Tree::new(std::slice::from_ref(sequence));
        let logprobs = model.logprobs(&Batch::new(&[&tree], model.device)).to_device(Device::Cpu);
        let logprobs = Vec::<f32>::try_from(logprobs)?;
        let Sequence { tokens, from } = sequence.clone();
        sequences.push(ProbeSequence { tokens, from, logprobs });
    }
    let text = serde_json::to_string(&Probe { sequences })?;
    paths::write_atomic(path, |out| out.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}

/// Of the GPU, or of this process.
fn memory_in_use(device: Device) -> u64 {
    match device {
        Device::Cuda(_) => cuda::memory().map_or(0, |[free, total]| total - free),
        _ => resident_bytes(),
    }
}

/// Resident memory of this process; 0 where /proc does not say.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}
