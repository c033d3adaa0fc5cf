//! Answers that nobody has judged, or whose words no longer count, and what becomes of them.

use serde_json::json;

use super::*;

async fn explored(world: &World) -> Ended {
    let (learner, task) = world.learner();
    let ended = learner.explore(all(9)).await.unwrap();
    learner.shutdown().await;
    task.await.unwrap();
    ended
}

/// Prompts and new candidates of an exploration.
pub(super) async fn counts(world: &World) -> (usize, usize) {
    let ended = explored(world).await;
    let Ended::Explored { harvest, .. } = ended else { panic!("{ended:?}") };
    (harvest.prompts, harvest.candidates)
}

/// What is said of each answer to the newest prompt, and by whom; in the order of the answers.
pub(super) async fn said(world: &World) -> Vec<String> {
    let exchange = world.parts.store.exchanges(None, 1).await.unwrap().remove(0);
    let of = |it: &store::Candidate| {
        let said = it.assessments.iter().map(|said| format!("{}: {}", said.judge, said.passes));
        said.collect::<Vec<_>>().join(", ")
    };
    exchange.candidates.iter().map(of).collect()
}

/// An agent that practises on one prompt with this reference; of an answer that equals it nobody is asked
/// whether it is right.
fn refer(world: &World, reference: &str) {
    let path = world.root().join("practice.jsonl");
    let line = json!({ "id": "1", "prompt": "ask practice", "reference": reference });
    write(&path, &line.to_string());
    world.change_agent(|agent| {
        agent.practice.prompts = Some(path);
        agent.reflection.explore = (2, 0);
        let aspect = Arc::make_mut(&mut agent.aspects[0].aspect);
        aspect.correctness = true;
    });
}

pub(super) async fn sync(world: &World) {
    let config = world.parts.config.borrow().clone();
    practice::sync(&world.parts, &config).await.unwrap();
}

#[tokio::test]
async fn drafts_that_an_absent_judge_has_not_seen_are_judged_by_the_next_exploration() {
    let world = World::new(standing(), "good.sh", &[]).await;
    world.change_agent(|agent| agent.reflection.explore = (2, 0));
    world.remember_answers("ask 0", Vec::new()).await;
    without_judge(&world);
    assert!(matches!(explored(&world).await, Ended::Failed { .. }));
    assert_eq!(said(&world).await, [""; 2]);
    world.change_agent(|agent| agent.judge = JudgeConfig::Own);
    assert_eq!(counts(&world).await, (1, 0));
    let judge = format!("generation 0 of {}", "0".repeat(12));
    assert_eq!(said(&world).await, vec![format!("{judge}: false"); 2]);
    assert_eq!(counts(&world).await, (0, 0), "once");

    // Also those of a generation whose answers do not count where each generation practises anew.
    refer(&world, "B");
    sync(&world).await;
    let exchange = world.parts.store.exchanges(None, 1).await.unwrap().remove(0).id;
    let earlier = answer("ask practice", "good", true);
    let earlier = NewCandidate { generation: Generation(7), assessments: Vec::new(), ..earlier };
    world.parts.store.add_candidates(exchange, vec![earlier]).await.unwrap();
    assert_eq!(counts(&world).await, (1, 2));
    let word = |passes: bool| format!("{judge}: {passes}");
    assert_eq!(said(&world).await, [word(true), word(false), word(false)]);
}

#[tokio::test]
async fn what_was_judged_beside_another_reference_is_judged_anew() {
    let world = World::new(standing(), "good.sh", &[]).await;
    refer(&world, "bad");
    assert_eq!(counts(&world).await, (1, 2));
    let judge = format!("generation 0 of {}", "0".repeat(12));
    let equal = format!("{judge}{}: true", config::BY_REFERENCE);
    assert_eq!(said(&world).await, [equal.as_str(); 2]);

    // Examples without a reference do not change that of the practice file, also where `status` reads them
    // alone, beside a night that judges.
    let path = world.root().join("examples.jsonl");
    write(&path, &json!({ "prompt": "ask practice", "answer": "good" }).to_string());
    world.change_agent(|agent| agent.examples = Some(path));
    // Nor while the practice file cannot be read.
    let practice = world.root().join("practice.jsonl");
    let whole = std::fs::read_to_string(&practice).unwrap();
    for now in [whole.as_str(), "{", &whole] {
        write(&practice, now);
        let config = world.parts.config.borrow().clone();
        examples::sync(&world.parts, &config).await.unwrap();
        let exchange = world.parts.store.exchanges(None, 1).await.unwrap().remove(0);
        assert_eq!(exchange.reference.as_deref(), Some("bad"), "with {now}");
    }
    for _ in 0..2 {
        sync(&world).await;
        assert_eq!(said(&world).await, [equal.as_str(), &equal, ""]);
    }

    refer(&world, "good");
    sync(&world).await;
    assert_eq!(said(&world).await, [""; 3], "it is not known which of them are right");
    assert_eq!(counts(&world).await, (1, 0));
    let word = format!("{judge}: false");
    assert_eq!(said(&world).await, [word.as_str(), &word, ""]);

    // Where a program decides alone it is asked at once.
    world.change_agent(|agent| {
        agent.aspects.clear();
        agent.judge = JudgeConfig::Nobody;
        agent.reflection.verifier_weight = 1.0;
    });
    let path = world.root().join("practice.jsonl");
    for (reference, passes) in [("bad", true), ("good", false)] {
        let line = json!({ "id": "1", "prompt": "ask practice", "reference": reference });
        write(&path, &line.to_string());
        sync(&world).await;
        let word = |passes: bool| format!("verifier:reference: {passes}");
        assert_eq!(said(&world).await, [word(passes), word(passes), word(!passes)]);
    }
}

#[tokio::test]
async fn a_night_whose_judge_chooses_no_aspects_says_so_in_numbers_and_what_would_help() {
    let world = World::new(standing(), "good.sh", &[]).await;
    world.change_agent(|agent| agent.aspect_choice = AspectChoice::Judge(1));
    let unjudged = NewCandidate { assessments: Vec::new(), ..answer("ask 0", "bad", false) };
    world.remember_answers("ask 0", vec![unjudged.clone(), unjudged]).await;
    world.remember_answers("ask 1", Vec::new()).await;
    let Ended::Rejected { run, reason, .. } = world.train().await else { panic!("it trained") };
    let expected =
        "2 answers to 1 prompts are not judged, for 2 prompts the judge has chosen no aspects: ";
    assert!(reason.contains(expected) && reason.contains("another judge would help"), "{reason}");
    let recorded = world.parts.store.run(run).await.unwrap();
    let numbers = json!({ "answers": 2, "prompts": 1, "without_choice": 2 });
    assert_eq!((recorded.reason, &recorded.metrics["unjudged"]), (Some(reason), &numbers));
    // Where nobody is to choose that is no fault.
    world.change_agent(|agent| agent.aspect_choice = AspectChoice::All);
    let Ended::Rejected { reason, .. } = world.train().await else { panic!("it trained") };
    assert!(reason.contains("2 answers to 1 prompts are not judged: "), "{reason}");
}
