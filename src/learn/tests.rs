//! Whole runs with the scripted engine, a real store and shell scripts as trainers: what is served,
//! stored and on disk after each way to end. `guards`: what keeps the loop from getting worse.

mod aside;
mod corrected;
mod data;
mod expected;
mod guards;
mod imports;
mod lessons;
mod nights;
mod preview;
mod resume;
mod trust;
mod unjudged;

use std::collections::BTreeMap;
use std::time::Duration;

use super::held_out::HeldOut;
use super::*;
use config::{
    Address, Agent, AgentAspect, Aspect, AspectChoice, CanaryConfig, EndpointConfig, GateConfig,
    JudgeConfig, LearnConfig, Mode, OptimizerConfig, PairPolicy, Pass, PauseConfig, Positives,
    Practice, Promising, Reflection, Rejected, ScalarConfig, ServerConfig, Start, StopEarly,
    TrainerConfig, TrustConfig, WatchConfig,
};
use engine::{self, EngineConfig, EngineThread, FinishReason, Sampling, Token};
use files::gguf::{Value, Writer};
use files::lora::header::Header;
use files::write_atomic;
use prompt::{ChatTemplate, Message, PromptSet, Role};
use protocol::{
    BaseKind, Compute, Device, Example, Group, Job, Lora, Objective, Probe, ProbeSequence,
};
use store::{
    self, Assessment, Author, Feedback, NewCandidate, NewExchange, Parent, RunState, Source,
    StoreThread,
};
use testkit::fake::{CHAT_TEMPLATE, END, Fake, Script};

const HELD_OUT: usize = 60;
const LONG: Duration = Duration::from_mins(1);

/// What judge, critic and probe say. The judge's prompt has the question in it, so these come first.
fn judge() -> Script {
    Script::new("?")
        .on("judge right of bad", &[("-", 0.8), ("0", 0.1), ("+", 0.1)])
        .on("judge right of good", &[("-", 0.2), ("0", 0.1), ("+", 0.7)])
        .on("judge right of best", &[("-", 0.0), ("0", 0.1), ("+", 0.9)])
        .on("critique", &[("be right", 1.0)])
        .on("refine", &[("good", 1.0)])
        .on("probe", &[("x", 1.0)])
}

/// The base answers badly, generation 1 well, generation 2 very well.
pub(super) fn improving() -> Script {
    judge()
        .on_generation(Generation(1), "ask", &[("good", 1.0)])
        .on_generation(Generation(2), "ask", &[("best", 1.0)])
        .on("ask", &[("bad", 1.0)])
}

/// Every generation answers like the base.
fn standing() -> Script {
    judge().on("ask", &[("bad", 1.0)])
}

/// A daemon's worth of parts on a scratch folder.
pub(super) struct World {
    pub(super) parts: Parts,
    pub(super) config: watch::Sender<Arc<Config>>,
    // Field order is significant: the handles go before the threads that they keep alive.
    threads: (EngineThread, StoreThread),
    folder: tempfile::TempDir,
}

impl World {
    pub(super) async fn new(script: Script, trainer: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::in_folder(folder, script, trainer, arguments).await
    }
    async fn in_folder(
        folder: tempfile::TempDir,
        script: Script,
        trainer: &str,
        arguments: &[&str],
    ) -> Self {
        let root = folder.path();
        let base = root.join("base.gguf");
        model_file().write(&base).unwrap();
        adapter_file().write(&root.join("trained.gguf")).unwrap();
        write_probe(root, 0.0, 0.0);
        let line = |i| format!("{{\"id\":\"{i}\",\"prompt\":\"ask held out {i}\"}}");
        let lines: Vec<String> = (0..HELD_OUT).map(line).collect();
        write(&root.join("held_out.jsonl"), &lines.join("\n"));

        let script = script.file(&base);
        let (engine, engine_thread) =
            engine::spawn_with(8, move || Ok(Fake::new(script))).await.unwrap();
        let (store, store_thread) = store::spawn(root.join("reflectd.db")).await.unwrap();
        let template = ChatTemplate::new(Some(CHAT_TEMPLATE), "<|begin|>", "<|end|>");
        let reflector = Reflector::new(engine.clone(), store.clone(), Arc::new(template));
        let (sender, config) = watch::channel(Arc::new(configuration(root, trainer, arguments)));
        let state = StateDir::open(root).unwrap();
        let parts = Parts { engine, store, reflector, config, state };
        Self { parts, config: sender, threads: (engine_thread, store_thread), folder }
    }
    /// As after `kill -9` and a new start: only files are left.
    async fn restarted(self, script: Script) -> Self {
        let Self { folder, parts, threads: (engine, store), .. } = self;
        drop(parts);
        tokio::task::spawn_blocking(move || {
            engine.join().unwrap();
            store.join().unwrap();
        })
        .await
        .unwrap();
        Self::in_folder(folder, script, "good.sh", &[]).await
    }
    pub(super) fn root(&self) -> &std::path::Path {
        self.folder.path()
    }
    pub(super) fn learner(&self) -> (Learner, JoinHandle<()>) {
        spawn(self.parts.clone())
    }
    pub(super) fn change(&self, change: impl FnOnce(&mut Config)) {
        let mut config = Config::clone(&self.config.borrow());
        change(&mut config);
        self.config.send_replace(Arc::new(config));
    }
    pub(super) fn change_agent(&self, change: impl FnOnce(&mut Agent)) {
        self.change(|config| {
            let agent = config.agents.get_mut("tester").unwrap();
            change(Arc::make_mut(agent));
        });
    }
    /// A prompt with a good answer and a bad one.
    pub(super) async fn remember(&self, prompt: &str) {
        let answers = vec![answer(prompt, " fine", true), answer(prompt, " poor", false)];
        self.remember_answers(prompt, answers).await;
    }
    async fn remember_answers(&self, prompt: &str, answers: Vec<NewCandidate>) {
        let exchange = asked(prompt);
        let served = (!answers.is_empty()).then_some(0);
        self.parts.store.record_exchange(exchange, answers, served).await.unwrap();
    }
    pub(super) async fn remember_some(&self) {
        for i in 0..4 {
            self.remember(&format!("ask {i}")).await;
        }
    }
    pub(super) fn active(&self) -> Generation {
        self.parts.engine.stats().active
    }
    fn generations(&self) -> Vec<u32> {
        self.parts.engine.stats().generations.iter().map(|(generation, _)| generation.0).collect()
    }
    async fn stored_active(&self) -> Option<u32> {
        let rows = self.parts.store.generations().await.unwrap();
        rows.iter().find(|row| row.active).map(|row| row.generation.0)
    }
    async fn last_run(&self) -> store::Run {
        self.parts.store.runs(1).await.unwrap().remove(0)
    }
    pub(super) async fn train(&self) -> Ended {
        let (learner, task) = self.learner();
        let ended = learner.train().await.unwrap();
        learner.shutdown().await;
        task.await.unwrap();
        ended
    }
}

/// The schedule, which wants so many new pairs.
fn scheduled(min_new_pairs: usize) -> Caller {
    Caller::Schedule { min_new_pairs }
}

/// Prompts of every agent, as far as the agents say.
fn all(limit: usize) -> Exploration {
    Exploration { agent: None, limit, split: None, all: false }
}

/// A prompt of a chat.
fn asked(prompt: &str) -> NewExchange {
    NewExchange {
        agent: "tester".into(),
        source: Source::Chat,
        messages: vec![user(prompt)],
        prompt_tokens: rendered(prompt),
        reference: None,
        verifier: None,
        aspect_choice: None,
    }
}

pub(super) fn write(path: &std::path::Path, text: &str) {
    write_atomic(path, |file| std::io::Write::write_all(file, text.as_bytes())).unwrap();
}

fn tokens(text: &str) -> Vec<Token> {
    text.bytes().map(|byte| Token(byte.into())).collect()
}

/// As the chat template would have it.
fn rendered(prompt: &str) -> Vec<Token> {
    let (user, assistant) = (Token(259), Token(260));
    [vec![user], tokens(prompt), vec![END, assistant]].concat()
}

fn user(text: &str) -> Message {
    Message { role: Role::User, content: text.to_owned() }
}

fn answer(prompt: &str, text: &str, passes: bool) -> NewCandidate {
    let mut tokens = tokens(&format!("{prompt}{text}"));
    tokens.push(END);
    let good = if passes { 0.9 } else { 0.1 };
    NewCandidate {
        author: Author::Model,
        parent: None,
        generation: Generation::BASE,
        text: text.to_owned(),
        logprobs: vec![-1.0; tokens.len()],
        tokens,
        sampling: Sampling { seed: Some(1), ..Sampling::default() },
        finish: FinishReason::Stop,
        critique: None,
        critic: None,
        shots: Vec::new(),
        assessments: vec![Assessment {
            aspect: "right".into(),
            rubric_version: "v1".into(),
            judge: "test".into(),
            levels: [1.0 - good, 0.0, good],
            mass: 1.0,
            weight: 1.0,
            passes,
            reason: None,
        }],
    }
}

fn model_file() -> Writer {
    let mut model = Writer::default();
    model.metadata("general.architecture", Value::String("fake".into()));
    model.tensor("blk.0.attn_q.weight", &[4, 6], vec![0.0; 24]);
    model
}

fn adapter_file() -> Writer {
    let mut adapter = Writer::default();
    let base = "0".repeat(64);
    Header { base_sha256: Some(&base), ..Header::new("fake", 16.0) }.write(&mut adapter);
    adapter.tensor("blk.0.attn_q.weight.lora_a", &[4, 2], vec![0.5; 8]);
    adapter.tensor("blk.0.attn_q.weight.lora_b", &[2, 6], vec![0.5; 12]);
    adapter
}

/// The script gives `x` to this prompt for certain, so its log-prob is 0.
fn write_probe(root: &std::path::Path, logprob: f32, start_logprob: f32) {
    let tokens = [rendered("probe"), tokens("x")].concat();
    let tokens: Vec<i32> = tokens.iter().map(|token| token.0).collect();
    let from = tokens.len() - 1;
    let (logprobs, start_logprobs) = (vec![logprob], vec![start_logprob]);
    let sequences = vec![ProbeSequence { tokens, from, logprobs, start_logprobs }];
    let probe = Probe { sequences };
    write(&root.join("trained.json"), &serde_json::to_string(&probe).unwrap());
}

pub(super) fn configuration(root: &std::path::Path, trainer: &str, arguments: &[&str]) -> Config {
    let mut command = testkit::fake_trainer(trainer);
    if arguments.is_empty() {
        let file = |name: &str| root.join(name).to_string_lossy().into_owned();
        command.extend([file("trained.gguf"), file("trained.json")]);
    }
    command.extend(arguments.iter().map(|&argument| argument.to_owned()));
    Config {
        root: root.to_owned(),
        engine: EngineConfig {
            context_tokens: 4096,
            max_sequences: 32,
            threads: None,
            gpu_layers: None,
            ..EngineConfig::small(root.join("base.gguf"))
        },
        server: ServerConfig {
            socket: None,
            allow_uids: Vec::new(),
            max_requests: 8,
            max_body_bytes: 1 << 20,
            shutdown_grace: LONG,
        },
        trainer: TrainerConfig {
            command: Some(command),
            stall: LONG,
            grace: LONG,
            threads: 1,
            device: Device::Cpu,
            base: BaseKind::Auto,
            compute: Compute::Auto,
            memory_limit_bytes: None,
            checkpoint: LONG,
            yield_quiet: Duration::ZERO,
        },
        learn: LearnConfig {
            schedule: None,
            min_new_pairs: 1,
            idle: Duration::ZERO,
            night: LONG,
            pairs: PairPolicy {
                per_prompt: 2,
                min_margin: 0.1,
                max_length_ratio: 1.5,
                max_parent_similarity: 0.9,
                positives: Positives::Veto,
                rejected: Rejected::Random,
                use_refinements: true,
                replay: 1.0,
                max_imbalance: 4.0,
                max_group: 16,
            },
            start: Start::Adapter,
            objective: Objective::Dpo { beta: 0.1, nll: 1.0 },
            lora: Lora { rank: 2, alpha: 16.0 },
            optimizer: OptimizerConfig {
                learning_rate: Some(1e-3),
                epochs: Some(1),
                batch_pairs: 2,
                warmup_ratio: 0.1,
                max_grad_norm: 1.0,
                weight_decay: 0.0,
            },
            validation_share: Some(0.0),
            rehearsal: 0.0,
            validations: 4,
            max_tokens: 128,
            gate: GateConfig {
                prompts: HELD_OUT,
                margin: 0.0,
                confidence: 0.95,
                truth_margin: 0.05,
                general_prompts: 100,
                max_general_loss: 0.2,
                length_ratio: (0.5, 2.0),
                min_diversity_ratio: 0.5,
                // The fake's answers are certain, so any other answer is infinitely far away.
                max_kl: 100.0,
            },
            canary: CanaryConfig { share: 1.0, chats: 30, duration: LONG },
            watch: WatchConfig { chats: 100, duration: LONG, margin: 0.05, confidence: 0.99 },
            pause: PauseConfig { after: 2, resume_pairs: 200, resume_feedback: 20 },
            keep_generations: 1,
        },
        trust: TrustConfig {
            min_auc: 0.6,
            min_labels: 10,
            max_false_accept: 0.2,
            required: false,
            max_probes: 100,
        },
        agents: BTreeMap::from([("tester".to_owned(), Arc::new(agent(root)))]),
        judge_engine: None,
        reward_engine: None,
        default_agent: "tester".into(),
        log_text: false,
        warnings: Vec::new(),
    }
}

pub(super) fn agent(root: &std::path::Path) -> Agent {
    let template = |text: &str| vec![user(text)];
    let templates = BTreeMap::from([
        ("assess".to_owned(), template("{{ question }} judge {{ aspect.name }} of {{ response }}")),
        ("critique".to_owned(), template("{{ question }} critique {{ response }}")),
        ("refine".to_owned(), template("{{ question }} refine {{ response }}: {{ critique }}")),
    ]);
    Agent {
        name: "tester".into(),
        description: String::new(),
        system: None,
        sampling: Sampling { max_tokens: 16, ..Sampling::default() },
        prompts: Arc::new(PromptSet::new(["-", "0", "+"].map(str::to_owned), templates).unwrap()),
        aspects: vec![AgentAspect {
            aspect: Arc::new(Aspect {
                name: "right".into(),
                description: "Is it right?".into(),
                levels: ["no", "partly", "yes"].map(str::to_owned),
                version: "v1".into(),
                correctness: false,
            }),
            weight: 1.0,
            pass: Pass::Fixed(0.5),
        }],
        aspect_choice: AspectChoice::All,
        judge: JudgeConfig::Own,
        scalar: ScalarConfig::Aspects,
        reflection: Reflection {
            mode: Mode::Background,
            drafts: 1,
            refinements: 1,
            rounds: 1,
            margin: 0.1,
            promising: Promising::BestFaulty,
            refine_temperature: 1.0,
            critique_tokens: 16,
            latency: LONG,
            tokens: 10_000,
            explore: (3, 3),
            stop_early: StopEarly { enough: 0, give_up: 0 },
            verifier_weight: 0.0,
        },
        verifier: None,
        learn: true,
        held_out: Some(config::HeldOut::File(root.join("held_out.jsonl"))),
        probes: None,
        general: None,
        examples: None,
        practice: Practice { prompts: None, shots: 0, temperature: Some(1.0), top_p: 1.0 },
    }
}

/// Nobody answers at its address.
fn without_judge(world: &World) {
    world.change_agent(|agent| {
        agent.judge = JudgeConfig::Endpoint(EndpointConfig {
            address: Address::Unix("/nowhere/judge.sock".into()),
            base: "/v1".into(),
            model: "m".into(),
            key_file: None,
            timeout: LONG,
            retries: 0,
        });
    });
}

#[tokio::test]
async fn a_judge_that_cannot_be_asked_fails_the_run_with_its_address_and_changes_nothing() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    without_judge(&world);
    let ended = world.train().await;
    let Ended::Failed { run: Some(_), reason } = ended else { panic!("{ended:?}") };
    assert!(reason.contains("the judge at unix:/nowhere/judge.sock does not answer"), "{reason}");
    assert_eq!((world.active(), world.stored_active().await), (Generation::BASE, None));
}

#[tokio::test]
async fn a_better_adapter_is_promoted_served_and_recorded() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    let ended = world.train().await;
    let Ended::Promoted { run, generation, verdict, .. } = ended else { panic!("{ended:?}") };
    assert_eq!(generation, Generation(1));
    assert_eq!((world.active(), world.stored_active().await), (Generation(1), Some(1)));
    // Asking stops when the verdict is clear.
    let asked = usize::try_from(verdict["prompts"].as_u64().unwrap()).unwrap();
    assert!((gate::MIN_PROMPTS..HELD_OUT).contains(&asked), "{verdict}");
    assert_eq!((&verdict["wins"], &verdict["stopped"]), (&verdict["prompts"], &"clear".into()));

    let rows = world.parts.store.generations().await.unwrap();
    assert_eq!(files::sha256(&rows[0].path).unwrap(), rows[0].sha256);
    let stored = world.parts.store.run(run).await.unwrap();
    assert_eq!((stored.state, stored.n_pairs), (RunState::Promoted, 4));
    assert_eq!(stored.generation, Some(generation));
    assert_eq!(stored.metrics["gate"]["promote"], true);
    assert_eq!(stored.metrics["step"]["step"], 3);
    assert_eq!(world.parts.store.evaluations(run).await.unwrap().len(), 2 * asked);

    let job: Job = serde_json::from_value(stored.job).unwrap();
    assert_eq!(files::sha256(&job.data).unwrap(), stored.data_sha256);
    let events = std::fs::read_to_string(job.out.join("events.jsonl")).unwrap();
    assert_eq!(events.lines().count(), 5);
}

#[tokio::test]
async fn the_second_round_starts_from_the_first_and_frees_its_lane() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    assert!(matches!(world.train().await, Ended::Promoted { .. }));
    world.remember("ask more").await;
    let ended = world.train().await;
    assert!(matches!(ended, Ended::Promoted { generation: Generation(2), .. }), "{ended:?}");
    let run = world.last_run().await;
    let job: Job = serde_json::from_value(run.job).unwrap();
    assert_eq!(job.start, Some(world.parts.state.adapter(1)));
    assert_eq!(run.start, Generation(1));
    while world.generations().contains(&1) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_adapter_that_is_no_better_is_rejected_and_its_lane_freed() {
    let world = World::new(standing(), "good.sh", &[]).await;
    world.remember_some().await;
    let ended = world.train().await;
    let Ended::Rejected { reason, .. } = ended else { panic!("{ended:?}") };
    assert!(reason.contains("gate.margin"), "{reason}");
    assert_eq!((world.active(), world.stored_active().await), (Generation::BASE, None));
    assert_eq!(world.generations(), [0]);
    assert_eq!(world.last_run().await.state, RunState::Rejected);
}

#[tokio::test]
async fn an_adapter_that_the_server_reads_otherwise_is_not_even_asked() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    // In the trainer the adapter changes something, in the server nothing.
    write_probe(world.root(), -3.0, -1.0);
    let ended = world.train().await;
    let Ended::Rejected { run, reason, .. } = ended else { panic!("{ended:?}") };
    assert!(reason.contains("trainer and server disagree"), "{reason}");
    assert_eq!(world.parts.store.evaluations(run).await.unwrap(), []);
}

#[tokio::test]
async fn an_adapter_of_another_base_never_reaches_the_engine() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    let mut other = model_file();
    other.metadata("general.name", Value::String("not an adapter".into()));
    other.write(&world.root().join("trained.gguf")).unwrap();
    let ended = world.train().await;
    let Ended::Failed { reason, .. } = ended else { panic!("{ended:?}") };
    assert!(reason.contains("general.type is missing"), "{reason}");
    assert_eq!(world.generations(), [0]);
}

#[tokio::test]
async fn a_trainer_that_crashes_fails_the_run_and_nothing_else() {
    let world = World::new(improving(), "crash.sh", &["70"]).await;
    world.remember_some().await;
    let ended = world.train().await;
    assert!(matches!(ended, Ended::Failed { run: Some(_), .. }), "{ended:?}");
    let run = world.last_run().await;
    assert_eq!(run.state, RunState::Failed);
    assert!(run.reason.unwrap().contains("step 2 went wrong"));
    assert_eq!((world.active(), world.generations()), (Generation::BASE, vec![0]));
}

#[tokio::test]
async fn without_pairs_or_held_out_prompts_no_trainer_starts() {
    let world = World::new(improving(), "crash.sh", &["70"]).await;
    let ended = world.train().await;
    let Ended::Rejected { run, reason, .. } = ended else { panic!("{ended:?}") };
    assert!(reason.contains("no stored prompts: chat with it"), "{reason}");
    // An owner who looks in the morning finds it.
    let recorded = world.parts.store.run(run).await.unwrap();
    assert_eq!((recorded.state, recorded.reason), (RunState::Rejected, Some(reason)));
    world.remember("ask held out 3").await;
    let Ended::Rejected { reason, .. } = world.train().await else { panic!("it trained") };
    assert!(reason.contains("all 1 stored prompts are held out"), "{reason}");

    world.remember_some().await;
    world.change_agent(|agent| agent.held_out = None);
    let ended = world.train().await;
    let Ended::Rejected { reason, .. } = ended else { panic!("{ended:?}") };
    assert!(reason.contains("add a held_out file"), "{reason}");
}

#[tokio::test]
async fn too_few_held_out_prompts_are_told_of_before_the_night_and_nothing_is_trained() {
    let world = World::new(improving(), "crash.sh", &["70"]).await;
    world.remember_some().await;
    let line = |i| format!("{{\"id\":\"{i}\",\"prompt\":\"ask held out {i}\"}}");
    let lines: Vec<String> = (0..12).map(line).collect();
    write(&world.root().join("held_out.jsonl"), &lines.join("\n"));
    let (learner, task) = world.learner();
    let ready = learner.readiness().await.unwrap();
    let says = ready.power.unwrap().says;
    assert_eq!(ready.unjudgeable.as_ref(), Some(&says), "one wording");
    assert!(says.contains("12 held-out prompts") && says.contains("at least 20"), "{says}");
    let ended = learner.train().await.unwrap();
    let Ended::Rejected { reason, .. } = ended else { panic!("the trainer started: {ended:?}") };
    assert_eq!(reason, says);
    assert_eq!(world.last_run().await.metrics["held_out"]["prompts"], 12);
    learner.shutdown().await;
    task.await.unwrap();
}

#[tokio::test]
async fn a_promoted_generation_is_served_again_after_a_restart() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    assert!(matches!(world.train().await, Ended::Promoted { .. }));
    let world = world.restarted(improving()).await;
    assert_eq!(restore(&world.parts).await, Generation(1));
    assert_eq!(world.active(), Generation(1));
}

#[tokio::test]
async fn a_damaged_adapter_gives_way_to_the_one_before() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    assert!(matches!(world.train().await, Ended::Promoted { .. }));
    assert!(matches!(world.train().await, Ended::Promoted { .. }));
    write(&world.parts.state.adapter(2), "damaged");
    let world = world.restarted(improving()).await;
    assert_eq!(restore(&world.parts).await, Generation(1));
    assert_eq!((world.active(), world.stored_active().await), (Generation(1), Some(1)));
    write(&world.parts.state.adapter(1), "damaged");
    let world = world.restarted(improving()).await;
    assert_eq!(restore(&world.parts).await, Generation::BASE);
    assert_eq!(world.stored_active().await, None);
}

#[tokio::test]
async fn a_crash_between_the_file_and_its_record_changes_nothing() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    let path = world.parts.state.adapter(1);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    write(&path, "left behind");
    let record = serde_json::json!({});
    let parts = &world.parts;
    parts.store.start_run(Generation::BASE, "00".into(), record, Vec::new()).await.unwrap();
    let world = world.restarted(improving()).await;
    assert_eq!(restore(&world.parts).await, Generation::BASE);
    let left = world.last_run().await;
    assert_eq!(left.state, RunState::Interrupted);
    let ended = world.train().await;
    assert!(matches!(ended, Ended::Promoted { generation: Generation(1), .. }), "{ended:?}");
    let left = world.parts.store.run(left.id).await.unwrap();
    assert_eq!(left.state, RunState::Failed);
    assert!(left.reason.unwrap().ends_with("another version of reflectd began it"));
}

#[tokio::test]
async fn a_rollback_goes_to_the_base_and_back() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    assert!(matches!(world.train().await, Ended::Promoted { .. }));
    let (learner, _task) = world.learner();
    learner.rollback(Generation::BASE).await.unwrap();
    assert_eq!((world.active(), world.stored_active().await), (Generation::BASE, None));
    // Whether or not the adapter has drained by now.
    learner.rollback(Generation(1)).await.unwrap();
    assert_eq!((world.active(), world.stored_active().await), (Generation(1), Some(1)));
    let error = learner.rollback(Generation(7)).await.unwrap_err();
    assert!(matches!(error, LearnError::Store(StoreError::NotFound { id: 7, .. })), "{error}");
}

#[tokio::test]
async fn a_run_refuses_other_wishes_joins_equal_ones_and_can_be_cancelled() {
    let world = World::new(improving(), "hang.sh", &[]).await;
    world.remember_some().await;
    let (learner, task) = world.learner();
    let mut stage = learner.stage();
    let train = || {
        let learner = learner.clone();
        tokio::spawn(async move { learner.train().await })
    };
    let first = train();
    stage.wait_for(|stage| matches!(stage, Stage::Training { .. })).await.unwrap();
    let busy = learner.explore(all(1)).await.unwrap_err();
    assert!(matches!(busy, LearnError::Busy(_)), "{busy}");
    let busy = learner.rollback(Generation::BASE).await.unwrap_err();
    assert!(matches!(busy, LearnError::Busy(_)), "{busy}");
    let second = train();
    learner.cancel().await.unwrap();
    let ended = first.await.unwrap().unwrap();
    assert!(matches!(ended, Ended::Failed { run: Some(_), .. }), "{ended:?}");
    assert_eq!(world.last_run().await.state, RunState::Cancelled);
    // The second wish either joined the first or came after it.
    learner.cancel().await.unwrap();
    second.await.unwrap().unwrap();
    learner.shutdown().await;
    task.await.unwrap();
    assert!(matches!(learner.train().await, Err(LearnError::Stopped)));
}

#[tokio::test]
async fn a_shutdown_stops_the_trainer_and_records_it() {
    let world = World::new(improving(), "hang.sh", &[]).await;
    world.remember_some().await;
    let (learner, task) = world.learner();
    let training = tokio::spawn({
        let learner = learner.clone();
        async move { learner.train().await }
    });
    learner.stage().wait_for(|stage| matches!(stage, Stage::Training { .. })).await.unwrap();
    learner.shutdown().await;
    task.await.unwrap();
    assert!(matches!(training.await.unwrap(), Ok(Ended::Interrupted { .. })));
    let run = world.last_run().await;
    assert_eq!((run.state, run.ended_ms), (RunState::Interrupted, None));
    assert_eq!(run.reason.as_deref(), Some("the daemon was stopped"));
}

#[tokio::test]
async fn exploration_fills_stored_prompts_and_finds_answers_that_pass() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    let (learner, _task) = world.learner();
    let ended = learner.explore(all(3)).await.unwrap();
    let Ended::Explored { harvest, .. } = ended else { panic!("{ended:?}") };
    let Harvest { prompts, candidates, positives, .. } = harvest;
    assert_eq!(prompts, 3);
    assert_eq!(learner.harvest(), harvest);
    assert!(candidates > 0 && positives >= 3, "{candidates} candidates, {positives} pass");
    assert!(matches!(*learner.stage().borrow(), Stage::Idle));
}

/// The data set of the last run, line by line.
async fn lines<T: serde::de::DeserializeOwned>(world: &World) -> (Job, Vec<T>) {
    let job: Job = serde_json::from_value(world.last_run().await.job).unwrap();
    let text = std::fs::read_to_string(&job.data).unwrap();
    (job, text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}
