//! Shares with their intervals, and how good a judge is whose word is compared with the truth. Pure.
//! Used by `cli`, `trust` and the benchmarks.

use serde::{Deserialize, Serialize};

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

/// The sum over the number of values; not a number without any.
pub fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (mut sum, mut n) = (0.0, 0_u32);
    for value in values {
        sum += value;
        n += 1;
    }
    sum / f64::from(n)
}

/// P(at least `k` successes in `n` trials of probability `p`), 0 < `p` < 1.
pub fn binomial_at_least(k: usize, n: usize, p: f64) -> f64 {
    // ln of C(n, i) p^i (1 - p)^(n - i), summed from i = n downwards; logarithms, because p^n underflows.
    let mut ln_term = n as f64 * p.ln();
    let mut sum = 0.0;
    for i in (k..=n).rev() {
        sum += ln_term.exp();
        if 0 < i {
            ln_term += (i as f64).ln() - ((n - i + 1) as f64).ln() + ((1.0 - p) / p).ln();
        }
    }
    sum.min(1.0)
}

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

/// A number with its two-sided 95 % interval and how many observations it rests on.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// Lower end of the interval.
    pub lo: f64,
    /// Upper end of the interval.
    pub hi: f64,
    /// Observations.
    pub n: usize,
}

impl Estimate {
    /// A share of successes; `None`: there were no trials.
    pub fn share(successes: usize, trials: usize) -> Option<Self> {
        let Share { value, lo, hi } = Share::new(successes, trials)?;
        Some(Self { value, lo, hi, n: trials })
    }

    /// A number whose error is normal.
    pub fn normal(value: f64, standard_error: f64, n: usize) -> Self {
        let half = Z * standard_error;
        Self { value, lo: value - half, hi: value + half, n }
    }
}

/// The area under the ROC curve with Newcombe's interval (2006, method 5), which inverts the usual
/// variance of an area (Hanley 1982) as Wilson does a share's: it stays inside 0 to 1 and does not
/// claim certainty where few answers were all in order. `None`: one kind of answer is missing.
pub fn auc_estimate(judged: &[Judged]) -> Option<Estimate> {
    let value = judge_quality(judged).auc?;
    let n_right = judged.iter().filter(|judged| judged.is_right).count() as f64;
    let n_wrong = judged.len() as f64 - n_right;
    let more = f64::midpoint(n_right, n_wrong) - 1.0;
    let deviation = |area: f64| {
        let spread = (1.0 - area) / (2.0 - area) + area / (1.0 + area);
        (area * (1.0 - area) * (1.0 + more * spread) / (n_right * n_wrong)).sqrt()
    };
    // Where the distance to the value is Z deviations; the distance grows away from the value.
    let bound = |end: f64| {
        let (mut near, mut far) = (value, end);
        for _ in 0..60 {
            let middle = f64::midpoint(near, far);
            let is_near = (value - middle).abs() < Z * deviation(middle);
            *(if is_near { &mut near } else { &mut far }) = middle;
        }
        near
    };
    Some(Estimate { value, lo: bound(0.0), hi: bound(1.0), n: judged.len() })
}

/// Cohen's kappa of judge and truth (accepted or not, right or not), with the large-sample interval
/// of Fleiss, Cohen and Everitt (1969). `None`: chance alone would agree always.
pub fn kappa(judged: &[Judged]) -> Option<Estimate> {
    let n = judged.len();
    let mut cells = [[0.0; 2]; 2];
    for it in judged {
        cells[usize::from(it.is_accepted)][usize::from(it.is_right)] += 1.0 / n as f64;
    }
    let row = [cells[0][0] + cells[0][1], cells[1][0] + cells[1][1]];
    let column = [cells[0][0] + cells[1][0], cells[0][1] + cells[1][1]];
    let chance = row[0] * column[0] + row[1] * column[1];
    // Nothing but one cell of each margin, but for rounding.
    if n == 0 || 1.0 - chance < 1e-9 {
        return None;
    }
    let kappa = (cells[0][0] + cells[1][1] - chance) / (1.0 - chance);
    let mut sum = -(kappa - chance * (1.0 - kappa)).powi(2);
    for (i, cells) in cells.iter().enumerate() {
        for (j, cell) in cells.iter().enumerate() {
            sum += if i == j {
                cell * (1.0 - (row[i] + column[i]) * (1.0 - kappa)).powi(2)
            } else {
                (1.0 - kappa).powi(2) * cell * (column[i] + row[j]).powi(2)
            };
        }
    }
    let error = (sum.max(0.0) / n as f64).sqrt() / (1.0 - chance);
    let Estimate { value, lo, hi, n } = Estimate::normal(kappa, error, n);
    let [value, lo, hi] = [value, lo, hi].map(|it| it.clamp(-1.0, 1.0));
    Some(Estimate { value, lo, hi, n })
}

/// Spearman's correlation of x and y with z held fixed, with Fisher's interval. `None`: fewer than
/// ten observations, or one of them does not vary.
pub fn partial_spearman(x: &[f64], y: &[f64], z: &[f64]) -> Option<Estimate> {
    let n = x.len();
    if n < 10 || y.len() != n || z.len() != n {
        return None;
    }
    let ranked = [x, y, z].map(ranks);
    let between = |a: usize, b: usize| pearson(&ranked[a], &ranked[b]);
    let xy = between(0, 1)?;
    // What does not vary explains nothing.
    let [xz, yz] = [between(0, 2), between(1, 2)].map(|value| value.unwrap_or(0.0));
    let left = ((1.0 - xz * xz) * (1.0 - yz * yz)).sqrt();
    if left < 1e-9 {
        return None;
    }
    let value = ((xy - xz * yz) / left).clamp(-1.0, 1.0);
    // 1.06 is Fieller's factor for ranks; one degree of freedom went to z.
    let half = Z * (1.06 / (n as f64 - 4.0)).sqrt();
    let fisher = value.clamp(-0.999_999, 0.999_999).atanh();
    Some(Estimate { value, lo: (fisher - half).tanh(), hi: (fisher + half).tanh(), n })
}

/// Ranks from 1; equal values share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut below = 0;
    for ties in order.chunk_by(|&a, &b| values[a].total_cmp(&values[b]).is_eq()) {
        for &at in ties {
            ranks[at] = below as f64 + f64::midpoint(1.0, ties.len() as f64);
        }
        below += ties.len();
    }
    ranks
}

fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    let [x_mean, y_mean] = [x, y].map(|values| mean(values.iter().copied()));
    let product = |a: &[f64], a_mean: f64, b: &[f64], b_mean: f64| -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - a_mean) * (b - b_mean)).sum()
    };
    let scale = (product(x, x_mean, x, x_mean) * product(y, y_mean, y, y_mean)).sqrt();
    (0.0 < scale).then(|| product(x, x_mean, y, y_mean) / scale)
}

/// One judged answer whose truth is known.
#[derive(Clone, Copy, Debug)]
pub struct Judged {
    /// The judge's scalar.
    pub score: f64,
    /// Every aspect passes.
    pub is_accepted: bool,
    /// The verifier's verdict.
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
    fn the_chance_of_at_least_so_many_successes_is_that_of_scipy() {
        let near = |found: f64, expected: f64| (found - expected).abs() < 1e-12;
        assert!(near(binomial_at_least(0, 7, 0.3), 1.0) && near(binomial_at_least(0, 0, 0.3), 1.0));
        assert!(near(binomial_at_least(7, 7, 0.5), 0.007_812_5));
        // 1 - 0.99^299: none of 299 where one in a hundred passes.
        assert!(near(1.0 - binomial_at_least(1, 299, 0.01), 0.99_f64.powi(299)));
        assert!((binomial_at_least(60, 100, 0.5) - 0.028_443_966_820_490_4).abs() < 1e-9);
    }

    #[test]
    fn the_mean_of_nothing_is_not_a_number() {
        assert!((mean([1.0, 2.0, 6.0]) - 3.0).abs() < 1e-12);
        assert!(mean([]).is_nan());
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

    #[test]
    fn an_area_from_few_answers_is_not_claimed_to_be_certain() {
        let ordered = |n: usize| -> Vec<Judged> {
            let one = |i: usize| judged(i as f64, true, n <= i);
            (0..2 * n).map(one).collect()
        };
        let few = auc_estimate(&ordered(5)).unwrap();
        assert!(1.0 - 1e-9 < few.value.min(few.hi));
        assert!((0.5..0.75).contains(&few.lo), "{few:?}");
        let many = auc_estimate(&ordered(500)).unwrap();
        assert!(0.99 < many.lo, "{many:?}");
        // Hanley and McNeil's standard error for an area of 0.893 with 51 and 58 answers is 0.032.
        let of = |wrong_above: usize| {
            let right =
                (0..51).map(|i| judged(if i < wrong_above { -1.0 } else { 1.0 }, true, true));
            auc_estimate(
                &right.chain((0..58).map(|_| judged(0.0, true, false))).collect::<Vec<_>>(),
            )
            .unwrap()
        };
        let near = of(5);
        assert!((0.9..0.91).contains(&near.value));
        assert!((0.02..0.045).contains(&((near.hi - near.lo) / (2.0 * Z))), "{near:?}");
    }

    #[test]
    fn kappa_is_agreement_beyond_chance() {
        let table = |[accepted_right, accepted_wrong, refused_right, refused_wrong]: [usize; 4]| {
            let some = |n, is_accepted, is_right| {
                std::iter::repeat_n(judged(0.0, is_accepted, is_right), n)
            };
            some(accepted_right, true, true)
                .chain(some(accepted_wrong, true, false))
                .chain(some(refused_right, false, true))
                .chain(some(refused_wrong, false, false))
                .collect::<Vec<_>>()
        };
        let slight = kappa(&table([45, 15, 25, 15])).unwrap();
        assert!((slight.value - 0.130_434_8).abs() < 1e-6);
        let perfect = kappa(&table([10, 0, 0, 10])).unwrap();
        assert!((perfect.value - 1.0).abs() < 1e-9 && 1.0 - 1e-6 < perfect.lo, "{perfect:?}");
        assert_eq!(kappa(&table([10, 0, 0, 0])), None);
        // The interval against what 2000 repetitions of the same table really do.
        let mut rng = fastrand::Rng::with_seed(1);
        let truth = table([45, 15, 25, 15]);
        let draws: Vec<f64> = (0..2000)
            .filter_map(|_| {
                let drawn: Vec<_> = (0..100).map(|_| truth[rng.usize(..100)]).collect();
                kappa(&drawn).map(|kappa| kappa.value)
            })
            .collect();
        let mean = mean(draws.iter().copied());
        let sd = (draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / 2000.0).sqrt();
        let error = (slight.hi - slight.lo) / (2.0 * Z);
        assert!((error / sd - 1.0).abs() < 0.1, "{error} {sd}");
    }

    #[test]
    fn what_the_label_explains_is_no_bias_of_length() {
        let mut rng = fastrand::Rng::with_seed(2);
        let label: Vec<f64> = (0..400).map(|_| f64::from(rng.u8(..2))).collect();
        let noisy = |rng: &mut fastrand::Rng, base: f64| base + rng.f64();
        // Good answers are longer and score higher, and that is all there is.
        let length: Vec<f64> = label.iter().map(|l| noisy(&mut rng, 2.0 * l)).collect();
        let fair: Vec<f64> = label.iter().map(|l| noisy(&mut rng, 2.0 * l)).collect();
        let estimate = partial_spearman(&fair, &length, &label).unwrap();
        assert!(estimate.lo < 0.0 && 0.0 < estimate.hi, "{estimate:?}");
        let biased: Vec<f64> = fair.iter().zip(&length).map(|(f, l)| f + l).collect();
        let estimate = partial_spearman(&biased, &length, &label).unwrap();
        assert!(0.3 < estimate.lo, "{estimate:?}");
        assert_eq!(partial_spearman(&fair, &vec![1.0; 400], &label), None);
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
    }

    proptest! {
        #[test]
        fn the_interval_holds_the_share_and_stays_in_range(
            (successes, n) in (1_usize..2000).prop_flat_map(|n| (0..=n, Just(n)))
        ) {
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
