//! Nights as the schedule starts them: how they break, how long they last, and what comes after.

use chrono::TimeDelta;

use super::lessons::{practise, with_examples};
use super::*;
use crate::learn::task::Task;

/// A night of a world, and what it has explored.
async fn night(world: &World) -> (Ended, Harvest) {
    let (stage, _stages) = watch::channel(Stage::Idle);
    told(world, &stage).await
}

/// The same for who follows its stages.
async fn told(world: &World, stage: &watch::Sender<Stage>) -> (Ended, Harvest) {
    let (_switch, cancel) = Cancel::new();
    let (total, harvests) = watch::channel(Harvest::default());
    let tellers = explore::Tellers { stage, total: &total };
    let ended = night::night(&world.parts, 1, tellers, cancel).await;
    (ended, *harvests.borrow())
}

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
async fn a_scheduled_run_without_a_trainer_is_a_failed_run_and_a_wish_is_told_of_it() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    // It is not beside the program of the tests.
    world.change(|config| config.trainer.command = None);
    let (ended, _) = night(&world).await;
    assert!(matches!(ended, Ended::Failed { run: Some(_), .. }), "{ended:?}");
    let ended = world.train().await;
    assert!(matches!(ended, Ended::Failed { run: None, .. }), "{ended:?}");
    let runs = world.parts.store.runs(9).await.unwrap();
    assert_eq!(runs.iter().map(|run| run.state).collect::<Vec<_>>(), [RunState::Failed]);
    assert!(runs[0].reason.as_ref().unwrap().contains("is not installed"));
}

#[tokio::test]
async fn what_breaks_a_night_after_its_first_promotion_is_not_hidden_by_it() {
    let world = with_examples(improving(), 12).await;
    practise(&world);
    let (stage, mut stages) = watch::channel(Stage::Idle);
    let spoil = async {
        stages.wait_for(|stage| matches!(stage, Stage::Gating { .. })).await.unwrap();
        write(&world.root().join("practice.jsonl"), "{");
    };
    let ((ended, _), ()) = tokio::join!(told(&world, &stage), spoil);
    let Ended::Failed { run: Some(_), reason } = ended else { panic!("{ended:?}") };
    assert!(reason.contains("practice.jsonl"), "{reason}");
    let states: Vec<_> =
        world.parts.store.runs(9).await.unwrap().iter().map(|run| run.state).collect();
    assert_eq!(states, [RunState::Failed, RunState::Promoted]);
    assert_eq!(world.active(), Generation(1));
}

#[tokio::test]
async fn a_night_that_is_stopped_has_not_failed() {
    let world = World::new(improving().step_delay(Duration::from_millis(5)), "good.sh", &[]).await;
    practise(&world);
    let (stage, mut stages) = watch::channel(Stage::Idle);
    let (total, _harvests) = watch::channel(Harvest::default());
    let (switch, cancel) = Cancel::new();
    let tellers = explore::Tellers { stage: &stage, total: &total };
    let stop = async {
        stages.wait_for(|stage| matches!(stage, Stage::Exploring { .. })).await.unwrap();
        switch.send_replace(Some(Stop::Owner));
    };
    let (ended, ()) = tokio::join!(night::night(&world.parts, 1, tellers, cancel), stop);
    assert!(matches!(ended, Ended::Failed { run: None, .. }), "{ended:?}");
    assert_eq!(world.parts.store.runs(9).await.unwrap(), []);
}
