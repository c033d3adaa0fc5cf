//! Is the candidate adapter better than what is served? Pure statistics: answers in, verdict out;
//! the same evidence gives the same verdict. It must not ask the engine (that is `arena`).
//! Used by `run` and the demo.
//!
//! Each held-out prompt is answered by both, so everything is paired. An answer's score lies in 0
//! to 1: the verifier's word where the agent lets it count, else the judge's scalar. The mean gain
//! has a lower confidence bound from a seeded bootstrap over prompts; the binary outcomes have an
//! exact `McNemar` test beside it. Promotion needs the bound above the margin *and* length,
//! diversity, KL and parity inside their bands.

use std::collections::HashSet;

use serde::Serialize;

use super::random::Random;
use crate::config::GateConfig;
use crate::engine::Token;

/// Fewer prompts than this prove nothing: the bootstrap of a handful is far too sure of itself.
pub const MIN_PROMPTS: usize = 20;
const RESAMPLES: usize = 10_000;

/// One answer to a held-out prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// The judge's scalar, -1 to 1.
    pub scalar: f64,
    /// Passes every aspect that counts.
    pub passes: bool,
    /// The verifier's word, where the prompt has one.
    pub verified: Option<bool>,
    /// The answer.
    pub tokens: Vec<Token>,
}

/// Both answers to one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The agent's `verifier_weight` is above 0: its word is the score. Otherwise it is measured
    /// and reported, and the verdict does not see it.
    pub verifier_decides: bool,
    /// By what is served now.
    pub active: Answered,
    /// By the adapter that wants to be served.
    pub candidate: Answered,
}

/// All that a verdict rests on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// Mean |log-prob difference| between trainer and server on the probe; `None`: there is no
    /// probe, because the adapter was made elsewhere.
    pub parity_error: Option<f64>,
    /// Mean of log p(active) - log p(candidate) over the tokens of the active one's answers.
    pub kl: f64,
    /// One a prompt.
    pub comparisons: Vec<Comparison>,
}

/// Shares of right answers by a verifier that may or may not count.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Verified {
    /// Prompts with a verifier.
    pub prompts: usize,
    /// Share that the active generation has right.
    pub active: f64,
    /// Share that the candidate has right.
    pub candidate: f64,
    /// One-sided exact `McNemar` p for "the candidate is not better".
    pub p: f64,
}

/// Yes or no, with all numbers. A number that could not be computed is `null` in JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Yes or no.
    pub promote: bool,
    /// Why, in one sentence.
    pub reason: String,
    /// Held-out prompts answered.
    pub prompts: usize,
    /// Of these, prompts scored by their verifier; the rest by the judge.
    pub scored_by_verifier: usize,
    /// Mean score of the active generation.
    pub active: f64,
    /// Mean score of the candidate.
    pub candidate: f64,
    /// Mean gain.
    pub gain: f64,
    /// Its one-sided lower bound, by paired bootstrap.
    pub lower_bound: f64,
    /// Of the bound.
    pub confidence: f64,
    /// What the bound has to be above.
    pub margin: f64,
    /// Prompts where only the candidate's answer is right.
    pub wins: usize,
    /// Prompts where only the active one's answer is right.
    pub losses: usize,
    /// One-sided exact `McNemar` p of wins against losses.
    pub p: f64,
    /// What the verifiers say, whether or not they count.
    pub verified: Option<Verified>,
    /// Mean answer length, candidate over active.
    pub length_ratio: f64,
    /// Distinct-2, candidate over active.
    pub diversity_ratio: f64,
    /// See [`Evidence::kl`].
    pub kl: f64,
    /// See [`Evidence::parity_error`].
    pub parity_error: Option<f64>,
}

/// Whether trainer and server mean the same weights. Not a number counts as no; an adapter without
/// a probe has nothing to be compared with.
pub fn parity_holds(parity_error: Option<f64>, config: &GateConfig) -> bool {
    parity_error.is_none_or(|error| error <= config.max_parity_error)
}

/// Weighs the evidence.
pub fn judge(evidence: &Evidence, config: &GateConfig, seed: u64) -> Verdict {
    let comparisons = &evidence.comparisons;
    let scores: Vec<(f64, f64)> = comparisons.iter().map(scores).collect();
    let gains: Vec<f64> = scores.iter().map(|(active, candidate)| candidate - active).collect();
    let (wins, losses) = discordant(comparisons.iter().map(|both| {
        let decisive = |answer: &Answered| match answer.verified {
            Some(verified) if both.verifier_decides => verified,
            _ => answer.passes,
        };
        (decisive(&both.active), decisive(&both.candidate))
    }));
    let active: Vec<&[Token]> = comparisons.iter().map(|both| &*both.active.tokens).collect();
    let candidate: Vec<&[Token]> = comparisons.iter().map(|both| &*both.candidate.tokens).collect();
    let mut verdict = Verdict {
        promote: false,
        reason: String::new(),
        prompts: comparisons.len(),
        scored_by_verifier: comparisons.iter().filter(|both| by_verifier(both)).count(),
        active: mean(scores.iter().map(|(active, _)| *active)),
        candidate: mean(scores.iter().map(|(_, candidate)| *candidate)),
        gain: mean(gains.iter().copied()),
        lower_bound: lower_bound(&gains, config.confidence, RESAMPLES, &mut Random::new(seed)),
        confidence: config.confidence,
        margin: config.margin,
        wins,
        losses,
        p: mcnemar(wins, losses),
        verified: verified(comparisons),
        length_ratio: length(&candidate) / length(&active),
        diversity_ratio: distinct_2(&candidate) / distinct_2(&active),
        kl: evidence.kl,
        parity_error: evidence.parity_error,
    };
    let objections = objections(&verdict, config);
    verdict.promote = objections.is_empty();
    verdict.reason = if verdict.promote {
        format!(
            "the gain on {} held-out prompts is {:+.3}, and at least {:+.3} with confidence {}",
            verdict.prompts, verdict.gain, verdict.lower_bound, verdict.confidence
        )
    } else {
        objections.join("; ")
    };
    verdict
}

/// Every band says what is inside, so that "not a number" is outside.
fn objections(verdict: &Verdict, config: &GateConfig) -> Vec<String> {
    if !parity_holds(verdict.parity_error, config) {
        return vec![format!(
            "trainer and server disagree about the adapter: mean |log-prob difference| {:.4} is \
             above gate.max_parity_error {}",
            verdict.parity_error.unwrap_or(f64::NAN),
            config.max_parity_error
        )];
    }
    if verdict.prompts < MIN_PROMPTS {
        return vec![format!(
            "{} held-out prompts prove nothing: give at least {MIN_PROMPTS}",
            verdict.prompts
        )];
    }
    let mut objections = Vec::new();
    let gains = verdict.lower_bound > config.margin;
    if !gains {
        objections.push(format!(
            "the gain is {:+.3}, but its lower bound {:+.3} is not above gate.margin {}",
            verdict.gain, verdict.lower_bound, config.margin
        ));
    }
    let (shortest, longest) = config.length_ratio;
    if !(shortest..=longest).contains(&verdict.length_ratio) {
        objections.push(format!(
            "answers are {:.2} times as long, outside gate.length_ratio {shortest} to {longest}",
            verdict.length_ratio
        ));
    }
    let is_diverse = verdict.diversity_ratio >= config.min_diversity_ratio;
    if !is_diverse {
        objections.push(format!(
            "distinct-2 is {:.2} times the active one's, below gate.min_diversity_ratio {}",
            verdict.diversity_ratio, config.min_diversity_ratio
        ));
    }
    let is_near = verdict.kl <= config.max_kl;
    if !is_near {
        objections
            .push(format!("KL per token {:.3} is above gate.max_kl {}", verdict.kl, config.max_kl));
    }
    objections
}

fn by_verifier(both: &Comparison) -> bool {
    both.verifier_decides && both.active.verified.is_some() && both.candidate.verified.is_some()
}

/// (active, candidate), each 0 to 1, so that a gain means the same by verifier and by judge.
fn scores(both: &Comparison) -> (f64, f64) {
    let by_verifier = by_verifier(both);
    let score = |answer: &Answered| match answer.verified {
        Some(verified) if by_verifier => f64::from(u8::from(verified)),
        _ => f64::midpoint(answer.scalar, 1.0),
    };
    (score(&both.active), score(&both.candidate))
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn verified(comparisons: &[Comparison]) -> Option<Verified> {
    let words: Vec<(bool, bool)> = comparisons
        .iter()
        .filter_map(|both| Some((both.active.verified?, both.candidate.verified?)))
        .collect();
    let n = words.len() as f64;
    let (wins, losses) = discordant(words.iter().copied());
    (!words.is_empty()).then(|| Verified {
        prompts: words.len(),
        active: words.iter().filter(|(active, _)| *active).count() as f64 / n,
        candidate: words.iter().filter(|(_, candidate)| *candidate).count() as f64 / n,
        p: mcnemar(wins, losses),
    })
}

/// (only the candidate, only the active one).
fn discordant(outcomes: impl Iterator<Item = (bool, bool)>) -> (usize, usize) {
    outcomes.fold((0, 0), |(wins, losses), (active, candidate)| {
        (wins + usize::from(candidate && !active), losses + usize::from(active && !candidate))
    })
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

/// The (1 - confidence) quantile of the mean over resamples of the prompts. Pairs are resampled
/// whole, because an easy prompt is easy for both.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts are far below 2^52, and confidence lies in 0.5 to 1"
)]
fn lower_bound(gains: &[f64], confidence: f64, resamples: usize, random: &mut Random) -> f64 {
    if gains.is_empty() {
        return f64::NAN;
    }
    let mut resample = || {
        let sum: f64 = gains.iter().map(|_| gains[random.below(gains.len())]).sum();
        sum / gains.len() as f64
    };
    let mut means: Vec<f64> = (0..resamples).map(|_| resample()).collect();
    means.sort_by(f64::total_cmp);
    means[(((1.0 - confidence) * resamples as f64) as usize).min(resamples - 1)]
}

/// P(at least `wins` heads in `wins + losses` tosses of a fair coin).
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn mcnemar(wins: usize, losses: usize) -> f64 {
    let n = wins + losses;
    // ln C(n, k) - n ln 2, summed from k = n downwards; logarithms, because 2^-n underflows.
    let mut ln_term = -(n as f64) * std::f64::consts::LN_2;
    let mut p = 0.0;
    for k in (wins..=n).rev() {
        p += ln_term.exp();
        if k > 0 {
            ln_term += (k as f64).ln() - ((n - k + 1) as f64).ln();
        }
    }
    p.min(1.0)
}

/// Tokens of all answers together.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn length(answers: &[&[Token]]) -> f64 {
    answers.iter().map(|answer| answer.len()).sum::<usize>() as f64
}

/// Different pairs of neighbours over all pairs of neighbours, over all answers together.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn distinct_2(answers: &[&[Token]]) -> f64 {
    let all = answers.iter().map(|answer| answer.len().saturating_sub(1)).sum::<usize>();
    let different: HashSet<&[Token]> =
        answers.iter().flat_map(|answer| answer.windows(2)).collect();
    different.len() as f64 / all as f64
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
