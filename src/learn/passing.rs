//! Whether next to no answer of an agent passes, to the practice prompts whose verifier names the right one.
//! Pure but for a lock. Used by `explore`, which makes one for each agent and need not pursue such prompts
//! then.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use store::Filled;

/// So many answers of which none passes exclude that one in a hundred would, with 95 % confidence.
const NONE: usize = 299;

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
        let is_none = passes == 0 && NONE <= drafts && (!refines || NONE <= refinements);
        is_none.then_some(counts)
    }

    /// Once.
    pub(super) fn is_to_be_told(&self) -> bool {
        !self.is_told.swap(true, Ordering::Relaxed)
    }
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
    fn a_rate_of_one_in_a_hundred_is_excluded_before_prompts_are_no_longer_pursued() {
        let none_of = |n: usize| 0.99_f64.powf(n as f64);
        assert!(none_of(NONE) < 0.05 && 0.05 < none_of(NONE - 1));
    }

    #[test]
    fn a_single_answer_that_passes_or_too_few_that_do_not_leave_it_open() {
        assert!(of(NONE, NONE, 0).next_to_none(true).is_some());
        assert_eq!(of(9 * NONE, 9 * NONE, 1).next_to_none(true), None);
        assert_eq!(of(NONE - 1, 9 * NONE, 0).next_to_none(true), None);
        assert_eq!(of(9 * NONE, NONE - 1, 0).next_to_none(true), None);
        assert!(of(NONE, 0, 0).next_to_none(false).is_some());
    }
}
