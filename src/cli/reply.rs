//! What the daemon replies, as far as the command line reads it: `docs/reference/api.md` has the
//! whole of it. Unknown fields are ignored, so that a newer daemon can be asked by an older program.
//! Used by the subcommands; the words of the store and the protocol are theirs.

use serde::Deserialize;
use serde_json::Value;

use crate::learn::{JudgeTask, LeftOut};
use crate::reflect::Compared;
use crate::trust::{AttackReport, Report, Standing};
use engine::Generation;
use protocol::Step;
use store::{Assessment, CandidateId, Event, ExchangeId, RunId, RunState, Watch};

/// `{"error": ...}`.
#[derive(Debug, Deserialize)]
pub(super) struct ErrorBody {
    pub(super) error: ErrorText,
}

/// Inside [`ErrorBody`].
#[derive(Debug, Deserialize)]
pub(super) struct ErrorText {
    pub(super) message: String,
}

/// `{"data": [...]}`.
#[derive(Debug, Deserialize)]
pub(super) struct List<T> {
    pub(super) data: Vec<T>,
}

/// One chunk of a streamed chat reply.
#[derive(Debug, Deserialize)]
pub(super) struct Chunk {
    pub(super) system_fingerprint: Option<String>,
    #[serde(default)]
    pub(super) choices: Vec<Choice>,
    pub(super) reflectd: Option<Receipt>,
}

/// Inside [`Chunk`].
#[derive(Debug, Deserialize)]
pub(super) struct Choice {
    #[serde(default)]
    pub(super) delta: Delta,
}

/// Inside [`Choice`].
#[derive(Debug, Default, Deserialize)]
pub(super) struct Delta {
    pub(super) content: Option<String>,
    pub(super) reasoning_content: Option<String>,
}

/// The `reflectd` object of a chat reply.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Receipt {
    pub(super) exchange: Option<ExchangeId>,
    pub(super) generation: Generation,
}

/// A stored prompt with its candidates.
#[derive(Debug, Deserialize)]
pub(super) struct Exchange {
    pub(super) id: ExchangeId,
    pub(super) served: Option<CandidateId>,
    pub(super) candidates: Vec<Candidate>,
}

/// Inside [`Exchange`].
#[derive(Debug, Deserialize)]
pub(super) struct Candidate {
    pub(super) id: CandidateId,
    pub(super) parent: Option<CandidateId>,
    pub(super) text: String,
    pub(super) critique: Option<String>,
    pub(super) assessments: Vec<Assessment>,
}

/// A training run.
#[derive(Debug, Deserialize)]
pub(super) struct Run {
    pub(super) id: RunId,
    pub(super) started_ms: i64,
    pub(super) ended_ms: Option<i64>,
    pub(super) state: RunState,
    pub(super) reason: Option<String>,
    pub(super) start: Generation,
    pub(super) n_pairs: usize,
    pub(super) data_sha256: String,
    pub(super) job: Value,
    pub(super) metrics: Value,
    pub(super) generation: Option<Generation>,
}

/// `GET /v1/adapters`.
#[derive(Debug, Deserialize)]
pub(super) struct Adapters {
    pub(super) active: Generation,
    pub(super) data: Vec<Adapter>,
}

/// Inside [`Adapters`]; the base has only a number.
#[derive(Debug, Deserialize)]
pub(super) struct Adapter {
    pub(super) generation: Generation,
    pub(super) run: Option<RunId>,
    pub(super) parent: Option<Generation>,
    pub(super) created_ms: Option<i64>,
    pub(super) sha256: Option<String>,
    pub(super) base_sha256: Option<String>,
    pub(super) path: Option<String>,
    #[serde(default)]
    pub(super) verdict: Value,
}

/// What the learner is doing.
#[derive(Debug, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub(super) enum Stage {
    Idle,
    Importing,
    Exploring {
        done: u64,
        #[serde(default)]
        begun: u64,
        total: u64,
        positives: u64,
        generated_tokens: u64,
        positives_per_1000_tokens: f64,
        #[serde(default)]
        unpursued: u64,
    },
    Pairing,
    Training {
        run: RunId,
        n_steps: u64,
        step: Step,
        paused: bool,
    },
    Choosing {
        run: RunId,
        candidate: u64,
        done: u64,
        total: u64,
    },
    Gating {
        run: RunId,
        done: u64,
        total: u64,
    },
    Judging {
        task: JudgeTask,
        done: u64,
        total: u64,
    },
}

/// Inside [`Ended::Explored`].
#[derive(Debug, Deserialize)]
pub(super) struct Refining {
    pub(super) agent: String,
    #[serde(flatten)]
    pub(super) compared: Compared,
}

/// How a long operation ended.
#[derive(Debug, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(super) enum Ended {
    Explored {
        prompts: u64,
        candidates: u64,
        positives: u64,
        generated_tokens: u64,
        enough: u64,
        given_up: u64,
        #[serde(default)]
        expected: u64,
        #[serde(default)]
        unfit: u64,
        #[serde(default)]
        unpursued: u64,
        positives_per_1000_tokens: f64,
        #[serde(default)]
        left_out: LeftOut,
        #[serde(default)]
        refining: Vec<Refining>,
        wall_s: f64,
    },
    Calibrated {
        reports: Vec<Report>,
    },
    Attacked {
        reports: Vec<AttackReport>,
    },
    Rescored {
        exchanges: u64,
        candidates: u64,
        wall_s: f64,
    },
    Promoted {
        run: RunId,
        generation: Generation,
        share: f64,
    },
    Rejected {
        run: RunId,
        reason: String,
    },
    Interrupted {
        run: RunId,
        reason: String,
    },
    Failed {
        run: Option<RunId>,
        reason: String,
    },
}

/// `GET /v1/status`, as far as the table shows it.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    pub(super) version: String,
    pub(super) uptime_s: f64,
    pub(super) model: Model,
    pub(super) engine: Engine,
    pub(super) counts: Counts,
    pub(super) stage: Stage,
    #[serde(default)]
    pub(super) learning: Option<Learning>,
    pub(super) next_run: Option<String>,
    #[serde(default)]
    pub(super) last_run: Option<LastRun>,
    pub(super) guards: Guards,
    pub(super) agents: Vec<String>,
    #[serde(default)]
    pub(super) judges: Vec<JudgeState>,
    #[serde(default)]
    pub(super) endpoint_calls: EndpointCalls,
    #[serde(default)]
    pub(super) trainer_fault: Option<String>,
    pub(super) config: ConfigState,
}

/// Inside [`Status`].
#[derive(Debug, Deserialize)]
pub(super) struct LastRun {
    pub(super) id: RunId,
    pub(super) started_ms: i64,
    pub(super) state: RunState,
    pub(super) reason: Option<String>,
}

/// Inside [`Status`]: whether there is something to learn.
#[derive(Debug, Deserialize)]
pub(super) struct Learning {
    pub(super) sentence: String,
}

/// Inside [`Status`], and in the list of `GET /v1/judge`.
#[derive(Debug, Deserialize)]
pub(super) struct JudgeState {
    pub(super) agent: String,
    pub(super) judge: String,
    pub(super) deterministic: Option<bool>,
    pub(super) scalar: String,
    #[serde(flatten)]
    pub(super) standing: Standing,
    pub(super) report: Option<Report>,
}

/// Inside [`Status`].
#[derive(Debug, Default, Deserialize)]
pub(super) struct EndpointCalls {
    pub(super) last_error: Option<String>,
}

/// Inside [`Status`].
#[derive(Debug, Deserialize)]
pub(super) struct Guards {
    pub(super) paused: Option<String>,
    pub(super) watch: Option<(Watch, Seen)>,
    pub(super) alarms: Vec<Event>,
    pub(super) held_out: Option<HeldOut>,
}

/// Inside [`Guards`].
#[derive(Debug, Deserialize)]
pub(super) struct HeldOut {
    pub(super) says: String,
}

/// Inside [`Guards`].
#[derive(Debug, Deserialize)]
pub(super) struct Seen {
    pub(super) judged: Side,
    pub(super) rated: Side,
}

/// Inside [`Seen`].
#[derive(Debug, Deserialize)]
pub(super) struct Side {
    pub(super) pairs: u64,
    pub(super) before: f64,
    pub(super) now: f64,
}

/// Inside [`Status`].
#[derive(Debug, Deserialize)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) path: String,
    pub(super) sha256: String,
    pub(super) architecture: String,
    pub(super) n_parameters: f64,
}

/// Inside [`Status`].
#[derive(Debug, Deserialize)]
pub(super) struct Engine {
    pub(super) active: Generation,
    pub(super) running: u64,
    pub(super) queued: u64,
    pub(super) cells_used: u64,
    pub(super) cells: u64,
}

/// Inside [`Status`].
#[derive(Debug, Deserialize)]
pub(super) struct Counts {
    pub(super) exchanges: u64,
    pub(super) candidates: u64,
    pub(super) assessments: u64,
    pub(super) feedback: u64,
    pub(super) runs: u64,
    pub(super) new_exchanges: u64,
}

/// Inside [`Status`].
#[derive(Debug, Deserialize)]
pub(super) struct ConfigState {
    pub(super) state: String,
    #[serde(default)]
    pub(super) problems: Vec<ConfigProblem>,
}

/// Inside [`ConfigState`].
#[derive(Debug, Deserialize)]
pub(super) struct ConfigProblem {
    pub(super) file: String,
    pub(super) key: String,
    pub(super) message: String,
}
