//! Shares with their intervals, and how good a judge is whose word is compared with the truth. Pure.
//! Used by `cli`, `trust` and the benchmarks.
#![expect(clippy::cast_precision_loss, reason = "nobody counts 2^52 answers")]

/// A share of successes with its two-sided 95 % Wilson interval, which stays inside 0 to 1 and is
/// honest for few trials.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Successes over trials.
    pub value: f64,
    /// Lower end of the interval.
    pub lo: f64,
    /// Upper end of the interval.
    pub hi: f64,
}

/// 97.5 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

impl Share {
    /// `None`: there were no trials.
    pub fn new(successes: usize, trials: usize) -> Option<Self> {
        if trials == 0 {
            return None;
        }
        let n = trials as f64;
        let value = successes as f64 / n;
        let scale = 1.0 + Z * Z / n;
        let centre = (value + Z * Z / (2.0 * n)) / scale;
        let half = Z / scale * (value * (1.0 - value) / n + Z * Z / (4.0 * n * n)).sqrt();
        Some(Self { value, lo: (centre - half).max(0.0), hi: (centre + half).min(1.0) })
    }
}

/// One judged answer whose truth is known.
#[derive(Clone, Copy, Debug)]
pub struct Judged {
    /// The judge's scalar.
    pub score: f64,
    /// Every aspect passes.
    pub is_accepted: bool,
    /// The verifier's word.
    pub is_right: bool,
}

/// How good a judge is; `None` where no answer tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JudgeQuality {
    /// Judged answers.
    pub n: usize,
    /// Share of wrong answers that it accepts.
    pub false_accept: Option<f64>,
    /// Share of right answers that it does not accept.
    pub false_reject: Option<f64>,
    /// Chance that a right answer has a higher score than a wrong one; ties count half.
    pub auc: Option<f64>,
}

/// Compares a judge with the truth.
pub fn judge_quality(judged: &[Judged]) -> JudgeQuality {
    let (right, wrong): (Vec<Judged>, Vec<Judged>) = judged.iter().partition(|j| j.is_right);
    let share = |of: &[Judged], is_accepted: bool| {
        let count = of.iter().filter(|j| j.is_accepted == is_accepted).count();
        (!of.is_empty()).then(|| count as f64 / of.len() as f64)
    };
    JudgeQuality {
        n: judged.len(),
        false_accept: share(&wrong, true),
        false_reject: share(&right, false),
        auc: auc(&right, &wrong),
    }
}

/// Mann-Whitney: one sort, one pass over the groups of equal scores.
fn auc(right: &[Judged], wrong: &[Judged]) -> Option<f64> {
    if right.is_empty() || wrong.is_empty() {
        return None;
    }
    let mut all: Vec<&Judged> = right.iter().chain(wrong).collect();
    all.sort_by(|a, b| a.score.total_cmp(&b.score));
    let mut wrong_below = 0.0;
    let mut wins = 0.0;
    for ties in all.chunk_by(|a, b| a.score.total_cmp(&b.score).is_eq()) {
        let n_right = ties.iter().filter(|j| j.is_right).count() as f64;
        let n_wrong = ties.len() as f64 - n_right;
        wins += n_right * (wrong_below + n_wrong / 2.0);
        wrong_below += n_wrong;
    }
    Some(wins / (right.len() as f64 * wrong.len() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn judged(score: f64, is_accepted: bool, is_right: bool) -> Judged {
        Judged { score, is_accepted, is_right }
    }

    #[test]
    fn the_interval_is_wilsons() {
        // Where the formula is short: a half is 0.5 -+ z / (2 sqrt(n + z^2)), and the upper bound
        // of none is z^2 / (n + z^2).
        let share = Share::new(300, 600).unwrap();
        assert!((share.lo - 0.460_120).abs() < 1e-5 && (share.hi - 0.539_880).abs() < 1e-5);
        let share = Share::new(0, 10).unwrap();
        assert!(share.lo < 1e-12 && (share.hi - 0.277_533).abs() < 1e-5, "{share:?}");
        assert_eq!(Share::new(0, 0), None);
    }

    #[test]
    fn a_judge_is_measured_on_wrong_and_on_right_answers_apart() {
        let quality = judge_quality(&[
            judged(0.9, true, true),
            judged(0.5, true, false),
            judged(0.5, false, true),
            judged(-0.5, false, false),
            judged(-0.9, false, false),
            judged(-0.9, false, false),
        ]);
        assert_eq!(quality.n, 6);
        assert_eq!(quality.false_accept, Some(0.25));
        assert_eq!(quality.false_reject, Some(0.5));
        assert_eq!(quality.auc, Some((4.0 + 3.5) / 8.0));
    }

    #[test]
    fn what_cannot_be_measured_is_absent() {
        let quality = judge_quality(&[judged(0.0, true, true)]);
        assert_eq!((quality.false_accept, quality.auc), (None, None));
        assert_eq!(quality.false_reject, Some(0.0));
    }

    proptest! {
        #[test]
        fn the_interval_holds_the_share_and_stays_in_range(n in 1_usize..2000, part in 0.0..=1.0) {
            let successes = (n as f64 * part) as usize;
            let share = Share::new(successes, n).unwrap();
            let e = 1e-12;
            prop_assert!(0.0 <= share.lo && share.lo <= share.value + e);
            prop_assert!(share.value <= share.hi + e && share.hi <= 1.0);
        }

        #[test]
        fn the_auc_is_the_share_of_pairs_in_order(
            scores in proptest::collection::vec((-3_i8..=3, any::<bool>()), 0..40),
        ) {
            let all: Vec<Judged> =
                scores.iter().map(|&(score, right)| judged(f64::from(score), true, right)).collect();
            let (mut wins, mut pairs) = (0.0, 0.0);
            for right in all.iter().filter(|j| j.is_right) {
                for wrong in all.iter().filter(|j| !j.is_right) {
                    pairs += 1.0;
                    wins += match right.score.total_cmp(&wrong.score) {
                        std::cmp::Ordering::Less => 0.0,
                        std::cmp::Ordering::Equal => 0.5,
                        std::cmp::Ordering::Greater => 1.0,
                    };
                }
            }
            match judge_quality(&all).auc {
                Some(auc) => prop_assert!((auc - wins / pairs).abs() < 1e-9),
                None => prop_assert!(pairs == 0.0),
            }
        }
    }
}
