//! Is a promoted generation worse in live use than the one before it? Pure: what was said of both in,
//! outlook out. It must not act (that is `promote`). Used by `task`.
//!
//! The k-th judged chat of the new generation is compared with the k-th of the old one, agent by
//! agent, so that both had traffic of the same kind: beside each other while the new one is a
//! canary, else the newest ones before it. The same for the owner's ratings. Both are tested by bets
//! (`bet`), so that looking often does not make a drop more likely to be found where there is none.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;

use super::bet::Bet;
use config::{CanaryConfig, WatchConfig};
use store::{Live, WatchState};

/// One kind of word on both generations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Side {
    /// Pairs of chats.
    pub pairs: usize,
    /// Mean of the generation before, 0 to 1.
    pub before: f64,
    /// Mean of the one that is watched.
    pub now: f64,
    /// It is lower by more than the margin.
    pub dropped: bool,
}

/// What has been seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Seen {
    /// By the judge.
    pub judged: Side,
    /// By the owner.
    pub rated: Side,
}

/// What to do with the watched generation.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outlook {
    /// Go on looking.
    Open,
    /// It stays, or takes all chats. Why.
    Passed(String),
    /// It goes. Why.
    Dropped(String),
}

/// Compares what was said of both.
pub(super) fn compare(before: &Live, now: &Live, config: &WatchConfig) -> Seen {
    Seen {
        judged: side(&before.scores, &now.scores, config),
        rated: side(&before.ratings, &now.ratings, config),
    }
}

/// Decides, `age` after the watch began.
pub(super) fn outlook(
    seen: &Seen,
    state: WatchState,
    age: Duration,
    canary: &CanaryConfig,
    config: &WatchConfig,
) -> Outlook {
    for (side, what) in [(seen.judged, "the judge's score"), (seen.rated, "the owner's rating")] {
        if side.dropped {
            return Outlook::Dropped(format!(
                "{what} of live answers fell from {:.3} to {:.3} over {} pairs of chats, by more than \
                 watch.margin {} with confidence {}",
                side.before, side.now, side.pairs, config.margin, config.confidence
            ));
        }
    }
    let (chats, duration) = match state {
        WatchState::Canary => (canary.chats, canary.duration),
        _ => (config.chats, config.duration),
    };
    let Side { pairs, before, now, .. } = seen.judged;
    if chats <= pairs {
        return Outlook::Passed(format!(
            "no drop in {pairs} pairs of judged chats (from {before:.3} to {now:.3})"
        ));
    }
    if duration <= age {
        let hours = duration.as_secs_f64() / 3600.0;
        return Outlook::Passed(format!(
            "no drop was seen in {hours} hours ({pairs} pairs of chats)"
        ));
    }
    Outlook::Open
}

fn side(before: &[(String, f64)], now: &[(String, f64)], config: &WatchConfig) -> Side {
    let mut partners: HashMap<&str, Vec<f64>> = HashMap::new();
    // Reversed, so that `pop` gives the oldest.
    for (agent, score) in before.iter().rev() {
        partners.entry(agent).or_default().push(*score);
    }
    let unit = |score: f64| f64::midpoint(score, 1.0);
    // Two kinds of words are looked at, and either may find a drop.
    let confidence = f64::midpoint(config.confidence, 1.0);
    let mut bet = Bet::new(config.margin, confidence, config.chats);
    let mut side = Side::default();
    let mut sums = (0.0, 0.0);
    for (agent, score) in now {
        let Some(partner) = partners.get_mut(agent.as_str()).and_then(Vec::pop) else { continue };
        let (before, now) = (unit(partner), unit(*score));
        sums = (sums.0 + before, sums.1 + now);
        side.pairs += 1;
        if side.pairs <= config.chats {
            bet.observe(before - now);
        }
    }
    if 0 < side.pairs {
        let n = side.pairs as f64;
        (side.before, side.now) = (sums.0 / n, sums.1 / n);
    }
    side.dropped = bet.is_won();
    side
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::random::Random;

    const CANARY: CanaryConfig =
        CanaryConfig { share: 0.2, chats: 50, duration: Duration::from_hours(24) };
    const WATCH: WatchConfig = WatchConfig {
        chats: 200,
        duration: Duration::from_hours(168),
        margin: 0.05,
        confidence: 0.99,
    };

    fn live(scores: impl IntoIterator<Item = f64>) -> Live {
        let scores = scores.into_iter().map(|score| ("one".to_owned(), score)).collect();
        Live { scores, ratings: Vec::new() }
    }

    fn coins(random: &mut Random, n: usize, percent: usize) -> Vec<f64> {
        (0..n).map(|_| if random.below(100) < percent { 0.8 } else { -0.8 }).collect()
    }

    fn decide(seen: &Seen, state: WatchState, hours: u64) -> Outlook {
        outlook(seen, state, Duration::from_hours(hours), &CANARY, &WATCH)
    }

    #[test]
    fn a_generation_that_is_as_good_is_hardly_ever_called_worse_however_often_one_looks() {
        let mut random = Random::new(3);
        let mut dropped = 0;
        for _ in 0..400 {
            let before = live(coins(&mut random, 200, 60));
            let now = live(coins(&mut random, 200, 60));
            // One look at the whole is as good as one after every chat: the bets remember.
            dropped += usize::from(compare(&before, &now, &WATCH).judged.dropped);
        }
        assert!(dropped <= 8, "{dropped} of 400");
    }

    #[test]
    fn a_clear_drop_is_found_and_says_so() {
        let mut random = Random::new(4);
        let before = live(coins(&mut random, 200, 80));
        let now = live(coins(&mut random, 120, 30));
        let seen = compare(&before, &now, &WATCH);
        let Outlook::Dropped(reason) = decide(&seen, WatchState::Watching, 1) else {
            panic!("{seen:?}")
        };
        assert!(
            reason.contains("the judge's score") && reason.contains("watch.margin"),
            "{reason}"
        );
    }

    #[test]
    fn thumbs_down_alone_are_enough() {
        let rated = |rating: f64| Live {
            scores: Vec::new(),
            ratings: (0..60).map(|_| ("one".to_owned(), rating)).collect(),
        };
        let seen = compare(&rated(1.0), &rated(-1.0), &WATCH);
        let outlook = decide(&seen, WatchState::Canary, 1);
        assert!(matches!(&outlook, Outlook::Dropped(why) if why.contains("rating")), "{outlook:?}");
    }

    #[test]
    fn agents_are_compared_with_themselves_alone() {
        let of = |agent: &str, score: f64| {
            let scores = (0..100).map(|_| (agent.to_owned(), score)).collect();
            Live { scores, ratings: Vec::new() }
        };
        let seen = compare(&of("easy", 0.9), &of("hard", -0.9), &WATCH);
        assert_eq!(seen.judged, Side::default());
    }

    #[test]
    fn a_canary_passes_by_its_chats_or_its_time_and_a_watch_by_its_own() {
        let seen = compare(&live(vec![0.5; 60]), &live(vec![0.5; 60]), &WATCH);
        assert!(matches!(decide(&seen, WatchState::Canary, 0), Outlook::Passed(_)));
        assert_eq!(decide(&seen, WatchState::Watching, 0), Outlook::Open);
        assert!(matches!(decide(&seen, WatchState::Watching, 168), Outlook::Passed(_)));
        assert!(matches!(decide(&Seen::default(), WatchState::Canary, 24), Outlook::Passed(_)));
    }
}
