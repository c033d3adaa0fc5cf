//! READ FIRST: builds everything, runs one loop over [`Event`], stops everything in order.
//! It decides nothing about answers or training: every other module is handed here what it needs,
//! and tells the rest through the handle that it gave back. Called by `main` for `serve`, and by
//! the integration tests.

mod lock;
mod reload;
mod socket;
mod systemd;

use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, select_all};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::api::wire::ConfigReport;
use crate::api::{self, Phase};
use crate::learn::{self, Learner};
use crate::paths::StateDir;
use crate::reflect::Reflector;
use crate::socket_path::SocketPath;
use config::{self, Config, ConfigError};
use engine::llama::{self, OtherModels};
use engine::probe::Prober;
use engine::step_lock::StepLock;
use engine::{self, Engine, EngineConfig, EngineError, EngineThread, ModelInfo, reward};
use prompt::ChatTemplate;
use protocol::exit::Exit;
use store::{self, StoreError, StoreThread};

use lock::StateLock;
use socket::SocketFile;
use systemd::Watchdog;

/// Commands from signals and tests. A short queue is enough, because the loop takes each one at
/// once.
const CONTROLS: usize = 8;
/// How long owners and tasks that have been told to end may take before they are left behind.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Where things are.
#[derive(Debug)]
pub struct Options {
    /// The folder of `reflectd.yaml`, `agents/` and `prompts/`.
    pub root: PathBuf,
    /// The folder of everything that the daemon writes.
    pub state: PathBuf,
    /// Where the socket lies, unless the configuration names one.
    pub socket: SocketPath,
    /// What answers.
    pub engine: EngineSource,
}

/// What answers.
pub enum EngineSource {
    /// The configured GGUF in llama.cpp.
    Llama,
    /// An engine on a backend of the caller's, as tests have one.
    Custom(Box<SpawnEngine>),
}

/// Starts an engine that takes its steps in turn with those of other models, and has a queue of
/// this length.
pub type SpawnEngine = dyn for<'a> Fn(&'a StepLock, usize) -> BoxFuture<'a, Result<(Engine, EngineThread), EngineError>>
    + Send
    + Sync;

impl std::fmt::Debug for EngineSource {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Llama => "Llama",
            Self::Custom(_) => "Custom",
        })
    }
}

/// A command to the running daemon.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Control {
    /// Read the configuration again.
    Reload,
    /// Start a training run.
    TrainNow,
    /// End after the requests that run.
    Drain,
    /// End at once.
    ExitNow,
}

/// What the loop waits for.
#[derive(Debug)]
enum Event {
    Control(Control),
    ConfigChanged,
    WatchdogDue,
    OwnerDied(&'static str),
}

/// Why the loop ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    Asked,
    Forced,
    OwnerDied,
}

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state folder cannot be used.
    #[error("open the state folder {path}")]
    State {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Another daemon has the state folder.
    #[error("another daemon uses {path}; stop it, or choose another folder with --state")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// The files have problems.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The database cannot be used.
    #[error("open the database")]
    Store(#[from] StoreError),
    /// The model cannot be loaded.
    #[error("start the engine")]
    Engine(#[from] EngineError),
    /// The socket cannot be opened.
    #[error("listen on {path}")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl StartError {
    /// The number that the program ends with.
    pub fn exit(&self) -> Exit {
        match self {
            Self::State { .. } | Self::Locked { .. } | Self::Store(_) | Self::Socket { .. } => {
                Exit::System
            }
            Self::Config(_) => Exit::Config,
            // Not `Internal`, because the service manager would start the same program again.
            Self::Engine(
                EngineError::Load { .. } | EngineError::Invalid(_) | EngineError::Kernels(_),
            ) => Exit::Config,
            Self::Engine(_) => Exit::Internal,
        }
    }
}

/// A started daemon: it answers already, [`Daemon::run`] looks after it.
#[derive(Debug)]
pub struct Daemon {
    // What is told from outside.
    controls: mpsc::Sender<Control>,
    inbox: mpsc::Receiver<Control>,
    changes: mpsc::Receiver<()>,
    // Dropping it stops the watch; `None` when the system refused one.
    watch: Option<config::watch::Watch>,
    // State that is sent to all tasks.
    config: watch::Sender<Arc<Config>>,
    report: watch::Sender<ConfigReport>,
    phase: watch::Sender<Phase>,
    // Engines, of which one at a time takes a step.
    step_lock: StepLock,
    engine: Engine,
    engine_thread: EngineThread,
    /// Of a second model that judges and of a reward model, where there are any.
    beside: Vec<Beside>,
    reflector: Reflector,
    learner: Learner,
    learner_task: JoinHandle<()>,
    server: JoinHandle<io::Result<()>>,
    store_thread: StoreThread,
    // Released last.
    socket: SocketFile,
    lock: StateLock,
}

/// A thread of a model beside the served one, by its name.
type Beside = (&'static str, EngineThread);

/// Builds everything, in the order in which each part needs the ones before it.
pub async fn start(options: Options) -> Result<Daemon, StartError> {
    let Options { root, state, socket, engine } = options;
    let state_error = |source| StartError::State { path: state.clone(), source };
    let state_dir = StateDir::open(&state).map_err(state_error)?;
    let lock = StateLock::take(&state_dir)?;
    let config = reload::load(root.clone()).await?;

    let (store, store_thread) = store::spawn(state_dir.database()).await?;
    let step_lock = StepLock::default();
    let later = need(config.judge_engine.as_ref()) + need(config.reward_engine.as_ref());
    let others = OtherModels { later, ..OtherModels::default() };
    let models = Models { source: engine, step_lock: &step_lock, state: &state_dir };
    let (engine, engine_thread) = models.engine(&config.served_engine(), others).await?;
    let template = Arc::new(chat_template(engine.info()));
    let reflector = Reflector::new(engine.clone(), store.clone(), template);
    let (reflector, beside) = models.beside(&engine, reflector, &config).await?;
    let problems = reload::check_agents(&config, &reflector)?;

    let path = socket.of_daemon(config.server.socket.as_deref(), state_dir.root());
    let config = watch::Sender::new(Arc::new(config));
    let parts = learn::Parts {
        engine: engine.clone(),
        store: store.clone(),
        reflector: reflector.clone(),
        config: config.subscribe(),
        state: state_dir,
    };
    let generation = learn::restore(&parts).await;
    let (learner, learner_task) = learn::spawn(parts);

    let is_shared = !config.borrow().server.allow_uids.is_empty();
    let (listener, socket) = socket::open(path, is_shared)?;
    let report = watch::Sender::new(ConfigReport::in_force(problems));
    let phase = watch::Sender::new(Phase::Serving);
    let server = api::spawn(
        listener,
        api::Parts {
            engine: engine.clone(),
            store,
            reflector: reflector.clone(),
            learner: learner.clone(),
            config: config.subscribe(),
            report: report.subscribe(),
            phase: phase.subscribe(),
        },
    );

    let (controls, inbox) = mpsc::channel(CONTROLS);
    // A queue of one is enough: a second change before the first is handled adds nothing.
    let (changed, changes) = mpsc::channel(1);
    let watch = config::watch::spawn(&root, changed)
        .inspect_err(|error| warn!(%error, "Configuration files are not watched."))
        .ok();
    info!(%generation, socket = %socket, model = engine.info().name, "Started.");
    Ok(Daemon {
        controls,
        inbox,
        changes,
        watch,
        config,
        report,
        phase,
        step_lock,
        engine,
        engine_thread,
        beside,
        reflector,
        learner,
        learner_task,
        server,
        store_thread,
        socket,
        lock,
    })
}

/// What loads models: the one that is served and those beside it.
struct Models<'a> {
    source: EngineSource,
    step_lock: &'a StepLock,
    state: &'a StateDir,
}

impl Models<'_> {
    async fn engine(
        &self,
        config: &EngineConfig,
        others: OtherModels,
    ) -> Result<(Engine, EngineThread), EngineError> {
        match &self.source {
            EngineSource::Llama => {
                let prober = self.prober();
                prober.model(&config.model).await?;
                let (engine, thread) = engine::spawn_beside(self.step_lock, config, others).await?;
                Ok((engine.with_prober(prober), thread))
            }
            EngineSource::Custom(spawn) => spawn(self.step_lock, config.queue).await,
        }
    }

    /// A second model that judges and a reward model, as far as agents name them.
    async fn beside(
        &self,
        engine: &Engine,
        mut reflector: Reflector,
        config: &Config,
    ) -> Result<(Reflector, Vec<Beside>), StartError> {
        let mut threads = Vec::new();
        // Of a model in several files all count.
        let file_size = |path: &Path| files::gguf::model_size(path).unwrap_or(0);
        let (mapped, copies) = (file_size(&config.engine.model), engine.most_copies());
        let mut others = OtherModels { mapped, copies, later: need(config.reward_engine.as_ref()) };
        if let Some(judge) = &config.judge_engine {
            let (engine, thread) = self.engine(judge, others).await?;
            others.mapped += file_size(&judge.model);
            others.copies += engine.most_copies();
            let template = Arc::new(chat_template(engine.info()));
            info!(model = engine.info().name, "A second model judges.");
            reflector = reflector.with_judge(engine, template);
            threads.push(("judge", thread));
        }
        if let Some(config) = &config.reward_engine {
            self.prober().model(&config.model).await?;
            let (reward, thread) = reward::spawn(self.step_lock, config, others).await?;
            let template = Arc::new(chat_template(reward.info()));
            info!(model = reward.info().name, "A reward model scores.");
            reflector = reflector.with_reward(reward, template);
            threads.push(("reward", thread));
        }
        Ok((reflector, threads))
    }

    fn prober(&self) -> Prober {
        // Under this name the program is there even after an upgrade has replaced its file.
        Prober::new("/proc/self/exe".into(), self.state.probes())
    }
}

/// Bytes of main memory that a model takes that is loaded later, without what takes only what is left. One
/// that cannot be read is refused then.
fn need(config: Option<&EngineConfig>) -> u64 {
    let memory = config.and_then(|config| llama::survey(config).ok()?.memory);
    memory.map_or(0, |plan| plan.host.without_judge() - plan.host.prefix_cache)
}

fn chat_template(info: &ModelInfo) -> ChatTemplate {
    ChatTemplate::new(info.chat_template.as_deref(), &info.bos, &info.eos)
}

impl Daemon {
    /// For signals and tests.
    pub fn control(&self) -> mpsc::Sender<Control> {
        self.controls.clone()
    }

    /// Looks after everything until the daemon is told to end or an owner dies, then ends it.
    pub async fn run(mut self) -> Exit {
        let mut watchdog = Watchdog::new();
        systemd::ready();
        let end = loop {
            match self.next_event(&mut watchdog).await {
                Event::Control(Control::Reload) | Event::ConfigChanged => self.reload().await,
                Event::Control(Control::TrainNow) => self.train_now(),
                Event::Control(Control::Drain) => break End::Asked,
                Event::Control(Control::ExitNow) => break End::Forced,
                Event::WatchdogDue => {
                    let step =
                        u64::try_from(self.step_lock.busy_for().as_millis()).unwrap_or(u64::MAX);
                    let mut stats = self.engine.stats();
                    let judge = self.engine.judge().stats().last_beat_ms;
                    stats.last_beat_ms = stats.last_beat_ms.max(step).max(judge);
                    watchdog.report(&stats);
                }
                Event::OwnerDied(owner) => {
                    error!(owner, "A part of the daemon ended unasked.");
                    break End::OwnerDied;
                }
            }
        };
        self.stop(end).await
    }

    async fn next_event(&mut self, watchdog: &mut Watchdog) -> Event {
        tokio::select! {
            Some(control) = self.inbox.recv() => Event::Control(control),
            Some(()) = self.changes.recv() => Event::ConfigChanged,
            () = watchdog.due() => Event::WatchdogDue,
            () = self.engine_thread.died() => Event::OwnerDied("engine"),
            owner = first_death(&mut self.beside) => Event::OwnerDied(owner),
            () = self.store_thread.died() => Event::OwnerDied("store"),
            _ = &mut self.learner_task => Event::OwnerDied("learner"),
            _ = &mut self.server => Event::OwnerDied("socket"),
        }
    }

    /// The new configuration is built fully before anybody sees it; a bad one changes nothing.
    async fn reload(&self) {
        systemd::reloading();
        let old = Arc::clone(&self.config.borrow());
        let report = match reload::renew(&old, &self.reflector).await {
            Ok((new, problems)) => {
                self.config.send_replace(Arc::new(new));
                info!("Reloaded the configuration.");
                ConfigReport::in_force(problems)
            }
            Err(ConfigError(problems)) => {
                for problem in &problems {
                    let file = problem.file.display();
                    warn!(%file, key = problem.key, error = problem.message, "Configuration kept.");
                }
                ConfigReport::rolled_back(problems)
            }
        };
        self.report.send_replace(report);
        systemd::ready();
    }

    fn train_now(&self) {
        let learner = self.learner.clone();
        tokio::spawn(async move {
            match learner.train().await {
                Ok(ended) => info!(?ended, "The run that was asked for has ended."),
                Err(error) => warn!(%error, "No run was started."),
            }
        });
    }

    /// Ends everything in order; each part is let go before the ones that it needs.
    async fn stop(self, end: End) -> Exit {
        systemd::stopping();
        let Self { mut inbox, config, phase, watch, learner, learner_task, server, .. } = self;
        let grace = config.borrow().server.shutdown_grace;
        info!(?end, ?grace, "Stopping.");
        phase.send_replace(Phase::Draining);
        drop(watch);

        let mut work = pin!(async move {
            tokio::join!(finished(server), async move {
                learner.shutdown().await;
                finished(learner_task).await;
            })
        });
        let exit = match end {
            End::Forced => Exit::Forced,
            End::OwnerDied => Exit::Internal,
            End::Asked => tokio::select! {
                _ = &mut work => Exit::Ok,
                () = tokio::time::sleep(grace) => {
                    warn!(?grace, "Requests that still run are cut off.");
                    Exit::Forced
                }
                () = told_again(&mut inbox) => Exit::Forced,
            },
        };
        phase.send_replace(Phase::Ending);
        if exit != Exit::Ok && timeout(LAST_WORDS, work).await.is_err() {
            warn!("Some work did not end and is left behind.");
        }

        // The owner threads end when their last handle is dropped.
        drop((self.engine, self.reflector));
        joined("engine", || self.engine_thread.join()).await;
        for (owner, thread) in self.beside {
            joined(owner, || thread.join()).await;
        }
        joined("store", || self.store_thread.join()).await;
        drop(self.socket);
        drop(self.lock);
        info!(?exit, "Stopped.");
        exit
    }
}

/// The first of these owners that ends; never, when there are none.
async fn first_death(beside: &mut [Beside]) -> &'static str {
    let deaths: Vec<_> = beside
        .iter_mut()
        .map(|(owner, thread)| {
            Box::pin(async move {
                thread.died().await;
                *owner
            })
        })
        .collect();
    if deaths.is_empty() { pending().await } else { select_all(deaths).await.0 }
}

/// A join handle must not be polled again after it has finished, which the loop may have seen.
async fn finished<T>(task: JoinHandle<T>) {
    if task.is_finished() {
        return;
    }
    if let Err(error) = task.await {
        warn!(%error, "A task ended badly.");
    }
}

async fn told_again(inbox: &mut mpsc::Receiver<Control>) {
    while let Some(control) = inbox.recv().await {
        match control {
            Control::Drain | Control::ExitNow => return,
            Control::Reload | Control::TrainNow => {}
        }
    }
}

async fn joined<E: Send + 'static>(
    owner: &'static str,
    join: impl FnOnce() -> Result<(), E> + Send + 'static,
) {
    match timeout(LAST_WORDS, tokio::task::spawn_blocking(join)).await {
        Ok(Ok(Ok(()))) => {}
        Ok(_) => error!(owner, "An owner thread panicked."),
        Err(_) => warn!(owner, "An owner thread did not end and is left behind."),
    }
}
