//! One training run by the product's own parts: pairs, the trainer as a supervised child, and what
//! the gate would say of the adapter. Used by `unit`.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use config::Agent;
use engine::Generation;
use files::write_atomic;
use protocol::{self, Job, Objective, TrainerEvent};
use reflectd::learn::adapter::{self, Base};
use reflectd::learn::arena::Arena;
use reflectd::learn::child::{self, Update};
use reflectd::learn::dataset::Counts;
use reflectd::learn::held_out::Question;
use reflectd::learn::job::{Assignment, Lesson};
use reflectd::learn::pairs::{Pair, Pairing, Tally};
use reflectd::learn::{Cancel, Parts, gate};
use reflectd::paths::StateDir;
use store::{Candidate, CandidateId, Exchange, Store};
use tokio::sync::watch;

use crate::arms::{Arm, Unit, generation};
use crate::lab::Lab;
use crate::records::{Gate, Pairs, Trained};

/// A run about to start.
pub(crate) struct Run<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) unit: Unit,
    pub(crate) arm: Arm,
    /// With the unit's judge.
    pub(crate) agent: &'a Arc<Agent>,
    /// Where the exchanges lie.
    pub(crate) store: &'a Store,
    pub(crate) exchanges: &'a [Exchange],
    /// By the verifier, which only measures here.
    pub(crate) right: &'a HashSet<CandidateId>,
    /// The adapter to go on from; it is loaded.
    pub(crate) start: Option<&'a Path>,
}

impl Run<'_> {
    /// Leaves the new adapter loaded.
    pub(crate) async fn train(&self) -> anyhow::Result<Trained> {
        let Self { lab, unit, arm, .. } = *self;
        let (pairs, tally) = self.pairs()?;
        let job = self.job(&pairs)?;
        let mut steps = 0;
        let mut update = |update: Update| {
            if let Update::Event(TrainerEvent::Started { n_steps, .. }) = update {
                steps = n_steps;
            }
        };
        let (_switch, cancel) = Cancel::new();
        // No chat ever runs here, so the trainer is never stopped for one.
        let quiet = || Duration::MAX;
        let product = child::train(&lab.config.trainer, &job, &quiet, &mut update, cancel).await?;
        let trained = product.best;
        let base = Base { path: &job.base, sha256: &job.base_sha256 };
        adapter::check(&trained.adapter, &trained.sha256, base)?;
        lab.load(arm, trained.adapter.clone()).await?;
        let verdict = self.verdict(&pairs, &trained).await.context("ask the gate")?;
        Ok(Trained {
            // Below the lab's folder, which may be moved.
            adapter: PathBuf::from(unit.to_string())
                .join(arm.name())
                .join(trained.adapter.file_name().context("the adapter is a file")?),
            pairs: against_verifier(&pairs, tally, self.exchanges, self.right),
            steps,
            best_step: product.best_step,
            best_loss: product.best_loss,
            verdict,
        })
    }

    fn pairs(&self) -> anyhow::Result<(Vec<Pair>, Tally)> {
        let Self { lab, unit, arm, .. } = *self;
        let policy = arm.pairs(&lab.config.learn.pairs);
        let vocabulary = lab.engine.vocabulary().as_ref();
        let objective = self.objective();
        let mut pairing = Pairing::new(&policy, &objective, &lab.held_out, vocabulary);
        for exchange in self.exchanges {
            pairing.add(exchange);
        }
        let (pairs, tally) = pairing.finish();
        ensure!(
            tally.left_out.held_out == 0,
            "{} held-out prompts came into training",
            tally.left_out.held_out
        );
        ensure!(!pairs.is_empty(), "{unit} gives {} no pairs: {tally:?}", arm.name());
        Ok((pairs, tally))
    }

    fn objective(&self) -> Objective {
        self.arm.objective(self.lab.config.learn.objective)
    }

    /// Writes the data set.
    fn job(&self, pairs: &[Pair]) -> anyhow::Result<Job> {
        let Self { lab, unit, arm, .. } = *self;
        let folder = lab.folder().join(unit.to_string()).join(arm.name());
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        // The trainer runs in that folder, so its paths are absolute.
        let absolute = |path: &Path| {
            std::path::absolute(path).with_context(|| format!("name {}", path.display()))
        };
        let out = absolute(&folder)?;
        let data = out.join("data.jsonl");
        write_atomic(&data, |file| {
            for pair in pairs {
                serde_json::to_writer(&mut *file, &pair.example)?;
                file.write_all(b"\n")?;
            }
            Ok(())
        })
        .with_context(|| format!("write {}", data.display()))?;
        let info = lab.engine.info();
        let assignment = Assignment {
            lesson: Lesson::Answers,
            run: format!("{unit}-{}", arm.name()),
            base: absolute(&info.path)?,
            base_sha256: info.sha256.clone(),
            start: self.start.map(absolute).transpose()?,
            out,
            reference_cache: None,
            objective: self.objective(),
            n_parameters: info.n_parameters,
            counts: Counts { examples: pairs.len(), ..Counts::default() },
            seed: unit.seed,
        };
        Ok(assignment.job(&lab.config))
    }

    /// What the gate would say of the adapter against the one that it started from. It asks the
    /// first of the problems that measure, because it decides nothing here.
    async fn verdict(&self, pairs: &[Pair], trained: &child::Trained) -> anyhow::Result<Gate> {
        let Self { lab, unit, arm, agent, store, .. } = *self;
        let parts = Parts {
            engine: lab.engine.clone(),
            store: store.clone(),
            reflector: lab.reflector(store),
            config: watch::channel(lab.config.clone()).1,
            state: StateDir::open(&lab.folder().join(unit.to_string()))?,
        };
        let rows = pairs.iter().map(|pair| pair.row).collect();
        let job = serde_json::json!({ "run": arm.name() });
        // The experiment numbers its generations itself, and this database does not know the
        // numbers.
        let run = store.start_run(Generation::BASE, trained.sha256.clone(), job, rows).await?;
        let config = &lab.config.learn.gate;
        let (active, candidate) = (generation(arm.start()), arm.generation());
        let arena = Arena { parts: &parts, config, run, active, start: active, candidate };
        let line = |line| Question { agent: agent.clone(), line: unit.judge.line(line) };
        let questions: Vec<_> = lab.problems.iter().take(config.prompts).map(line).collect();
        let evidence = arena.evidence(trained.probe.as_deref(), &questions, &[], &|_| {}).await?;
        Ok(Gate::from(&gate::judge(&evidence, config)))
    }
}

fn against_verifier(
    pairs: &[Pair],
    tally: Tally,
    exchanges: &[Exchange],
    is_right: &HashSet<CandidateId>,
) -> Pairs {
    let candidates = exchanges.iter().flat_map(|exchange| &exchange.candidates);
    let by_id: HashMap<CandidateId, &Candidate> =
        candidates.map(|candidate| (candidate.id, candidate)).collect();
    let chosen: Vec<&Candidate> =
        pairs.iter().filter_map(|pair| Some(by_id[&pair.row.chosen?])).collect();
    let rejected: Vec<&Candidate> =
        pairs.iter().filter_map(|pair| Some(by_id[&pair.row.rejected?])).collect();
    let right = |of: &[&Candidate]| of.iter().filter(|one| is_right.contains(&one.id)).count();
    let tokens = |of: &[&Candidate]| {
        let lengths = of.iter().map(|candidate| candidate.tokens.len() as f64);
        (!of.is_empty()).then(|| statistics::mean(lengths))
    };
    Pairs {
        n: pairs.len(),
        without_chosen: tally.without_chosen,
        without_rejected: tally.without_rejected,
        chosen_right: right(&chosen),
        n_rejected: rejected.len(),
        rejected_right: right(&rejected),
        chosen_refined: chosen.iter().filter(|candidate| candidate.parent.is_some()).count(),
        chosen_tokens: tokens(&chosen).unwrap_or_default(),
        rejected_tokens: tokens(&rejected),
    }
}
