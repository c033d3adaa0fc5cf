//! Candidates to the groups of `grpo`: all answers to one prompt that tell something about each
//! other. Pure: exchanges and a policy in, groups out. Used by `material`.
//!
//! An answer takes part when the model sampled it for this very prompt: refinements answered another
//! prompt and the owner's edits were not sampled, so the log-probs that are stored of them are not
//! those of a direct answer. The stored log-probs are the model's own, at temperature 1 and with
//! nothing cut off: they are the behaviour exactly for answers that were sampled so. At another
//! temperature, or with a nucleus, the importance weight corrects for the generation that answered
//! and not for the sampling; such answers are used and counted. A greedy answer was not sampled.

use std::collections::BTreeMap;

use super::held_out::HeldOut;
use super::pairs::{Tally, ids, is_complete, prompt_id};
use super::worth::{self, Answer};
use config::PairPolicy;
use engine::{Sampling, Vocabulary};
use protocol::{Group, Rollout};
use statistics::mean;
use store::{Author, Candidate, CandidateId, Exchange, ExchangeId, PairRow};

/// A group as it is recorded and as it is trained on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Grouped {
    /// One an answer.
    pub(super) rows: Vec<PairRow>,
    /// The line of the data set.
    pub(super) group: Group,
}

/// Collects the groups of one data set, one exchange after the other.
#[derive(Debug)]
pub(super) struct Grouping<'a> {
    policy: &'a PairPolicy,
    held_out: &'a HeldOut,
    vocabulary: &'a dyn Vocabulary,
    /// By the first exchange of a prompt, so that the order of the data set is that of the store.
    prompts: BTreeMap<ExchangeId, (Vec<i32>, Vec<Member>)>,
    first: BTreeMap<String, ExchangeId>,
    tally: Tally,
}

#[derive(Debug)]
struct Member {
    exchange: ExchangeId,
    candidate: CandidateId,
    is_tempered: bool,
    rollout: Rollout,
}

impl<'a> Grouping<'a> {
    pub(super) fn new(
        policy: &'a PairPolicy,
        held_out: &'a HeldOut,
        vocabulary: &'a dyn Vocabulary,
    ) -> Self {
        let (prompts, first, tally) = Default::default();
        Self { policy, held_out, vocabulary, prompts, first, tally }
    }

    /// Adds what one exchange gives. Answers to a prompt that was asked before join its group.
    pub(super) fn add(&mut self, exchange: &Exchange) {
        self.tally.prompts += 1;
        if self.tally.left_out.counts(self.held_out, &exchange.messages) {
            return;
        }
        let prompt_id = prompt_id(&exchange.prompt_tokens);
        let first = *self.first.entry(prompt_id).or_insert(exchange.id);
        let prompt = || (ids(&exchange.prompt_tokens), Vec::new());
        let (_, members) = self.prompts.entry(first).or_insert_with(prompt);
        let answers = worth::answers(exchange);
        let direct = answers.iter().filter(|answer| was_sampled(answer.candidate));
        let complete = direct.filter(|answer| is_complete(answer.candidate, self.vocabulary));
        members.extend(complete.map(|answer| member(exchange.id, answer)));
    }

    /// The groups in the order of their first exchanges, and what became of the prompts.
    pub(super) fn finish(mut self) -> (Vec<Grouped>, Tally) {
        let mut groups = Vec::new();
        let mut names: BTreeMap<ExchangeId, String> =
            self.first.into_iter().map(|(name, exchange)| (exchange, name)).collect();
        for (first, (prompt, mut members)) in self.prompts {
            // The newest are nearest to the policy that is trained.
            members.drain(..members.len().saturating_sub(self.policy.max_group));
            let rewards: Vec<f64> = members.iter().map(|it| it.rollout.reward).collect();
            // What is worth the same tells nothing: every advantage would be 0.
            if rewards.windows(2).all(|pair| (pair[0] - pair[1]).abs() < f64::EPSILON) {
                self.tally.without_rejected += 1;
                continue;
            }
            self.tally.tempered += members.iter().filter(|it| it.is_tempered).count();
            let mean = mean(rewards.iter().copied());
            let rows = members.iter().map(|member| row(member, mean)).collect();
            let answers = members.into_iter().map(|member| member.rollout).collect();
            let prompt_id = names.remove(&first).expect("every prompt was named when it came");
            groups.push(Grouped { rows, group: Group { prompt_id, prompt, answers } });
        }
        (groups, self.tally)
    }
}

/// A direct answer, drawn from a distribution whose log-probs are stored.
fn was_sampled(candidate: &Candidate) -> bool {
    candidate.author == Author::Model
        && candidate.parent.is_none()
        // Those answered a prompt with examples before it.
        && candidate.shots.is_empty()
        && 0.0 < candidate.sampling.temperature
        && candidate.logprobs.iter().all(|logprob| logprob.is_finite())
}

fn member(exchange: ExchangeId, answer: &Answer<'_>) -> Member {
    let Candidate { id, tokens, logprobs, sampling, .. } = answer.candidate;
    let whole =
        Sampling { max_tokens: sampling.max_tokens, seed: sampling.seed, ..Sampling::default() };
    Member {
        exchange,
        candidate: *id,
        is_tempered: *sampling != whole,
        rollout: Rollout {
            tokens: ids(tokens),
            // A certain token may come out a rounding above 0.
            logprobs: logprobs.iter().map(|logprob| logprob.min(0.0)).collect(),
            reward: answer.scalar,
        },
    }
}

/// Above the mean it is pushed up, below it down.
fn row(member: &Member, mean: f64) -> PairRow {
    let margin = member.rollout.reward - mean;
    let side = |is_wanted: bool| is_wanted.then_some(member.candidate);
    PairRow {
        exchange: member.exchange,
        chosen: side(0.0 <= margin),
        rejected: side(margin < 0.0),
        margin: margin.abs(),
    }
}

#[cfg(test)]
mod tests;
