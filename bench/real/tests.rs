//! Tests of the benchmark: its pure parts, the folders that it writes against the product's own check, and
//! one unit from end to end on the nano model. What a real model learns is in `docs/internals/real.md`. A
//! program of its own, because the benchmark has no test harness.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]
#![allow(dead_code, reason = "the parts are used by the benchmark, which is another program")]
#![allow(clippy::print_stderr, reason = "the parts say what they do")]

mod arms;
mod daemon;
mod data;
mod general;
mod measure;
mod night;
mod records;
mod results;
mod root;
mod setting;
mod table;
mod task;
mod unit;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use arms::{ARMS, Arm, Round, Unit, Wanted};
use records::{Answered, Checked, Finding, Records, Trained};
use results::{Paired, Results};
use root::{Root, agent, prompt_line};
use serde_json::json;
use setting::{Scale, Setting};
use task::{KINDS, Kind};
use tasks::{Item, Truth};
use testkit::bench::results::Provenance;
use unit::Lab;

/// A few prompts of each list.
const TINY: Scale = Scale { seeds: 1, most: 4, sampled: 2, general: 1, coins: 1 };

fn setting(work: &Path) -> Setting {
    let program = env!("CARGO_BIN_EXE_reflectd");
    testkit::trainer(program);
    Setting {
        scale: TINY,
        model: testkit::repository().join("agents/nano/model.gguf"),
        data: None,
        work: work.to_owned(),
        program: PathBuf::from(program),
        threads: 1,
        provenance: Provenance {
            machine: "here".into(),
            commit: "test".into(),
            ..Provenance::default()
        },
    }
}

/// Requests of two intents, in the form of SNIPS, and problems in that of GSM8K.
fn data(folder: &Path) -> PathBuf {
    let lines: Vec<String> = (0..900)
        .map(|at| {
            let intent = ["PlayMusic", "GetWeather"][usize::from(at % 3 == 0)];
            json!({ "id": at.to_string(), "text": format!("request {at}"), "intent": intent,
                    "slots": { "n": at.to_string() } })
            .to_string()
        })
        .collect();
    let maths =
        json!({ "question": "1 + 999?", "answer": "So it is\n#### 1,000" }).to_string() + "\n";
    for (name, text) in [
        ("snips/train.jsonl", lines.join("\n")),
        ("snips/test.jsonl", lines[..3].join("\n")),
        ("gsm8k/test.jsonl", maths.repeat(300)),
    ] {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        files::write_atomic(&path, |file| std::io::Write::write_all(file, text.as_bytes()))
            .unwrap();
    }
    folder.to_owned()
}

#[test]
fn an_agent_has_at_most_fifteen_lines_and_no_prompt_that_measures_is_in_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let mut setting = setting(folder.path());
    setting.scale = Scale::FULL;
    setting.data = Some(data(&folder.path().join("data")));
    for kind in KINDS {
        for arm in ARMS {
            let task = kind.load(&setting, 1, arm.has_all()).unwrap();
            let n_lines = agent(&setting, &task, arm).lines().count();
            assert!(n_lines <= 15, "{}: {n_lines}", kind.name());
            assert!(task.practice.is_empty() || !arm.has_all());
        }
    }
    for kind in [Kind::Sentence, Kind::Home] {
        let task = kind.load(&setting, 1, false).unwrap();
        let prompts = |items: &[Item]| -> BTreeSet<String> {
            items.iter().map(|item| item.prompt.clone()).collect()
        };
        let measured: BTreeSet<String> = task.all_measured().map(|it| it.prompt.clone()).collect();
        assert!(200 <= measured.len() && 20 <= task.gate.len());
        for list in [&task.examples, &task.practice, &task.gate] {
            assert!(prompts(list).is_disjoint(&measured), "{}", kind.name());
        }
        assert!(prompts(&task.gate).is_disjoint(&prompts(&task.practice)));
    }
}

#[test]
fn public_data_becomes_tasks_with_their_truth() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    let train = data::snips(&data, "train").unwrap();
    let chosen = data::balanced(&train, 1);
    assert_eq!(chosen.len(), train.len());
    let first: Vec<Item> = chosen.iter().take(8).cloned().map(data::Request::intent).collect();
    let of =
        |intent: &str| first.iter().filter(|item| item.answer.as_deref() == Some(intent)).count();
    assert_eq!((of("PlayMusic"), of("GetWeather")), (4, 4), "the head is balanced");
    let slots = train[1].clone().slots();
    assert!(slots.truth.holds(r#"{"slots":{"n":"1"},"intent":"PlayMusic"}"#));
    assert_eq!(data::gsm8k(&data).unwrap()[0].truth, Truth::Number(1000.0));
    let error = data::mt_bench(&data, 1).unwrap_err();
    assert!(format!("{error:#}").contains("DATA"), "{error:#}");
}

#[test]
fn the_product_takes_every_owners_agent_and_its_verifiers_know_the_answers() {
    let folder = tempfile::tempdir().unwrap();
    let mut setting = setting(folder.path());
    setting.data = Some(data(&folder.path().join("data")));
    setting.scale = Scale::FULL;
    for kind in KINDS {
        for arm in [Arm::Auto, Arm::AutoRefined] {
            let task = kind.load(&setting, 1, false).unwrap();
            let root = Root::new(folder.path().join(format!("{}-{}", kind.name(), arm.name())));
            root.write(&setting, &task, Some(arm)).unwrap();
            assert_eq!(root.problems(&setting.program).unwrap(), [""; 0], "{}", kind.name());
        }
    }
    let task = Kind::Home.load(&setting, 1, false).unwrap();
    let item = &task.gate[0];
    let line = prompt_line(&task, item);
    let verifier: prompt::Verifier = serde_json::from_value(line["verifier"].clone()).unwrap();
    let check = reflectd::reflect::verify::Check::new(&verifier).unwrap();
    assert!(check.holds(item.answer.as_ref().unwrap()));
    assert!(!check.holds(task.gate[1].answer.as_ref().unwrap()));
}

#[test]
fn what_is_refused_is_told_with_file_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let setting = setting(folder.path());
    let task = Kind::Sentence.load(&setting, 1, false).unwrap();
    let root = Root::new(folder.path().join("root"));
    root.write(&setting, &task, Some(Arm::Auto)).unwrap();
    let file = root.folder().join("agents/mine.yaml");
    let text = std::fs::read_to_string(&file).unwrap() + "nonsense: 1\n";
    files::write_atomic(&file, |out| std::io::Write::write_all(out, text.as_bytes())).unwrap();
    let problems = root.problems(&setting.program).unwrap();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("agents/mine.yaml: nonsense: is not known"), "{problems:?}");
}

#[test]
fn units_are_named_and_found() {
    let all = Unit::all(&Scale::FULL, true);
    let names: BTreeSet<String> = all.iter().map(ToString::to_string).collect();
    assert_eq!(names.len(), all.len(), "each once");
    for name in
        ["sentence/base", "sentence/auto-3", "home/nights", "control/coin", "intent/sft_all-1"]
    {
        assert!(names.contains(name), "{name}");
    }
    let named = |word: &str| {
        let wanted: Wanted = word.parse().unwrap();
        all.iter().filter(|unit| wanted.names(**unit)).count()
    };
    assert_eq!((named("sentence/auto"), named("sentence/auto-2"), named("home/nights")), (3, 1, 1));
    assert!("nonsense".parse::<Wanted>().unwrap_err().contains("sentence/auto-1"));
    assert!(Unit::all(&Scale::FULL, false).iter().all(|unit| !unit.kind().is_public()));
}

#[test]
fn a_task_with_examples_begins_with_them() {
    let rs = Round::Practice(Some("rs"));
    assert_eq!(Arm::Rs.rounds(Kind::Home), [Round::Examples, rs]);
    assert_eq!(Arm::Rs.rounds(Kind::Sentence), [rs]);
    assert_eq!(Arm::Auto.rounds(Kind::Intent), [Round::Examples, Round::Practice(None)]);
    assert!(Arm::Base.rounds(Kind::Home).is_empty());
}

#[test]
fn answers_are_compared_in_pairs() {
    let paired = Paired::new("0011010000", "0111110010").unwrap();
    assert_eq!((paired.newly_right, paired.newly_wrong), (3, 0));
    assert!((paired.gain - 0.3).abs() < 1e-12);
    assert!(0.0 < paired.lo && paired.lo < 0.3 && 0.3 < paired.hi, "{paired:?}");
    assert_eq!(Paired::new("01", "0"), None);
}

fn answered(bits: &str) -> Answered {
    Answered {
        generation: 1,
        greedy: [("held out".to_owned(), bits.to_owned())].into(),
        samples: "80".into(),
        tokens: 9.0,
        cut: 1,
        different: 3,
        different_on_topic: 2,
        formats: "10".into(),
        general_nats: Some(0.1),
        shown: Vec::new(),
    }
}

#[test]
fn records_become_rows_and_goals_and_a_reason_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("steps.jsonl");
    let run = Provenance { commit: "abc".into(), ..Provenance::default() };
    let mut records = Records::open(&path, "key", &run).unwrap();
    let checked = Checked { refused: vec!["agents/mine.yaml: judge: no".into()] };
    let trained = Trained { outcome: "promoted".into(), generation: 1, ..Trained::default() };
    let rejected = Trained {
        outcome: "rejected".into(),
        reason: Some("no gain".into()),
        ..Trained::default()
    };
    for (name, finding) in [
        ("sentence/base/answered-0", Finding::Answered(answered("0100"))),
        ("sentence/auto-1/check", Finding::Checked(checked)),
        ("sentence/auto-1/round-1", Finding::Trained(trained)),
        ("sentence/auto-1/answered-1", Finding::Answered(answered("1110"))),
        ("sentence/auto-1/round-2", Finding::Trained(rejected)),
    ] {
        records.add(name, 100.0, finding).unwrap();
    }
    let units =
        [Unit::Learn(Kind::Sentence, Arm::Base, 1), Unit::Learn(Kind::Sentence, Arm::Auto, 1)];
    // As another process reads them.
    let records = Records::open(&path, "key", &run).unwrap();
    let mut results = Results::default();
    results.update(&records, &units);
    let row = &results.rows["sentence/auto-1"];
    let greedy = &row.answers.as_ref().unwrap().greedy["held out"];
    assert!((greedy.share - 0.75).abs() < 1e-12);
    assert_eq!(greedy.over_base.unwrap().newly_right, 2);
    let why = row.why.as_ref().unwrap();
    assert!(why.contains("judge: no") && why.contains("round 2: rejected: no gain"), "{why}");
    assert_eq!(row.provenance.commit, "abc");
    let goal = |results: &Results, part: &str| {
        results.goals.iter().find(|goal| goal.name.contains(part)).unwrap().clone()
    };
    let reached = goal(&results, "sentence/auto-1, greedy");
    assert_eq!((reached.value, reached.is_reached()), (Some(0.75), Some(false)));
    assert!(reached.why.unwrap().contains("no gain"), "the row's reason is the goal's");
    assert_eq!(goal(&results, "sentence/auto-1, seconds").value, Some(200.0));
    let text = table::render(&results);
    assert!(
        text.contains("| one short sentence (held out, 4) | a night (defaults) | 1 | 75.0 %"),
        "{text}"
    );
    assert!(text.contains("rejected: no gain"), "{text}");
}

#[test]
fn samples_are_spread_over_the_whole_list() {
    let task = Kind::Sentence.load(&setting(Path::new("/nowhere")), 1, false).unwrap();
    let items: Vec<&Item> = task.all_measured().collect();
    let spread = measure::spread(&items, 2);
    assert_eq!(
        (spread[0].id.as_str(), spread[1].id.as_str()),
        ("message-held-out-1", "message-held-out-3")
    );
    assert_eq!(measure::spread(&items, 100).len(), items.len());
}

/// A whole unit in the size of seconds, on a model that cannot do the task: that the parts fit.
#[tokio::test]
async fn a_unit_runs_from_an_empty_folder_to_its_row_and_is_not_done_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut lab = Lab::open(setting(folder.path())).unwrap();
    let units = [
        Unit::Learn(Kind::Sentence, Arm::Base, 1),
        Unit::Learn(Kind::Sentence, Arm::Auto, 1),
        Unit::Same,
    ];
    for unit in units {
        lab.run(unit).await.unwrap();
    }
    let mut results = Results::default();
    results.update(&lab.records, &units);
    let base = results.rows["sentence/base"].answers.as_ref().unwrap();
    assert_eq!((base.greedy["held out"].n, base.generation), (4, 0), "{base:?}");
    let night = &results.rows["sentence/auto-1"];
    assert_eq!(night.rounds.len(), 1, "{night:?}");
    assert!(night.rounds[0].seconds.contains_key("exploring"), "{night:?}");
    let same = &results.rows["control/same"];
    assert!(!same.rounds[0].promoted, "{same:?}");

    // What is recorded is passed over, also by another process.
    let steps = || std::fs::read_to_string(folder.path().join("steps.jsonl")).unwrap();
    let before = steps();
    let mut lab = Lab::open(setting(folder.path())).unwrap();
    for unit in units {
        lab.run(unit).await.unwrap();
    }
    assert_eq!(steps(), before);
}

#[test]
fn the_goals_of_the_file_follow_from_its_rows_and_the_document_shows_both() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/real/results.json");
    let mut results: Results = testkit::bench::results::read(path.as_ref()).unwrap();
    let written = results.goals.clone();
    results.renew_goals();
    assert_eq!(results.goals, written);

    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/internals/real.md");
    let table = table::render(&results);
    let shown = std::fs::read_to_string(document).unwrap();
    assert!(shown.contains(table.trim_end()), "run `make bench-real ARGS=--render`:\n{table}");
}
