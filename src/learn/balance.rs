//! Good and bad single answers in balance, for `kto`: a side that is much larger is thinned out,
//! and the sides' weights make up for what is left. Pure. Used by `material` and `job`.

use super::dataset::Counts;
use super::pairs::Pair;
use super::random::Random;
use protocol::Objective;

/// Leaves of the larger side at most `most` times as many as the smaller side has. What the owner has
/// spoken of stays. Equal input gives equal output; the order is kept.
pub(super) fn thinned(pairs: Vec<Pair>, most: f64) -> Vec<Pair> {
    let (n_good, n_bad) = sides(&pairs);
    let room = scaled(n_good.min(n_bad), most);
    let mut surplus = n_good.max(n_bad).saturating_sub(room);
    let is_larger = |pair: &Pair| (n_bad < n_good) == pair.row.chosen.is_some();
    let mut indices: Vec<usize> = (0..pairs.len())
        .filter(|&index| is_larger(&pairs[index]) && !pairs[index].by_owner)
        .collect();
    Random::new(u64::try_from(pairs.len()).unwrap_or_default()).shuffle(&mut indices);
    let mut goes = vec![false; pairs.len()];
    for index in indices {
        if surplus == 0 {
            break;
        }
        goes[index] = true;
        surplus -= 1;
    }
    pairs.into_iter().zip(goes).filter(|(_, goes)| !goes).map(|(pair, _)| pair).collect()
}

/// The configured weights are those of the two sides as a whole: the larger side's answers weigh
/// less, each by the ratio of the numbers.
pub(super) fn weighted(objective: Objective, counts: Counts) -> Objective {
    let Objective::Kto { beta, desirable_weight, undesirable_weight } = objective else {
        return objective;
    };
    let Counts { good: n_good, bad: n_bad, .. } = counts;
    Objective::Kto {
        beta,
        desirable_weight: desirable_weight * share(n_bad, n_good),
        undesirable_weight: undesirable_weight * share(n_good, n_bad),
    }
}

/// Answers on each side: good, bad.
pub(super) fn sides(pairs: &[Pair]) -> (usize, usize) {
    let count = |side: fn((bool, bool)) -> bool| pairs.iter().filter(|it| side(it.sides())).count();
    (count(|(good, _)| good), count(|(_, bad)| bad))
}

/// `other / own`, at most 1.
fn share(other: usize, own: usize) -> f64 {
    (other as f64 / own.max(1) as f64).min(1.0)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count times a ratio of at least 1"
)]
fn scaled(n: usize, most: f64) -> usize {
    (n as f64 * most) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Example;
    use store::{CandidateId, ExchangeId, PairRow};

    fn single(id: i64, is_good: bool, by_owner: bool) -> Pair {
        let side = |wanted| (is_good == wanted).then_some(CandidateId(id));
        Pair {
            row: PairRow {
                exchange: ExchangeId(1),
                chosen: side(true),
                rejected: side(false),
                margin: 0.0,
            },
            example: Example {
                prompt_id: id.to_string(),
                prompt: vec![1],
                chosen: Vec::new(),
                rejected: None,
            },
            by_owner,
        }
    }

    #[test]
    fn the_larger_side_is_thinned_and_the_owners_word_stays() {
        let mut pairs: Vec<Pair> = (0..2).map(|id| single(id, true, false)).collect();
        pairs.extend((2..30).map(|id| single(id, false, id == 29)));
        let thin = thinned(pairs.clone(), 4.0);
        assert_eq!(sides(&thin), (2, 8));
        assert_eq!(thin.last(), pairs.last(), "the owner spoke of it");
        assert!(thin.is_sorted_by_key(|pair| pair.example.prompt_id.parse::<i64>().unwrap()));
        assert_eq!(thinned(pairs.clone(), 4.0), thin, "equal input, equal output");
        assert_eq!(thinned(pairs.clone(), 100.0), pairs);
    }

    #[test]
    fn without_one_side_nothing_is_left_but_the_owners_words() {
        let pairs: Vec<Pair> = (0..9).map(|id| single(id, false, id == 3)).collect();
        assert_eq!(thinned(pairs, 4.0).len(), 1);
    }

    #[test]
    fn both_sides_weigh_as_configured_however_many_they_are() {
        let counts = Counts { examples: 15, good: 3, bad: 12 };
        let kto = |desirable_weight, undesirable_weight| Objective::Kto {
            beta: 0.1,
            desirable_weight,
            undesirable_weight,
        };
        assert_eq!(weighted(kto(1.0, 1.0), counts), kto(1.0, 0.25));
        assert_eq!(weighted(kto(1.5, 2.0), counts), kto(1.5, 0.5));
        assert_eq!(weighted(Objective::Sft, counts), Objective::Sft);
    }
}
