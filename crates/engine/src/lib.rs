//! The model: one owner thread with one llama.cpp context, and the handle that everyone else has.
//! Only `llama.rs` names llama.cpp. Used by `reflect`, `learn`, `api` and `daemon`.
//!
//! A request is pinned to a *generation* (base model = 0, each promoted adapter is one more) when
//! it is admitted, and its [`Started`] message names it. Dropping a receiver cancels the request.

mod adapters;
mod core;
mod draft;
pub mod llama;
mod owner;
pub mod probe;
pub mod reward;
pub mod sample;
mod softmax;
pub mod step_lock;
mod stream;
#[cfg(test)]
mod tests;
pub mod text;
mod thread;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

pub use inference::{
    EngineConfig, EngineError, FinishReason, FlashAttention, Generation, KvCache, ModelInfo,
    Sampling, TextPart, Token, Vocabulary, backend,
};
pub use owner::EngineThread;
use probe::Prober;
use step_lock::StepLock;
use stream::Reply;
pub use thread::{spawn, spawn_beside, spawn_on, spawn_with};

/// Which weights a request wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Weights {
    /// Whatever generation is active when the request is admitted.
    Active,
    /// This one; an error when it is not loaded.
    Generation(Generation),
}

/// A generation that gets a share of the chats before all of them go there.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Canary {
    /// Its generation is loaded.
    pub generation: Generation,
    /// Of the requests of priority `Chat` and `Inline`, 0 to 1.
    pub share: f64,
    /// Of the choices, so that they can be repeated.
    pub seed: u64,
}

/// How urgent a request is, most urgent first. A lower priority waits while a higher one has work.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Priority {
    /// Somebody waits for the words.
    Chat,
    /// Somebody waits for the reflected answer.
    Inline,
    /// The held-out comparison.
    Gate,
    /// Reflection after the answer.
    Background,
    /// Idle-time exploration.
    Explore,
}

impl Priority {
    /// Whether somebody waits for the words.
    fn is_urgent(self) -> bool {
        matches!(self, Self::Chat | Self::Inline)
    }
}

/// Sample `n` continuations of one prompt; they share its KV.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// The rendered prompt, not empty.
    pub prompt: Vec<Token>,
    /// Continuations, at least 1. Number i uses seed + i.
    pub n: u32,
    /// How to sample.
    pub sampling: Sampling,
    /// A continuation ends before the first of these strings.
    pub stop: Vec<String>,
    /// Alternatives to report for every token; 0 reports none.
    pub top_logprobs: u32,
    /// Text of which the answer may copy much, as a refinement does of its parent; empty: none. It
    /// changes how fast the answer comes, not what it says.
    pub prediction: Vec<Token>,
    /// Which weights.
    pub weights: Weights,
    /// How urgent.
    pub priority: Priority,
}

/// What a generation was pinned to at admission, and then its events.
#[derive(Debug)]
pub struct Started {
    /// The weights that answer; they do not change until the request ends.
    pub generation: Generation,
    /// The seed of continuation 0.
    pub seed: u64,
    /// Tokens of the prompt whose KV was there already.
    pub n_cached: usize,
    /// Ends after one [`Piece::Finished`] per continuation, or early with [`Piece::Failed`].
    pub pieces: mpsc::Receiver<Piece>,
}

/// A generation that is sound and waits to be admitted. Dropping it cancels the request.
#[derive(Debug)]
pub struct Queued {
    started: oneshot::Receiver<Result<Started, EngineError>>,
    /// Among the requests that wait.
    _place: OwnedSemaphorePermit,
}

impl Queued {
    /// Resolves when it is admitted, or has failed.
    pub async fn started(self) -> Result<Started, EngineError> {
        self.started.await.map_err(|_| EngineError::Stopped)?
    }
}

/// One event of a generation.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// A sampled token. The end-of-generation token is reported too (with empty text), because
    /// training needs it; tokens that complete a stop string are not.
    Token(TokenPiece),
    /// Continuation `index` has ended.
    Finished {
        /// Which continuation.
        index: u32,
        /// Text that was held back (unfinished UTF-8 as U+FFFD, or a stop string that did not come).
        text: String,
        /// Why.
        reason: FinishReason,
    },
    /// The whole request failed; nothing follows.
    Failed(EngineError),
}

/// A sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenPiece {
    /// Which continuation.
    pub index: u32,
    /// Its id.
    pub token: Token,
    /// Text that is certain now; empty while a character or a stop string may still be unfinished.
    pub text: String,
    /// The bytes of this token alone.
    pub bytes: Vec<u8>,
    /// Log-prob under the model itself (temperature 1, nothing cut off).
    pub logprob: f32,
    /// The most likely tokens with their log-probs and bytes, likeliest first.
    pub top: Vec<(Token, f32, Vec<u8>)>,
}

/// Read the distribution over a few label tokens after each prompt. Nothing is generated; prompts
/// that begin alike share their KV.
#[derive(Clone, Debug)]
pub struct ScoreRequest {
    /// Rendered prompts, none empty.
    pub prompts: Vec<Vec<Token>>,
    /// The labels, at least two, all different.
    pub labels: Vec<Token>,
    /// Which weights.
    pub weights: Weights,
    /// How urgent.
    pub priority: Priority,
}

/// The labels' distribution after one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelScores {
    /// In the order of the request's labels; sums to 1.
    pub probabilities: Vec<f32>,
    /// The labels' share of the whole distribution: near 0 means that the model did not
    /// understand that it should answer with a label.
    pub mass: f32,
}

/// Log-probs of given tokens.
#[derive(Clone, Debug)]
pub struct LogprobRequest {
    /// (tokens, index of the first token to score, at least 1).
    pub sequences: Vec<(Vec<Token>, usize)>,
    /// Which weights.
    pub weights: Weights,
    /// How urgent.
    pub priority: Priority,
}

/// Live numbers of the engine.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EngineStats {
    /// New requests go here.
    pub active: Generation,
    /// But for a share of the chats.
    pub canary: Option<Canary>,
    /// Loaded generations with their running sequences.
    pub generations: Vec<(Generation, usize)>,
    /// Requests that wait for room.
    pub queued: usize,
    /// Sequences in the batch.
    pub running: usize,
    /// Sequences at once at most.
    pub sequences: usize,
    /// KV cells in use, and in all.
    pub cells_used: usize,
    /// See `cells_used`.
    pub cells: usize,
    /// Memory of finished sequences that wait outside the context for who begins alike.
    pub host_cache_bytes: usize,
    /// Decode calls so far.
    pub steps: u64,
    /// Steps of idle work that were broken off because somebody came.
    pub interrupted_steps: u64,
    /// Prompt tokens evaluated so far.
    pub prompt_tokens: u64,
    /// Prompt tokens that were not evaluated because their KV was shared or cached.
    pub cached_tokens: u64,
    /// Tokens sampled so far.
    pub generated_tokens: u64,
    /// Drafted tokens, evaluated ahead, from text that an answer may copy.
    pub drafted_tokens: u64,
    /// Of these, those that the model then said.
    pub right_drafts: u64,
    /// Times a sequence gave way to others, to go on later.
    pub preemptions: u64,
    /// Milliseconds since the loop last went round; zero while it waits for something to do.
    pub last_beat_ms: u64,
    /// How long nothing of priority `Chat` or `Inline` has run; zero while some does.
    pub quiet_ms: u64,
}

/// The handle: small, cloneable, the only way to the model.
#[derive(Clone, Debug)]
pub struct Engine {
    commands: mpsc::Sender<Command>,
    /// Each bounds the requests of its kind that wait in the thread, so that idle-time work never
    /// takes a chat's place in the queue.
    urgent: Arc<Semaphore>,
    patient: Arc<Semaphore>,
    /// A chat breaks off a step of idle work, in whichever engine.
    lock: StepLock,
    shared: Arc<Shared>,
    /// Looks adapters over before the thread loads them; `None`: the caller knows them.
    prober: Option<Arc<Prober>>,
    /// The base once more, in a context of its own.
    judge: Option<Arc<Engine>>,
}

/// What the thread and its handles both see.
#[derive(Debug)]
struct Shared {
    info: ModelInfo,
    vocabulary: Arc<dyn Vocabulary>,
    most_copies: u64,
    is_deterministic: bool,
    pulse: std::sync::Mutex<Pulse>,
}

/// The thread's last sign of life.
#[derive(Debug)]
struct Pulse {
    stats: EngineStats,
    /// `None` while the loop waits for something to do.
    beat: Option<Instant>,
    /// `None` while somebody waits for words.
    quiet_since: Option<Instant>,
}

impl Pulse {
    fn new(stats: EngineStats) -> Self {
        Self { stats, beat: None, quiet_since: Some(Instant::now()) }
    }

    fn beat(&mut self, stats: EngineStats, is_working: bool, is_urgent: bool, now: Instant) {
        self.stats = stats;
        self.beat = is_working.then_some(now);
        self.quiet_since = if is_urgent { None } else { self.quiet_since.or(Some(now)) };
    }

    fn read(&self, now: Instant) -> EngineStats {
        let age = |since: Option<Instant>| {
            let age = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
            u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
        };
        let stats = self.stats.clone();
        EngineStats { last_beat_ms: age(self.beat), quiet_ms: age(self.quiet_since), ..stats }
    }
}

/// Too many requests wait.
fn overloaded() -> EngineError {
    EngineError::Overloaded { retry_after: Duration::from_secs(1) }
}

/// One message to the engine thread.
#[derive(Debug)]
enum Command {
    /// It is told first that the request is sound, and later that it is admitted.
    Generate(GenerateRequest, Reply<()>, Reply<Started>, tracing::Span),
    Score(ScoreRequest, Reply<Vec<LabelScores>>, tracing::Span),
    Logprobs(LogprobRequest, Reply<Vec<Vec<f32>>>, tracing::Span),
    LoadAdapter(Generation, PathBuf, Reply<()>),
    Activate(Generation, Reply<()>),
    SetCanary(Option<Canary>, Reply<()>),
    Retire(Generation, Reply<()>),
}

impl Engine {
    /// Facts about the served model.
    pub fn info(&self) -> &ModelInfo {
        &self.shared.info
    }
    /// Text to tokens and back.
    pub fn vocabulary(&self) -> &Arc<dyn Vocabulary> {
        &self.shared.vocabulary
    }
    /// Bytes of host memory that copies of cells may take.
    pub fn most_copies(&self) -> u64 {
        self.shared.most_copies
    }
    /// Whether what it says depends on the request alone, never on what else runs.
    pub fn is_deterministic(&self) -> bool {
        self.shared.is_deterministic
    }
    /// Where the base's levels are read: in its context for judgements, where it has one, else in the only
    /// one. Adapters are loaded in the latter alone.
    pub fn judge(&self) -> &Self {
        self.judge_context().unwrap_or(self)
    }
    /// The base once more, in a context of its own for judgements, if it has one.
    pub fn judge_context(&self) -> Option<&Self> {
        self.judge.as_deref()
    }
    /// Live numbers.
    pub fn stats(&self) -> EngineStats {
        let pulse = self.shared.pulse.lock().expect("nobody panics while holding the pulse");
        pulse.read(Instant::now())
    }
    /// Starts a generation; resolves when it is admitted. Full queue: `Overloaded` at once for
    /// `Chat` and `Inline`; other priorities wait for room.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Started, EngineError> {
        self.queue(request).await?.started().await
    }
    /// The same, but resolves when the request is found to be sound, or to be wrong, which is at the
    /// end of the step that is under way.
    pub async fn queue(&self, request: GenerateRequest) -> Result<Queued, EngineError> {
        let priority = request.priority;
        let place = self.place(priority).await?;
        let (reply, started) = oneshot::channel();
        self.send(Some(priority), |checked| {
            Command::Generate(request, checked, reply, tracing::Span::current())
        })
        .await?;
        Ok(Queued { started, _place: place })
    }
    /// Reads label distributions.
    pub async fn score(&self, request: ScoreRequest) -> Result<Vec<LabelScores>, EngineError> {
        let priority = request.priority;
        self.ask(Some(priority), |reply| Command::Score(request, reply, tracing::Span::current()))
            .await
    }
    /// Reads log-probs of given tokens.
    pub async fn logprobs(&self, request: LogprobRequest) -> Result<Vec<Vec<f32>>, EngineError> {
        let priority = request.priority;
        self.ask(Some(priority), |reply| {
            Command::Logprobs(request, reply, tracing::Span::current())
        })
        .await
    }
    /// The same handle, whose adapters are tried in a child process before they are loaded.
    #[must_use]
    pub fn with_prober(self, prober: Prober) -> Self {
        Self { prober: Some(Arc::new(prober)), ..self }
    }
    /// Loads a checked adapter as a generation; requests reach it by [`Weights::Generation`].
    pub async fn load_adapter(
        &self,
        generation: Generation,
        path: PathBuf,
    ) -> Result<(), EngineError> {
        if let Some(prober) = &self.prober {
            prober.adapter(self.info(), &path).await?;
        }
        self.ask(None, |reply| Command::LoadAdapter(generation, path, reply)).await
    }
    /// Requests for [`Weights::Active`] admitted from now on go to this generation. Running ones stay.
    pub async fn activate(&self, generation: Generation) -> Result<(), EngineError> {
        self.ask(None, |reply| Command::Activate(generation, reply)).await
    }
    /// Sends a share of the chats admitted from now on to a loaded generation; `None`: no longer.
    pub async fn set_canary(&self, canary: Option<Canary>) -> Result<(), EngineError> {
        self.ask(None, |reply| Command::SetCanary(canary, reply)).await
    }
    /// Takes no new requests on a generation and resolves when its last one has ended and the adapter is
    /// freed. The active generation, the canary and the base are refused.
    pub async fn retire(&self, generation: Generation) -> Result<(), EngineError> {
        self.ask(None, |reply| Command::Retire(generation, reply)).await
    }

    async fn ask<T>(
        &self,
        priority: Option<Priority>,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, EngineError> {
        // Held until the answer, that is while the request waits in the thread's queue.
        let _place = match priority {
            Some(priority) => Some(self.place(priority).await?),
            None => None,
        };
        self.send(priority, command).await
    }

    /// A place among the requests that wait.
    async fn place(&self, priority: Priority) -> Result<OwnedSemaphorePermit, EngineError> {
        if priority.is_urgent() {
            return Arc::clone(&self.urgent).try_acquire_owned().map_err(|_| overloaded());
        }
        let place = Arc::clone(&self.patient).acquire_owned().await;
        place.map_err(|_| EngineError::Stopped)
    }

    /// Tells the thread something and waits for its answer.
    async fn send<T>(
        &self,
        priority: Option<Priority>,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, EngineError> {
        let (reply, answer) = oneshot::channel();
        let command = command(reply);
        if priority.is_some_and(Priority::is_urgent) {
            self.commands.try_send(command).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => overloaded(),
                mpsc::error::TrySendError::Closed(_) => EngineError::Stopped,
            })?;
            self.lock.interrupt();
        } else {
            self.commands.send(command).await.map_err(|_| EngineError::Stopped)?;
        }
        answer.await.map_err(|_| EngineError::Stopped)?
    }
}
