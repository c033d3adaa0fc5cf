//! Exponentials over a whole vocabulary, written so that the compiler makes vector code of them:
//! one step of a model reads a row of 30,000 to 250,000 logits for every sequence. Pure. Used by
//! `sample.rs`.

/// Numbers that are worked on side by side.
const LANES: usize = 16;
/// Partial sums of so many terms are kept in f32; more would lose digits.
const BLOCK: usize = 32 * LANES;

/// The largest logit; `None` when one of them is not finite, or there is none.
pub(super) fn max(logits: &[f32]) -> Option<f32> {
    let mut largest = [f32::NEG_INFINITY; LANES];
    // Zero times a number that is not finite is not zero, so one sum tells of all of them.
    let mut check = [0.0_f32; LANES];
    let (lanes, rest) = logits.as_chunks::<LANES>();
    for chunk in lanes {
        for i in 0..LANES {
            largest[i] = if largest[i] < chunk[i] { chunk[i] } else { largest[i] };
            check[i] += chunk[i] * 0.0;
        }
    }
    let check: f32 = check.iter().chain(rest).map(|number| number * 0.0).sum();
    let largest = largest.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    (!logits.is_empty() && check == 0.0).then_some(largest)
}

/// `ln(sum(exp(logit)))`, given the largest logit.
pub(super) fn log_sum_exp(logits: &[f32], max: f32) -> f64 {
    let mut total = 0.0_f64;
    for block in logits.chunks(BLOCK) {
        let mut sums = [0.0_f32; LANES];
        let (lanes, rest) = block.as_chunks::<LANES>();
        for chunk in lanes {
            for i in 0..LANES {
                sums[i] += exp(chunk[i] - max);
            }
        }
        total += f64::from(sums.iter().sum::<f32>());
        total += rest.iter().map(|logit| f64::from(exp(logit - max))).sum::<f64>();
    }
    f64::from(max) + total.ln()
}

/// `exp((logit - max) / temperature)` of every logit, into `weights`.
pub(super) fn weigh(logits: &[f32], max: f32, temperature: f32, weights: &mut Vec<f32>) {
    weights.clear();
    weights.extend(logits.iter().map(|logit| exp((logit - max) / temperature)));
}

/// The sum of numbers, exact to f64's digits for as many as a vocabulary has.
pub(super) fn sum(numbers: &[f32]) -> f64 {
    let mut sums = [0.0_f64; LANES];
    let (lanes, rest) = numbers.as_chunks::<LANES>();
    for chunk in lanes {
        for i in 0..LANES {
            sums[i] += f64::from(chunk[i]);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().copied().map(f64::from).sum::<f64>()
}

/// `e^x` for `x` at most 0, to 2e-7 of its value; 0 below what a normal f32 can hold. `f32::exp` is
/// a call for each number. Cody and Waite's reduction, then a Taylor polynomial on half of ln 2.
#[inline]
fn exp(x: f32) -> f32 {
    // ln 2 in two parts: the product of the first with a small integer is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Added to a small number it leaves its nearest integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LEAST: f32 = -87.0;
    let bounded = if x < LEAST { LEAST } else { x };
    let shifted = bounded * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = bounded - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for term in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + term;
    }
    // The exponent's bits are the integer, moved into place.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    if x < LEAST { 0.0 } else { p * power }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_and_what_is_not_finite_have_no_maximum() {
        assert_eq!(max(&[]), None);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 17, 40] {
                let mut logits = vec![1.0; 41];
                logits[place] = bad;
                assert_eq!(max(&logits), None, "{bad} at {place}");
            }
        }
        assert_eq!(max(&[-3.0, -2.0]), Some(-2.0));
    }

    proptest! {
        #[test]
        fn the_exponential_is_as_good_as_the_libraries(x in -86.9_f32..=0.0) {
            let right = f64::from(x).exp();
            prop_assert!((f64::from(exp(x)) - right).abs() <= 2e-7 * right, "{}", exp(x));
            prop_assert!(exp(x - 100.0) == 0.0);
        }

        #[test]
        fn sums_and_maxima_are_those_of_the_plain_loop(
            logits in prop::collection::vec(-30.0_f32..30.0, 1..2000),
        ) {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(max(&logits), Some(largest));
            let plain: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            prop_assert!((log_sum_exp(&logits, largest) - plain.ln()).abs() < 2e-6);
            let total: f64 = logits.iter().copied().map(f64::from).sum();
            prop_assert!((sum(&logits) - total).abs() < 1e-9);
        }
    }
}
