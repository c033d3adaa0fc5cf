//! The learning task: takes wishes, starts what is due, runs one operation at a time, tells who
//! waits. It must not do the work itself: it stays able to cancel. Used by [`super::spawn`].

use std::mem::discriminant;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::caller::Caller;
use super::cancel::{Cancel, Stop};
use super::error::RunError;
use super::explore::{Harvest, Tellers};
use super::guards::{self, Guards, NIGHT};
use super::live::{self, Outlook, Seen};
use super::op_queue::{OpQueue, Wish};
use super::readiness::Readiness;
use super::schedule::{Decision, Schedule};
use super::shared::Shared;
use super::{
    Command, Ended, LearnError, News, Parts, Stage, explore, import, judge, night, preview,
    promote, readiness, resume, run,
};
use store::{Event, RunId, StoreError, Watch};

/// How often the schedule looks at the clock.
const TICK: Duration = Duration::from_secs(1);
/// How often a promoted generation is compared with the one before it: chats are judged one by one.
const LOOK: Duration = Duration::from_secs(5);
/// Runs, watches and alarms looked at.
const RECENT: usize = 20;
const ALARMS: usize = 5;
/// The event that the schedule is another one, with what it is now.
const SCHEDULED: &str = "scheduled";

#[derive(Debug)]
pub(super) struct Task {
    parts: Parts,
    queue: OpQueue,
    operation: Option<Operation>,
    /// Told when the operation under way has stopped.
    cancelling: Vec<oneshot::Sender<bool>>,
    schedule: Schedule,
    decision: Decision,
    stage: watch::Sender<Stage>,
    harvest: watch::Sender<Harvest>,
    next_run: watch::Sender<Option<DateTime<Utc>>>,
    guards: watch::Sender<Guards>,
    /// What a run would find, or why that cannot be read.
    readiness: Shared<Result<Readiness, String>>,
    /// What is looked up beside everything else, and ends with the task; a file that is being read is read
    /// to its end.
    readers: JoinSet<()>,
}

#[derive(Debug)]
struct Operation {
    cancel: watch::Sender<Option<Stop>>,
    handle: JoinHandle<Ended>,
}

impl Task {
    pub(super) fn new(parts: Parts, now: DateTime<Utc>) -> (Self, News) {
        let plan = parts.config.borrow().learn.schedule.clone();
        let schedule = Schedule::new(plan.as_ref(), now);
        let (stage, stages) = watch::channel(Stage::Idle);
        let (harvest, harvests) = watch::channel(Harvest::default());
        let (next_run, next_runs) = watch::channel(schedule.due());
        let (guards, guard) = watch::channel(Guards::default());
        let task = Self {
            parts,
            queue: OpQueue::default(),
            operation: None,
            cancelling: Vec::new(),
            schedule,
            decision: Decision::Never,
            stage,
            harvest,
            next_run,
            guards,
            readiness: Shared::default(),
            readers: JoinSet::new(),
        };
        let news = News { stage: stages, harvest: harvests, next_run: next_runs, guards: guard };
        (task, news)
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        match self.parts.store.interrupted_runs().await {
            Ok(runs) => self.schedule.set_interrupted(!runs.is_empty()),
            Err(error) => warn!(%error, "Interrupted runs are not looked for."),
        }
        if let Err(error) = self.catch_up(Utc::now()).await {
            warn!(%error, "Nights that were missed are not looked for.");
        }
        let mut ticks = tokio::time::interval(TICK);
        let mut looks = tokio::time::interval(LOOK);
        let mut config = self.parts.config.clone();
        self.look(false).await;
        self.tell_readiness();
        let last_word = loop {
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command::Shutdown(reply)) => break Some(reply),
                    Some(command) => self.obey(command).await,
                    None => break None,
                },
                finished = finished(&mut self.operation) => {
                    let ended = self.conclude(finished).await;
                    // Before who waits is told: what they see next is how it stands.
                    self.look(false).await;
                    self.ended(&ended);
                    self.tell_readiness();
                }
                Ok(()) = config.changed() => {
                    let plan = config.borrow_and_update().learn.schedule.clone();
                    self.schedule.replan(plan.as_ref(), Utc::now());
                    if let Err(error) = self.note_schedule(Utc::now()).await {
                        warn!(%error, "It is not noted that the schedule is another one.");
                    }
                    self.next_run.send_replace(self.schedule.due());
                    self.look(false).await;
                    self.tell_readiness();
                }
                _ = ticks.tick() => self.tick().await,
                _ = looks.tick() => self.look(true).await,
            }
        };
        while self.operation.is_some() {
            self.stop(Stop::Shutdown);
            let finished = finished(&mut self.operation).await;
            let ended = self.conclude(finished).await;
            self.ended(&ended);
        }
        self.readers.shutdown().await;
        if let Some(reply) = last_word {
            reply.send(()).ok();
        }
    }

    /// Makes up for a night that was due after the last one, or after the schedule was set.
    pub(super) async fn catch_up(&mut self, now: DateTime<Utc>) -> Result<(), StoreError> {
        let set = self.note_schedule(now).await?;
        let nights = self.parts.store.events(NIGHT, 1).await?;
        self.schedule.catch_up(set, nights.first().and_then(happened), now);
        self.next_run.send_replace(self.schedule.due());
        Ok(())
    }

    /// Stores what the schedule is, where that is news: a machine that was off at the hour of its first
    /// night has missed it. Since when there has been a schedule; `None`: an older version may have had
    /// one.
    async fn note_schedule(&self, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, StoreError> {
        let none = json!({});
        let detail = match &self.parts.config.borrow().learn.schedule {
            Some((cron, zone)) => json!({ "cron": cron, "time_zone": zone.name() }),
            None => none.clone(),
        };
        let noted = self.parts.store.events(SCHEDULED, 1).await?.pop();
        let before = noted.as_ref().map_or(&none, |noted| &noted.detail);
        let is_news = *before != detail;
        if is_news {
            self.parts.store.add_event(SCHEDULED.to_owned(), detail).await?;
        }
        let Some(noted) = noted else { return Ok(None) };
        // Before it was set nothing was missed.
        Ok(if is_news || noted.detail == none { Some(now) } else { happened(&noted) })
    }

    async fn obey(&mut self, command: Command) {
        // A client that has left does not want to know, so failed replies are dropped.
        match command {
            Command::Wish(Wish::Run(_) | Wish::Import(_), reply)
                if self.guards.borrow().has_canary() =>
            {
                drop(reply.send(Err(LearnError::Busy(
                    "the newest generation is still a canary, tried on a share of the chats; wait \
                     for its end, or end it with `reflectd adapters rollback`",
                ))));
            }
            Command::Wish(wish, reply) => {
                let is_new = self.queue.ask(wish.clone(), Some(reply));
                if is_new && matches!(wish, Wish::Run(_)) {
                    // The owner wants to go on.
                    self.resume().await.unwrap_or_else(|error| warn!(%error, "Still paused."));
                }
                if is_new {
                    self.start(wish);
                }
            }
            Command::Resume(reply) => {
                let resumed = self.resume().await;
                drop(reply.send(resumed.map_err(LearnError::from)));
            }
            Command::Preview(limit, reply) => {
                let parts = self.parts.clone();
                // Beside everything else, because it reads all that is stored.
                self.read(async move {
                    let found = preview::preview(&parts, limit).await;
                    reply.send(found.map_err(|it| LearnError::Unreadable(it.reason()))).ok();
                });
            }
            Command::Readiness(reply) => {
                let found = self.readiness();
                self.read(async move {
                    reply.send(found.await.map_err(LearnError::Unreadable)).ok();
                });
            }
            Command::Cancel(reply) => {
                self.stop(Stop::Owner);
                if self.operation.is_some() {
                    self.cancelling.push(reply);
                } else {
                    reply.send(self.give_up().await).ok();
                }
            }
            Command::Rollback(to, reply) => {
                let result = match self.queue.running() {
                    Some(Wish::Run(_) | Wish::Night { .. } | Wish::Import(_)) => {
                        Err(LearnError::Busy("a run compares with what is served; cancel it first"))
                    }
                    _ => promote::rollback(&self.parts, to).await,
                };
                self.look(false).await;
                drop(reply.send(result));
            }
            Command::Shutdown(_) => unreachable!("the loop ends with it"),
        }
    }

    async fn tick(&mut self) {
        let quiet = self.parts.reflector.quiet();
        let is_paused = self.guards.borrow().paused.is_some();
        let (idle, min_new_pairs) = {
            let learn = &self.parts.config.borrow().learn;
            let paused = if is_paused { learn.pause.resume_pairs } else { 0 };
            (learn.idle, learn.min_new_pairs.max(paused))
        };
        let now = Utc::now();
        if self.schedule.hear(now) {
            warn!(%now, "The clock was set back; the schedule counts from the new time.");
            self.next_run.send_replace(self.schedule.due());
        }
        let decision = self.schedule.decide(now, quiet, idle);
        if discriminant(&decision) != discriminant(&self.decision) {
            debug!(%decision, "The schedule says something else.");
        }
        self.decision = decision;
        let wish = match decision {
            // While it pauses, only what comes of chats and words of the owner counts.
            Decision::Start if is_paused => Wish::Run(Caller::Schedule { min_new_pairs }),
            Decision::Start => Wish::Night { min_new_pairs },
            Decision::Resume => Wish::Run(Caller::Resumption),
            Decision::Never | Decision::NotDue(_) | Decision::Busy { .. } => return,
        };
        if !self.guards.borrow().has_canary()
            && self.queue.running().is_none()
            && self.queue.ask(wish.clone(), None)
        {
            info!(reason = %decision, "Training starts.");
            if decision == Decision::Start
                && let Err(error) = self.parts.store.add_event(NIGHT.to_owned(), json!({})).await
            {
                warn!(%error, "It is not noted that a night has begun.");
            }
            self.start(wish);
        }
    }

    /// What a run would find now, to be waited for beside everything else, because it reads all that is
    /// stored.
    fn readiness(&self) -> impl Future<Output = Result<Readiness, String>> + Send + use<> {
        let (parts, shared) = (self.parts.clone(), self.readiness.clone());
        async move {
            let look = async { readiness::look(&parts).await.map_err(|error| error.reason()) };
            shared.get(look).await
        }
    }

    fn read(&mut self, reader: impl Future<Output = ()> + Send + 'static) {
        while self.readers.try_join_next().is_some() {}
        self.readers.spawn(reader);
    }

    /// Logs it.
    fn tell_readiness(&mut self) {
        let found = self.readiness();
        self.read(async move {
            match found.await {
                Ok(found) => info!(learning = %found, "This is how learning stands."),
                Err(error) => warn!(error, "How learning stands is not known."),
            }
        });
    }

    /// Shows how the guards stand; with `act`, also does what the watch has come to.
    pub(super) async fn look(&mut self, act: bool) {
        if let Err(error) = self.try_look(act).await {
            warn!(%error, "The guards could not be looked at.");
        }
    }

    async fn try_look(&mut self, act: bool) -> Result<(), promote::PromoteError> {
        let mut seen = self.seen().await?;
        let before = self.guards.borrow().clone();
        if act && !self.act(seen.as_ref()).await? && before.paused.is_none() {
            // A pause begins with a run or with a settled watch alone, and there is much to read.
            self.guards.send_replace(Guards { watch: seen, ..before });
            return Ok(());
        }
        if act {
            seen = self.seen().await?;
        }
        let paused = self.pause().await?;
        if let (None, Some(reason)) = (before.paused, &paused) {
            warn!(reason, "Scheduled runs are paused.");
        }
        let alarms = self.parts.store.events("alarm", ALARMS).await?;
        self.guards.send_replace(Guards { paused, watch: seen, alarms });
        Ok(())
    }

    /// Does what the watch has come to; true when that changed something.
    async fn act(&self, seen: Option<&(Watch, Seen)>) -> Result<bool, promote::PromoteError> {
        let Some((watch, seen)) = seen else { return Ok(false) };
        match self.outlook(watch, seen) {
            Outlook::Open => Ok(false),
            Outlook::Dropped(_)
                if matches!(
                    self.queue.running(),
                    Some(Wish::Run(_) | Wish::Night { .. } | Wish::Import(_))
                ) =>
            {
                // It starts from what is to be taken back. The look after its end acts.
                warn!("A run is stopped, because what it starts from does badly in live use.");
                self.stop(Stop::Owner);
                Ok(false)
            }
            outlook => {
                promote::settle(&self.parts, watch, outlook).await?;
                Ok(true)
            }
        }
    }

    /// The owner does not want the run that waits to go on; whether there was one.
    async fn give_up(&mut self) -> bool {
        self.schedule.set_interrupted(false);
        match resume::give_up(&self.parts).await {
            Ok(n_runs) => 0 < n_runs,
            Err(error) => {
                warn!(%error, "An interrupted run is not given up.");
                false
            }
        }
    }

    /// The watch under way with what it has seen.
    async fn seen(&self) -> Result<Option<(Watch, Seen)>, StoreError> {
        let Some(watch) = self.parts.store.watch_under_way().await? else { return Ok(None) };
        let config = self.parts.config.borrow().learn.watch;
        let (store, after) = (&self.parts.store, watch.after_candidate);
        let now = store.live(watch.generation, after + 1..=i64::MAX, usize::MAX).await?;
        let before = if watch.share < 1.0 {
            store.live(watch.parent, after + 1..=i64::MAX, usize::MAX).await?
        } else {
            store.live(watch.parent, 0..=after, config.chats).await?
        };
        Ok(Some((watch, live::compare(&before, &now, &config))))
    }

    fn outlook(&self, watch: &Watch, seen: &Seen) -> Outlook {
        let age_ms = Utc::now().timestamp_millis().saturating_sub(watch.started_ms);
        let age = Duration::from_millis(u64::try_from(age_ms).unwrap_or(0));
        let learn = &self.parts.config.borrow().learn;
        live::outlook(seen, watch.state, age, &learn.canary, &learn.watch)
    }

    async fn pause(&self) -> Result<Option<String>, StoreError> {
        let store = &self.parts.store;
        let runs = store.runs(RECENT).await?;
        let watches = store.watches(RECENT).await?;
        let resumed = store.events("resumed", 1).await?;
        let resumed = resumed.first().and_then(|event| event.detail.get("after_run")?.as_i64());
        let last = runs.iter().find(|run| guards::is_round(run));
        let n_feedback = match last {
            Some(run) => store.feedback_since(run.started_ms).await?,
            None => 0,
        };
        let config = self.parts.config.borrow().learn.pause;
        Ok(guards::pause(&runs, &watches, resumed.map(RunId), n_feedback, &config))
    }

    /// Rounds up to now no longer count.
    async fn resume(&mut self) -> Result<(), StoreError> {
        if self.pause().await?.is_none() {
            return Ok(());
        }
        let newest = self.parts.store.runs(1).await?.first().map(|run| run.id);
        let detail = json!({ "after_run": newest });
        self.parts.store.add_event("resumed".to_owned(), detail).await?;
        info!("Scheduled runs may start again.");
        self.look(false).await;
        Ok(())
    }

    fn start(&mut self, wish: Wish) {
        let (cancel, sign) = Cancel::new();
        let (parts, stage) = (self.parts.clone(), self.stage.clone());
        let harvest = self.harvest.clone();
        let handle = tokio::spawn(async move {
            let tellers = Tellers { stage: &stage, total: &harvest };
            operate(&parts, wish, tellers, sign).await
        });
        self.operation = Some(Operation { cancel, handle });
    }

    fn stop(&self, why: Stop) {
        if let Some(operation) = &self.operation {
            operation.cancel.send_replace(Some(why));
        }
    }

    /// How an operation has ended, also one that has panicked.
    async fn conclude(&self, finished: Result<Ended, JoinError>) -> Ended {
        match finished {
            Ok(ended) => ended,
            Err(error) => {
                error!(%error, "A learning operation has panicked; this is a bug.");
                let is_scheduled = self.queue.running().is_some_and(Wish::is_scheduled);
                let reason = format!("this is a bug of the learner: {error}");
                run::panicked(&self.parts, reason, is_scheduled).await
            }
        }
    }

    fn ended(&mut self, ended: &Ended) {
        self.operation = None;
        if let Some(Wish::Run(_) | Wish::Night { .. }) = self.queue.running() {
            // What has no record was stopped, or told to the owner who asked for it.
            let failed =
                matches!(ended, Ended::Failed { run: Some(_), .. } | Ended::Interrupted { .. });
            self.schedule.ended(Utc::now(), failed);
            self.next_run.send_replace(self.schedule.due());
            if failed && let Some(due) = self.schedule.due() {
                let failures = self.schedule.failures();
                warn!(failures, next_run = %due, "The next run waits longer after a failure.");
            }
        }
        if self.cancelling.is_empty()
            && let Some(wish) = self.queue.instead(ended)
        {
            info!("There was no run to go on with; a new one starts.");
            return self.start(wish);
        }
        info!(ended = ended.in_short(), "The learner is idle.");
        self.stage.send_replace(Stage::Idle);
        self.queue.ended(ended);
        for reply in self.cancelling.drain(..) {
            reply.send(true).ok();
        }
    }
}

fn happened(event: &Event) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(event.created_ms)
}

/// The end of the operation under way; never, when there is none.
async fn finished(operation: &mut Option<Operation>) -> Result<Ended, JoinError> {
    let Some(operation) = operation else { return std::future::pending().await };
    (&mut operation.handle).await
}

async fn operate(parts: &Parts, wish: Wish, tellers: Tellers<'_>, mut cancel: Cancel) -> Ended {
    match wish {
        Wish::Run(caller) => {
            // What a run that is not part of a night may take.
            let budget = parts.config.borrow().learn.night;
            run::run(parts, caller, budget, tellers.stage, cancel).await
        }
        Wish::Night { min_new_pairs } => {
            night::night(parts, min_new_pairs, tellers, cancel, &Instant::now()).await
        }
        Wish::Import(source) => import::import(parts, source, tellers.stage, cancel).await,
        Wish::Explore(wish) => {
            // Dropping the exploration cancels its requests; what is stored stays.
            let explored = tokio::select! {
                explored = explore::explore(parts, &wish, tellers) => explored,
                stop = cancel.cancelled() => Err(RunError::Cancelled(stop)),
            };
            explored.unwrap_or_else(|error| Ended::Failed { run: None, reason: error.reason() })
        }
        Wish::Judge { task, agent, limit, attacks } => {
            let errand = judge::Errand { task, agent, limit, attacks };
            let done = tokio::select! {
                done = judge::run(parts, &errand, tellers.stage) => done,
                stop = cancel.cancelled() => Err(RunError::Cancelled(stop)),
            };
            done.unwrap_or_else(|error| Ended::Failed { run: None, reason: error.reason() })
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::super::tests::{World, improving, write};
    use super::*;
    use engine::Generation;
    use store::RunState;

    /// The task of a world in which this wish has panicked, up to when the next run waits.
    async fn panicked(world: &World, wish: Wish) {
        world.change(|config| {
            config.learn.schedule = Some(("* * * * *".to_owned(), chrono_tz::UTC));
        });
        let (mut task, mut news) = Task::new(world.parts.clone(), Utc::now());
        let (cancel, _) = Cancel::new();
        assert!(task.queue.ask(wish, None));
        let handle: JoinHandle<Ended> = tokio::spawn(async { panic!("it cannot be") });
        task.operation = Some(Operation { cancel, handle });
        let (commands, inbox) = mpsc::channel(1);
        let running = tokio::spawn(task.run(inbox));
        let later = Utc::now() + TimeDelta::minutes(29);
        let waits = news.next_run.wait_for(|due| due.is_some_and(|due| later < due));
        let waits = tokio::time::timeout(Duration::from_mins(1), waits).await;
        waits.expect("it comes at once again").unwrap();
        drop(commands);
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_night_that_panics_is_a_failed_run_and_the_next_one_waits_longer() {
        let world = World::new(improving(), "good.sh", &[]).await;
        panicked(&world, Wish::Night { min_new_pairs: 1 }).await;
        let runs = world.parts.store.runs(9).await.unwrap();
        let [run] = runs.as_slice() else { panic!("{runs:?}") };
        assert_eq!((run.state, run.n_pairs), (RunState::Failed, 0));
        let reason = run.reason.as_ref().unwrap();
        assert!(reason.contains("a bug of the learner") && reason.contains("it cannot be"));
    }

    #[tokio::test]
    async fn a_run_that_panics_has_failed_and_does_not_go_on() {
        let world = World::new(improving(), "good.sh", &[]).await;
        let store = &world.parts.store;
        let job = json!({});
        let id = store.start_run(Generation::BASE, "00".into(), job, Vec::new()).await.unwrap();
        let engine = &world.parts.engine;
        let candidate = world.root().join("candidate.gguf");
        write(&candidate, "x");
        engine.load_adapter(Generation(1), candidate).await.unwrap();
        panicked(&world, Wish::Run(Caller::Owner)).await;
        let runs = store.runs(9).await.unwrap();
        let [run] = runs.as_slice() else { panic!("{runs:?}") };
        assert_eq!((run.id, run.state), (id, RunState::Failed));
        assert!(run.reason.as_ref().unwrap().contains("it cannot be"), "{run:?}");
        let loaded: Vec<_> = engine.stats().generations.iter().map(|it| it.0).collect();
        assert_eq!(loaded, [Generation::BASE], "the next candidate gets the same number");
    }
}
