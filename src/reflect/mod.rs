//! Draft, assess, critique, refine, assess, choose: one exchange at a time, inside a budget.
//! Parsers of model text are total. Used by `api` (chats), `learn` (exploration, the gate's judge).
//!
//! Read `run` first (the main path), then `inline` and `explore`, which drive the steps of
//! `session`. `budget`, `choose`, `pursue` and `verify` (but for its programs) are pure.

mod assess;
mod batch;
mod budget;
mod choices;
mod choose;
mod edit;
mod explore;
mod from_file;
mod inline;
mod judge;
mod prepared;
pub mod pursue;
mod run;
mod session;
#[cfg(test)]
mod tests;
mod trial;
pub mod verify;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use config::{Agent, Mode, PromptLine, ScalarConfig, StopEarly, VERIFIER, Verifier};
use engine::reward::Reward;
use engine::{
    Engine, EngineError, FinishReason, GenerateRequest, Generation, Priority, Sampling, Token,
    TokenPiece, Weights,
};
use prompt::{ChatTemplate, Message, PromptError, Role, is_of_verifier};
use store::{
    Assessment, Author, Candidate, CandidateId, Exchange, ExchangeId, Source, Store, StoreError,
};

use choices::Choices;
use judge::endpoint::Calls;
use judge::model::{RewardJudge, Second};
use prepared::Prepared;
use pursue::Aim;
use verify::command::{CommandError, Programs, Question};

pub use assess::{check_version, is_checked, is_judgeable, passes, question, refusal, scalar};
pub use explore::exploring;
pub use from_file::{ExampleCheck, Named, Shot, refuses};
pub use judge::endpoint::{CallCounts, JudgeError, try_endpoint};
pub use prepared::{conversation, stored};
pub use trial::{Compared, Trial, Yield};

/// How a stored prompt is practised on.
#[derive(Clone, Copy, Debug)]
pub struct Practising<'a> {
    /// What is wanted of it.
    pub aim: Aim,
    /// Examples before the prompt of each draft.
    pub shots: &'a [Shot],
    /// Finds out whether refinements pay; `None`: they are made.
    pub trial: Option<&'a Trial>,
    /// Of drafts and refinements.
    pub sampling: Sampling,
}

/// Everything that reflection needs of the daemon. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reflector {
    engine: Engine,
    store: Store,
    template: Arc<ChatTemplate>,
    /// A second model that judges, for agents that name one.
    second: Option<Second>,
    /// A reward model, for agents that name one.
    reward: Option<RewardJudge>,
    /// How asking endpoints has gone.
    calls: Arc<Calls>,
    /// Which aspects judge a prompt, where the judge chooses.
    choices: Arc<Choices>,
    /// The owner's programs that check answers.
    programs: Arc<Programs>,
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
    /// Sound, and waiting for the engine to admit it. What fails before that was wrong with the task.
    Queued,
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
    /// All is stored and sent.
    Done(Box<Outcome>),
    /// The task failed.
    Failed(ReflectError),
}

/// A finished task.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The receipt; `None` in mode off, and when the client left before any answer was complete.
    pub exchange: Option<ExchangeId>,
    /// The served answers, best first; empty in mode off and when the client has left.
    pub served: Vec<Candidate>,
    /// All candidates so far (background: the served drafts).
    pub n_candidates: usize,
    /// Tokens generated, drafts to refinements and critiques.
    pub generated_tokens: usize,
    /// Rounds done.
    pub rounds: u32,
    /// Why reflection ended: `off`, `background` and `explore` (it follows later or never),
    /// `passes`, `no gain`, `budget`, `client left`.
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
    /// The task's verifier cannot work.
    #[error(transparent)]
    Verifier(#[from] verify::VerifierError),
    /// The judge's endpoint cannot be asked.
    #[error(transparent)]
    Judge(#[from] JudgeError),
    /// The judge cannot choose the aspects by which answers to a prompt are judged.
    #[error("the prompt is too long for the judge to choose aspects for it, or gets no level")]
    Unjudgeable,
    /// A verifier's program gives no verdict.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A model that an agent names is not loaded.
    #[error("the model of `{0}` is not loaded; restart the daemon")]
    NoModel(&'static str),
}

impl ReflectError {
    /// Whether a chat template does not work, with these messages or at all.
    pub fn is_of_chat_template(&self) -> bool {
        matches!(self, Self::Prompt(PromptError::Refused(_) | PromptError::Unusable(_)))
    }
}

/// Renders a first turn to an agent, as [`Reflector::run`] would.
pub fn try_chat(agent: &Agent, template: &ChatTemplate) -> Result<(), PromptError> {
    let turn = Message { role: Role::User, content: "?".into() };
    try_conversation(agent, template, &[turn])
}

/// Renders a conversation with an agent, as [`Reflector::run`] would.
pub fn try_conversation(
    agent: &Agent,
    template: &ChatTemplate,
    messages: &[Message],
) -> Result<(), PromptError> {
    template.render(&conversation(agent, messages)).map(drop)
}

/// What [`Reflector::explore`] did for one prompt.
#[derive(Clone, Copy, Debug, Default)]
pub struct Explored {
    /// New drafts.
    pub drafts: usize,
    /// New refinements.
    pub refinements: usize,
    /// Answers, new or not judged before, that pass every aspect.
    pub positives: usize,
    /// Tokens generated, critiques too.
    pub generated_tokens: usize,
    /// Why the prompt was left.
    pub left: Option<pursue::Reason>,
}

impl Explored {
    /// Adds what else was done.
    pub fn add(&mut self, other: Self) {
        self.drafts += other.drafts;
        self.refinements += other.refinements;
        self.positives += other.positives;
        self.generated_tokens += other.generated_tokens;
    }
}

impl Reflector {
    /// The template is the served model's own.
    pub fn new(engine: Engine, store: Store, template: Arc<ChatTemplate>) -> Self {
        let (calls, choices, programs) = (Arc::default(), Arc::default(), Arc::default());
        Self { engine, store, template, second: None, reward: None, calls, choices, programs }
    }

    /// The same with a second model that judges for the agents that name it.
    #[must_use]
    pub fn with_judge(self, engine: Engine, template: Arc<ChatTemplate>) -> Self {
        Self { second: Some(Second { engine, template }), ..self }
    }

    /// The same with a reward model for the agents that name it.
    #[must_use]
    pub fn with_reward(self, reward: Reward, template: Arc<ChatTemplate>) -> Self {
        Self { reward: Some(RewardJudge { reward, template }), ..self }
    }

    /// The second model's engine, if there is one.
    pub fn judge_engine(&self) -> Option<&Engine> {
        self.second.as_ref().map(|second| &second.engine)
    }

    /// Where levels are read, if there is a context for that: of the second model, if it has one, else of
    /// the served one.
    pub fn judge_context(&self) -> Option<&Engine> {
        self.judge_engine().and_then(Engine::judge_context).or(self.engine.judge_context())
    }

    /// How long nobody has waited for words, of the served model or of its judge.
    pub fn quiet(&self) -> Duration {
        let models = [&self.engine].into_iter().chain(self.judge_engine());
        let engines = models.flat_map(|model| [model, model.judge()]);
        let quiet = engines.map(|engine| engine.stats().quiet_ms).min();
        Duration::from_millis(quiet.unwrap_or(0))
    }

    /// How asking endpoints has gone since the start.
    pub fn endpoint_calls(&self) -> CallCounts {
        self.calls.counts()
    }

    /// Checks what only the loaded models can tell: the agent's templates render, and its level
    /// labels are three different single tokens of the judge.
    pub fn check_agent(&self, agent: &Agent) -> Result<(), ReflectError> {
        try_chat(agent, &self.template)?;
        self.check_judge(agent)?;
        self.template.render(&agent.prompts.refine("?", "!", "!")?)?;
        agent.verifier.as_ref().map(verify::Check::new).transpose()?;
        Ok(())
    }

    /// Runs one task to its end. Dropping the receiver cancels what the client waits for.
    pub async fn run(&self, task: Task, progress: mpsc::Sender<Progress>) {
        let end = match run::run(self, &task, &progress).await {
            Ok(outcome) => Progress::Done(Box::new(outcome)),
            Err(error) => Progress::Failed(error),
        };
        if progress.send(end).await.is_err() {
            tracing::debug!(agent = task.agent.name, "The client left before the end.");
        }
    }

    /// Reflects on an exchange that was answered in background mode: assesses what was served and
    /// fills up to the agent's drafts and refinements, at priority `Background`.
    pub async fn reflect_later(
        &self,
        agent: &Agent,
        exchange: ExchangeId,
    ) -> Result<Explored, ReflectError> {
        let budget = &agent.reflection;
        let goal = explore::Goal {
            aim: Aim {
                drafts: budget.drafts,
                refinements: budget.refinements,
                stop_early: StopEarly { enough: 0, give_up: 0 },
                anew: false,
            },
            shots: &[],
            sampling: explore::as_in_chats(agent),
            refine_temperature: budget.refine_temperature,
            tokens: usize::try_from(budget.tokens).unwrap_or(usize::MAX),
            priority: Priority::Background,
        };
        explore::fill(self, agent, exchange, goal, None, &|_| {}).await
    }

    /// Fills a stored exchange up to an aim, at priority `Explore`. Tells what was done as soon as it
    /// is stored; the sum is what comes back.
    pub async fn explore(
        &self,
        agent: &Agent,
        exchange: ExchangeId,
        aim: Aim,
        told: &(dyn Fn(Explored) + Sync),
    ) -> Result<Explored, ReflectError> {
        let sampling = exploring(agent, false);
        let how = Practising { aim, shots: &[], trial: None, sampling };
        self.practise(agent, exchange, how, told).await
    }

    /// The same with examples before the prompt of each draft, and with drafts in the place of
    /// refinements where a trial wants that. What is stored, judged and trained on is the prompt
    /// without examples.
    pub async fn practise(
        &self,
        agent: &Agent,
        exchange: ExchangeId,
        how: Practising<'_>,
        told: &(dyn Fn(Explored) + Sync),
    ) -> Result<Explored, ReflectError> {
        let Practising { aim, shots, trial, sampling } = how;
        let goal = explore::Goal {
            aim,
            tokens: usize::MAX,
            priority: Priority::Explore,
            shots,
            sampling,
            refine_temperature: sampling.temperature,
        };
        explore::fill(self, agent, exchange, goal, trial, told).await
    }

    /// Stores a prompt without answering it, for [`Reflector::explore`].
    pub async fn remember(
        &self,
        agent: &Agent,
        line: PromptLine,
    ) -> Result<ExchangeId, ReflectError> {
        let prepared = Prepared::new(self, agent, &line.messages(), line.verifier)?;
        let exchange = prepared.into_exchange(agent, Source::Explore, line.reference);
        Ok(self.store.record_exchange(exchange, Vec::new(), None).await?.0)
    }

    /// Judges one answer by all of the agent's aspects and the verifier (`None`: the agent's) in
    /// the base generation. Empty when the answer is too long to be judged.
    #[expect(
        clippy::too_many_arguments,
        reason = "the gate has them apart; a struct would be used once"
    )]
    pub async fn assess(
        &self,
        agent: &Agent,
        question: &str,
        response: &str,
        reference: Option<&str>,
        verifier: Option<&Verifier>,
        priority: Priority,
    ) -> Result<Vec<Assessment>, ReflectError> {
        let verification = assess::Verification::new(agent, verifier, reference)?;
        let turn = Message { role: Role::User, content: question.to_owned() };
        let mut judge = judge::Judge::new(self, agent, std::slice::from_ref(&turn), priority)?
            .with(reference, verification);
        judge.choose().await?;
        Ok(judge.assess(&[response]).await?.pop().unwrap_or_default())
    }

    /// Judges several answers to a stored prompt in one request, with its reference and verifier, by
    /// the aspects that the prompt's answers have been judged by so far.
    pub async fn assess_all(
        &self,
        agent: &Agent,
        exchange: &Exchange,
        answers: &[&str],
        priority: Priority,
    ) -> Result<Vec<Vec<Assessment>>, ReflectError> {
        let reference = exchange.reference.as_deref();
        let verifier = exchange.verifier.as_ref();
        let verification = assess::Verification::new(agent, verifier, reference)?;
        let judge = judge::Judge::new(self, agent, &exchange.messages, priority)?
            .with(reference, verification)
            .with_aspects(&explore::aspects_so_far(exchange));
        judge.assess(answers).await
    }

    /// What the program that decides says of an answer; `None`: there is none. No judge is asked.
    pub async fn check(
        &self,
        agent: &Agent,
        exchange: &Exchange,
        answer: &str,
    ) -> Result<Option<bool>, ReflectError> {
        let reference = exchange.reference.as_deref();
        let verifier = exchange.verifier.as_ref();
        let Some(check) = assess::Verification::new(agent, verifier, reference)? else {
            return Ok(None);
        };
        let prompt = &question(&exchange.messages);
        let said = check.assess(&self.programs, Question { prompt, answer, reference }).await?;
        Ok(said.iter().find(|it| it.aspect == VERIFIER).map(|it| it.passes))
    }

    /// What counts for these answers to a stored prompt, which were checked by another version than the one
    /// of today: what the judge has said, and the word of what checks them today. An answer of which nothing
    /// counts any more stays so where others are asked too: that word alone would count as the word of all.
    pub async fn check_again(
        &self,
        agent: &Agent,
        exchange: &Exchange,
        answers: &[CandidateId],
    ) -> Result<Vec<(CandidateId, Vec<Assessment>)>, ReflectError> {
        let (verifier, reference) = (exchange.verifier.as_ref(), exchange.reference.as_deref());
        let check = assess::Verification::new(agent, verifier, reference)?;
        let prompt = &question(&exchange.messages);
        let asks_others =
            !agent.aspects.is_empty() || matches!(agent.scalar, ScalarConfig::Reward(_));
        let is_open =
            |it: &Candidate| asks_others && it.author == Author::Model && it.assessments.is_empty();
        let mut again = Vec::new();
        let named = |it: &&Candidate| answers.contains(&it.id) && !is_open(it);
        for candidate in exchange.candidates.iter().filter(named) {
            let said = &candidate.assessments;
            let by_judge = said.iter().filter(|it| !is_of_verifier(&it.aspect));
            let mut said: Vec<Assessment> = by_judge.cloned().collect();
            if let Some(check) = &check {
                let answer = candidate.text.as_str();
                said.extend(if candidate.is_example() {
                    // No program is asked about them.
                    check.assess_by_itself(answer).unwrap_or_default()
                } else {
                    let asked = Question { prompt, answer, reference };
                    check.assess(&self.programs, asked).await?
                });
            }
            assess::weigh_reward(&mut said);
            again.push((candidate.id, said));
        }
        Ok(again)
    }

    /// A rendered conversation as tokens of the served model.
    fn tokens(&self, messages: &[Message]) -> Result<Vec<Token>, PromptError> {
        Ok(self.engine.vocabulary().tokenize(&self.template.render(messages)?))
    }

    /// Answers a prompt in one generation, without judging or storing (the gate).
    pub async fn answer(
        &self,
        agent: &Agent,
        messages: &[Message],
        weights: Weights,
        sampling: Sampling,
        priority: Priority,
    ) -> Result<Answer, ReflectError> {
        let prompt = self.tokens(&conversation(agent, messages))?;
        let request = GenerateRequest {
            prompt: prompt.clone(),
            n: 1,
            sampling,
            stop: Vec::new(),
            top_logprobs: 0,
            prediction: Vec::new(),
            weights,
            priority,
        };
        let mut batch = batch::Waiting::queue(&self.engine, request).await?.started().await?;
        while batch.next().await?.is_some() {}
        let samples = batch.into_samples();
        let sample = samples.first().ok_or(EngineError::Stopped)?;
        let from = prompt.len();
        let tokens = [prompt, sample.tokens()].concat();
        let (text, logprobs, finish) = (sample.text(), sample.logprobs(), sample.finish);
        Ok(Answer { tokens, from, text, logprobs, finish })
    }
}

/// See [`Reflector::answer`].
#[derive(Clone, Debug)]
pub struct Answer {
    /// The rendered prompt's tokens followed by the answer's.
    pub tokens: Vec<Token>,
    /// Where the answer begins.
    pub from: usize,
    /// Its text.
    pub text: String,
    /// Log-probs of the answer's tokens in that generation.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub finish: FinishReason,
}
