//! What the main path does next: refine once more, or stop and serve. Pure: data and the time in,
//! a decision out; it neither waits nor generates. Used by `inline`.

use std::time::Duration;

use config::Reflection;

/// Where an inline reflection stands after its candidates have been judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// Since the request came.
    pub(super) elapsed: Duration,
    /// Tokens generated so far.
    pub(super) tokens: usize,
    /// Rounds of critique and refinement done.
    pub(super) rounds: u32,
    /// Refinements made so far.
    pub(super) refinements: u32,
    /// The best candidate that may be served.
    pub(super) best: Best,
    /// The last round brought a better one.
    pub(super) gained: bool,
}

/// What the judge says of the best candidate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Best {
    /// Not judged: there is nothing to critique.
    Unjudged,
    /// Some aspect falls short.
    FallsShort,
    /// Every aspect passes.
    Passes,
}

/// The decision.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Next {
    /// Sample so many refinements of the best candidate.
    Refine(u32),
    /// Serve the best.
    Stop(Stop),
}

/// Why reflection ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stop {
    /// Every aspect of the best candidate passes.
    Passes,
    /// The last round brought nothing better, or there is nothing to say.
    NoGain,
    /// Time, tokens, rounds, or the room in the context are spent.
    Budget,
    /// Nobody waits any more.
    ClientLeft,
    /// The judge cannot be asked, or not about this prompt.
    NoJudge,
}

impl Stop {
    /// The word for clients.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Passes => "passes",
            Self::NoGain => "no gain",
            Self::Budget => "budget",
            Self::ClientLeft => "client left",
            Self::NoJudge => "no judge",
        }
    }
}

/// Refinements are spread evenly over the rounds, the first rounds get the odd ones.
pub(super) fn next(budget: &Reflection, standing: &Standing) -> Next {
    if standing.best == Best::Passes {
        return Next::Stop(Stop::Passes);
    }
    if 0 < standing.rounds && !standing.gained {
        return Next::Stop(Stop::NoGain);
    }
    let refinements = budget.refinements.saturating_sub(standing.refinements);
    let rounds = budget.rounds.saturating_sub(standing.rounds);
    let spent = budget.latency <= standing.elapsed || tokens_left(budget, standing.tokens) == 0;
    if spent || standing.best == Best::Unjudged || refinements == 0 || rounds == 0 {
        return Next::Stop(Stop::Budget);
    }
    Next::Refine(refinements.div_ceil(rounds))
}

/// Tokens that may still be generated.
pub(super) fn tokens_left(budget: &Reflection, generated: usize) -> usize {
    usize::try_from(budget.tokens).unwrap_or(usize::MAX).saturating_sub(generated)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use config::{Mode, StopEarly};

    fn budget() -> Reflection {
        Reflection {
            mode: Mode::Inline,
            drafts: 4,
            refinements: 5,
            rounds: 2,
            margin: 0.1,
            promising: config::Promising::BestFaulty,
            refine_temperature: 0.8,
            critique_tokens: 64,
            latency: Duration::from_secs(10),
            tokens: 1000,
            explore: (10, 20),
            stop_early: StopEarly { enough: 2, give_up: 20 },
            verifier_weight: 0.0,
        }
    }

    fn standing() -> Standing {
        Standing {
            elapsed: Duration::from_secs(1),
            tokens: 100,
            rounds: 0,
            refinements: 0,
            best: Best::FallsShort,
            gained: false,
        }
    }

    #[test]
    fn a_best_that_passes_ends_reflection_whatever_else_is_true() {
        let spent = Standing { best: Best::Passes, tokens: 9999, rounds: 1, ..standing() };
        assert_eq!(next(&budget(), &spent), Next::Stop(Stop::Passes));
    }

    #[test]
    fn refinements_are_spread_over_the_rounds() {
        assert_eq!(next(&budget(), &standing()), Next::Refine(3));
        let second = Standing { rounds: 1, refinements: 3, gained: true, ..standing() };
        assert_eq!(next(&budget(), &second), Next::Refine(2));
        let third = Standing { rounds: 2, refinements: 5, gained: true, ..standing() };
        assert_eq!(next(&budget(), &third), Next::Stop(Stop::Budget));
    }

    #[test]
    fn a_round_without_gain_is_the_last() {
        let second = Standing { rounds: 1, refinements: 3, gained: false, ..standing() };
        assert_eq!(next(&budget(), &second), Next::Stop(Stop::NoGain));
    }

    #[test]
    fn spent_time_spent_tokens_and_an_unjudged_best_stop_it() {
        for stopped in [
            Standing { elapsed: Duration::from_secs(10), ..standing() },
            Standing { tokens: 1000, ..standing() },
            Standing { best: Best::Unjudged, ..standing() },
        ] {
            assert_eq!(next(&budget(), &stopped), Next::Stop(Stop::Budget), "{stopped:?}");
        }
    }

    #[test]
    fn an_agent_without_refinements_or_rounds_never_refines() {
        let none = Reflection { refinements: 0, ..budget() };
        assert_eq!(next(&none, &standing()), Next::Stop(Stop::Budget));
        let none = Reflection { rounds: 0, ..budget() };
        assert_eq!(next(&none, &standing()), Next::Stop(Stop::Budget));
    }

    proptest! {
        #[test]
        fn reflection_ends_within_its_rounds_and_refinements(refinements in 0_u32..40, rounds in 0_u32..8) {
            let budget = Reflection { refinements, rounds, ..budget() };
            let mut standing = Standing { gained: true, ..standing() };
            while let Next::Refine(n) = next(&budget, &standing) {
                prop_assert!(0 < n);
                standing.rounds += 1;
                standing.refinements += n;
            }
            prop_assert!(standing.rounds <= rounds);
            prop_assert!(standing.refinements <= refinements);
            if 0 < rounds {
                prop_assert_eq!(standing.refinements, refinements);
            }
        }
    }
}
