//! Draft, assess, critique, refine, assess, choose: one exchange at a time, inside a budget.
//! Parsers of model text are total. Used by `api` (chats), `learn` (exploration, the gate's judge).

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::config::{Agent, Mode, Verifier};
use crate::engine::{
    Class, Engine, EngineError, FinishReason, Generation, Lane, Sampling, TokenPiece,
};
use crate::prompt::{ChatTemplate, Message, PromptError};
use crate::store::{Assessment, Candidate, CandidateId, ExchangeId, Store, StoreError};

/// Everything that reflection needs of the daemon. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reflector {
    engine: Engine,
    store: Store,
    template: Arc<ChatTemplate>,
}

/// One prompt to answer.
#[derive(Clone, Debug)]
pub struct Task {
    /// How to answer and reflect.
    pub agent: Arc<Agent>,
    /// The conversation, its last turn by the user; the agent's system text is put before it when
    /// it has no system turn.
    pub messages: Vec<Message>,
    /// Overrides the agent's default.
    pub mode: Mode,
    /// Sampling of the drafts.
    pub sampling: Sampling,
    /// Answers that the client wants (`n`); in inline mode the best n are served.
    pub n: u32,
    /// Stop strings.
    pub stop: Vec<String>,
    /// Alternatives reported for every token.
    pub top_logprobs: u32,
    /// Shown to the judge only.
    pub reference: Option<String>,
    /// How to check an answer; `None`: the agent's.
    pub verifier: Option<Verifier>,
}

/// What happens while a task runs, in order; ends with `Done` or `Failed`.
#[derive(Debug)]
pub enum Progress {
    /// Admitted: the reply comes from this generation.
    Started {
        /// The weights that answer.
        generation: Generation,
        /// Seed of answer 0.
        seed: u64,
        /// Tokens of the rendered prompt.
        n_prompt: usize,
        /// Of these, tokens whose KV was there already.
        n_cached: usize,
    },
    /// A token of a served answer (modes off, background, explore: as sampled; inline: the chosen
    /// answer's tokens, all at once, after the reflection).
    Token(TokenPiece),
    /// Served answer `index` is complete; `text` is what was held back.
    Finished {
        /// Which answer.
        index: u32,
        /// Held back text.
        text: String,
        /// Why it ended.
        reason: FinishReason,
    },
    /// Inline: something to show as reasoning (scores of the drafts, a critique).
    Reasoning(String),
    /// All is stored.
    Done(Box<Outcome>),
    /// The task failed.
    Failed(ReflectError),
}

/// A stored task.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The receipt; `None` in mode off.
    pub exchange: Option<ExchangeId>,
    /// The served answers, best first.
    pub served: Vec<Candidate>,
    /// All candidates so far (background: the served drafts).
    pub n_candidates: usize,
    /// Tokens generated, drafts to refinements and critiques.
    pub generated_tokens: usize,
    /// Rounds done.
    pub rounds: u32,
    /// Why reflection ended: `off`, `passes`, `no gain`, `budget`, `client left`, `background`.
    pub stopped: &'static str,
}

/// Why a task failed.
#[derive(Debug, thiserror::Error)]
pub enum ReflectError {
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A template does not render.
    #[error(transparent)]
    Prompt(#[from] PromptError),
}

/// What [`Reflector::explore`] did for one prompt.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Explored {
    /// New drafts.
    pub drafts: usize,
    /// New refinements.
    pub refinements: usize,
    /// Candidates of this prompt that now pass every aspect.
    pub positives: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
}

#[expect(clippy::unused_async, clippy::todo, reason = "the bodies follow")]
impl Reflector {
    /// Checks that every agent's level labels are single tokens of this model.
    pub fn new(engine: Engine, store: Store, template: Arc<ChatTemplate>) -> Self {
        Self { engine, store, template }
    }
    /// Runs one task to its end. Dropping the receiver cancels what the client waits for.
    pub async fn run(&self, _task: Task, _progress: mpsc::Sender<Progress>) {
        todo!()
    }
    /// Reflects on an exchange that was answered in background mode.
    pub async fn reflect_later(
        &self,
        _agent: &Agent,
        _exchange: ExchangeId,
    ) -> Result<Explored, ReflectError> {
        todo!()
    }
    /// Fills a stored exchange up to n drafts and m refinements, at class `Explore`.
    pub async fn explore(
        &self,
        _agent: &Agent,
        _exchange: ExchangeId,
        _n: u32,
        _m: u32,
    ) -> Result<Explored, ReflectError> {
        todo!()
    }
    /// Judges one answer by all of the agent's aspects (and its verifier) in the base lane.
    pub async fn assess(
        &self,
        _agent: &Agent,
        _question: &str,
        _response: &str,
        _reference: Option<&str>,
        _verifier: Option<&Verifier>,
        _class: Class,
    ) -> Result<Vec<Assessment>, ReflectError> {
        todo!()
    }
    /// Answers a prompt greedily in one lane, without storing (the gate).
    pub async fn answer(
        &self,
        _agent: &Agent,
        _messages: &[Message],
        _lane: Lane,
        _sampling: Sampling,
        _class: Class,
    ) -> Result<Answer, ReflectError> {
        todo!()
    }
}

/// See [`Reflector::answer`].
#[derive(Clone, Debug)]
pub struct Answer {
    /// The rendered prompt's tokens followed by the answer's.
    pub tokens: Vec<crate::engine::Token>,
    /// Where the answer begins.
    pub from: usize,
    /// Its text.
    pub text: String,
    /// Log-probs of the answer's tokens in that lane.
    pub logprobs: Vec<f32>,
}

/// Weighted mean of the aspects' values, -1 to 1. Aspects of weight 0 do not count.
pub fn scalar(_assessments: &[Assessment]) -> f64 {
    todo!()
}

/// Veto: every aspect that counts (weight above 0) passes, and there is one.
pub fn passes(_assessments: &[Assessment]) -> bool {
    todo!()
}

fn _seam(_: CandidateId) {}
