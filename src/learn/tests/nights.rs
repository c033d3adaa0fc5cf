//! Nights as the schedule starts them: how they break, how long they last, and what comes after.

use chrono::TimeDelta;
use futures_util::future::BoxFuture;

use super::lessons::{practise, with_examples};
use super::*;
use crate::learn::guards::NIGHT;
use crate::learn::night::Clock;
use crate::learn::task::Task;

/// A clock that stands unless somebody turns it.
struct Hand(watch::Sender<Duration>);

impl Clock for Hand {
    fn elapsed(&self) -> Duration {
        *self.0.borrow()
    }
    fn reaches(&self, late: Duration) -> BoxFuture<'_, ()> {
        let mut hand = self.0.subscribe();
        Box::pin(async move { drop(hand.wait_for(|now| late <= *now).await) })
    }
}

/// Who follows a night, stops it or turns its clock.
struct Watcher {
    stage: watch::Sender<Stage>,
    total: watch::Sender<Harvest>,
    switch: watch::Sender<Option<Stop>>,
    cancel: Cancel,
    clock: Hand,
}

impl Watcher {
    fn new() -> Self {
        let (switch, cancel) = Cancel::new();
        let (stage, total) = (watch::Sender::new(Stage::Idle), watch::Sender::default());
        Self { stage, total, switch, cancel, clock: Hand(watch::Sender::default()) }
    }
    async fn night(&self, world: &World) -> Ended {
        let tellers = explore::Tellers { stage: &self.stage, total: &self.total };
        night::night(&world.parts, 1, tellers, self.cancel.clone(), &self.clock).await
    }
    /// The same while something else happens.
    async fn night_while(&self, world: &World, other: impl Future<Output = ()>) -> Ended {
        let other = async {
            other.await;
            std::future::pending().await
        };
        tokio::select! {
            biased;
            ended = self.night(world) => ended,
            never = other => never,
        }
    }
    async fn sees(&self, wanted: impl FnMut(&Stage) -> bool) {
        self.stage.subscribe().wait_for(wanted).await.unwrap();
    }
    fn explored(&self) -> usize {
        self.total.borrow().prompts
    }
}

async fn states(world: &World) -> Vec<RunState> {
    world.parts.store.runs(9).await.unwrap().iter().map(|run| run.state).collect()
}

/// What the schedule notes when it starts a night.
async fn begins(world: &World) {
    world.parts.store.add_event(NIGHT.to_owned(), serde_json::json!({})).await.unwrap();
}

/// Why scheduled runs wait.
async fn paused(world: &World) -> Option<String> {
    let (mut task, shown) = Task::new(world.parts.clone(), Utc::now());
    task.look(false).await;
    shown.guards.borrow().paused.clone()
}

#[tokio::test]
async fn a_night_that_breaks_is_a_failed_run_and_the_next_one_waits_longer() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_answers("ask 0", Vec::new()).await;
    without_judge(&world);
    let each_minute = Some(("* * * * *".to_owned(), chrono_tz::UTC));
    world.change(|config| config.learn.schedule = each_minute);
    // A night has been due since yesterday.
    let (task, mut shown) = Task::new(world.parts.clone(), Utc::now() - TimeDelta::days(1));
    let (commands, inbox) = mpsc::channel(1);
    let running = tokio::spawn(task.run(inbox));
    let later = Utc::now() + TimeDelta::minutes(29);
    let waits = shown.next_run.wait_for(|due| due.is_some_and(|due| later < due));
    tokio::time::timeout(LONG, waits).await.expect("it comes at once again").unwrap();
    drop(commands);
    running.await.unwrap();
    let run = world.last_run().await;
    assert_eq!((run.state, run.n_pairs), (RunState::Failed, 0));
    let reason = run.reason.unwrap();
    assert!(reason.contains("the judge at unix:/nowhere/judge.sock does not answer"), "{reason}");
}

#[tokio::test]
async fn a_night_whose_every_prompt_fails_in_the_engine_is_a_failed_run() {
    let world = World::new(improving().poison(""), "good.sh", &[]).await;
    for prompt in ["ask 0", "ask 1"] {
        world.remember_answers(prompt, Vec::new()).await;
    }
    let ended = Watcher::new().night(&world).await;
    let Ended::Failed { run: Some(_), reason } = ended else { panic!("{ended:?}") };
    let expected =
        "no prompt was explored to its end; the engine failed at 2 of 2: the model failed: ";
    assert!(reason.starts_with(expected), "{reason}");
    assert_eq!(states(&world).await, [RunState::Failed]);
    // Where it is the fault of some the others are learned from, and they may be all that is left.
    let world = World::new(improving().poison("cracked"), "good.sh", &[]).await;
    for prompt in ["ask cracked 0", "ask cracked 1", "ask fine"] {
        world.remember_answers(prompt, Vec::new()).await;
    }
    let ended = Watcher::new().night(&world).await;
    assert!(matches!(ended, Ended::Promoted { .. }), "{ended:?}");
}

#[tokio::test]
async fn a_scheduled_run_without_a_trainer_is_a_failed_run_and_a_wish_is_told_of_it() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    // It is not beside the program of the tests.
    world.change(|config| config.trainer.command = None);
    let ended = Watcher::new().night(&world).await;
    assert!(matches!(ended, Ended::Failed { run: Some(_), .. }), "{ended:?}");
    let ended = world.train().await;
    assert!(matches!(ended, Ended::Failed { run: None, .. }), "{ended:?}");
    assert_eq!(states(&world).await, [RunState::Failed]);
    assert!(world.last_run().await.reason.unwrap().contains("is not installed"));
}

#[tokio::test]
async fn what_breaks_a_night_after_its_first_promotion_is_not_hidden_by_it() {
    let world = with_examples(improving(), 12).await;
    practise(&world);
    let watcher = Watcher::new();
    let spoil = async {
        watcher.sees(|stage| matches!(stage, Stage::Gating { .. })).await;
        write(&world.root().join("practice.jsonl"), "{");
    };
    let ended = watcher.night_while(&world, spoil).await;
    let Ended::Failed { run: Some(_), reason } = ended else { panic!("{ended:?}") };
    assert!(reason.contains("practice.jsonl"), "{reason}");
    assert_eq!(states(&world).await, [RunState::Failed, RunState::Promoted]);
    assert_eq!(world.active(), Generation(1));
}

#[tokio::test]
async fn a_night_that_is_stopped_has_not_failed() {
    let world = World::new(improving().step_delay(Duration::from_millis(5)), "good.sh", &[]).await;
    practise(&world);
    let watcher = Watcher::new();
    let stop = async {
        watcher.sees(|stage| matches!(stage, Stage::Exploring { .. })).await;
        watcher.switch.send_replace(Some(Stop::Owner));
    };
    let ended = watcher.night_while(&world, stop).await;
    assert!(matches!(ended, Ended::Failed { run: None, .. }), "{ended:?}");
    assert_eq!(states(&world).await, []);
}

#[tokio::test]
async fn a_night_learns_from_examples_then_explores_and_trains_until_nothing_is_left() {
    // Generation 1 answers well, so that a night after it finds nothing to reject.
    let world = with_examples(improving(), 12).await;
    let watcher = Watcher::new();
    let ended = watcher.night(&world).await;
    assert!(matches!(ended, Ended::Promoted { generation: Generation(1), .. }), "{ended:?}");
    let runs = world.parts.store.runs(9).await.unwrap();
    assert_eq!(runs.len(), 2, "after it there was nothing to learn, which is recorded");
    assert_eq!((runs[0].n_pairs, &runs[1].metrics["lesson"]), (0, &"examples".into()));
    // The prompts of the examples, by generation 1 and not by the base, which cannot do them.
    assert_eq!(watcher.explored(), 12);
    let exchange = world.parts.store.exchanges(None, 1).await.unwrap().remove(0);
    let drafts = exchange.candidates.iter().filter(|it| it.author == Author::Model);
    assert!(drafts.clone().all(|it| it.generation == Generation(1)) && 0 < drafts.count());
}

#[tokio::test]
async fn a_night_whose_examples_were_refused_goes_on_once_with_what_it_explores() {
    // Nothing that is trained answers otherwise; refinements are good.
    let world = with_examples(standing(), 12).await;
    let watcher = Watcher::new();
    begins(&world).await;
    let ended = watcher.night(&world).await;
    assert!(matches!(ended, Ended::Rejected { .. }), "{ended:?}");
    assert_eq!(watcher.explored(), 12);
    let runs = world.parts.store.runs(9).await.unwrap();
    let lessons: Vec<_> = runs.iter().map(|run| &run.metrics["lesson"]).collect();
    assert_eq!(lessons, ["answers", "examples"]);
    assert_eq!(states(&world).await, [RunState::Rejected; 2]);
    // Both are one round without gain, and the next night's is the second one.
    assert_eq!(paused(&world).await, None);
    world.remember_some().await;
    begins(&world).await;
    assert!(matches!(watcher.night(&world).await, Ended::Rejected { .. }));
    let reason = paused(&world).await.expect("a second night without gain");
    assert!(reason.starts_with("2 rounds in a row brought no gain"), "{reason}");
}

#[tokio::test]
async fn half_of_a_night_is_for_exploring_and_when_it_is_over_no_round_begins() {
    let slow = improving().step_delay(Duration::from_millis(1));
    let world = World::new(slow, "good.sh", &[]).await;
    world.remember_some().await;
    let watcher = Watcher::new();
    world.change(|config| config.learn.night = Duration::from_hours(1));
    let turn = async {
        let minutes = |minutes| watcher.clock.0.send_replace(Duration::from_mins(minutes));
        watcher.sees(|stage| matches!(stage, Stage::Exploring { .. })).await;
        minutes(30);
        watcher.sees(|stage| matches!(stage, Stage::Gating { .. })).await;
        minutes(60);
    };
    let ended = watcher.night_while(&world, turn).await;
    assert!(matches!(ended, Ended::Promoted { .. }), "what was there is learned: {ended:?}");
    assert_eq!((watcher.explored(), states(&world).await), (0, vec![RunState::Promoted]));
}
