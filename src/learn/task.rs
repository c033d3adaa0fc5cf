//! The learning task: takes wishes, starts what is due, runs one operation at a time, tells who
//! waits. It must not do the work itself: it stays able to cancel. Used by [`super::spawn`].

use std::mem::discriminant;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

use super::op_queue::{Cancel, OpQueue, Stop, Wish};
use super::run::RunError;
use super::schedule::{Decision, Schedule};
use super::{Command, Ended, LearnError, Parts, Stage, explore, promote, resume, run};

/// How often the schedule looks at the clock.
const TICK: Duration = Duration::from_secs(1);

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
    next_run: watch::Sender<Option<DateTime<Utc>>>,
}

#[derive(Debug)]
struct Operation {
    cancel: watch::Sender<Option<Stop>>,
    handle: JoinHandle<Ended>,
}

impl Task {
    pub(super) fn new(
        parts: Parts,
    ) -> (Self, watch::Receiver<Stage>, watch::Receiver<Option<DateTime<Utc>>>) {
        let plan = parts.config.borrow().learn.schedule.clone();
        let schedule = Schedule::new(plan.as_ref(), Utc::now());
        let (stage, stages) = watch::channel(Stage::Idle);
        let (next_run, next_runs) = watch::channel(schedule.due());
        let task = Self {
            parts,
            queue: OpQueue::default(),
            operation: None,
            cancelling: Vec::new(),
            schedule,
            decision: Decision::Never,
            stage,
            next_run,
        };
        (task, stages, next_runs)
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        match self.parts.store.interrupted_runs().await {
            Ok(runs) => self.schedule.set_interrupted(!runs.is_empty()),
            Err(error) => warn!(%error, "Interrupted runs are not looked for."),
        }
        let mut ticks = tokio::time::interval(TICK);
        let mut config = self.parts.config.clone();
        let last_word = loop {
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command::Shutdown(reply)) => break Some(reply),
                    Some(command) => self.obey(command).await,
                    None => break None,
                },
                ended = finished(&mut self.operation) => self.ended(&ended),
                Ok(()) = config.changed() => {
                    let plan = config.borrow_and_update().learn.schedule.clone();
                    self.schedule.replan(plan.as_ref(), Utc::now());
                    self.next_run.send_replace(self.schedule.due());
                }
                _ = ticks.tick() => self.tick(),
            }
        };
        self.stop(Stop::Shutdown);
        if self.operation.is_some() {
            let ended = finished(&mut self.operation).await;
            self.ended(&ended);
        }
        if let Some(reply) = last_word {
            reply.send(()).ok();
        }
    }

    async fn obey(&mut self, command: Command) {
        // A client that has left does not want to know, so failed replies are dropped.
        match command {
            Command::Wish(wish, reply) => {
                if self.queue.ask(wish, Some(reply)) {
                    self.start(wish);
                }
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
                    Some(Wish::Train { .. } | Wish::Resume) => Err(LearnError::Busy(
                        "a training run compares with what is served; cancel it first",
                    )),
                    _ => promote::rollback(&self.parts, to).await,
                };
                drop(reply.send(result));
            }
            Command::Shutdown(_) => unreachable!("the loop ends with it"),
        }
    }

    fn tick(&mut self) {
        let quiet = Duration::from_millis(self.parts.engine.stats().quiet_ms);
        let (idle, min_new_pairs) = {
            let config = self.parts.config.borrow();
            (config.learn.idle, config.learn.min_new_pairs)
        };
        let decision = self.schedule.decide(Utc::now(), quiet, idle);
        if discriminant(&decision) != discriminant(&self.decision) {
            debug!(%decision, "The schedule says something else.");
        }
        self.decision = decision;
        let wish = match decision {
            Decision::Start => Wish::Train { min_new_pairs },
            Decision::Resume => Wish::Resume,
            Decision::Never | Decision::NotDue(_) | Decision::Busy { .. } => return,
        };
        if self.queue.running().is_none() && self.queue.ask(wish, None) {
            info!(reason = %decision, "Training starts.");
            self.start(wish);
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

    fn start(&mut self, wish: Wish) {
        let (cancel, sign) = Cancel::new();
        let (parts, stage) = (self.parts.clone(), self.stage.clone());
        let handle = tokio::spawn(async move { operate(&parts, wish, &stage, sign).await });
        self.operation = Some(Operation { cancel, handle });
    }

    fn stop(&self, why: Stop) {
        if let Some(operation) = &self.operation {
            operation.cancel.send_replace(Some(why));
        }
    }

    fn ended(&mut self, ended: &Ended) {
        self.operation = None;
        if let Some(Wish::Train { .. } | Wish::Resume) = self.queue.running() {
            // A run that never started has used nothing and says nothing about the trainer.
            let failed =
                matches!(ended, Ended::Failed { run: Some(_), .. } | Ended::Interrupted { .. });
            self.schedule.ended(Utc::now(), failed);
            self.next_run.send_replace(self.schedule.due());
            if failed && let Some(due) = self.schedule.due() {
                let failures = self.schedule.failures();
                warn!(failures, next_run = %due, "The next run waits longer after a failure.");
            }
        }
        info!(?ended, "The learner is idle.");
        self.stage.send_replace(Stage::Idle);
        self.queue.ended(ended);
        for reply in self.cancelling.drain(..) {
            reply.send(true).ok();
        }
    }
}

/// The end of the operation under way; never, when there is none.
async fn finished(operation: &mut Option<Operation>) -> Ended {
    let Some(operation) = operation else { return std::future::pending().await };
    (&mut operation.handle).await.unwrap_or_else(|error| {
        error!(%error, "A learning operation has panicked; this is a bug.");
        Ended::Failed { run: None, reason: format!("this is a bug of the learner: {error}") }
    })
}

async fn operate(
    parts: &Parts,
    wish: Wish,
    stage: &watch::Sender<Stage>,
    mut cancel: Cancel,
) -> Ended {
    match wish {
        Wish::Train { min_new_pairs } => run::run(parts, Some(min_new_pairs), stage, cancel).await,
        Wish::Resume => run::run(parts, None, stage, cancel).await,
        Wish::Explore { limit, split } => {
            // Dropping the exploration cancels its requests; what is stored stays.
            let explored = tokio::select! {
                explored = explore::explore(parts, limit, split, stage) => explored,
                stop = cancel.cancelled() => Err(RunError::Cancelled(stop)),
            };
            explored.unwrap_or_else(|error| Ended::Failed { run: None, reason: error.reason() })
        }
    }
}
