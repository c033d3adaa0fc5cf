//! Results as a Markdown table. Pure. Used by `main`.

use std::fmt::Write as _;

use crate::results::{Figure, Goal, Results};

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

pub(crate) fn row(figure: &Figure) -> String {
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
        figure.provenance.commit,
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
