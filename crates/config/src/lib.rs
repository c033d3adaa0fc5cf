//! YAML to checked values. `raw` takes files apart, `check` and `settings` say what is allowed and
//! find all problems at once, `keys` lists all that may be set, `watch` notices changes; this file
//! holds the checked types.
//! Functions elsewhere take the slice they need, never the whole [`Config`].

mod check;
mod judge;
mod keys;
pub mod prompt_file;
mod raw;
mod settings;
#[cfg(test)]
mod tests;
mod verifier;
pub mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use inference::{EngineConfig, Sampling};
use prompt::PromptSet;

pub use check::{load, load_prompts, load_sound};
pub use judge::{Address, AspectChoice, EndpointConfig, JudgeConfig, RewardConfig, ScalarConfig};
pub use keys::keys;
pub use prompt::{ExampleLine, PromptLine, REWARD, VERIFIER, Verifier};
pub use settings::{Defaults, configured_socket, defaults};

/// Everything that the YAML files say, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of `reflectd.yaml`, `agents/` and `prompts/`.
    pub root: PathBuf,
    /// The model's thread. Cannot change live.
    pub engine: EngineConfig,
    /// The thread of a second model that judges, when an agent names one. Cannot change live.
    pub judge_engine: Option<EngineConfig>,
    /// The thread of a reward model, when an agent names one. Cannot change live.
    pub reward_engine: Option<EngineConfig>,
    /// The socket and its limits.
    pub server: ServerConfig,
    /// The trainer program.
    pub trainer: TrainerConfig,
    /// When and how to learn: one policy for the served model.
    pub learn: LearnConfig,
    /// How far a judge has to be trusted.
    pub trust: TrustConfig,
    /// By name. All serve the same GGUF (`engine.model`).
    pub agents: BTreeMap<String, Arc<Agent>>,
    /// The agent for requests that name no model, or `default`; must be set when there are several.
    pub default_agent: String,
    /// Allow prompt and answer text in the log, at level TRACE.
    pub log_text: bool,
    /// What is not wrong but should be known, such as keys that have no effect any more.
    pub warnings: Vec<Problem>,
}

/// One problem in one file. [`load`] reports all of them at once.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Dotted path of the key; empty when the whole file is meant.
    pub key: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: ", self.file.display())?;
        if !self.key.is_empty() {
            write!(formatter, "{}: ", self.key)?;
        }
        formatter.write_str(&self.message)
    }
}

/// One key that a file may have; [`keys()`] lists all of them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Key {
    /// The file that it stands in; `NAME` stands for any name.
    pub file: PathBuf,
    /// Dotted path; an item of a list is `[0]`.
    pub key: String,
    /// What holds when nobody sets it.
    pub default: KeyDefault,
    /// What may be set, in words.
    pub allowed: String,
    /// The last part of the name of its type.
    pub kind: &'static str,
}

/// What holds when nobody sets a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeyDefault {
    /// It must be set.
    Required,
    /// Nothing, or something that the daemon finds out.
    Absent,
    /// This, as YAML has it.
    Value(String),
}

/// All problems of a configuration; displays one a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<Problem>);

/// The socket and its limits.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerConfig {
    /// Where to listen. `None`: `reflectd.sock` in the service's runtime folder, else in the user's, else in
    /// the state folder.
    pub socket: Option<PathBuf>,
    /// User ids that may connect besides root and the daemon's own.
    pub allow_uids: Vec<u32>,
    /// Chats at once; one more is answered with 429.
    pub max_requests: usize,
    /// Largest body of a request in bytes.
    pub max_body_bytes: usize,
    /// How long requests may go on after SIGTERM.
    pub shutdown_grace: Duration,
}

/// The trainer program.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainerConfig {
    /// Program and arguments; `None`: `reflectd-trainer` beside this program.
    pub command: Option<Vec<String>>,
    /// A run that says nothing for so long has stalled.
    pub stall: Duration,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// CPU threads; all cores unless set.
    pub threads: usize,
    /// Where to compute.
    pub device: protocol::Device,
    /// How the frozen base is held in memory.
    pub base: protocol::BaseKind,
    /// What matrices are multiplied in.
    pub compute: protocol::Compute,
    /// Memory that a run may use; `None`: what is free when it starts.
    pub memory_limit_bytes: Option<u64>,
    /// An interrupted run loses at most the steps of so long a time; its state is about four adapters
    /// large.
    pub checkpoint: Duration,
    /// The trainer is stopped (SIGSTOP) while a chat runs, and so long after.
    pub yield_quiet: Duration,
}

/// One agent: how to answer, how to reflect, what to learn from.
#[derive(Clone, Debug)]
pub struct Agent {
    /// The model name that clients use: the file's stem.
    pub name: String,
    /// Shown by `/v1/models`.
    pub description: String,
    /// Standing instructions put before a conversation that has none.
    pub system: Option<String>,
    /// Defaults for requests.
    pub sampling: Sampling,
    /// The file of reflection templates.
    pub prompts: Arc<PromptSet>,
    /// What answers are judged by; may be empty where a verifier, references or a reward model decide.
    pub aspects: Vec<AgentAspect>,
    /// Which of the aspects judge a prompt.
    pub aspect_choice: AspectChoice,
    /// Who judges by the aspects. In `reflectd.yaml`: for all agents that name no judge.
    pub judge: JudgeConfig,
    /// What becomes the one number of an answer.
    pub scalar: ScalarConfig,
    /// The reflection budget.
    pub reflection: Reflection,
    /// The verifier of prompts that bring none of their own.
    pub verifier: Option<Verifier>,
    /// Exchanges of this agent become training data.
    pub learn: bool,
    /// A file of held-out prompts for the gate (JSON lines, [`PromptLine`]), or `auto`: one in five of
    /// the agent's prompts that have a verifier, a reference or an answer by the owner's words is set
    /// aside for good, 200 at most. They never enter training.
    pub held_out: Option<HeldOut>,
    /// A file of labelled answers that measure the judge (JSON lines, [`ProbeLine`]); their prompts
    /// never enter training.
    pub probes: Option<PathBuf>,
    /// A file of prompts that are not of this agent's task, in the form of `held_out`: a candidate must
    /// not answer them worse. They never enter training either.
    pub general: Option<PathBuf>,
    /// A file of examples (JSON lines, [`ExampleLine`]): prompts with the answers that the owner wants.
    pub examples: Option<PathBuf>,
    /// What exploration is asked.
    pub practice: Practice,
}

/// Where the held-out prompts of an agent come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HeldOut {
    /// They are in this file.
    File(PathBuf),
    /// They are taken from what the agent is asked.
    Auto,
}

impl Agent {
    /// Whether the judge's word on an aspect counts; of weight 0 it is only recorded.
    #[must_use]
    pub fn is_judged(&self) -> bool {
        self.aspects.iter().any(|rated| 0.0 < rated.weight)
    }

    /// Names of the aspects whose word is only recorded.
    pub fn advisory(&self) -> impl Iterator<Item = &str> {
        let recorded = self.aspects.iter().filter(|rated| rated.weight <= 0.0);
        recorded.map(|rated| rated.aspect.name.as_str())
    }

    /// The file of held-out prompts, where there is one.
    pub fn held_out_file(&self) -> Option<&PathBuf> {
        match &self.held_out {
            Some(HeldOut::File(path)) => Some(path),
            Some(HeldOut::Auto) | None => None,
        }
    }
}

/// What exploration is asked, and how it samples. Keys of `explore`.
#[derive(Clone, Debug, PartialEq)]
pub struct Practice {
    /// A file of prompts, in the form of `held_out`, that a night practises on, each generation anew;
    /// unset: stored chats and prompts.
    pub prompts: Option<PathBuf>,
    /// So many examples stand before a prompt as turns while exploring, and only then.
    pub shots: usize,
    /// Of drafts and refinements; `None`: 0.8, and 1.2 where the drafts of most prompts all pass (`auto`).
    pub temperature: Option<f32>,
    /// Smallest mass of tokens that is sampled from.
    pub top_p: f32,
}

/// An aspect with its weight in the scalar.
#[derive(Clone, Debug)]
pub struct AgentAspect {
    /// The criterion.
    pub aspect: Arc<Aspect>,
    /// Weight in the scalar and, above 0, in the veto; of weight 0 it is only recorded.
    pub weight: f64,
    /// The p(+1) from which on an answer passes; `calibrated`: what `reflectd judge calibrate` finds,
    /// 0.5 until then.
    pub pass: Pass,
}

/// An answer passes an aspect when p(+1) is at least this.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pass {
    /// The owner's number.
    Fixed(f64),
    /// What calibration has found; until then [`Pass::UNCALIBRATED`].
    Calibrated,
}

impl Pass {
    /// The threshold of an aspect that waits for its calibration.
    pub const UNCALIBRATED: f64 = 0.5;
}

/// One criterion with three written levels.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Aspect {
    /// The file's stem.
    pub name: String,
    /// What it asks, in one sentence.
    pub description: String,
    /// What levels -1, 0 and +1 mean.
    pub levels: [String; 3],
    /// First 12 hexadecimal digits of the SHA-256 of all the above.
    pub version: String,
    /// It asks whether the answer is right: one that equals the reference passes unasked.
    pub correctness: bool,
}

/// When reflection happens.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Plain serving.
    Off,
    /// The answer waits for it, inside the budget.
    Inline,
    /// The first draft streams at once, reflection follows when the engine is idle.
    Background,
    /// Only idle-time exploration uses the prompt.
    Explore,
}

/// The reflection budget of an agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Reflection {
    /// When reflection happens, unless a request says otherwise.
    pub mode: Mode,
    /// Drafts of a prompt (n).
    pub drafts: u32,
    /// Refinements (m), over all rounds.
    pub refinements: u32,
    /// Critique-and-refine rounds at most.
    pub rounds: u32,
    /// A refinement is served only when its value beats its parent's by this much (0 to 2).
    pub margin: f64,
    /// Which draft exploration revises.
    pub promising: Promising,
    /// Temperature of refinements in chats; exploration has its own.
    pub refine_temperature: f32,
    /// Most tokens of a critique.
    pub critique_tokens: u32,
    /// Inline only: how long an answer may wait.
    pub latency: Duration,
    /// Generated tokens at most, over all candidates.
    pub tokens: u32,
    /// (n, m) that exploration fills up to; keys of `explore`.
    pub explore: (u32, u32),
    /// When exploration leaves a prompt before; keys of `explore`.
    pub stop_early: StopEarly,
    /// Weight of a verifier's level in the scalar and, above 0, in the veto; 0 only measures.
    pub verifier_weight: f64,
}

/// Which draft exploration revises.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Promising {
    /// The one with the largest scalar among those that fail an aspect; none when all pass.
    BestFaulty,
    /// The one with the largest scalar of all (the paper).
    Best,
}

/// When exploration leaves a prompt before all its drafts and refinements are made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StopEarly {
    /// A prompt is left when it has so many answers that pass and so many that do not; 0: never.
    pub enough: u32,
    /// A prompt is left when so many answers of one generation were judged and none passes; 0: never.
    pub give_up: u32,
}

/// What follows a judge's name where a reference that equals the answer has spoken in its place.
pub const BY_REFERENCE: &str = " (reference)";

/// A labelled answer from a file.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeLine {
    /// Unique in its file.
    pub id: String,
    /// The user's message.
    pub prompt: String,
    /// What was answered.
    pub answer: String,
    /// Shown to the judge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Whether the answer as a whole is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub good: Option<bool>,
    /// The level of each aspect that somebody has looked at: -1, 0 or 1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aspects: BTreeMap<String, i8>,
}

/// How far a judge has to be trusted before a model learns from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrustConfig {
    /// The lower bound of the area under the ROC curve must reach this.
    pub min_auc: f64,
    /// Good labels, and as many bad ones, from which on a measurement counts.
    pub min_labels: usize,
    /// Share of bad answers that a calibrated threshold may let pass.
    pub max_false_accept: f64,
    /// Whether nothing is trained without enough labels.
    pub required: bool,
    /// Labelled answers that one measurement looks at, the newest ones.
    pub max_probes: usize,
}

/// When and how to learn.
#[derive(Clone, Debug, PartialEq)]
pub struct LearnConfig {
    /// Cron pattern (five fields) and time zone; `None`: only when asked.
    pub schedule: Option<(String, chrono_tz::Tz)>,
    /// New pairs since the last run that a scheduled run needs.
    pub min_new_pairs: usize,
    /// A scheduled run waits until no chat has run for so long.
    pub idle: Duration,
    /// A scheduled night explores, trains and compares again and again for so long at most; what is under
    /// way then comes to its end.
    pub night: Duration,
    /// How pairs are made.
    pub pairs: PairPolicy,
    /// Where a run starts, which is also its reference policy.
    pub start: Start,
    /// What is minimised.
    pub objective: protocol::Objective,
    /// Shape of the adapter.
    pub lora: protocol::Lora,
    /// How it is minimised.
    pub optimizer: OptimizerConfig,
    /// Share of prompts kept aside to choose among checkpoints. `auto`: 0.1 of answers, and none of examples:
    /// there are few of them, and each may be the only one of its kind.
    pub validation_share: Option<f64>,
    /// Of the base's own answers to everyday prompts, beside each example of the task: what they keep the
    /// model from forgetting. At most 40; 0: none.
    pub rehearsal: f64,
    /// Checkpoints that are validated, evenly spread over the run; the best one and the last one are candidates.
    pub validations: usize,
    /// Longest example in tokens; longer ones are left out and counted.
    pub max_tokens: usize,
    /// When a candidate is promoted.
    pub gate: GateConfig,
    /// What happens after a promotion.
    pub canary: CanaryConfig,
    /// When a promotion is taken back.
    pub watch: WatchConfig,
    /// When scheduled runs stop, and what makes them go on.
    pub pause: PauseConfig,
    /// Promoted generations whose files stay on disk.
    pub keep_generations: usize,
}

/// How the loss is minimised: [`protocol::Optimizer`], where a run's `auto` is not known yet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// Peak learning rate; `None`: by the size of the model (`auto`), for supervised training twice that.
    pub learning_rate: Option<f64>,
    /// Passes over the data; `None`: as many as give enough steps (`auto`).
    pub epochs: Option<usize>,
    /// Examples a step.
    pub batch_pairs: usize,
    /// Share of steps for the warm-up.
    pub warmup_ratio: f64,
    /// Gradients are clipped to this norm.
    pub max_grad_norm: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// The share of chats that try a promoted generation before all go there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CanaryConfig {
    /// The share of the chats that a promoted generation gets at first; 1: all at once, no canary.
    pub share: f64,
    /// It takes all chats when so many of its chats were judged and are not worse.
    pub chats: usize,
    /// It takes all chats after so long at the latest.
    pub duration: Duration,
}

/// The live comparison of a promoted generation with the one before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WatchConfig {
    /// Judged or rated chats that are compared at most; 0: no watch.
    pub chats: usize,
    /// The comparison ends after so long at the latest.
    pub duration: Duration,
    /// A mean score (0 to 1) that is lower by more than this is a drop.
    pub margin: f64,
    /// One-sided confidence of a drop.
    pub confidence: f64,
}

/// When scheduled runs stop, and what makes them go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PauseConfig {
    /// Scheduled runs pause after so many rounds in a row without gain; 0: never.
    pub after: usize,
    /// While it pauses, so many new pairs start a scheduled run all the same.
    pub resume_pairs: usize,
    /// So many new ratings or edits end the pause.
    pub resume_feedback: usize,
}

/// Where a run starts. It is compared with what is served in either case.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// From the adapter that is served, if one is.
    Adapter,
    /// From the base: everything is learned again from all pairs that are kept.
    Base,
}

/// How pairs are made from one prompt's candidates.
#[derive(Clone, Debug, PartialEq)]
pub struct PairPolicy {
    /// Most pairs of one prompt.
    pub per_prompt: usize,
    /// Least difference of the scalars (0 to 2).
    pub min_margin: f64,
    /// Longest over shortest answer, in tokens, where only a judge tells them apart: no matter where the
    /// owner has spoken of one of them, or where a verifier of weight above 0, or a reference in its
    /// place, passes the chosen one and refuses the other.
    pub max_length_ratio: f64,
    /// A refinement is not paired with its parent when their texts are this alike (0 to 1).
    pub max_parent_similarity: f64,
    /// Which answers are chosen.
    pub positives: Positives,
    /// How the rejected answer is picked.
    pub rejected: Rejected,
    /// Whether refinements take part.
    pub use_refinements: bool,
    /// Share of a run's pairs that earlier runs were trained on or could have been; 1: all of them.
    pub replay: f64,
    /// `kto`: the larger of the two sides, good and bad answers, over the smaller at most.
    pub max_imbalance: f64,
    /// `grpo`: answers of one prompt at most; the newest count.
    pub max_group: usize,
}

/// Which answers are chosen.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Positives {
    /// Those that pass every aspect; one that fails an aspect is rejected.
    Veto,
    /// Those with the largest scalars, whatever their aspects say; one with a lower scalar is
    /// rejected. That is what a reward alone can tell (the paper's reward-only arm).
    Best,
}

/// How the rejected answer is picked among those that may be.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejected {
    /// Uniformly (the paper).
    Random,
    /// Nearest to mean minus two standard deviations of the scalars.
    MeanMinus2Sd,
}

/// When a candidate is promoted.
#[derive(Clone, Debug, PartialEq)]
pub struct GateConfig {
    /// Held-out prompts asked at most.
    pub prompts: usize,
    /// The lower bound of the gain must be above this (-1 to 1; below 0 a loss is borne).
    pub margin: f64,
    /// One-sided confidence of the bound, 0.5 to 1.
    pub confidence: f64,
    /// Where verifiers only measure, their share of right answers may fall by at most this.
    pub truth_margin: f64,
    /// Prompts of the agents' general sets asked at most.
    pub general_prompts: usize,
    /// Nats a token that the base's own answers to the general sets may lose at most.
    pub max_general_loss: f64,
    /// Mean answer length, candidate over active, lies in here where only a judge has scored.
    pub length_ratio: (f64, f64),
    /// Distinct-2 of the answers, candidate over active, is at least this where only a judge has scored.
    pub min_diversity_ratio: f64,
    /// Largest mean KL per token from the active generation on its own answers, where only a judge has
    /// scored.
    pub max_kl: f64,
}

impl Config {
    /// The file of daemon-wide settings below a root folder.
    pub fn file(root: &Path) -> PathBuf {
        root.join("reflectd.yaml")
    }

    /// The model's thread as it is started: without a context for judgements where no agent is judged by
    /// the served model. One that is so from a later reload on is judged beside the answers.
    #[must_use]
    pub fn served_engine(&self) -> EngineConfig {
        let judges =
            |agent: &Arc<Agent>| agent.judge == JudgeConfig::Own && !agent.aspects.is_empty();
        let deterministic_judge =
            self.engine.deterministic_judge && self.agents.values().any(judges);
        EngineConfig { deterministic_judge, ..self.engine.clone() }
    }
}

/// Names the keys that differ and cannot change while the daemon runs. When there is one, a reload
/// keeps the old configuration.
pub fn frozen_differences(old: &Config, new: &Config) -> Vec<String> {
    // Taken apart, so that a new field must be thought about here.
    let EngineConfig {
        model,
        chat_template,
        context_tokens,
        max_sequences,
        batch_tokens,
        threads,
        batch_threads,
        gpu_layers,
        flash_attention,
        kv_cache,
        deterministic,
        deterministic_judge,
        queue,
    } = &old.engine;
    [
        ("agents.*.model", *model == new.engine.model),
        ("engine.chat_template", *chat_template == new.engine.chat_template),
        ("engine.context_tokens", *context_tokens == new.engine.context_tokens),
        ("engine.max_sequences", *max_sequences == new.engine.max_sequences),
        ("engine.batch_tokens", *batch_tokens == new.engine.batch_tokens),
        ("engine.threads", *threads == new.engine.threads),
        ("engine.batch_threads", *batch_threads == new.engine.batch_threads),
        ("engine.gpu_layers", *gpu_layers == new.engine.gpu_layers),
        ("engine.flash_attention", *flash_attention == new.engine.flash_attention),
        ("engine.kv_cache", *kv_cache == new.engine.kv_cache),
        ("engine.deterministic", *deterministic == new.engine.deterministic),
        ("engine.deterministic_judge", *deterministic_judge == new.engine.deterministic_judge),
        ("engine.queue", *queue == new.engine.queue),
        ("judge.model", model_of(old.judge_engine.as_ref()) == model_of(new.judge_engine.as_ref())),
        (
            "scalar.reward_model",
            model_of(old.reward_engine.as_ref()) == model_of(new.reward_engine.as_ref()),
        ),
        ("server.socket", old.server.socket == new.server.socket),
    ]
    .into_iter()
    .filter(|&(_, is_same)| !is_same)
    .map(|(key, _)| key.to_owned())
    .collect()
}

/// The other settings of these threads are those of `engine`.
fn model_of(engine: Option<&EngineConfig>) -> Option<&Path> {
    engine.map(|engine| engine.model.as_path())
}
