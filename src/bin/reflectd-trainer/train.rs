//! One run, top to bottom: data -> trees -> reference log-probs (the policy at step 0) -> optimizer steps with
//! validation -> the best weights -> adapter file and parity probe. Called by `main`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use reflectd::protocol::{Example, Job, Probe, ProbeSequence, Step, TrainerEvent};
use reflectd::{paths, protocol};
use tch::{Device, Kind, Tensor};

use crate::batch::{Batch, Sequence, Tree};
use crate::lora::Lora;
use crate::model::Model;
use crate::objective::{self, LogProbs, Losses, Rejected};
use crate::optimizer::{AdamW, learning_rate, mean};
use crate::{export, sweep, weights};

/// Padded tokens of one forward and backward pass; a larger batch is accumulated.
const MICRO_BATCH_TOKENS: usize = 4096;
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

/// One example, packed, with its reference log-probs.
#[derive(Debug)]
struct Packed {
    tree: Tree,
    /// Of chosen and, for pairs, rejected.
    reference: Vec<f32>,
}

/// Runs a job. `emit` sends an event to the daemon; `stop` is set when it has gone.
pub(crate) fn run(
    job: &Job,
    device: Device,
    emit: &dyn Fn(&TrainerEvent),
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let (mut model, examples, n_too_long) = prepare(job, device).map_err(Failure::BadData)?;
    let (train, validation) = split(&examples, job.validation_share, job.seed);
    let n_steps = train.len().div_ceil(job.optimizer.batch_pairs) * job.optimizer.epochs;
    let parameters = model.lora.as_ref().map(Lora::parameters).unwrap_or_default();
    emit(&TrainerEvent::Started {
        n_train: train.len(),
        n_validation: validation.len(),
        n_too_long,
        n_steps,
        n_parameters: parameters.iter().map(|p| p.numel() as u64).sum(),
        device: if device == Device::Cpu { "cpu".into() } else { "cuda:0".into() },
    });
    let total = train.len() + validation.len();
    let mut done = 0;
    let mut pack_all = |examples: &[&Example]| -> Result<Vec<Packed>, Failure> {
        let mut packed: Vec<Packed> = examples.iter().map(|example| pack(example)).collect();
        for chunk in packed.chunks_mut(job.optimizer.batch_pairs) {
            check(stop)?;
            add_reference(&model, chunk);
            done += chunk.len();
            emit(&TrainerEvent::Reference { done, total });
        }
        Ok(packed)
    };
    let train_set = pack_all(&train)?;
    let validation_set = pack_all(&validation)?;

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
            let mut metrics =
                optimize(&model, job, &batch, &mut optimizer, rate).map_err(Failure::BadData)?;
            step += 1;
            n_tokens += batch.iter().map(|packed| packed.tree.len()).sum::<usize>();
            let seconds = started.elapsed().as_secs_f64().max(1e-6);
            metrics.step = step;
            metrics.epoch = step as f64 * job.optimizer.epochs as f64 / n_steps as f64;
            metrics.tokens_per_second = n_tokens as f64 / seconds;
            metrics.eta_s = seconds / step as f64 * (n_steps - step) as f64;
            metrics.memory_bytes = resident_bytes();
            emit(&TrainerEvent::Step(metrics));
            if step == n_steps || step.is_multiple_of(n_steps.div_ceil(VALIDATIONS)) {
                // Without a validation set the last weights are kept.
                let loss = if validation_set.is_empty() {
                    -(step as f64)
                } else {
                    validate(&model, job, &validation_set)
                };
                if !validation_set.is_empty() {
                    emit(&TrainerEvent::Validation { step, loss });
                }
                best.offer(step, loss, model.lora.as_ref());
            }
        }
    }
    best.restore(model.lora.as_mut());
    finish(job, &model, &best, &examples, emit).map_err(Failure::TryAgain)
}

fn check(stop: &AtomicBool) -> Result<(), Failure> {
    if stop.load(Ordering::Relaxed) { Err(Failure::Stopped) } else { Ok(()) }
}

/// Loads and checks everything that the job names.
fn prepare(job: &Job, device: Device) -> anyhow::Result<(Model, Vec<Example>, usize)> {
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
    let mut model = weights::load(&job.base, job.base_kind, job.context_tokens, device)?;
    model.lora = Some(match &job.start {
        Some(path) => export::load(path, &sha256, &model.shape, job.lora.rank, device)?,
        None => Lora::new(&model.shape, job.lora.rank, job.lora.alpha, device),
    });
    let (examples, n_too_long) =
        read_examples(job, model.shape.sizes.n_vocab, model.shape.sizes.n_ctx)?;
    Ok((model, examples, n_too_long))
}

fn read_examples(job: &Job, n_vocab: i64, n_ctx: i64) -> anyhow::Result<(Vec<Example>, usize)> {
    let path = job.data.display();
    let file = File::open(&job.data).with_context(|| format!("open {path}"))?;
    let limit = job.max_tokens.min(usize::try_from(n_ctx)?);
    let (mut examples, mut n_too_long) = (Vec::new(), 0);
    for (number, line) in (1..).zip(BufReader::new(file).lines()) {
        let line = line.with_context(|| format!("read {path}"))?;
        let example: Example =
            serde_json::from_str(&line).with_context(|| format!("{path}, line {number}"))?;
        let rejected = example.rejected.as_deref();
        ensure!(
            !example.prompt.is_empty() && !example.chosen.is_empty() && rejected != Some(&[]),
            "{path}, line {number}: an empty sequence"
        );
        ensure!(
            rejected.is_some() || job.objective == protocol::Objective::Sft,
            "{path}, line {number}: the objective needs a rejected answer"
        );
        let mut tokens =
            example.prompt.iter().chain(&example.chosen).chain(rejected.unwrap_or_default());
        ensure!(
            tokens.all(|&t| (0..n_vocab).contains(&i64::from(t))),
            "{path}, line {number}: a token is not in the vocabulary"
        );
        let longest = example.chosen.len().max(rejected.map_or(0, <[i32]>::len));
        if example.prompt.len() + longest > limit {
            n_too_long += 1;
        } else {
            examples.push(example);
        }
    }
    ensure!(
        !examples.is_empty(),
        "{path}: no example fits into {limit} tokens ({n_too_long} are longer)"
    );
    Ok((examples, n_too_long))
}

/// Keeps whole prompts aside. One prompt alone is never kept aside.
fn split(examples: &[Example], share: f64, seed: u64) -> (Vec<&Example>, Vec<&Example>) {
    let mut prompts: Vec<&str> = examples
        .iter()
        .map(|e| e.prompt_id.as_str())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    Rng::with_seed(seed).shuffle(&mut prompts);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a length"
    )]
    let n = (prompts.len() as f64 * share.clamp(0.0, 0.5)) as usize;
    let aside: BTreeSet<&str> = prompts.into_iter().take(n).collect();
    examples.iter().partition(|example| !aside.contains(example.prompt_id.as_str()))
}

fn pack(example: &Example) -> Packed {
    let sequence = |answer: &[i32]| Sequence {
        tokens: [&example.prompt, answer].concat(),
        from: example.prompt.len(),
    };
    let sequences: Vec<Sequence> = [Some(&example.chosen), example.rejected.as_ref()]
        .into_iter()
        .flatten()
        .map(|answer| sequence(answer))
        .collect();
    Packed { tree: Tree::new(&sequences), reference: Vec::new() }
}

/// Summed log-probs of every sequence, in order.
fn sequence_logprobs(model: &Model, batch: &Batch) -> Tensor {
    batch.sum_by_sequence(&model.logprobs(batch))
}

fn add_reference(model: &Model, examples: &mut [Packed]) {
    let _guard = tch::no_grad_guard();
    for example in examples {
        let batch = Batch::new(&[&example.tree], model.device);
        let sums = sequence_logprobs(model, &batch).to_device(Device::Cpu);
        example.reference = sums.iter::<f64>().map_or_else(
            |_| Vec::new(),
            |values| {
                #[expect(clippy::cast_possible_truncation, reason = "the tensor holds f32")]
                values.map(|value| value as f32).collect()
            },
        );
    }
}

fn batch_of(model: &Model, examples: &[&Packed]) -> Batch {
    let trees: Vec<&Tree> = examples.iter().map(|example| &example.tree).collect();
    Batch::new(&trees, model.device)
}

/// Loss terms of a few examples, given the log-probs of their batch's wanted tokens.
fn losses(job: &Job, examples: &[&Packed], batch: &Batch, logprobs: &Tensor) -> (Losses, LogProbs) {
    let width = examples[0].reference.len();
    let columns = i64::try_from(width).expect("one or two");
    let sums = batch.sum_by_sequence(logprobs).view([-1, columns]);
    let flat: Vec<f32> =
        examples.iter().flat_map(|example| example.reference.iter().copied()).collect();
    let reference = Tensor::from_slice(&flat).to_device(sums.device()).view([-1, columns]);
    let lengths = batch.lengths.to_kind(Kind::Float).view([-1, columns]);
    let column = |of: &Tensor, i: i64| of.select(1, i);
    let rejected = (width == 2).then(|| Rejected {
        policy: column(&sums, 1),
        reference: column(&reference, 1),
        length: column(&lengths, 1),
    });
    let logprobs = LogProbs {
        chosen: column(&sums, 0),
        chosen_reference: column(&reference, 0),
        chosen_length: column(&lengths, 0),
        rejected,
    };
    let losses = objective::apply(job.objective, &logprobs)
        .expect("read_examples has refused a lone answer");
    (losses, logprobs)
}

/// One optimizer step over a batch, accumulated in micro-batches.
fn optimize(
    model: &Model,
    job: &Job,
    batch: &[&Packed],
    optimizer: &mut AdamW,
    rate: f64,
) -> anyhow::Result<Step> {
    let mut metrics = Step { learning_rate: rate, ..Step::default() };
    optimizer.zero_grad();
    for micro in micro_batches(batch) {
        let share = micro.len() as f64 / batch.len() as f64;
        let batch = batch_of(model, &micro);
        let mut found = None;
        sweep::gradients(model, &batch, model.weights.are_transient(), |logprobs| {
            let (losses, logprobs) = losses(job, &micro, &batch, logprobs);
            let loss = losses.loss.mean(Kind::Float) * share;
            metrics.loss += loss.double_value(&[]);
            found = Some((losses, logprobs));
            loss
        });
        let (losses, logprobs) = found.expect("the sweep asks for the loss");
        let add = |sum: &mut f64, tensor: &Tensor| *sum += share * mean(tensor);
        add(&mut metrics.nll_loss, &losses.nll);
        add(&mut metrics.rewards_chosen, &losses.reward_chosen);
        add(&mut metrics.rewards_rejected, &losses.reward_rejected);
        add(&mut metrics.rewards_margins, &(&losses.reward_chosen - &losses.reward_rejected));
        add(
            &mut metrics.rewards_accuracies,
            &losses.reward_chosen.gt_tensor(&losses.reward_rejected).to_kind(Kind::Float),
        );
        add(&mut metrics.logps_chosen, &logprobs.chosen);
        if let Some(rejected) = &logprobs.rejected {
            add(&mut metrics.logps_rejected, &rejected.policy);
        }
    }
    ensure!(
        metrics.loss.is_finite(),
        "the loss is not finite: lower learn.optimizer.learning_rate"
    );
    metrics.grad_norm = optimizer.update(rate);
    ensure!(
        metrics.grad_norm.is_finite(),
        "the gradient is not finite: lower learn.optimizer.learning_rate"
    );
    Ok(metrics)
}

/// Cuts a batch so that no part has more than [`MICRO_BATCH_TOKENS`] padded tokens.
fn micro_batches<'a>(batch: &[&'a Packed]) -> Vec<Vec<&'a Packed>> {
    let mut parts: Vec<Vec<&Packed>> = Vec::new();
    let mut longest = 0;
    for &packed in batch {
        longest = longest.max(packed.tree.len());
        match parts.last_mut() {
            Some(part) if (part.len() + 1) * longest <= MICRO_BATCH_TOKENS => part.push(packed),
            _ => {
                longest = packed.tree.len();
                parts.push(vec![packed]);
            }
        }
    }
    parts
}

fn validate(model: &Model, job: &Job, examples: &[Packed]) -> f64 {
    let _guard = tch::no_grad_guard();
    let all: Vec<&Packed> = examples.iter().collect();
    let sum: f64 = micro_batches(&all)
        .iter()
        .map(|micro| {
            let batch = batch_of(model, micro);
            let (losses, _) = losses(job, micro, &batch, &model.logprobs(&batch));
            losses.loss.sum(Kind::Float).double_value(&[])
        })
        .sum();
    sum / examples.len() as f64
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
    examples: &[Example],
    emit: &dyn Fn(&TrainerEvent),
) -> anyhow::Result<()> {
    let (adapter, probe) = (job.out.join("adapter.gguf"), job.out.join("probe.json"));
    export::save(model, &job.base_sha256, &job.run, &adapter)?;
    write_probe(&probe, model, examples)?;
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

fn write_probe(path: &Path, model: &Model, examples: &[Example]) -> anyhow::Result<()> {
    let _guard = tch::no_grad_guard();
    let every = examples.len().div_ceil(PROBES);
    let mut sequences = Vec::new();
    for example in examples.iter().step_by(every) {
        let tokens = [example.prompt.as_slice(), &example.chosen].concat();
        let from = example.prompt.len();
        let tree = Tree::new(&[Sequence { tokens: tokens.clone(), from }]);
        let logprobs = model.logprobs(&Batch::new(&[&tree], model.device)).to_device(Device::Cpu);
        sequences.push(ProbeSequence { tokens, from, logprobs: Vec::<f32>::try_from(logprobs)? });
    }
    let text = serde_json::to_string(&Probe { sequences })?;
    paths::write_atomic(path, |out| out.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}

/// Resident memory of this process; 0 where /proc does not say.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}
