//! `held_out: auto`: prompts that are set aside for the gate.

use std::collections::HashSet;

use super::lessons::learn;
use super::*;
use store::ExchangeId;

/// `n` prompts with a verifier.
fn verified(n: usize) -> String {
    let line = |i| {
        let verifier = "{\"kind\":\"exact\",\"expected\":\"good\"}";
        format!("{{\"id\":\"{i}\",\"prompt\":\"ask practice {i}\",\"verifier\":{verifier}}}\n")
    };
    (0..n).map(line).collect()
}

/// Brings the store to what the files say: the prompts that are set aside, and those that are practised on.
async fn synced(world: &World) -> (HashSet<ExchangeId>, HashSet<ExchangeId>) {
    let config = world.parts.config.borrow().clone();
    let mut practised = practice::sync(&world.parts, &config).await.unwrap();
    (practised.aside, practised.by_agent.remove("tester").unwrap_or_default())
}

#[tokio::test]
async fn one_in_five_prompts_with_truth_is_set_aside_for_good() {
    let world = World::new(improving(), "good.sh", &[]).await;
    let path = world.root().join("practice.jsonl");
    write(&path, &verified(100));
    world.change_agent(|agent| {
        agent.held_out = Some(config::HeldOut::Auto);
        agent.practice.prompts = Some(path.clone());
    });
    let looked = async || readiness::look(&world.parts).await.unwrap().held_out;
    assert_eq!(looked().await, 0);
    let (aside, practised) = synced(&world).await;
    assert!((10..35).contains(&aside.len()), "{} of 100", aside.len());
    assert_eq!(aside.len() + practised.len(), 100);
    assert!(aside.is_disjoint(&practised));
    assert_eq!(looked().await, aside.len());
    assert_eq!(synced(&world).await, (aside.clone(), practised));

    // They are the gate's questions, and no line of the file that a stored prompt comes from any more
    // takes them back.
    let config = world.parts.config.borrow().clone();
    let (questions, held_out) = held_out::read_all(&world.parts.store, &config).await.unwrap();
    assert!(questions.held_out.iter().all(|it| it.line.verifier.is_some()));
    assert_eq!(held_out::count(&questions.held_out), aside.len());
    write(&path, &verified(400));
    let (more, _) = synced(&world).await;
    assert!(aside.is_subset(&more) && aside.len() < more.len());
    write(&path, &verified(2000));
    assert_eq!(synced(&world).await.0.len(), 200, "no more than the gate needs");
    world.change_agent(|agent| {
        let path = world.root().join("held_out.jsonl");
        (agent.held_out, agent.practice.prompts) = (Some(config::HeldOut::File(path)), None);
    });
    assert!(aside.is_subset(&synced(&world).await.0));
    for question in &questions.held_out {
        assert!(held_out.contains(&question.line.messages()));
    }
}

#[tokio::test]
async fn what_has_no_truth_or_was_learned_from_is_not_set_aside() {
    let world = World::new(improving(), "good.sh", &[]).await;
    let path = world.root().join("practice.jsonl");
    let prompt = |i| format!("{{\"id\":\"{i}\",\"prompt\":\"ask practice {i}\"}}\n");
    write(&path, &(0..100).map(prompt).collect::<String>());
    let example = |i| format!("{{\"prompt\":\"Ask practice, {i}!\",\"answer\":\"good\"}}\n");
    let examples: Vec<String> = (0..100).map(example).collect();
    world.change_agent(|agent| {
        agent.held_out = Some(config::HeldOut::Auto);
        agent.practice.prompts = Some(path.clone());
    });
    assert_eq!(synced(&world).await.0.len(), 0, "without truth");
    learn(&world, &examples.concat()).await.unwrap();
    write(&path, &verified(100));
    assert_eq!(synced(&world).await.0.len(), 0, "near copies of examples");
}

#[tokio::test]
async fn what_is_set_aside_is_asked_by_the_gate_and_never_explored_or_learned_from() {
    let world = World::new(improving(), "good.sh", &[]).await;
    let path = world.root().join("practice.jsonl");
    write(&path, &verified(150));
    world.change_agent(|agent| {
        agent.held_out = Some(config::HeldOut::Auto);
        agent.practice.prompts = Some(path.clone());
    });
    let (learner, task) = world.learner();
    let ended = learner.explore(all(200)).await.unwrap();
    let Ended::Explored { left_out, harvest, .. } = ended else { panic!("{ended:?}") };
    assert!(20 <= left_out.held_out, "{left_out:?}");
    assert_eq!(harvest.prompts + left_out.held_out, 150);
    let ended = learner.train().await.unwrap();
    let Ended::Promoted { run, verdict, .. } = ended else { panic!("{ended:?}") };
    assert_eq!(verdict["available"], left_out.held_out, "{verdict}");
    let pairs = world.parts.store.pairs(run).await.unwrap();
    let (aside, _) = synced(&world).await;
    assert!(!pairs.is_empty() && pairs.iter().all(|pair| !aside.contains(&pair.exchange)));
    learner.shutdown().await;
    task.await.unwrap();
}
