//! The thread of a reward model, and the handle to it: sequences of tokens in, one number each out.
//! It owns its model as the engine's thread owns the served one, and takes its steps among the
//! others of the process (`step_lock`). Started by `daemon`; used by `reflect`.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::llama::RewardModel;
use super::owner::own;
use super::step_lock::{StepLock, Ticket};
use super::{EngineConfig, EngineError, EngineThread, ModelInfo, Priority, Token, Vocabulary};
use inference::backend::RewardBackend;

/// Requests that wait for the thread; their callers wait with them, so a few are enough.
const QUEUE: usize = 16;

/// The handle: small, cloneable, the only way to the model.
#[derive(Clone, Debug)]
pub struct Reward {
    requests: mpsc::Sender<Request>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    info: ModelInfo,
    vocabulary: Arc<dyn Vocabulary>,
}

#[derive(Debug)]
struct Request {
    sequences: Vec<Vec<Token>>,
    priority: Priority,
    reply: oneshot::Sender<Result<Vec<f64>, EngineError>>,
}

/// Loads a reward model with llama.cpp, beside models whose files take `mapped` bytes of memory.
pub async fn spawn(
    lock: &StepLock,
    config: &EngineConfig,
    mapped: u64,
) -> Result<(Reward, EngineThread), EngineError> {
    let config = config.clone();
    spawn_on(lock, move || RewardModel::load(&config, mapped)).await
}

/// The same with any backend, which is made inside the thread.
pub async fn spawn_on<B, F>(lock: &StepLock, load: F) -> Result<(Reward, EngineThread), EngineError>
where
    B: RewardBackend + 'static,
    F: FnOnce() -> Result<B, EngineError> + Send + 'static,
{
    let ticket = lock.ticket();
    let (requests, inbox) = mpsc::channel(QUEUE);
    let body = move |ready: oneshot::Sender<Result<Arc<Shared>, EngineError>>| match load() {
        Ok(backend) => {
            let shared = Shared { info: backend.info(), vocabulary: backend.vocabulary() };
            if ready.send(Ok(Arc::new(shared))).is_ok() {
                run(backend, inbox, &ticket);
            }
        }
        Err(error) => drop(ready.send(Err(error))),
    };
    let (shared, thread) = own("reward", body).await?;
    Ok((Reward { requests, shared }, thread))
}

impl Reward {
    /// Facts about the model.
    pub fn info(&self) -> &ModelInfo {
        &self.shared.info
    }

    /// Text to tokens and back.
    pub fn vocabulary(&self) -> &Arc<dyn Vocabulary> {
        &self.shared.vocabulary
    }

    /// One number a sequence; the larger the better.
    pub async fn score(
        &self,
        sequences: Vec<Vec<Token>>,
        priority: Priority,
    ) -> Result<Vec<f64>, EngineError> {
        let (needed, limit) =
            (sequences.iter().map(Vec::len).max().unwrap_or(0), self.info().max_sequence);
        if limit < needed {
            return Err(EngineError::TooLong { needed, limit });
        }
        if sequences.iter().any(Vec::is_empty) {
            return Err(EngineError::Invalid("there is an empty sequence to reward".to_owned()));
        }
        let (reply, answer) = oneshot::channel();
        let request = Request { sequences, priority, reply };
        self.requests.send(request).await.map_err(|_| EngineError::Stopped)?;
        answer.await.map_err(|_| EngineError::Stopped)?
    }
}

/// Ends when the last handle is gone.
fn run(mut backend: impl RewardBackend, mut inbox: mpsc::Receiver<Request>, ticket: &Ticket) {
    while let Some(Request { sequences, priority, reply }) = inbox.blocking_recv() {
        let rewards = sequences.iter().map(|tokens| {
            while !ticket.take(priority) {
                // A caller that has left wants nothing more.
                if reply.is_closed() {
                    return Err(EngineError::Stopped);
                }
            }
            let reward = backend.reward(tokens, &mut || {
                ticket.leave();
                while !ticket.take(priority) {}
            });
            ticket.leave();
            reward
        });
        let rewards = rewards.collect();
        ticket.rest();
        drop(reply.send(rewards));
    }
}
