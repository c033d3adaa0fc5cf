//! What is known of a judge, as text: its standing, a measurement, an attack. Used by `reflectd judge`,
//! `status` and by the outcome of an operation.

use std::fmt::Write as _;

use super::table::{NONE, Table, pairs, time};
use crate::trust::{AttackReport, Calibration, Drift, Report, Row, Standing};
use statistics::Estimate;

/// What is known of a judge, in one line.
pub(super) fn describe(standing: &Standing) -> String {
    match standing {
        Standing::Trusted { unmeasured } if unmeasured.is_empty() => "trusted".to_owned(),
        Standing::Trusted { unmeasured } => {
            format!("trusted; too few labels for {}", unmeasured.join(", "))
        }
        Standing::Unmeasured { reason } => reason.clone(),
        Standing::Blocked { reason } => format!("blocked: {reason}"),
    }
}

/// A report as two tables.
pub(super) fn show(report: &Report) -> String {
    let sources = report.sources;
    let mut text = pairs(&[
        ("agent", report.agent.clone()),
        ("judge", report.judge.clone()),
        ("rubrics", report.version.clone()),
        ("measured", time(report.created_ms)),
        (
            "labels",
            format!(
                "{} from the agent's file, {} from feedback, {} from verifiers",
                sources.file, sources.feedback, sources.verifier
            ),
        ),
    ]);
    for name in &report.unknown_aspects {
        writeln!(text, "Labels for {name:?} are not used: the agent has no such aspect.")
            .expect("writing to a string succeeds");
    }
    if 0 < report.unjudged {
        writeln!(text, "{} answers are too long for the judge.", report.unjudged)
            .expect("writing to a string succeeds");
    }
    let mut quality =
        Table::new(["", "good", "bad", "pass", "false accept", "false reject", "AUC", "kappa"]);
    let mut bias = Table::new([
        "",
        "length bias",
        "self-preference",
        "label order",
        "verdicts turned",
        "drift",
    ]);
    for row in &report.rows {
        quality.row([
            row.name.clone(),
            row.n_good.to_string(),
            row.n_bad.to_string(),
            row.pass.map_or_else(|| NONE.to_owned(), |pass| format!("{pass:.3}")),
            percent(row.false_accept),
            percent(row.false_reject),
            number(row.auc),
            number(row.kappa),
        ]);
        bias.row([
            row.name.clone(),
            number(row.length_bias),
            number(row.self_preference),
            number(row.position_bias.map(|bias| bias.change)),
            percent(row.position_bias.map(|bias| bias.flips)),
            row.drift.map_or_else(|| NONE.to_owned(), drift),
        ]);
    }
    let advice: String = report.rows.iter().filter_map(calibration).collect();
    let gap = if advice.is_empty() { "" } else { "\n" };
    format!("{text}\n{}\n{}{gap}{advice}", quality.render(), bias.render())
}

fn percent(share: Option<Estimate>) -> String {
    share.map_or_else(
        || NONE.to_owned(),
        |it| format!("{:.1} % ({:.1} to {:.1})", 100.0 * it.value, 100.0 * it.lo, 100.0 * it.hi),
    )
}

fn number(estimate: Option<Estimate>) -> String {
    estimate.map_or_else(
        || NONE.to_owned(),
        |it| format!("{:.3} ({:.3} to {:.3})", it.value, it.lo, it.hi),
    )
}

fn drift(drift: Drift) -> String {
    format!("{:+.4} on {} (at most {:.4})", drift.mean, drift.n, drift.largest)
}

fn calibration(row: &Row) -> Option<String> {
    Some(match row.calibration.as_ref()? {
        Calibration::Found { pass, false_accept, false_reject } => format!(
            "{}: at a threshold of {pass:.3}, {} of the bad answers pass and {} of the good ones do not.\n",
            row.name,
            percent(Some(*false_accept)),
            percent(Some(*false_reject)),
        ),
        Calibration::MissingLabels { good, bad } => format!(
            "{}: {good} good and {bad} bad labels are missing before a threshold can be chosen.\n",
            row.name
        ),
        Calibration::OutOfReach => {
            format!("{}: no threshold reaches trust.max_false_accept.\n", row.name)
        }
    })
}

/// An attack's report as a table.
pub(super) fn show_attacks(report: &AttackReport) -> String {
    let mut table = Table::new(["attack", "accepted", "mean change", "largest change"]);
    for row in &report.rows {
        table.row([
            row.name.clone(),
            format!("{} of {}", row.flips, row.refused),
            format!("{:+.3}", row.mean),
            format!("{:+.3}", row.largest),
        ]);
    }
    format!(
        "{}: {} wrong answers, of which {} pass without an attack; attacks get {} of the refused ones \
         accepted.\n\n{}",
        report.agent,
        report.answers,
        percent(Some(report.accepted_before)),
        percent(report.flips),
        table.render()
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_report_shows_what_is_known_and_what_is_missing() {
        let share = json!({"value": 0.25, "lo": 0.2, "hi": 0.3, "n": 40});
        let row = |name: &str, auc: Value| {
            json!({"name": name, "pass": 0.7, "n_good": 30, "n_bad": 40, "false_accept": share,
                "false_reject": null, "auc": auc, "kappa": null, "length_bias": null,
                "self_preference": null, "position_bias": null,
                "drift": {"since_ms": 0, "n": 70, "mean": 0.01, "largest": 0.2, "auc": null},
                "calibration": {"outcome": "missing_labels", "good": 0, "bad": 5}})
        };
        let report = json!({"agent": "nano", "judge": "generation 0 of ab", "version": "v",
            "created_ms": 0, "sources": {"file": 60, "feedback": 10, "verifier": 0}, "unjudged": 1,
            "unknown_aspects": ["wit"], "rows": [row("style", share.clone()), row("tone", json!(null))]});
        let text = show(&serde_json::from_value(report).unwrap());
        assert!(text.contains("60 from the agent's file, 10 from feedback"), "{text}");
        assert!(text.contains("25.0 % (20.0 to 30.0)") && text.contains("0.250 (0.200 to 0.300)"));
        assert!(text.contains("+0.0100 on 70 (at most 0.2000)"), "{text}");
        assert!(text.contains("style: 0 good and 5 bad labels are missing"), "{text}");
        assert!(text.contains("\"wit\"") && text.contains("1 answers are too long"), "{text}");
    }

    #[test]
    fn an_attack_is_told_with_its_successes() {
        let report = json!({"agent": "nano", "judge": "j", "answers": 40,
            "accepted_before": {"value": 0.1, "lo": 0.0, "hi": 0.2, "n": 40},
            "flips": {"value": 0.05, "lo": 0.0, "hi": 0.1, "n": 36},
            "rows": [{"name": "asks", "n": 40, "mean": -0.5, "largest": 0.25, "flips": 2, "refused": 36}]});
        let text = show_attacks(&serde_json::from_value(report).unwrap());
        assert!(
            text.contains("2 of 36") && text.contains("-0.500") && text.contains("+0.250"),
            "{text}"
        );
    }
}
