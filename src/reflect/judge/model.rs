//! Models of this process that judge: the frozen base of the served one or a second GGUF, each with
//! its own chat template, and a reward model. They render, ask and name; what the numbers mean is
//! `assess`'s business. Used by `judge`.

use std::sync::Arc;

use config::Agent;
use engine::reward::Reward;
use engine::{
    Engine, EngineError, GenerateRequest, Generation, Priority, Sampling, ScoreRequest, TextPart,
    Token, Weights,
};
use prompt::{ChatTemplate, Message, PromptError, Role};

use super::super::ReflectError;
use super::super::assess::{Scored, judge_name, twelve, view};

const BASE: Weights = Weights::Generation(Generation::BASE);

/// A second model that judges. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::reflect) struct Second {
    pub(in crate::reflect) engine: Engine,
    pub(in crate::reflect) template: Arc<ChatTemplate>,
}

/// A model that says levels.
#[derive(Debug)]
pub(super) struct ModelJudge<'a> {
    engine: &'a Engine,
    template: &'a ChatTemplate,
    is_second: bool,
}

impl<'a> ModelJudge<'a> {
    pub(super) fn base(engine: &'a Engine, template: &'a ChatTemplate) -> Self {
        Self { engine, template, is_second: false }
    }

    pub(super) fn second(engine: &'a Engine, template: &'a ChatTemplate) -> Self {
        Self { engine, template, is_second: true }
    }

    pub(super) fn engine(&self) -> &'a Engine {
        self.engine
    }

    /// As assessments name it.
    pub(super) fn name(&self) -> String {
        let sha256 = &self.engine.info().sha256;
        if self.is_second { format!("model {}", twelve(sha256)) } else { judge_name(sha256) }
    }

    /// Whether a verdict depends on what it is asked alone.
    pub(super) fn is_deterministic(&self) -> bool {
        self.engine.judge().is_deterministic()
    }

    /// A rendered conversation as tokens.
    pub(super) fn tokens(&self, messages: &[Message]) -> Result<Vec<Token>, PromptError> {
        Ok(self.engine.vocabulary().tokenize(&self.template.render(messages)?))
    }

    /// See [`super::Judge::score`]; a group with a conversation that is too long gets no levels.
    pub(super) async fn score(
        &self,
        agent: &Agent,
        groups: Vec<Vec<Vec<Message>>>,
        priority: Priority,
    ) -> Result<Vec<Option<Vec<Scored>>>, ReflectError> {
        let limit = self.engine.info().max_sequence;
        let mut prompts = Vec::new();
        let mut sizes = Vec::new();
        for group in groups {
            let own = group.iter().map(|it| self.tokens(it)).collect::<Result<Vec<_>, _>>()?;
            let fits = own.iter().all(|prompt| prompt.len() < limit);
            sizes.push(fits.then_some(own.len()));
            if fits {
                prompts.extend(own);
            }
        }
        if prompts.is_empty() {
            return Ok(sizes.into_iter().map(|size| size.map(|_| Vec::new())).collect());
        }
        let labels = self.labels(agent)?.to_vec();
        let request = ScoreRequest { prompts, labels, weights: BASE, priority };
        let mut scores = self.engine.judge().score(request).await?.into_iter();
        let judge = self.name();
        let mut read = |n| {
            let scores = scores.by_ref().take(n);
            scores.map(|scores| Scored { judge: judge.clone(), scores }).collect()
        };
        Ok(sizes.into_iter().map(|size| size.map(&mut read)).collect())
    }

    /// The request for a short text.
    pub(super) fn writing(
        &self,
        messages: &[Message],
        max_tokens: u32,
        priority: Priority,
    ) -> Result<GenerateRequest, PromptError> {
        Ok(GenerateRequest {
            prompt: self.tokens(messages)?,
            n: 1,
            sampling: Sampling { temperature: 0.0, max_tokens, ..Sampling::default() },
            stop: Vec::new(),
            top_logprobs: 0,
            prediction: Vec::new(),
            weights: BASE,
            priority,
        })
    }

    /// The tokens of the agent's level labels (-1, 0, +1), as they follow its `assess` prompt.
    pub(super) fn labels(&self, agent: &Agent) -> Result<[Token; 3], PromptError> {
        let aspect = agent.aspects.first().map(view);
        let aspect =
            aspect.ok_or_else(|| PromptError::Invalid("the agent has no aspects".into()))?;
        let prompt = self.template.render(&agent.prompts.assess("?", "!", None, &aspect)?)?;
        let vocabulary = self.engine.vocabulary();
        let before = vocabulary.tokenize(&prompt);
        let mut labels = [Token(0); 3];
        for (slot, label) in labels.iter_mut().zip(agent.prompts.labels()) {
            let mut prompt = prompt.clone();
            prompt.push(TextPart { text: label.clone(), control: false });
            let after = vocabulary.tokenize(&prompt);
            let Some([token]) = after.strip_prefix(before.as_slice()) else {
                return Err(PromptError::Invalid(format!(
                    "the level label `{label}` is not one token of the judge after the `assess` \
                     prompt; choose three labels that are, such as single digits or letters"
                )));
            };
            *slot = *token;
        }
        let [low, middle, high] = labels;
        if low == middle || middle == high || low == high {
            return Err(PromptError::Invalid(
                "two level labels are the same token of the judge; choose three that differ".into(),
            ));
        }
        Ok(labels)
    }
}

/// A reward model with its chat template. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::reflect) struct RewardJudge {
    pub(in crate::reflect) reward: Reward,
    pub(in crate::reflect) template: Arc<ChatTemplate>,
}

impl RewardJudge {
    /// As assessments name it.
    pub(super) fn name(&self) -> String {
        format!("reward model {}", twelve(&self.reward.info().sha256))
    }

    /// Most tokens of one conversation.
    pub(super) fn limit(&self) -> usize {
        self.reward.info().max_sequence
    }

    /// The conversation with this answer at its end.
    pub(super) fn tokens(
        &self,
        turns: &[Message],
        answer: &str,
    ) -> Result<Vec<Token>, PromptError> {
        let answer = Message { role: Role::Assistant, content: answer.to_owned() };
        let turns: Vec<Message> = turns.iter().cloned().chain([answer]).collect();
        Ok(self.reward.vocabulary().tokenize(&self.template.render_whole(&turns)?))
    }

    /// One number a conversation.
    pub(super) async fn score(
        &self,
        sequences: Vec<Vec<Token>>,
        priority: Priority,
    ) -> Result<Vec<f64>, EngineError> {
        self.reward.score(sequences, priority).await
    }
}
