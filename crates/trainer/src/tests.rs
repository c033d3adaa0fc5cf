//! The trainer against itself, on a tiny random-weight model: prefix sharing changes nothing, gradients are
//! those of the loss, a run learns, repeats and can be resumed, bad input is refused by name. That its
//! log-probs are llama.cpp's is tested end to end, where llama.cpp is.

mod architectures;
mod fixtures;
mod hostile;
mod losses;
mod objectives;
mod resume;
mod rounds;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use protocol::{Example, Job, Objective, TrainerEvent};
use tch::Device;

use crate::train::{self, Failure};
use fixtures::{alone, job, logprobs, refusal, run, sequences, steps_of, tiny, write};

#[test]
fn a_packed_tree_gives_the_log_probs_of_separate_sequences() {
    let _alone = alone();
    let model = tiny();
    let packed = logprobs(&model, &sequences());
    let separate: Vec<f32> =
        sequences().iter().flat_map(|one| logprobs(&model, std::slice::from_ref(one))).collect();
    assert_eq!(packed.len(), 9);
    for (a, b) in packed.iter().zip(&separate) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn a_run_learns_the_preference_and_says_so() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let events = run(&job(folder.path())).unwrap();
    let steps = steps_of(&events);
    let (first, last) = (steps[0], steps[steps.len() - 1]);
    assert!(first.rewards_margins.abs() < 1e-3, "step 1 starts at the reference: {first:?}");
    assert!(last.loss < 0.7 * first.loss && last.rewards_accuracies > 0.9, "{first:?} {last:?}");
    let Some(TrainerEvent::Done { adapter, sha256, best_loss, .. }) = events.last() else {
        panic!("{events:?}")
    };
    assert_eq!(files::sha256(adapter).unwrap(), *sha256);
    assert!(best_loss.is_some_and(|loss| loss.is_finite() && 0.0 < loss));
}

#[test]
fn the_same_seed_gives_the_same_adapter() {
    let _alone = alone();
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hash = |folder: &Path| match run(&job(folder)).unwrap().pop() {
        Some(TrainerEvent::Done { sha256, .. }) => sha256,
        other => panic!("{other:?}"),
    };
    assert_eq!(hash(one.path()), hash(two.path()));
}

#[test]
fn sft_needs_no_rejected_answers() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path());
    job.objective = Objective::Sft;
    let lines = std::fs::read_to_string(&job.data).unwrap();
    let lines: Vec<String> = lines
        .lines()
        .map(|line| {
            let mut example: Example = serde_json::from_str(line).unwrap();
            example.rejected = None;
            serde_json::to_string(&example).unwrap()
        })
        .collect();
    write(&job.data, &lines.join("\n"));
    let events = run(&job).unwrap();
    assert!(matches!(events.last(), Some(TrainerEvent::Done { .. })));
    job.objective = Objective::DpoNorm { beta: 5.0, nll: 0.0 };
    assert!(refusal(&job).contains("line 1: the objective needs a rejected answer"));
}

#[test]
fn bad_input_is_refused_by_name() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let good = job(folder.path());
    assert!(
        refusal(&Job { base_sha256: "0".into(), ..good.clone() })
            .contains("not the file that is served")
    );
    assert!(refusal(&Job { version: 99, ..good.clone() }).contains("version"));
    assert!(refusal(&Job { max_tokens: 6, ..good.clone() }).contains("24 are longer"));
    let data = folder.path().join("bad.jsonl");
    let bad = Job { data: data.clone(), ..good.clone() };
    write(&data, "");
    assert!(refusal(&bad).contains("no example"));
    write(&data, "{\"prompt_id\":\"a\",\"prompt\":[1],\"chosen\":[999999],\"rejected\":[3]}");
    assert!(refusal(&bad).contains("line 1: a token is not in the vocabulary"));
    write(&data, "{\"prompt\":");
    assert!(refusal(&bad).contains("line 1"));
    let mut wild = good;
    wild.optimizer.learning_rate = f64::NAN;
    assert!(refusal(&wild).contains("not finite"));
    assert!(!folder.path().join("adapter.gguf").exists());
}

#[test]
fn a_stopped_run_writes_nothing() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let result = train::run(&job(folder.path()), Device::Cpu, &|_| (), &AtomicBool::new(true));
    assert!(matches!(result, Err(Failure::Stopped)));
    assert!(!folder.path().join("adapter.gguf").exists());
}
