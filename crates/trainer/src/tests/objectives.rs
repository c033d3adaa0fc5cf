//! Each objective in a whole run on the tiny model: it learns what it should, from the lines that are
//! its own, and what it cannot use is refused with the line.

use std::path::Path;

use protocol::{Example, Group, Job, Objective, Rollout, Step, TrainerEvent};
use tch::{Kind as Number, Tensor};

use super::fixtures::{alone, job, logprobs, refusal, run, steps_of, tiny, write};
use crate::batch::Sequence;
use crate::data::{Kind, Packed};
use crate::lora::Lora;
use crate::model::Model;
use crate::plan::Plan;
use crate::step;

fn steps(job: &Job) -> Vec<Step> {
    let events = run(job).unwrap();
    assert!(matches!(events.last(), Some(TrainerEvent::Done { .. })), "{events:?}");
    steps_of(&events)
}

fn examples(job: &Job) -> Vec<Example> {
    let text = std::fs::read_to_string(&job.data).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn write_lines<T: serde::Serialize>(job: &Job, lines: &[T]) {
    let lines: Vec<String> = lines.iter().map(|l| serde_json::to_string(l).unwrap()).collect();
    write(&job.data, &lines.join("\n"));
}

#[test]
fn every_objective_on_pairs_learns_the_preference() {
    let _alone = alone();
    for objective in [
        Objective::Dpo { beta: 0.1, nll: 0.0 },
        Objective::DpoNorm { beta: 5.0, nll: 0.0 },
        Objective::RobustDpo { beta: 0.1, nll: 0.0, label_smoothing: 0.1 },
        Objective::Ipo { beta: 0.1 },
        Objective::Simpo { beta: 2.0, gamma: 1.0 },
    ] {
        let folder = tempfile::tempdir().unwrap();
        let job = Job { objective, ..job(folder.path()) };
        let steps = steps(&job);
        let (first, last) = (steps[0], steps[steps.len() - 1]);
        assert!(last.loss < 0.8 * first.loss, "{objective:?}: {first:?} {last:?}");
        assert!(last.rewards_accuracies > 0.9, "{objective:?}: {last:?}");
        let margin = last.rewards_chosen - last.rewards_rejected;
        assert!((last.rewards_margins - margin).abs() < 1e-3, "{objective:?}: {last:?}");
    }
}

/// A pair, a good answer alone, and another pair, with the log-probs of the base as their reference.
fn mixture(model: &mut Model, plan: &mut Plan) -> Vec<Packed> {
    let packed = |prompt: &[i32], answers: &[&[i32]]| {
        Packed::new(format!("{prompt:?}"), prompt, answers, Kind::Preference)
    };
    let mut examples = vec![
        packed(&[2, 20, 4], &[&[21, 22, 4], &[19, 4]]),
        packed(&[2, 30, 4], &[&[31, 4]]),
        packed(&[2, 40, 41, 4], &[&[42, 4], &[43, 44, 45, 4]]),
    ];
    model.lora = None;
    let mut all: Vec<&mut Packed> = examples.iter_mut().collect();
    step::add_reference(model, &mut all, plan).unwrap();
    let lora = Lora::new(&model.shape, 4, 8.0, model.device);
    for (_, b) in lora.pairs.values() {
        tch::no_grad(|| drop(b.shallow_clone().uniform_(-0.1, 0.1)));
    }
    model.lora = Some(lora);
    examples
}

#[test]
fn gradients_of_the_mixed_loss_are_its_differences_however_a_batch_is_split() {
    let _alone = alone();
    let mut model = tiny();
    let plan = |max_tokens| Plan { max_tokens, shared_cost: 0.1, recompute: false, longest: 1 };
    let examples = mixture(&mut model, &mut plan(1000));
    let objective = Objective::Mixed { beta: 0.7, nll: 0.5 };
    let parameters = model.lora.as_ref().unwrap().parameters();
    let gradients = |max_tokens| {
        let batch: Vec<&Packed> = examples.iter().collect();
        let clear = &mut || parameters.iter().for_each(|it| it.shallow_clone().zero_grad());
        let step = step::gradients(&model, objective, &batch, &mut plan(max_tokens), clear);
        let found: Vec<Tensor> = parameters.iter().map(|it| it.grad().copy()).collect();
        (step.unwrap().loss, found)
    };
    let (loss, whole) = gradients(1000);
    let size = whole.iter().map(|it| it.abs().max().double_value(&[])).fold(0.0, f64::max);
    let (again, split) = gradients(1);
    assert!((loss - again).abs() < 1e-5, "{loss} {again}");
    for (a, b) in whole.iter().zip(&split) {
        assert!((a - b).abs().max().double_value(&[]) < 1e-4 * size);
    }

    let directions: Vec<Tensor> = whole.iter().map(Tensor::randn_like).collect();
    let products = whole.iter().zip(&directions).map(|(a, b)| (a * b).sum(Number::Double));
    let expected: f64 = products.map(|product| product.double_value(&[])).sum();
    let loss_at = |step: f64| {
        let go = |step: f64| {
            for (parameter, direction) in parameters.iter().zip(&directions) {
                tch::no_grad(|| drop(parameter.shallow_clone().g_add_(&(direction * step))));
            }
        };
        go(step);
        let loss = step::validate(&model, objective, &examples, &mut plan(1000)).unwrap();
        go(-step);
        loss
    };
    let difference = (loss_at(1e-3) - loss_at(-1e-3)) / 2e-3;
    assert!((difference - expected).abs() < 1e-2 * expected.abs(), "{difference} {expected}");
}

#[test]
fn mixed_learns_from_pairs_and_good_answers_alone() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let job = Job { objective: Objective::Mixed { beta: 0.1, nll: 1.0 }, ..job(folder.path()) };
    let mut lines = examples(&job);
    for line in lines.iter_mut().step_by(2) {
        line.rejected = None;
    }
    write_lines(&job, &lines);
    let steps = steps(&job);
    let (first, last) = (steps[0], steps[steps.len() - 1]);
    assert!(last.nll_loss < 0.5 * first.nll_loss, "{first:?} {last:?}");
    assert!(last.rewards_accuracies > 0.9 && last.rewards_margins > 0.0, "{last:?}");
}

#[test]
fn kto_learns_from_single_answers() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let objective = Objective::Kto { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0 };
    let job = Job { objective, ..job(folder.path()) };
    let mut lines = examples(&job);
    // Half of the prompts have only a good answer, the others only a bad one.
    for (i, line) in lines.iter_mut().enumerate() {
        if i % 2 == 0 { line.rejected = None } else { line.chosen.clear() }
    }
    write_lines(&job, &lines);
    let steps = steps(&job);
    let (first, last) = (steps[0], steps[steps.len() - 1]);
    assert!((first.loss - 0.5).abs() < 1e-3 && first.kl.abs() < 1e-3, "the reference: {first:?}");
    assert!(last.loss < 0.9 * first.loss, "{first:?} {last:?}");
    assert!(last.rewards_chosen > last.rewards_rejected + 0.1, "{last:?}");

    lines[5].rejected = None;
    write_lines(&job, &lines);
    assert!(refusal(&job).contains("line 6: an empty sequence"));
}

/// A job on groups of three answers to each prompt, and the groups.
fn grpo(folder: &Path) -> (Job, Vec<Group>) {
    let objective = Objective::Grpo { beta: 0.01, epsilon: 0.2, importance_cap: 2.0 };
    let job = Job { objective, ..job(folder) };
    let model = tiny();
    let rollout = |prompt: &[i32], tokens: &[i32], reward: f64| {
        let sequence = Sequence { tokens: [prompt, tokens].concat(), from: prompt.len() };
        Rollout { tokens: tokens.to_vec(), logprobs: logprobs(&model, &[sequence]), reward }
    };
    let groups: Vec<Group> = examples(&job)
        .iter()
        .map(|example| {
            let other: Vec<i32> = example.chosen.iter().map(|token| token + 9).collect();
            let answers = vec![
                rollout(&example.prompt, &example.chosen, 1.0),
                rollout(&example.prompt, example.rejected.as_ref().unwrap(), 0.0),
                rollout(&example.prompt, &other, 0.25),
            ];
            let (prompt_id, prompt) = (example.prompt_id.clone(), example.prompt.clone());
            Group { prompt_id, prompt, answers }
        })
        .collect();
    write_lines(&job, &groups);
    (job, groups)
}

#[test]
fn grpo_learns_what_was_rewarded() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (mut job, groups) = grpo(folder.path());
    job.optimizer.epochs = 12;
    let steps = steps(&job);
    let (first, last) = (steps[0], steps[steps.len() - 1]);
    assert!(first.loss.abs() < 1e-3 && first.kl.abs() < 1e-4, "advantages cancel: {first:?}");
    assert!((first.reward - 1.25 / 3.0).abs() < 1e-6 && 0.4 < first.reward_std, "{first:?}");
    assert!(last.loss < -0.05 && 0.0 < last.kl, "{last:?}");

    let mut bad = groups.clone();
    bad[3].answers[1].logprobs.pop();
    write_lines(&job, &bad);
    assert!(refusal(&job).contains("line 4: 3 log-probs for 4 tokens"), "{}", refusal(&job));
    let mut bad = groups.clone();
    bad[1].answers.truncate(1);
    write_lines(&job, &bad);
    assert!(refusal(&job).contains("line 2: a group needs at least two answers"));
    let mut bad = groups;
    bad[0].answers[0].logprobs[0] = 0.5;
    write_lines(&job, &bad);
    assert!(refusal(&job).contains("line 1: a reward or a log-prob is no sound number"));
}

/// With one byte every pair is a pass of its own, every answer of a group too, and blocks are computed
/// twice.
#[test]
fn small_passes_and_recomputed_blocks_give_the_same_run() {
    let _alone = alone();
    let of = |job: fn(&Path) -> Job| {
        let same = |limit| {
            let folder = tempfile::tempdir().unwrap();
            steps(&Job { memory_limit_bytes: limit, ..job(folder.path()) })
        };
        let (free, tight) = (same(None), same(Some(1)));
        assert_eq!(free.len(), tight.len());
        for (a, b) in free.iter().zip(&tight) {
            assert!(a.tokens < b.tokens, "what is shared is computed in every pass: {a:?} {b:?}");
            assert!((a.loss - b.loss).abs() < 1e-4 * a.loss.abs().max(1.0), "{a:?} {b:?}");
            assert!((a.grad_norm - b.grad_norm).abs() < 1e-2 * a.grad_norm, "{a:?} {b:?}");
            assert!((a.reward_std - b.reward_std).abs() < 1e-6, "{a:?} {b:?}");
        }
    };
    of(job);
    of(|folder| grpo(folder).0);
}
