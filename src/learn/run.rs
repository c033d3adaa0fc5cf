//! One run, straight: pairs, data set, trainer, check, gate, promotion. Read it from top to bottom.
//! Each step's decision lives elsewhere (`pairs`, `adapter`, `gate`); a run changes nothing of what
//! is served until `promote` has recorded it. Used by `task`.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::watch;
use tracing::{Instrument as _, info, warn};

use super::adapter;
use super::arena::Arena;
use super::cancel::Cancel;
use super::child::{self, Trained, TrainerError, Update};
use super::error::RunError;
use super::gate::{self, Power, Verdict};
use super::held_out::{self, Questions};
use super::job;
use super::lesson::{self, Lesson};
use super::material::Material;
use super::program;
use super::promote::{self, Promotion, blocking};
use super::readiness::Readiness;
use super::{Ended, Parts, Stage, judge, practice, resume};
use crate::trust::Standing;
use config::Config;
use engine::Generation;
use protocol::{Job, Step, TrainerEvent};
use store::{RunId, RunState};

/// A recorded run with what its steps need.
pub(super) struct Run<'a> {
    pub(super) parts: &'a Parts,
    pub(super) config: Arc<Config>,
    pub(super) stage: &'a watch::Sender<Stage>,
    pub(super) id: RunId,
    /// What is served when it starts: where training begins, the reference policy, the opponent.
    pub(super) start: Generation,
    pub(super) job: Job,
    /// What there is without training: an adapter that was made elsewhere, or what the trainer made
    /// before the run was interrupted.
    pub(super) trained: Option<Trained>,
    pub(super) questions: Questions,
}

/// From pairs to a verdict, or on from where a run was interrupted. A new run needs `min_new_pairs`
/// that are newer than the last run's; `None`: no new run.
pub(super) async fn run(
    parts: &Parts,
    min_new_pairs: Option<usize>,
    stage: &watch::Sender<Stage>,
    cancel: Cancel,
) -> Ended {
    stage.send_replace(Stage::Pairing);
    match prepare(parts, min_new_pairs, stage).await {
        Ok(run) => conclude(run, cancel).await,
        Err(RunError::NothingToLearn { run, reason }) => {
            Ended::Rejected { run, reason, verdict: serde_json::Value::Null }
        }
        Err(error) => Ended::Failed { run: None, reason: error.reason() },
    }
}

/// From a recorded run to its end, which is recorded too.
pub(super) async fn conclude(run: Run<'_>, cancel: Cancel) -> Ended {
    let (id, parts) = (run.id, run.parts);
    let span = tracing::info_span!("train", run_id = %id);
    let ended = match run.finish(cancel).instrument(span).await {
        Ok(ended) => ended,
        Err(error) => {
            let (state, reason) = (error.state(), error.reason());
            warn!(run_id = %id, error = reason, "A training run has failed or was interrupted.");
            let stored = parts.store.update_run(id, state, Some(reason.clone()), json!({}));
            if let Err(error) = stored.await {
                warn!(run_id = %id, %error, "The end of the run is not recorded.");
            }
            if state == RunState::Interrupted {
                Ended::Interrupted { run: id, reason }
            } else {
                resume::forget_checkpoint(&run.job.out).await;
                Ended::Failed { run: Some(id), reason }
            }
        }
    };
    promote::prune(parts).await;
    ended
}

async fn prepare<'a>(
    parts: &'a Parts,
    min_new_pairs: Option<usize>,
    stage: &'a watch::Sender<Stage>,
) -> Result<Run<'a>, RunError> {
    let config = parts.config.borrow().clone();
    if let Some(found) = resume::next(parts, &config).await? {
        let (questions, _) = held_out::read_all(&parts.store, &config).await?;
        let resume::Waiting { id, start, job, trained } = found;
        if trained.is_none() {
            program::command_line(&config.trainer).map_err(TrainerError::from)?;
        }
        info!(run_id = %id, start = start.0, "An interrupted training run goes on.");
        return Ok(Run { parts, config, stage, id, start, job, trained, questions });
    }
    let Some(min_new_pairs) = min_new_pairs else { return Err(RunError::NothingToResume) };
    // Before pairs are collected and a run is recorded.
    program::command_line(&config.trainer).map_err(TrainerError::from)?;
    practice::sync(parts, &config).await?;
    let (questions, held_out) = held_out::read_all(&parts.store, &config).await?;
    let lesson = lesson::next(parts, &config, &held_out, 0 < min_new_pairs).await?;
    let n_new = lesson.material.n_new;
    if !lesson.is_of_examples() && (lesson.material.rows.is_empty() || n_new < min_new_pairs) {
        let agents = config.agents.values().filter(|agent| agent.learn).count();
        let asked = held_out::count(&questions.held_out);
        let found = Readiness::new(&lesson.material, agents, asked, min_new_pairs);
        return Err(nothing_to_learn(parts, &found).await?);
    }
    let Lesson { name: lesson, material } = lesson;
    let Material { dataset, rows, tally, yielded, replayed, objective, .. } = material;

    let start = parts.engine.stats().active;
    let time = chrono::Utc::now().format("%Y%m%dT%H%M%S%.3f");
    let label = format!("{time}-{}", dataset.sha256.get(..8).unwrap_or_default());
    let data = (dataset.counts(), dataset.seed());
    let job = job::starting_now(parts, &config, start, label, objective, data).await?;
    let written = job.clone();
    let dataset = blocking(move || {
        let write = || {
            std::fs::create_dir_all(&written.out)?;
            dataset.write(&written.data)
        };
        let path = written.data.clone();
        write().map(|()| dataset).map_err(|source| RunError::Write { path, source })
    })
    .await?;
    let n_pairs = rows.len();
    let record = serde_json::to_value(&job).expect("a job is plain data");
    let id = parts.store.start_run(start, dataset.sha256, record, rows).await?;
    info!(run_id = %id, pairs = n_pairs, start = start.0, "A training run starts.");
    let held_out = Power::new(held_out::count(&questions.held_out), &config.learn.gate);
    let facts = json!({
        "lesson": lesson,
        "tally": tally,
        "yield": yielded,
        "replayed": replayed,
        "held_out": held_out,
        "version": env!("CARGO_PKG_VERSION"),
    });
    parts.store.update_run(id, RunState::Training, None, facts).await?;
    Ok(Run { parts, config, stage, id, start, job, trained: None, questions })
}

/// Records a run that has nothing to learn from, or too little that is new, with its reason in
/// numbers.
async fn nothing_to_learn(parts: &Parts, found: &Readiness) -> Result<RunError, RunError> {
    let reason = found.lacks().unwrap_or_default();
    let start = parts.engine.stats().active;
    let id = parts.store.start_run(start, String::new(), json!({}), Vec::new()).await?;
    let facts = json!({
        "tally": found.tally, "yield": found.yielded, "version": env!("CARGO_PKG_VERSION")
    });
    parts.store.update_run(id, RunState::Rejected, Some(reason.clone()), facts).await?;
    info!(run_id = %id, reason, "There is nothing to learn from.");
    Ok(RunError::NothingToLearn { run: id, reason })
}

impl Run<'_> {
    async fn finish(&self, cancel: Cancel) -> Result<Ended, RunError> {
        // Before the trainer works all night for an adapter that nothing can judge.
        if let Some(reason) = self.unjudgeable() {
            return self.reject(reason, serde_json::Value::Null).await;
        }
        let trained = match &self.trained {
            Some(trained) => trained.clone(),
            None => {
                let mut stop = cancel.clone();
                let untrusted = tokio::select! {
                    untrusted = self.untrusted() => untrusted?,
                    why = stop.cancelled() => return Err(RunError::Cancelled(why)),
                };
                if let Some(reason) = untrusted {
                    return self.reject(reason, serde_json::Value::Null).await;
                }
                self.train(cancel.clone()).await?
            }
        };
        self.check(&trained).await?;
        let candidate = self.parts.store.next_generation().await?;
        self.parts.engine.load_adapter(candidate, trained.adapter.clone()).await?;
        let promoted = self.gate(candidate, &trained, cancel).await;
        if !matches!(promoted, Ok(Ended::Promoted { .. })) {
            // Awaited, because the next candidate gets the same number.
            if let Err(error) = self.parts.engine.retire(candidate).await {
                warn!(%error, "A refused adapter keeps its memory.");
            }
        }
        promoted
    }

    /// An agent whose answers are learned from, but that has nothing to be judged by; or too few
    /// held-out prompts in all.
    fn unjudgeable(&self) -> Option<String> {
        let learning = self.config.agents.values().filter(|agent| agent.learn);
        let mut unjudged = learning.filter(|agent| {
            !self.questions.held_out.iter().any(|question| question.agent.name == agent.name)
        });
        let without = unjudged.next().map(|agent| {
            let advice = match agent.held_out {
                Some(config::HeldOut::Auto) => {
                    "`held_out: auto` sets some aside when there are more prompts with a verifier, a \
                     reference or your words; or add a held_out file to it"
                }
                _ => "add a held_out file to it, or set `held_out: auto`",
            };
            format!(
                "agent {} has no held-out prompts, so nothing can show that an adapter is better: \
                 {advice}, or set `learn: false`",
                agent.name
            )
        });
        let n_prompts = held_out::count(&self.questions.held_out);
        let power = Power::new(n_prompts, &self.config.learn.gate);
        without.or_else(|| (!power.is_enough()).then_some(power.says))
    }

    /// An agent whose judge is below the floor. What is known of the judges goes into the record.
    async fn untrusted(&self) -> Result<Option<String>, RunError> {
        let standings = judge::standings(self.parts, &self.config, self.stage).await?;
        let facts = json!({ "judge": standings });
        self.parts.store.update_run(self.id, RunState::Training, None, facts).await?;
        Ok(standings.into_iter().find_map(|(agent, standing)| match standing {
            Standing::Blocked { reason } => Some(reason),
            Standing::Unmeasured { reason } => {
                warn!(agent, reason, "The model learns from a judge that nobody has measured.");
                None
            }
            Standing::Trusted { .. } => None,
        }))
    }

    async fn train(&self, cancel: Cancel) -> Result<Trained, RunError> {
        let reflector = self.parts.reflector.clone();
        let quiet = move || reflector.quiet();
        let mut curves = Curves::default();
        let mut update = |update: Update| {
            curves.take(update);
            self.stage.send_replace(Stage::Training {
                run: self.id,
                n_steps: curves.n_steps,
                step: curves.step,
                paused: curves.paused,
            });
        };
        let trained =
            child::train(&self.config.trainer, &self.job, &quiet, &mut update, cancel).await;
        // Also those of a run that failed: they say how.
        let lines = std::mem::take(&mut curves.lines);
        let path = self.job.out.join("events.jsonl");
        let written = blocking({
            let path = path.clone();
            move || {
                // What it said before it was interrupted.
                let mut all = std::fs::read(&path).unwrap_or_default();
                all.extend(lines);
                files::write_atomic(&path, |file| std::io::Write::write_all(file, &all))
            }
        });
        written.await.map_err(|source| RunError::Write { path, source })?;
        let trained = trained?;
        let facts = json!({
            "step": curves.step,
            "best_step": trained.best_step,
            "best_loss": trained.best_loss,
            "adapter_sha256": trained.sha256,
        });
        self.parts.store.update_run(self.id, RunState::Gating, None, facts).await?;
        resume::forget_checkpoint(&self.job.out).await;
        Ok(trained)
    }

    async fn check(&self, trained: &Trained) -> Result<(), RunError> {
        let Trained { adapter, sha256, .. } = trained.clone();
        let Job { base, base_sha256, .. } = self.job.clone();
        let checked = blocking(move || {
            let base = adapter::Base { path: &base, sha256: &base_sha256 };
            adapter::check(&adapter, &sha256, base)
        });
        Ok(checked.await?)
    }

    async fn gate(
        &self,
        candidate: Generation,
        trained: &Trained,
        mut cancel: Cancel,
    ) -> Result<Ended, RunError> {
        let verdict = tokio::select! {
            verdict = self.verdict(candidate, trained) => verdict?,
            stop = cancel.cancelled() => return Err(RunError::Cancelled(stop)),
        };
        let numbers = serde_json::to_value(&verdict).expect("a verdict is plain data");
        if verdict.gap_alarm {
            let reason = format!(
                "run {}: the judge sees a gain of {:+.3} that the verifiers do not see",
                self.id, verdict.gain
            );
            warn!(run_id = %self.id, reason, "The judge and the verifiers disagree.");
            let detail = json!({ "run": self.id, "reason": reason });
            self.parts.store.add_event("alarm".to_owned(), detail).await?;
        }
        if !verdict.promote {
            return self.reject(verdict.reason, numbers).await;
        }
        let (run, generation) = (self.id, candidate);
        let metrics = json!({ "gate": numbers });
        self.parts.store.update_run(run, RunState::Gating, Some(verdict.reason), metrics).await?;
        let verdict = numbers.clone();
        let parent = self.start;
        let promotion = Promotion { run, generation, parent, trained, verdict };
        let share = promote::promote(self.parts, promotion).await?;
        Ok(Ended::Promoted { run, generation, share, verdict: numbers })
    }

    async fn verdict(&self, candidate: Generation, trained: &Trained) -> Result<Verdict, RunError> {
        let config = &self.config.learn.gate;
        let seed = self.job.seed;
        let asked = held_out::choose(&self.questions.held_out, config.prompts, seed);
        let general = held_out::choose(&self.questions.general, config.general_prompts, seed);
        let show = |done| {
            let total = asked.len();
            self.stage.send_replace(Stage::Gating { run: self.id, done, total });
        };
        show(0);
        let start = if self.job.start.is_some() { self.start } else { Generation::BASE };
        let (parts, active) = (self.parts, self.start);
        let arena = Arena { parts, config, run: self.id, active, start, candidate };
        let probe = trained.probe.as_deref();
        let evidence = arena.evidence(probe, &asked, &general, &show).await?;
        Ok(gate::judge(&evidence, config))
    }

    async fn reject(&self, reason: String, verdict: serde_json::Value) -> Result<Ended, RunError> {
        info!(reason, "The adapter is not promoted.");
        let state = RunState::Rejected;
        let metrics = json!({ "gate": verdict });
        self.parts.store.update_run(self.id, state, Some(reason.clone()), metrics).await?;
        Ok(Ended::Rejected { run: self.id, reason, verdict })
    }
}

/// What the trainer has said so far: for the progress bar, and as lines for the run's folder.
#[derive(Debug, Default)]
struct Curves {
    n_steps: usize,
    step: Step,
    paused: bool,
    lines: Vec<u8>,
}

impl Curves {
    fn take(&mut self, update: Update) {
        match update {
            Update::Paused(paused) => self.paused = paused,
            Update::Event(event) => {
                serde_json::to_writer(&mut self.lines, &event)
                    .expect("an event is plain data, and a Vec takes all bytes");
                self.lines.push(b'\n');
                match event {
                    TrainerEvent::Started { n_steps, .. } => self.n_steps = n_steps,
                    TrainerEvent::Resumed { step } => self.step.step = step,
                    TrainerEvent::Step(step) => self.step = step,
                    _ => {}
                }
            }
        }
    }
}
