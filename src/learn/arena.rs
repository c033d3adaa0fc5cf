//! The gate's effects: the parity probe, and both generations' answers to the held-out prompts with
//! what the judge and the verifiers say. It must not decide (`gate` does). Used by `run` and by the
//! experiment in `bench/rlrf`.

use std::path::{Path, PathBuf};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tracing::warn;

use super::Parts;
use super::gate::{self, Answered, Available, Comparison, Evidence, GeneralTrial, Trial};
use super::held_out::Question;
use crate::reflect::{self, Answer, ReflectError};
use config::{GateConfig, VERIFIER};
use engine::{EngineError, Generation, LogprobRequest, Priority, Sampling, Token, Weights};
use protocol::Probe;
use statistics::mean;
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
    /// What wants to be served.
    pub candidate: Generation,
}

/// What one prompt adds to the evidence.
struct Outcome {
    comparison: Comparison,
    evaluations: [Evaluation; 2],
    /// log p(active) - log p(candidate) of each token of the active one's answer.
    log_ratios: Vec<f64>,
}

impl Arena<'_> {
    /// Everything that the verdict needs. Prompts are asked in the order given until the matter is
    /// clear; those of `general` only when all else speaks for the candidate. An adapter that fails
    /// parity is not asked: what it would be judged for is not what was trained. `probe`: `None` for
    /// an adapter that was made elsewhere.
    pub async fn evidence(
        &self,
        probe: Option<&Path>,
        questions: &[Question],
        general: &[Question],
        answered: &(dyn Fn(usize) + Sync),
    ) -> Result<Evidence, ArenaError> {
        let parity_error = match probe {
            Some(probe) => Some(self.parity(probe).await?),
            None => None,
        };
        let available = available(questions, general);
        let mut evidence = Evidence { parity_error, available, ..Evidence::default() };
        if !gate::parity_holds(parity_error, self.config) {
            return Ok(evidence);
        }
        let mut trial = Trial::new(self.config, available);
        let asked = self.ask_until(questions, |comparison, n| {
            trial.observe(comparison);
            answered(n);
            trial.stopped().is_some()
        });
        let asked = asked.await?;
        evidence.kl = mean(asked.iter().flat_map(|outcome| outcome.log_ratios.iter().copied()));
        evidence.comparisons = self.record(asked, false).await?;
        if gate::judge(&evidence, self.config).promote {
            let mut trial = GeneralTrial::new(self.config, available);
            let asked = self.ask_until(general, |comparison, _| {
                trial.observe(comparison);
                trial.is_over()
            });
            evidence.general = self.record(asked.await?, true).await?;
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
    async fn record(
        &self,
        outcomes: Vec<Outcome>,
        general: bool,
    ) -> Result<Vec<Comparison>, ArenaError> {
        let mut comparisons = Vec::new();
        let mut evaluations = Vec::new();
        for outcome in outcomes {
            comparisons.push(outcome.comparison);
            evaluations.extend(outcome.evaluations.map(|it| Evaluation { general, ..it }));
        }
        self.parts.store.add_evaluations(evaluations).await?;
        Ok(comparisons)
    }

    /// Mean |difference| between the trainer's log-probs of the probe and the candidate generation's.
    async fn parity(&self, path: &Path) -> Result<f64, ArenaError> {
        let unusable = |reason| ArenaError::Probe { path: path.to_owned(), reason };
        let text = tokio::fs::read(path).await.map_err(|error| unusable(error.to_string()))?;
        let probe: Probe =
            serde_json::from_slice(&text).map_err(|error| unusable(error.to_string()))?;
        let sound = |sequence: &protocol::ProbeSequence| {
            0 < sequence.from
                && sequence.tokens.len().checked_sub(sequence.from) == Some(sequence.logprobs.len())
                && !sequence.logprobs.is_empty()
        };
        if probe.sequences.is_empty() || !probe.sequences.iter().all(sound) {
            return Err(unusable("it needs sequences with one log-prob for each token".into()));
        }
        let sequences = probe.sequences.iter();
        let served = self
            .logprobs(
                self.candidate,
                sequences
                    .map(|s| (s.tokens.iter().copied().map(Token).collect(), s.from))
                    .collect(),
            )
            .await?;
        let trained = probe.sequences.iter().flat_map(|sequence| &sequence.logprobs);
        let differences = served
            .iter()
            .flatten()
            .zip(trained)
            .map(|(served, trained)| f64::from(served - trained).abs());
        Ok(mean(differences))
    }

    /// `None` for a prompt that does not fit the context: it says nothing about the adapter.
    async fn ask(&self, question: &Question) -> Result<Option<Outcome>, ArenaError> {
        match self.compare(question).await {
            Ok(outcome) => Ok(Some(outcome)),
            Err(
                ArenaError::Engine(error @ EngineError::TooLong { .. })
                | ArenaError::Reflect(ReflectError::Engine(error @ EngineError::TooLong { .. })),
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
        let log_ratios = self.log_ratios(&active).await?;
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
            active: answered(&active, &active_said),
            candidate: answered(&candidate, &candidate_said),
        };
        let evaluations = [
            evaluation(false, &active, &comparison.active),
            evaluation(true, &candidate, &comparison.candidate),
        ];
        Ok(Outcome { comparison, evaluations, log_ratios })
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

    async fn log_ratios(&self, active: &Answer) -> Result<Vec<f64>, ArenaError> {
        if active.tokens.len() <= active.from {
            return Ok(Vec::new());
        }
        let sequence = || vec![(active.tokens.clone(), active.from)];
        let (by_active, by_candidate) = tokio::try_join!(
            self.logprobs(self.active, sequence()),
            self.logprobs(self.candidate, sequence())
        )?;
        let pairs = by_active.iter().flatten().zip(by_candidate.iter().flatten());
        Ok(pairs.map(|(active, candidate)| f64::from(active - candidate)).collect())
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

fn available(questions: &[Question], general: &[Question]) -> Available {
    let guards = |question: &&Question| {
        let verifier = question.line.verifier.as_ref().or(question.agent.verifier.as_ref());
        verifier.is_some() && !verifier_decides(question)
    };
    Available {
        prompts: questions.len(),
        guarded: questions.iter().filter(guards).count(),
        general: general.len(),
    }
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
        verified: verified.map(|assessment| 0.5 < assessment.levels[2]),
        tokens: answer.tokens.get(answer.from..).unwrap_or_default().to_vec(),
    }
}
