//! What goes into the store and what comes out: plain data, no behaviour but arithmetic on one row.
//! Used by everybody who has a [`super::Store`].

use std::path::PathBuf;

use rusqlite::types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::{Deserialize, Serialize};

use inference::{FinishReason, Generation, Sampling, Token};
use prompt::{Message, Verifier};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub i64);
        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(formatter)
            }
        }
        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                self.0.to_sql()
            }
        }
        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                FromSql::column_result(value).map(Self)
            }
        }
    };
}
id!(
    /// A row of `exchanges`: one prompt with its candidates. Clients see it as the receipt.
    ExchangeId
);
id!(
    /// A row of `candidates`.
    CandidateId
);
id!(
    /// A row of `runs`.
    RunId
);

/// Where an exchange came from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A chat on the socket.
    Chat,
    /// A prompt file given to `explore`.
    Explore,
}

/// Who wrote a critique.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Critic {
    /// The judge, who was asked for it.
    Judge,
    /// A verifier: its reason is the critique.
    Verifier,
}

/// Who wrote an answer.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Author {
    /// The model: sampled by its generation.
    Model,
    /// The owner: an edit of the parent, or an example, which has none. The log-probs of an edit are
    /// those that the generation gives to the text, those of an example are NaN; the sampling says
    /// nothing.
    Owner,
}

/// An example that a verifier names, and that nobody wrote.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    /// The prompt's verifier names it.
    Now,
    /// It named it once: what was learned from it is traced, and it is an example no more.
    Before,
}

/// A prompt, not yet stored.
#[derive(Clone, Debug, PartialEq)]
pub struct NewExchange {
    /// The agent's name.
    pub agent: String,
    /// Where it came from.
    pub source: Source,
    /// The conversation, its last turn by the user.
    pub messages: Vec<Message>,
    /// The rendered prompt.
    pub prompt_tokens: Vec<Token>,
    /// Shown to the judge only.
    pub reference: Option<String>,
    /// How to check an answer.
    pub verifier: Option<Verifier>,
    /// By which aspects its answers are judged, where the judge chose them.
    pub aspect_choice: Option<ChosenAspects>,
}

/// The aspects that the judge found the most relevant for a prompt.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ChosenAspects {
    /// Who chose, as in [`Assessment::judge`].
    pub judge: String,
    /// Names, in the agent's order.
    pub chosen: Vec<String>,
    /// All that could be chosen, so that the choice can be traced.
    pub relevance: Vec<Relevance>,
}

/// How much one aspect matters for a prompt.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Relevance {
    /// The aspect's name.
    pub aspect: String,
    /// p(much) - p(hardly), between -1 and 1.
    pub value: f64,
    /// The labels' share of the whole distribution.
    pub mass: f32,
}

/// An answer, not yet stored.
#[derive(Clone, Debug, PartialEq)]
pub struct NewCandidate {
    /// Who wrote it.
    pub author: Author,
    /// Index into the same call's list, or an earlier candidate; `None`: a draft.
    pub parent: Option<Parent>,
    /// The weights that wrote it.
    pub generation: Generation,
    /// Its text.
    pub text: String,
    /// Sampled tokens with the end token, if one came.
    pub tokens: Vec<Token>,
    /// One for each token, under the model itself.
    pub logprobs: Vec<f32>,
    /// How it was sampled; `seed` is always set.
    pub sampling: Sampling,
    /// Why it ended.
    pub finish: FinishReason,
    /// The critique that a refinement answers.
    pub critique: Option<String>,
    /// Who wrote the critique; there is one where there is a critique.
    pub critic: Option<Critic>,
    /// The examples that stood before the prompt, as turns, when it was sampled.
    pub shots: Vec<CandidateId>,
    /// What the judge and the verifiers said.
    pub assessments: Vec<Assessment>,
}

/// What a prompt names to check answers by.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptCheck {
    /// The prompt.
    pub exchange: ExchangeId,
    /// An answer that is known to be right.
    pub reference: Option<String>,
    /// The program.
    pub verifier: Option<Verifier>,
}

/// How answers to a prompt are checked today.
#[derive(Clone, Debug, PartialEq)]
pub struct TodaysCheck {
    /// The prompt.
    pub exchange: ExchangeId,
    /// The version of its verifier or reference; `None`: nothing checks them.
    pub version: Option<String>,
    /// What that word counts.
    pub weight: f64,
    /// Nothing but examples is checked again.
    pub for_examples_alone: bool,
}

/// A prompt that a file names.
#[derive(Clone, Debug, PartialEq)]
pub struct FilePrompt {
    /// The prompt.
    pub exchange: NewExchange,
    /// The answer that the owner wants: by [`Author::Owner`], without a parent.
    pub example: Option<NewCandidate>,
    /// A prompt that is stored already keeps its reference and verifier.
    pub keeps_check: bool,
}

/// What became of a prompt of a file.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// It was not there.
    New,
    /// Its example, reference or verifier is another one now.
    Changed,
    /// It was there, just so.
    Known,
}

/// An example of the owner with its prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct ExampleRow {
    /// Whose.
    pub agent: String,
    /// The prompt.
    pub exchange: ExchangeId,
    /// The answer.
    pub candidate: CandidateId,
    /// The conversation.
    pub messages: Vec<Message>,
    /// The rendered prompt.
    pub prompt: Vec<Token>,
    /// The answer's text.
    pub text: String,
    /// The answer's tokens, with the end of turn.
    pub tokens: Vec<Token>,
}

/// Which candidate a refinement revises.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Parent {
    /// Stored before.
    Stored(CandidateId),
    /// Position in the same list; smaller than the refinement's own.
    Index(usize),
}

/// One candidate judged by one aspect.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Assessment {
    /// The aspect's name, or `verifier`, or `verifier.` and the part of one, or `reward`.
    pub aspect: String,
    /// Version of the rubric.
    pub rubric_version: String,
    /// Who judged: `generation 0 of <model sha256, 12 digits>` for the served model, `model
    /// <sha256>` for another, `<model> at <endpoint>`, `reward model <sha256>` or
    /// `verifier:<kind>`.
    pub judge: String,
    /// p(-1), p(0), p(+1).
    pub levels: [f32; 3],
    /// The labels' share of the whole distribution; 1 for verifiers.
    pub mass: f32,
    /// Weight in the scalar; 0 for verifiers that only measure.
    pub weight: f64,
    /// Whether the level meets the agent's threshold.
    pub passes: bool,
    /// Why a verifier refuses the answer; it never names what was expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Assessment {
    /// What it was judged by.
    pub fn standard(&self) -> Standard {
        Standard {
            aspect: self.aspect.clone(),
            judge: self.judge.clone(),
            rubric_version: self.rubric_version.clone(),
        }
    }
    /// p(+1) - p(-1), between -1 and 1.
    pub fn value(&self) -> f64 {
        f64::from(self.levels[2]) - f64::from(self.levels[0])
    }
}

/// A stored exchange with its candidates.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exchange {
    /// Its id.
    pub id: ExchangeId,
    /// Unix milliseconds.
    pub created_ms: i64,
    /// The agent's name.
    pub agent: String,
    /// Where it came from.
    pub source: Source,
    /// The conversation.
    pub messages: Vec<Message>,
    /// The rendered prompt.
    #[serde(skip)]
    pub prompt_tokens: Vec<Token>,
    /// Shown to the judge only.
    pub reference: Option<String>,
    /// How to check an answer.
    pub verifier: Option<Verifier>,
    /// By which aspects its answers are judged, where the judge chose them.
    pub aspect_choice: Option<ChosenAspects>,
    /// The one that the client got.
    pub served: Option<CandidateId>,
    /// In order of creation.
    pub candidates: Vec<Candidate>,
    /// The owner's ratings and edits, oldest first; each names its answer, unless none was served.
    pub feedback: Vec<Feedback>,
}

/// A stored answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// Its id.
    pub id: CandidateId,
    /// Who wrote it.
    pub author: Author,
    /// `None`: a draft.
    pub parent: Option<CandidateId>,
    /// The weights that wrote it.
    pub generation: Generation,
    /// Its text.
    pub text: String,
    /// Sampled tokens with the end token, if one came.
    #[serde(skip)]
    pub tokens: Vec<Token>,
    /// One for each token.
    #[serde(skip)]
    pub logprobs: Vec<f32>,
    /// How it was sampled.
    pub sampling: Sampling,
    /// Why it ended.
    pub finish: FinishReason,
    /// The critique that a refinement answers.
    pub critique: Option<String>,
    /// Who wrote the critique; there is one where there is a critique.
    pub critic: Option<Critic>,
    /// The examples that stood before the prompt, as turns, when it was sampled.
    pub shots: Vec<CandidateId>,
    /// A verifier names it; `None`: it is anything else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<Expected>,
    /// What the judge and the verifiers said.
    pub assessments: Vec<Assessment>,
}

impl Candidate {
    /// Whether the owner wrote it and it revises nothing.
    pub fn is_example(&self) -> bool {
        self.author == Author::Owner && self.parent.is_none()
    }
}

/// How far a stored prompt is filled, by the model's own answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Filled {
    /// Which prompt.
    pub exchange: ExchangeId,
    /// Drafts.
    pub drafts: u32,
    /// Refinements.
    pub refinements: u32,
    /// Answers that pass every aspect that counts.
    pub positives: u32,
    /// Judged answers that do not.
    pub negatives: u32,
    /// Drafts among the negatives: what can be refined.
    pub faulty_drafts: u32,
    /// Judged answers of the generation that was asked for.
    pub tries: u32,
    /// Answers of any generation that nobody has judged.
    pub unjudged: u32,
}

/// What an agent's judge has still to say.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Unjudged {
    /// Answers of the model of which nothing that was said counts.
    pub answers: usize,
    /// Prompts with such answers.
    pub prompts: usize,
    /// Prompts with no other answers, or none, for which no aspects were chosen.
    pub without_choice: usize,
}

/// The owner's rating or edit of an answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Feedback {
    /// Which exchange.
    pub exchange: ExchangeId,
    /// Which answer; `None`: the served one.
    pub candidate: Option<CandidateId>,
    /// -1, 0 or +1.
    pub rating: Option<i8>,
    /// `None`: the whole answer.
    pub aspect: Option<String>,
    /// What the answer should have been.
    pub edit: Option<String>,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// The trainer works.
    Training,
    /// The held-out comparison runs.
    Gating,
    /// The end of the daemon, or a want such as memory, stopped it: it goes on later.
    Interrupted,
    /// Its adapter became a generation.
    Promoted,
    /// The gate said no.
    Rejected,
    /// It broke.
    Failed,
    /// The owner stopped it.
    Cancelled,
}

/// One training run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// Unix milliseconds.
    pub started_ms: i64,
    /// Unix milliseconds.
    pub ended_ms: Option<i64>,
    /// Where it stands.
    pub state: RunState,
    /// Why it ended so, in one sentence.
    pub reason: Option<String>,
    /// The generation that it starts from.
    pub start: Generation,
    /// Pairs in its data set.
    pub n_pairs: usize,
    /// SHA-256 of its data set.
    pub data_sha256: String,
    /// The trainer's job.
    pub job: serde_json::Value,
    /// The last step's metrics, the gate's numbers.
    pub metrics: serde_json::Value,
    /// The generation that it became.
    pub generation: Option<Generation>,
}

/// A pair as it went into a run, or a single answer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PairRow {
    /// The prompt.
    pub exchange: ExchangeId,
    /// Chosen; `None`: a bad answer alone. Of a group (`grpo`), each answer that is worth at least
    /// its group's mean.
    pub chosen: Option<CandidateId>,
    /// Rejected; `None`: a good answer alone.
    pub rejected: Option<CandidateId>,
    /// Difference of the scalars; 0 of a single answer; of a group, to its mean.
    pub margin: f64,
}

/// A promoted generation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GenerationRow {
    /// Its number.
    pub generation: Generation,
    /// The run that made it.
    pub run: RunId,
    /// The generation that the run started from.
    pub parent: Generation,
    /// The adapter file.
    pub path: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
    /// SHA-256 of the base that it fits.
    pub base_sha256: String,
    /// Unix milliseconds.
    pub created_ms: i64,
    /// New requests go to it.
    pub active: bool,
    /// The gate's numbers.
    pub verdict: serde_json::Value,
}

/// A pair of an earlier run with what a data set needs of it.
#[derive(Clone, Debug, PartialEq)]
pub struct EarlierPair {
    /// As it was recorded.
    pub row: PairRow,
    /// The conversation.
    pub messages: Vec<Message>,
    /// The rendered prompt.
    pub prompt: Vec<Token>,
    /// Tokens of the chosen answer.
    pub chosen: Vec<Token>,
    /// Tokens of the rejected one, if there is one.
    pub rejected: Option<Vec<Token>>,
}

/// Where the watch over a promoted generation stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchState {
    /// It gets a share of the chats; the one before it is still active.
    Canary,
    /// All chats go to it, and it is still compared.
    Watching,
    /// It is not worse, or nothing showed it in time.
    Passed,
    /// It was worse, and the one before it serves again.
    RolledBack,
    /// Something else took its place first.
    Ended,
}

/// The watch over a promoted generation.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Watch {
    /// Which one is watched.
    pub generation: Generation,
    /// The one before it.
    pub parent: Generation,
    /// Its share of the chats while it is a canary; 1: it was none.
    pub share: f64,
    /// Unix milliseconds.
    pub started_ms: i64,
    /// The newest candidate when it started.
    pub after_candidate: i64,
    /// Where it stands.
    pub state: WatchState,
    /// Unix milliseconds; `None`: it is under way.
    pub ended_ms: Option<i64>,
    /// Why it stands there.
    pub reason: Option<String>,
}

/// What was said of a generation's answers to chats, oldest first, each with its agent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Live {
    /// The judge's scalars, -1 to 1.
    pub scores: Vec<(String, f64)>,
    /// The owner's ratings, -1, 0 or 1.
    pub ratings: Vec<(String, f64)>,
}

/// A line of the journal.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Event {
    /// Unix milliseconds.
    pub created_ms: i64,
    /// What happened, in a word.
    pub kind: String,
    /// What there is to say of it.
    pub detail: serde_json::Value,
}

/// One answer to one held-out prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// The run whose gate asked.
    pub run: RunId,
    /// The agent that was asked.
    pub agent: String,
    /// The prompt is of the general set.
    pub general: bool,
    /// Whether the candidate adapter answered (else the active generation).
    pub candidate: bool,
    /// Id of the held-out prompt.
    pub prompt_id: String,
    /// The answer.
    pub text: String,
    /// The judge's scalar.
    pub score: f64,
    /// The verifier's verdict, where the prompt has one.
    pub verified: Option<bool>,
}

/// What one aspect is judged by: scores are compared only when this is the same.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Standard {
    /// The aspect's name.
    pub aspect: String,
    /// See [`Assessment::judge`].
    pub judge: String,
    /// See [`Assessment::rubric_version`].
    pub rubric_version: String,
}

/// Where calibration has put the threshold of one aspect.
#[derive(Clone, Debug, PartialEq)]
pub struct JudgeThreshold {
    /// It holds for these scores alone.
    pub standard: Standard,
    /// An answer passes when p(+1) is at least this.
    pub pass: f64,
}

/// A measurement of an agent's judge.
#[derive(Clone, Debug, PartialEq)]
pub struct JudgeReport {
    /// Unix milliseconds.
    pub created_ms: i64,
    /// The agent's name.
    pub agent: String,
    /// Who judged.
    pub judge: String,
    /// Of all rubrics together.
    pub version: String,
    /// A report of `trust`.
    pub report: serde_json::Value,
    /// What each probe got.
    pub scores: serde_json::Value,
}

/// Row counts for `status`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Counts {
    /// Exchanges.
    pub exchanges: u64,
    /// Candidates.
    pub candidates: u64,
    /// Assessments.
    pub assessments: u64,
    /// Feedback rows.
    pub feedback: u64,
    /// Runs.
    pub runs: u64,
    /// Exchanges with new candidates or new feedback since the last run's start.
    pub new_exchanges: u64,
}
