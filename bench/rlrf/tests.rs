//! Tests of the experiment: its pure parts, and the whole course of it once in a size of seconds,
//! with the real model and the real trainer. That shows that the parts fit; what the method gains
//! is in `docs/internals/rlrf.md`. A program of its own, because the benchmark has no test harness.
#![allow(dead_code, reason = "the parts are used by the benchmark, which is another program")]
#![allow(clippy::print_stderr, reason = "the parts say what they do")]

mod arms;
mod experiment;
mod explore;
mod lab;
mod measure;
mod plot;
mod records;
mod results;
mod setting;
mod statistics;
mod table;
mod train;
mod unit;

use std::path::Path;
use testkit::bench::results as shared;

use arms::{ARMS, Arm, EXPLORERS, JUDGES, Judge, Unit};
use config::PromptLine;
use engine::{FinishReason, Generation, Sampling};
use measure::distinct;
use nano::prompts::prompt_lines;
use nano::world::Split;
use records::{Finding, Records};
use reflectd::reflect::verify::Check;
use results::Results;
use setting::{Scale, Setting};
use statistics::{mcnemar, pooled, shares};
use store::{Assessment, Author, Candidate, CandidateId, Exchange, ExchangeId, Source};
use testkit::bench::results::Provenance;

/// Everything once, in seconds.
const TINY: Scale = Scale {
    seeds: 1,
    held_out: 20,
    sampled: 4,
    gate: 20,
    prompts: 12,
    drafts: 4,
    refinements: 4,
    is_development: false,
};

fn run() -> Provenance {
    Provenance { machine: "a machine".into(), commit: "test".into(), ..Provenance::default() }
}

fn difference(a: &[Vec<bool>], b: &[Vec<bool>]) -> statistics::Difference {
    let of = |seeds: &[Vec<bool>]| seeds.iter().map(|one| shares(one)).collect::<Vec<_>>();
    statistics::difference(&of(a), &of(b))
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6
}

#[test]
fn mcnemar_is_a_two_sided_sign_test_of_the_discordant_problems() {
    let a = [true, true, false, false, false, false, false, false];
    let b = [true, false, true, true, true, true, true, false];
    // 5 against 1: 2 (C(6,5) + C(6,6)) / 64.
    assert!(close(mcnemar(&a, &b), 14.0 / 64.0));
    assert!(close(mcnemar(&a, &b), mcnemar(&b, &a)));
    assert!(close(mcnemar(&a, &a), 1.0));
}

#[test]
fn one_seeds_difference_is_mcnemars_z() {
    // 30 wins and 10 losses of 100: z = 20 / sqrt(40) = 3.1623, two-sided p 0.0015654.
    let a: Vec<bool> = (0..100).map(|i| i < 10).collect();
    let b: Vec<bool> = (0..100).map(|i| (10..40).contains(&i)).collect();
    let found = difference(&[a], &[b]);
    assert!(close(found.value, 0.2));
    assert!((found.p - 0.001_565_4).abs() < 1e-6, "{found:?}");
    assert!(found.lo < 0.2 && 0.2 < found.hi && 0.0 < found.lo);
}

#[test]
fn equal_seeds_prove_no_more_than_one() {
    let a: Vec<bool> = (0..100).map(|i| i < 10).collect();
    let b: Vec<bool> = (0..100).map(|i| (10..40).contains(&i)).collect();
    let one = difference(std::slice::from_ref(&a), std::slice::from_ref(&b));
    let three = difference(&vec![a.clone(); 3], &vec![b; 3]);
    assert!(close(one.p, three.p) && close(one.lo, three.lo));
    let (one, three) = (pooled(std::slice::from_ref(&a)).unwrap(), pooled(&vec![a; 3]).unwrap());
    assert!(close(one.lo, three.lo) && close(one.hi, three.hi));
}

#[test]
fn independent_seeds_prove_more_than_one() {
    let seed = |period: usize| (0..1000).map(|i| (i / period) % 2 == 1).collect();
    let seeds: Vec<Vec<bool>> = [1, 7, 49].map(seed).into();
    let one = pooled(&seeds[..1]).unwrap();
    let three = pooled(&seeds).unwrap();
    assert!(three.hi - three.lo < 0.7 * (one.hi - one.lo));
}

#[test]
fn a_clear_difference_has_a_small_p_and_none_has_one() {
    let all = vec![vec![true; 400]];
    let none = vec![vec![false; 400]];
    let clear = difference(&none, &all);
    assert!(clear.p < 1e-80 && close(clear.value, 1.0), "{clear:?}");
    assert!(close(difference(&all, &all).p, 1.0));
}

#[test]
fn distinct_counts_each_different_n_gram_once() {
    let answers: [&[i32]; 2] = [&[1, 2, 1, 2], &[1, 2]];
    assert!(close(distinct(&answers, 1), 2.0 / 6.0));
    assert!(close(distinct(&answers, 2), 2.0 / 4.0));
    assert!(close(distinct(&answers, 5), 0.0));
}

#[test]
fn what_is_sampled_often_and_what_scores_best_are_told_apart() {
    let candidate = |id: i64, text: &str, value: f32| Candidate {
        id: CandidateId(id),
        author: Author::Model,
        parent: None,
        generation: Generation::BASE,
        text: text.into(),
        tokens: Vec::new(),
        logprobs: Vec::new(),
        sampling: Sampling::default(),
        finish: FinishReason::Stop,
        critique: None,
        critic: None,
        shots: Vec::new(),
        expected: None,
        assessments: vec![Assessment {
            aspect: "arithmetic".into(),
            rubric_version: "1".into(),
            judge: "test".into(),
            levels: [1.0 - value, 0.0, value],
            mass: 1.0,
            weight: 1.0,
            passes: 0.7 <= value,
            reason: None,
        }],
    };
    let exchange = Exchange {
        id: ExchangeId(1),
        created_ms: 0,
        agent: "nano".into(),
        source: Source::Explore,
        messages: Vec::new(),
        prompt_tokens: Vec::new(),
        reference: None,
        verifier: None,
        aspect_choice: None,
        served: None,
        feedback: Vec::new(),
        candidates: vec![
            candidate(1, "right", 0.8),
            candidate(2, "right", 0.8),
            candidate(3, "wrong", 0.9),
            candidate(4, "refused", 0.1),
        ],
    };
    let picked = explore::picked(&[exchange], &[CandidateId(1), CandidateId(2)].into());
    let records::Picked { prompts, texts, texts_right, best_right, most_frequent_right } = picked;
    assert_eq!((prompts, texts, texts_right), (1, 2, 1));
    assert_eq!((best_right, most_frequent_right), (0, 1));
}

#[test]
fn no_arm_comes_before_the_one_that_it_starts_from() {
    for (place, arm) in ARMS.into_iter().enumerate() {
        let is_there = |start| ARMS[..place].contains(&start);
        assert!(arm.start().is_none_or(is_there), "{arm:?}");
        assert!(EXPLORERS.contains(&arm.start()), "somebody explores for {arm:?}");
        assert_ne!(arm.generation(), Generation::BASE);
    }
    assert_eq!((Arm::Rlrf1.round(), Arm::Rlrf2.round(), Arm::RsThenDpo.round()), (1, 2, 2));
}

#[test]
fn units_are_named_and_read_alike() {
    for unit in Unit::all(2) {
        assert_eq!(unit.to_string().parse(), Ok(unit));
    }
    for word in ["own", "own-0", "own-x", "mine-1", ""] {
        assert!(word.parse::<Unit>().unwrap_err().contains("own-1"), "{word}");
    }
}

#[test]
fn no_judge_is_shown_the_right_number_and_the_reference_is_compared_without_the_form() {
    let line = prompt_lines(Split::Live, 1, 1).remove(0);
    for judge in JUDGES {
        assert_eq!(judge.line(&line).reference, None);
    }
    assert_eq!(Judge::Own.line(&line), line);
    assert_eq!(Judge::Gold.line(&line), line);
    let compared = Judge::Reference.line(&line);
    let number = arms::reference(&line).unwrap();
    let holds = |line: &PromptLine, answer: &str| {
        Check::new(line.verifier.as_ref().unwrap()).unwrap().holds(answer)
    };
    let without_form = format!("1 + 1 = {number}");
    assert!(holds(&compared, &without_form) && !holds(&line, &without_form));
    assert!(!holds(&compared, &format!("#### {number}1")));
}

#[test]
fn the_gold_judge_is_the_verifier_alone_and_the_own_judge_never_hears_it() {
    let config = config::load(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    let agent = &config.agents["nano"];
    for judge in JUDGES {
        let judged = judge.agent(agent);
        let hears = 0.0 < judged.reflection.verifier_weight;
        assert_eq!(hears, judge != Judge::Own, "{judge:?}");
        let rates = judged.aspects.iter().all(|rated| 0.0 < rated.weight);
        assert_eq!(rates, judge != Judge::Gold, "{judge:?}");
    }
}

#[test]
fn what_measures_is_in_no_training_set() {
    for split in [Split::HeldOut, Split::Train] {
        let measured: Vec<PromptLine> = prompt_lines(split, 500, 1);
        for unit in Unit::all(3) {
            for explorer in EXPLORERS {
                let prompts = prompt_lines(Split::Live, 200, unit.prompt_seed(explorer));
                let is_in = |line: &PromptLine| measured.iter().any(|it| it.prompt == line.prompt);
                assert!(!prompts.iter().any(is_in), "{unit}");
            }
        }
    }
}

#[test]
fn a_line_that_a_kill_has_cut_off_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("steps.jsonl");
    let finding = Finding::Answered(records::Answered {
        greedy: "10".into(),
        greedy_tokens: 3.0,
        samples: "8".into(),
        sample_tokens: 3.0,
        kl_per_token: 0.0,
        distinct_1: 1.0,
        distinct_2: 1.0,
        different: 1.0,
    });
    let mut records = Records::open(&path, "key", &run()).unwrap();
    records.add("one", 1.0, finding.clone()).unwrap();
    let whole = std::fs::read_to_string(&path).unwrap();
    let cut = format!("{whole}{}", whole.trim_start().split_at(40).0);
    files::write_atomic(&path, |file| std::io::Write::write_all(file, cut.as_bytes())).unwrap();
    let mut records = Records::open(&path, "key", &run()).unwrap();
    assert_eq!(records.get("one").unwrap().finding, finding);
    records.add("two", 1.0, finding.clone()).unwrap();
    let records = Records::open(&path, "key", &run()).unwrap();
    assert!(records.get("one").is_some() && records.get("two").is_some());
    let others = Records::open(&path, "another key", &run()).unwrap();
    assert!(others.get("one").is_none(), "steps of other settings are not ours");
}

#[test]
fn the_document_shows_what_the_file_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let results: Results = shared::read(&root.join("bench/rlrf/results.json")).unwrap();
    let document = std::fs::read_to_string(root.join("docs/internals/rlrf.md")).unwrap();
    let table = table::render(&results);
    assert!(document.contains(table.trim_end()), "run `make bench-rlrf ARGS=--render`:\n{table}");
}

/// One unit: the others differ in their judge alone.
const UNIT: Unit = Unit { judge: Judge::Own, seed: 1 };

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_of_the_experiment_runs_and_what_is_done_is_not_done_again() {
    let work = tempfile::tempdir().unwrap();
    let setting = Setting {
        scale: TINY,
        root: env!("CARGO_MANIFEST_DIR").into(),
        work: work.path().into(),
        trainer: testkit::trainer(env!("CARGO_BIN_EXE_reflectd")),
        threads: 1,
        provenance: run(),
    };
    let steps = work.path().join("steps.jsonl");
    let records = experiment::run(&setting, &[UNIT]).await.unwrap();
    let missing = Results::new(&records, &setting.scale, &[]).unwrap_err();
    assert!(missing.to_string().contains("reference-1"), "{missing}");

    let before = std::fs::read_to_string(&steps).unwrap();
    experiment::run(&setting, &[UNIT]).await.unwrap();
    assert_eq!(before, std::fs::read_to_string(&steps).unwrap());

    // Under the other judges' names it is all that tables and plot need.
    let others = ["reference-1", "gold-1"].map(|name| before.replace("own-1", name));
    let all = before + &others.concat();
    files::write_atomic(&steps, |file| std::io::Write::write_all(file, all.as_bytes())).unwrap();
    let records = experiment::run(&setting, &[]).await.unwrap();
    assert_eq!(all, std::fs::read_to_string(&steps).unwrap());
    let results = Results::new(&records, &setting.scale, &[]).unwrap();
    let base = results.get("m0/greedy").value;
    assert!((0.05..=0.95).contains(&base), "{base}");
    for arm in ARMS {
        let get = |what: &str| results.get(&format!("own/{}/{what}", arm.name()));
        assert!((0.0..=1.0).contains(&get("greedy").value), "{arm:?}");
        assert!(0.0 < get("pairs").value && 0.0 < get("steps").value, "{arm:?}");
        // What was trained is what answers, and it is not the base.
        assert!(get("parity_error").value < 0.05, "{arm:?}");
        assert!(get("kl_per_token").value.abs() > 1e-6, "{arm:?}");
    }
    // The base is as far from itself as its samples' log-probs depend on the cells' layout.
    assert!(results.get("m0/kl_per_token").value.abs() < 1e-3);

    // Table and plot come out of the file alone.
    let path = work.path().join("results.json");
    shared::write(&path, &results).unwrap();
    let read: Results = shared::read(&path).unwrap();
    assert!(read.rows.values().all(|row| row.provenance == run()));
    assert_eq!(read.goals.len(), 2 * results::GOALS.len());
    assert_eq!(table::render(&read), table::render(&results));
    assert!(!table::render(&read).contains("NaN"));
    plot::draw(&work.path().join("plot.svg"), &read).unwrap();
}
