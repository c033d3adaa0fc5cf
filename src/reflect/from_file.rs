//! Prompts and examples of files on their way into the store: rendered, tokenized, and an example's
//! answer held against its own verifier; and the answer that a verifier names itself, as an example.
//! Generates and stores nothing. Used by `learn`, and by `check` for what needs no model.

use config::prompt_file::UniquePrompts;
use config::{Agent, ExampleLine, PromptLine, Verifier};
use engine::{FinishReason, Sampling, Token};
use prompt::{ChatTemplate, Message, Role};
use store::{Assessment, Author, CandidateId, Exchange, FilePrompt, NewCandidate, Source};

use super::assess::{Verification, passes, refusal};
use super::prepared::{Prepared, conversation};
use super::{ReflectError, Reflector};

/// An example that is shown before a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Shot {
    /// Its answer.
    pub candidate: CandidateId,
    /// Its turns and the answer.
    pub turns: Vec<Message>,
}

/// What a prompt's verifier names.
#[derive(Debug)]
pub enum Named {
    /// No whole answer, or its word does not count.
    Nothing,
    /// An answer that cannot be an example, and why.
    Unfit(String),
    /// This answer.
    Answer(Box<NewCandidate>),
}

/// Looks at examples of an agent, one after the other, as far as that can be done without the model.
#[derive(Debug)]
pub struct ExampleCheck<'a> {
    agent: &'a Agent,
    template: Option<&'a ChatTemplate>,
    /// As the store compares them, with the agent's system text.
    prompts: UniquePrompts,
}

impl<'a> ExampleCheck<'a> {
    /// Before the first one.
    pub fn new(agent: &'a Agent, template: Option<&'a ChatTemplate>) -> Self {
        Self { agent, template, prompts: UniquePrompts::default() }
    }

    /// What is wrong with the next one.
    pub fn check(&mut self, number: usize, line: &ExampleLine) -> Result<(), String> {
        let Self { agent, template, prompts } = self;
        let mut whole = conversation(agent, &line.messages());
        prompts.add(number, &whole)?;
        if let Some(template) = template {
            let answer = Message { role: Role::Assistant, content: line.answer.clone() };
            // First without, so that a prompt that does not fit is not taken for an answer.
            template.render(&whole).map_err(|error| error.to_string())?;
            whole.push(answer);
            template
                .render_whole(&whole)
                .map_err(|error| format!("the answer does not fit: {error}"))?;
        }
        let (verifier, reference) = (line.verifier.as_ref(), line.reference.as_deref());
        let assessments = verified(agent, verifier, reference, &line.answer)
            .map_err(|error| error.to_string())?;
        if assessments.iter().any(|assessment| !assessment.passes) {
            return Err("the answer does not pass the verifier of its own prompt".to_owned());
        }
        Ok(())
    }
}

/// What the verifier says of an example's answer; empty where there is none, or one that asks a program:
/// the owner's word is enough there.
fn verified(
    agent: &Agent,
    verifier: Option<&Verifier>,
    reference: Option<&str>,
    answer: &str,
) -> Result<Vec<Assessment>, ReflectError> {
    let verification = Verification::new(agent, verifier, reference)?;
    let said = verification.and_then(|check| check.assess_by_itself(answer.trim()));
    Ok(said.unwrap_or_default())
}

/// Whether what checks a prompt refuses the answer of an example to it, so that it is not learned.
pub fn refuses(
    agent: &Agent,
    verifier: Option<&Verifier>,
    reference: Option<&str>,
    answer: &str,
) -> bool {
    verified(agent, verifier, reference, answer).is_ok_and(|said| refusal(&said).is_some())
}

impl Reflector {
    /// A prompt to practise on.
    pub fn practice_prompt(
        &self,
        agent: &Agent,
        line: PromptLine,
    ) -> Result<FilePrompt, ReflectError> {
        let prepared = Prepared::new(self, agent, &line.messages(), line.verifier)?;
        let exchange = prepared.into_exchange(agent, Source::Explore, line.reference);
        Ok(FilePrompt { exchange, example: None, keeps_check: false })
    }

    /// A prompt with the answer that the owner wants, which is also what the judge is shown where the
    /// example names no reference.
    pub fn example(&self, agent: &Agent, line: ExampleLine) -> Result<FilePrompt, ReflectError> {
        let text = line.answer.trim().to_owned();
        let reference = line.reference.clone().unwrap_or_else(|| text.clone());
        let assessments = verified(agent, line.verifier.as_ref(), Some(&reference), &text)?;
        let prepared = Prepared::new(self, agent, &line.messages(), line.verifier)?;
        let (messages, prompt) = (&prepared.messages, &prepared.prompt);
        let example = self.example_candidate(messages, prompt, text, assessments)?;
        let exchange = prepared.into_exchange(agent, Source::Explore, Some(reference));
        Ok(FilePrompt { exchange, example: Some(example), keeps_check: false })
    }

    /// The answer that the verifier of a stored prompt names whole.
    pub fn expected(&self, agent: &Agent, exchange: &Exchange) -> Result<Named, ReflectError> {
        let verifier = exchange.verifier.as_ref().or(agent.verifier.as_ref());
        let verification = Verification::new(agent, verifier, None)?;
        let text = verifier.and_then(Verifier::whole_answer).filter(|text| !text.is_empty());
        let (Some(text), Some(verification)) = (text, verification) else {
            return Ok(Named::Nothing);
        };
        let assessments = verification.assess_by_itself(&text).unwrap_or_default();
        if !passes(&assessments) {
            return Ok(Named::Nothing);
        }
        // An example may be shown as a turn, in which a template may refuse what it does not refuse behind
        // a prompt.
        let answer = Message { role: Role::Assistant, content: text.clone() };
        let whole: Vec<Message> = exchange.messages.iter().cloned().chain([answer]).collect();
        if let Err(error) = self.template.render_whole(&whole) {
            return Ok(Named::Unfit(error.to_string()));
        }
        let (messages, prompt) = (&exchange.messages, &exchange.prompt_tokens);
        let named = self.example_candidate(messages, prompt, text, assessments)?;
        let (needed, room) = (prompt.len() + named.tokens.len(), self.engine.info().max_sequence);
        if room < needed {
            let reason =
                format!("prompt and answer have {needed} tokens, and there is room for {room}");
            return Ok(Named::Unfit(reason));
        }
        Ok(Named::Answer(Box::new(named)))
    }

    fn example_candidate(
        &self,
        messages: &[Message],
        prompt: &[Token],
        text: String,
        assessments: Vec<Assessment>,
    ) -> Result<NewCandidate, ReflectError> {
        let mut tokens = self.continuation(messages, prompt, &text)?;
        tokens.push(self.engine.info().end_of_turn);
        Ok(NewCandidate {
            author: Author::Owner,
            parent: None,
            generation: self.engine.stats().active,
            text,
            // Nobody has asked the model, and nothing that learns needs them.
            logprobs: vec![f32::NAN; tokens.len()],
            tokens,
            sampling: Sampling::default(),
            finish: FinishReason::Stop,
            critique: None,
            critic: None,
            shots: Vec::new(),
            assessments,
        })
    }

    /// The template that prompts are rendered with.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// A stored prompt with examples before it, as the policy reads it while exploring; `None` where
    /// there is no room for both and an answer.
    pub(super) fn prompt_with(
        &self,
        messages: &[Message],
        shots: &[Shot],
        max_tokens: u32,
    ) -> Result<Option<Vec<Token>>, ReflectError> {
        let n_system = messages.iter().take_while(|it| it.role == Role::System).count();
        let (system, turns) = messages.split_at(n_system);
        let shown = shots.iter().flat_map(|shot| &shot.turns);
        let whole: Vec<Message> = system.iter().chain(shown).chain(turns).cloned().collect();
        let prompt = self.tokens(&whole)?;
        let room = self.engine.info().max_sequence;
        let needed = prompt.len().saturating_add(usize::try_from(max_tokens).unwrap_or(usize::MAX));
        Ok((needed <= room).then_some(prompt))
    }
}
