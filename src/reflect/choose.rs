//! Which candidates are served, and which one is revised. Pure; looks at scores, never at text.
//! Used by `inline` and `explore`.

use std::cmp::Ordering;

use config::Promising;
use store::Assessment;

use super::assess::{passes, scalar};

/// What choosing needs of one candidate; its place in the list is its name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Judged {
    /// The candidate that it revises; `None`: a draft.
    pub(super) parent: Option<usize>,
    /// The judge's word; `None`: not judged.
    pub(super) verdict: Option<Verdict>,
}

/// The judge's word on one candidate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Verdict {
    /// Every aspect that counts passes.
    pub(super) passes: bool,
    /// The scalar.
    pub(super) value: f64,
}

impl Verdict {
    /// `None` for a candidate that nobody has judged.
    pub(super) fn of(assessments: &[Assessment]) -> Option<Self> {
        (!assessments.is_empty())
            .then(|| Self { passes: passes(assessments), value: scalar(assessments) })
    }
}

/// The candidates that may be served, best first: those that pass every aspect before the others
/// (a veto beats a mean), then by value, then the earlier one. A refinement is among them only
/// when its value beats its parent's by `margin`; drafts always are, so that there is an answer.
pub(super) fn rank(candidates: &[Judged], margin: f64) -> Vec<usize> {
    let mut ranked: Vec<(usize, &Judged)> = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| may_be_served(candidates, candidate, margin))
        .collect();
    // The sort is stable, so equals keep their order.
    ranked.sort_by(|a, b| compare(b.1.verdict, a.1.verdict));
    ranked.into_iter().map(|(index, _)| index).collect()
}

/// The draft to revise when exploring: the one with the largest scalar, of all (the paper) or of
/// those with a fault, because a refinement of an answer without one teaches little.
pub(super) fn promising(candidates: &[Judged], which: Promising) -> Option<usize> {
    let drafts = candidates.iter().enumerate().filter(|(_, candidate)| candidate.parent.is_none());
    let judged = drafts.filter_map(|(index, candidate)| Some((index, candidate.verdict?)));
    judged
        .filter(|(_, verdict)| which == Promising::Best || !verdict.passes)
        // Backwards, because `max_by` returns the last of equals and the earlier one is wanted.
        .rev()
        .max_by(|a, b| a.1.value.total_cmp(&b.1.value))
        .map(|(index, _)| index)
}

fn may_be_served(candidates: &[Judged], candidate: &Judged, margin: f64) -> bool {
    let Some(parent) = candidate.parent else { return true };
    let value_of = |judged: &Judged| judged.verdict.map(|verdict| verdict.value);
    let gain = value_of(candidate)
        .zip(candidates.get(parent).and_then(value_of))
        .map(|(own, parent)| own - parent);
    gain.is_some_and(|gain| 0.0 < gain && margin <= gain)
}

/// Unjudged, then faulty, then passing; by value among alike.
fn compare(a: Option<Verdict>, b: Option<Verdict>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => a.passes.cmp(&b.passes).then(a.value.total_cmp(&b.value)),
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draft(value: f64) -> Judged {
        Judged { parent: None, verdict: Some(Verdict { passes: false, value }) }
    }

    fn passing(value: f64) -> Judged {
        Judged { parent: None, verdict: Some(Verdict { passes: true, value }) }
    }

    fn refinement(parent: usize, value: f64) -> Judged {
        Judged { parent: Some(parent), ..draft(value) }
    }

    const UNJUDGED: Judged = Judged { parent: None, verdict: None };

    #[test]
    fn a_candidate_that_passes_comes_before_a_higher_mean() {
        assert_eq!(rank(&[draft(0.9), UNJUDGED, passing(0.5), draft(0.95)], 0.1), [2, 3, 0, 1]);
    }

    #[test]
    fn the_earlier_of_equals_comes_first() {
        assert_eq!(rank(&[draft(0.5), draft(0.5), draft(0.5)], 0.1), [0, 1, 2]);
        for which in [Promising::Best, Promising::BestFaulty] {
            assert_eq!(promising(&[draft(0.1), draft(0.5), draft(0.5)], which), Some(1));
        }
    }

    #[test]
    fn a_refinement_is_served_only_when_it_beats_its_parent_by_the_margin() {
        assert_eq!(rank(&[draft(0.25), refinement(0, 0.5)], 0.25), [1, 0]);
        assert_eq!(rank(&[draft(0.25), refinement(0, 0.4)], 0.25), [0]);
        assert_eq!(rank(&[draft(0.25), refinement(0, 0.25)], 0.0), [0]);
        assert_eq!(rank(&[UNJUDGED, refinement(0, 0.9)], 0.0), [0]);
    }

    #[test]
    fn a_refinement_that_passes_but_gains_too_little_is_not_served() {
        let better = Judged { parent: Some(0), ..passing(0.3) };
        assert_eq!(rank(&[draft(0.25), better], 0.1), [0]);
    }

    #[test]
    fn the_promising_draft_is_the_best_with_a_fault() {
        let promising = |candidates: &[Judged]| promising(candidates, Promising::BestFaulty);
        assert_eq!(promising(&[draft(0.1), passing(0.9), draft(0.4), UNJUDGED]), Some(2));
        assert_eq!(promising(&[draft(0.1), refinement(0, 0.4)]), Some(0));
        assert_eq!(promising(&[passing(0.9), passing(0.8)]), None);
        assert_eq!(promising(&[UNJUDGED]), None);
    }

    #[test]
    fn the_papers_promising_draft_has_the_largest_scalar_whether_or_not_it_passes() {
        let promising = |candidates: &[Judged]| promising(candidates, Promising::Best);
        assert_eq!(promising(&[draft(0.1), passing(0.9), draft(0.4), UNJUDGED]), Some(1));
        assert_eq!(promising(&[draft(0.95), passing(0.9)]), Some(0));
        assert_eq!(promising(&[draft(0.1), refinement(0, 0.4)]), Some(0));
        assert_eq!(promising(&[UNJUDGED]), None);
    }

    fn any_judged() -> impl Strategy<Value = Judged> {
        let verdict =
            (any::<bool>(), -1.0..1.0).prop_map(|(passes, value)| Verdict { passes, value });
        (proptest::option::of(0_usize..8), proptest::option::of(verdict))
            .prop_map(|(parent, verdict)| Judged { parent, verdict })
    }

    proptest! {
        #[test]
        fn every_draft_can_be_served_and_nobody_comes_twice(
            candidates in proptest::collection::vec(any_judged(), 0..8), margin in 0.0..2.0,
        ) {
            let ranked = rank(&candidates, margin);
            let mut unique = ranked.clone();
            unique.sort_unstable();
            unique.dedup();
            prop_assert_eq!(unique.len(), ranked.len());
            for (index, candidate) in candidates.iter().enumerate() {
                prop_assert!(candidate.parent.is_some() || ranked.contains(&index));
            }
        }
    }
}
