//! What every step works with: the engine with its adapters, the checked configuration, the
//! problems that measure, the records, the progress bar. Used by `unit` and the steps.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use config::{self, Agent, Config, PromptLine};
use engine::{self, Engine, EngineThread, Generation};
use indicatif::{ProgressBar, ProgressStyle};
use nano::prompts::prompt_lines;
use prompt::ChatTemplate;
use reflectd::learn::held_out::HeldOut;
use reflectd::reflect::Reflector;
use store::{self, Store};

use crate::arms::Arm;
use crate::records::{Finding, Records, Step};
use crate::setting::Setting;

/// Of the problems that measure: every arm of every unit answers the same ones.
const MEASURED_SEED: u64 = 1;

pub(crate) struct Lab {
    pub(crate) setting: Setting,
    pub(crate) config: Arc<Config>,
    /// The embedded agent, as every judge begins with it.
    pub(crate) agent: Arc<Agent>,
    pub(crate) engine: Engine,
    thread: EngineThread,
    template: Arc<ChatTemplate>,
    /// In the order of all answers.
    pub(crate) problems: Vec<PromptLine>,
    /// Their fingerprints.
    pub(crate) held_out: HeldOut,
    records: Records,
    progress: ProgressBar,
}

impl Lab {
    pub(crate) async fn open(setting: &Setting, n_steps: usize) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&setting.work)
            .with_context(|| format!("create {}", setting.work.display()))?;
        let mut config = config::load(&setting.root)?;
        config.engine.threads = Some(setting.threads);
        config.engine.batch_threads = None;
        config.trainer.threads = usize::try_from(setting.threads).context("count threads")?;
        config.trainer.command = Some(vec![setting.trainer.to_string_lossy().into_owned()]);
        config.learn.gate.prompts = setting.scale.gate;
        let agent = config.agents.get("nano").context("there is no agent named nano")?.clone();
        let (engine, thread) = engine::spawn(&config.engine).await?;
        let info = engine.info();
        let template = info.chat_template.as_deref();
        let template = Arc::new(ChatTemplate::new(template, &info.bos, &info.eos));
        let split = setting.scale.measured_split();
        let problems = prompt_lines(split, setting.scale.held_out, MEASURED_SEED);
        let key = setting.key(&config, &info.sha256);
        let records = Records::open(&setting.work.join("steps.jsonl"), &key, &setting.provenance)?;
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} of {eta} {msg}")
            .context("the template is a constant")?;
        let progress = ProgressBar::new(n_steps as u64).with_style(style);
        Ok(Self {
            setting: setting.clone(),
            config: Arc::new(config),
            agent,
            engine,
            thread,
            template,
            held_out: HeldOut::new(problems.iter().map(|line| line.prompt.as_str())),
            problems,
            records,
            progress,
        })
    }

    /// Where this setting's stores and adapters lie: another setting has a folder of its own.
    pub(crate) fn folder(&self) -> PathBuf {
        self.setting.work.join(self.records.key())
    }

    /// Stops the engine, and hands out what is known.
    pub(crate) fn close(self) -> anyhow::Result<Records> {
        self.progress.finish_and_clear();
        let Self { engine, thread, records, .. } = self;
        drop(engine);
        thread.join().map_err(|_| anyhow::anyhow!("the engine thread panicked"))?;
        Ok(records)
    }

    pub(crate) fn step(&self, name: &str) -> Option<&Step> {
        self.records.get(name)
    }

    /// Records what a step found. It took from `began` to now.
    pub(crate) fn record(
        &mut self,
        name: String,
        began: Instant,
        finding: Finding,
    ) -> anyhow::Result<()> {
        self.records.add(name, began.elapsed().as_secs_f64(), finding)
    }

    /// Says what is being done, on the progress bar, or as a line where there is no terminal.
    pub(crate) fn say(&self, what: &str) {
        if self.progress.is_hidden() {
            eprintln!("{} {what}", chrono::Local::now().format("%H:%M:%S"));
        }
        self.progress.set_message(what.to_owned());
    }

    /// So many steps more are done, now or before.
    pub(crate) fn advance(&self, steps: usize) {
        self.progress.inc(steps as u64);
    }

    /// A database of its own for one exploration, so that no arm sees another's answers.
    pub(crate) async fn store(&self, path: PathBuf) -> anyhow::Result<Store> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("create {}", folder.display()))?;
        }
        // The thread ends by itself when the last handle is dropped.
        let (store, _thread) = store::spawn(path).await?;
        Ok(store)
    }

    pub(crate) fn reflector(&self, store: &Store) -> Reflector {
        Reflector::new(self.engine.clone(), store.clone(), self.template.clone())
    }

    /// Loads an arm's adapter, unless it is loaded.
    pub(crate) async fn load(&self, arm: Arm, adapter: PathBuf) -> anyhow::Result<()> {
        let generations = self.engine.stats().generations;
        if generations.iter().any(|(generation, _)| *generation == arm.generation()) {
            return Ok(());
        }
        self.engine.load_adapter(arm.generation(), adapter).await.context("load an adapter")
    }

    /// Unloads every adapter.
    pub(crate) async fn unload(&self) -> anyhow::Result<()> {
        self.engine.activate(Generation::BASE).await?;
        for (generation, _) in self.engine.stats().generations {
            if generation != Generation::BASE {
                self.engine.retire(generation).await?;
            }
        }
        Ok(())
    }
}
