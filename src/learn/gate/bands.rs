//! How the candidate's answers differ from the active generation's: the bands that guard against a
//! judge that is fooled, and two limits that no gain excuses. Pure. Used by `gate`.
//!
//! Where both sides of a ratio depend on how much was said (distinct n-grams, KL), both answers to a
//! prompt count up to the length of the shorter one, without its end token: a shorter answer is
//! another length and nothing else.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use serde::Serialize;

use super::{Answered, Comparison};
use config::GateConfig;
use engine::Token;
use statistics::mean;

/// By how much the share of answers that were cut off may rise.
const MORE_CUT_OFF: f64 = 0.05;
/// Share of prompts that any answer may be given to.
const COMMONEST: f64 = 0.1;
/// By how much the commonest answer may be more common than the active one's, or than the commonest
/// reference.
const MORE_COMMON: f64 = 2.0;
/// Of sums of shares.
const ROUNDING: f64 = 1e-9;

/// Of some prompts, the candidate beside the active generation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bands {
    /// Tokens of all answers, candidate over active.
    pub(super) length_ratio: f64,
    /// Distinct-2, candidate over active.
    pub(super) diversity_ratio: f64,
    /// Mean of log p(active) - log p(candidate) over tokens of the active one's answers.
    pub(super) kl: f64,
}

impl Bands {
    pub(super) fn of(comparisons: &[&Comparison]) -> Self {
        let common: Vec<usize> = comparisons
            .iter()
            .map(|both| both.active.n_words().min(both.candidate.n_words()))
            .collect();
        let of_side = |side: fn(&Comparison) -> &Answered| {
            let length: usize = comparisons.iter().map(|both| side(both).tokens.len()).sum();
            let prefixes = comparisons.iter().zip(&common);
            let prefixes = prefixes.filter_map(|(both, &n)| side(both).tokens.get(..n));
            (length as f64, distinct_2(&prefixes.collect::<Vec<_>>()))
        };
        let (active_length, active_distinct) = of_side(|both| &both.active);
        let (candidate_length, candidate_distinct) = of_side(|both| &both.candidate);
        let ratios = comparisons.iter().zip(&common);
        let ratios = ratios.flat_map(|(both, &n)| both.log_ratios.iter().take(n));
        Self {
            length_ratio: candidate_length / active_length,
            diversity_ratio: candidate_distinct / active_distinct,
            kl: mean(ratios.copied()),
        }
    }

    /// Every band says what is inside, so that "not a number" is outside.
    pub(super) fn outside(&self, config: &GateConfig) -> Vec<String> {
        let Self { length_ratio, diversity_ratio, kl } = self;
        let (shortest, longest) = config.length_ratio;
        let mut outside = Vec::new();
        if !(shortest..=longest).contains(length_ratio) {
            outside.push(format!(
                "answers are {length_ratio:.2} times as long, outside gate.length_ratio {shortest} \
                 to {longest}"
            ));
        }
        let is_diverse = config.min_diversity_ratio <= *diversity_ratio;
        if !is_diverse {
            outside.push(format!(
                "distinct-2 is {diversity_ratio:.2} times the active one's, below \
                 gate.min_diversity_ratio {}",
                config.min_diversity_ratio
            ));
        }
        let is_near = *kl <= config.max_kl;
        if !is_near {
            outside.push(format!("KL per token {kl:.3} is above gate.max_kl {}", config.max_kl));
        }
        outside
    }
}

/// To what share of the prompts the commonest answer is given.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Commonest {
    /// By the active generation.
    pub active: f64,
    /// By the candidate.
    pub candidate: f64,
    /// Among the references (or the values that verifiers expect); `None`: there are none.
    pub references: Option<f64>,
    /// The most that the candidate's may be.
    pub allowed: f64,
}

impl Commonest {
    pub(super) fn of(comparisons: &[Comparison]) -> Self {
        let side = |side: fn(&Comparison) -> &Answered| {
            commonest(comparisons.iter().map(|both| side(both).words()))
        };
        let (active, candidate) = (side(|both| &both.active), side(|both| &both.candidate));
        let references: Vec<&str> =
            comparisons.iter().filter_map(|both| both.reference.as_deref()).collect();
        let references = (!references.is_empty()).then(|| commonest(references.into_iter()));
        let allowed = COMMONEST.max(MORE_COMMON * active.max(references.unwrap_or(0.0)));
        Self { active, candidate, references, allowed }
    }

    pub(super) fn objection(&self) -> Option<String> {
        let Self { active, candidate, references, allowed } = self;
        if *candidate <= allowed + ROUNDING {
            return None;
        }
        let of_references = references
            .map_or(String::new(), |share| format!(", commonest reference {:.1} %", 100.0 * share));
        Some(format!(
            "one and the same answer is given to {:.1} % of the prompts, more than {:.1} % (active \
             one {:.1} %{of_references})",
            100.0 * candidate,
            100.0 * allowed,
            100.0 * active
        ))
    }
}

/// The share of answers that reached the limit of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CutOff {
    /// Of the active generation.
    pub active: f64,
    /// Of the candidate.
    pub candidate: f64,
}

impl CutOff {
    pub(super) fn of(comparisons: &[Comparison]) -> Self {
        let share = |is_cut: fn(&Comparison) -> bool| {
            mean(comparisons.iter().map(|both| f64::from(u8::from(is_cut(both)))))
        };
        Self {
            active: share(|both| both.active.is_cut),
            candidate: share(|both| both.candidate.is_cut),
        }
    }

    pub(super) fn objection(&self) -> Option<String> {
        let Self { active, candidate } = self;
        let rises = active + MORE_CUT_OFF + ROUNDING < *candidate;
        rises.then(|| {
            format!(
                "{:.1} % of the answers are cut off at max_tokens, {:.1} % of the active one's; it \
                 may rise by {:.0} points",
                100.0 * candidate,
                100.0 * active,
                100.0 * MORE_CUT_OFF
            )
        })
    }
}

fn commonest<T: Eq + Hash>(answers: impl Iterator<Item = T>) -> f64 {
    let mut counts: HashMap<T, usize> = HashMap::new();
    let mut n = 0;
    for answer in answers {
        *counts.entry(answer).or_default() += 1;
        n += 1;
    }
    counts.into_values().max().unwrap_or(0) as f64 / f64::from(n.max(1))
}

/// Different pairs of neighbours over all pairs of neighbours, over all answers together. Where there
/// are none, none is repeated.
fn distinct_2(answers: &[&[Token]]) -> f64 {
    let all = answers.iter().map(|answer| answer.len().saturating_sub(1)).sum::<usize>();
    let different: HashSet<&[Token]> =
        answers.iter().flat_map(|answer| answer.windows(2)).collect();
    if all == 0 { 1.0 } else { different.len() as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_2_counts_pairs_of_neighbours() {
        let value = distinct_2(&[&[Token(1), Token(2), Token(1), Token(2)], &[Token(5)]]);
        assert!((value - 2.0 / 3.0).abs() < 1e-12);
        assert!((distinct_2(&[&[Token(5)], &[]]) - 1.0).abs() < 1e-12);
    }

    fn answered(tokens: impl Iterator<Item = i32>) -> Answered {
        let tokens = tokens.map(Token).collect();
        Answered { scalar: 0.0, passes: true, verified: None, is_cut: false, tokens }
    }

    #[test]
    fn a_shorter_answer_is_only_shorter() {
        // The active one goes on and on; the candidate ends where its first sentence does.
        let both = |i: i32| Comparison {
            verifier_decides: false,
            reference: None,
            active: answered((0..40).map(|at| 100 * (i % 5) + at % 20)),
            candidate: answered((0..11).map(|at| 100 * (i % 5) + at)),
            // The same words for ten tokens, and then the active one should have ended.
            log_ratios: (0..40).map(|at| if at < 10 { 0.01 } else { 3.0 }).collect(),
        };
        let all: Vec<Comparison> = (0..20).map(both).collect();
        let bands = Bands::of(&all.iter().collect::<Vec<_>>());
        assert!((bands.length_ratio - 11.0 / 40.0).abs() < 1e-12, "{bands:?}");
        assert!((bands.diversity_ratio - 1.0).abs() < 1e-12, "{bands:?}");
        assert!((bands.kl - 0.01).abs() < 1e-12, "{bands:?}");
    }
}
