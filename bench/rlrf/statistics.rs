//! Tests and intervals for problems that several policies have answered. Pure. Used by `results`.
//!
//! One seed: the exact test of `McNemar`. Several seeds answer the same problems, so their answers are not
//! independent; then a problem is the unit, and its differences over seeds are summed before
//! anything is squared (`McNemar`, clustered).

use statistics::{Share, binomial_at_least, mean};

/// Two-sided exact `McNemar` p: discordant problems are tosses of a fair coin.
pub(crate) fn mcnemar(a: &[bool], b: &[bool]) -> f64 {
    let only = |a: &[bool], b: &[bool]| a.iter().zip(b).filter(|&(&a, &b)| a && !b).count();
    let (wins, losses) = (only(b, a), only(a, b));
    (2.0 * binomial_at_least(wins.max(losses), wins + losses, 0.5)).min(1.0)
}

/// One answer a problem as a share.
pub(crate) fn shares(answers: &[bool]) -> Vec<f64> {
    answers.iter().map(|&is_right| f64::from(u8::from(is_right))).collect()
}

/// A difference of accuracies over seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Difference {
    pub(crate) value: f64,
    pub(crate) lo: f64,
    pub(crate) hi: f64,
    /// Two-sided.
    pub(crate) p: f64,
}

/// 97.5 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// b - a, where both have one list a seed and all lists have the same problems in the same order;
/// a value is the share of a problem's answers that are right.
pub(crate) fn difference(a: &[Vec<f64>], b: &[Vec<f64>]) -> Difference {
    let per_problem =
        |seeds: &[Vec<f64>], problem: usize| mean(seeds.iter().map(|answers| answers[problem]));
    let n_problems = a[0].len();
    let differences: Vec<f64> =
        (0..n_problems).map(|problem| per_problem(b, problem) - per_problem(a, problem)).collect();
    let n = n_problems as f64;
    let value = mean(differences.iter().copied());
    let variance = differences.iter().map(|d| (d - value).powi(2)).sum::<f64>() / (n - 1.0);
    let half = Z * (variance / n).sqrt();
    // Under "no difference" the mean is 0 and the squares tell the variance, as in `McNemar`'s test.
    let squares = differences.iter().map(|d| d * d).sum::<f64>();
    let z = if squares > 0.0 { differences.iter().sum::<f64>() / squares.sqrt() } else { 0.0 };
    Difference { value, lo: value - half, hi: value + half, p: 2.0 * upper_p(z.abs()) }
}

/// The accuracy over seeds, with Wilson's interval at the number of independent answers that would
/// vary as much as these do (the design effect of asking every problem once a seed).
pub(crate) fn pooled(seeds: &[Vec<bool>]) -> Option<Share> {
    let n_problems = seeds.first()?.len();
    let per_problem: Vec<f64> = (0..n_problems)
        .map(|problem| {
            seeds.iter().filter(|answers| answers[problem]).count() as f64 / seeds.len() as f64
        })
        .collect();
    let n = n_problems as f64;
    let p = mean(per_problem.iter().copied());
    let variance = per_problem.iter().map(|x| (x - p).powi(2)).sum::<f64>() / (n - 1.0);
    let independent = if 0.0 < variance { p * (1.0 - p) * n / variance } else { n };
    // Between the number of problems and that of answers, so that rounding does not matter.
    let effective = round(independent.max(n));
    let share = Share::new(round(p * effective as f64), effective)?;
    Some(Share { value: p, ..share })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of answers, and not negative"
)]
fn round(count: f64) -> usize {
    count.round() as usize
}

/// P(Z > z) of the normal distribution, z at least 0, to a relative 1e-7 (continued fraction of
/// Mills' ratio; a series near 0).
fn upper_p(z: f64) -> f64 {
    let density = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    if z < 2.5 {
        // Phi(z) = 1/2 + density (z + z^3/3 + z^5/15 + ...).
        let mut term = z;
        let mut sum = z;
        let mut odd = 3.0;
        while sum.abs() * 1e-16 < term {
            term *= z * z / odd;
            sum += term;
            odd += 2.0;
        }
        return 0.5 - density * sum;
    }
    let fraction = (1..=60).rev().fold(z, |below, k| z + f64::from(k) / below);
    density / fraction
}
