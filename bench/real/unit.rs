//! One piece of work from an empty folder to its last answers. Every step that is recorded is passed over,
//! and what is not possible today is recorded as such. Used by `main` and the tests.

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use chrono::Local;
use files::gguf::Gguf;
use files::lora::{Adapter, Matrix, Pair};
use serde_json::json;

use crate::arms::{Arm, Round, Unit};
use crate::daemon::Daemon;
use crate::records::{Checked, Finding, Records, Trained};
use crate::root::Root;
use crate::setting::Setting;
use crate::task::{Kind, Task};
use crate::{general, measure, night};

/// Nights in a row.
const NIGHTS: usize = 5;
/// Prompts of a night of the coin.
const COIN_PROMPTS: usize = 40;
/// Of a night that an exploration may take.
const EXPLORING: f64 = 0.5;

/// What every unit works with.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) setting: Setting,
    pub(crate) records: Records,
}

impl Lab {
    pub(crate) fn open(setting: Setting) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&setting.work)
            .with_context(|| format!("create {}", setting.work.display()))?;
        let path = setting.work.join("steps.jsonl");
        let records = Records::open(&path, &setting.key()?, &setting.provenance)?;
        Ok(Self { setting, records })
    }

    /// Of this setting.
    fn folder(&self) -> PathBuf {
        self.setting.work.join(self.records.key())
    }

    fn root(&self, unit: &str) -> Root {
        Root::new(self.folder().join(unit.replace('/', "-")))
    }

    pub(crate) async fn run(&mut self, unit: Unit) -> anyhow::Result<()> {
        let name = unit.to_string();
        match unit {
            Unit::Learn(kind, Arm::Base, seed) => self.base(&name, kind, seed).await,
            Unit::Learn(kind, arm, seed) => {
                let task = kind.load(&self.setting, seed, arm.has_all())?;
                self.learn(&name, &task, arm, &arm.rounds(kind)).await
            }
            Unit::Nights(kind) => {
                let mut rounds = Arm::Sft.rounds(kind);
                rounds.extend([Round::Practice(None); NIGHTS]);
                let task = kind.load(&self.setting, 1, false)?;
                self.learn(&name, &task, Arm::Auto, &rounds).await
            }
            Unit::Coin => self.coin(&name).await,
            Unit::Same => self.same(&name).await,
        }
    }

    /// Does a step, unless it is recorded. What fails is a result, and is tried again by the next run.
    async fn step(
        &mut self,
        name: &str,
        work: impl Future<Output = anyhow::Result<Finding>>,
    ) -> anyhow::Result<Finding> {
        let recorded = self.records.get(name).map(|step| &step.finding);
        if let Some(finding) = recorded.filter(|it| !matches!(it, Finding::Failed { .. })) {
            return Ok(finding.clone());
        }
        say(name);
        let began = Instant::now();
        let finding =
            work.await.unwrap_or_else(|error| Finding::Failed { why: format!("{error:#}") });
        self.records.add(name, began.elapsed().as_secs_f64(), finding.clone())?;
        Ok(finding)
    }

    async fn base(&mut self, name: &str, kind: Kind, seed: u64) -> anyhow::Result<()> {
        let task = kind.load(&self.setting, seed, false)?;
        let (setting, root) = (self.setting.clone(), self.root(name));
        let work = async {
            root.write(&setting, &task, None)?;
            let daemon = Daemon::start(&setting, &root).await?;
            let answered = measure::answers(&setting, &daemon, &task).await?;
            daemon.stop().await?;
            Ok(Finding::Answered(answered))
        };
        self.step(&format!("{name}/answered-0"), work).await.map(drop)
    }

    /// Writes the folder. False: the product refuses it, and the unit ends here.
    async fn check(&mut self, name: &str, task: &Task, arm: Arm) -> anyhow::Result<bool> {
        let (setting, root) = (self.setting.clone(), self.root(name));
        root.write(&setting, task, Some(arm))?;
        let work =
            async { Ok(Finding::Checked(Checked { refused: root.problems(&setting.program)? })) };
        let found = self.step(&format!("{name}/check"), work).await?;
        Ok(matches!(found, Finding::Checked(Checked { refused }) if refused.is_empty()))
    }

    async fn learn(
        &mut self,
        name: &str,
        task: &Task,
        arm: Arm,
        rounds: &[Round],
    ) -> anyhow::Result<()> {
        if !self.check(name, task, arm).await? {
            return Ok(());
        }
        let (setting, root, folder) = (self.setting.clone(), self.root(name), self.folder());
        let mut served = 0;
        for (number, &round) in (1..).zip(rounds) {
            let work = play(&setting, &root, task, round);
            let found = self.step(&format!("{name}/round-{number}"), work).await?;
            let Finding::Trained(Trained { generation, .. }) = found else { continue };
            if generation == served {
                continue;
            }
            served = generation;
            let work = async {
                let daemon = Daemon::start(&setting, &root).await?;
                let mut answered = measure::answers(&setting, &daemon, task).await?;
                let row = daemon.get(&format!("/v1/adapters/{generation}")).await?;
                daemon.stop().await?;
                let path = row["path"].as_str().context("an adapter has a path")?;
                let path = root.state().join(path);
                answered.general_nats = general::nats(&setting, &root, &folder, &path).await?;
                Ok(Finding::Answered(answered))
            };
            self.step(&format!("{name}/answered-{number}"), work).await?;
        }
        Ok(())
    }

    /// A verifier that knows nothing: what it promotes is chance.
    async fn coin(&mut self, name: &str) -> anyhow::Result<()> {
        for toss in 1..=self.setting.scale.coins {
            let program = format!(
                "BEGIN {{ srand({toss}) }} {{ printf \"{{\\\"score\\\":%d,\\\"reason\\\":\\\"coin\\\"}}\\n\", \
                 rand() < 0.5; fflush() }}"
            );
            let mut task = Kind::Sentence.load(&self.setting, toss.into(), false)?;
            task.verifier = Some(json!({ "kind": "command", "command": ["awk", program] }));
            task.practice.truncate(COIN_PROMPTS);
            let name = format!("{name}/{toss}");
            // The next ones would be refused likewise.
            if !self.check(&name, &task, Arm::Auto).await? {
                return Ok(());
            }
            let (setting, root) = (self.setting.clone(), self.root(&name));
            let work = play(&setting, &root, &task, Round::Practice(None));
            self.step(&format!("{name}/round-1"), work).await?;
        }
        Ok(())
    }

    /// Imports an adapter that adds nothing to what is served.
    async fn same(&mut self, name: &str) -> anyhow::Result<()> {
        let task = Kind::Sentence.load(&self.setting, 1, false)?;
        if !self.check(name, &task, Arm::Auto).await? {
            return Ok(());
        }
        let (setting, root) = (self.setting.clone(), self.root(name));
        let work = async {
            let path = root.folder().join("same.gguf");
            nothing(&setting)?.write("nothing", &path)?;
            root.settings(&setting, None)?;
            let daemon = Daemon::start(&setting, &root).await?;
            let trained = night::import(&daemon, &path.to_string_lossy()).await?;
            daemon.stop().await?;
            Ok(Finding::Trained(without_folder(&root, trained)))
        };
        self.step(&format!("{name}/round-1"), work).await.map(drop)
    }
}

/// One round with a daemon of its own, so that its settings are those of the round.
async fn play(
    setting: &Setting,
    root: &Root,
    task: &Task,
    round: Round,
) -> anyhow::Result<Finding> {
    root.settings(setting, Some(round))?;
    let problems = root.problems(&setting.program)?;
    if !problems.is_empty() {
        bail!("refused: {}", problems.join("; "));
    }
    let daemon = Daemon::start(setting, root).await?;
    let trained = match round {
        Round::Examples => night::train(&daemon).await?,
        Round::Practice(_) => {
            let at_most = Duration::from_secs_f64(EXPLORING * task.night_s);
            night::practice(&daemon, at_most).await?
        }
    };
    daemon.stop().await?;
    Ok(Finding::Trained(without_folder(root, trained)))
}

fn without_folder(root: &Root, trained: Trained) -> Trained {
    Trained { reason: trained.reason.map(|reason| root.relative(&reason)), ..trained }
}

/// An adapter whose product is zero.
fn nothing(setting: &Setting) -> anyhow::Result<Adapter> {
    let model = Gguf::open(&setting.model)?;
    let name = "blk.0.attn_q.weight";
    let tensor = model.tensor(name).with_context(|| format!("the model has no {name}"))?;
    let [n_in, n_out] = [0, 1].map(|at| tensor.shape.get(at).copied().unwrap_or(0));
    let [n_in, n_out] = [usize::try_from(n_in)?, usize::try_from(n_out)?];
    let pair = Pair {
        a: Matrix { width: n_in, values: vec![0.01; n_in] },
        b: Matrix { width: 1, values: vec![0.0; n_out] },
    };
    Ok(Adapter {
        architecture: model.string("general.architecture").unwrap_or_default().to_owned(),
        alpha: 1.0,
        base_sha256: Some(files::sha256(&setting.model)?),
        pairs: [(name.to_owned(), pair)].into(),
    })
}

fn say(what: &str) {
    eprintln!("{} {what}", Local::now().format("%H:%M:%S"));
}
