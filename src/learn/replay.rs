//! Which old pairs a run is trained on again. Pure: new pairs, old ones and a share in, a data set
//! out; the same input gives the same one. Used by `run`.
//!
//! New pairs are all used. Old ones are those of earlier runs, as they were, and those that could be
//! made of stored answers then: they keep what was learned, and their rejected answers stay rejected
//! (anchors), also where a prompt has new answers by now.

use std::collections::HashSet;

use super::held_out::HeldOut;
use super::pairs::{Pair, prompt_id};
use super::random::Random;
use engine::Token;
use protocol::Example;
use store::{CandidateId, EarlierPair};

/// Old pairs looked at; a night's run has thousands.
pub(super) const MAX_EARLIER: usize = 20_000;

/// The chosen and the rejected answer of a pair.
type Answers = (Option<CandidateId>, Option<CandidateId>);

/// How many old pairs a data set has, for the run's record.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize)]
pub(super) struct Replayed {
    /// All pairs.
    pub(super) pairs: usize,
    /// Of these, old ones.
    pub(super) old: usize,
}

/// Earlier pairs that may still be used: prompts may have become held out since.
pub(super) fn usable(earlier: Vec<EarlierPair>, held_out: &HeldOut) -> Vec<Pair> {
    let ids = |tokens: &[Token]| tokens.iter().map(|token| token.0).collect::<Vec<i32>>();
    earlier
        .into_iter()
        .filter(|pair| !held_out.contains(&pair.messages))
        .map(|pair| Pair {
            row: pair.row,
            example: Example {
                prompt_id: prompt_id(&pair.prompt),
                prompt: ids(&pair.prompt),
                chosen: ids(&pair.chosen),
                rejected: pair.rejected.as_deref().map(ids),
            },
            // It was learned from once: now it may make room.
            by_owner: false,
        })
        .collect()
}

/// All pairs that no run has `learned` from, and so many old ones that they are `share` of the whole. Without new ones, and with a share of 1, all old
/// ones are used.
pub(super) fn mix(
    pairs: Vec<Pair>,
    earlier: Vec<Pair>,
    learned: &HashSet<Answers>,
    share: f64,
) -> (Vec<Pair>, Replayed) {
    let numbered = pairs.into_iter().enumerate();
    let (mut mixed, rest): (Vec<_>, Vec<_>) =
        numbered.partition(|(_, pair)| !learned.contains(&answers(pair)));
    let n_new = mixed.len();
    let mut known: HashSet<_> = mixed.iter().map(|(_, pair)| answers(pair)).collect();
    let earlier = earlier.into_iter().map(|pair| (usize::MAX, pair));
    let mut old: Vec<_> =
        rest.into_iter().chain(earlier).filter(|(_, pair)| known.insert(answers(pair))).collect();
    // Another draw for every run that has learned more.
    Random::new(learned.len() as u64).shuffle(&mut old);
    old.truncate(n_old(n_new, share));
    // In the order in which they were made, as if they had never been apart.
    mixed.append(&mut old);
    mixed.sort_by_key(|(place, pair)| (pair.row.exchange, *place, pair.row.rejected));
    let replayed = Replayed { pairs: mixed.len(), old: mixed.len() - n_new };
    (mixed.into_iter().map(|(_, pair)| pair).collect(), replayed)
}

fn answers(pair: &Pair) -> Answers {
    (pair.row.chosen, pair.row.rejected)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts are far below 2^52, and what is too large saturates"
)]
fn n_old(n_new: usize, share: f64) -> usize {
    if n_new == 0 || 1.0 <= share {
        return usize::MAX;
    }
    (n_new as f64 * share / (1.0 - share)).round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::{ExchangeId, PairRow};

    fn pair(chosen: i64, rejected: i64) -> Pair {
        Pair {
            row: PairRow {
                exchange: ExchangeId(chosen),
                chosen: Some(CandidateId(chosen)),
                rejected: Some(CandidateId(rejected)),
                margin: 0.5,
            },
            example: Example {
                prompt_id: "p".into(),
                prompt: vec![1],
                chosen: vec![2],
                rejected: Some(vec![3]),
            },
            by_owner: false,
        }
    }

    fn some(n: i64) -> Vec<Pair> {
        (0..n).map(|i| pair(2 * i, 2 * i + 1)).collect()
    }

    /// 20 old pairs, 20 new ones, and two of an earlier run: one that can still be made and one that
    /// cannot. `n_more` other pairs were learned from since.
    fn mixed(share: f64, n_more: i64) -> (Vec<Pair>, Replayed) {
        let more = (0..n_more).map(|i| pair(1000 + i, 2000 + i)).collect();
        let learned = [some(20), more].concat().iter().map(answers).collect();
        mix(some(40), vec![pair(2, 3), pair(2, 1)], &learned, share)
    }

    #[test]
    fn all_new_pairs_are_used_and_old_ones_up_to_their_share() {
        let (pairs, replayed) = mixed(0.2, 1);
        assert_eq!(replayed, Replayed { pairs: 25, old: 5 });
        assert_eq!(pairs.iter().filter(|pair| pair.row.chosen > Some(CandidateId(39))).count(), 20);
        assert_eq!(mixed(0.0, 1).1, Replayed { pairs: 20, old: 0 });
        // 20 old ones of today, and one anchor that only an earlier run had.
        assert_eq!(mixed(1.0, 1).1, Replayed { pairs: 41, old: 21 });
        assert!(mixed(1.0, 1).0.contains(&pair(2, 1)));
    }

    #[test]
    fn the_choice_repeats_until_more_was_learned() {
        assert_eq!(mixed(0.2, 1), mixed(0.2, 1));
        assert_ne!(mixed(0.2, 1), mixed(0.2, 2));
    }

    #[test]
    fn without_new_pairs_all_old_ones_are_used() {
        let learned = some(10).iter().map(answers).collect();
        let (_, replayed) = mix(some(10), Vec::new(), &learned, 0.1);
        assert_eq!(replayed, Replayed { pairs: 10, old: 10 });
    }

    #[test]
    fn what_has_become_held_out_is_not_replayed() {
        let messages =
            |text: &str| vec![prompt::Message { role: prompt::Role::User, content: text.into() }];
        let earlier = |text: &str| EarlierPair {
            row: pair(1, 2).row,
            messages: messages(text),
            prompt: vec![Token(1)],
            chosen: vec![Token(2)],
            rejected: None,
        };
        let held_out = HeldOut::new(["secret"]);
        let usable = usable(vec![earlier("Secret "), earlier("open")], &held_out);
        assert_eq!(usable.len(), 1);
        assert_eq!(usable[0].example.prompt, [1]);
    }
}
