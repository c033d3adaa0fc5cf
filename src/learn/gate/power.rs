//! What the held-out prompts at hand could show, said before a night is spent on it. Pure. Used by
//! `run`, `readiness` and `check`.

use serde::Serialize;

use super::{MIN_PROMPTS, POWER, prompts_needed, unasked};
use config::GateConfig;

/// Share of prompts that only one of two generations answers well, as `reflectd gate plan` has it.
const DISCORDANT: f64 = 0.3;
/// A gain that most owners would like to see.
const WISHED: f64 = 0.1;

/// The held-out prompts of the agents that learn, and what they are good for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Power {
    /// Prompts that a gate may ask.
    pub prompts: usize,
    /// With fewer nothing is promoted.
    pub needed: usize,
    /// The smallest gain that so many prompts would show with probability 0.8; `None`: they show none,
    /// however large.
    pub visible_gain: Option<f64>,
    /// All of it in one sentence.
    pub says: String,
}

impl Power {
    /// For so many held-out prompts.
    pub fn new(prompts: usize, config: &GateConfig) -> Self {
        let beyond = prompts.saturating_sub(config.prompts);
        let prompts = prompts.min(config.prompts);
        let gain = visible_gain(prompts, config);
        let wished = needed(WISHED, config)
            .map_or(String::new(), |n| format!("; {} show {WISHED:+.2}", n.max(MIN_PROMPTS)));
        let shown =
            |gain: Option<f64>| gain.map_or("none".to_owned(), |gain| format!("{gain:+.2}"));
        let says = if MIN_PROMPTS <= prompts {
            format!("{prompts} held-out prompts show a gain of {} or more{wished}", shown(gain))
        } else {
            let few = match prompts {
                0 => "there are no held-out prompts".to_owned(),
                n => format!(
                    "{n} held-out prompts (which could show a gain of {}) are too few",
                    shown(gain)
                ),
            };
            format!(
                "{few}, so nothing can be promoted: at least {MIN_PROMPTS} are needed, which show a \
                 gain of {} or more{wished}",
                shown(visible_gain(MIN_PROMPTS, config))
            )
        };
        let says = says + &unasked(prompts, beyond).unwrap_or_default();
        Self { prompts, needed: MIN_PROMPTS, visible_gain: gain, says }
    }

    /// Something may be promoted.
    pub fn is_enough(&self) -> bool {
        self.needed <= self.prompts
    }
}

fn needed(gain: f64, config: &GateConfig) -> Option<usize> {
    prompts_needed(gain, config.margin, DISCORDANT.max(gain), config.confidence, POWER)
}

fn visible_gain(prompts: usize, config: &GateConfig) -> Option<f64> {
    let is_shown = |gain: f64| needed(gain, config).is_some_and(|needed| needed <= prompts);
    let (mut low, mut high) = (config.margin.max(0.0), 1.0);
    if !is_shown(high) {
        return None;
    }
    for _ in 0..30 {
        let middle = f64::midpoint(low, high);
        if is_shown(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn power(prompts: usize) -> Power {
        Power::new(prompts, &crate::learn::gate::tests::config())
    }

    #[test]
    fn too_few_prompts_are_told_of_with_how_many_are_needed_and_what_they_could_show() {
        let none = power(0);
        assert!(!none.is_enough() && none.visible_gain.is_none(), "{none:?}");
        assert!(none.says.contains("no held-out prompts") && none.says.contains("at least 20"));
        let few = power(12);
        assert!(!few.is_enough() && few.says.contains("12 held-out prompts"), "{few:?}");
        assert!(few.says.contains("at least 20 are needed"), "{few:?}");
        let enough = power(20);
        assert!(enough.is_enough() && enough.visible_gain < few.visible_gain, "{enough:?} {few:?}");
        assert!(enough.says.contains("180 show +0.10"), "{enough:?}");
        // As `reflectd gate plan` says.
        let many = power(180).visible_gain.unwrap();
        assert!((0.095..=0.1).contains(&many), "{many}");
    }

    #[test]
    fn prompts_that_no_gate_asks_show_nothing_and_the_key_is_named() {
        let (all, asked) = (power(500), power(200));
        assert_eq!((all.prompts, all.visible_gain), (asked.prompts, asked.visible_gain));
        assert_eq!(all.says, asked.says + "; of 500 that there are `learn.gate.prompts` asks 200");
        // Where it asks too few, more prompts would not help.
        let config = GateConfig { prompts: 10, ..crate::learn::gate::tests::config() };
        let few = Power::new(60, &config);
        assert!(!few.is_enough() && few.says.ends_with("`learn.gate.prompts` asks 10"), "{few:?}");
    }
}
