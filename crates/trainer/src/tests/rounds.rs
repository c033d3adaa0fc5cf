//! Several rounds: a round begins from the adapter of the last one, which is its reference, and exports
//! a whole adapter. That the server agrees is tested end to end.

use std::path::{Path, PathBuf};

use files::gguf::{Gguf, Writer};
use protocol::{Job, Lora as LoraShape, Step, TrainerEvent};
use tch::Device;

use super::fixtures::{alone, job, logprobs, refusal, run, sequences, steps_of, tiny};
use crate::export;

/// A job that starts from the adapter of a first round in the same folder.
fn second_round(folder: &Path) -> Job {
    let mut job = job(folder);
    run(&job).unwrap();
    let start = folder.join("start.gguf");
    std::fs::rename(folder.join("adapter.gguf"), &start).unwrap();
    job.start = Some(start);
    job
}

/// The log-probs of the base with an adapter.
fn with_adapter(job: &Job, path: &Path, shape: LoraShape) -> Vec<f32> {
    let mut model = tiny();
    let lora = export::load(path, &job.base_sha256, &model.shape, shape, Device::Cpu).unwrap();
    model.lora = Some(lora);
    logprobs(&model, &sequences())
}

fn probe(folder: &Path) -> protocol::Probe {
    serde_json::from_slice(&std::fs::read(folder.join("probe.json")).unwrap()).unwrap()
}

fn first_step(job: &Job) -> Step {
    steps_of(&run(job).unwrap())[0]
}

fn assert_near(left: &[f32], right: &[f32]) {
    assert_eq!(left.len(), right.len());
    for (a, b) in left.iter().zip(right) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn the_next_round_starts_from_the_adapter_of_the_last_which_is_its_reference() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut job = second_round(folder.path());
    let one = probe(folder.path());
    job.optimizer.learning_rate = 0.0;
    let first = first_step(&job);
    assert!(first.rewards_margins.abs() < 1e-3, "the reference is the start: {first:?}");
    let two = probe(folder.path());
    for (one, two) in one.sequences.iter().zip(&two.sequences) {
        assert_eq!(two.logprobs, one.logprobs, "nothing was lost");
        assert_eq!(two.start_logprobs, two.logprobs, "round two starts from round one's adapter");
        assert_ne!(one.start_logprobs, one.logprobs, "round one started from the base");
    }

    // From the base the same data are as new.
    let base = first_step(&Job { start: None, ..job.clone() });
    assert!(base.rewards_margins.abs() < 1e-3, "the reference is the base: {base:?}");
    assert!(base.logps_chosen + 1.0 < first.logps_chosen, "{base:?} {first:?}");
}

#[test]
fn the_adapter_of_a_later_round_is_whole_on_the_base() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let job = second_round(folder.path());
    let events = run(&job).unwrap();
    let Some(TrainerEvent::Done { adapter, probe, .. }) = events.last() else { panic!() };
    let probe: protocol::Probe = serde_json::from_slice(&std::fs::read(probe).unwrap()).unwrap();
    let mut model = tiny();
    let lora = export::load(adapter, &job.base_sha256, &model.shape, job.lora, Device::Cpu);
    model.lora = Some(lora.unwrap());
    for sequence in &probe.sequences {
        let own = crate::batch::Sequence { tokens: sequence.tokens.clone(), from: sequence.from };
        assert_near(&logprobs(&model, &[own]), &sequence.logprobs);
    }
    let one = with_adapter(&job, &folder.path().join("start.gguf"), job.lora);
    let two = with_adapter(&job, adapter, job.lora);
    let moved = one.iter().zip(&two).any(|(a, b)| 0.1 < (a - b).abs());
    assert!(moved, "the second round learns more: {one:?} {two:?}");
}

#[test]
fn a_larger_rank_and_another_alpha_start_as_the_same_policy_and_a_smaller_rank_is_refused() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let job = second_round(folder.path());
    let start: PathBuf = job.start.clone().unwrap();
    let same = with_adapter(&job, &start, job.lora);
    for shape in [LoraShape { rank: 7, alpha: 8.0 }, LoraShape { rank: 4, alpha: 3.0 }] {
        assert_near(&with_adapter(&job, &start, shape), &same);
    }
    // The added rows are trained: a run changes them.
    let wider = Job { lora: LoraShape { rank: 8, alpha: 16.0 }, ..job.clone() };
    let steps = steps_of(&run(&wider).unwrap());
    assert!(steps[0].rewards_margins.abs() < 1e-3 && steps[0].grad_norm > 0.0, "{:?}", steps[0]);
    let lora = LoraShape { rank: 2, alpha: 8.0 };
    let refusal = refusal(&Job { lora, ..job });
    assert!(refusal.contains("learn.lora.rank to 4 or more"), "{refusal}");
}

#[test]
fn layers_that_an_adapter_leaves_alone_begin_at_nothing() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let job = second_round(folder.path());
    let whole = Gguf::open(job.start.as_ref().unwrap()).unwrap();
    let part = folder.path().join("part.gguf");
    let mut writer = Writer::default();
    for (key, value) in whole.entries() {
        writer.metadata(key, value.clone());
    }
    for info in whole.tensors().iter().filter(|info| !info.name.contains("ffn_")) {
        writer.tensor(&info.name, &info.shape, whole.read_f32(info).unwrap());
    }
    writer.write(&part).unwrap();
    let shape = tiny().shape;
    let load = |path: &Path| {
        export::load(path, &job.base_sha256, &shape, job.lora, Device::Cpu).unwrap().pairs
    };
    let (whole, part) = (load(job.start.as_ref().unwrap()), load(&part));
    for (name, (_, b)) in &part {
        let expected = if name.contains("ffn_") { b.zeros_like() } else { whole[name].1.copy() };
        assert!(b.allclose(&expected, 0.0, 0.0, false), "{name}");
    }
}
