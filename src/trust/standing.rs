//! Whether a model may learn from a judge, given the newest report on it. Pure. Used by `learn`
//! before a run's trainer starts, and by `status`.

use serde::{Deserialize, Serialize};

use super::report::{Report, Row};
use config::TrustConfig;
use statistics::Estimate;

/// What is known of a judge.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "standing", rename_all = "snake_case")]
pub enum Standing {
    /// It was measured, and every measured aspect is above the floor.
    Trusted {
        /// Aspects with too few labels.
        unmeasured: Vec<String>,
    },
    /// There are too few labels to tell anything.
    Unmeasured {
        /// What is missing.
        reason: String,
    },
    /// Nothing may be trained by it.
    Blocked {
        /// Why, and what to do.
        reason: String,
    },
}

/// Judges the judge. Without a report nothing was labelled. `advisory`: aspects that are only recorded.
pub fn standing(
    agent: &str,
    advisory: &[&str],
    report: Option<&Report>,
    config: &TrustConfig,
) -> Standing {
    let rows = report.map(|report| report.rows.as_slice()).unwrap_or_default();
    let rows: Vec<&Row> =
        rows.iter().filter(|row| !advisory.contains(&row.name.as_str())).collect();
    let is_measured = |row: &Row| config.min_labels <= row.n_good.min(row.n_bad);
    let below = rows.iter().filter(|row| is_measured(row)).find_map(|row| {
        let auc = row.auc.filter(|auc| auc.lo < config.min_auc)?;
        Some(too_weak(agent, &row.name, auc, config.min_auc))
    });
    if let Some(reason) = below {
        return Standing::Blocked { reason };
    }
    let names = |rows: Vec<&Row>| rows.into_iter().map(|row| row.name.clone()).collect();
    let unmeasured: Vec<String> =
        names(rows.iter().copied().filter(|row| !is_measured(row)).collect());
    let is_unmeasured = unmeasured.len() == rows.len();
    let least = config.min_labels;
    let reason = format!(
        "the judge of agent {agent} is not measured: nothing has {least} good and {least} bad labels; \
         rate answers (`reflectd feedback`), give prompts verifiers, or name a file of `probes`, then \
         run `reflectd judge calibrate`"
    );
    match (is_unmeasured, config.required) {
        (true, true) => Standing::Blocked { reason: format!("{reason} (trust.required is true)") },
        (true, false) => Standing::Unmeasured { reason },
        // The whole answer and each aspect are two ways to the same: one of them must be known.
        (false, true) if rows.first().is_some_and(|whole| !is_measured(whole)) => {
            Standing::Blocked {
                reason: format!(
                    "the judge of agent {agent} is not measured on whole answers, and trust.required \
                     is true: label {least} good and {least} bad answers as a whole"
                ),
            }
        }
        (false, _) => Standing::Trusted { unmeasured },
    }
}

fn too_weak(agent: &str, aspect: &str, auc: Estimate, least: f64) -> String {
    let Estimate { value, lo, hi, n } = auc;
    format!(
        "the judge of agent {agent} cannot be trusted on {aspect}: it puts a good answer above a bad one \
         with probability {value:.2} ({lo:.2} to {hi:.2}, {n} labels), and trust.min_auc asks for a \
         lower bound of {least}; reword the rubric, give references or verifiers, use a stronger judge, \
         give the aspect weight 0, or lower trust.min_auc"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::report::Sources;

    const CONFIG: TrustConfig = TrustConfig {
        min_auc: 0.6,
        min_labels: 30,
        max_false_accept: 0.2,
        required: false,
        max_probes: 100,
    };

    fn row(name: &str, n: usize, lo: f64) -> Row {
        let mut row = Row::new(name, None, &[]);
        (row.n_good, row.n_bad) = (n, n);
        row.auc = Some(Estimate { value: lo + 0.05, lo, hi: lo + 0.1, n: 2 * n });
        row
    }

    fn report(rows: Vec<Row>) -> Report {
        Report {
            agent: "a".into(),
            judge: "j".into(),
            version: "v".into(),
            created_ms: 0,
            sources: Sources::default(),
            unjudged: 0,
            unknown_aspects: Vec::new(),
            rows,
        }
    }

    #[test]
    fn an_aspect_whose_lower_bound_is_below_the_floor_blocks_and_says_what_to_do() {
        let rows = vec![row("whole answer", 50, 0.8), row("style", 50, 0.55)];
        let Standing::Blocked { reason } = standing("a", &[], Some(&report(rows)), &CONFIG) else {
            panic!("not blocked")
        };
        assert!(reason.contains("style") && reason.contains("0.60") && reason.contains("min_auc"));
        assert!(reason.contains("reword the rubric"), "{reason}");
    }

    #[test]
    fn an_aspect_that_is_only_recorded_blocks_nothing() {
        let weak = report(vec![row("whole answer", 50, 0.8), row("style", 50, 0.55)]);
        let found = standing("a", &["style"], Some(&weak), &CONFIG);
        assert!(matches!(found, Standing::Trusted { .. }), "{found:?}");
    }

    #[test]
    fn few_labels_block_nothing_unless_they_are_required() {
        let weak_but_few = report(vec![row("whole answer", 50, 0.8), row("style", 29, 0.3)]);
        assert_eq!(
            standing("a", &[], Some(&weak_but_few), &CONFIG),
            Standing::Trusted { unmeasured: vec!["style".into()] }
        );
        assert!(matches!(standing("a", &[], None, &CONFIG), Standing::Unmeasured { .. }));
        let strict = TrustConfig { required: true, ..CONFIG };
        let Standing::Blocked { reason } = standing("a", &[], None, &strict) else {
            panic!("not blocked")
        };
        assert!(reason.contains("reflectd judge calibrate"), "{reason}");
        let aspects_only = report(vec![row("whole answer", 3, 0.8), row("style", 50, 0.8)]);
        assert!(matches!(
            standing("a", &[], Some(&aspects_only), &strict),
            Standing::Blocked { .. }
        ));
    }
}
