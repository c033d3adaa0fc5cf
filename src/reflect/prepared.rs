//! A prompt on its way from a task to an exchange: made ready to be answered, and stored with its
//! answers in one transaction. Generates nothing. Used by `run`, `inline`, and by
//! [`Reflector::remember`] and [`Reflector::answer`].

use config::{Agent, Verifier};
use engine::Token;
use prompt::{Message, Role};
use store::{Candidate, ChosenAspects, ExchangeId, NewCandidate, NewExchange, Parent, Source};

use super::verify::Check;
use super::{ReflectError, Reflector, Task};

/// A prompt that is ready to be answered.
#[derive(Debug)]
pub(super) struct Prepared {
    /// With the agent's system text.
    pub(super) messages: Vec<Message>,
    pub(super) prompt: Vec<Token>,
    /// The prompt's own, or the agent's. One that runs a program is the agent's of the day and not
    /// stored: what is stored may be changed by others than the owner.
    pub(super) verifier: Option<Verifier>,
    /// What the judge has chosen for it meanwhile.
    pub(super) aspect_choice: Option<ChosenAspects>,
}

impl Prepared {
    /// A verifier that cannot work is refused here, before anything is generated.
    pub(super) fn new(
        reflector: &Reflector,
        agent: &Agent,
        messages: &[Message],
        verifier: Option<Verifier>,
    ) -> Result<Self, ReflectError> {
        let verifier = verifier.or_else(|| agent.verifier.clone());
        if let Some(verifier) = &verifier {
            Check::new(verifier)?;
        }
        let verifier = verifier.filter(|verifier| verifier.commands().is_empty());
        let messages = conversation(agent, messages);
        let prompt = reflector.tokens(&messages)?;
        Ok(Self { messages, prompt, verifier, aspect_choice: None })
    }

    pub(super) fn into_exchange(
        self,
        agent: &Agent,
        source: Source,
        reference: Option<String>,
    ) -> NewExchange {
        NewExchange {
            agent: agent.name.clone(),
            source,
            messages: self.messages,
            prompt_tokens: self.prompt,
            reference,
            verifier: self.verifier,
            aspect_choice: self.aspect_choice,
        }
    }
}

/// The conversation as the model gets it: the agent's system text comes first unless there is one.
pub fn conversation(agent: &Agent, messages: &[Message]) -> Vec<Message> {
    let has_system = messages.iter().any(|message| message.role == Role::System);
    let system = agent.system.iter().filter(|_| !has_system);
    let system = system.map(|text| Message { role: Role::System, content: text.clone() });
    system.chain(messages.iter().cloned()).collect()
}

/// A conversation as the store compares it: two that are equal are one stored prompt.
pub fn stored(agent: &Agent, messages: &[Message]) -> Vec<u8> {
    serde_json::to_vec(&conversation(agent, messages)).expect("messages are plain data")
}

/// Stores a task's candidates in one transaction; nothing when there are none.
pub(super) async fn record(
    reflector: &Reflector,
    task: &Task,
    prepared: Prepared,
    candidates: Vec<NewCandidate>,
    served: Option<usize>,
) -> Result<(Option<ExchangeId>, Vec<Candidate>), ReflectError> {
    if candidates.is_empty() {
        return Ok((None, Vec::new()));
    }
    let exchange = prepared.into_exchange(&task.agent, Source::Chat, task.reference.clone());
    let (id, ids) = reflector.store.record_exchange(exchange, candidates.clone(), served).await?;
    let stored = ids.iter().zip(candidates).map(|(&id, new)| Candidate {
        id,
        author: new.author,
        parent: new.parent.and_then(|parent| match parent {
            Parent::Stored(id) => Some(id),
            Parent::Index(index) => ids.get(index).copied(),
        }),
        generation: new.generation,
        text: new.text,
        tokens: new.tokens,
        logprobs: new.logprobs,
        sampling: new.sampling,
        finish: new.finish,
        critique: new.critique,
        critic: new.critic,
        shots: new.shots,
        expected: None,
        assessments: new.assessments,
    });
    Ok((Some(id), stored.collect()))
}
