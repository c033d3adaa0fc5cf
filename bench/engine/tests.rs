//! Tests of the benchmark's pure parts, in a program of their own: the benchmark has no test harness.

#![allow(dead_code, reason = "the parts are used by the benchmark, which is another program")]

mod http;
mod process;
mod results;
mod table;
mod vocabulary;

use std::collections::HashSet;
use testkit::bench::results as shared;

use proptest::prelude::*;

use results::{Better, Figure, Findings, Goal, LLAMA_SERVER, Measured, Results, WORKLOADS};
use table::row;
use testkit::bench::markers::{between, markers};
use testkit::bench::results::{Peer, Provenance};
use testkit::bench::statistics::{median, range, ratios};
use vocabulary::{CONTROL, SIZE, SPACE, Vocabulary, word};

#[test]
fn the_vocabulary_is_full_and_holds_no_token_twice() {
    let made = Vocabulary::new(&["response to a request".to_owned()]);
    assert_eq!(made.tokens().len(), SIZE);
    assert_eq!(made.tokens().iter().collect::<HashSet<_>>().len(), SIZE);
    assert_eq!(made.merges.len(), SIZE - CONTROL.len() - 256);
    assert_eq!(made.tokens().last().map(String::as_str), Some("zz"));
    assert!(made.tokens().contains(&format!("{SPACE}response")));
}

#[test]
fn only_words_after_a_space_may_be_sampled() {
    let made = Vocabulary::new(&[]);
    let place = |text: &str| made.tokens().iter().position(|token| token == text).unwrap();
    for text in ["\u{120}a", "\u{120}abc", "\u{120}aaaa"] {
        assert!(made.is_word(place(text)), "{text}");
    }
    for text in ["<|im_end|>", "\u{120}", "a", "ab", "1"] {
        assert!(!made.is_word(place(text)), "{text}");
    }
    assert!(!made.is_word(SIZE));
}

#[test]
fn every_merge_joins_tokens_that_come_before_it() {
    let made = Vocabulary::new(&["reflection".to_owned()]);
    let mut known: HashSet<&str> =
        made.tokens().iter().take(CONTROL.len() + 256).map(String::as_str).collect();
    let merged = made.tokens().iter().skip(CONTROL.len() + 256);
    for (merge, token) in made.merges.iter().zip(merged) {
        let (left, right) = merge.split_once(' ').unwrap();
        assert!(known.contains(left) && known.contains(right), "{merge}");
        assert_eq!(format!("{left}{right}"), *token);
        known.insert(token);
    }
}

#[test]
fn a_random_word_is_a_token() {
    let made = Vocabulary::new(&[]);
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..100 {
        let token = word(&mut rng).replace(' ', SPACE);
        assert!(made.tokens().contains(&token), "{token}");
    }
}

#[test]
fn the_median_is_the_middle_in_any_order() {
    assert_eq!(median(&[]), None);
    assert_eq!(median(&[3.0]), Some(3.0));
    assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
}

#[test]
fn a_slow_round_changes_both_sides_and_no_ratio() {
    let ours = [2.0, 20.0, 2.0];
    let peer = [3.0, 30.0, 3.0];
    assert_eq!(ratios(&peer, &ours), [1.5, 1.5, 1.5]);
    assert_eq!(ratios(&peer, &[0.0, 1.0]), [30.0]);
}

proptest! {
    #[test]
    fn the_median_lies_between_least_and_most(
        values in proptest::collection::vec(-1e6..1e6, 1..30)
    ) {
        let (least, most) = range(&values).unwrap();
        let middle = median(&values).unwrap();
        prop_assert!(least <= middle && middle <= most);
    }
}

#[test]
fn pages_of_the_model_are_counted_apart() {
    let smaps = "55d0-55d1 r--p 00000000 08:01 12 /usr/bin/a-b\nSize: 4 kB\nRss:       4 kB\n\
                 VmFlags: rd mr\n\
                 7f00-7f01 r--s 00000000 08:01 13 /cache/m.gguf\nRss: 100 kB\nPss: 50 kB\n\
                 7f02-7f03 rw-p 00000000 00:00 0\nRss: 10 kB\n";
    let found = process::sum(smaps, "/cache/m.gguf");
    assert_eq!((found.total, found.model), (114 * 1024, 100 * 1024));
}

/// A run on this machine beside a peer.
fn run(machine: &str) -> Provenance {
    Provenance {
        machine: machine.to_owned(),
        commit: "abc".to_owned(),
        command: Some("cargo bench".to_owned()),
        peer: Some(Peer { version: "1".to_owned(), flags: "-x".to_owned() }),
    }
}

fn measured(better: Better, ours: &[f64], other: &[f64], goal: Option<Goal>) -> Measured {
    Measured {
        name: "name".to_owned(),
        title: "title".to_owned(),
        unit: "s",
        better,
        ours: ours.to_vec(),
        other: other.to_vec(),
        against: Some("the peer".to_owned()),
        goal,
    }
}

#[test]
fn a_ratio_above_one_always_means_that_ours_is_better() {
    for (better, expected) in [(Better::Higher, 0.5), (Better::Lower, 2.0)] {
        let figure =
            measured(better, &[1.0, 1.0], &[2.0, 2.0], None).figure("w", &run("m")).unwrap();
        assert_eq!(figure.ratio, Some(expected));
    }
}

#[test]
fn without_the_other_side_a_ratio_goal_is_neither_reached_nor_missed() {
    let goal = Some(Goal::RatioAtLeast(1.0));
    let figure = measured(Better::Lower, &[1.0], &[], goal).figure("w", &run("m")).unwrap();
    assert_eq!((figure.ratio, figure.holds(), figure.against), (None, None, None));
    let goal = Some(Goal::AtMost(2.0));
    let figure = measured(Better::Lower, &[1.0], &[], goal).figure("w", &run("m")).unwrap();
    assert_eq!(figure.holds(), Some(true));
}

#[test]
fn a_goal_is_missed_by_any_amount() {
    let goal = Some(Goal::RatioAtLeast(1.0));
    let figure = measured(Better::Higher, &[0.99], &[1.0], goal).figure("w", &run("m")).unwrap();
    assert_eq!(figure.holds(), Some(false));
}

#[test]
fn a_figure_names_the_peer_where_it_is_the_other_side() {
    let against = |against: &str, other: &[f64]| {
        let against = Some(against.to_owned());
        let measured = Measured { against, ..measured(Better::Lower, &[1.0], other, None) };
        measured.figure("w", &run("m")).unwrap().provenance.peer
    };
    assert_eq!(against(&format!("{LLAMA_SERVER}, `n`"), &[2.0]), run("m").peer);
    assert_eq!(against("engine in process", &[2.0]), None);
    assert_eq!(against(LLAMA_SERVER, &[]), None, "there was nothing to compare with");
}

#[test]
fn a_partial_run_replaces_its_own_rows_and_keeps_the_others_as_they_were_measured() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.json");
    let mut results: Results = shared::read(&path).unwrap();
    let named = |name: &str, ours: f64| Measured {
        name: name.to_owned(),
        ..measured(Better::Lower, &[ours], &[], Some(Goal::AtMost(2.0)))
    };
    let findings = |measured| Findings { measured, curves: Vec::new() };
    let (old, new) = (run("old machine"), run("new machine"));
    results.replace("a", &old, findings(vec![named("a1", 1.0), named("a2", 2.0)]));
    results.replace("b", &old, findings(vec![named("b1", 3.0)]));
    results.goals.iter_mut().for_each(|goal| goal.why = Some(format!("why {}", goal.name)));
    results.replace("a", &new, findings(vec![named("a1", 9.0)]));
    shared::write(&path, &results).unwrap();

    let read: Results = shared::read(&path).unwrap();
    assert_eq!(read.figures.keys().collect::<Vec<_>>(), ["a1", "b1"]);
    let of = |name: &str| (read.figures[name].ours, &*read.figures[name].provenance.machine);
    assert_eq!((of("a1"), of("b1")), ((9.0, "new machine"), (3.0, "old machine")));
    let goals: Vec<_> = read.goals.iter().map(|goal| (&*goal.name, goal.value)).collect();
    assert_eq!(goals, [("a1", Some(9.0)), ("b1", Some(3.0))]);
    assert!(read.goals.iter().all(|goal| goal.at_most && goal.is_reached() == Some(false)));
    let why = |goal: &shared::Goal| goal.why.clone().unwrap();
    assert_eq!(read.goals.iter().map(why).collect::<Vec<_>>(), ["why a1", "why b1"]);

    // A goal that is reached loses the reason for missing it.
    results.replace("a", &new, findings(vec![named("a1", 1.0)]));
    assert_eq!((results.goals[0].is_reached(), &results.goals[0].why), (Some(true), &None));
}

#[test]
fn a_number_of_several_steps_names_everything_that_differs() {
    let one = Provenance { peer: None, ..run("m") };
    let two = Provenance { commit: "def".to_owned(), ..one.clone() };
    let unknown = Provenance { machine: String::new(), command: None, ..one.clone() };
    let of_all = Provenance::of_all([&two, &one, &unknown, &one]);
    assert_eq!(of_all, Provenance { commit: "abc, def".to_owned(), ..one });
}

#[test]
fn a_command_is_told_without_the_folders_of_this_machine() {
    let words = |words: &[&str]| words.iter().map(Into::into).collect::<Vec<std::ffi::OsString>>();
    let peer = ("LLAMA_SERVER", "/opt/llama/llama-server".into());
    let told = shared::command_of("engine", [peer], words(&["--only", "chats", "--bench"]));
    assert_eq!(told, "LLAMA_SERVER=llama-server cargo bench --bench engine -- --only chats");
    let told = shared::command_of("trainer", [], words(&["--peer", "/a b/c d.py", "--bench"]));
    assert_eq!(told, "cargo bench --bench trainer -- --peer 'c d.py'");
    assert_eq!(shared::command_of("rlrf", [], words(&["--bench"])), "cargo bench --bench rlrf");
}

/// Reads the committed files of all benchmarks as a program would.
#[test]
fn every_row_says_where_it_was_measured_and_every_missed_goal_why() {
    let rows: [(&str, &[&str]); 4] = [
        ("engine", &["figures", "curves"]),
        ("rlrf", &["rows"]),
        ("trainer", &["rows"]),
        ("real", &["rows"]),
    ];
    for (bench, lists) in rows {
        let path = format!("{}/bench/{bench}/results.json", env!("CARGO_MANIFEST_DIR"));
        let file: serde_json::Value = shared::read(path.as_ref()).unwrap();
        for list in lists {
            let rows = file[list].as_object().unwrap_or_else(|| panic!("{bench}: no {list}"));
            assert!(!rows.is_empty(), "{bench}: no {list}");
            for (name, row) in rows {
                let run: Provenance = serde_json::from_value(row.clone()).unwrap();
                let is_known = !run.machine.is_empty() && !run.commit.is_empty();
                assert!(is_known && row.get("command").is_some(), "{bench}, {name}: {run:?}");
                // A figure of another program says which one.
                let against = row["against"].as_str();
                let is_compared = against.is_some_and(|it| it.starts_with("llama-server"))
                    || row.get("theirs").is_some_and(|theirs| !theirs.is_null())
                    || row["parities"].as_array().is_some_and(|parities| !parities.is_empty());
                let is_named = run.peer.as_ref().is_some_and(|peer| !peer.version.is_empty());
                assert!(!is_compared || is_named, "{bench}, {name}: with what? {run:?}");
            }
        }
        let goals: Vec<shared::Goal> = serde_json::from_value(file["goals"].clone()).unwrap();
        assert!(!goals.is_empty(), "{bench}: no goals");
        for goal in goals {
            let why = goal.why.as_deref().unwrap_or_default();
            assert!(goal.is_reached() == Some(true) || !why.is_empty(), "{bench}: {goal:?}");
        }
    }
}

#[test]
fn the_document_shows_what_the_file_says() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let results: Results = shared::read(&root.join("bench/engine/results.json")).unwrap();
    let document = std::fs::read_to_string(root.join("docs/internals/performance.md")).unwrap();
    let table = table::render(&results, &WORKLOADS);
    assert!(document.contains(&table), "run `make bench-engine ARGS=--render`:\n{table}");
}

#[test]
fn the_goals_of_the_file_follow_from_its_figures() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/engine/results.json");
    let mut results: Results = shared::read(path.as_ref()).unwrap();
    let written = results.goals.clone();
    results.renew_goals();
    assert_eq!(results.goals, written);
}

fn figure() -> Figure {
    Figure {
        workload: "chats".to_owned(),
        title: "8 chats".to_owned(),
        unit: "tokens/s".to_owned(),
        ours: 123.4,
        other: None,
        ratio: None,
        range: Some((120.0, 130.0)),
        goal: Some(Goal::RatioAtLeast(1.0)),
        rounds: 5,
        against: None,
        provenance: run("m"),
    }
}

#[test]
fn columns_of_the_peer_are_empty_without_it() {
    let expected = "| 8 chats | 123 tokens/s | - | - | - | 120 to 130 | ratio at least 1.00 \
                    | - | 5 | abc |";
    assert_eq!(row(&figure()), expected);
}

#[test]
fn a_missed_goal_is_seen() {
    let figure = Figure { other: Some(200.0), ratio: Some(0.617), ..figure() };
    assert!(row(&figure).contains("| 0.62 |") && row(&figure).contains("**no**"));
}

#[test]
fn only_what_stands_between_the_markers_changes() {
    let (begin, end) = markers("engine");
    let document = format!("a\n{begin}\nold\n{end}\nb\n");
    let once = between(&document, "engine", "new\n").unwrap();
    assert_eq!(once, format!("a\n{begin}\nnew\n{end}\nb\n"));
    assert_eq!(between(&once, "engine", "new").unwrap(), once);
    assert_eq!(between(&once, "other", "new"), None);
}
