//! One run from top to bottom: data -> reference log-probs (the policy of step 0) -> optimizer
//! steps with validation, from the checkpoint of an interrupted run if there is one -> the best weights
//! -> adapter file and parity probe. Called by `main`.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use files::gguf::model_sha256;
use protocol::{Job, Kept, Objective, Optimizer, Step, TrainerEvent};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tch::Device;

use crate::arch::Shape;
use crate::batch::Size;
use crate::checkpoint::{Best, Checkpoint, State};
use crate::data::{self, Packed};
use crate::lora::Lora;
use crate::model::Model;
use crate::optimizer::{AdamW, learning_rate};
use crate::plan::{self, Plan, Setting};
use crate::probe::Probing;
use crate::reference::ReferenceCache;
use crate::step::{self, Unfinished};
use crate::{base, clock, cuda, export};

/// Why a run ends early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The job, the model or the data is wrong; trying again will not help.
    BadData(anyhow::Error),
    /// Disk or memory; trying again may help.
    TryAgain(anyhow::Error),
    /// The daemon has ended, or asked for it.
    Stopped,
    /// A bug of this program.
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
    data: data::Read,
    plan: Plan,
}

/// Runs a job, from its checkpoint if it has one. `emit` sends an event to the daemon; `stop` is set
/// when the run has to end.
pub(crate) fn run(
    job: &Job,
    device: Device,
    emit: &dyn Fn(&TrainerEvent),
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let _lock = lock(&job.out, stop)?;
    let Prepared { model, data, mut plan } = prepare(job, device).map_err(Failure::BadData)?;
    let n_too_long = data.n_too_long;
    let probing = Probing::begin(&model, &data.examples, plan)?;
    let (mut train_set, mut validation_set) = data::split(data, job.validation_share);
    let n_steps = train_set.len().div_ceil(job.optimizer.batch_pairs) * job.optimizer.epochs;
    let parameters = model.lora.as_ref().map(Lora::parameters).unwrap_or_default();
    emit(&TrainerEvent::Started {
        n_train: train_set.len(),
        n_validation: validation_set.len(),
        n_too_long,
        n_steps,
        n_parameters: parameters.iter().map(|p| p.numel() as u64).sum(),
        device: cuda::name(device).to_owned(),
    });
    for set in [&mut train_set, &mut validation_set] {
        if let Objective::Kto { .. } = job.objective {
            data::add_mismatched(set, job.max_tokens);
        }
    }
    let all = train_set.iter_mut().chain(&mut validation_set).collect();
    add_reference(job, &model, all, &mut plan, emit, stop)?;

    let optimizer = AdamW::new(parameters, job.optimizer.weight_decay, job.optimizer.max_grad_norm);
    let mut state = State { step: 0, optimizer, best: None };
    let mut checkpoint = Checkpoint::new(job).map_err(Failure::BadData)?;
    match checkpoint.restore(&mut state) {
        Ok(Some(step)) => emit(&TrainerEvent::Resumed { step }),
        Ok(None) => {}
        Err(error) => warn(emit, &error.context("the run begins at its first step")),
    }
    let (first, started, mut n_tokens) = (state.step, clock::active(), 0);
    let batches = batches(train_set.len(), job.optimizer, job.seed);
    for indices in batches.skip(state.step) {
        if stop.load(Ordering::Relaxed) {
            if !checkpoint.has(&state) {
                save(&mut checkpoint, &state, emit);
            }
            return Err(Failure::Stopped);
        }
        let batch: Vec<&Packed> = indices.iter().map(|&i| &train_set[i]).collect();
        let rate = job.optimizer.learning_rate
            * learning_rate(state.step, n_steps, job.optimizer.warmup_ratio, 0.0);
        let mut metrics = optimize(&model, job, &batch, &mut state.optimizer, &mut plan, rate)?;
        state.step += 1;
        let step = state.step;
        n_tokens += metrics.tokens;
        let seconds = clock::since(started).as_secs_f64().max(1e-6);
        metrics.step = step;
        metrics.epoch = step as f64 * job.optimizer.epochs as f64 / n_steps as f64;
        metrics.tokens_per_second = n_tokens as f64 / seconds;
        metrics.eta_s = seconds / (step - first) as f64 * (n_steps - step) as f64;
        metrics.memory_bytes = memory_in_use(device);
        emit(&TrainerEvent::Step(metrics));
        let is_validated =
            step == n_steps || step.is_multiple_of(n_steps.div_ceil(job.validations));
        if is_validated {
            let mut validated = None;
            if !validation_set.is_empty() {
                let loss = step::validate(&model, job.objective, &validation_set, &mut plan)?;
                step::finite(loss, "validation loss").map_err(Failure::BadData)?;
                emit(&TrainerEvent::Validation { step, loss });
                validated = Some(loss);
            }
            keep_best(&mut state, validated);
        }
        if is_validated || checkpoint.is_due() {
            save(&mut checkpoint, &state, emit);
        }
    }
    let best = state.best.as_ref().context("a run ends with a validation");
    let best = best.map_err(Failure::Bug)?;
    // What has the smaller loss need not have the better answers, so both are there to be compared.
    let is_last = best.step == state.step;
    let last = (!is_last).then(|| keep(job, &model, &probing, "last-", state.step)).transpose()?;
    for (parameter, weights) in state.optimizer.parameters().iter().zip(&best.weights) {
        tch::no_grad(|| parameter.shallow_clone().copy_(weights));
    }
    // The last checkpoint stays: the daemon removes it after it has recorded the result.
    let Kept { adapter, sha256, probe, step } = keep(job, &model, &probing, "", best.step)?;
    let (best_step, best_loss) = (step, best.loss);
    emit(&TrainerEvent::Done { adapter, sha256, probe, best_step, best_loss, last });
    Ok(())
}

/// Locks the folder as long as the file is open. Waits for a trainer of an earlier daemon that may still
/// write its checkpoint there.
fn lock(out: &Path, stop: &AtomicBool) -> Result<File, Failure> {
    let folder = File::open(out).with_context(|| format!("open {}", out.display()));
    let folder = folder.map_err(Failure::BadData)?;
    // Any other error means a file system without locks.
    while flock(&folder, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
        check(stop)?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(folder)
}

fn check(stop: &AtomicBool) -> Result<(), Failure> {
    if stop.load(Ordering::Relaxed) { Err(Failure::Stopped) } else { Ok(()) }
}

fn warn(emit: &dyn Fn(&TrainerEvent), error: &anyhow::Error) {
    emit(&TrainerEvent::Warning { message: format!("{error:#}") });
}

/// Writes a checkpoint. A full disk does not end the run; it only cannot be resumed from here.
fn save(checkpoint: &mut Checkpoint, state: &State, emit: &dyn Fn(&TrainerEvent)) {
    match checkpoint.save(state) {
        Ok(()) => emit(&TrainerEvent::Checkpoint { step: state.step }),
        Err(error) => warn(emit, &error.context("there is no new checkpoint")),
    }
}

/// Indices of the examples of each step. Every epoch has its own order, which follows from the seed.
fn batches(n_examples: usize, optimizer: Optimizer, seed: u64) -> impl Iterator<Item = Vec<usize>> {
    let mut rng = Rng::with_seed(seed);
    (0..optimizer.epochs).flat_map(move |_| {
        let mut order: Vec<usize> = (0..n_examples).collect();
        rng.shuffle(&mut order);
        order.chunks(optimizer.batch_pairs).map(<[usize]>::to_vec).collect::<Vec<_>>()
    })
}

/// Sets the reference's log-probs of all examples: from the cache of an earlier run, or those of the
/// model as it is now.
fn add_reference(
    job: &Job,
    model: &Model,
    mut examples: Vec<&mut Packed>,
    plan: &mut Plan,
    emit: &dyn Fn(&TrainerEvent),
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let mut cache = ReferenceCache::new(job, model.device).map_err(Failure::BadData)?;
    if let Err(error) = cache.read() {
        warn(emit, &error.context("log-probs of the reference are computed again"));
    }
    let save = |cache: &mut ReferenceCache| {
        if let Err(error) = cache.save() {
            warn(emit, &error.context("log-probs of the reference are not kept"));
        }
    };
    let total = examples.len();
    examples.retain_mut(|example| !cache.get(example));
    let mut done = total - examples.len();
    let mut saved = clock::active();
    for chunk in examples.chunks_mut(job.optimizer.batch_pairs) {
        if stop.load(Ordering::Relaxed) {
            save(&mut cache);
            return Err(Failure::Stopped);
        }
        step::add_reference(model, chunk, plan)?;
        for example in &*chunk {
            cache.insert(example);
        }
        done += chunk.len();
        emit(&TrainerEvent::Reference { done, total });
        if job.checkpoint_s <= clock::since(saved).as_secs_f64() {
            save(&mut cache);
            saved = clock::active();
        }
    }
    save(&mut cache);
    Ok(())
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
    ensure!(job.lora.alpha > 0.0, "lora.alpha {} is not above 0", job.lora.alpha);
    ensure!(
        job.optimizer.batch_pairs > 0 && job.optimizer.epochs > 0 && job.validations > 0,
        "batch_pairs, epochs and validations must be at least 1"
    );
    let sha256 = model_sha256(&job.base)?;
    ensure!(
        sha256 == job.base_sha256,
        "{} is not the file that is served: restart the daemon",
        job.base.display()
    );
    tch::set_num_threads(i32::try_from(job.threads.clamp(1, 1024))?);
    tch::manual_seed(job.seed.cast_signed());
    let mut model = load(job, device)?;
    model.lora = Some(match &job.start {
        Some(path) => export::load(path, &sha256, &model.shape, job.lora, device)?,
        None => Lora::new(&model.shape, job.lora.rank, job.lora.alpha, device),
    });
    let sizes = model.shape.sizes;
    let data = data::read(job, sizes.n_vocab, sizes.n_ctx)?;
    let longest = data.examples.iter().map(Packed::largest_part).fold(Size::default(), Size::max);
    let limit = job.memory_limit_bytes.map(|limit| limit.saturating_sub(resident_bytes()));
    let left = plan::memory_bytes(device, limit);
    let setting = Setting {
        shape: &model.shape,
        compute: model.compute,
        device,
        weights_are_transient: model.weights.are_transient(model.compute),
    };
    let plan = Plan::new(setting, longest, left);
    Ok(Prepared { model, data, plan })
}

/// Loads the base as the job and the memory say.
fn load(job: &Job, device: Device) -> anyhow::Result<Model> {
    let memory = plan::memory_bytes(device, job.memory_limit_bytes);
    let file = base::BaseFile::open(&job.base)?;
    let width = Shape::read(&file, job.context_tokens)?.sizes.n_embd;
    let compute = plan::compute(job.compute, device, width);
    let kind = plan::base_kind(job.base_kind, compute, &file, memory);
    let mut model = Model::load(&job.base, kind, job.context_tokens, device)?;
    model.compute = compute;
    model.fuse_projections();
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

/// Keeps a copy of the weights if no earlier ones had a smaller validation loss; where nothing is
/// validated, the last ones.
fn keep_best(state: &mut State, loss: Option<f64>) {
    let smallest = state.best.as_ref().and_then(|best| best.loss);
    if loss.zip(smallest).is_none_or(|(loss, smallest)| loss < smallest) {
        let weights = state.optimizer.parameters().iter().map(|w| w.detach().copy()).collect();
        state.best = Some(Best { step: state.step, loss, weights });
    }
}

/// Writes the weights as they are, and the probe with them, in files whose names begin so. Neither stays
/// when the other cannot be written.
fn keep(
    job: &Job,
    model: &Model,
    probing: &Probing,
    name: &str,
    step: usize,
) -> Result<Kept, Failure> {
    let file = |rest: &str| job.out.join(format!("{name}{rest}"));
    let (adapter, probe) = (file("adapter.gguf"), file("probe.json"));
    let probed = probing.end(model).map_err(Failure::BadData)?;
    let write = || {
        let text = serde_json::to_string(&probed)?;
        files::write_atomic(&probe, |out| out.write_all(text.as_bytes()))
            .with_context(|| format!("write {}", probe.display()))?;
        if let Err(error) = export::save(model, &job.base_sha256, &job.run, &adapter) {
            drop(std::fs::remove_file(&probe));
            return Err(error);
        }
        files::sha256(&adapter).with_context(|| format!("read {}", adapter.display()))
    };
    let sha256 = write().map_err(Failure::TryAgain)?;
    Ok(Kept { adapter, sha256, probe, step })
}

/// Memory in use on the GPU, or the resident memory of this process.
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
