//! Picks the bar of an aspect: as few bad answers as wanted pass, and of all such bars the one that
//! refuses fewest good ones. Pure. Used by `meter`.

use serde::{Deserialize, Serialize};

use config::TrustConfig;
use statistics::{Estimate, Judged};

/// What calibration has found for one aspect.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Calibration {
    /// A bar that reaches the target.
    Found {
        /// An answer passes when p(+1) is at least this.
        pass: f64,
        /// Share of bad answers that pass.
        false_accept: Estimate,
        /// Share of good answers that do not.
        false_reject: Estimate,
    },
    /// There are too few labels to tell.
    MissingLabels {
        /// Good ones that are missing.
        good: usize,
        /// Bad ones that are missing.
        bad: usize,
    },
    /// Only by refusing all good answers: the judge cannot tell them apart.
    OutOfReach,
}

/// The lowest bar at which at most `max_false_accept` of the bad answers pass; scores are p(+1).
pub fn choose(judged: &[Judged], config: &TrustConfig) -> Calibration {
    let (good, bad): (Vec<Judged>, Vec<Judged>) = judged.iter().partition(|it| it.is_right);
    let missing = |n: usize| config.min_labels.saturating_sub(n);
    if 0 < missing(good.len()) + missing(bad.len()) {
        return Calibration::MissingLabels { good: missing(good.len()), bad: missing(bad.len()) };
    }
    // A bar at a good answer's score lets that answer pass; one between two of them only lets more
    // bad answers pass.
    let mut bars: Vec<f64> = good.iter().map(|it| it.score).collect();
    bars.sort_by(f64::total_cmp);
    let passing = |of: &[Judged], bar: f64| of.iter().filter(|it| bar <= it.score).count();
    let reached = |bar: &f64| {
        Estimate::share(passing(&bad, *bar), bad.len())
            .is_some_and(|share| share.value <= config.max_false_accept)
    };
    let found = bars.into_iter().find(reached).and_then(|pass| {
        let false_accept = Estimate::share(passing(&bad, pass), bad.len())?;
        let false_reject = Estimate::share(good.len() - passing(&good, pass), good.len())?;
        Some(Calibration::Found { pass, false_accept, false_reject })
    });
    found.unwrap_or(Calibration::OutOfReach)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config(max_false_accept: f64) -> TrustConfig {
        TrustConfig {
            min_auc: 0.6,
            min_labels: 10,
            max_false_accept,
            required: false,
            max_probes: 100,
        }
    }

    fn judged(score: f64, is_right: bool) -> Judged {
        Judged { score, is_accepted: false, is_right }
    }

    /// Bad answers at 0.00, 0.05 .. 0.95, good ones at 0.50, 0.525 .. 0.975.
    fn overlapping() -> Vec<Judged> {
        let bad = (0..20).map(|i| judged(0.05 * f64::from(i), false));
        bad.chain((0..20).map(|i| judged(0.5 + 0.025 * f64::from(i), true))).collect()
    }

    #[test]
    fn the_bar_reaches_the_target_at_the_least_loss() {
        let Calibration::Found { pass, false_accept, false_reject } =
            choose(&overlapping(), &config(0.2))
        else {
            panic!("not found")
        };
        // 0.80, 0.85, 0.90 and 0.95 are a fifth of the bad ones.
        assert!((pass - 0.775).abs() < 1e-9, "{pass}");
        assert!((false_accept.value - 0.2).abs() < 1e-9 && false_accept.n == 20);
        assert!((false_reject.value - 11.0 / 20.0).abs() < 1e-9);
    }

    #[test]
    fn too_few_labels_are_counted_and_an_unreachable_target_is_said() {
        let few = [judged(0.1, false), judged(0.9, true), judged(0.8, true)];
        assert_eq!(choose(&few, &config(0.2)), Calibration::MissingLabels { good: 8, bad: 9 });
        let upside_down: Vec<_> =
            overlapping().into_iter().map(|it| judged(it.score, !it.is_right)).collect();
        assert_eq!(choose(&upside_down, &config(0.0)), Calibration::OutOfReach);
    }

    proptest! {
        #[test]
        fn no_lower_bar_would_do(
            scores in proptest::collection::vec((0.0..1.0_f64, any::<bool>()), 40..80),
            target in 0.0..1.0_f64,
        ) {
            let all: Vec<_> = scores.into_iter().map(|(score, right)| judged(score, right)).collect();
            if let Calibration::Found { pass, false_accept, .. } = choose(&all, &config(target)) {
                prop_assert!(false_accept.value <= target);
                for lower in all.iter().filter(|it| it.is_right && it.score < pass) {
                    let passing = all.iter().filter(|it| !it.is_right && lower.score <= it.score);
                    let n_bad = all.iter().filter(|it| !it.is_right).count();
                    prop_assert!(target < passing.count() as f64 / n_bad as f64);
                }
            }
        }
    }
}
