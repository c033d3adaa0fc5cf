//! What each key of `reflectd.yaml` may be, and what it is when nobody sets it. Used by `check`.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::judge::judge;
use super::raw::{Problems, Section};
use super::{
    CanaryConfig, GateConfig, JudgeConfig, LearnConfig, OptimizerConfig, PairPolicy, PauseConfig,
    Positives, Rejected, ServerConfig, Start, TrainerConfig, TrustConfig, WatchConfig,
};
use inference::{EngineConfig, FlashAttention, KvCache, ranges};
use protocol::{BaseKind, Compute, Device, Lora, Objective};

/// Longest path of a Unix socket on Linux.
const MAX_SOCKET_PATH: usize = 107;

/// Everything of the file.
pub(super) struct Settings {
    pub(super) engine: EngineConfig,
    pub(super) server: ServerConfig,
    pub(super) trainer: TrainerConfig,
    pub(super) learn: LearnConfig,
    /// Of agents that name none of their own.
    pub(super) judge: JudgeConfig,
    pub(super) trust: TrustConfig,
    pub(super) log_text: bool,
    /// Checked when the agents are known.
    pub(super) default_agent: Option<String>,
}

impl Settings {
    /// `engine.model` stays empty: the agents name it.
    pub(super) fn check(root: &Path, file: &mut Section<'_>) -> Self {
        Self {
            engine: engine(root, &mut file.section("engine")),
            server: server(root, &mut file.section("server")),
            trainer: trainer(root, &mut file.section("trainer")),
            learn: learn(&mut file.section("learn")),
            judge: judge(root, file, JudgeConfig::Own),
            trust: trust(&mut file.section("trust")),
            log_text: file.value("log_text", false),
            default_agent: file.optional("default_agent"),
        }
    }
}

/// What there is when nobody sets anything.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// Without a model.
    pub engine: EngineConfig,
    /// Beside this program.
    pub trainer: TrainerConfig,
    /// Without a schedule.
    pub learn: LearnConfig,
}

/// See [`Defaults`].
pub fn defaults() -> Defaults {
    let problems = Problems::default();
    let mut file = Section::empty(Path::new("reflectd.yaml"), &problems);
    let Settings { engine, trainer, learn, .. } = Settings::check(Path::new(""), &mut file);
    Defaults { engine, trainer, learn }
}

/// `server.socket` for clients. They need no other key, and the daemon reports what is wrong with
/// the rest.
pub fn configured_socket(root: &Path) -> Option<PathBuf> {
    let problems = Problems::default();
    let mut file = Section::read(root, Path::new("reflectd.yaml"), &problems)?;
    let socket = file.section("server").optional::<PathBuf>("socket")?;
    Some(root.join(socket))
}

fn engine(root: &Path, keys: &mut Section<'_>) -> EngineConfig {
    let engine = EngineConfig {
        model: PathBuf::new(),
        chat_template: chat_template(root, keys),
        context_tokens: keys.number("context_tokens", 8192, &(256..=1 << 20)),
        max_sequences: keys.number("max_sequences", 16, &ranges::SEQUENCES),
        batch_tokens: keys.number("batch_tokens", 512, &(32..=1 << 16)),
        threads: keys.optional_number("threads", &(1..=1024)),
        batch_threads: keys.optional_number("batch_threads", &(1..=1024)),
        gpu_layers: auto_or_number(keys, "gpu_layers", &(0..=10_000)),
        flash_attention: keys.value("flash_attention", FlashAttention::Auto),
        kv_cache: keys.value("kv_cache", KvCache::F16),
        deterministic: keys.value("deterministic", false),
        deterministic_judge: keys.value("deterministic_judge", true),
        queue: keys.number("queue", 64, &(1..=65_536)),
    };
    // llama.cpp aborts the process when a step cannot hold one token of every sequence, and
    // silently lowers a batch that is larger than the context.
    if !(engine.max_sequences..=engine.context_tokens).contains(&engine.batch_tokens) {
        keys.problem(
            "batch_tokens",
            format!(
                "is {}; it must be at least max_sequences ({}) and at most context_tokens ({})",
                engine.batch_tokens, engine.max_sequences, engine.context_tokens
            ),
        );
    }
    if engine.kv_cache.is_quantized() && engine.flash_attention == FlashAttention::Off {
        let fault = "is off, but a quantized kv_cache needs it; set it to auto, or kv_cache to f16";
        keys.problem("flash_attention", fault);
    }
    engine
}

/// The text of the file that is named.
fn chat_template(root: &Path, keys: &mut Section<'_>) -> Option<String> {
    let path = root.join(keys.optional::<PathBuf>("chat_template")?);
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) => {
            let path = path.display();
            keys.problem("chat_template", format!("{path} cannot be read: {error}"));
            None
        }
    }
}

/// `auto` (which is also the default) is `None`.
pub(super) fn auto_or_number<T>(
    keys: &mut Section<'_>,
    key: &'static str,
    allowed: &RangeInclusive<T>,
) -> Option<T>
where
    T: DeserializeOwned + PartialOrd + Display,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given<T> {
        Number(T),
        Word(String),
        Other(serde::de::IgnoredAny),
    }
    let wanted = format!("auto or a number from {} to {}", allowed.start(), allowed.end());
    match keys.mixed(key, "auto", &wanted)? {
        Given::Number(number) if allowed.contains(&number) => Some(number),
        Given::Word(word) if word == "auto" => None,
        Given::Number(_) | Given::Word(_) | Given::Other(_) => {
            keys.problem(key, format!("must be {wanted}"));
            None
        }
    }
}

fn server(root: &Path, keys: &mut Section<'_>) -> ServerConfig {
    let socket = keys.optional::<PathBuf>("socket").map(|path| root.join(path));
    if socket.as_ref().is_some_and(|path| path.as_os_str().len() > MAX_SOCKET_PATH) {
        keys.problem("socket", format!("is longer than {MAX_SOCKET_PATH} bytes as a whole path"));
    }
    ServerConfig {
        socket,
        allow_uids: keys.value("allow_uids", Vec::new()),
        max_requests: keys.number("max_requests", 16, &(1..=4096)),
        max_body_bytes: keys.number("max_body_bytes", 4 << 20, &(1024..=1 << 30)),
        shutdown_grace: keys.seconds("shutdown_grace_s", 30.0),
    }
}

fn trainer(root: &Path, keys: &mut Section<'_>) -> TrainerConfig {
    let mut command = keys.optional::<Vec<String>>("command");
    match command.as_mut().map(|words| words.first_mut()) {
        None => {}
        // A bare name is looked up in PATH; anything else is a path like all others.
        Some(Some(program)) if program.contains('/') => {
            *program = root.join(&*program).to_string_lossy().into_owned();
        }
        Some(Some(program)) if !program.is_empty() => {}
        Some(_) => keys.problem("command", "must be a list: the program, then its arguments"),
    }
    let cores = available_parallelism().map_or(1, usize::from);
    TrainerConfig {
        command,
        stall: keys.seconds("stall_s", 600.0),
        grace: keys.seconds("grace_s", 10.0),
        threads: keys.optional_number("threads", &(1..=1024)).unwrap_or(cores),
        device: keys.value("device", Device::Auto),
        base: keys.value("base", BaseKind::Auto),
        compute: keys.value("compute", Compute::Auto),
        memory_limit_bytes: keys.optional_number("memory_limit_bytes", &(1 << 28..=1 << 50)),
        checkpoint: keys.seconds("checkpoint_s", 120.0),
        yield_quiet: keys.seconds("yield_quiet_s", 1.0),
    }
}

fn learn(keys: &mut Section<'_>) -> LearnConfig {
    LearnConfig {
        schedule: schedule(keys),
        min_new_pairs: keys.number("min_new_pairs", 50, &(1..=1_000_000)),
        idle: keys.seconds("idle_s", 300.0),
        night: minutes(&mut keys.section("night"), 240.0),
        pairs: pairs(&mut keys.section("pairs")),
        start: keys.value("continue", Start::Adapter),
        objective: objective(&mut keys.named_section("objective")),
        lora: lora(&mut keys.section("lora")),
        optimizer: optimizer(&mut keys.section("optimizer")),
        rehearsal: keys.number("rehearsal", 0.25, &(0.0..=1.0)),
        validation_share: auto_or_number(keys, "validation_share", &(0.0..=0.5)),
        validations: keys.number("validations", 4, &(1..=1000)),
        max_tokens: keys.number("max_tokens", 2048, &(16..=1 << 20)),
        gate: gate(&mut keys.section("gate")),
        canary: canary(&mut keys.section("canary")),
        watch: watch(&mut keys.section("watch")),
        pause: PauseConfig {
            after: keys.number("pause_after", 2, &(0..=100)),
            resume_pairs: keys.number("resume_pairs", 200, &(1..=1_000_000)),
            resume_feedback: keys.number("resume_feedback", 20, &(1..=1_000_000)),
        },
        keep_generations: keys.number("keep_generations", 5, &(1..=1000)),
    }
}

fn trust(keys: &mut Section<'_>) -> TrustConfig {
    TrustConfig {
        min_auc: keys.number("min_auc", 0.5, &(0.5..=1.0)),
        min_labels: keys.number("min_labels", 30, &(10..=100_000)),
        max_false_accept: keys.number("max_false_accept", 0.2, &(0.0..=1.0)),
        required: keys.value("required", false),
        max_probes: keys.number("max_probes", 2000, &(20..=1_000_000)),
    }
}

fn schedule(keys: &mut Section<'_>) -> Option<(String, chrono_tz::Tz)> {
    if !keys.has("schedule") {
        drop(keys.section("schedule"));
        return None;
    }
    let mut keys = keys.section("schedule");
    let time_zone = keys.value("time_zone", "UTC".to_owned());
    let time_zone = time_zone.parse::<chrono_tz::Tz>().map_err(|_| {
        keys.problem("time_zone", format!("is {time_zone:?}; a name like Europe/Berlin is needed"));
    });
    let cron = keys.text("cron")?;
    // No seconds and no years, because programs differ in what the first of six fields means.
    let parser = croner::parser::CronParser::builder()
        .seconds(croner::parser::Seconds::Disallowed)
        .year(croner::parser::Year::Disallowed)
        .build();
    if let Err(error) = parser.parse(&cron) {
        keys.problem(
            "cron",
            format!("is {cron:?}; five fields are needed (minute hour day month weekday): {error}"),
        );
    }
    Some((cron, time_zone.ok()?))
}

fn pairs(keys: &mut Section<'_>) -> PairPolicy {
    PairPolicy {
        per_prompt: keys.number("per_prompt", 2, &(1..=64)),
        min_margin: keys.number("min_margin", 0.2, &(0.0..=2.0)),
        max_length_ratio: keys.number("max_length_ratio", 1.5, &(1.0..=100.0)),
        max_parent_similarity: keys.number("max_parent_similarity", 0.9, &(0.0..=1.0)),
        positives: keys.value("positives", Positives::Veto),
        rejected: keys.value("rejected", Rejected::MeanMinus2Sd),
        use_refinements: keys.value("use_refinements", true),
        replay: keys.number("replay", 0.5, &(0.0..=1.0)),
        max_imbalance: keys.number("max_imbalance", 4.0, &(1.0..=1000.0)),
        max_group: keys.number("max_group", 16, &(2..=64)),
    }
}

fn objective(keys: &mut Section<'_>) -> Objective {
    const NAMES: &str = "auto, sft, rs, dpo, dpo_norm, robust_dpo, ipo, simpo, kto or grpo";
    let name = keys.mixed("name", "auto", NAMES).unwrap_or_else(|| "auto".to_owned());
    let mut weight = |key, default| keys.number(key, default, &(0.0..=1000.0));
    match name.as_str() {
        // One loss: they differ in where the answers come from.
        "sft" | "rs" => Objective::Sft,
        "dpo" => Objective::Dpo { beta: beta(keys, 0.1), nll: nll(keys) },
        "dpo_norm" => Objective::DpoNorm { beta: beta(keys, 5.0), nll: nll(keys) },
        "robust_dpo" => Objective::RobustDpo {
            beta: beta(keys, 0.1),
            nll: nll(keys),
            label_smoothing: keys.number("label_smoothing", 0.1, &(0.0..=0.49)),
        },
        "ipo" => Objective::Ipo { beta: beta(keys, 0.1) },
        "simpo" => {
            let gamma = weight("gamma", 1.0);
            Objective::Simpo { beta: beta(keys, 2.0), gamma }
        }
        "kto" => {
            let desirable_weight = weight("desirable_weight", 1.0);
            let undesirable_weight = weight("undesirable_weight", 1.0);
            Objective::Kto { beta: beta(keys, 0.1), desirable_weight, undesirable_weight }
        }
        "grpo" => Objective::Grpo {
            beta: keys.number("beta", 0.04, &(0.0..=1000.0)),
            epsilon: keys.number("epsilon", 0.2, &(0.001..=0.999)),
            importance_cap: keys.number("importance_cap", 2.0, &(0.01..=1000.0)),
        },
        other => {
            let objective = Objective::Mixed { beta: beta(keys, 0.1), nll: nll(keys) };
            if other != "auto" {
                keys.problem("name", format!("is {other:?}; {NAMES} is allowed"));
            }
            objective
        }
    }
}

fn beta(keys: &mut Section<'_>, default: f64) -> f64 {
    keys.number("beta", default, &(0.0001..=1000.0))
}

fn nll(keys: &mut Section<'_>) -> f64 {
    keys.number("nll", 1.0, &(0.0..=1000.0))
}

fn lora(keys: &mut Section<'_>) -> Lora {
    Lora {
        rank: keys.number("rank", 16, &(1..=1024)),
        alpha: keys.number("alpha", 32.0, &(0.001..=10_000.0)),
    }
}

fn optimizer(keys: &mut Section<'_>) -> OptimizerConfig {
    OptimizerConfig {
        learning_rate: auto_or_number(keys, "learning_rate", &(1e-9..=1.0)),
        epochs: auto_or_number(keys, "epochs", &(1..=100)),
        batch_pairs: keys.number("batch_pairs", 8, &(1..=4096)),
        warmup_ratio: keys.number("warmup_ratio", 0.1, &(0.0..=1.0)),
        max_grad_norm: keys.number("max_grad_norm", 1.0, &(0.001..=1000.0)),
        weight_decay: keys.number("weight_decay", 0.0, &(0.0..=1.0)),
    }
}

fn gate(keys: &mut Section<'_>) -> GateConfig {
    keys.retired(
        "max_parity_error",
        "the gate compares what an adapter changes in trainer and server, relative to the change \
         itself",
    );
    keys.retired(
        "general_margin",
        "general prompts are no longer judged; gate.max_general_loss limits how much less probable \
         the base's own answers to them become",
    );
    GateConfig {
        prompts: keys.number("prompts", 200, &(1..=100_000)),
        margin: keys.number("margin", 0.0, &(-1.0..=1.0)),
        confidence: keys.number("confidence", 0.95, &(0.5..=0.9999)),
        truth_margin: keys.number("truth_margin", 0.05, &(0.0..=1.0)),
        general_prompts: keys.number("general_prompts", 200, &(1..=100_000)),
        max_general_loss: keys.number("max_general_loss", 0.2, &(0.0..=100.0)),
        length_ratio: length_ratio(keys),
        min_diversity_ratio: keys.number("min_diversity_ratio", 0.8, &(0.0..=1.0)),
        max_kl: keys.number("max_kl", 0.3, &(0.0..=100.0)),
    }
}

fn canary(keys: &mut Section<'_>) -> CanaryConfig {
    CanaryConfig {
        share: keys.number("share", 1.0, &(0.001..=1.0)),
        chats: keys.number("chats", 50, &(1..=100_000)),
        duration: hours(keys, 24.0),
    }
}

fn watch(keys: &mut Section<'_>) -> WatchConfig {
    WatchConfig {
        chats: keys.number("chats", 200, &(0..=100_000)),
        duration: hours(keys, 168.0),
        margin: keys.number("margin", 0.05, &(0.0..=1.0)),
        confidence: keys.number("confidence", 0.99, &(0.5..=0.9999)),
    }
}

fn hours(keys: &mut Section<'_>, default: f64) -> Duration {
    Duration::from_secs_f64(3600.0 * keys.number("hours", default, &(0.0..=8760.0)))
}

fn minutes(keys: &mut Section<'_>, default: f64) -> Duration {
    Duration::from_secs_f64(60.0 * keys.number("minutes", default, &(1.0..=10_080.0)))
}

fn length_ratio(keys: &mut Section<'_>) -> (f64, f64) {
    let default = (0.67, 1.5);
    let (least, most) = keys.value("length_ratio", default);
    if (0.0..=1.0).contains(&least) && (1.0..=100.0).contains(&most) {
        return (least, most);
    }
    keys.problem("length_ratio", format!("is [{least}, {most}]; [0 to 1, 1 to 100] is allowed"));
    default
}
