//! The JSON of the socket as Rust types, both directions: `api` reads and writes them, the command
//! line client writes and reads them. Pure data; `docs/reference/api.md` is their description.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::learn::gate::Power;
use crate::learn::{Guards, Readiness, Stage};
use crate::reflect::CallCounts;
use crate::trust::{Attack, Report, Standing};
use config::{ExampleLine, Mode, Problem, PromptLine, Verifier};
use engine::{EngineStats, FinishReason, Generation, ModelInfo};
use store::{CandidateId, Counts, ExchangeId, Run, RunId, RunState};

/// Body of every error.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ErrorReply {
    /// The one field.
    pub error: ErrorBody,
}

/// See [`ErrorReply`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ErrorBody {
    /// What went wrong and what to do.
    pub message: String,
    /// A coarse kind, as `OpenAI` has it.
    #[serde(rename = "type")]
    pub kind: String,
    /// A stable word.
    pub code: String,
    /// The field that is meant.
    pub param: Option<String>,
}

/// `POST /v1/chat/completions`. Fields that would change the answer's meaning and that we do not
/// have are kept as [`Value`] and refused; all other unknown fields are ignored.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct ChatBody {
    /// An agent's name or `default`, which is also what an absent field means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The conversation.
    pub messages: Vec<ChatMessage>,
    /// Answer as server-sent events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// How to stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// Answers wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<u32>,
    /// An answer ends before the first of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// Of every random choice; negative seeds are seeds too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// 0 is greedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Nucleus mass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Most new tokens (the old name).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Most new tokens (the new name); wins over the old one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_completion_tokens: Option<u32>,
    /// Report log-probs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<bool>,
    /// Alternatives a token, 0 to 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<u32>,
    /// Our own fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reflectd: Option<ChatExtra>,
    /// Everything else, looked through for what must be refused.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, Value>,
}

/// One turn of [`ChatBody`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ChatMessage {
    /// `system`, `developer`, `user` or `assistant`.
    pub role: String,
    /// Text, or a list of text parts.
    #[serde(default)]
    pub content: Option<Content>,
}

/// What a turn says.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Parts; only those of type `text` are understood.
    Parts(Vec<ContentPart>),
}

/// One part of a turn.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ContentPart {
    /// `text`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The words.
    #[serde(default)]
    pub text: Option<String>,
}

/// One stop string or several.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// See [`ChatBody::stream_options`].
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct StreamOptions {
    /// Send `usage` in the last chunk.
    #[serde(default)]
    pub include_usage: bool,
}

/// Our own fields of a chat.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChatExtra {
    /// Instead of the agent's mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Shown to the judge only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// How to check an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verifier: Option<Verifier>,
    /// Most likely tokens kept; 0 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Least probability relative to the most likely token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
}

/// A whole reply.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ChatReply {
    /// `chatcmpl-` and the request id.
    pub id: String,
    /// `chat.completion`.
    pub object: String,
    /// Unix seconds.
    pub created: i64,
    /// The agent that answered.
    pub model: String,
    /// `generation-N`.
    pub system_fingerprint: String,
    /// The answers.
    pub choices: Vec<Choice>,
    /// Tokens.
    pub usage: Usage,
    /// Receipt and scores.
    pub reflectd: Receipt,
}

/// One answer of a whole reply.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Choice {
    /// Counted from 0.
    pub index: u32,
    /// The words.
    pub message: AnswerMessage,
    /// Of every token, when asked for.
    pub logprobs: Option<Logprobs>,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
}

/// See [`Choice::message`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AnswerMessage {
    /// `assistant`.
    pub role: String,
    /// The answer.
    pub content: String,
    /// Inline mode: scores and critique.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
}

/// One event of a streamed reply.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Chunk {
    /// The same in all chunks.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: String,
    /// Unix seconds.
    pub created: i64,
    /// The agent that answers.
    pub model: String,
    /// `generation-N`.
    pub system_fingerprint: String,
    /// What is new; empty in the last chunk.
    pub choices: Vec<ChunkChoice>,
    /// In the last chunk, when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// In the last chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reflectd: Option<Receipt>,
}

/// What is new in one answer.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ChunkChoice {
    /// Which answer.
    pub index: u32,
    /// New words.
    pub delta: Delta,
    /// Of the new token.
    pub logprobs: Option<Logprobs>,
    /// Set once, when the answer ends.
    pub finish_reason: Option<FinishReason>,
}

/// New words.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Delta {
    /// `assistant`, in an answer's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Inline mode: scores and critique.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
}

/// Log-probs of an answer's tokens.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Logprobs {
    /// One for each token that has text.
    pub content: Vec<TokenLogprob>,
}

/// One token.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// Its text; unfinished UTF-8 is replaced.
    pub token: String,
    /// Under the model itself.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The likeliest tokens at this place.
    #[serde(default)]
    pub top_logprobs: Vec<TopLogprob>,
}

/// One alternative.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TopLogprob {
    /// Its text; unfinished UTF-8 is replaced.
    pub token: String,
    /// Under the model itself.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Usage {
    /// Of the rendered prompt.
    pub prompt_tokens: usize,
    /// Generated, reflection included.
    pub completion_tokens: usize,
    /// Their sum.
    pub total_tokens: usize,
    /// Of the prompt's.
    pub prompt_tokens_details: PromptTokens,
    /// Of the generated ones.
    pub completion_tokens_details: CompletionTokens,
}

/// See [`Usage`].
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct PromptTokens {
    /// Not evaluated because their KV was there.
    pub cached_tokens: usize,
}

/// See [`Usage`].
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct CompletionTokens {
    /// Drafts, critiques and refinements that were not served.
    pub reasoning_tokens: usize,
}

/// What became of the request in the store.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Receipt {
    /// For `/v1/reflections` and `/v1/feedback`; `None` in mode off.
    pub exchange: Option<ExchangeId>,
    /// The weights that answered.
    pub generation: Generation,
    /// Candidates so far.
    pub candidates: usize,
    /// Rounds done.
    pub rounds: u32,
    /// Why reflection ended.
    pub stopped: String,
    /// The served answers that have been judged.
    pub answers: Vec<JudgedAnswer>,
}

/// One judged answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct JudgedAnswer {
    /// Which choice.
    pub index: usize,
    /// Its row.
    pub candidate: CandidateId,
    /// The scalar, -1 to 1.
    pub value: f64,
    /// Whether every aspect that counts passes.
    pub passes: bool,
    /// The aspects' values, -1 to 1.
    pub aspects: BTreeMap<String, f64>,
}

/// A list, as `OpenAI` wraps it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct List<T> {
    /// `list`.
    pub object: String,
    /// The rows.
    pub data: Vec<T>,
}

impl<T> List<T> {
    /// Wraps rows.
    pub fn of(data: Vec<T>) -> Self {
        Self { object: "list".to_owned(), data }
    }
}

/// One agent, as `/v1/models` shows it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Model {
    /// The agent's name.
    pub id: String,
    /// `model`.
    pub object: String,
    /// Unix seconds of the daemon's start.
    pub created: i64,
    /// `reflectd`.
    pub owned_by: String,
    /// Our own fields.
    pub reflectd: ModelExtra,
}

/// Our own fields of a model.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ModelExtra {
    /// The agent's description.
    pub description: String,
    /// The weights that answer now.
    pub generation: Generation,
    /// What it is judged by.
    pub aspects: Vec<String>,
    /// When it reflects.
    pub mode: Mode,
}

/// Whether the daemon is well.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthWord {
    /// All is well.
    Ok,
    /// It serves, with a problem that the rest of the reply names.
    Degraded,
    /// It is stopping.
    Draining,
}

/// Which configuration is in force.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfigWord {
    /// What the files say.
    #[default]
    Ok,
    /// The last good one: the files have problems.
    RolledBack,
}

/// How the last load of the configuration went.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConfigReport {
    /// Which one is in force.
    pub state: ConfigWord,
    /// Why the files are not in force, or which agents cannot answer all the same.
    pub problems: Vec<Problem>,
}

impl ConfigReport {
    /// The files are in force, with agents that have these problems.
    pub fn in_force(problems: Vec<Problem>) -> Self {
        Self { state: ConfigWord::Ok, problems }
    }

    /// The files have these problems; the last good configuration stays in force.
    pub fn rolled_back(problems: Vec<Problem>) -> Self {
        Self { state: ConfigWord::RolledBack, problems }
    }
}

/// `GET /health`.
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    /// In one word.
    pub status: HealthWord,
    /// Of this program.
    pub version: &'static str,
    /// Seconds since the socket opened.
    pub uptime_s: u64,
    /// The weights that answer now.
    pub generation: Generation,
    /// The configuration.
    pub config: ConfigReport,
}

/// `GET /v1/status`.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Of this program.
    pub version: &'static str,
    /// Seconds since the socket opened.
    pub uptime_s: u64,
    /// The served model.
    pub model: ModelInfo,
    /// Live numbers.
    pub engine: EngineStats,
    /// Rows.
    pub counts: Counts,
    /// What the learner does.
    pub stage: Stage,
    /// Whether there is something to learn; `None`: it is not known, and the log says why.
    pub learning: Option<Learning>,
    /// RFC 3339, when a schedule is set.
    pub next_run: Option<String>,
    /// The newest run, also one that broke before it trained.
    pub last_run: Option<LastRun>,
    /// What looks after the loop.
    pub guards: GuardsNow,
    /// Names.
    pub agents: Vec<String>,
    /// Who judges each agent's answers, and whether it can be trusted, without the report.
    pub judges: Vec<JudgeState>,
    /// Live numbers of a second model that judges.
    pub judge_engine: Option<EngineStats>,
    /// Live numbers of the context for judgements, of the second model if it has one, else of the served
    /// one; `None`: it judges beside its answers, or not at all.
    pub judge_context: Option<EngineStats>,
    /// How asking endpoints has gone.
    pub endpoint_calls: CallCounts,
    /// Why nothing can be trained: the trainer program is not installed.
    pub trainer_fault: Option<String>,
    /// The configuration.
    pub config: ConfigReport,
}

/// Inside [`Status`]: a run, without what it was given and what it measured.
#[derive(Clone, Debug, Serialize)]
pub struct LastRun {
    /// Its number.
    pub id: RunId,
    /// Unix milliseconds.
    pub started_ms: i64,
    /// How it stands.
    pub state: RunState,
    /// Why.
    pub reason: Option<String>,
}

impl From<Run> for LastRun {
    fn from(run: Run) -> Self {
        let Run { id, started_ms, state, reason, .. } = run;
        Self { id, started_ms, state, reason }
    }
}

/// Inside [`Status`].
#[derive(Clone, Debug, Serialize)]
pub struct GuardsNow {
    /// Why scheduled runs wait, what is watched, and the newest alarms.
    #[serde(flatten)]
    pub guards: Guards,
    /// What the held-out prompts could show; `None`: nothing learns, or it is not known.
    pub held_out: Option<Power>,
}

/// Inside [`Status`]: what a run would find now.
#[derive(Clone, Debug, Serialize)]
pub struct Learning {
    /// For people: what is missing and what would help, and when the next run is due.
    pub sentence: String,
    /// The numbers.
    #[serde(flatten)]
    pub readiness: Readiness,
}

/// `POST /v1/runs`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainBody {
    /// Follow it as server-sent events.
    pub stream: bool,
}

/// `POST /v1/explore`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExploreBody {
    /// Whose prompts; absent: the default agent's for new prompts, every agent's for stored ones.
    pub agent: Option<String>,
    /// Stored first.
    pub prompts: Vec<PromptLine>,
    /// Prompts at most.
    pub limit: usize,
    /// Drafts a prompt; absent: the agent's own.
    pub n: Option<u32>,
    /// Refinements a prompt; absent: the agent's own.
    pub m: Option<u32>,
    /// Follow it as server-sent events.
    pub stream: bool,
}

impl Default for ExploreBody {
    fn default() -> Self {
        Self { agent: None, prompts: Vec::new(), limit: 1000, n: None, m: None, stream: false }
    }
}

/// `POST /v1/examples`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExamplesBody {
    /// Whose; absent: the default agent's.
    #[serde(default)]
    pub agent: Option<String>,
    /// All of them are stored, or none.
    pub examples: Vec<ExampleLine>,
}

/// One agent's entry of `GET /v1/judge`.
#[derive(Clone, Debug, Serialize)]
pub struct JudgeState {
    /// The agent's name.
    pub agent: String,
    /// As assessments name the judge.
    pub judge: String,
    /// Whether a verdict depends on what is judged alone, never on what else is computed; `None`: an endpoint
    /// judges, or nobody.
    pub deterministic: Option<bool>,
    /// What becomes the one number of an answer.
    pub scalar: String,
    /// Whether a model may learn from its judge.
    #[serde(flatten)]
    pub standing: Standing,
    /// The newest report on its present judge and rubrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
}

/// `POST /v1/judge/calibrate`, `/v1/judge/attack` and `/v1/judge/rescore`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct JudgeBody {
    /// Whose judge; absent: every agent's.
    pub agent: Option<String>,
    /// Attack: wrong answers that are tried (absent: 40). Rescore: exchanges (absent: all).
    pub limit: Option<usize>,
    /// Attack: what with; absent: the attacks that are built in.
    pub attacks: Option<Vec<Attack>>,
    /// Follow it as server-sent events.
    pub stream: bool,
}

/// `POST /v1/adapters/import`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ImportBody {
    /// A GGUF adapter or a PEFT folder; absolute, the daemon reads it as its own user.
    pub path: PathBuf,
    /// The base that it is for, where its file does not say so.
    #[serde(default)]
    pub base_sha256: Option<String>,
    /// Follow it as server-sent events.
    #[serde(default)]
    pub stream: bool,
}

/// `POST /v1/adapters/rollback`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackBody {
    /// 0: the base.
    pub generation: Generation,
}
