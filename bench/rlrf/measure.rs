//! How a policy answers the problems that measure: greedily, and sampled for diversity and for the
//! distance to the base. The verifier is asked here and, but for the gold judge, only here. Used by
//! `unit`.

use std::collections::HashSet;
use std::hash::Hash;

use anyhow::Context as _;
use config::PromptLine;
use engine::{Generation, LogprobRequest, Priority, Sampling, Token, Weights};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use prompt::{Message, Role};
use reflectd::reflect::verify::Check;
use reflectd::reflect::{Answer, Reflector};
use statistics::mean;

use crate::lab::Lab;
use crate::records::Answered;

/// Samples of a problem, for pass@8.
pub(crate) const SAMPLES: u32 = 8;
/// Problems under way at once.
const PARALLEL: usize = 16;

/// Answers of one problem.
struct Answers {
    is_right: bool,
    tokens: usize,
    /// Only of the sampled problems.
    samples: Option<Samples>,
}

struct Samples {
    right: u32,
    tokens: usize,
    /// Sum over tokens.
    log_ratio: f64,
    distinct_1: f64,
    distinct_2: f64,
    different: f64,
}

/// Asks a policy whose adapter is loaded.
pub(crate) async fn answers(
    lab: &Lab,
    reflector: &Reflector,
    policy: Generation,
) -> anyhow::Result<Answered> {
    let subject = Subject { lab, reflector, policy };
    let sampled = lab.setting.scale.sampled;
    let asked = lab.problems.iter().enumerate();
    let asked = asked.map(|(place, problem)| subject.ask(problem, place < sampled));
    let answers: Vec<Answers> = stream::iter(asked.collect::<Vec<_>>())
        .buffered(PARALLEL)
        .try_collect()
        .await
        .context("answer a held-out problem")?;
    Ok(summarize(&answers))
}

fn summarize(answers: &[Answers]) -> Answered {
    let samples: Vec<&Samples> = answers.iter().filter_map(|one| one.samples.as_ref()).collect();
    let mean = |of: fn(&Samples) -> f64| mean(samples.iter().map(|one| of(one)));
    let sample_tokens: usize = samples.iter().map(|one| one.tokens).sum();
    let log_ratio: f64 = samples.iter().map(|one| one.log_ratio).sum();
    Answered {
        greedy: answers.iter().map(|one| if one.is_right { '1' } else { '0' }).collect(),
        greedy_tokens: statistics::mean(answers.iter().map(|one| one.tokens as f64)),
        samples: samples.iter().map(|one| one.right.to_string()).collect(),
        sample_tokens: sample_tokens as f64 / samples.len() as f64 / f64::from(SAMPLES),
        kl_per_token: log_ratio / sample_tokens as f64,
        distinct_1: mean(|one| one.distinct_1),
        distinct_2: mean(|one| one.distinct_2),
        different: mean(|one| one.different),
    }
}

struct Subject<'a> {
    lab: &'a Lab,
    reflector: &'a Reflector,
    policy: Generation,
}

impl Subject<'_> {
    async fn ask(&self, problem: &PromptLine, is_sampled: bool) -> anyhow::Result<Answers> {
        let verifier = problem.verifier.as_ref().context("a problem has no verifier")?;
        let check = Check::new(verifier)?;
        let greedy = self.answer(problem, 0.0, 0).await?;
        let samples = if is_sampled { Some(self.samples(problem, &check).await?) } else { None };
        Ok(Answers {
            is_right: check.holds(&greedy.text),
            tokens: greedy.tokens.len() - greedy.from,
            samples,
        })
    }

    async fn samples(&self, problem: &PromptLine, check: &Check) -> anyhow::Result<Samples> {
        let mut answers = Vec::new();
        for seed in 0..SAMPLES {
            answers.push(self.answer(problem, self.lab.agent.sampling.temperature, seed).await?);
        }
        let said: Vec<&[Token]> = answers.iter().map(|one| &one.tokens[one.from..]).collect();
        let texts: HashSet<&str> = answers.iter().map(|one| one.text.as_str()).collect();
        Ok(Samples {
            right: answers.iter().map(|one| u32::from(check.holds(&one.text))).sum(),
            tokens: said.iter().map(|tokens| tokens.len()).sum(),
            log_ratio: self.log_ratio(&answers).await?,
            distinct_1: distinct(&said, 1),
            distinct_2: distinct(&said, 2),
            different: texts.len() as f64 / answers.len() as f64,
        })
    }

    /// Sum of log p(policy) - log p(base) over the answers' tokens.
    async fn log_ratio(&self, answers: &[Answer]) -> anyhow::Result<f64> {
        let sequences = answers.iter().map(|one| (one.tokens.clone(), one.from)).collect();
        let weights = Weights::Generation(Generation::BASE);
        let request = LogprobRequest { sequences, weights, priority: Priority::Gate };
        let by_base = self.lab.engine.logprobs(request).await?;
        let by_policy = answers.iter().flat_map(|one| &one.logprobs);
        let pairs = by_policy.zip(by_base.iter().flatten());
        Ok(pairs.map(|(policy, base)| f64::from(policy - base)).sum())
    }

    async fn answer(
        &self,
        problem: &PromptLine,
        temperature: f32,
        seed: u32,
    ) -> anyhow::Result<Answer> {
        let agent = &self.lab.agent;
        let messages = [Message { role: Role::User, content: problem.prompt.clone() }];
        let sampling = Sampling { temperature, seed: Some(seed.into()), ..agent.sampling };
        let weights = Weights::Generation(self.policy);
        Ok(self.reflector.answer(agent, &messages, weights, sampling, Priority::Gate).await?)
    }
}

/// Different n-grams over all n-grams of some answers.
pub(crate) fn distinct<T: Eq + Hash>(answers: &[&[T]], n: usize) -> f64 {
    let all: Vec<&[T]> = answers.iter().flat_map(|answer| answer.windows(n)).collect();
    let different: HashSet<&[T]> = all.iter().copied().collect();
    if all.is_empty() { 0.0 } else { different.len() as f64 / all.len() as f64 }
}
