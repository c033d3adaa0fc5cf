//! Interrupted runs: which go on, as what, and which do not.

use super::*;
use protocol::CHECKPOINT;

/// A world whose trainer ends with this status after step 2 and comes to its end the second time.
async fn interrupted(status: &str) -> (World, store::Run) {
    interrupted_with(status, |_| {}).await
}

async fn interrupted_with(status: &str, change: fn(&mut Config)) -> (World, store::Run) {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let arguments = [status.to_owned(), file("trained.gguf"), file("trained.json")];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let world = World::in_folder(folder, improving(), "resumes.sh", &arguments).await;
    world.change(change);
    world.remember_some().await;
    // No pair, but one bad answer more.
    world.remember_answers("ask in vain", vec![answer("ask in vain", " poor", false)]).await;
    let ended = world.train().await;
    let run = world.last_run().await;
    if status == "75" {
        assert!(matches!(ended, Ended::Interrupted { .. }), "{ended:?}");
        assert_eq!((run.state, run.ended_ms), (RunState::Interrupted, None));
    }
    (world, run)
}

fn checkpoint(run: &store::Run) -> std::path::PathBuf {
    let job: Job = serde_json::from_value(run.job.clone()).unwrap();
    job.out.join(CHECKPOINT)
}

#[tokio::test]
async fn a_run_that_lacked_memory_goes_on_with_the_next_training() {
    let (world, run) = interrupted("75").await;
    assert!(checkpoint(&run).exists() && run.reason.unwrap().contains("may be tried again"));
    assert!(0.0 < run.metrics["train_s"].as_f64().unwrap(), "{}", run.metrics);
    let took = serde_json::json!({ "train_s": 1000.0 });
    world.parts.store.update_run(run.id, RunState::Interrupted, None, took).await.unwrap();
    // New prompts are for the run after it; other means are the same run.
    world.remember("ask more").await;
    world.change(|config| config.trainer.threads = 3);
    let ended = world.train().await;
    let Ended::Promoted { run: promoted, .. } = ended else { panic!("{ended:?}") };
    assert_eq!(promoted, run.id);
    let after = world.last_run().await;
    assert_eq!((after.id, after.n_pairs), (run.id, 4), "no other run was begun");
    assert_eq!(after.metrics["resumes"], 1);
    assert!(1000.0 < after.metrics["train_s"].as_f64().unwrap(), "before and after it");
    let job: Job = serde_json::from_value(after.job).unwrap();
    let events = std::fs::read_to_string(job.out.join("events.jsonl")).unwrap();
    let steps = events.lines().filter(|line| line.contains("\"step\",")).count();
    assert_eq!(steps, 3, "what was said before and after: {events}");
    assert!(!job.out.join(CHECKPOINT).exists(), "it is done");
}

/// Weights and `auto` follow from the data set, which is the same.
#[tokio::test]
async fn a_run_goes_on_whose_settings_follow_from_its_data() {
    for change in [
        |config: &mut Config| {
            let (beta, weight) = (0.1, 1.0);
            config.learn.objective =
                Objective::Kto { beta, desirable_weight: weight, undesirable_weight: 2.0 * weight };
        },
        |config: &mut Config| {
            config.learn.objective = Objective::Mixed { beta: 0.1, nll: 1.0 };
            config.learn.optimizer.epochs = None;
            config.learn.optimizer.learning_rate = None;
        },
    ] {
        let (world, run) = interrupted_with("75", change).await;
        world.remember("ask more").await;
        let ended = world.train().await;
        assert!(matches!(ended, Ended::Promoted { run: same, .. } if same == run.id), "{ended:?}");
    }
}

#[tokio::test]
async fn a_trainer_that_the_system_kills_is_interrupted_because_memory_may_come_back() {
    let world = World::new(improving(), "killed.sh", &[]).await;
    world.remember_some().await;
    let ended = world.train().await;
    let Ended::Interrupted { reason, .. } = ended else { panic!("{ended:?}") };
    assert!(reason.contains("memory runs out"), "{reason}");
    assert_eq!(world.last_run().await.state, RunState::Interrupted);
}

#[tokio::test]
async fn a_run_that_broke_does_not_go_on_and_keeps_no_checkpoint() {
    let (world, run) = interrupted("70").await;
    assert_eq!(run.state, RunState::Failed);
    assert!(!checkpoint(&run).exists());
    assert_eq!(world.parts.store.interrupted_runs().await.unwrap(), []);
}

#[tokio::test]
async fn after_a_restart_a_run_goes_on_by_itself_when_it_is_quiet() {
    let world = World::new(improving(), "hang.sh", &[]).await;
    world.remember_some().await;
    let (learner, task) = world.learner();
    let training = tokio::spawn({
        let learner = learner.clone();
        async move { learner.train().await }
    });
    learner.stage().wait_for(|stage| matches!(stage, Stage::Training { .. })).await.unwrap();
    learner.shutdown().await;
    task.await.unwrap();
    assert!(matches!(training.await.unwrap(), Ok(Ended::Interrupted { .. })));
    let run = world.last_run().await;

    // There is no schedule: nobody asks for training.
    let world = world.restarted(improving()).await;
    restore(&world.parts).await;
    let (learner, _task) = world.learner();
    let mut stage = learner.stage();
    stage.wait_for(|stage| matches!(stage, Stage::Gating { .. })).await.unwrap();
    stage.wait_for(|stage| matches!(stage, Stage::Idle)).await.unwrap();
    let after = world.last_run().await;
    assert_eq!((after.id, after.state), (run.id, RunState::Promoted));
}

#[tokio::test]
async fn a_run_that_was_interrupted_in_its_gate_is_not_trained_again() {
    let (world, run) = interrupted("75").await;
    let ended = world.train().await;
    assert!(matches!(ended, Ended::Promoted { .. }), "{ended:?}");
    // As a kill before the verdict would have left it.
    world.parts.store.set_active(Generation::BASE).await.unwrap();
    let world = world.restarted(standing()).await;
    let nothing = serde_json::Value::Null;
    world.parts.store.update_run(run.id, RunState::Gating, None, nothing).await.unwrap();
    assert_eq!(restore(&world.parts).await, Generation::BASE);
    assert_eq!(world.last_run().await.state, RunState::Interrupted);
    // A trainer would break it.
    world.change(|config| config.trainer.command = Some(vec!["/no/such/trainer".into()]));
    let ended = world.train().await;
    let Ended::Rejected { run: gated, reason, .. } = ended else { panic!("{ended:?}") };
    assert!(gated == run.id && reason.contains("gate.margin"), "{reason}");
}

#[tokio::test]
async fn what_makes_no_sense_any_more_has_failed_and_a_new_run_begins() {
    for (change, word) in [
        (0, "settings of learning"),
        (1, "data set"),
        (2, "interrupted 10 times"),
        (3, "generation 0, 1 is served"),
    ] {
        let (world, run) = interrupted("75").await;
        let job: Job = serde_json::from_value(run.job.clone()).unwrap();
        match change {
            0 => world.change(|config| config.learn.optimizer.epochs = Some(2)),
            1 => std::fs::remove_file(&job.data).unwrap(),
            2 => {
                let resumes = serde_json::json!({ "resumes": 10 });
                let state = RunState::Interrupted;
                world.parts.store.update_run(run.id, state, None, resumes).await.unwrap();
            }
            _ => {
                world
                    .parts
                    .engine
                    .load_adapter(Generation(1), world.root().join("trained.gguf"))
                    .await
                    .unwrap();
                world.parts.engine.activate(Generation(1)).await.unwrap();
            }
        }
        let ended = world.train().await;
        let before = world.parts.store.run(run.id).await.unwrap();
        assert_eq!(before.state, RunState::Failed, "{word}");
        assert!(before.reason.as_ref().unwrap().contains(word), "{word}: {:?}", before.reason);
        assert!(!checkpoint(&before).exists());
        // Which is interrupted in its turn.
        assert!(matches!(ended, Ended::Interrupted { run: new, .. } if new != run.id), "{ended:?}");
    }
}

#[tokio::test]
async fn a_continuation_that_breaks_is_a_failed_run_and_the_interrupted_one_waits_on() {
    let (world, run) = interrupted("75").await;
    let goes_on = async || {
        let (_switch, cancel) = Cancel::new();
        run::run(&world.parts, Caller::Resumption, LONG, &watch::Sender::new(Stage::Idle), cancel)
            .await
    };
    // It is not beside the program of the tests.
    let trainer = world.config.borrow().trainer.command.clone();
    world.change(|config| config.trainer.command = None);
    let ended = goes_on().await;
    assert!(matches!(ended, Ended::Failed { run: Some(id), .. } if id != run.id), "{ended:?}");
    let failed = world.last_run().await;
    assert_eq!((failed.state, failed.n_pairs), (RunState::Failed, 0));
    assert!(failed.reason.unwrap().contains("is not installed"));
    let waits = world.parts.store.run(run.id).await.unwrap();
    assert_eq!((waits.state, waits.reason), (RunState::Interrupted, run.reason.clone()));
    assert!(waits.metrics.get("resumes").is_none(), "it was not tried: {}", waits.metrics);

    world.change(|config| config.trainer.command = trainer.clone());
    let ended = goes_on().await;
    assert!(matches!(ended, Ended::Promoted { run: id, .. } if id == run.id), "{ended:?}");
    // Where none waits there is nothing to record.
    let ended = goes_on().await;
    assert!(matches!(ended, Ended::Failed { run: None, .. }), "{ended:?}");
    assert_eq!(world.parts.store.runs(9).await.unwrap().len(), 2);
}

#[tokio::test]
async fn the_owner_can_give_up_a_run_that_waits() {
    let (world, run) = interrupted("75").await;
    let (learner, task) = world.learner();
    assert!(learner.cancel().await.unwrap());
    assert!(!learner.cancel().await.unwrap(), "nothing is left");
    learner.shutdown().await;
    task.await.unwrap();
    let after = world.last_run().await;
    assert_eq!((after.id, after.state), (run.id, RunState::Cancelled));
    assert!(!checkpoint(&after).exists());
}

#[tokio::test]
async fn a_round_from_the_base_has_no_start_and_is_compared_with_what_is_served() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    assert!(matches!(world.train().await, Ended::Promoted { .. }));
    world.change(|config| config.learn.start = Start::Base);
    world.remember("ask more").await;
    let ended = world.train().await;
    assert!(matches!(ended, Ended::Promoted { generation: Generation(2), .. }), "{ended:?}");
    let run = world.last_run().await;
    let job: Job = serde_json::from_value(run.job).unwrap();
    assert_eq!((job.start, run.start, run.n_pairs), (None, Generation(1), 5));
    let rows = world.parts.store.generations().await.unwrap();
    assert_eq!(rows[1].parent, Generation(1), "a rollback goes to what was served");
}

/// A daemon that ends while candidates are compared has both trainings behind it.
#[tokio::test]
async fn a_second_candidate_is_not_trained_again_either() {
    let world = lessons::checked(standing()).await;
    assert!(matches!(world.train().await, Ended::Rejected { .. }));
    let run = world.last_run().await;
    assert!(0.0 < run.metrics["train_s"].as_f64().unwrap(), "{}", run.metrics);
    assert!(run.metrics["good_alone"]["adapter_sha256"].is_string(), "{}", run.metrics);
    let compared = run.metrics["selection"].clone();
    let nothing = serde_json::Value::Null;
    world.parts.store.update_run(run.id, RunState::Interrupted, None, nothing).await.unwrap();
    // A trainer would break it.
    world.change(|config| config.trainer.command = Some(vec!["/no/such/trainer".into()]));
    let ended = world.train().await;
    assert!(matches!(ended, Ended::Rejected { run: same, .. } if same == run.id), "{ended:?}");
    assert_eq!(world.last_run().await.metrics["selection"], compared);
}

#[tokio::test]
async fn a_second_training_that_lacked_memory_goes_on_alone() {
    let world = lessons::checked(standing()).await;
    let trainer = world.parts.config.borrow().trainer.command.clone().unwrap();
    // A second one has a folder of its own.
    let trains = |first: &str, second: &str| {
        let script = format!("case \"$PWD\" in */good-alone) {second};; *) {first};; esac");
        let command = ["sh".to_owned(), "-c".to_owned(), script].into_iter();
        let command = command.chain(trainer.clone()).collect();
        world.change(|config| config.trainer.command = Some(command));
    };
    let works = "exec \"$0\" \"$@\"";
    trains(works, "echo state > checkpoint.safetensors; exit 75");
    let ended = world.train().await;
    let Ended::Interrupted { run, .. } = ended else { panic!("{ended:?}") };
    trains("exit 70", works);
    let ended = world.train().await;
    assert!(matches!(ended, Ended::Rejected { run: same, .. } if same == run), "{ended:?}");
    let run = world.last_run().await;
    assert_eq!(run.metrics["selection"]["candidates"].as_array().unwrap().len(), 2);
    let job: Job = serde_json::from_value(run.job).unwrap();
    let left = job::out_of_good_alone(&job.out).join(CHECKPOINT);
    assert!(!left.exists(), "{} is left", left.display());
}

#[tokio::test]
async fn a_daemon_that_ends_while_candidates_are_compared_goes_on_with_them() {
    let slow = standing().step_delay(Duration::from_millis(10));
    let world = lessons::checked(slow).await;
    let (learner, task) = world.learner();
    let mut stages = learner.stage();
    let compares = |stage: &Stage| matches!(stage, Stage::Choosing { candidate: 1, total: 16, .. });
    let stop = async {
        tokio::time::timeout(LONG, stages.wait_for(compares)).await.expect("it is shown").unwrap();
        learner.shutdown().await;
    };
    let (ended, ()) = tokio::join!(learner.train(), stop);
    task.await.unwrap();
    assert!(matches!(ended, Ok(Ended::Interrupted { .. })), "{ended:?}");
    let run = world.last_run().await;

    let world = world.restarted(standing()).await;
    restore(&world.parts).await;
    lessons::practise(&world);
    world.change(|config| {
        config.learn.objective = Objective::Mixed { beta: 0.1, nll: 1.0 };
        // A trainer would break it.
        config.trainer.command = Some(vec!["/no/such/trainer".into()]);
    });
    let ended = world.train().await;
    assert!(matches!(ended, Ended::Rejected { run: same, .. } if same == run.id), "{ended:?}");
    assert_eq!(world.last_run().await.metrics["selection"]["prompts"], 16);
}
