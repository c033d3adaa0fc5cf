//! What is computed of a batch: the reference's log-probs, the gradients of one step, the validation
//! loss. A batch is computed in passes that fit into memory; when one does not, they become smaller and
//! the batch is computed again. Used by `train` and `survey`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context as _, ensure};
use protocol::{Objective, Step};
use tch::{Device, Kind as Number, Tensor};

use crate::backward;
use crate::batch::{Batch, Tree, signed};
use crate::data::{Kind, Mismatched, Packed, Part, passes};
use crate::model::Model;
use crate::objective::{self, Answers, Grpo, Kto, Losses, Mixed, Tokens};
use crate::plan::Plan;

/// Why a batch was not computed.
#[derive(Debug)]
pub(crate) enum Unfinished {
    /// One example does not fit into memory.
    OutOfMemory(anyhow::Error),
    /// A loss, a gradient or a log-prob is not finite.
    NotFinite(anyhow::Error),
}

/// Sums and counts by TRL's names.
#[derive(Debug, Default)]
struct Means(BTreeMap<&'static str, (f64, f64)>);

impl Means {
    fn add(&mut self, name: &'static str, values: &Tensor) {
        let entry = self.0.entry(name).or_default();
        entry.0 += values.sum(Number::Double).double_value(&[]);
        entry.1 += values.numel() as f64;
    }
    fn get(&self, name: &str) -> f64 {
        self.0.get(name).map_or(0.0, |(sum, n)| sum / n.max(1.0))
    }
    fn report(&self) -> Step {
        let (chosen, rejected) = (self.get("rewards/chosen"), self.get("rewards/rejected"));
        let has_margins = self.0.contains_key("rewards/margins");
        Step {
            loss: self.get("loss"),
            nll_loss: self.get("nll_loss"),
            rewards_chosen: chosen,
            rewards_rejected: rejected,
            rewards_accuracies: self.get("rewards/accuracies"),
            // Without pairs: the difference of the means.
            rewards_margins: if has_margins {
                self.get("rewards/margins")
            } else {
                chosen - rejected
            },
            logps_chosen: self.get("logps/chosen"),
            logps_rejected: self.get("logps/rejected"),
            kl: self.get("kl"),
            reward: self.get("reward"),
            reward_std: self.get("reward_std"),
            clip_ratio: self.get("clip_ratio/region_mean"),
            ..Step::default()
        }
    }
}

/// Sets the reference's log-probs of some examples to those of the model as it is now.
pub(crate) fn add_reference(
    model: &Model,
    examples: &mut [&mut Packed],
    plan: &mut Plan,
) -> Result<(), Unfinished> {
    let found = within_memory(plan, |plan| {
        let all: Vec<&Packed> = examples.iter().map(|example| &**example).collect();
        let mut found = vec![(Vec::new(), 0.0); all.len()];
        for pass in passes(&all, plan) {
            let logprobs = values(&model.logprobs(&Batch::new(&pass.tree, model.device)))?;
            let mut rest = logprobs.as_slice();
            for Part { index, example, answers } in &pass.parts {
                let (own, others) = rest.split_at(example.targets(answers.clone()).len());
                found[*index].0.extend(own);
                rest = others;
            }
            let with_one = pass.parts.iter().filter(|part| mismatched(part.example).is_some());
            for (part, sum) in with_one.zip(mismatched_sums(model, &pass.parts)?) {
                found[part.index].1 = f64::from(sum);
            }
        }
        Ok(found)
    })?;
    for (example, (reference, of_mismatched)) in examples.iter_mut().zip(found) {
        example.reference = reference;
        if let Kind::Single { mismatched: Some(mismatched), .. } = &mut example.kind {
            mismatched.reference = of_mismatched;
        }
    }
    Ok(())
}

/// Computes the gradients of the adapter over a batch. `clear` sets them to zero, at each attempt.
pub(crate) fn gradients(
    model: &Model,
    objective: Objective,
    batch: &[&Packed],
    plan: &mut Plan,
    clear: &mut dyn FnMut(),
) -> Result<Step, Unfinished> {
    let n_losses: usize = batch.iter().map(|example| example.n_losses()).sum();
    let mut n_tokens = 0;
    let means = within_memory(plan, |plan| {
        clear();
        let mut means = Means::default();
        let kl = kl_estimate(model, objective, batch, plan)?;
        n_tokens = 0;
        for pass in passes(batch, plan) {
            let tensors = Batch::new(&pass.tree, model.device);
            n_tokens += pass.tree.size().tokens;
            backward::gradients(model, &tensors, plan.recompute, |logprobs| {
                let losses = losses(objective, &pass.parts, &tensors, logprobs, kl);
                means.add("loss", &losses.loss.detach());
                losses.metrics.iter().for_each(|(name, values)| means.add(name, values));
                losses.loss.sum(Number::Float) / n_losses as f64
            });
        }
        for example in batch {
            if let Kind::Group { rewards, .. } = &example.kind {
                means.add("reward", &Tensor::from_slice(rewards));
                means.add("reward_std", &Tensor::from_slice(&[objective::advantages(rewards).1]));
            }
        }
        Ok(means)
    })?;
    let step = Step { tokens: n_tokens, ..means.report() };
    finite(step.loss, "loss").map_err(Unfinished::NotFinite)?;
    Ok(step)
}

/// Mean loss of the validation set.
pub(crate) fn validate(
    model: &Model,
    objective: Objective,
    examples: &[Packed],
    plan: &mut Plan,
) -> Result<f64, Unfinished> {
    let all: Vec<&Packed> = examples.iter().collect();
    let means = within_memory(plan, |plan| {
        let _guard = tch::no_grad_guard();
        let mut means = Means::default();
        let kl = kl_estimate(model, objective, &all, plan)?;
        for pass in passes(&all, plan) {
            let batch = Batch::new(&pass.tree, model.device);
            let losses = losses(objective, &pass.parts, &batch, &model.logprobs(&batch), kl);
            means.add("loss", &losses.loss);
        }
        Ok(means)
    })?;
    let loss = means.get("loss");
    finite(loss, "validation loss").map_err(Unfinished::NotFinite)?;
    Ok(loss)
}

/// Refuses a number that is not finite.
pub(crate) fn finite(value: f64, what: &str) -> anyhow::Result<()> {
    ensure!(value.is_finite(), "the {what} is not finite: lower learn.optimizer.learning_rate");
    Ok(())
}

/// Computes, and again with a smaller plan as long as memory runs out.
pub(crate) fn within_memory<T>(
    plan: &mut Plan,
    mut compute: impl FnMut(&Plan) -> anyhow::Result<T>,
) -> Result<T, Unfinished> {
    loop {
        // tch panics where libtorch throws.
        match catch_unwind(AssertUnwindSafe(|| compute(plan))) {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => return Err(Unfinished::NotFinite(error)),
            Err(panic) => {
                let text = panic_text(&*panic);
                if !is_out_of_memory(&text) {
                    std::panic::resume_unwind(panic);
                }
                if !plan.shrink() {
                    return Err(Unfinished::OutOfMemory(anyhow::anyhow!(
                        "one example does not fit into memory: lower learn.max_tokens, or set \
                         trainer.base to quantized ({})",
                        first_line(&text)
                    )));
                }
            }
        }
    }
}

/// The message of a panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic.downcast_ref::<String>().map_or_else(
        || panic.downcast_ref::<&str>().copied().unwrap_or("the trainer panicked").to_owned(),
        String::clone,
    )
}

/// A message without the stack trace that libtorch appends with escaped line breaks.
pub(crate) fn first_line(text: &str) -> &str {
    text.lines().next().and_then(|line| line.split("\\n").next()).unwrap_or_default()
}

/// Whether a message says that libtorch, the C++ library or this program got no memory.
pub(crate) fn is_out_of_memory(text: &str) -> bool {
    ["out of memory", "not enough memory", "can't allocate memory", "bad_alloc"]
        .iter()
        .any(|phrase| text.contains(phrase))
}

/// Log-probs, or sums of them, as a vector.
pub(crate) fn values(tensor: &Tensor) -> anyhow::Result<Vec<f32>> {
    let values = Vec::<f32>::try_from(tensor.to_device(Device::Cpu)).context("read log-probs")?;
    ensure!(
        values.iter().all(|value| value.is_finite()),
        "log-probs of the model that is trained are not numbers: lower \
         learn.optimizer.learning_rate, or use another model file"
    );
    Ok(values)
}

fn mismatched(example: &Packed) -> Option<&Mismatched> {
    match &example.kind {
        Kind::Single { mismatched, .. } => mismatched.as_ref(),
        Kind::Preference | Kind::Group { .. } => None,
    }
}

/// The log-probs of the mismatched answers of a pass, each summed.
fn mismatched_sums(model: &Model, parts: &[Part<'_>]) -> anyhow::Result<Vec<f32>> {
    let sequences = parts.iter().filter_map(|part| mismatched(part.example));
    let tree = Tree::new(sequences.map(|mismatched| &mismatched.sequence));
    if tree.size().tokens == 0 {
        return Ok(Vec::new());
    }
    let batch = Batch::new(&tree, model.device);
    values(&batch.sum_by_sequence(&model.logprobs(&batch)))
}

/// `kto`: the estimated KL divergence between policy and reference, at least 0. Zero for all others.
fn kl_estimate(
    model: &Model,
    objective: Objective,
    examples: &[&Packed],
    plan: &Plan,
) -> anyhow::Result<f64> {
    let Objective::Kto { .. } = objective else { return Ok(0.0) };
    let (mut sum, mut n) = (0.0, 0usize);
    for pass in passes(examples, plan) {
        let references = pass.parts.iter().filter_map(|part| mismatched(part.example));
        for (policy, mismatched) in mismatched_sums(model, &pass.parts)?.into_iter().zip(references)
        {
            sum += f64::from(policy) - mismatched.reference;
            n += 1;
        }
    }
    Ok((sum / n.max(1) as f64).max(0.0))
}

/// Losses of some examples, given the log-probs of their batch's targets, `[M]`.
fn losses(
    objective: Objective,
    parts: &[Part<'_>],
    batch: &Batch,
    logprobs: &Tensor,
    kl: f64,
) -> Losses {
    let device = logprobs.device();
    // Of every part its share of what its example has, by target or by answer.
    let flat = |of: &dyn Fn(&Packed) -> Vec<f32>, share: &dyn Fn(&Part<'_>) -> Range<usize>| {
        let values = parts.iter().flat_map(|part| {
            let all = of(part.example);
            all.get(share(part)).unwrap_or_default().to_vec()
        });
        Tensor::from_slice(&values.collect::<Vec<f32>>()).to_device(device)
    };
    let targets = |part: &Part<'_>| part.example.targets(part.answers.clone());
    let reference = flat(&|example| example.reference.clone(), &targets);
    let lengths = batch.lengths.to_kind(Number::Float);
    // Answer `place` of each example that has so many.
    let answers = |place: usize| {
        let mut n_before = 0;
        let mut found = Vec::new();
        for part in parts {
            let n = part.answers.len();
            found.extend((place < n).then_some(signed(n_before + place)));
            n_before += n;
        }
        let found = Tensor::from_slice(&found).to_device(device);
        let of = |sums: &Tensor| sums.index_select(0, &found);
        Answers {
            policy: of(&batch.sum_by_sequence(logprobs)),
            reference: of(&batch.sum_by_sequence(&reference)),
            length: of(&lengths),
        }
    };
    match objective {
        Objective::Kto { beta, desirable_weight, undesirable_weight } => {
            let is_good: Vec<bool> = parts
                .iter()
                .map(|part| matches!(part.example.kind, Kind::Single { is_good: true, .. }))
                .collect();
            let is_good = Tensor::from_slice(&is_good).to_device(device);
            objective::kto(
                Kto { beta, desirable_weight, undesirable_weight },
                &answers(0),
                &is_good,
                kl,
            )
        }
        Objective::Grpo { beta, epsilon, importance_cap } => {
            let group = |example: &Packed| match &example.kind {
                Kind::Group { rewards, behaviour } => (rewards.clone(), behaviour.clone()),
                Kind::Preference | Kind::Single { .. } => (Vec::new(), Vec::new()),
            };
            let of_group = |example: &Packed| {
                #[expect(clippy::cast_possible_truncation, reason = "the model computes in f32")]
                let narrow = |advantage: f64| advantage as f32;
                objective::advantages(&group(example).0).0.into_iter().map(narrow).collect()
            };
            // Those of the whole group, also where a pass has only some of its answers.
            let advantages = flat(&of_group, &|part| part.answers.clone());
            let tokens = Tokens {
                policy: logprobs.shallow_clone(),
                reference,
                behaviour: flat(&|example| group(example).1, &targets),
                answer: batch.sequences.shallow_clone(),
                lengths,
                advantages,
            };
            objective::grpo(Grpo { beta, epsilon, importance_cap }, &tokens)
        }
        Objective::Mixed { beta, nll } => {
            let pairs = (0..).zip(parts).filter(|(_, part)| part.answers.len() == 2);
            let places: Vec<i64> = pairs.map(|(place, _)| place).collect();
            let paired = Tensor::from_slice(&places).to_device(device);
            objective::mixed(Mixed { beta, nll }, &answers(0), &answers(1), &paired)
        }
        _ => {
            // All examples of a data set have as many answers.
            let rejected = (parts[0].answers.len() == 2).then(|| answers(1));
            objective::preference(objective, &answers(0), rejected.as_ref())
                .expect("the data set has been read for this objective")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_memory_makes_passes_smaller_until_one_example_is_too_much() {
        let plan = || Plan { max_tokens: 4096, shared_cost: 0.1, recompute: false, longest: 600 };
        let allocator = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes";
        let with_room_for = |most: usize| {
            let mut plan = plan();
            let done = within_memory(&mut plan, |plan| {
                assert!(plan.max_tokens <= most, "{allocator}");
                Ok(plan.max_tokens)
            });
            (done, plan)
        };
        assert_eq!((with_room_for(4096).0.unwrap(), with_room_for(1500).0.unwrap()), (4096, 1024));
        let (failed, plan) = with_room_for(500);
        assert!(plan.recompute && plan.max_tokens == 600, "everything was tried");
        let Err(Unfinished::OutOfMemory(error)) = failed else { panic!("{failed:?}") };
        assert!(error.to_string().contains("one example does not fit"), "{error}");
    }

    #[test]
    #[should_panic(expected = "another bug")]
    fn other_panics_are_not_taken_for_out_of_memory() {
        let mut plan = Plan { max_tokens: 4096, shared_cost: 0.1, recompute: false, longest: 600 };
        drop(within_memory::<()>(&mut plan, |_| panic!("another bug")));
    }
}
