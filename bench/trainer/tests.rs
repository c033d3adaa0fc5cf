//! Tests of the comparison of both trainers, in a program of their own: the benchmark has no test
//! harness.

#![allow(dead_code, reason = "the parts are used by the benchmark, which is another program")]

mod parity;
mod results;
mod side;

use std::collections::BTreeMap;
use std::path::Path;

use protocol::Compute;
use serde_json::{Value, json};

use parity::{N_UPDATES, Parity, Step, compare, fault, tolerance};
use results::{Case, File, Measured, Results, Round, best};
use testkit::bench::results as shared;

fn steps() -> Vec<Step> {
    let step = |number: usize| Step {
        loss: 0.69 - 0.01 * number as f64,
        grad_norm: 8.6,
        logps_chosen: -1369.0 + number as f64,
        logps_rejected: -1372.0 - number as f64,
    };
    (0..=N_UPDATES).map(step).collect()
}

/// What the comparison says when the other side's steps are changed.
fn fault_of(change: impl Fn(&mut Vec<Step>)) -> Option<String> {
    let mut theirs = steps();
    change(&mut theirs);
    let differences = compare(&steps(), &theirs, tolerance(Compute::F32));
    fault(&differences.expect("both have made all steps"))
}

#[test]
fn a_side_that_computes_something_else_is_told_from_one_that_rounds() {
    assert_eq!(fault_of(|_| ()), None);
    assert_eq!(fault_of(|steps| steps[0].grad_norm *= 1.0 + 1e-6), None);
    for (change, name) in [
        (
            &(|steps: &mut Vec<Step>| steps[0].grad_norm *= 1.001) as &dyn Fn(&mut Vec<Step>),
            "gradient",
        ),
        (&|steps| steps[0].logps_rejected -= 0.1, "log-probs of step 1"),
        (&|steps| steps[20].logps_chosen -= 0.1, "change of log-probs"),
        (&|steps| steps[20].logps_rejected = f64::NAN, "change of log-probs"),
        (&|steps| steps[7].loss += 0.01, "loss"),
        (&|steps| steps[3].loss = f64::NAN, "loss"),
        (&|steps| steps[0].grad_norm = f64::NAN, "gradient"),
    ] {
        let fault = fault_of(change).unwrap_or_default();
        assert!(fault.starts_with(name), "{name}: {fault:?}");
    }
    let short = &steps()[..N_UPDATES];
    assert!(compare(&steps(), short, tolerance(Compute::F32)).is_none());
}

fn parity(planted_loss: f64) -> Parity {
    let (ours, theirs) = (steps(), steps());
    let tolerance = tolerance(Compute::F32);
    let differences = compare(&ours, &theirs, tolerance).expect("both have made all steps");
    let mut faulty = steps();
    faulty[9].loss += planted_loss;
    let planted = compare(&faulty, &theirs, tolerance).expect("both have made all steps");
    let planted = [("beta", planted)].into();
    Parity { seed: 7, differences, planted, rounding: None, ours, theirs }
}

#[test]
fn a_comparison_that_sees_no_planted_fault_is_one() {
    assert_eq!(parity(0.1).faults(), Vec::<String>::new());
    assert_eq!(parity(0.0).faults(), ["seed 7: the comparison does not see beta"]);
}

#[test]
fn the_committed_comparisons_agree_and_see_planted_faults() {
    let text = include_str!("results.json");
    let file: Value = serde_json::from_str(text).unwrap();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut computes = Vec::new();
    for (name, row) in file["rows"].as_object().unwrap() {
        let compute: Compute = serde_json::from_value(row["compute"].clone()).unwrap();
        for parity in list(&row["parities"]) {
            let steps =
                |side: &str| -> Vec<Step> { serde_json::from_value(parity[side].clone()).unwrap() };
            let again = compare(&steps("ours"), &steps("theirs"), tolerance(compute)).unwrap();
            assert_eq!(fault(&again), None, "{name}");
            // The file says what the code says now.
            assert_eq!(serde_json::to_value(again).unwrap(), parity["differences"], "{name}");
            let is_outside = |it: &Value| it["value"].as_f64() > it["at_most"].as_f64();
            let planted = parity["planted"].as_object().unwrap();
            assert_eq!(planted.len(), 2, "{name}");
            for (fault, differences) in planted {
                assert!(list(differences).iter().any(is_outside), "{name} does not see {fault}");
            }
            computes.push(compute);
        }
    }
    for compute in [Compute::F32, Compute::Bf16] {
        assert!(computes.contains(&compute), "no row compares in {compute:?}");
    }
}

fn case() -> Case {
    Case {
        n_blocks: results::BLOCKS,
        n_vocab: 32_000,
        compute: "f32".to_owned(),
        lengths: [256, 128],
    }
}

/// One round with or without the other side.
fn round(is_compared: bool) -> Vec<Round> {
    let measured = |pairs_per_second| Measured { pairs_per_second, peak_bytes: 1 << 30 };
    let theirs = is_compared.then(|| ("micro-batch 2".to_owned(), measured(1.0)));
    vec![Round { ours: measured(2.0), theirs: theirs.into_iter().collect() }]
}

fn results(path: &Path) -> Results {
    let mut results = Results::new(path.to_owned(), "cpu", 2, None).expect("the file is sound");
    results.peer = Some(json!({"trl": "1"}));
    results
}

#[test]
fn a_run_without_the_other_side_replaces_no_comparison_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.json");
    let file = || -> Value { serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap() };

    // Where nobody was compared with, a run of ours alone replaces one.
    for _ in 0..2 {
        let mut alone = results(&path);
        alone.add(case(), round(false)).unwrap();
        alone.write().unwrap();
    }
    let mut both = results(&path);
    both.add(case(), round(true)).unwrap();
    both.add_parity(case(), 4, vec![parity(0.1)]);
    both.write().unwrap();
    let before = file();
    assert_eq!(before["rows"]["dpo_lora_f32_vocabulary_32000"]["ours"]["speed_ratio"], 1.0);

    let mut alone = results(&path);
    let refused = alone.check_may_replace(&case()).unwrap_err().to_string();
    assert!(refused.contains("TRL_PYTHON"), "{refused}");
    assert!(alone.add(case(), round(false)).is_err());
    alone.write().unwrap();
    assert_eq!(file(), before);

    // One that measures speed alone leaves what is known about the numbers.
    let mut speed = results(&path);
    speed.add(case(), round(true)).unwrap();
    speed.write().unwrap();
    assert_eq!(
        file()["rows"]["parity_f32_vocabulary_32000"],
        before["rows"]["parity_f32_vocabulary_32000"]
    );
}

/// Of the other side's settings one may be the fastest and another one the smallest.
#[test]
fn the_other_side_is_measured_by_its_best_settings() {
    let measured =
        |pairs_per_second, gib: u64| Measured { pairs_per_second, peak_bytes: gib * (1 << 30) };
    let settings =
        [("one", measured(1.0, 1)), ("four", measured(1.5, 4)), ("two", measured(1.2, 2))];
    let theirs: BTreeMap<_, _> = settings.map(|(name, it)| (name.to_owned(), it)).into();
    assert_eq!(best(&theirs), [Some("four"), Some("one")]);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.json");
    let mut results = results(&path);
    results.add(case(), vec![Round { ours: measured(3.0, 2), theirs }]).unwrap();
    results.write().unwrap();
    let file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let goal = |what: &str| {
        let mut goals = file["goals"].as_array().unwrap().iter();
        let goal = goals.find(|goal| goal["name"].as_str().unwrap().contains(what)).unwrap();
        goal["value"].as_f64().unwrap()
    };
    let ratios = [goal("faster than TRL"), goal("smaller than TRL")];
    assert!((ratios[0] - 2.0).abs() < 1e-9 && (ratios[1] - 0.5).abs() < 1e-9, "{ratios:?}");
}

/// With and without checkpointing.
#[test]
fn one_micro_batch_has_no_best() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.json");
    let Round { ours, mut theirs } = round(true).remove(0);
    theirs.insert("micro-batch 2, checkpointing".to_owned(), theirs["micro-batch 2"]);
    let mut results = results(&path);
    results.add(case(), vec![Round { ours, theirs }]).unwrap();
    results.write().unwrap();
    let file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let goals = file["goals"].as_array().unwrap();
    assert_eq!(goals.iter().map(|goal| &goal["value"]).collect::<Vec<_>>(), [&Value::Null; 2]);
}

#[test]
fn the_document_shows_what_the_file_says_and_its_goals_follow_from_its_rows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut file: File = shared::read(&root.join("bench/trainer/results.json")).unwrap();
    let document = std::fs::read_to_string(root.join("docs/internals/performance.md")).unwrap();
    let table = file.table().unwrap();
    let table = table.trim_end();
    assert!(document.contains(table), "run `make bench-trainer ARGS=--render`:\n{table}");
    let written = file.goals.clone();
    file.renew_goals();
    assert_eq!(file.goals, written);
}
