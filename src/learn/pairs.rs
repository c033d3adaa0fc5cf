//! Candidates to training pairs. Pure: exchanges and a policy in, pairs out; the same input gives
//! the same pairs. It must not read files or the store. Used by `material` and the benchmarks.
//!
//! The chosen answer passes every aspect (a veto, because small judges say yes too often) and has
//! the largest scalars; the rejected one fails at least one aspect. With `positives: best` the
//! scalar alone decides. A refinement is trained as a *direct* answer to the prompt. What the owner
//! has said of an answer outranks the judge (`worth`), comes first and is never cut by a cap.
//!
//! `sft` wants chosen answers alone; `mixed` wants them beside the pairs. `kto` wants single answers,
//! good ones and bad ones: there a prompt whose answers are all good or all bad, which gives no pair,
//! is of use too.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::held_out::{HeldOut, LeftOut};
use super::random::Random;
use super::worth::{self, Answer};
use config::{PairPolicy, Positives, Rejected};
use engine::{FinishReason, Token, Vocabulary};
use files::hex;
use protocol::{Example, Objective};
use statistics::mean;
use store::{Candidate, Exchange, PairRow};

/// One pair, or a single answer: as it is recorded and as it is trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Where it comes from.
    pub row: PairRow,
    /// The line of the data set.
    pub example: Example,
    /// The owner has spoken of an answer in it.
    pub by_owner: bool,
}

impl Pair {
    /// Which sides it has: chosen, rejected.
    pub(super) fn sides(&self) -> (bool, bool) {
        (self.row.chosen.is_some(), self.row.rejected.is_some())
    }
    /// The same without its chosen answer.
    pub(super) fn without_chosen(mut self) -> Self {
        (self.row.chosen, self.row.margin) = (None, 0.0);
        self.example.chosen.clear();
        self
    }
    /// The same without its rejected answer.
    pub(super) fn without_rejected(mut self) -> Self {
        (self.row.rejected, self.row.margin) = (None, 0.0);
        self.example.rejected = None;
        self
    }
}

/// What became of the prompts; tells an owner why there are few pairs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Tally {
    /// Prompts looked at.
    pub prompts: usize,
    /// Prompts that never enter training.
    #[serde(flatten)]
    pub left_out: LeftOut,
    /// No complete answer passes every aspect (`best`: there is no complete answer).
    pub without_chosen: usize,
    /// No answer may be rejected and fits a chosen one in margin, length and likeness. `grpo`: the
    /// answers are fewer than two, or worth the same.
    pub without_rejected: usize,
    /// Prompts that have answers to choose and to reject, but no two that fit.
    pub filtered: Filtered,
    /// Pairs and answers with the same texts as others of the prompt.
    pub equal_answers: usize,
    /// Pairs and answers above the number that a prompt may give.
    pub over_per_prompt: usize,
    /// `kto`, `mixed`: prompts that give no pair, and whose answers are used nevertheless.
    pub alone: usize,
    /// `grpo`: answers that were sampled otherwise than at temperature 1 from the whole
    /// distribution.
    pub tempered: usize,
}

/// The filter that the best-fitting answers of a prompt have not passed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Filtered {
    /// None is better by the least margin.
    pub margin: usize,
    /// They differ too much in length, and only a judge tells them apart.
    pub length: usize,
    /// They are a refinement and its parent, and nearly the same.
    pub likeness: usize,
}

/// Why two answers are no pair, in the order in which they are looked at.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Misfit {
    Margin,
    Length,
    Likeness,
}

/// Collects the pairs of one data set, one exchange after the other.
#[derive(Debug)]
pub struct Pairing<'a> {
    policy: &'a PairPolicy,
    shape: Shape,
    held_out: &'a HeldOut,
    vocabulary: &'a dyn Vocabulary,
    pairs: Vec<Pair>,
    /// Indices of each prompt's pairs: a prompt asked twice does not get twice the weight.
    per_prompt: HashMap<String, Vec<usize>>,
    tally: Tally,
}

/// What an objective wants of a prompt.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// A chosen answer and a rejected one.
    Pairs,
    /// Chosen answers alone (`sft`).
    Chosen,
    /// Chosen answers, each with a rejected one where one fits (`mixed`).
    Mixed,
    /// Good and bad answers, each alone (`kto`).
    Singles,
}

impl Shape {
    pub(super) fn of(objective: &Objective) -> Self {
        match objective {
            Objective::Sft => Self::Chosen,
            Objective::Mixed { .. } => Self::Mixed,
            Objective::Kto { .. } => Self::Singles,
            _ => Self::Pairs,
        }
    }
}

/// Chosen and rejected; at least one is there.
type Sides<'e> = (Option<Answer<'e>>, Option<Answer<'e>>);

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
            shape: Shape::of(objective),
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
        if self.tally.left_out.counts(self.held_out, &exchange.messages) {
            return;
        }
        let answers = self.answers(exchange);
        let chosen = self.chosen(&answers);
        let rejected = self.rejected(exchange, &answers);
        let is_alone = chosen.is_empty() != rejected.is_empty();
        if chosen.is_empty() && !matches!((self.shape, is_alone), (Shape::Singles, true)) {
            self.tally.without_chosen += 1;
            return;
        }
        let found = match self.shape {
            Shape::Pairs => self.matched_or_counted(&chosen, &rejected),
            Shape::Mixed => {
                let pairs = self.matched_or_counted(&chosen, &rejected);
                self.tally.alone += usize::from(pairs.is_empty());
                // `keep` passes over those that are in a pair.
                pairs.into_iter().chain(chosen.into_iter().map(|it| (Some(it), None))).collect()
            }
            Shape::Chosen => chosen.into_iter().map(|chosen| (Some(chosen), None)).collect(),
            Shape::Singles => {
                self.tally.alone += usize::from(is_alone);
                let good: HashSet<_> = chosen.iter().map(|answer| answer.candidate.id).collect();
                // By the scalar alone an answer may be both: the best, and lower than another.
                let bad = rejected.into_iter().filter(|it| !good.contains(&it.candidate.id));
                let good = chosen.into_iter().map(|chosen| (Some(chosen), None));
                good.chain(bad.map(|rejected| (None, Some(rejected)))).collect()
            }
        };
        if found.is_empty() {
            self.tally.without_rejected += 1;
        }
        let prompt_id = prompt_id(&exchange.prompt_tokens);
        for sides in found {
            self.keep(exchange, &prompt_id, sides);
        }
    }

    /// As [`Pairing::matched`]; where that is nothing, which filter it was is counted.
    fn matched_or_counted<'e>(
        &mut self,
        chosen: &[Answer<'e>],
        rejected: &[Answer<'e>],
    ) -> Vec<Sides<'e>> {
        let matched = self.matched(chosen, rejected.to_vec());
        if !matched.is_empty() {
            return matched;
        }
        let misfits = chosen
            .iter()
            .flat_map(|&chosen| rejected.iter().map(move |&rejected| (chosen, rejected)));
        let misfit = misfits.filter_map(|(chosen, rejected)| self.misfit(chosen, rejected)).max();
        if let Some(misfit) = misfit {
            let Filtered { margin, length, likeness } = &mut self.tally.filtered;
            *match misfit {
                Misfit::Margin => margin,
                Misfit::Length => length,
                Misfit::Likeness => likeness,
            } += 1;
        }
        matched
    }

    /// Takes a pair in, unless the prompt has it already or has enough. Good and bad single answers are
    /// counted apart; a pair and a good answer alone are not, so that a prompt that is always answered
    /// well weighs no more than one with pairs.
    fn keep(&mut self, exchange: &Exchange, prompt_id: &str, (chosen, rejected): Sides<'_>) {
        let id = |answer: Option<Answer<'_>>| answer.map(|answer| answer.candidate.id);
        let tokens = |answer: Option<Answer<'_>>| answer.map(|it| ids(&it.candidate.tokens));
        let pair = Pair {
            row: PairRow {
                exchange: exchange.id,
                chosen: id(chosen),
                rejected: id(rejected),
                margin: chosen.zip(rejected).map_or(0.0, |(c, r)| c.scalar - r.scalar),
            },
            example: Example {
                prompt_id: prompt_id.to_owned(),
                prompt: ids(&exchange.prompt_tokens),
                chosen: tokens(chosen).unwrap_or_default(),
                rejected: tokens(rejected),
            },
            by_owner: chosen.into_iter().chain(rejected).any(|answer| answer.by_owner),
        };
        let earlier = self.per_prompt.entry(prompt_id.to_owned()).or_default();
        // A good answer that is in a pair already.
        let is_part = |&it: &usize| {
            pair.row.rejected.is_none() && self.pairs[it].row.chosen == pair.row.chosen
        };
        if earlier.iter().any(is_part) {
            return;
        }
        let counts = |&&it: &&usize| {
            matches!(self.shape, Shape::Mixed) || self.pairs[it].sides() == pair.sides()
        };
        let is_full =
            self.policy.per_prompt <= earlier.iter().filter(counts).count() && !pair.by_owner;
        let is_known = |&it: &usize| {
            let Example { chosen, rejected, .. } = &self.pairs[it].example;
            let is_alone = !pair.example.chosen.is_empty() && pair.example.rejected.is_none();
            *chosen == pair.example.chosen && (is_alone || *rejected == pair.example.rejected)
        };
        if earlier.iter().any(is_known) {
            self.tally.equal_answers += 1;
            return;
        }
        if is_full {
            self.tally.over_per_prompt += 1;
            return;
        }
        earlier.push(self.pairs.len());
        self.pairs.push(pair);
    }

    /// The pairs in the order of their exchanges, and what became of the prompts.
    pub fn finish(self) -> (Vec<Pair>, Tally) {
        (self.pairs, self.tally)
    }

    /// Judged answers, each text once, in the order of their making.
    fn answers<'e>(&self, exchange: &'e Exchange) -> Vec<Answer<'e>> {
        let may_take_part = |answer: &Answer<'_>| {
            let is_own_answer = answer.candidate.parent.is_none() || answer.is_edit();
            !answer.candidate.tokens.is_empty() && (self.policy.use_refinements || is_own_answer)
        };
        let mut answers = worth::answers(exchange);
        answers.retain(may_take_part);
        // What the owner says of a text holds for every answer with that text; an edit is newer than
        // what it edits.
        let spoken_of = answers.iter().filter(|answer| answer.by_owner);
        let spoken_of: HashMap<_, _> =
            spoken_of.map(|answer| (&answer.candidate.tokens, answer.candidate.id)).collect();
        let mut texts = HashSet::new();
        answers.retain(|Answer { candidate, .. }| match spoken_of.get(&candidate.tokens) {
            Some(id) => candidate.id == *id,
            None => texts.insert(&candidate.tokens),
        });
        answers
    }

    /// Complete answers that may be chosen: the owner's edits, what the owner praises, then the
    /// best. An answer that was cut off or has no end token would teach the model not to stop.
    fn chosen<'e>(&self, answers: &[Answer<'e>]) -> Vec<Answer<'e>> {
        let may_be = |answer: &&Answer<'_>| {
            is_complete(answer.candidate, self.vocabulary)
                && answer.may_be_chosen(self.policy.positives)
        };
        let mut chosen: Vec<_> = answers.iter().filter(may_be).copied().collect();
        if !matches!(self.shape, Shape::Chosen)
            && chosen.iter().any(|it| !it.candidate.is_example())
        {
            // An example is learned where the model's own answers fail: what it says itself is nearer
            // to it.
            chosen.retain(|answer| !answer.candidate.is_example());
        }
        chosen.sort_by(|a, b| {
            let rank = |answer: &Answer<'_>| Reverse((answer.is_edit(), answer.by_owner));
            rank(a)
                .cmp(&rank(b))
                .then(b.scalar.total_cmp(&a.scalar))
                .then(a.candidate.id.cmp(&b.candidate.id))
        });
        if self.policy.positives == Positives::Best {
            // The best and not merely the better: every answer is better than some other.
            chosen.truncate(self.policy.per_prompt);
        }
        chosen
    }

    /// Answers that may be rejected, in the order in which they are taken: first what the owner
    /// refuses.
    fn rejected<'e>(&self, exchange: &Exchange, answers: &[Answer<'e>]) -> Vec<Answer<'e>> {
        // `misfit` asks for a lower scalar.
        let may_be = |answer: &&Answer<'_>| answer.may_be_rejected(self.policy.positives);
        let mut rejected: Vec<_> = answers.iter().filter(may_be).copied().collect();
        match self.policy.rejected {
            Rejected::Random => {
                Random::new(exchange.id.0.cast_unsigned()).shuffle(&mut rejected);
            }
            Rejected::MeanMinus2Sd => {
                let target = mean_minus_2_sd(answers);
                rejected.sort_by(|a, b| {
                    (a.scalar - target).abs().total_cmp(&(b.scalar - target).abs())
                });
            }
        }
        rejected.sort_by_key(|answer| !answer.by_owner);
        rejected
    }

    /// One rejected answer for each chosen one as far as they fit, none used twice; for an edit what it edits.
    fn matched<'e>(&self, chosen: &[Answer<'e>], mut rejected: Vec<Answer<'e>>) -> Vec<Sides<'e>> {
        let mut matched = Vec::new();
        for &chosen in chosen {
            let fits = |rejected: &Answer<'_>| self.misfit(chosen, *rejected).is_none();
            let edited = |rejected: &Answer<'_>| is_edit_of(chosen, *rejected);
            let index = rejected.iter().position(|it| edited(it) && fits(it));
            if let Some(index) = index.or_else(|| rejected.iter().position(fits)) {
                matched.push((Some(chosen), Some(rejected.remove(index))));
            }
            if matched.len() == self.policy.per_prompt {
                break;
            }
        }
        matched
    }

    fn misfit(&self, chosen: Answer<'_>, rejected: Answer<'_>) -> Option<Misfit> {
        let (a, b) = (chosen.candidate, rejected.candidate);
        let kin = a.parent == Some(b.id) || b.parent == Some(a.id);
        let margin = chosen.scalar - rejected.scalar;
        if margin <= 0.0 || margin < self.policy.min_margin {
            return Some(Misfit::Margin);
        }
        // The rule keeps a judge's taste for long answers out. The owner means the length, and a program
        // has no taste.
        let by_owner = [chosen, rejected].iter().any(|it| it.by_owner || it.is_edit());
        let by_program =
            (chosen.is_verified(), rejected.is_verified()) == (Some(true), Some(false));
        let is_bound = !by_owner && !by_program;
        if is_bound && self.policy.max_length_ratio < length_ratio(&a.tokens, &b.tokens) {
            return Some(Misfit::Length);
        }
        // Nearly the same text on both sides pushes down what it should push up.
        let is_alike = kin && self.policy.max_parent_similarity < similarity(&a.tokens, &b.tokens);
        is_alike.then_some(Misfit::Likeness)
    }
}

fn is_edit_of(edit: Answer<'_>, original: Answer<'_>) -> bool {
    edit.is_edit() && edit.candidate.parent == Some(original.candidate.id)
}

/// Whether the model ended the answer by itself.
pub(super) fn is_complete(candidate: &Candidate, vocabulary: &dyn Vocabulary) -> bool {
    let ends = |&token: &Token| vocabulary.is_end(token);
    candidate.finish == FinishReason::Stop && candidate.tokens.last().is_some_and(ends)
}

/// Names a prompt by its tokens: examples of one prompt stay on one side of a split.
pub(super) fn prompt_id(tokens: &[Token]) -> String {
    let mut digest = Sha256::new();
    for token in tokens {
        digest.update(token.0.to_le_bytes());
    }
    hex(&digest.finalize()[..8])
}

pub(super) fn ids(tokens: &[Token]) -> Vec<i32> {
    tokens.iter().map(|token| token.0).collect()
}

fn mean_minus_2_sd(answers: &[Answer<'_>]) -> f64 {
    let centre = mean(answers.iter().map(|answer| answer.scalar));
    let variance = mean(answers.iter().map(|answer| (answer.scalar - centre).powi(2)));
    centre - 2.0 * variance.sqrt()
}

/// Longest over shortest; neither is empty.
fn length_ratio(a: &[Token], b: &[Token]) -> f64 {
    a.len().max(b.len()) as f64 / a.len().min(b.len()) as f64
}

/// One minus the edit distance over the longer length: 1 for equal lists, 0 for nothing in common.
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
pub(super) mod tests;
