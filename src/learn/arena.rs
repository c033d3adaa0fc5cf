//! The gate's effects: the parity probe, and both generations' answers to the held-out prompts with
//! what the judge and the verifiers say. It must not decide (`gate` does). Used by `run` and by the
//! experiment in `bench/rlrf`.

use std::path::{Path, PathBuf};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tracing::warn;

use super::Parts;
use super::gate::{self, Answered, Available, Comparison, Evidence, Parity, Trial};
use super::general;
use super::held_out::Question;
use crate::reflect::{self, Answer, ReflectError};
use config::{GateConfig, VERIFIER};
use engine::{
    EngineError, FinishReason, Generation, LogprobRequest, Priority, Sampling, Token, Weights,
};
use prompt::Verifier;
use protocol::Probe;
use store::{Assessment, Evaluation, RunId, StoreError};

/// Prompts under way at once: enough to fill a batch, few enough that a chat finds room.
const PARALLEL: usize = 4;

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// An answer or its judgement failed.
    #[error(transparent)]
    Reflect(#[from] ReflectError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The trainer's probe cannot be used.
    #[error("the trainer's probe {path} cannot be used: {reason}")]
    Probe {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The two generations that are compared. Both generations are loaded.
#[derive(Debug)]
pub struct Arena<'a> {
    /// The engine, the judge, the store.
    pub parts: &'a Parts,
    /// How many prompts, and the bands.
    pub config: &'a GateConfig,
    /// Whose evaluations are stored.
    pub run: RunId,
    /// What is served.
    pub active: Generation,
    /// What training started from: what is served, or the base.
    pub start: Generation,
    /// What wants to be served.
    pub candidate: Generation,
}

/// What one prompt adds to the evidence.
struct Outcome {
    comparison: Comparison,
    evaluations: [Evaluation; 2],
}

impl Arena<'_> {
    /// Everything that the verdict needs. Prompts are asked in the order given until the matter is
    /// clear; those of `general` are read only when all else speaks for the candidate. An adapter that fails
    /// parity is not asked: what it would be judged for is not what was trained. `probe`: `None` for
    /// an adapter that was made elsewhere.
    pub async fn evidence(
        &self,
        probe: Option<&Path>,
        questions: &[Question],
        general: &[Question],
        answered: &(dyn Fn(usize) + Sync),
    ) -> Result<Evidence, ArenaError> {
        let parity = match probe {
            Some(probe) => Some(self.parity(probe).await?),
            None => None,
        };
        let available = available(questions);
        let mut evidence = Evidence { parity, available, ..Evidence::default() };
        if parity.is_some_and(|parity| !parity.holds()) {
            return Ok(evidence);
        }
        let mut trial = Trial::new(self.config, available);
        let asked = self.ask_until(questions, |comparison, n| {
            trial.observe(comparison);
            answered(n);
            trial.stopped().is_some()
        });
        let asked = asked.await?;
        evidence.comparisons = self.record(asked).await?;
        if gate::judge(&evidence, self.config).promote {
            evidence.general = self.general(general).await?;
        }
        Ok(evidence)
    }

    /// Asks in order, some at once, until `enough` says so of the outcomes so far. Those under way
    /// are then dropped, which cancels them.
    async fn ask_until(
        &self,
        questions: &[Question],
        mut enough: impl FnMut(&Comparison, usize) -> bool,
    ) -> Result<Vec<Outcome>, ArenaError> {
        let mut outcomes = Vec::new();
        let asked: Vec<_> = questions.iter().map(|question| self.ask(question)).collect();
        // In the order of the questions, so that a verdict can be repeated.
        let mut answers = stream::iter(asked).buffered(PARALLEL);
        while let Some(outcome) = answers.try_next().await? {
            let Some(outcome) = outcome else { continue };
            let over = enough(&outcome.comparison, outcomes.len() + 1);
            outcomes.push(outcome);
            if over {
                break;
            }
        }
        Ok(outcomes)
    }

    /// Stores the answers and keeps what the verdict needs of them.
    async fn record(&self, outcomes: Vec<Outcome>) -> Result<Vec<Comparison>, ArenaError> {
        let mut comparisons = Vec::new();
        let mut evaluations = Vec::new();
        for outcome in outcomes {
            comparisons.push(outcome.comparison);
            evaluations.extend(outcome.evaluations);
        }
        self.parts.store.add_evaluations(evaluations).await?;
        Ok(comparisons)
    }

    /// What the adapter changes, by the trainer's probe and by the server.
    async fn parity(&self, path: &Path) -> Result<Parity, ArenaError> {
        let unusable = |reason| ArenaError::Probe { path: path.to_owned(), reason };
        let text = tokio::fs::read(path).await.map_err(|error| unusable(error.to_string()))?;
        let probe: Probe =
            serde_json::from_slice(&text).map_err(|error| unusable(error.to_string()))?;
        let sound = |sequence: &protocol::ProbeSequence| {
            let n_answer = sequence.tokens.len().checked_sub(sequence.from);
            0 < sequence.from
                && n_answer.is_some_and(|n| 0 < n)
                && n_answer == Some(sequence.logprobs.len())
                && n_answer == Some(sequence.start_logprobs.len())
        };
        if probe.sequences.is_empty() || !probe.sequences.iter().all(sound) {
            return Err(unusable("it needs sequences with two log-probs for each token".into()));
        }
        let sequences = || {
            let of = |sequence: &protocol::ProbeSequence| {
                (sequence.tokens.iter().copied().map(Token).collect(), sequence.from)
            };
            probe.sequences.iter().map(of).collect()
        };
        let started = self.logprobs(self.start, sequences()).await?;
        let served = self.logprobs(self.candidate, sequences()).await?;
        let served: Vec<f32> = served.into_iter().flatten().collect();
        let started: Vec<f32> = started.into_iter().flatten().collect();
        Ok(Parity::of_probe(&probe, &started, &served))
    }

    /// `None` for a prompt that does not fit the context, or the judge: it says nothing about the adapter.
    async fn ask(&self, question: &Question) -> Result<Option<Outcome>, ArenaError> {
        match self.compare(question).await {
            Ok(outcome) => Ok(Some(outcome)),
            Err(
                error @ (ArenaError::Engine(EngineError::TooLong { .. })
                | ArenaError::Reflect(
                    ReflectError::Engine(EngineError::TooLong { .. }) | ReflectError::Unjudgeable,
                )),
            ) => {
                warn!(prompt_id = %question.line.id, %error, "A held-out prompt is left out.");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn compare(&self, question: &Question) -> Result<Outcome, ArenaError> {
        let (active, candidate) = tokio::try_join!(
            self.answer(question, self.active),
            self.answer(question, self.candidate)
        )?;
        let (active_said, candidate_said) = tokio::try_join!(
            self.assess(question, &active.text),
            self.assess(question, &candidate.text)
        )?;
        let sequence = (active.tokens.clone(), active.from);
        let log_ratios = self.log_ratios(sequence, self.active).await?;
        let evaluation = |is_candidate, answer: &Answer, answered: &Answered| Evaluation {
            run: self.run,
            general: false,
            candidate: is_candidate,
            agent: question.agent.name.clone(),
            prompt_id: question.line.id.clone(),
            text: answer.text.clone(),
            score: answered.scalar,
            verified: answered.verified,
        };
        let comparison = Comparison {
            verifier_decides: verifier_decides(question),
            reference: reference(question),
            log_ratios,
            active: answered(&active, &active_said),
            candidate: answered(&candidate, &candidate_said),
        };
        let evaluations = [
            evaluation(false, &active, &comparison.active),
            evaluation(true, &candidate, &comparison.candidate),
        ];
        Ok(Outcome { comparison, evaluations })
    }

    /// Greedy: the verdict is about the weights and not about luck.
    async fn answer(&self, question: &Question, by: Generation) -> Result<Answer, ArenaError> {
        let messages = question.line.messages();
        let max_tokens = question.agent.sampling.max_tokens;
        let sampling =
            Sampling { temperature: 0.0, max_tokens, seed: Some(0), ..Sampling::default() };
        let weights = Weights::Generation(by);
        let reflector = &self.parts.reflector;
        Ok(reflector.answer(&question.agent, &messages, weights, sampling, Priority::Gate).await?)
    }

    async fn assess(&self, question: &Question, text: &str) -> Result<Vec<Assessment>, ArenaError> {
        let Question { agent, line } = question;
        let (reference, verifier) = (line.reference.as_deref(), line.verifier.as_ref());
        let reflector = &self.parts.reflector;
        let asked = reflect::question(&line.messages());
        Ok(reflector.assess(agent, &asked, text, reference, verifier, Priority::Gate).await?)
    }

    /// log p(base) - log p(candidate) over the base's own answers to prompts that are not of the task.
    async fn general(&self, questions: &[Question]) -> Result<Vec<Vec<f64>>, ArenaError> {
        let answers = general::answers(self.parts, questions).await?;
        let sequences = answers.into_iter().map(|answer| {
            let tokens = answer.tokens.into_iter().map(Token).collect();
            self.log_ratios((tokens, answer.from), Generation::BASE)
        });
        let sequences: Vec<_> = sequences.collect();
        stream::iter(sequences).buffered(PARALLEL).try_collect().await
    }

    /// log p(over) - log p(candidate) of each token from where the answer begins.
    async fn log_ratios(
        &self,
        sequence: (Vec<Token>, usize),
        over: Generation,
    ) -> Result<Vec<f64>, ArenaError> {
        if sequence.0.len() <= sequence.1 {
            return Ok(Vec::new());
        }
        let (over, candidate) = tokio::try_join!(
            self.logprobs(over, vec![sequence.clone()]),
            self.logprobs(self.candidate, vec![sequence])
        )?;
        let pairs = over.iter().flatten().zip(candidate.iter().flatten());
        Ok(pairs.map(|(over, candidate)| f64::from(over - candidate)).collect())
    }

    async fn logprobs(
        &self,
        by: Generation,
        sequences: Vec<(Vec<Token>, usize)>,
    ) -> Result<Vec<Vec<f32>>, ArenaError> {
        let weights = Weights::Generation(by);
        let request = LogprobRequest { sequences, weights, priority: Priority::Gate };
        Ok(self.parts.engine.logprobs(request).await?)
    }
}

fn available(questions: &[Question]) -> Available {
    let verified = || questions.iter().filter(|question| is_verified(question));
    Available {
        prompts: questions.len(),
        verified: verified().count(),
        guarded: verified().filter(|question| !verifier_decides(question)).count(),
        beyond: 0,
    }
}

fn is_verified(question: &Question) -> bool {
    let Question { agent, line } = question;
    reflect::is_checked(agent, line.verifier.as_ref(), line.reference.as_deref())
}

fn verifier(question: &Question) -> Option<&Verifier> {
    question.line.verifier.as_ref().or(question.agent.verifier.as_ref())
}

/// A right answer, where one is known: how common it is among the prompts, an answer may be.
fn reference(question: &Question) -> Option<String> {
    let expected = || match verifier(question)? {
        Verifier::Exact { expected } => Some(expected.clone()),
        Verifier::Numeric { expected, .. } => Some(expected.to_string()),
        Verifier::Json { expected } => Some(expected.to_string()),
        Verifier::Regex { .. }
        | Verifier::JsonSchema { .. }
        | Verifier::Contains { .. }
        | Verifier::NotContains { .. }
        | Verifier::Length { .. }
        | Verifier::All { .. }
        | Verifier::Any { .. }
        | Verifier::Command(_) => None,
    };
    question.line.reference.clone().or_else(expected).map(|it| it.trim().to_lowercase())
}

/// Else its word is measured, and guards.
fn verifier_decides(question: &Question) -> bool {
    0.0 < question.agent.reflection.verifier_weight
}

fn answered(answer: &Answer, said: &[Assessment]) -> Answered {
    let verified = said.iter().find(|assessment| assessment.aspect == VERIFIER);
    Answered {
        // An answer too long to be judged has no assessments: the worst that it can get.
        scalar: if said.is_empty() { -1.0 } else { reflect::scalar(said) },
        passes: reflect::passes(said),
        verified: verified.map(|assessment| assessment.passes),
        is_cut: answer.finish == FinishReason::Length,
        tokens: answer.tokens.get(answer.from..).unwrap_or_default().to_vec(),
    }
}
