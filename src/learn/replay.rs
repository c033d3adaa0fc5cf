//! Which old pairs a run is trained on again. Pure: new pairs, old ones and a share in, a data set
//! out; the same input gives the same one. Used by `material`.
//!
//! New pairs are all used. Old ones are those of earlier runs and those that could be made of stored
//! answers then: they keep what was learned, and their rejected answers stay rejected (anchors), also
//! where a prompt has new answers by now. Of an earlier run's pair a side is left out when what is
//! said of it has changed, and the rest is used as far as the objective can use it: a good answer that
//! supervised training had is no pair.

use std::collections::{HashMap, HashSet};

use super::held_out::HeldOut;
use super::pairs::{Pair, Shape, prompt_id};
use super::random::Random;
use super::worth;
use config::Positives;
use engine::Token;
use protocol::{Example, Objective};
use store::{CandidateId, EarlierPair, Exchange, ExchangeId};

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
    /// Pairs of earlier runs that are not used as they were: something else is said of an answer.
    pub(super) stale: usize,
}

/// What earlier runs have learned from, as far as it still holds.
#[derive(Debug)]
pub(super) struct Earlier {
    pairs: Vec<Pair>,
    /// Indices of the pairs.
    by_exchange: HashMap<ExchangeId, Vec<usize>>,
    shape: Shape,
    positives: Positives,
    stale: usize,
}

impl Earlier {
    /// Prompts may have become held out since.
    pub(super) fn new(
        earlier: Vec<EarlierPair>,
        held_out: &HeldOut,
        objective: &Objective,
        positives: Positives,
    ) -> Self {
        let ids = |tokens: &[Token]| tokens.iter().map(|token| token.0).collect::<Vec<i32>>();
        let usable = earlier.into_iter().filter(|pair| !held_out.contains(&pair.messages));
        let pair = |pair: EarlierPair| Pair {
            row: pair.row,
            example: Example {
                prompt_id: prompt_id(&pair.prompt),
                prompt: ids(&pair.prompt),
                chosen: ids(&pair.chosen),
                rejected: pair.rejected.as_deref().map(ids),
            },
            // It was learned from once: now it may make room.
            by_owner: false,
        };
        let pairs: Vec<Pair> = usable.map(pair).collect();
        let mut by_exchange: HashMap<_, Vec<usize>> = HashMap::new();
        for (index, pair) in pairs.iter().enumerate() {
            by_exchange.entry(pair.row.exchange).or_default().push(index);
        }
        Self { pairs, by_exchange, shape: Shape::of(objective), positives, stale: 0 }
    }

    /// Takes back what is not said of an exchange's answers any more.
    pub(super) fn compare(&mut self, exchange: &Exchange) {
        let Some(indices) = self.by_exchange.get(&exchange.id) else { return };
        let standing: HashMap<_, _> = worth::standing(exchange).into_iter().collect();
        for &index in indices {
            let pair = &mut self.pairs[index];
            let said = |id: Option<CandidateId>| id.and_then(|id| standing.get(&id).copied());
            let (chosen, rejected) = (said(pair.row.chosen), said(pair.row.rejected));
            // What nobody speaks of is as it was.
            let (is_chosen, is_rejected) = (
                chosen.is_none_or(|it| it.is_some_and(|it| it.may_be_chosen(self.positives))),
                rejected.is_none_or(|it| it.is_some_and(|it| it.may_be_rejected(self.positives))),
            );
            // Where both still hold by themselves; else one of them goes.
            let is_turned = is_chosen
                && is_rejected
                && chosen
                    .flatten()
                    .zip(rejected.flatten())
                    .is_some_and(|(chosen, rejected)| chosen.scalar <= rejected.scalar);
            self.stale += usize::from(!is_chosen || !is_rejected || is_turned);
            if !is_chosen || is_turned {
                *pair = pair.clone().without_chosen();
            }
            if !is_rejected || is_turned {
                *pair = pair.clone().without_rejected();
            }
        }
    }

    /// What the objective can use of them.
    fn fitting(self) -> impl Iterator<Item = Pair> {
        let shape = self.shape;
        self.pairs.into_iter().flat_map(move |pair| match (shape, pair.sides()) {
            (Shape::Pairs | Shape::Mixed, (true, true)) => vec![pair],
            (Shape::Mixed | Shape::Chosen, (true, _)) => vec![pair.without_rejected()],
            (Shape::Singles, (true, true)) => {
                vec![pair.clone().without_rejected(), pair.without_chosen()]
            }
            (Shape::Singles, (true, false) | (false, true)) => vec![pair],
            _ => Vec::new(),
        })
    }
}

/// All pairs that no run has `learned` from, and so many old ones that they are `share` of the whole. Without new ones, and with a share of 1, all old
/// ones are used.
pub(super) fn mix(
    pairs: Vec<Pair>,
    earlier: Earlier,
    learned: &HashSet<Answers>,
    share: f64,
) -> (Vec<Pair>, Replayed) {
    let numbered = pairs.into_iter().enumerate();
    let stale = earlier.stale;
    let (mut mixed, rest): (Vec<_>, Vec<_>) =
        numbered.partition(|(_, pair)| !learned.contains(&answers(pair)));
    let n_new = mixed.len();
    let mut old: Vec<_> =
        rest.into_iter().chain(earlier.fitting().map(|pair| (usize::MAX, pair))).collect();
    // A good answer alone says nothing beside the pair that it is in.
    old.sort_by_key(|(_, pair)| pair.sides() == (true, false));
    let mut known: HashSet<_> = mixed.iter().map(|(_, pair)| answers(pair)).collect();
    let mut good: HashSet<_> = mixed.iter().filter_map(|(_, pair)| pair.row.chosen).collect();
    old.retain(|(_, pair)| {
        let is_news = pair.row.chosen.is_none_or(|id| good.insert(id));
        known.insert(answers(pair)) && (is_news || pair.row.rejected.is_some())
    });
    // Another draw for every run that has learned more.
    Random::new(learned.len() as u64).shuffle(&mut old);
    old.truncate(n_old(n_new, share));
    // In the order in which they were made, as if they had never been apart.
    mixed.append(&mut old);
    mixed.sort_by_key(|(place, pair)| (pair.row.exchange, *place, pair.row.rejected));
    let replayed = Replayed { pairs: mixed.len(), old: mixed.len() - n_new, stale };
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
    use crate::learn::pairs::tests::{candidate, exchange, word};
    use store::{Candidate, Feedback, PairRow};

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

    const DPO: Objective = Objective::Dpo { beta: 0.1, nll: 1.0 };
    const MIXED: Objective = Objective::Mixed { beta: 0.1, nll: 1.0 };

    /// Of earlier runs.
    fn earlier(pairs: Vec<Pair>, objective: &Objective) -> Earlier {
        let held_out = HeldOut::new(std::iter::empty());
        let recorded = |pair: Pair| EarlierPair {
            row: pair.row,
            messages: Vec::new(),
            prompt: vec![Token(1)],
            chosen: vec![Token(2)],
            rejected: pair.row.rejected.map(|_| vec![Token(3)]),
        };
        let earlier = pairs.into_iter().map(recorded).collect();
        Earlier::new(earlier, &held_out, objective, Positives::Veto)
    }

    fn ids(pairs: impl IntoIterator<Item = Pair>) -> Vec<(Option<i64>, Option<i64>)> {
        let id = |id: Option<CandidateId>| id.map(|id| id.0);
        pairs.into_iter().map(|pair| (id(pair.row.chosen), id(pair.row.rejected))).collect()
    }

    /// 20 old pairs, 20 new ones, and two of an earlier run: one that can still be made and one that
    /// cannot. `n_more` other pairs were learned from since.
    fn mixed(share: f64, n_more: i64) -> (Vec<Pair>, Replayed) {
        let more = (0..n_more).map(|i| pair(1000 + i, 2000 + i)).collect();
        let learned = [some(20), more].concat().iter().map(answers).collect();
        mix(some(40), earlier(vec![pair(2, 3), pair(2, 1)], &DPO), &learned, share)
    }

    #[test]
    fn all_new_pairs_are_used_and_old_ones_up_to_their_share() {
        let (pairs, replayed) = mixed(0.2, 1);
        assert_eq!(replayed, Replayed { pairs: 25, old: 5, stale: 0 });
        assert_eq!(pairs.iter().filter(|pair| pair.row.chosen > Some(CandidateId(39))).count(), 20);
        assert_eq!(mixed(0.0, 1).1, Replayed { pairs: 20, old: 0, stale: 0 });
        // 20 old ones of today, and one anchor that only an earlier run had.
        assert_eq!(mixed(1.0, 1).1, Replayed { pairs: 41, old: 21, stale: 0 });
        assert!(ids(mixed(1.0, 1).0).contains(&(Some(2), Some(1))));
    }

    #[test]
    fn the_choice_repeats_until_more_was_learned() {
        assert_eq!(mixed(0.2, 1), mixed(0.2, 1));
        assert_ne!(mixed(0.2, 1), mixed(0.2, 2));
    }

    #[test]
    fn without_new_pairs_all_old_ones_are_used() {
        let learned = some(10).iter().map(answers).collect();
        let (_, replayed) = mix(some(10), earlier(Vec::new(), &DPO), &learned, 0.1);
        assert_eq!(replayed, Replayed { pairs: 10, old: 10, stale: 0 });
    }

    #[test]
    fn what_has_become_held_out_is_not_replayed() {
        let messages =
            |text: &str| vec![prompt::Message { role: prompt::Role::User, content: text.into() }];
        let recorded = |text: &str| EarlierPair {
            row: pair(1, 2).row,
            messages: messages(text),
            prompt: vec![Token(1)],
            chosen: vec![Token(2)],
            rejected: Some(vec![Token(3)]),
        };
        let held_out = HeldOut::new(["secret"]);
        let both = vec![recorded("Secret "), recorded("secret!"), recorded("open")];
        let usable = Earlier::new(both, &held_out, &DPO, Positives::Veto);
        let usable: Vec<Pair> = usable.fitting().collect();
        assert_eq!(usable.len(), 1);
        assert_eq!(usable[0].example.prompt, [1]);
    }

    /// What supervised training had is no pair, and what pairs had is good and bad answers too.
    #[test]
    fn old_examples_are_what_the_objective_of_today_can_use() {
        let old = || vec![pair(1, 2), pair(3, 4).without_rejected()];
        let of = |objective: &Objective| ids(earlier(old(), objective).fitting());
        let (one, two, three) = ((Some(1), None), (None, Some(2)), (Some(3), None));
        assert_eq!(of(&DPO), [(Some(1), Some(2))]);
        assert_eq!(of(&Objective::Sft), [one, three]);
        assert_eq!(of(&MIXED), [(Some(1), Some(2)), three]);
        let kto = Objective::Kto { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0 };
        assert_eq!(of(&kto), [one, two, three]);
        // An answer that is in a pair is not learned once more alone.
        let learned = [pair(1, 2)].iter().map(answers).collect();
        let again = earlier(vec![pair(1, 9).without_rejected(), pair(1, 2)], &MIXED);
        let (all, _) = mix(vec![pair(1, 2)], again, &learned, 1.0);
        assert_eq!(ids(all), [(Some(1), Some(2))]);
    }

    #[test]
    fn a_side_is_used_again_only_while_the_same_is_said_of_it() {
        let judged = || vec![candidate(1, &[5], 0.9, true), candidate(2, &[6], -0.9, false)];
        let after = |candidates: Vec<Candidate>, words: Vec<Feedback>, objective: &Objective| {
            let mut earlier = earlier(vec![pair(1, 2)], objective);
            earlier.compare(&Exchange { feedback: words, ..exchange(1, "p", candidates) });
            let is_whole = earlier.pairs[0].sides() == (true, true);
            assert_eq!(earlier.stale, usize::from(!is_whole));
            ids(earlier.fitting())
        };
        let whole = (Some(1), Some(2));
        assert_eq!(after(judged(), vec![], &DPO), [whole]);
        // The owner has changed his mind about one, the other, both.
        let refused = || word(1, Some(-1));
        let praised = || word(2, Some(1));
        for words in [vec![refused()], vec![praised()], vec![refused(), praised()]] {
            assert_eq!(after(judged(), words, &DPO), []);
        }
        assert_eq!(after(judged(), vec![refused()], &MIXED), []);
        assert_eq!(after(judged(), vec![praised()], &MIXED), [(Some(1), None)]);
        let kto = Objective::Kto { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0 };
        assert_eq!(after(judged(), vec![refused()], &kto), [(None, Some(2))]);
        // And back again.
        assert_eq!(after(judged(), vec![refused(), word(1, Some(0))], &DPO), [whole]);
        // Another version of the judge says otherwise, or nothing.
        let turned = vec![candidate(1, &[5], -0.9, false), candidate(2, &[6], -0.9, false)];
        assert_eq!(after(turned, vec![], &DPO), []);
        let mut silent = judged();
        for candidate in &mut silent {
            candidate.assessments.clear();
        }
        assert_eq!(after(silent, vec![], &DPO), [whole]);
    }
}
