//! How many tokens a step may hold, so that nobody waits long for its end, and whose adapter is
//! next. Pure; used by `core.rs`, and by `reward.rs` for the steps of a reward model.

use std::time::Duration;

use inference::Generation;
use inference::backend::Limits;

use super::super::Priority;

/// A chat that arrives waits for the step of idle work that is under way.
const IDLE_STEP: Duration = Duration::from_millis(100);
/// Chats that are being written wait for a step that holds somebody's prompt.
const SHARED_STEP: Duration = Duration::from_millis(250);
/// No step may be longer, so that the thread answers commands and its watchdog.
const LONGEST_STEP: Duration = Duration::from_secs(2);
/// Smaller batches are evaluated much slower for each token.
const EFFICIENT: usize = 64;
/// Tokens of a step while nothing is known of the model's speed.
const FIRST: usize = 32;
/// After so many steps another generation gets its turn. Changing the adapter costs 1 to 5 ms, as
/// much as a step of a small model; eight steps make that cheap and nobody waits noticeably.
const STEPS_PER_TURN: u32 = 8;

/// Speed of the model as it was measured.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    /// Zero until a step has told it.
    nanos_per_token: u64,
    /// Whether it comes from a batch large enough to tell of large ones.
    is_of_large_batch: bool,
}

impl Pace {
    /// Notes how long a step took.
    pub(crate) fn learn(&mut self, tokens: usize, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let Some(now) = nanos.checked_div(tokens as u64) else { return };
        let is_large = EFFICIENT <= tokens;
        let of_efficient = u128::from(self.nanos_per_token) * EFFICIENT as u128;
        // Then small steps are all that there are, and only they can tell that the model is faster again.
        let is_limited = LONGEST_STEP.as_nanos() < of_efficient;
        if self.is_of_large_batch && !is_large && !is_limited {
            return;
        }
        // A single slow step, as when the machine sleeps, does not make all others small for long.
        self.nanos_per_token = match self.nanos_per_token {
            before if 0 < before && (self.is_of_large_batch == is_large || is_limited) => {
                before - before / 4 + now / 4
            }
            _ => now.max(1),
        };
        self.is_of_large_batch |= is_large;
    }

    /// Tokens of a step of a priority, at most. `others_wait`: answers are being written meanwhile.
    pub(crate) fn tokens(self, priority: Priority, others_wait: bool, limits: &Limits) -> usize {
        let longest = if !priority.is_urgent() {
            IDLE_STEP
        } else if others_wait {
            SHARED_STEP
        } else {
            LONGEST_STEP
        };
        let fits = |time: Duration| {
            let fit = time.as_nanos().checked_div(u128::from(self.nanos_per_token));
            fit.map_or(FIRST, |fit| usize::try_from(fit).unwrap_or(usize::MAX))
        };
        let efficient = fits(longest).max(EFFICIENT);
        efficient.min(fits(LONGEST_STEP)).clamp(1, limits.batch_tokens)
    }
}

/// Which generation has its turn; kept from step to step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turn {
    generation: Generation,
    steps: u32,
}

impl Turn {
    /// Goes on with the same generation while it has work, but not for ever when others have some
    /// too; then the next higher one follows, round and round.
    pub(super) fn next(
        &mut self,
        with_work: impl Iterator<Item = Generation> + Clone,
    ) -> Generation {
        let stays = with_work.clone().any(|generation| generation == self.generation);
        if stays && self.steps < STEPS_PER_TURN {
            self.steps += 1;
            return self.generation;
        }
        let lowest = with_work.clone().min();
        let higher = with_work.filter(|&generation| generation > self.generation).min();
        self.generation = higher.or(lowest).unwrap_or(self.generation);
        self.steps = 1;
        self.generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { cells: 9999, sequences: 4, batch_tokens: 2000, outputs: 64 };

    #[test]
    fn a_first_step_is_short_and_idle_steps_take_a_tenth_of_a_second() {
        let mut pace = Pace::default();
        for priority in [Priority::Chat, Priority::Explore] {
            assert_eq!(pace.tokens(priority, false, &LIMITS), FIRST);
        }
        pace.learn(FIRST, Duration::from_millis(32));
        pace.learn(100, Duration::from_millis(50));
        assert_eq!(pace.tokens(Priority::Explore, false, &LIMITS), 200);
        assert_eq!(pace.tokens(Priority::Chat, true, &LIMITS), 500);
        assert_eq!(pace.tokens(Priority::Chat, false, &LIMITS), LIMITS.batch_tokens);
        // Small steps say nothing about large ones once those are known.
        pace.learn(1, Duration::from_millis(50));
        assert_eq!(pace.tokens(Priority::Explore, false, &LIMITS), 200);
    }

    #[test]
    fn a_step_that_took_very_long_does_not_make_all_others_small_for_ever() {
        let mut pace = Pace::default();
        pace.learn(100, Duration::from_millis(100));
        pace.learn(100, Duration::from_secs(15));
        assert!(pace.tokens(Priority::Chat, false, &LIMITS) < EFFICIENT);
        for _ in 0..40 {
            let tokens = pace.tokens(Priority::Chat, false, &LIMITS);
            pace.learn(tokens, Duration::from_millis(tokens as u64));
        }
        let tokens = pace.tokens(Priority::Chat, false, &LIMITS);
        assert!(1000 < tokens, "{tokens}: 2 s at 1 ms a token");
    }

    #[test]
    fn a_single_slow_step_makes_the_next_ones_little_smaller() {
        let mut pace = Pace::default();
        pace.learn(100, Duration::from_millis(100));
        pace.learn(100, Duration::from_millis(900));
        let tokens = pace.tokens(Priority::Chat, false, &LIMITS);
        assert!((600..700).contains(&tokens), "{tokens}: 2 s at 3 ms a token, and not at 9");
    }

    #[test]
    fn no_step_of_a_slow_model_is_longer_than_the_watchdog_allows() {
        let mut pace = Pace::default();
        pace.learn(32, Duration::from_secs(8));
        for priority in [Priority::Chat, Priority::Explore] {
            let tokens = pace.tokens(priority, false, &LIMITS);
            assert_eq!(tokens, 8, "{priority:?}: 2 s at 250 ms a token");
        }
        pace.learn(1, Duration::from_secs(90));
        assert_eq!(pace.tokens(Priority::Chat, false, &LIMITS), 1, "one token is the least");
    }

    #[test]
    fn generations_take_turns_of_several_steps() {
        let mut turn = Turn::default();
        let with_work = [Generation(0), Generation(3)];
        let order: Vec<u32> = (0..18).map(|_| turn.next(with_work.into_iter()).0).collect();
        assert_eq!(order, [[0; 8].as_slice(), &[3; 8], &[0; 2]].concat());
        assert_eq!(turn.next([Generation(3)].into_iter()), Generation(3));
    }
}
