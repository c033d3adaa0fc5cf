//! Results as a Markdown table, and its place between two markers of a document. Pure but for the
//! one file. Used by `main`.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use reflectd::paths::write_atomic;

use crate::results::{Figure, Goal, Results};

const BEGIN: &str = "<!-- bench/engine begins -->";
const END: &str = "<!-- bench/engine ends -->";

/// One row a figure, in the order of the workloads.
pub(crate) fn render(results: &Results, workloads: &[&str]) -> String {
    let mut table = String::from(
        "| what | ours | other | other side | ratio | range | goal | reached | rounds | commit |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for workload in workloads {
        for figure in results.figures.values().filter(|figure| figure.workload == *workload) {
            writeln!(table, "{}", row(figure)).expect("writing to a string succeeds");
        }
    }
    table
}

fn row(figure: &Figure) -> String {
    let unit = &figure.unit;
    let with_unit = |value: f64| format!("{} {unit}", number(value)).trim_end().to_owned();
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let goal = figure.goal.map(|goal| match goal {
        Goal::RatioAtLeast(least) => format!("ratio at least {}", number(least)),
        Goal::AtMost(most) => format!("at most {}", with_unit(most)),
    });
    let holds = figure.holds().map(|holds| if holds { "yes" } else { "**no**" }.to_owned());
    let range = figure.range.filter(|_| 1 < figure.rounds);
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        figure.title,
        with_unit(figure.ours),
        or_dash(figure.other.map(with_unit)),
        or_dash(figure.against.clone()),
        or_dash(figure.ratio.map(|ratio| format!("{ratio:.2}"))),
        or_dash(range.map(|(least, most)| format!("{} to {}", number(least), number(most)))),
        or_dash(goal),
        or_dash(holds),
        figure.rounds,
        figure.commit,
    )
}

/// Three digits that matter.
fn number(value: f64) -> String {
    match value.abs() {
        size if 100.0 <= size => format!("{value:.0}"),
        size if 10.0 <= size => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Puts text between the document's markers.
pub(crate) fn insert(document: &Path, text: &str) -> anyhow::Result<()> {
    let old = fs::read_to_string(document).with_context(|| format!("read {}", document.display()))?;
    let new = between(&old, text)
        .with_context(|| format!("{} lacks the markers {BEGIN} and {END}", document.display()))?;
    write_atomic(document, |file| file.write_all(new.as_bytes()))
        .with_context(|| format!("write {}", document.display()))
}

fn between(document: &str, text: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{}\n{END}{after}", text.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            commit: "abc".to_owned(),
            against: None,
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
        let document = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let once = between(&document, "new\n").unwrap();
        assert_eq!(once, format!("a\n{BEGIN}\nnew\n{END}\nb\n"));
        assert_eq!(between(&once, "new").unwrap(), once);
        assert_eq!(between("no markers", "new"), None);
    }
}
