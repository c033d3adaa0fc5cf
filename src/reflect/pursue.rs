//! What exploration does next with one prompt: draft, refine, or leave it. Pure: counts in, a decision
//! out; it neither waits nor generates. Used by `explore`, and by `learn` to find prompts that are
//! worth exploring.
//!
//! Drafts come first, then refinements of the best faulty draft, as in the paper. They are asked for
//! in stages, so that a prompt that has what training needs of it, or that nothing helps, is left
//! before all of (n, m) is spent on it.

use config::StopEarly;
use store::Filled;

/// How far to fill a prompt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Aim {
    /// Drafts (n).
    pub drafts: u32,
    /// Refinements (m).
    pub refinements: u32,
    /// When to leave it before.
    pub stop_early: StopEarly,
    /// Answers of other generations than the one that is served do not count.
    pub anew: bool,
}

impl Aim {
    /// As many answers, none of them a refinement.
    #[must_use]
    pub fn drafts_only(self) -> Self {
        Self { drafts: self.drafts.saturating_add(self.refinements), refinements: 0, ..self }
    }
    /// Whether so many good and bad answers are all that training needs of a prompt.
    pub fn has_enough(self, positives: usize, negatives: usize) -> bool {
        let enough = self.stop_early.enough as usize;
        0 < enough && enough <= positives.min(negatives)
    }
    /// The first stage of drafts alone.
    #[must_use]
    pub fn first_stage(self) -> Self {
        Self { drafts: self.drafts.min(stage(self.stop_early.enough)), refinements: 0, ..self }
    }
}

/// The decision.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Next {
    /// Sample so many drafts, and judge them.
    Draft(u32),
    /// Sample so many refinements of the best faulty draft, and judge them.
    Refine(u32),
    /// Leave it.
    Leave(Reason),
}

/// Why a prompt is left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// It has enough positives and negatives.
    Enough,
    /// Nothing passes, however often it was tried.
    Hopeless,
    /// All that was aimed at is there, or no draft has a fault to refine, or nothing tells good from bad.
    Filled,
    /// The tokens are spent, or the engine cannot go on with it.
    Spent,
}

/// Fewer at once would leave the batch half empty.
const SMALLEST_STAGE: u32 = 4;

/// What to do next, given what is there. It is counted anew after every stage.
pub fn next(aim: &Aim, have: &Filled) -> Next {
    let StopEarly { enough, give_up } = aim.stop_early;
    if aim.has_enough(have.positives as usize, have.negatives as usize) {
        return Next::Leave(Reason::Enough);
    }
    let has_positives = 0 < enough && enough <= have.positives;
    // Not before a refinement was tried, however many drafts there are: it is what helps.
    let tried = 0 < give_up && have.positives == 0 && give_up <= have.tries;
    if tried && (0 < have.refinements || aim.refinements == 0) {
        return Next::Leave(Reason::Hopeless);
    }
    let stage = stage(enough);
    if have.drafts < aim.drafts && !tried {
        return Next::Draft(stage.min(aim.drafts - have.drafts));
    }
    // Refinements are made to pass: where negatives are missing they do not help.
    if have.refinements < aim.refinements && 0 < have.faulty_drafts && !has_positives {
        return Next::Refine(stage.min(aim.refinements - have.refinements));
    }
    Next::Leave(if has_positives { Reason::Enough } else { Reason::Filled })
}

/// Answers that are asked for at once.
fn stage(enough: u32) -> u32 {
    if enough == 0 { u32::MAX } else { SMALLEST_STAGE.max(enough.saturating_mul(2)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use store::ExchangeId;

    const NOTHING: Filled = Filled {
        exchange: ExchangeId(1),
        drafts: 0,
        refinements: 0,
        positives: 0,
        negatives: 0,
        faulty_drafts: 0,
        tries: 0,
        unjudged: 0,
    };

    fn aim(enough: u32, give_up: u32) -> Aim {
        Aim { drafts: 10, refinements: 20, stop_early: StopEarly { enough, give_up }, anew: false }
    }

    /// A prompt on which drafts and refinements pass as these say. What was asked for, and the end.
    fn pursued(
        aim: &Aim,
        draft: impl Fn(u32) -> bool,
        refine: impl Fn(u32) -> bool,
    ) -> (Filled, Reason, u32) {
        let mut have = NOTHING;
        let mut stages = 0;
        loop {
            stages += 1;
            assert!(stages < 1000, "it never ends: {have:?}");
            match next(aim, &have) {
                Next::Leave(reason) => return (have, reason, stages),
                Next::Draft(n) => {
                    for _ in 0..n {
                        let passes = draft(have.drafts);
                        have.drafts += 1;
                        have.faulty_drafts += u32::from(!passes);
                        count(&mut have, passes);
                    }
                }
                Next::Refine(n) => {
                    for _ in 0..n {
                        let passes = refine(have.refinements);
                        have.refinements += 1;
                        count(&mut have, passes);
                    }
                }
            }
        }
    }

    fn count(have: &mut Filled, passes: bool) {
        have.tries += 1;
        have.positives += u32::from(passes);
        have.negatives += u32::from(!passes);
    }

    #[test]
    fn a_prompt_with_enough_of_both_is_left_after_the_first_stage() {
        let (have, reason, _) = pursued(&aim(2, 20), |i| i % 2 == 0, |_| true);
        assert_eq!((have.drafts, have.refinements, reason), (4, 0, Reason::Enough));
    }

    #[test]
    fn faulty_drafts_are_refined_until_enough_pass() {
        let (have, reason, _) = pursued(&aim(2, 20), |_| false, |i| i % 2 == 0);
        assert_eq!((have.drafts, have.refinements, reason), (10, 4, Reason::Enough));
    }

    #[test]
    fn what_nothing_helps_is_given_up_after_a_bounded_number_of_tries() {
        let (have, reason, _) = pursued(&aim(2, 16), |_| false, |_| false);
        assert_eq!((have.drafts, have.refinements, reason), (10, 8, Reason::Hopeless));
        let (have, reason, _) = pursued(&aim(2, 0), |_| false, |_| false);
        assert_eq!((have.refinements, reason), (20, Reason::Filled));
        // Also where many drafts are made, a refinement is tried.
        let (have, reason, _) = pursued(&aim(2, 4), |_| false, |_| false);
        assert_eq!((have.drafts, have.refinements, reason), (4, 4, Reason::Hopeless));
        // A new generation has its own tries.
        assert_eq!(next(&aim(2, 4), &Filled { tries: 0, ..have }), Next::Draft(4));
    }

    #[test]
    fn what_always_passes_is_drafted_to_the_end_and_never_refined() {
        let (have, reason, _) = pursued(&aim(2, 20), |_| true, |_| true);
        assert_eq!((have.drafts, have.refinements, reason), (10, 0, Reason::Enough));
    }

    #[test]
    fn without_early_stopping_all_of_n_and_m_comes_in_one_stage_each() {
        let (have, reason, stages) = pursued(&aim(0, 0), |i| i % 2 == 0, |_| true);
        assert_eq!((have.drafts, have.refinements, reason), (10, 20, Reason::Filled));
        assert_eq!(stages, 3);
    }

    proptest! {
        #[test]
        fn it_ends_and_never_asks_for_more_than_the_aim(
            drafts in 0_u32..20, refinements in 0_u32..20, enough in 0_u32..6, give_up in 0_u32..30,
            passes in any::<u64>(),
        ) {
            let aim = Aim { drafts, refinements, stop_early: StopEarly { enough, give_up }, anew: false };
            let says = |i: u32| passes >> (i % 64) & 1 == 1;
            let (have, reason, _) = pursued(&aim, says, |i| says(i + 31));
            prop_assert!(have.drafts <= drafts && have.refinements <= refinements);
            if reason == Reason::Hopeless {
                prop_assert_eq!(have.positives, 0);
            }
            // A prompt that was left stays left: it is not explored again for nothing.
            prop_assert_eq!(next(&aim, &have), Next::Leave(reason));
        }
    }
}
