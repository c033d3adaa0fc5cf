//! Whether next to no answer of an agent passes, to the practice prompts whose verifier names the right one.
//! Pure but for a lock. Used by `explore`, which makes one for each agent and need not pursue such prompts
//! then.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use statistics::binomial_at_least;
use store::Filled;

/// A share of answers that is next to none: of a hundred tries for one prompt one would be right.
const RATE: f64 = 0.01;
/// With this confidence the share is smaller.
const CONFIDENCE: f64 = 0.95;

/// Answers of the generation that is served.
#[derive(Debug, Default)]
pub(super) struct Passing {
    counts: Mutex<Counts>,
    is_told: AtomicBool,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Counts {
    pub(super) drafts: usize,
    pub(super) refinements: usize,
    /// Of both.
    pub(super) passes: usize,
}

impl Passing {
    /// What is stored of such prompts.
    pub(super) fn of<'a>(filled: impl IntoIterator<Item = &'a Filled>) -> Self {
        let passing = Self::default();
        for it in filled {
            let [drafts, refinements, passes] =
                [it.drafts, it.refinements, it.positives].map(|n| n as usize);
            passing.add(Counts { drafts, refinements, passes });
        }
        passing
    }

    pub(super) fn add(&self, news: Counts) {
        let mut counts = self.counts.lock().expect("nobody panics while holding the counts");
        counts.drafts += news.drafts;
        counts.refinements += news.refinements;
        counts.passes += news.passes;
    }

    /// The counts, if further tries would hardly find a right answer. Refinements count apart from drafts,
    /// because a verifier's reason may make right what no draft gets right by itself. `refines`: there are
    /// to be some.
    pub(super) fn next_to_none(&self, refines: bool) -> Option<Counts> {
        let counts = *self.counts.lock().expect("nobody panics while holding the counts");
        let Counts { drafts, refinements, passes } = counts;
        // As if all passes were of either kind.
        let is_none = is_excluded(drafts, passes) && (!refines || is_excluded(refinements, passes));
        is_none.then_some(counts)
    }

    /// Once.
    pub(super) fn is_to_be_told(&self) -> bool {
        !self.is_told.swap(true, Ordering::Relaxed)
    }
}

/// Whether so few passes say that fewer answers than [`RATE`] would: the one-sided bound of Clopper and
/// Pearson. None of 299, 1 of 473.
fn is_excluded(answers: usize, passes: usize) -> bool {
    // So many are no fewer than expected; it saves a long sum.
    let are_many = answers as f64 * RATE <= passes as f64;
    !are_many && binomial_at_least(answers - passes, answers, 1.0 - RATE) < 1.0 - CONFIDENCE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(drafts: usize, refinements: usize, passes: usize) -> Passing {
        let passing = Passing::default();
        passing.add(Counts { drafts, refinements, passes });
        passing
    }

    #[test]
    fn a_share_of_one_in_a_hundred_is_excluded_or_prompts_are_pursued() {
        // 0.99^299 < 0.05 < 0.99^298; the others are sums of math.comb in Python.
        for (passes, fewest) in [(0, 299), (1, 473), (2, 628), (10, 1693)] {
            assert!(is_excluded(fewest, passes), "{passes} of {fewest}");
            assert!(!is_excluded(fewest - 1, passes), "{passes} of {}", fewest - 1);
        }
        assert!(!is_excluded(100_000, 50_000) && !is_excluded(0, 0) && !is_excluded(3, 3));
    }

    #[test]
    fn drafts_and_refinements_have_shares_of_their_own() {
        assert!(of(299, 299, 0).next_to_none(true).is_some());
        assert_eq!(of(298, 9999, 0).next_to_none(true), None);
        assert_eq!(of(9999, 298, 0).next_to_none(true), None);
        assert!(of(299, 0, 0).next_to_none(false).is_some());
        assert_eq!(of(299, 9999, 1).next_to_none(true), None);
        assert!(of(1196, 473, 1).next_to_none(true).is_some());
    }
}
