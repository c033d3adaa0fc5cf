//! A test that may be looked at after every observation: bets against "the mean is at most m".
//! Pure arithmetic; it must not know what a prompt is. Used by `gate` (held-out prompts) and
//! `watch` (live chats).
//!
//! Somebody starts with a capital of 1 and stakes a share of it on every observation, before it is
//! seen, at odds that are fair when the mean is m. If the mean is at most m the capital is a
//! non-negative supermartingale, whatever the stakes and whatever else the distribution is, so it
//! ever grows 20-fold with probability at most 1/20 (Ville's inequality). Stopping at that moment,
//! or at any other, keeps the error rate; nothing is approximated and no sample is too small.
//! Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting",
//! JRSS-B 86(1), 2024 (arXiv 2010.09686).
//!
//! The stakes decide only the power. They are those that bring a gambler to a goal by a deadline
//! with the greatest probability (Kulldorff, "Optimal control of favorable games with a time
//! limit", SIAM J. Control Optim. 31(1), 1993): with the binary outcomes of 200 prompts the power
//! is that of the exact `McNemar` test of all 200. A twentieth of the capital has half the deadline
//! and is what ends clear cases early.

use std::f64::consts::TAU;

/// Shares of the capital and when each has to reach its goal, as shares of the horizon. A deadline
/// shortly before the end leaves some observations for a last throw.
const ACCOUNTS: [(f64, f64); 2] = [(0.95, 0.95), (0.05, 0.5)];
/// Observations that a deadline is never nearer than, so that stakes stay finite.
const NEAREST: f64 = 2.0;
/// The second moment before anything is seen, and how many observations that guess is worth.
const GUESS: (f64, f64) = (0.3, 5.0);
/// Hope is lost when even a mean this many standard errors above the one seen leaves less than one
/// chance in forty.
const OPTIMISM: f64 = 2.5;
const HOPELESS: f64 = -2.0;
/// Before so many observations nothing is called hopeless.
const PATIENCE: f64 = 20.0;

/// A test under way of "the mean of observations from -1 to 1 is at most `mean`".
#[derive(Clone, Debug)]
pub(super) struct Bet {
    mean: f64,
    /// The capital that convinces: 1 / (1 - confidence).
    goal: f64,
    /// Observations at most.
    horizon: f64,
    accounts: [f64; 2],
    n: f64,
    sum: f64,
    squares: f64,
    /// The largest payoff seen; what the next one may bring as far as one knows.
    best: Option<f64>,
    won: bool,
}

impl Bet {
    /// `horizon`: how many observations there will be at most. More may be made, less wisely.
    pub(super) fn new(mean: f64, confidence: f64, horizon: usize) -> Self {
        Self {
            mean,
            goal: 1.0 / (1.0 - confidence),
            horizon: count(horizon),
            accounts: ACCOUNTS.map(|(share, _)| share),
            n: 0.0,
            sum: 0.0,
            squares: 0.0,
            best: None,
            won: false,
        }
    }

    /// Settles one bet. `observed` lies in -1 to 1.
    pub(super) fn observe(&mut self, observed: f64) {
        let observed = if observed.is_nan() { -1.0 } else { observed.clamp(-1.0, 1.0) };
        let payoff = observed - self.mean;
        if !self.won {
            let stakes = self.stakes();
            for (account, stake) in self.accounts.iter_mut().zip(stakes) {
                *account *= 1.0 + stake * payoff;
            }
        }
        self.n += 1.0;
        self.sum += payoff;
        self.squares += payoff * payoff;
        if 0.0 < payoff {
            self.best = Some(self.best.unwrap_or(payoff).max(payoff));
        }
        // A capital that was reached once convinces for good.
        self.won |= self.goal * (1.0 - 1e-9) <= self.capital();
    }

    /// The claim is refuted at the given confidence: the mean is above `mean`.
    pub(super) fn is_won(&self) -> bool {
        self.won
    }

    /// The rest up to the horizon will hardly refute the claim. Giving up never costs validity.
    pub(super) fn is_hopeless(&self) -> bool {
        let left = self.horizon - self.n;
        if self.won || self.n < PATIENCE || left <= 0.0 {
            return false;
        }
        let sd = self.sd();
        let hope = self.sum / self.n + OPTIMISM * sd / self.n.sqrt();
        quantile(self.capital() / self.goal) + hope * left.sqrt() / sd < HOPELESS
    }

    fn capital(&self) -> f64 {
        self.accounts.iter().sum()
    }

    fn sd(&self) -> f64 {
        let (second_moment, weight) = GUESS;
        ((self.squares + second_moment * weight) / (self.n + weight)).sqrt()
    }

    /// Shares of each account to stake on the next observation.
    fn stakes(&self) -> [f64; 2] {
        let capital = self.capital();
        // More than this would lose more than there is when the worst comes.
        let most = 1.0 / (1.0 + self.mean).max(1e-9);
        // More than this would overshoot the goal when the best that was seen comes again.
        let best = self.best.unwrap_or(1.0 - self.mean).max(1e-9);
        let enough = (self.goal - capital).max(0.0) / best;
        let mut stakes = [0.0; 2];
        for ((stake, account), (_, deadline)) in stakes.iter_mut().zip(self.accounts).zip(ACCOUNTS)
        {
            let left = (deadline * self.horizon - self.n).max(0.0) + NEAREST;
            let chance = (account / self.goal).clamp(1e-9, 1.0 - 1e-9);
            let z = quantile(chance);
            let bold = (-z * z / 2.0).exp() / TAU.sqrt() / (chance * self.sd() * left.sqrt());
            *stake = bold.min(most).min(enough / account.max(1e-300));
        }
        stakes
    }
}

/// The largest mean that these observations refute: a lower confidence bound that holds at every
/// moment at once, so also at the one that was chosen for stopping.
pub(super) fn lower_bound(observed: &[f64], confidence: f64, horizon: usize) -> f64 {
    let refutes = |mean: f64| {
        let mut bet = Bet::new(mean, confidence, horizon);
        observed.iter().any(|&observed| {
            bet.observe(observed);
            bet.is_won()
        })
    };
    let (mut low, mut high) = (-1.0, 1.0);
    for _ in 0..20 {
        let middle = f64::midpoint(low, high);
        if refutes(middle) { low = middle } else { high = middle }
    }
    low
}

/// Observations needed to see a mean of `gain` above `margin` with this power, when they have this
/// standard deviation. The normal formula, which by simulation holds for the bets; but even without
/// any deviation it takes so many bets of all that one has.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the number is above 0, and what is too large saturates"
)]
pub(super) fn needed(
    gain: f64,
    margin: f64,
    sd: f64,
    confidence: f64,
    power: f64,
) -> Option<usize> {
    let effect = gain - margin;
    let z = quantile(confidence) + quantile(power);
    let least = -(1.0 - confidence).ln() / effect.ln_1p();
    (0.0 < effect && sd.is_finite()).then(|| (z * sd / effect).powi(2).max(least).ceil() as usize)
}

/// The standard deviation of paired binary outcomes: `discordant` is the share of prompts where only
/// one side is right.
pub(super) fn binary_sd(gain: f64, discordant: f64) -> f64 {
    (discordant - gain * gain).max(0.0).sqrt()
}

fn count(n: usize) -> f64 {
    n as f64
}

/// The quantile of the normal distribution, good to 7 digits: Wichura, "Algorithm AS 241", Applied
/// Statistics 37(3), 1988 (the function PPND7).
pub(super) fn quantile(p: f64) -> f64 {
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        let r = 0.180_625 - q * q;
        let above =
            ((59.109_374_72 * r + 159.291_132_02) * r + 50.434_271_938) * r + 3.387_132_717_9;
        let below = ((67.187_563_6 * r + 78.757_757_664) * r + 17.895_169_469) * r + 1.0;
        return q * above / below;
    }
    let tail = if q < 0.0 { p } else { 1.0 - p };
    let r = (-tail.max(f64::MIN_POSITIVE).ln()).sqrt();
    let z = if r <= 5.0 {
        let r = r - 1.6;
        let above =
            ((0.170_238_211_03 * r + 1.306_728_481_6) * r + 2.756_815_39) * r + 1.423_437_277_7;
        above / ((0.120_211_329_75 * r + 0.737_001_642_5) * r + 1.0)
    } else {
        let r = r - 5.0;
        let above =
            ((0.017_337_203_997 * r + 0.428_682_943_37) * r + 3.081_226_386) * r + 6.657_905_115;
        above / ((0.012_258_202_635 * r + 0.241_978_942_25) * r + 1.0)
    };
    if q < 0.0 { -z } else { z }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::learn::random::Random;

    /// (share won, mean observations) of bets against "the mean is at most 0".
    fn simulate(seed: u64, mut draw: impl FnMut(&mut Random) -> f64) -> (f64, f64) {
        const RUNS: usize = 4000;
        const HORIZON: usize = 200;
        let mut random = Random::new(seed);
        let (mut won, mut asked) = (0, 0);
        for _ in 0..RUNS {
            let mut bet = Bet::new(0.0, 0.95, HORIZON);
            for _ in 0..HORIZON {
                bet.observe(draw(&mut random));
                asked += 1;
                if bet.is_won() || bet.is_hopeless() {
                    break;
                }
            }
            won += usize::from(bet.is_won());
        }
        (count(won) / count(RUNS), count(asked) / count(RUNS))
    }

    #[test]
    fn a_mean_of_zero_is_rarely_taken_for_more_whatever_its_shape() {
        let coin = |random: &mut Random, of: usize| f64::from(u8::from(random.below(of) == 0));
        // Rare large losses behind many small gains: what breaks tests that estimate the variance.
        let skewed = |random: &mut Random| if random.below(100) < 2 { -0.98 } else { 0.02 };
        for (name, (won, _)) in [
            ("half discordant", simulate(1, |random| coin(random, 2) - coin(random, 2))),
            ("few discordant", simulate(2, |random| coin(random, 20) - coin(random, 20))),
            ("skewed", simulate(3, skewed)),
            ("always zero", simulate(4, |_| 0.0)),
        ] {
            // The theorem says 0.05; 4000 runs tell it to 0.0035.
            assert!(won <= 0.055, "{name}: {won}");
        }
    }

    #[test]
    fn the_capital_of_a_fair_game_does_not_grow_on_average() {
        let mut random = Random::new(5);
        let runs = 4000;
        let mut total = 0.0;
        for _ in 0..runs {
            let mut bet = Bet::new(0.1, 0.95, 50);
            // Mean 0.1 exactly.
            (0..50).for_each(|_| bet.observe(if random.below(20) < 11 { 1.0 } else { -1.0 }));
            total += bet.capital();
        }
        let mean = total / f64::from(runs);
        assert!(mean < 1.15, "{mean}");
    }

    #[test]
    fn a_large_gain_ends_early_and_no_gain_is_given_up() {
        let gain = |random: &mut Random, up: usize, down: usize| match random.below(100) {
            n if n < up => 1.0,
            n if n < up + down => -1.0,
            _ => 0.0,
        };
        let (won, asked) = simulate(6, |random| gain(random, 30, 5));
        assert!(won > 0.99 && asked < 80.0, "{won} {asked}");
        let (_, asked) = simulate(7, |random| gain(random, 15, 15));
        assert!(asked < 140.0, "{asked}");
    }

    #[test]
    fn a_small_change_that_never_varies_is_seen_and_so_is_none() {
        let bound = |change: f64| lower_bound(&[change; 200], 0.95, 200);
        assert!(bound(0.0) > -0.03, "{}", bound(0.0));
        assert!(bound(0.1) > 0.05, "{}", bound(0.1));
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (p, z) in [(0.5, 0.0), (0.95, 1.644_854), (0.025, -1.959_964), (0.8, 0.841_621)] {
            assert!((quantile(p) - z).abs() < 1e-5, "{p}");
        }
        assert!((quantile(1e-9) + 5.997_807).abs() < 1e-4);
        assert!(quantile(0.0).is_finite() && quantile(1.0).is_finite());
    }

    #[test]
    fn planning_agrees_with_the_figures_of_the_literature() {
        // One-sided 5 %, power 0.8, 30 % discordant.
        let prompts = |gain| needed(gain, 0.0, binary_sd(gain, 0.3), 0.95, 0.8).unwrap();
        assert!((175..=190).contains(&prompts(0.1)), "{}", prompts(0.1));
        assert!((725..=745).contains(&prompts(0.05)), "{}", prompts(0.05));
        assert_eq!(needed(0.0, 0.0, 0.5, 0.95, 0.8), None);
        assert_eq!(needed(f64::NAN, 0.0, 0.5, 0.95, 0.8), None);
    }

    proptest! {
        #[test]
        fn the_bound_never_exceeds_the_best_observation(
            observed in prop::collection::vec(-1.0f64..1.0, 1..120),
        ) {
            let bound = lower_bound(&observed, 0.95, 120);
            let best = observed.iter().copied().fold(-1.0, f64::max);
            prop_assert!(-1.0 <= bound && bound <= best + 1e-5);
        }

        #[test]
        fn the_capital_never_goes_below_zero(
            observed in prop::collection::vec(prop::sample::select(vec![-1.0, 1.0, 0.0, f64::NAN]), 0..80),
            mean in -0.99f64..0.99,
        ) {
            let mut bet = Bet::new(mean, 0.95, 60);
            for observed in observed {
                bet.observe(observed);
                prop_assert!(bet.accounts.iter().all(|account| *account >= 0.0));
            }
        }
    }
}
