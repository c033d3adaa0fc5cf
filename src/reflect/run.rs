//! The main path of one task: render the prompt, then answer by its mode. Off, background and
//! explore stream here; `inline` holds its answers back. Used by [`Reflector::run`].

use tokio::sync::mpsc;

use config::{Agent, Mode, Verifier};
use engine::{Class, GenerateRequest, Lane, Piece, Token};
use prompt::{Message, Role};
use store::{Candidate, ChosenAspects, ExchangeId, NewCandidate, NewExchange, Parent, Source};

use super::batch::{Batch, Sample};
use super::budget::Stop;
use super::verify::Check;
use super::{Outcome, Progress, ReflectError, Reflector, Task, inline};

pub(super) async fn run(
    reflector: &Reflector,
    task: &Task,
    progress: &mpsc::Sender<Progress>,
) -> Result<Outcome, ReflectError> {
    let prepared = Prepared::new(reflector, &task.agent, &task.messages, task.verifier.clone())?;
    let later = match task.mode {
        Mode::Inline => return inline::run(reflector, task, prepared, progress).await,
        Mode::Off => "off",
        Mode::Background => "background",
        Mode::Explore => "explore",
    };
    let streamed = stream(reflector, task, &prepared.prompt, progress).await?;
    let candidates: Vec<NewCandidate> =
        streamed.samples.iter().map(|sample| sample.to_candidate(None, Vec::new())).collect();
    let n_candidates = candidates.len();
    let (exchange, served) = match task.mode {
        Mode::Off => (None, Vec::new()),
        _ => {
            let served = (!streamed.client_left).then_some(0);
            record(reflector, task, prepared, candidates, served).await?
        }
    };
    Ok(Outcome {
        exchange,
        served: if streamed.client_left { Vec::new() } else { served },
        n_candidates,
        generated_tokens: streamed.generated_tokens,
        rounds: 0,
        stopped: if streamed.client_left { Stop::ClientLeft.word() } else { later },
    })
}

/// A prompt that is ready to be answered.
#[derive(Debug)]
pub(super) struct Prepared {
    /// With the agent's system text.
    pub(super) messages: Vec<Message>,
    pub(super) prompt: Vec<Token>,
    /// The prompt's own, or the agent's.
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
pub(super) fn conversation(agent: &Agent, messages: &[Message]) -> Vec<Message> {
    let has_system = messages.iter().any(|message| message.role == Role::System);
    let system = agent.system.iter().filter(|_| !has_system);
    let system = system.map(|text| Message { role: Role::System, content: text.clone() });
    system.chain(messages.iter().cloned()).collect()
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
        assessments: new.assessments,
    });
    Ok((Some(id), stored.collect()))
}

struct Streamed {
    samples: Vec<Sample>,
    generated_tokens: usize,
    client_left: bool,
}

/// Passes every piece on as it comes; a client that leaves cancels the rest.
async fn stream(
    reflector: &Reflector,
    task: &Task,
    prompt: &[Token],
    progress: &mpsc::Sender<Progress>,
) -> Result<Streamed, ReflectError> {
    let request = GenerateRequest {
        prompt: prompt.to_vec(),
        n: task.n.max(1),
        sampling: task.sampling,
        stop: task.stop.clone(),
        top_logprobs: task.top_logprobs,
        copies: Vec::new(),
        lane: Lane::Active,
        class: Class::Chat,
    };
    let mut batch = tokio::select! {
        batch = Batch::start(&reflector.engine, request) => batch?,
        () = progress.closed() => {
            return Ok(Streamed { samples: Vec::new(), generated_tokens: 0, client_left: true });
        }
    };
    let mut news = Some(Progress::Started {
        generation: batch.generation,
        seed: batch.seed,
        n_prompt: prompt.len(),
        n_cached: batch.n_cached,
    });
    let mut client_left = false;
    while let Some(piece) = news {
        if progress.send(piece).await.is_err() {
            client_left = true;
            break;
        }
        let piece = tokio::select! {
            piece = batch.next() => piece?,
            () = progress.closed() => {
                client_left = true;
                break;
            }
        };
        news = piece.map(|piece| match piece {
            Piece::Token(token) => Progress::Token(token),
            Piece::Finished { index, text, reason } => Progress::Finished { index, text, reason },
            Piece::Failed(error) => Progress::Failed(error.into()),
        });
    }
    let generated_tokens = batch.n_tokens();
    Ok(Streamed { samples: batch.into_samples(), generated_tokens, client_left })
}
