//! Candidates to training pairs. Pure: exchanges and a policy in, pairs out; the same input gives
//! the same pairs. It must not read files or the store. Used by `run` and the benchmarks.
//!
//! The chosen answer passes every aspect (a veto, because small judges say yes too often) and has
//! the largest scalars; the rejected one fails at least one aspect. With `positives: best` the
//! scalar alone decides. A refinement is trained as a
//! *direct* answer to the prompt. Owner's edits will enter [`Pairing::add`] as positives.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::held_out::HeldOut;
use super::random::Random;
use crate::config::{PairPolicy, Positives, Rejected};
use crate::engine::{FinishReason, Token, Vocabulary};
use crate::paths::hex;
use crate::protocol::{Example, Objective};
use crate::reflect;
use crate::store::{Candidate, CandidateId, Exchange, PairRow};

/// One pair: as it is recorded and as it is trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Where it comes from.
    pub row: PairRow,
    /// The line of the data set.
    pub example: Example,
}

impl Pair {
    /// The newest candidate in it.
    pub fn newest(&self) -> CandidateId {
        self.row.rejected.map_or(self.row.chosen, |rejected| rejected.max(self.row.chosen))
    }
}

/// What became of the prompts; tells an owner why there are few pairs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Tally {
    /// Prompts looked at.
    pub prompts: usize,
    /// Left out because they are held out.
    pub held_out: usize,
    /// No complete answer passes every aspect (`best`: there is no complete answer).
    pub without_chosen: usize,
    /// No answer may be rejected and fits a chosen one in margin, length and likeness.
    pub without_rejected: usize,
}

/// Collects the pairs of one data set, one exchange after the other.
#[derive(Debug)]
pub struct Pairing<'a> {
    policy: &'a PairPolicy,
    /// `sft` trains on the chosen answers alone.
    supervised: bool,
    held_out: &'a HeldOut,
    vocabulary: &'a dyn Vocabulary,
    pairs: Vec<Pair>,
    /// Indices of each prompt's pairs: a prompt asked twice does not get twice the weight.
    per_prompt: HashMap<String, Vec<usize>>,
    tally: Tally,
}

/// A candidate that may take part.
#[derive(Clone, Copy)]
struct Scored<'a> {
    candidate: &'a Candidate,
    scalar: f64,
}

impl<'a> Pairing<'a> {
    /// Starts an empty data set.
    pub fn new(
        policy: &'a PairPolicy,
        objective: &Objective,
        held_out: &'a HeldOut,
        vocabulary: &'a dyn Vocabulary,
    ) -> Self {
        Self {
            policy,
            supervised: matches!(objective, Objective::Sft),
            held_out,
            vocabulary,
            pairs: Vec::new(),
            per_prompt: HashMap::new(),
            tally: Tally::default(),
        }
    }

    /// Adds what one exchange gives.
    pub fn add(&mut self, exchange: &Exchange) {
        self.tally.prompts += 1;
        if self.held_out.contains(&exchange.messages) {
            self.tally.held_out += 1;
            return;
        }
        let candidates = self.candidates(exchange);
        let chosen = self.chosen(&candidates);
        if chosen.is_empty() {
            self.tally.without_chosen += 1;
            return;
        }
        let matched = if self.supervised {
            chosen.into_iter().map(|chosen| (chosen, None)).collect()
        } else {
            self.matched(chosen, self.rejected(exchange, &candidates))
        };
        if matched.is_empty() {
            self.tally.without_rejected += 1;
            return;
        }
        let prompt_id = prompt_id(&exchange.prompt_tokens);
        let earlier = self.per_prompt.entry(prompt_id.clone()).or_default();
        for (chosen, rejected) in matched {
            if earlier.len() == self.policy.per_prompt {
                break;
            }
            let example = Example {
                prompt_id: prompt_id.clone(),
                prompt: ids(&exchange.prompt_tokens),
                chosen: ids(&chosen.candidate.tokens),
                rejected: rejected.map(|rejected| ids(&rejected.candidate.tokens)),
            };
            if earlier.iter().any(|&index| self.pairs[index].example == example) {
                continue;
            }
            let row = PairRow {
                exchange: exchange.id,
                chosen: chosen.candidate.id,
                rejected: rejected.map(|rejected| rejected.candidate.id),
                margin: rejected.map_or(0.0, |rejected| chosen.scalar - rejected.scalar),
            };
            earlier.push(self.pairs.len());
            self.pairs.push(Pair { row, example });
        }
    }

    /// The pairs in the order of their exchanges, and what became of the prompts.
    pub fn finish(self) -> (Vec<Pair>, Tally) {
        (self.pairs, self.tally)
    }

    /// Judged answers, each text once, in the order of their making.
    fn candidates<'e>(&self, exchange: &'e Exchange) -> Vec<Scored<'e>> {
        let mut texts = HashSet::new();
        exchange
            .candidates
            .iter()
            .filter(|candidate| self.policy.use_refinements || candidate.parent.is_none())
            .filter(|candidate| !candidate.tokens.is_empty())
            .filter(|candidate| candidate.assessments.iter().any(|a| a.weight > 0.0))
            .filter(|candidate| texts.insert(&candidate.tokens))
            .map(|candidate| Scored { candidate, scalar: reflect::scalar(&candidate.assessments) })
            .filter(|scored| scored.scalar.is_finite())
            .collect()
    }

    /// Complete answers that may be chosen, best first. An answer that was cut off or has no end
    /// token would teach the model not to stop.
    fn chosen<'e>(&self, candidates: &[Scored<'e>]) -> Vec<Scored<'e>> {
        let mut chosen: Vec<_> = candidates
            .iter()
            .copied()
            .filter(|Scored { candidate, .. }| {
                candidate.finish == FinishReason::Stop
                    && candidate.tokens.last().is_some_and(|&token| self.vocabulary.is_end(token))
                    && match self.policy.positives {
                        Positives::Veto => reflect::passes(&candidate.assessments),
                        Positives::Best => true,
                    }
            })
            .collect();
        chosen.sort_by(|a, b| {
            b.scalar.total_cmp(&a.scalar).then(a.candidate.id.cmp(&b.candidate.id))
        });
        if self.policy.positives == Positives::Best {
            // The best and not merely the better: every answer is better than some other.
            chosen.truncate(self.policy.per_prompt);
        }
        chosen
    }

    /// Answers that may be rejected, in the order in which they are taken.
    fn rejected<'e>(&self, exchange: &Exchange, candidates: &[Scored<'e>]) -> Vec<Scored<'e>> {
        let may_be = |scored: &&Scored<'_>| match self.policy.positives {
            Positives::Veto => !reflect::passes(&scored.candidate.assessments),
            // `fits` asks for a lower scalar.
            Positives::Best => true,
        };
        let mut rejected: Vec<_> = candidates.iter().filter(may_be).copied().collect();
        match self.policy.rejected {
            Rejected::Random => {
                Random::new(exchange.id.0.cast_unsigned()).shuffle(&mut rejected);
            }
            Rejected::MeanMinus2Sd => {
                let target = mean_minus_2_sd(candidates);
                rejected.sort_by(|a, b| {
                    (a.scalar - target).abs().total_cmp(&(b.scalar - target).abs())
                });
            }
        }
        rejected
    }

    /// One rejected answer for each chosen one, none used twice.
    fn matched<'e>(
        &self,
        chosen: Vec<Scored<'e>>,
        mut rejected: Vec<Scored<'e>>,
    ) -> Vec<(Scored<'e>, Option<Scored<'e>>)> {
        let mut matched = Vec::new();
        for chosen in chosen {
            if let Some(index) = rejected.iter().position(|rejected| self.fits(chosen, *rejected)) {
                matched.push((chosen, Some(rejected.remove(index))));
            }
            if matched.len() == self.policy.per_prompt {
                break;
            }
        }
        matched
    }

    fn fits(&self, chosen: Scored<'_>, rejected: Scored<'_>) -> bool {
        let (a, b) = (chosen.candidate, rejected.candidate);
        let kin = a.parent == Some(b.id) || b.parent == Some(a.id);
        let margin = chosen.scalar - rejected.scalar;
        0.0 < margin
            && self.policy.min_margin <= margin
            && length_ratio(&a.tokens, &b.tokens) <= self.policy.max_length_ratio
            // Nearly the same text on both sides pushes down what it should push up.
            && !(kin && similarity(&a.tokens, &b.tokens) > self.policy.max_parent_similarity)
    }
}

/// Names a prompt by its tokens: examples of one prompt stay on one side of a split.
pub(super) fn prompt_id(tokens: &[Token]) -> String {
    let mut digest = Sha256::new();
    for token in tokens {
        digest.update(token.0.to_le_bytes());
    }
    hex(&digest.finalize()[..8])
}

fn ids(tokens: &[Token]) -> Vec<i32> {
    tokens.iter().map(|token| token.0).collect()
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn mean_minus_2_sd(candidates: &[Scored<'_>]) -> f64 {
    let n = candidates.len() as f64;
    let mean = candidates.iter().map(|scored| scored.scalar).sum::<f64>() / n;
    let squares = candidates.iter().map(|scored| (scored.scalar - mean).powi(2)).sum::<f64>();
    mean - 2.0 * (squares / n).sqrt()
}

/// Longest over shortest; neither is empty.
#[expect(clippy::cast_precision_loss, reason = "lengths are far below 2^52")]
fn length_ratio(a: &[Token], b: &[Token]) -> f64 {
    a.len().max(b.len()) as f64 / a.len().min(b.len()) as f64
}

/// One minus the edit distance over the longer length: 1 for equal lists, 0 for nothing in common.
#[expect(clippy::cast_precision_loss, reason = "lengths are far below 2^52")]
fn similarity(a: &[Token], b: &[Token]) -> f64 {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    1.0 - row[b.len()] as f64 / a.len().max(b.len()).max(1) as f64
}

#[cfg(test)]
#[path = "pairs_tests.rs"]
mod tests;
