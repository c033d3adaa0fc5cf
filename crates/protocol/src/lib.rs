//! What the daemon and the trainer say to each other: one [`Job`] as the first JSON line on the
//! trainer's standard input, [`TrainerEvent`]s as JSON lines on its standard output.
//! End of standard input means that the daemon has gone: the trainer stops. `reflectd-trainer survey`
//! takes a [`SurveyJob`] instead and answers with one [`TrainingSurvey`].
//! Documented in `docs/internals/protocol.md`. Pure data, but for the environment that [`program`] gives a
//! process; used by `learn` and by `reflectd-trainer`.

pub mod exit;
pub mod program;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Raised whenever a line changes its meaning; a trainer refuses a job of another version.
pub const VERSION: u32 = 6;

/// Name of the file in [`Job::out`] from which an interrupted run goes on.
pub const CHECKPOINT: &str = "checkpoint.safetensors";

/// One training run.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// [`VERSION`].
    pub version: u32,
    /// Names the run in messages.
    pub run: String,
    /// The served GGUF: the frozen base.
    pub base: PathBuf,
    /// Its SHA-256; the trainer refuses another file.
    pub base_sha256: String,
    /// The adapter of the generation that the run starts from; it is also the reference policy.
    /// `None`: the base.
    pub start: Option<PathBuf>,
    /// Data set: [`Example`]s as JSON lines.
    pub data: PathBuf,
    /// Where `adapter.gguf` and `probe.json` appear, and [`CHECKPOINT`] before them. A run goes on
    /// from the checkpoint that it finds here, if that is one of the same job.
    pub out: PathBuf,
    /// Where log-probs of reference policies are kept from run to run; `None`: they are not.
    pub reference_cache: Option<PathBuf>,
    /// What is minimised.
    pub objective: Objective,
    /// Shape of the adapter.
    pub lora: Lora,
    /// How it is minimised.
    pub optimizer: Optimizer,
    /// Share of prompts kept aside to choose among checkpoints, 0 to 0.5.
    pub validation_share: f64,
    /// Checkpoints that are validated, evenly spread over the run; the best one is exported.
    pub validations: usize,
    /// Seconds after which the state of the run is written down again; 0: after every step.
    pub checkpoint_s: f64,
    /// Longest sequence in tokens; longer examples are left out and counted.
    pub max_tokens: usize,
    /// The server's context in tokens: some models choose their rotary factors by it.
    pub context_tokens: u32,
    /// How the frozen base is held in memory.
    pub base_kind: BaseKind,
    /// What matrices are multiplied in.
    pub compute: Compute,
    /// Memory that the trainer may use; `None`: what is free when it starts.
    pub memory_limit_bytes: Option<u64>,
    /// CPU threads.
    pub threads: usize,
    /// Where to compute.
    pub device: Device,
    /// Of every random choice.
    pub seed: u64,
}

impl Job {
    /// The job without that which only says where and with what means it is computed. Jobs that are
    /// equal so, and whose files are, give the same adapter (but for rounding).
    #[must_use]
    pub fn essence(&self) -> Self {
        Self {
            run: String::new(),
            base: PathBuf::new(),
            start: self.start.as_ref().map(|_| PathBuf::new()),
            data: PathBuf::new(),
            out: PathBuf::new(),
            reference_cache: None,
            checkpoint_s: 0.0,
            base_kind: BaseKind::Auto,
            memory_limit_bytes: None,
            threads: 0,
            device: Device::Auto,
            ..self.clone()
        }
    }
}

/// The loss, with its settings. Formulas and sources: `objective.rs` of the trainer.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum Objective {
    /// Direct preference optimization with `nll` times the chosen answer's mean NLL.
    Dpo {
        /// Strength of the pull to the reference.
        beta: f64,
        /// Weight of the NLL term.
        nll: f64,
    },
    /// DPO on length-normalised log-probs.
    DpoNorm {
        /// Strength of the pull to the reference, per token.
        beta: f64,
        /// Weight of the NLL term.
        nll: f64,
    },
    /// DPO for a judge that sometimes takes the worse answer for the better one.
    RobustDpo {
        /// Strength of the pull to the reference.
        beta: f64,
        /// Weight of the NLL term.
        nll: f64,
        /// Share of pairs that are the wrong way round, below 0.5.
        label_smoothing: f64,
    },
    /// A squared distance instead of a sigmoid: the margin has a goal, 1 / (2 beta).
    Ipo {
        /// Strength of the pull to the reference.
        beta: f64,
    },
    /// Mean log-probs and a margin, without a reference.
    Simpo {
        /// Scale of the rewards.
        beta: f64,
        /// By how much the chosen answer's reward has to be larger.
        gamma: f64,
    },
    /// Single answers that are good (chosen) or bad (rejected), without pairs.
    Kto {
        /// Strength of the pull to the reference.
        beta: f64,
        /// Weight of the good answers.
        desirable_weight: f64,
        /// Weight of the bad ones.
        undesirable_weight: f64,
    },
    /// Supervised fine-tuning on the chosen answers; of answers that were found good: the paper's RS.
    Sft,
    /// In one run the NLL of all good answers and DPO on those that have a rejected one beside them.
    Mixed {
        /// Strength of the pull to the reference.
        beta: f64,
        /// Weight of the NLL term.
        nll: f64,
    },
    /// Rewarded answers, compared within the group that was sampled for one prompt ([`Group`]).
    Grpo {
        /// Weight of the KL term to the reference.
        beta: f64,
        /// How far the ratio of new to old probability counts.
        epsilon: f64,
        /// The importance weight of a token is at most this.
        importance_cap: f64,
    },
}

impl Objective {
    /// As a job names it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dpo { .. } => "dpo",
            Self::DpoNorm { .. } => "dpo_norm",
            Self::RobustDpo { .. } => "robust_dpo",
            Self::Ipo { .. } => "ipo",
            Self::Simpo { .. } => "simpo",
            Self::Kto { .. } => "kto",
            Self::Sft => "sft",
            Self::Mixed { .. } => "mixed",
            Self::Grpo { .. } => "grpo",
        }
    }
}

/// Shape of the adapter: every linear layer has one.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Rank r.
    pub rank: usize,
    /// The adapter's output is scaled by alpha / r.
    pub alpha: f64,
}

/// `AdamW` with linear warm-up and cosine decay.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Optimizer {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Passes over the data.
    pub epochs: usize,
    /// Pairs a step.
    pub batch_pairs: usize,
    /// Share of steps for the warm-up.
    pub warmup_ratio: f64,
    /// Gradients are clipped to this norm.
    pub max_grad_norm: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// How the frozen base is held in memory.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseKind {
    /// Decoded when that fits into half of the memory (in bf16 when matrices are multiplied in
    /// it, else in f32), else `quantized`.
    Auto,
    /// As in the file, shared with the server's mapping of it; a layer at a time is decoded.
    Quantized,
    /// In 16 bits: half the memory of `f32`, but rounded unless the file has no more bits either.
    Bf16,
    /// Decoded once: the fastest.
    F32,
}

/// What the trainer multiplies matrices in. The adapter, its gradients, norms, the residual stream
/// and the losses are f32 in any case.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compute {
    /// `bf16` where the device has units for it and the model is wide enough to gain, else `f32`.
    Auto,
    /// The server's numbers to the last digits.
    F32,
    /// Half the memory of what is kept for the backward pass, and faster; log-probs move by about
    /// as much as they do under the server's own rounding of activations.
    Bf16,
}

/// Where the trainer computes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// CUDA when it is there, else the CPU.
    Auto,
    /// The processor.
    Cpu,
    /// The first CUDA device.
    Cuda,
}

/// One line of the data set of `grpo`: all answers that were sampled for one prompt.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Names the prompt.
    pub prompt_id: String,
    /// Token ids of the rendered prompt.
    pub prompt: Vec<i32>,
    /// At least two.
    pub answers: Vec<Rollout>,
}

/// One answer of a [`Group`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Token ids with the end token.
    pub tokens: Vec<i32>,
    /// Log-prob of each token when it was sampled, by the generation that sampled it.
    pub logprobs: Vec<f32>,
    /// Its reward.
    pub reward: f64,
}

/// One line of the data set of every other objective.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Example {
    /// Names the prompt: examples of one prompt are never split between training and validation.
    pub prompt_id: String,
    /// Token ids of the rendered prompt.
    pub prompt: Vec<i32>,
    /// Token ids of the chosen answer with its end token; empty for `kto` where there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chosen: Vec<i32>,
    /// Likewise of the rejected one; absent for `sft`, and for `kto` and `mixed` where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Vec<i32>>,
}

/// One line of the trainer's standard output.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TrainerEvent {
    /// Base and data are loaded.
    Started {
        /// Examples that will be trained on.
        n_train: usize,
        /// Examples kept aside.
        n_validation: usize,
        /// Examples left out because they are too long.
        n_too_long: usize,
        /// Optimizer steps to come.
        n_steps: usize,
        /// Trainable parameters.
        n_parameters: u64,
        /// `cpu` or `cuda:0`.
        device: String,
    },
    /// Reference log-probs so far.
    Reference {
        /// Examples done.
        done: usize,
        /// Examples in all.
        total: usize,
    },
    /// The run goes on from its checkpoint.
    Resumed {
        /// The steps that were done before.
        step: usize,
    },
    /// One optimizer step.
    Step(Step),
    /// The state of the run is written, synced and renamed.
    Checkpoint {
        /// After this step.
        step: usize,
    },
    /// Validation loss of a checkpoint.
    Validation {
        /// After this step.
        step: usize,
        /// Mean loss.
        loss: f64,
    },
    /// Something has not worked, but the run goes on.
    Warning {
        /// What, and what that means.
        message: String,
    },
    /// The adapter is written, synced and renamed. The last line of a run that succeeded.
    Done {
        /// The adapter file.
        adapter: PathBuf,
        /// Its SHA-256.
        sha256: String,
        /// [`Probe`] as JSON.
        probe: PathBuf,
        /// The step whose weights were kept.
        best_step: usize,
        /// Its validation loss; `None`: nothing was validated, and the last weights were kept.
        best_loss: Option<f64>,
        /// The weights after the last step, where others had the smaller loss.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        last: Option<Kept>,
    },
    /// The last line of a run that failed.
    Failed {
        /// What to do about it, in one sentence.
        message: String,
    },
}

/// Weights of a step, in files.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The adapter file.
    pub adapter: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
    /// [`Probe`] as JSON.
    pub probe: PathBuf,
    /// The step whose weights they are.
    pub step: usize,
}

/// The prompts of a data set that a run does not train on, by their ids: those whose [`fraction_of`] is
/// below `share`. The trainer validates on them, and the daemon compares candidates on them. Which ones
/// does not depend on the run, so a later run does not validate on what an earlier one has trained on.
#[must_use]
pub fn validation_prompts(ids: BTreeSet<String>, share: f64) -> BTreeSet<String> {
    ids.into_iter().filter(|id| fraction_of(id) < share).collect()
}

/// A number from 0 to 1 that follows from a prompt's id (FNV-1a, which seeds a generator).
#[must_use]
pub fn fraction_of(id: &str) -> f64 {
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    fastrand::Rng::with_seed(hash).f64()
}

/// Metrics of one optimizer step, under TRL's names.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Step {
    /// Counted from 1.
    pub step: usize,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Total loss.
    pub loss: f64,
    /// NLL part (mean per token of the chosen answers).
    pub nll_loss: f64,
    /// Current learning rate.
    pub learning_rate: f64,
    /// Before clipping.
    pub grad_norm: f64,
    /// Mean beta-scaled log-ratio of the chosen answers.
    #[serde(rename = "rewards/chosen")]
    pub rewards_chosen: f64,
    /// Likewise of the rejected ones.
    #[serde(rename = "rewards/rejected")]
    pub rewards_rejected: f64,
    /// Share of pairs in which the chosen one has the larger reward.
    #[serde(rename = "rewards/accuracies")]
    pub rewards_accuracies: f64,
    /// Mean difference of the rewards.
    #[serde(rename = "rewards/margins")]
    pub rewards_margins: f64,
    /// Mean summed log-prob of the chosen answers.
    #[serde(rename = "logps/chosen")]
    pub logps_chosen: f64,
    /// Likewise of the rejected ones.
    #[serde(rename = "logps/rejected")]
    pub logps_rejected: f64,
    /// Distance to the reference, in nats: `kto` by answer, `grpo` by token.
    #[serde(default)]
    pub kl: f64,
    /// `grpo`: mean reward, and its mean standard deviation within a group.
    #[serde(default)]
    pub reward: f64,
    /// See `reward`.
    #[serde(default)]
    pub reward_std: f64,
    /// `grpo`: share of tokens whose ratio does not count any more.
    #[serde(default, rename = "clip_ratio/region_mean")]
    pub clip_ratio: f64,
    /// Tokens that were computed: what several sequences of a pass begin with counts once.
    #[serde(default)]
    pub tokens: usize,
    /// Tokens a second since the process began its steps, without the time for which it was stopped.
    pub tokens_per_second: f64,
    /// Seconds left at this speed, validations included.
    pub eta_s: f64,
    /// Resident memory of the trainer; on a GPU what is in use there.
    pub memory_bytes: u64,
}

/// Log-probs that the trainer got for a few sequences, with the exported adapter and with the policy
/// that the run started from. The gate asks the server for the same numbers before it trusts the file
/// (parity).
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Probe {
    /// The sequences.
    pub sequences: Vec<ProbeSequence>,
}

/// One sequence of a [`Probe`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ProbeSequence {
    /// Prompt and answer.
    pub tokens: Vec<i32>,
    /// Index of the answer's first token, at least 1.
    pub from: usize,
    /// Log-probs of `tokens[from..]` with the exported adapter.
    pub logprobs: Vec<f32>,
    /// The same with the policy that the run started from.
    pub start_logprobs: Vec<f32>,
}

/// Asks what training on a model would take; nothing is trained and nothing is written.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SurveyJob {
    /// [`VERSION`].
    pub version: u32,
    /// The GGUF to look at.
    pub base: PathBuf,
    /// Shape of the adapter.
    pub lora: Lora,
    /// Pairs a step.
    pub batch_pairs: usize,
    /// The longest sequence that memory is planned for, in tokens.
    pub max_tokens: usize,
    /// The pairs that time is measured with.
    pub pair: PairLength,
    /// As in [`Job`].
    pub context_tokens: u32,
    /// As in [`Job`].
    pub base_kind: BaseKind,
    /// As in [`Job`].
    pub compute: Compute,
    /// As in [`Job`].
    pub memory_limit_bytes: Option<u64>,
    /// As in [`Job`].
    pub threads: usize,
    /// As in [`Job`].
    pub device: Device,
}

/// Tokens of a pair: of its prompt, and of each of its two answers.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PairLength {
    /// Of the prompt.
    pub prompt: usize,
    /// Of one answer.
    pub answer: usize,
}

/// What was found out.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TrainingSurvey {
    /// Why the model is not trained: the feature that is missing. `None`: it can be.
    pub refusal: Option<String>,
    /// `cpu` or `cuda:0`.
    pub device: String,
    /// Bytes of a GPU's memory, free and all.
    pub device_memory: Option<[u64; 2]>,
    /// Threads that computed.
    pub threads: usize,
    /// `None` for a model that is not trained.
    pub memory: Option<TrainingMemory>,
    /// `None` for a model that is not trained, or when `speed_fault` says why there is none.
    pub speed: Option<TrainingSpeed>,
    /// Why nothing was measured.
    pub speed_fault: Option<String>,
}

/// Memory by the way of holding the base.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TrainingMemory {
    /// What there is, or what the trainer may use.
    pub available_bytes: u64,
    /// The longest pair that is planned for.
    pub longest: PairLength,
    /// What matrices are multiplied in: `f32` or `bf16`.
    pub compute: Compute,
    /// What a run would take.
    pub taken: BaseKind,
    /// `f32`, `bf16` and `quantized`.
    pub ways: Vec<BaseWay>,
}

/// One way of holding the base.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct BaseWay {
    /// Which.
    pub base: BaseKind,
    /// What is held of the base; a quantized one stays in the file, which the server maps too.
    pub base_bytes: u64,
    /// The adapter, its gradients, the optimizer's state and the best checkpoint.
    pub adapter_bytes: u64,
    /// One pass over a part of a batch, by the trainer's estimate.
    pub pass_bytes: u64,
    /// All of it is there.
    pub fits: bool,
    /// Tokens of a pass.
    pub pass_tokens: usize,
    /// Blocks are computed again in the backward pass.
    pub recompute: bool,
}

impl BaseWay {
    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        [self.base_bytes, self.adapter_bytes, self.pass_bytes]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

/// How long pairs take, from passes that were really computed.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct TrainingSpeed {
    /// Lengths of the pairs.
    pub pair: PairLength,
    /// How the base was held.
    pub base: BaseKind,
    /// Seconds for the reference log-probs of 1,000 pairs, once a run.
    pub reference_s: f64,
    /// Seconds for the optimizer steps over 1,000 pairs, once an epoch.
    pub epoch_s: f64,
    /// Tokens a second of those steps; what both answers share is counted once.
    pub tokens_per_second: f64,
    /// Blocks of the model that were computed.
    pub measured_blocks: i64,
    /// Blocks that it has.
    pub n_blocks: i64,
    /// Lengths of the pairs that were computed.
    pub measured_pair: PairLength,
    /// Pairs in one measured pass.
    pub measured_pairs: usize,
}
