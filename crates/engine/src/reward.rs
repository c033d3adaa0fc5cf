//! The thread of a reward model, and the handle to it: sequences of tokens in, one number each out.
//! It owns its model as the engine's thread owns the served one, and takes its steps among the
//! others of the process (`step_lock`), each as long as the model's measured speed allows (`pace`).
//! Started by `daemon`; used by `reflect`.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::core::Pace;
use super::llama::{OtherModels, RewardModel};
use super::owner::own;
use super::step_lock::{StepLock, Ticket};
use super::stream::Reply;
use super::{EngineConfig, EngineError, EngineThread, ModelInfo, Priority, Token, Vocabulary};
use inference::backend::{Limits, RewardBackend};

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
    reply: Reply<Vec<f64>>,
}

/// Loads a reward model with llama.cpp, beside other models.
pub async fn spawn(
    lock: &StepLock,
    config: &EngineConfig,
    others: OtherModels,
) -> Result<(Reward, EngineThread), EngineError> {
    let config = config.clone();
    spawn_on(lock, move || RewardModel::load(&config, others)).await
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
                Loop::new(backend, ticket).run(inbox);
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

struct Loop<B> {
    backend: B,
    limits: Limits,
    pace: Pace,
    ticket: Ticket,
}

impl<B: RewardBackend> Loop<B> {
    fn new(backend: B, ticket: Ticket) -> Self {
        Self { limits: backend.limits(), backend, pace: Pace::default(), ticket }
    }

    /// Ends when the last handle is gone.
    fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        while let Some(request) = inbox.blocking_recv() {
            let rewards = request.sequences.iter().map(|tokens| self.reward(tokens, &request));
            let rewards = rewards.collect();
            self.ticket.rest();
            drop(request.reply.send(rewards));
        }
    }

    /// Reads one sequence, step by step: other models of the process compute meanwhile.
    fn reward(&mut self, tokens: &[Token], request: &Request) -> Result<f64, EngineError> {
        let mut n_read = 0;
        while n_read < tokens.len() {
            // A caller that has left wants nothing more.
            if request.reply.is_closed() {
                return Err(EngineError::Stopped);
            }
            // Whoever came before waits for the lock.
            self.ticket.expect_nobody();
            if self.ticket.take(request.priority) {
                n_read += self.step(&tokens[n_read..], n_read, request.priority)?;
            }
        }
        self.backend.reward()
    }

    /// Reads as many of the next tokens as a step may hold. How many of them are read.
    fn step(
        &mut self,
        tokens: &[Token],
        position: usize,
        priority: Priority,
    ) -> Result<usize, EngineError> {
        // Answers of another model may be written meanwhile.
        let n = self.pace.tokens(priority, true, &self.limits).min(tokens.len());
        let interrupt = (!priority.is_urgent()).then(|| self.ticket.interruption());
        let begun = Instant::now();
        let read = self.backend.read(&tokens[..n], position, interrupt);
        let took = begun.elapsed();
        self.ticket.leave();
        let read = read?;
        if read == n {
            self.pace.learn(n, took);
        }
        Ok(read)
    }
}
