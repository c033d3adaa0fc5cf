//! The real trainer over rounds and stops: the second round is about the policy that is served as
//! generation 1, its adapter alone is the whole of generation 2, and a trainer that was stopped for a
//! chat does not count the time.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

use engine::{Generation, LogprobRequest, Priority, Token, Weights};
use protocol::{Example, Step, TrainerEvent};
use rustix::process::{Pid, Signal, kill_process};

use crate::parity::{dequantize, examples, gap, job, load, said, start, train, trained};

#[tokio::test]
async fn round_two_begins_from_what_is_served_as_generation_1_and_ends_as_a_whole_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("agents/nano/model.gguf");
    let exact = folder.path().join("f32.gguf");
    dequantize(&shipped, &exact);
    let examples = examples(&shipped);
    let one = train(&job(&exact, &examples, &folder.path().join("one")));

    let mut second = job(&exact, &examples, &folder.path().join("two"));
    second.start = Some(one.adapter.clone());
    // All examples are in the first step, which sees the policy that the round starts from.
    second.optimizer.batch_pairs = examples.len();
    let (status, events) = said(&second);
    assert!(status.success(), "{events:?}");
    let two = trained(events.last().unwrap());
    let first = events.iter().find_map(|event| match event {
        TrainerEvent::Step(step) => Some(*step),
        _ => None,
    });
    let Step { logps_chosen, logps_rejected, rewards_margins, .. } = first.unwrap();
    assert!(rewards_margins.abs() < 1e-4, "policy and reference are the same: {first:?}");

    let (engine, thread) = load(&exact).await;
    let (generation_1, generation_2) = (Generation(1), Generation(2));
    engine.load_adapter(generation_1, one.adapter.clone()).await.unwrap();
    engine.load_adapter(generation_2, two.adapter.clone()).await.unwrap();
    let served = async |weights, answer: fn(&Example) -> &Vec<i32>| {
        let sequence = |example: &Example| {
            let tokens = example.prompt.iter().chain(answer(example)).copied().map(Token);
            (tokens.collect(), example.prompt.len())
        };
        let sequences = examples.iter().map(sequence).collect();
        let request = LogprobRequest { sequences, weights, priority: Priority::Gate };
        let logprobs = engine.logprobs(request).await.unwrap();
        logprobs.iter().flatten().copied().map(f64::from).sum::<f64>() / examples.len() as f64
    };
    let of = Weights::Generation(generation_1);
    let chosen = served(of, |example| &example.chosen).await;
    let rejected = served(of, |example| example.rejected.as_ref().unwrap()).await;
    assert!((chosen - logps_chosen).abs() < 5e-3, "{chosen} {logps_chosen}");
    assert!((rejected - logps_rejected).abs() < 5e-3, "{rejected} {logps_rejected}");
    let base = served(Weights::Active, |example| &example.chosen).await;
    assert!(0.1 < (base - chosen).abs(), "round one changed nothing, so this shows nothing");

    let of = Weights::Generation(generation_2);
    gap("round 2, alone on the base", &engine, of, &two).await.assert_within(2e-4, 2e-3);
    let unlike = gap("round 1 for it", &engine, Weights::Generation(generation_1), &two).await;
    assert!(2e-3 < unlike.max, "round two changed nothing, so this shows nothing");
    drop(engine);
    thread.join().unwrap();
}

#[test]
fn a_trainer_that_is_told_to_end_goes_on_where_it_was_and_comes_to_the_same() {
    /// `exit.rs`: may be tried again.
    const TRY_AGAIN: i32 = 75;
    let folder = tempfile::tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("agents/nano/model.gguf");
    let examples = examples(&shipped);
    // A run so long that the signal arrives before it is done.
    let long = |name: &str| {
        let mut job = job(&shipped, &examples, &folder.path().join(name));
        (job.validation_share, job.optimizer.epochs) = (0.25, 20);
        job
    };
    let (status, undisturbed) = said(&long("whole"));
    assert!(status.success(), "{undisturbed:?}");

    let parts = long("parts");
    let mut together = Vec::new();
    // By the end of its standard input, then by SIGTERM.
    for (way, last) in [3, 20].into_iter().enumerate() {
        let (mut child, stdin) = start(&parts);
        let pid = Pid::from_child(&child);
        let mut stdin = Some(stdin);
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let event: TrainerEvent = serde_json::from_str(&line.unwrap()).unwrap();
            if matches!(event, TrainerEvent::Step(Step { step, .. }) if step == last) {
                match way {
                    0 => drop(stdin.take()),
                    _ => kill_process(pid, Signal::TERM).unwrap(),
                }
            }
            together.push(event);
        }
        assert_eq!(child.wait().unwrap().code(), Some(TRY_AGAIN), "{together:?}");
    }
    let (status, rest) = said(&parts);
    assert!(status.success(), "{rest:?}");
    together.extend(rest);
    let resumed = |event: &&TrainerEvent| matches!(event, TrainerEvent::Resumed { .. });
    assert_eq!(together.iter().filter(resumed).count(), 2, "{together:?}");

    let losses = |events: &[TrainerEvent]| -> Vec<(usize, f64)> {
        let of = |event: &TrainerEvent| match event {
            TrainerEvent::Step(step) => Some((step.step, step.loss)),
            TrainerEvent::Validation { step, loss } => Some((*step, *loss)),
            _ => None,
        };
        events.iter().filter_map(of).collect()
    };
    let (own, other) = (losses(&together), losses(&undisturbed));
    assert!(20 < other.len(), "{other:?}");
    assert_eq!(own.len(), other.len(), "no step is done twice: {own:?}");
    for (own, other) in own.iter().zip(&other) {
        assert!(own.0 == other.0 && (own.1 - other.1).abs() < 1e-4, "{own:?} {other:?}");
    }
    let read = |events: &[TrainerEvent]| trained(events.last().unwrap()).probe;
    let [own, other] = [&together, &undisturbed].map(|events| read(events).sequences);
    assert!(!own.is_empty() && own.len() == other.len(), "{} of {}", own.len(), other.len());
    for (own, other) in own.iter().zip(&other) {
        assert_eq!(own.tokens, other.tokens);
        assert_eq!(own.logprobs.len(), own.tokens.len() - own.from);
        assert_eq!(other.logprobs.len(), own.logprobs.len());
        let pairs = own.logprobs.iter().zip(&other.logprobs);
        assert!(pairs.into_iter().all(|(own, other)| (own - other).abs() < 1e-3));
    }
}

#[test]
fn the_time_for_which_a_trainer_is_stopped_is_none_of_its_speed() {
    const STOP: Duration = Duration::from_secs(2);
    let folder = tempfile::tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("agents/nano/model.gguf");
    let mut job = job(&shipped, &examples(&shipped), &folder.path().join("out"));
    // 4 steps an epoch.
    job.optimizer.epochs = 10;
    let (mut child, stdin) = start(&job);
    let pid = Pid::from_child(&child);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut steps = lines.filter_map(|line| match serde_json::from_str(&line.unwrap()) {
        Ok(TrainerEvent::Step(step)) => Some(step),
        _ => None,
    });
    // What it takes for its working time so far.
    let worked = |step: &Step| step.eta_s * step.step as f64 / (40 - step.step) as f64;
    let before = steps.find(|step| step.step == 5).unwrap();
    let began = Instant::now();
    kill_process(pid, Signal::STOP).unwrap();
    std::thread::sleep(STOP);
    kill_process(pid, Signal::CONT).unwrap();
    let after = steps.find(|step| step.step == 35).unwrap();
    let wall = began.elapsed().as_secs_f64();
    let counted = worked(&after) - worked(&before);
    assert!(counted < wall - 0.8 * STOP.as_secs_f64(), "{counted} s of {wall} s: {after:?}");
    assert!(0.0 < counted && 0.0 < after.tokens_per_second, "{after:?}");
    drop(stdin);
    child.wait().unwrap();
}
