//! Each objective in a whole run on the tiny model: it learns what it should, from the lines that are
//! its own, and what it cannot use is refused with the line.

use protocol::{Example, Group, Job, Objective, Rollout, Step, TrainerEvent};

use super::fixtures::{alone, job, logprobs, refusal, run, steps_of, tiny, write};
use crate::batch::Sequence;

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

#[test]
fn grpo_learns_what_was_rewarded() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let objective = Objective::Grpo { beta: 0.01, epsilon: 0.2, importance_cap: 2.0 };
    let mut job = Job { objective, ..job(folder.path()) };
    job.optimizer.epochs = 12;
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

#[test]
fn small_passes_and_recomputed_blocks_give_the_same_run() {
    let _alone = alone();
    let of = |limit: Option<u64>| {
        let folder = tempfile::tempdir().unwrap();
        let job = Job { memory_limit_bytes: limit, ..job(folder.path()) };
        steps(&job)
    };
    // With one byte every example is a pass of its own and blocks are computed twice.
    let (free, tight) = (of(None), of(Some(1)));
    assert_eq!(free.len(), tight.len());
    for (a, b) in free.iter().zip(&tight) {
        assert!((a.loss - b.loss).abs() < 1e-4 * a.loss.abs().max(1.0), "{a:?} {b:?}");
        assert!((a.grad_norm - b.grad_norm).abs() < 1e-2 * a.grad_norm, "{a:?} {b:?}");
    }
}
