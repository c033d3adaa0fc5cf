//! Interrupted runs: wherever a run is stopped, what follows is the run that was not. And what is kept
//! from run to run: the reference's log-probs.

use std::cell::RefCell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::{CHECKPOINT, Job, Objective, Optimizer, Step, TrainerEvent};
use tch::Device;

use super::fixtures::{alone, job, run, steps_of, write};
use crate::train::{self, Failure};

/// Runs until an event fits, then stops as if the daemon had ended. `None`: the run finished.
fn run_until(job: &Job, fits: impl Fn(&TrainerEvent) -> bool) -> Option<Vec<TrainerEvent>> {
    let (events, stop) = (RefCell::new(Vec::new()), AtomicBool::new(false));
    let emit = |event: &TrainerEvent| {
        events.borrow_mut().push(event.clone());
        stop.fetch_or(fits(event), Ordering::Relaxed);
    };
    match train::run(job, Device::Cpu, &emit, &stop) {
        Err(Failure::Stopped) => Some(events.into_inner()),
        Ok(()) => None,
        Err(other) => panic!("{other:?}"),
    }
}

/// A run of its own, whatever ran in the folder before.
fn anew(job: &Job) -> Vec<TrainerEvent> {
    drop(std::fs::remove_file(job.out.join(CHECKPOINT)));
    run(job).unwrap()
}

fn at_step(n: usize) -> impl Fn(&TrainerEvent) -> bool {
    move |event| matches!(event, TrainerEvent::Step(Step { step, .. }) if *step == n)
}

fn losses(events: &[TrainerEvent]) -> Vec<(usize, f64)> {
    steps_of(events).iter().map(|step| (step.step, step.loss)).collect()
}

fn validations(events: &[TrainerEvent]) -> Vec<(usize, f64)> {
    let of = |event: &TrainerEvent| match event {
        TrainerEvent::Validation { step, loss } => Some((*step, *loss)),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

fn n_reference(events: &[TrainerEvent]) -> usize {
    events.iter().filter(|event| matches!(event, TrainerEvent::Reference { .. })).count()
}

fn adapter(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("adapter.gguf")).unwrap()
}

#[test]
fn a_run_that_was_stopped_twice_ends_as_the_one_that_was_not() {
    let _alone = alone();
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = run(&job(whole.path())).unwrap();

    let job = job(parts.path());
    let first = run_until(&job, at_step(4)).unwrap();
    assert!(parts.path().join(CHECKPOINT).exists() && !parts.path().join("adapter.gguf").exists());
    // The interruption is in the second epoch, whose order has to be that of an uninterrupted run.
    let second = run_until(&job, at_step(7)).unwrap();
    assert!(second.contains(&TrainerEvent::Resumed { step: 4 }), "{second:?}");
    let third = run(&job).unwrap();
    assert!(third.contains(&TrainerEvent::Resumed { step: 7 }), "{third:?}");

    let together = [first, second, third].concat();
    assert_eq!(losses(&together), losses(&expected));
    assert_eq!(validations(&together), validations(&expected));
    assert_eq!(adapter(parts.path()), adapter(whole.path()));
    let (last, expected) = (together.last(), expected.last());
    let best = |event: Option<&TrainerEvent>| match event {
        Some(TrainerEvent::Done { best_step, best_loss, .. }) => (*best_step, *best_loss),
        other => panic!("{other:?}"),
    };
    assert_eq!(best(last), best(expected));
    // As long as the checkpoint is there, running again gives the same result.
    std::fs::remove_file(parts.path().join("adapter.gguf")).unwrap();
    let exported = run(&job).unwrap();
    assert!(exported.contains(&TrainerEvent::Resumed { step: 18 }) && losses(&exported).is_empty());
    assert_eq!(adapter(parts.path()), adapter(whole.path()));
}

#[test]
fn a_killed_run_goes_on_from_the_last_time_that_it_was_written_down() {
    let _alone = alone();
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = run(&job(whole.path())).unwrap();
    // What is there after kill -9: the file of some earlier step.
    let job = job(parts.path());
    let copy = parts.path().join("copy");
    let keep = |event: &TrainerEvent| {
        if matches!(event, TrainerEvent::Checkpoint { .. }) && !copy.exists() {
            std::fs::copy(parts.path().join(CHECKPOINT), &copy).unwrap();
        }
        at_step(8)(event)
    };
    run_until(&job, keep).unwrap();
    std::fs::rename(&copy, parts.path().join(CHECKPOINT)).unwrap();
    let rest = run(&job).unwrap();
    // 3 steps an epoch, 6 epochs: the first validation is after 5.
    assert!(rest.contains(&TrainerEvent::Resumed { step: 5 }), "{rest:?}");
    assert_eq!(losses(&rest), losses(&expected)[5..]);
    assert_eq!(adapter(parts.path()), adapter(whole.path()));
}

#[test]
fn the_state_is_written_as_often_as_the_job_says() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let written = |job: &Job| {
        let events = anew(job);
        let of = |event: &TrainerEvent| match event {
            TrainerEvent::Checkpoint { step } => Some(*step),
            _ => None,
        };
        events.iter().filter_map(of).collect::<Vec<_>>()
    };
    let job = job(folder.path());
    assert_eq!(written(&job), [5, 10, 15, 18], "at every validation");
    assert_eq!(written(&Job { checkpoint_s: 0.0, ..job.clone() }), (1..=18).collect::<Vec<_>>());
    assert_eq!(written(&Job { validations: 2, ..job }), [9, 18]);
}

#[test]
fn a_checkpoint_of_another_job_or_a_damaged_one_is_ignored_with_a_word() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path());
    run_until(&job, at_step(4)).unwrap();
    let path = folder.path().join(CHECKPOINT);
    let written = std::fs::read(&path).unwrap();
    let restore = |bytes: &[u8]| {
        files::write_atomic(&path, |out| std::io::Write::write_all(out, bytes)).unwrap();
    };
    // Threads, device and memory leave a job the same; settings and data make another one.
    let means = Job { threads: 2, checkpoint_s: 1e3, run: "again".into(), ..job.clone() };
    let resumed = run_until(&means, at_step(5)).unwrap();
    assert!(resumed.contains(&TrainerEvent::Resumed { step: 4 }));
    tch::set_num_threads(1);

    let begins_anew = |job: &Job, word: &str| {
        let events = run_until(job, at_step(1)).unwrap();
        let warns = events.iter().any(
            |event| matches!(event, TrainerEvent::Warning { message } if message.contains(word)),
        );
        assert!(warns, "{word}: {events:?}");
    };
    let optimizer = Optimizer { learning_rate: 2e-2, ..job.optimizer };
    restore(&written);
    begins_anew(&Job { optimizer, ..job.clone() }, "another job");
    restore(&written);
    let mut lines = std::fs::read_to_string(&job.data).unwrap();
    lines.truncate(lines.rfind('\n').unwrap());
    let data = folder.path().join("other.jsonl");
    write(&data, &lines);
    begins_anew(&Job { data, ..job.clone() }, "another job");
    restore(&written[..written.len() / 2]);
    begins_anew(&job, "first step");
}

#[test]
fn where_nothing_is_validated_the_last_weights_are_kept() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let events = run(&Job { validation_share: 0.0, ..job(folder.path()) }).unwrap();
    assert_eq!(validations(&events), []);
    let n_steps = losses(&events).len();
    let Some(TrainerEvent::Done { best_step, best_loss, last, .. }) = events.last() else {
        panic!("{events:?}")
    };
    assert_eq!((*best_step, *best_loss, last), (n_steps, None, &None));
}

#[test]
fn the_exported_weights_are_those_with_the_smallest_validation_loss() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut job = Job {
        objective: Objective::Sft,
        validations: 36,
        validation_share: 0.2,
        ..job(folder.path())
    };
    // A rate that first lowers the validation loss and then raises it.
    job.optimizer =
        Optimizer { learning_rate: 0.1, epochs: 12, max_grad_norm: 1e3, ..job.optimizer };
    let events = run(&job).unwrap();
    let all = validations(&events);
    let smallest = all.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let last = *all.last().unwrap();
    assert!(smallest.1 + 0.01 < last.1, "the last weights are not the best: {all:?}");
    let Some(TrainerEvent::Done { best_step, best_loss, last: kept, .. }) = events.last() else {
        panic!()
    };
    assert_eq!((*best_step, *best_loss), (smallest.0, Some(smallest.1)));
    // The weights after the last step are there too, with a probe of their own.
    let kept = kept.as_ref().unwrap();
    assert_eq!((kept.step, &*files::sha256(&kept.adapter).unwrap()), (last.0, &*kept.sha256));
    let probe = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert_ne!(probe("last-probe.json"), probe("probe.json"));
    let of_last = validated(&job, &kept.adapter);
    assert!((of_last - last.1).abs() < 1e-4, "{of_last} {last:?}");

    // Validated again, what was exported has this loss.
    let again = validated(&job, &folder.path().join("adapter.gguf"));
    assert!((again - smallest.1).abs() < 1e-4, "{again} {smallest:?} {last:?}");
}

/// The validation loss of an adapter of a job's folder; another run may then have that name.
fn validated(job: &Job, adapter: &Path) -> f64 {
    let start = job.out.join("start.gguf");
    std::fs::copy(adapter, &start).unwrap();
    let optimizer = Optimizer { learning_rate: 0.0, epochs: 1, ..job.optimizer };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_owned();
    validations(&anew(&Job { start: Some(start), optimizer, out, ..job.clone() }))[0].1
}

#[test]
fn a_second_run_with_the_same_reference_computes_only_what_is_new() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("references");
    for objective in [
        Objective::Dpo { beta: 0.1, nll: 1.0 },
        Objective::Kto { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0 },
    ] {
        let job = Job { objective, reference_cache: Some(cache.clone()), ..job(folder.path()) };
        let plain = anew(&Job { reference_cache: None, ..job.clone() });
        let first = anew(&job);
        assert_eq!((n_reference(&first), losses(&first)), (n_reference(&plain), losses(&plain)));
        let second = anew(&job);
        assert_eq!((n_reference(&second), losses(&second)), (0, losses(&plain)), "{objective:?}");
    }
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 1, "one policy, one file");

    // More data: only the new example is computed; another reference: all of them.
    let job = Job { reference_cache: Some(cache.clone()), ..job(folder.path()) };
    anew(&job);
    let lines = std::fs::read_to_string(&job.data).unwrap();
    let new = "{\"prompt_id\":\"new\",\"prompt\":[2,9,3],\"chosen\":[7,4],\"rejected\":[8,4]}";
    write(&job.data, &format!("{lines}\n{new}"));
    let more = anew(&job);
    let counts = |event: &TrainerEvent| match event {
        TrainerEvent::Reference { done, total } => Some((*done, *total)),
        _ => None,
    };
    assert_eq!(more.iter().filter_map(counts).collect::<Vec<_>>(), [(25, 25)]);
    let start = folder.path().join("start.gguf");
    std::fs::rename(folder.path().join("adapter.gguf"), &start).unwrap();
    let other = anew(&Job { start: Some(start), ..job.clone() });
    assert_eq!(
        n_reference(&other),
        n_reference(&anew(&Job { reference_cache: None, ..job.clone() }))
    );
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 2);

    // A damaged file is reported, and its log-probs are computed again.
    for entry in std::fs::read_dir(&cache).unwrap() {
        write(&entry.unwrap().path(), "damaged");
    }
    let events = anew(&job);
    assert!(events.iter().any(|event| matches!(event, TrainerEvent::Warning { .. })));
    assert!(0 < n_reference(&events));
}

#[test]
fn a_reference_that_was_interrupted_goes_on_where_it_was() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let cache = Some(folder.path().join("references"));
    let job = Job { reference_cache: cache, ..job(folder.path()) };
    let first = |event: &TrainerEvent| matches!(event, TrainerEvent::Reference { .. });
    assert_eq!(n_reference(&run_until(&job, first).unwrap()), 1);
    // 24 examples, 8 a batch.
    assert_eq!(n_reference(&run(&job).unwrap()), 2);
}
