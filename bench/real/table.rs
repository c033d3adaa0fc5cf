//! Results as Markdown tables. Pure: the same results give the same text. Used by `main`.

use crate::arms::{ARMS, Unit};
use crate::results::{Answers, Paired, Results, Row};
use crate::task::KINDS;

const NONE: &str = "-";

/// All tables with a line above each.
pub(crate) fn render(results: &Results) -> String {
    let sections = [
        ("What each arm reaches", reached(results)),
        ("What each round took and became", rounds(results)),
        ("Controls and nights in a row", controls(results)),
        ("Goals", goals(results)),
    ];
    let sections = sections.map(|(title, table)| format!("**{title}**\n\n{table}"));
    format!("{}\n{}", origins(results), sections.join("\n"))
}

/// Where the rows come from.
fn origins(results: &Results) -> String {
    let mut lines: Vec<String> = Vec::new();
    for (unit, row) in &results.rows {
        let origin = format!("{}; commit {}", row.provenance.machine, row.provenance.commit);
        match lines.iter_mut().find(|line| line.starts_with(&origin)) {
            Some(line) => line.extend([", ", unit]),
            None => lines.push(format!("{origin}: {unit}")),
        }
    }
    lines.iter().flat_map(|line| [line, ".\n"]).collect()
}

fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let owned: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let rule = format!("|{}\n", "---|".repeat(head.len()));
    let rows: String = rows.into_iter().map(|row| line(&row)).collect();
    line(&owned) + &rule + &rows
}

/// Rows of a task and an arm in all seeds.
fn learned(results: &Results) -> impl Iterator<Item = (Unit, &Row)> {
    let units = KINDS.into_iter().flat_map(|kind| {
        ARMS.into_iter().flat_map(move |arm| (1..=9).map(move |seed| Unit::Learn(kind, arm, seed)))
    });
    let mut known = std::collections::BTreeSet::new();
    units.filter_map(move |unit| {
        let name = unit.to_string();
        let row = results.rows.get(&name)?;
        known.insert(name).then_some((unit, row))
    })
}

fn reached(results: &Results) -> String {
    let mut lines = Vec::new();
    for (unit, row) in learned(results) {
        let Unit::Learn(kind, arm, seed) = unit else { continue };
        let Some(answers) = &row.answers else {
            let mut line = vec![kind.title().to_owned(), arm.title().to_owned(), seed.to_string()];
            line.extend(["as the base".to_owned()].into_iter().chain(vec![NONE.to_owned(); 8]));
            lines.push(line);
            continue;
        };
        for (set, greedy) in &answers.greedy {
            lines.push(vec![
                format!("{} ({set}, {})", kind.title(), greedy.n),
                arm.title().to_owned(),
                seed.to_string(),
                format!(
                    "{} ({} to {})",
                    percent(greedy.share),
                    percent(greedy.lo),
                    percent(greedy.hi)
                ),
                or_none(answers.mean_at_8, percent),
                or_none(greedy.over_base, changed),
                or_none(greedy.over_before, changed),
                percent(answers.different_on_topic),
                format!("{:.0}", answers.tokens),
                percent(answers.cut),
                or_none(answers.formats, percent),
                or_none(answers.general_nats, |nats| format!("{nats:.3}")),
            ]);
        }
    }
    table(
        &[
            "task",
            "arm",
            "seed",
            "greedy (95 %)",
            "mean@8",
            "newly right / wrong over base",
            "over the round before",
            "different and on topic",
            "tokens",
            "cut off",
            "general formats",
            "general, nats a token",
        ],
        lines,
    )
}

fn changed(paired: Paired) -> String {
    format!("{} / {}", paired.newly_right, paired.newly_wrong)
}

fn rounds(results: &Results) -> String {
    let all = results.rows.iter().flat_map(|(unit, row)| {
        let rounds = (1..).zip(&row.rounds);
        rounds.map(move |(number, round)| {
            let seconds: Vec<String> =
                round.seconds.iter().map(|(stage, s)| format!("{stage} {s:.0}")).collect();
            vec![
                unit.clone(),
                number.to_string(),
                round.pairs.map_or_else(|| NONE.to_owned(), |n| n.to_string()),
                format!("{:.0}", round.wall_s),
                if seconds.is_empty() { NONE.to_owned() } else { seconds.join(", ") },
                cell(&round.outcome),
            ]
        })
    });
    table(&["unit", "round", "pairs", "seconds", "of these", "outcome"], all)
}

fn controls(results: &Results) -> String {
    let is_control = |unit: &&String| {
        unit.starts_with("control/") || unit.ends_with("/nights") || unit.starts_with("maths/auto")
    };
    let rows = results.rows.iter().filter(|(unit, _)| is_control(unit)).map(|(unit, row)| {
        let promoted = row.rounds.iter().filter(|round| round.promoted).count();
        let truth = |answers: &Answers| {
            let shares = answers.greedy.values().map(|greedy| percent(greedy.share));
            shares.collect::<Vec<_>>().join(" and ")
        };
        let nights: Vec<String> = row.after.values().map(truth).collect();
        vec![
            unit.clone(),
            row.rounds.len().to_string(),
            promoted.to_string(),
            if nights.is_empty() { NONE.to_owned() } else { nights.join(", ") },
            row.why.as_deref().map_or_else(|| NONE.to_owned(), cell),
        ]
    });
    table(&["unit", "rounds", "promoted", "truth after each promotion", "why"], rows)
}

fn goals(results: &Results) -> String {
    let rows = results.goals.iter().map(|goal| {
        let reached = match goal.is_reached() {
            Some(true) => "yes",
            Some(false) => "no",
            None => "not measured",
        };
        vec![
            goal.name.clone(),
            format!("{} {}", if goal.at_most { "at most" } else { "at least" }, goal.goal),
            or_none(goal.value, |value| format!("{value:.3}")),
            reached.to_owned(),
        ]
    });
    table(&["goal", "wanted", "found", "reached"], rows)
}

/// Text in one cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn or_none<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| NONE.to_owned(), show)
}
