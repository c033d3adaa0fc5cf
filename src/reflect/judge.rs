//! Asks the frozen base for levels and critiques: one scoring call an aspect in a fresh context, one
//! short text for what falls short. The adapter that is being trained never grades itself. Used by
//! `session`, and by [`Reflector::assess`].

use crate::config::{Agent, Pass};
use crate::engine::{
    Class, EngineError, GenerateRequest, Generation, Lane, Sampling, ScoreRequest, TextPart, Token,
};
use crate::prompt::{Message, PromptError};
use crate::store::{Assessment, JudgeBar, Standard};

use super::assess::{
    Verification, bar, judge_name, read_scores, shortfalls, standard, view, worst,
};
use super::{ReflectError, Reflector};

const BASE: Lane = Lane::Generation(Generation::BASE);

/// The judge of one prompt's answers.
#[derive(Debug)]
pub(super) struct Judge<'a> {
    pub(super) reflector: &'a Reflector,
    pub(super) agent: &'a Agent,
    /// See [`super::question`].
    pub(super) question: &'a str,
    /// Shown to the judge only.
    pub(super) reference: Option<&'a str>,
    pub(super) verification: Option<Verification>,
    pub(super) class: Class,
}

impl Judge<'_> {
    /// Judges answers, all aspects of all answers in one request. An answer that is too long to be
    /// judged gets no assessments: the verifier's word alone would count as the word of all.
    pub(super) async fn assess(
        &self,
        answers: &[&str],
    ) -> Result<Vec<Vec<Assessment>>, ReflectError> {
        let limit = self.reflector.engine.info().max_sequence;
        let mut assessments = vec![Vec::new(); answers.len()];
        let mut prompts = Vec::new();
        let mut judged = Vec::new();
        for (answer, slot) in answers.iter().zip(&mut assessments) {
            let mut own = Vec::new();
            for reading in self.agent.prompts.readings(answer) {
                own.extend(self.prompts(&reading)?);
            }
            if own.iter().any(|prompt| limit <= prompt.len()) {
                tracing::warn!(limit, "An answer is too long for the judge.");
                continue;
            }
            judged.push((answer, slot, own.len()));
            prompts.extend(own);
        }
        if judged.is_empty() {
            return Ok(assessments);
        }
        let labels = self.reflector.labels(self.agent)?.to_vec();
        let request = ScoreRequest { prompts, labels, lane: BASE, class: self.class };
        let scores = self.reflector.engine.score(request).await?;
        let name = self.reflector.judge_name();
        let bars = self.reflector.bars(self.agent).await?;
        let mut scores = scores.as_slice();
        for (answer, slot, n_scores) in judged {
            let (own, rest) = scores.split_at(n_scores);
            scores = rest;
            let own = worst(self.agent.aspects.len(), own);
            *slot = read_scores(self.agent, &name, &bars, &own);
            slot.extend(self.verification.as_ref().map(|check| check.assess(answer)));
        }
        Ok(assessments)
    }

    /// The request for a critique of a judged answer; `None` when nothing falls short.
    pub(super) fn critique(
        &self,
        answer: &str,
        assessments: &[Assessment],
        max_tokens: u32,
    ) -> Result<Option<GenerateRequest>, PromptError> {
        let aspects = shortfalls(self.agent, assessments);
        if aspects.is_empty() {
            return Ok(None);
        }
        let prompts = &self.agent.prompts;
        let messages = prompts.critique(self.question, answer, self.reference, &aspects)?;
        Ok(Some(GenerateRequest {
            prompt: self.reflector.tokens(&messages)?,
            n: 1,
            sampling: Sampling { temperature: 0.0, max_tokens, ..Sampling::default() },
            stop: Vec::new(),
            top_logprobs: 0,
            copies: Vec::new(),
            lane: BASE,
            class: self.class,
        }))
    }

    fn prompts(&self, answer: &str) -> Result<Vec<Vec<Token>>, PromptError> {
        let prompts = &self.agent.prompts;
        self.agent
            .aspects
            .iter()
            .map(|rated| prompts.assess(self.question, answer, self.reference, &view(rated)))
            .map(|messages| self.reflector.tokens(&messages?))
            .collect()
    }
}

impl Reflector {
    /// The judge's identity in every assessment.
    pub fn judge_name(&self) -> String {
        judge_name(&self.engine.info().sha256)
    }

    /// What the agent's aspects are judged by at present, in their order.
    pub fn standards(&self, agent: &Agent) -> Vec<Standard> {
        let judge = self.judge_name();
        agent.aspects.iter().map(|rated| standard(agent, rated, &judge)).collect()
    }

    /// The bars of the agent's aspects at present, in their order.
    pub async fn bars_in_force(&self, agent: &Agent) -> Result<Vec<f64>, ReflectError> {
        let calibrated = self.bars(agent).await?;
        let standards = self.standards(agent).into_iter();
        let rated = agent.aspects.iter().zip(standards);
        Ok(rated.map(|(rated, standard)| bar(rated.pass, &standard, &calibrated)).collect())
    }

    /// What calibration has found, where an aspect wants to know.
    async fn bars(&self, agent: &Agent) -> Result<Vec<JudgeBar>, ReflectError> {
        if agent.aspects.iter().all(|rated| rated.pass != Pass::Calibrated) {
            return Ok(Vec::new());
        }
        Ok(self.store.judge_bars(agent.name.clone()).await?)
    }

    /// A rendered conversation as tokens.
    pub(super) fn tokens(&self, messages: &[Message]) -> Result<Vec<Token>, PromptError> {
        Ok(self.engine.vocabulary().tokenize(&self.template.render(messages)?))
    }

    /// The tokens of the agent's level labels (-1, 0, +1), as they follow its `assess` prompt.
    pub(super) fn labels(&self, agent: &Agent) -> Result<[Token; 3], PromptError> {
        let aspect = agent.aspects.first().map(view);
        let aspect = aspect.ok_or_else(|| PromptError("the agent has no aspects".into()))?;
        let prompt = self.template.render(&agent.prompts.assess("?", "!", None, &aspect)?)?;
        let vocabulary = self.engine.vocabulary();
        let before = vocabulary.tokenize(&prompt);
        let mut labels = [Token(0); 3];
        for (slot, label) in labels.iter_mut().zip(agent.prompts.labels()) {
            let mut prompt = prompt.clone();
            prompt.push(TextPart { text: label.clone(), control: false });
            let after = vocabulary.tokenize(&prompt);
            let Some([token]) = after.strip_prefix(before.as_slice()) else {
                return Err(PromptError(format!(
                    "the level label `{label}` is not one token of this model after the `assess` \
                     prompt; choose three labels that are, such as single digits or letters"
                )));
            };
            *slot = *token;
        }
        let [low, middle, high] = labels;
        if low == middle || middle == high || low == high {
            return Err(PromptError(
                "two level labels are the same token of this model; choose three that differ"
                    .into(),
            ));
        }
        Ok(labels)
    }
}

/// Errors after which the answers so far can still be served: the context is full, the generation
/// has been retired, the queue is full.
pub(super) fn is_spent(error: &ReflectError) -> bool {
    matches!(
        error,
        ReflectError::Engine(
            EngineError::TooLong { .. } | EngineError::NoLane(_) | EngineError::Overloaded { .. }
        )
    )
}
