//! What a run is given to learn from, and when it begins.

use chrono::TimeDelta;

use super::*;
use crate::learn::task::Task;

#[tokio::test]
async fn kto_is_given_single_answers_and_weights_that_balance_them() {
    let world = World::new(standing(), "good.sh", &[]).await;
    let kto =
        |weight| Objective::Kto { beta: 0.1, desirable_weight: 1.0, undesirable_weight: weight };
    world.change(|config| config.learn.objective = kto(1.0));
    world.remember("ask 0").await;
    for prompt in ["ask 1", "ask 2"] {
        world.remember_answers(prompt, vec![answer(prompt, " poor", false)]).await;
    }
    assert!(matches!(world.train().await, Ended::Rejected { .. }));
    let (job, examples) = lines::<Example>(&world).await;
    let has = |example: &Example| (!example.chosen.is_empty(), example.rejected.is_some());
    let mut sides: Vec<_> = examples.iter().map(has).collect();
    sides.sort_unstable();
    assert_eq!(sides, [(false, true), (false, true), (false, true), (true, false)]);
    assert_eq!(job.objective, kto(1.0 / 3.0));
    assert_eq!(world.last_run().await.metrics["tally"]["alone"], 2);
}

#[tokio::test]
async fn pairs_are_trained_on_top_of_supervised_training_and_what_auto_became_is_recorded() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.change(|config| {
        config.learn.objective = Objective::Sft;
        config.learn.optimizer.epochs = None;
        config.learn.optimizer.learning_rate = None;
    });
    world.remember_some().await;
    assert!(matches!(world.train().await, Ended::Promoted { .. }));
    let (job, examples) = lines::<Example>(&world).await;
    assert!(examples.len() == 4 && examples.iter().all(|it| it.rejected.is_none()));
    // A model without size; 2 steps an epoch.
    assert_eq!((job.optimizer.learning_rate, job.optimizer.epochs), (1e-3, 3));

    // Old examples without a rejected answer are no pairs.
    world.change(|config| config.learn.objective = Objective::Dpo { beta: 0.1, nll: 1.0 });
    world.remember("ask more").await;
    let ended = world.train().await;
    assert!(matches!(ended, Ended::Promoted { generation: Generation(2), .. }), "{ended:?}");
    let (job, examples) = lines::<Example>(&world).await;
    assert!(examples.len() == 5 && examples.iter().all(|it| it.rejected.is_some()));
    assert_eq!(job.start, Some(world.parts.state.adapter(1)));
    assert_eq!((job.optimizer.learning_rate, job.optimizer.epochs), (1e-3, 3));
}

#[tokio::test]
async fn grpo_is_given_groups_with_their_behaviour() {
    let world = World::new(standing(), "good.sh", &[]).await;
    let grpo = Objective::Grpo { beta: 0.04, epsilon: 0.2, importance_cap: 2.0 };
    world.change(|config| config.learn.objective = grpo);
    world.remember_some().await;
    assert!(matches!(world.train().await, Ended::Rejected { .. }));
    let (_, groups) = lines::<Group>(&world).await;
    assert_eq!(groups.len(), 4);
    for Group { answers, .. } in &groups {
        let rewards: Vec<f64> = answers.iter().map(|it| (it.reward * 10.0).round()).collect();
        assert_eq!(rewards, [8.0, -8.0]);
        assert!(answers.iter().all(|it| it.logprobs == vec![-1.0; it.tokens.len()]));
    }
    assert_eq!(world.last_run().await.n_pairs, 8, "one row an answer");
}

#[tokio::test]
async fn a_word_of_the_owner_makes_new_pairs_of_old_answers() {
    let world = World::new(standing(), "good.sh", &[]).await;
    world.remember_some().await;
    let (_switch, cancel) = Cancel::new();
    let stage = watch::channel(Stage::Idle).0;
    let first = run::run(&world.parts, scheduled(4), Duration::ZERO, &stage, cancel.clone()).await;
    assert!(matches!(first, Ended::Rejected { .. }), "{first:?}");
    let again = run::run(&world.parts, scheduled(1), Duration::ZERO, &stage, cancel.clone()).await;
    let Ended::Rejected { reason, .. } = again else { panic!("{again:?}") };
    assert!(reason.contains("that there are were learned before"), "{reason}");

    let exchange = world.parts.store.exchanges(None, 1).await.unwrap().remove(0);
    for (candidate, rating) in exchange.candidates.iter().zip([-1, 1]) {
        let (exchange, candidate) = (exchange.id, Some(candidate.id));
        let word = Feedback { exchange, candidate, rating: Some(rating), aspect: None, edit: None };
        world.parts.store.add_feedback(word).await.unwrap();
    }
    let third = run::run(&world.parts, scheduled(1), Duration::ZERO, &stage, cancel).await;
    assert!(matches!(third, Ended::Rejected { .. }), "{third:?}");
    let rows = world.parts.store.pairs(world.last_run().await.id).await.unwrap();
    let turned = rows.iter().find(|row| row.exchange == exchange.id).unwrap();
    let [fine, poor] = exchange.candidates.as_slice() else { panic!("two answers") };
    assert_eq!((turned.chosen, turned.rejected), (Some(poor.id), Some(fine.id)));
    let of_exchange = rows.iter().filter(|row| row.exchange == exchange.id);
    assert_eq!(of_exchange.count(), 1, "the pair of before is not trained beside it");
}

#[tokio::test]
async fn an_exploration_leaves_prompts_alone_that_need_nothing_or_that_nothing_helps() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.change_agent(|agent| agent.reflection.stop_early = StopEarly { enough: 1, give_up: 3 });
    // Enough of both; and three that fail, with a refinement among them.
    world.remember("ask enough").await;
    let poor = || answer("ask hopeless", " poor", false);
    let refined = NewCandidate { parent: Some(Parent::Index(0)), ..poor() };
    world.remember_answers("ask hopeless", vec![poor(), poor(), refined]).await;
    world.remember_answers("ask fresh", vec![]).await;
    let (learner, _task) = world.learner();
    let ended = learner.explore(all(9)).await.unwrap();
    let Ended::Explored { harvest, .. } = ended else { panic!("{ended:?}") };
    assert_eq!((harvest.prompts, harvest.enough, harvest.given_up), (1, 1, 0), "{harvest:?}");
    // The base's drafts are bad, and a refinement passes.
    assert!(0 < harvest.positives && 0 < harvest.generated_tokens, "{harvest:?}");
    let ended = learner.explore(all(9)).await.unwrap();
    let Ended::Explored { harvest, .. } = ended else { panic!("{ended:?}") };
    assert_eq!((harvest.prompts, harvest.generated_tokens), (0, 0), "nothing is left");

    // Another generation has tries of its own.
    assert!(matches!(learner.train().await.unwrap(), Ended::Promoted { .. }));
    let ended = learner.explore(all(9)).await.unwrap();
    let Ended::Explored { harvest, .. } = ended else { panic!("{ended:?}") };
    assert_eq!(harvest.prompts, 1, "{harvest:?}");
}

#[tokio::test]
async fn a_prompt_that_the_engine_fails_at_costs_the_others_nothing() {
    let world = World::new(improving().poison("ask broken"), "good.sh", &[]).await;
    for prompt in ["ask broken", "ask fine"] {
        world.remember_answers(prompt, vec![]).await;
    }
    let (learner, _task) = world.learner();
    let ended = learner.explore(all(9)).await.unwrap();
    let Ended::Explored { harvest, .. } = ended else { panic!("{ended:?}") };
    assert!(harvest.prompts == 2 && 0 < harvest.positives, "{harvest:?}");
    // Later it may be the only one that is left.
    let ended = learner.explore(all(9)).await.unwrap();
    let Ended::Explored { harvest, .. } = ended else { panic!("{ended:?}") };
    assert_eq!(harvest.generated_tokens, 0, "{harvest:?}");
}

#[tokio::test]
async fn a_new_schedule_shows_when_the_next_run_is_due() {
    let world = World::new(standing(), "good.sh", &[]).await;
    let (learner, _task) = world.learner();
    assert_eq!(learner.next_run(), None);
    // It has begun before the schedule is set.
    assert!(!learner.cancel().await.unwrap());
    let mut next_run = learner.news.next_run.clone();
    let hourly = Some(("0 * * * *".to_owned(), chrono_tz::UTC));
    world.change(|config| config.learn.schedule = hourly);
    let due = *next_run.wait_for(Option::is_some).await.unwrap();
    assert_eq!(learner.next_run(), due);
    assert_eq!(world.parts.store.events("scheduled", 9).await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_first_night_is_made_up_for_on_a_machine_that_was_off_at_its_hour() {
    let world = World::new(standing(), "good.sh", &[]).await;
    let nightly = Some(("0 3 * * *".to_owned(), chrono_tz::UTC));
    world.change(|config| config.learn.schedule.clone_from(&nightly));
    let (learner, task) = world.learner();
    learner.shutdown().await;
    task.await.unwrap();
    let is_due = async |now| {
        let (mut task, shown) = Task::new(world.parts.clone(), now);
        task.catch_up(now).await.unwrap();
        shown.next_run.borrow().is_some_and(|due| due <= now)
    };
    let (today, tomorrow) = (Utc::now(), Utc::now() + TimeDelta::days(1));
    assert!(!is_due(today).await, "it has begun before that hour");
    assert!(is_due(tomorrow).await);
    assert!(is_due(tomorrow).await, "until a night has begun");
    // Another plan has missed nothing before it was set, nor has there been one while there was none.
    world.change(|config| config.learn.schedule = Some(("0 4 * * *".to_owned(), chrono_tz::UTC)));
    assert!(!is_due(tomorrow).await);
    world.change(|config| config.learn.schedule = None);
    assert!(!is_due(tomorrow).await);
    world.change(|config| config.learn.schedule.clone_from(&nightly));
    assert!(!is_due(tomorrow).await);
    assert!(is_due(tomorrow).await, "it was set today");
}

#[tokio::test]
async fn a_scheduled_run_needs_pairs_that_are_newer_than_the_last_judged_run() {
    let world = World::new(standing(), "good.sh", &[]).await;
    world.remember_some().await;
    let (_switch, cancel) = Cancel::new();
    let stage = watch::channel(Stage::Idle).0;
    let first = run::run(&world.parts, scheduled(4), Duration::ZERO, &stage, cancel.clone()).await;
    assert!(matches!(first, Ended::Rejected { .. }), "{first:?}");
    world.remember("ask more").await;
    let second = run::run(&world.parts, scheduled(2), Duration::ZERO, &stage, cancel.clone()).await;
    let Ended::Rejected { reason, .. } = second else { panic!("{second:?}") };
    assert!(reason.contains("1 of 2 new pairs"), "{reason}");
    let third = run::run(&world.parts, scheduled(1), Duration::ZERO, &stage, cancel).await;
    assert!(matches!(third, Ended::Rejected { .. }), "{third:?}");
}
