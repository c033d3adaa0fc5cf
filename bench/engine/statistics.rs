//! Medians, and the ratio of measurements that were taken in turn. Pure. Used by every workload.

/// The middle of the values, or the mean of the middle two; `None` without any.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n.is_multiple_of(2) => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        _ => Some(sorted[middle]),
    }
}

/// Least and most of the values.
pub(crate) fn range(values: &[f64]) -> Option<(f64, f64)> {
    let least = values.iter().copied().min_by(f64::total_cmp)?;
    let most = values.iter().copied().max_by(f64::total_cmp)?;
    Some((least, most))
}

/// One ratio a round: what slows the machine down for a while slows both sides of a round.
pub(crate) fn ratios(above: &[f64], below: &[f64]) -> Vec<f64> {
    above.iter().zip(below).filter(|(_, below)| **below > 0.0).map(|(a, b)| a / b).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_median_is_the_middle_in_any_order() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn a_slow_round_changes_both_sides_and_no_ratio() {
        let ours = [2.0, 20.0, 2.0];
        let peer = [3.0, 30.0, 3.0];
        assert_eq!(ratios(&peer, &ours), [1.5, 1.5, 1.5]);
        assert_eq!(ratios(&peer, &[0.0, 1.0]), [30.0]);
    }

    proptest! {
        #[test]
        fn the_median_lies_between_least_and_most(
            values in proptest::collection::vec(-1e6..1e6, 1..30)
        ) {
            let (least, most) = range(&values).unwrap();
            let middle = median(&values).unwrap();
            prop_assert!(least <= middle && middle <= most);
        }
    }
}
