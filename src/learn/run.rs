//! One run, straight: pairs, data set, trainer, check, gate, promotion. Read it from top to bottom.
//! Each step's decision lives elsewhere (`pairs`, `adapter`, `gate`); a run changes nothing of what
//! is served until `promote` has recorded it. Used by `task`.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{Instrument as _, info, warn};

use super::adapter;
use super::arena::Arena;
use super::caller::Caller;
use super::cancel::Cancel;
use super::child::{self, Product, Trained, TrainerError, Update};
use super::error::RunError;
use super::gate::{self, Power, Verdict};
use super::guards::NIGHT;
use super::held_out::{self, HeldOut, Questions};
use super::job::{self, Lesson};
use super::lesson;
use super::made::{self, Made};
use super::material::Material;
use super::program;
use super::promote::{self, Promotion, blocking};
use super::readiness::Readiness;
use super::resume::{self, Waiting};
use super::selection::{Practice, Selection, Untrained};
use super::{Ended, Parts, Stage, judge, practice, rehearsal};
use crate::trust::Standing;
use config::Config;
use engine::Generation;
use protocol::{Job, Objective, Step, TrainerEvent};
use store::{RunId, RunState, StoreError};

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
    pub(super) made: Option<Made>,
    /// The same of the second candidate.
    pub(super) second: Option<Made>,
    pub(super) questions: Questions,
    /// What candidates are compared on; `None`: there is only one.
    pub(super) practice: Option<Practice>,
    /// How long it was trained before it was interrupted.
    pub(super) trained: Duration,
    /// A second candidate is trained if that ends by then.
    pub(super) until: Instant,
}

/// From pairs to a verdict, or on from where a run was interrupted. `budget`: what a night has left.
pub(super) async fn run(
    parts: &Parts,
    caller: Caller,
    budget: Duration,
    stage: &watch::Sender<Stage>,
    cancel: Cancel,
) -> Ended {
    let until = Instant::now() + budget;
    stage.send_replace(Stage::Pairing);
    match prepare(parts, caller, until, stage, &mut cancel.clone()).await {
        Ok(run) => conclude(run, cancel).await,
        Err(RunError::NothingToLearn { run, reason }) => {
            Ended::Rejected { run, reason, verdict: serde_json::Value::Null }
        }
        // Those that do not go on have a record each.
        Err(error @ RunError::NothingToResume) => {
            Ended::Failed { run: None, reason: error.reason() }
        }
        Err(error) if caller.is_scheduled() => broken(parts, &error).await,
        Err(error) => Ended::Failed { run: None, reason: error.reason() },
    }
}

/// What became of a scheduled run that broke before it had anything to train on.
pub(super) async fn broken(parts: &Parts, error: &RunError) -> Ended {
    let (state, reason) = (error.state(), error.reason());
    if state == RunState::Failed {
        failed(parts, reason).await
    } else {
        // Somebody has stopped it.
        Ended::Failed { run: None, reason }
    }
}

/// What became of an operation that has panicked: the run that it leaves under way has failed with it.
pub(super) async fn panicked(parts: &Parts, reason: String, is_scheduled: bool) -> Ended {
    let left = resume::fail_unfinished(parts, &reason).await.unwrap_or_else(|error| {
        warn!(%error, "It is not recorded that a run has failed.");
        None
    });
    // It may have left a candidate loaded, and the next one would get the same number.
    if let Ok(candidate) = parts.store.next_generation().await {
        parts.engine.retire(candidate).await.ok();
    }
    match left {
        None if is_scheduled => failed(parts, reason).await,
        run => Ended::Failed { run, reason },
    }
}

/// Records a scheduled run that failed before it had a record: nobody waits to be told.
async fn failed(parts: &Parts, reason: String) -> Ended {
    warn!(error = reason, "A scheduled run has failed before it trained.");
    match record(parts, RunState::Failed, reason.clone(), json!({})).await {
        Ok(run) => Ended::Failed { run: Some(run), reason },
        Err(error) => {
            warn!(%error, "It is not recorded that a scheduled run has failed.");
            Ended::Failed { run: None, reason }
        }
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
                resume::forget_checkpoints(&run.job.out).await;
                Ended::Failed { run: Some(id), reason }
            }
        }
    };
    promote::prune(parts).await;
    ended
}

async fn prepare<'a>(
    parts: &'a Parts,
    caller: Caller,
    until: Instant,
    stage: &'a watch::Sender<Stage>,
    cancel: &mut Cancel,
) -> Result<Run<'a>, RunError> {
    let config = parts.config.borrow().clone();
    let practised = practice::sync(parts, &config).await?;
    let (questions, held_out) = held_out::read_all(&parts.store, &config).await?;
    let waiting = match resume::next(parts, &config).await? {
        Some(found) => {
            info!(run_id = %found.id, start = found.start.0, "An interrupted training run goes on.");
            found
        }
        None => {
            let n_held_out = held_out::count(&questions.held_out);
            begin(parts, &config, &held_out, n_held_out, caller, cancel).await?
        }
    };
    let Waiting { id, start, job, lesson, trained, made, second } = waiting;
    let until = until.checked_sub(trained).unwrap_or(until);
    let practice = Some(Practice { practised, held_out, lesson });
    Ok(Run {
        parts,
        config,
        stage,
        id,
        start,
        job,
        made,
        second,
        questions,
        practice,
        trained,
        until,
    })
}

/// A new run: what it learns from, and its record. `n_held_out`: prompts that it can be judged by.
async fn begin(
    parts: &Parts,
    config: &Config,
    held_out: &HeldOut,
    n_held_out: usize,
    caller: Caller,
    cancel: &mut Cancel,
) -> Result<Waiting, RunError> {
    let min_new_pairs = caller.min_new_pairs().ok_or(RunError::NothingToResume)?;
    // Before pairs are collected and a run is recorded.
    program::command_line(&config.trainer).map_err(TrainerError::from)?;
    let material = lesson::next(parts, config, held_out, caller.is_scheduled()).await?;
    let is_too_little = material.rows.is_empty() || material.n_new < min_new_pairs;
    if material.lesson == Lesson::Answers && is_too_little {
        let found = Readiness::new(parts, &material, config, n_held_out, min_new_pairs).await?;
        return Err(nothing_to_learn(parts, &found).await?);
    }
    let Material { dataset, rows, tally, yielded, replayed, lesson, .. } = material;
    let rehearsed = rehearsal::examples(parts, config, held_out, lesson, rows.len());
    let rehearsed = stoppable(rehearsed, cancel).await??;
    let dataset = dataset.with(&rehearsed);

    let start = parts.engine.stats().active;
    let time = chrono::Utc::now().format("%Y%m%dT%H%M%S%.3f");
    let label = format!("{time}-{}", dataset.sha256.get(..8).unwrap_or_default());
    let data = (dataset.counts(), dataset.seed());
    let job = job::starting_now(parts, config, start, label, lesson, data).await?;
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
    let power = Power::new(n_held_out, &config.learn.gate);
    let night =
        if caller.is_scheduled() { parts.store.events(NIGHT, 1).await?.pop() } else { None };
    let facts = json!({
        "lesson": lesson,
        "night": night.map(|event| event.created_ms),
        "tally": tally,
        "yield": yielded,
        "replayed": replayed,
        "rehearsed": rehearsed.len(),
        "held_out": power,
        "version": env!("CARGO_PKG_VERSION"),
    });
    parts.store.update_run(id, RunState::Training, None, facts).await?;
    let trained = Duration::ZERO;
    Ok(Waiting { id, start, job, lesson, trained, made: None, second: None })
}

/// Records a run that has nothing to learn from, or too little that is new, with its reason in
/// numbers.
async fn nothing_to_learn(parts: &Parts, found: &Readiness) -> Result<RunError, RunError> {
    let reason = found.lacks().unwrap_or_default();
    let Readiness { tally, yielded, unjudged, .. } = found;
    let facts = json!({ "tally": tally, "yield": yielded, "unjudged": unjudged });
    let id = record(parts, RunState::Rejected, reason.clone(), facts).await?;
    info!(run_id = %id, reason, "There is nothing to learn from.");
    Ok(RunError::NothingToLearn { run: id, reason })
}

/// Records a run that has ended before it had anything to train on.
async fn record(
    parts: &Parts,
    state: RunState,
    reason: String,
    mut facts: serde_json::Value,
) -> Result<RunId, StoreError> {
    facts["version"] = json!(env!("CARGO_PKG_VERSION"));
    let start = parts.engine.stats().active;
    let id = parts.store.start_run(start, String::new(), json!({}), Vec::new()).await?;
    parts.store.update_run(id, state, Some(reason), facts).await?;
    Ok(id)
}

impl Run<'_> {
    async fn finish(&self, cancel: Cancel) -> Result<Ended, RunError> {
        // Before the trainer works all night for an adapter that nothing can judge.
        if let Some(reason) = held_out::unjudgeable(&self.questions, &self.config) {
            return self.reject(reason, serde_json::Value::Null).await;
        }
        let made = match &self.made {
            Some(made) => made.clone(),
            None => {
                let untrusted = stoppable(self.untrusted(), &mut cancel.clone()).await??;
                if let Some(reason) = untrusted {
                    return self.reject(reason, serde_json::Value::Null).await;
                }
                self.train(cancel.clone()).await?
            }
        };
        let trained = match self.choose(made, &mut cancel.clone()).await? {
            Ok(trained) => trained,
            Err(reason) => return self.reject(reason, serde_json::Value::Null).await,
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

    async fn train(&self, cancel: Cancel) -> Result<Made, RunError> {
        let began = Instant::now();
        let trained = self.trainer(&self.job, cancel).await;
        let took = self.trained + began.elapsed();
        let (product, step) = match trained {
            Ok(trained) => trained,
            Err(error) => {
                let facts = json!({ (made::TRAIN_S): took.as_secs_f64() });
                self.parts.store.update_run(self.id, RunState::Training, None, facts).await?;
                return Err(error);
            }
        };
        let (best_step, best_loss) = (product.best_step, product.best_loss);
        let made = Made::new(product, took);
        let mut facts = json!(made.record());
        facts["step"] = json!(step);
        facts["best_step"] = json!(best_step);
        facts["best_loss"] = json!(best_loss);
        self.parts.store.update_run(self.id, RunState::Gating, None, facts).await?;
        resume::forget_checkpoints(&self.job.out).await;
        Ok(made)
    }

    /// Runs a job to its end. Also the last step.
    async fn trainer(&self, job: &Job, cancel: Cancel) -> Result<(Product, Step), RunError> {
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
        let trained = child::train(&self.config.trainer, job, &quiet, &mut update, cancel).await;
        // Also those of a run that failed: they say how.
        let lines = std::mem::take(&mut curves.lines);
        let path = job.out.join("events.jsonl");
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
        Ok((trained?, curves.step))
    }

    /// Of all candidates the one with the most right answers to prompts that were not trained on; where
    /// there are too few such prompts, the first. `Err`: why none goes to the gate.
    async fn choose(
        &self,
        made: Made,
        cancel: &mut Cancel,
    ) -> Result<Result<Trained, String>, RunError> {
        let Made { mut candidates, took } = made;
        let Some(practice) = &self.practice else {
            return Ok(Ok(candidates.swap_remove(0)));
        };
        let (parts, config) = (self.parts, &self.config);
        let untrained = Untrained::find(parts, config, practice, &self.job).await?;
        let Some(untrained) = untrained else { return Ok(Ok(candidates.swap_remove(0))) };
        let start = self.asked(&untrained, self.start, 0, cancel).await?;
        let mut selection = Selection::new(&start);
        for (at, candidate) in candidates.iter().enumerate() {
            let right = self.right(&untrained, candidate, at + 1, cancel).await?;
            selection.add(self.job.objective, &right, &start);
        }
        let second = match job::good_alone(&self.job).filter(|_| selection.has_room()) {
            Some(job) => self.second(&job, took, cancel).await?,
            None => None,
        };
        resume::forget_checkpoints(&self.job.out).await;
        for candidate in second.into_iter().flat_map(|made| made.candidates) {
            let right = self.right(&untrained, &candidate, candidates.len() + 1, cancel).await?;
            selection.add(Objective::Sft, &right, &start);
            candidates.push(candidate);
        }
        let refusal = selection.refusal();
        selection.chosen = refusal.is_none().then(|| selection.best());
        let facts = json!({ "selection": selection });
        parts.store.update_run(self.id, RunState::Gating, None, facts).await?;
        info!(run_id = %self.id, %selection, "Candidates are compared on practice prompts.");
        Ok(match selection.chosen {
            Some(chosen) => Ok(candidates.swap_remove(chosen)),
            None => Err(refusal.unwrap_or_default()),
        })
    }

    /// What has learned from the good answers alone: made before an interruption, or now if there is the
    /// time, which is what the first training `took`. `None`: the first one goes on without it.
    async fn second(
        &self,
        job: &Job,
        took: Duration,
        cancel: &Cancel,
    ) -> Result<Option<Made>, RunError> {
        if let Some(made) = &self.second {
            return Ok(Some(made.clone()));
        }
        let began = Instant::now();
        if self.until < began + took {
            return Ok(None);
        }
        info!(run_id = %self.id, "A second candidate learns from the good answers alone.");
        let path = job.out.clone();
        let folder = blocking(move || std::fs::create_dir_all(&path)).await;
        folder.map_err(|source| RunError::Write { path: job.out.clone(), source })?;
        let trained = self.trainer(job, cancel.clone()).await;
        match trained {
            Ok((product, _)) => {
                let made = Made::new(product, began.elapsed());
                let facts = json!({ (job::GOOD_ALONE): made.record() });
                self.parts.store.update_run(self.id, RunState::Gating, None, facts).await?;
                Ok(Some(made))
            }
            // The run is broken off with it, and goes on with it.
            Err(error) if error.state() != RunState::Failed => Err(error),
            Err(error) => {
                let reason = error.reason();
                warn!(run_id = %self.id, reason, "There is no second candidate.");
                Ok(None)
            }
        }
    }

    /// Which of a candidate's answers are right. It is loaded for that alone.
    async fn right(
        &self,
        untrained: &Untrained,
        candidate: &Trained,
        number: usize,
        cancel: &mut Cancel,
    ) -> Result<Vec<bool>, RunError> {
        self.check(candidate).await?;
        let parts = self.parts;
        let generation = parts.store.next_generation().await?;
        parts.engine.load_adapter(generation, candidate.adapter.clone()).await?;
        let right = self.asked(untrained, generation, number, cancel).await;
        // Awaited, because the next one gets the same number.
        parts.engine.retire(generation).await?;
        right
    }

    /// The same of a loaded generation; `candidate` is its number in what is shown.
    async fn asked(
        &self,
        untrained: &Untrained,
        by: Generation,
        candidate: usize,
        cancel: &mut Cancel,
    ) -> Result<Vec<bool>, RunError> {
        let total = untrained.len();
        let show = |done| {
            self.stage.send_replace(Stage::Choosing { run: self.id, candidate, done, total });
        };
        show(0);
        Ok(stoppable(untrained.right(self.parts, by, &show), cancel).await??)
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
        let verdict = stoppable(self.verdict(candidate, trained), &mut cancel).await??;
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
        let Questions { held_out, general } = &self.questions;
        let asked = held_out::choose(held_out::judgeable(held_out), config.prompts, seed);
        let general = general.iter().filter(|question| question.agent.learn);
        let general = held_out::choose(general, config.general_prompts, seed);
        let show = |done| {
            let total = asked.len();
            self.stage.send_replace(Stage::Gating { run: self.id, done, total });
        };
        show(0);
        let start = if self.job.start.is_some() { self.start } else { Generation::BASE };
        let (parts, active) = (self.parts, self.start);
        let arena = Arena { parts, config, run: self.id, active, start, candidate };
        let probe = trained.probe.as_deref();
        let mut evidence = arena.evidence(probe, &asked, &general, &show).await?;
        evidence.available.beyond = held_out::count(held_out) - asked.len();
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

/// Work that ends when somebody wants it to.
async fn stoppable<T>(work: impl Future<Output = T>, cancel: &mut Cancel) -> Result<T, RunError> {
    tokio::select! {
        done = work => Ok(done),
        stop = cancel.cancelled() => Err(RunError::Cancelled(stop)),
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
