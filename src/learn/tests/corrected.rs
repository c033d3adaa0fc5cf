//! Examples that are corrected, contradicted, named twice, or looked at while the daemon ends.

use serde_json::json;

use super::lessons::{learn, with_examples};
use super::unjudged::{counts, said, sync};
use super::*;
use config::prompt_file::Faults;
use examples::Learned;

/// Writes this example as the only one of an agent's file.
fn teach(world: &World, answer: &str) {
    let path = world.root().join("examples.jsonl");
    write(&path, &json!({ "prompt": "ask", "answer": answer }).to_string());
    world.change_agent(|agent| {
        agent.examples = Some(path);
        agent.reflection.explore = (2, 0);
    });
}

/// A program alone decides, by the reference or a verifier.
fn without_judges(world: &World) {
    world.change_agent(|agent| {
        agent.aspects.clear();
        agent.judge = JudgeConfig::Nobody;
        agent.reflection.verifier_weight = 1.0;
    });
}

async fn examples_of(world: &World) -> Vec<String> {
    let rows = world.parts.store.examples(vec!["tester".into()]).await.unwrap();
    rows.into_iter().map(|row| row.text).collect()
}

async fn faults(world: &World, lines: &str) -> Vec<(usize, String)> {
    let Err(ExampleError::Faults(Faults { told, .. })) = learn(world, lines).await else {
        panic!("they are stored")
    };
    told.into_iter().map(|it| (it.line, it.message)).collect()
}

#[tokio::test]
async fn what_was_judged_beside_the_old_answer_of_a_corrected_example_is_judged_anew() {
    let world = World::new(standing(), "good.sh", &[]).await;
    teach(&world, "bad");
    world.change_agent(|agent| Arc::make_mut(&mut agent.aspects[0].aspect).correctness = true);
    assert_eq!(counts(&world).await, (1, 2));
    let judge = format!("generation 0 of {}", "0".repeat(12));
    let equal = format!("{judge}{}: true", config::BY_REFERENCE);
    assert_eq!(said(&world).await, ["", &equal, &equal]);
    teach(&world, "good");
    // Whoever reads the file first.
    examples::sync(&world.parts, &world.parts.config.borrow().clone()).await.unwrap();
    sync(&world).await;
    assert_eq!(said(&world).await, [""; 4], "it is not known which of them are right");
    assert_eq!(counts(&world).await, (1, 0));
    let word = format!("{judge}: false");
    assert_eq!(said(&world).await, ["", &word, &word, ""]);
}

#[tokio::test]
async fn a_program_alone_checks_what_stands_beside_a_corrected_example_at_once() {
    let world = World::new(standing(), "good.sh", &[]).await;
    without_judges(&world);
    teach(&world, "bad");
    assert_eq!(counts(&world).await, (1, 2));
    let word = |passes: bool| format!("verifier:reference: {passes}");
    assert_eq!(said(&world).await, vec![word(true); 3]);
    // One that a client sends is corrected in the same way.
    world.change_agent(|agent| agent.examples = None);
    learn(&world, "{\"prompt\":\"ask\",\"answer\":\"good\"}\n").await.unwrap();
    sync(&world).await;
    assert_eq!(said(&world).await, [word(false), word(false), word(false), word(true)]);
    assert_eq!(examples_of(&world).await, ["good"]);
}

#[tokio::test]
async fn an_example_that_the_verifier_of_its_practice_prompt_refuses_is_not_learned() {
    let world = World::new(standing(), "good.sh", &[]).await;
    let path = world.root().join("practice.jsonl");
    let practise = |pattern: &str| {
        let verifier = json!({ "kind": "regex", "pattern": pattern });
        let line = json!({ "id": "1", "prompt": "ask", "verifier": verifier });
        write(&path, &line.to_string());
    };
    world.change_agent(|agent| agent.reflection.verifier_weight = 1.0);
    teach(&world, "good");
    sync(&world).await;
    assert_eq!(examples_of(&world).await, ["good"]);
    world.change_agent(|agent| agent.practice.prompts = Some(path.clone()));
    practise("^bad$");
    sync(&world).await;
    assert_eq!(said(&world).await, ["verifier:regex: false"]);
    assert_eq!(examples_of(&world).await, [""; 0]);
    let config = world.parts.config.borrow().clone();
    let waiting = async || {
        let nothing = HeldOut::default();
        examples::waiting(&world.parts, &config, &nothing, false).await.unwrap()
    };
    assert!(waiting().await.is_none());
    // It is one again once nothing refuses it.
    practise("good");
    sync(&world).await;
    assert_eq!(examples_of(&world).await, ["good"]);
    assert_eq!(waiting().await.unwrap().rows.len(), 1);
    practise("^bad$");
    sync(&world).await;
    world.change_agent(|agent| agent.practice.prompts = None);
    sync(&world).await;
    assert_eq!(
        (said(&world).await, examples_of(&world).await),
        (vec![String::new()], vec!["good".to_owned()])
    );
    // A verifier that only measures refuses nothing, also where it has counted before.
    world.change_agent(|agent| agent.practice.prompts = Some(path.clone()));
    for (weight, examples) in [(1.0, vec![]), (0.0, vec!["good"]), (0.5, vec![])] {
        world.change_agent(|agent| agent.reflection.verifier_weight = weight);
        sync(&world).await;
        assert_eq!(examples_of(&world).await, examples, "{weight}");
    }
    // Where a program of the agent's own is asked instead, the owner's word is enough.
    world.change_agent(|agent| {
        let command = vec!["no-such-program".to_owned()];
        let folder = "/".into();
        let command = prompt::Command { command, pass: 1.0, timeout_s: 1.0, folder };
        agent.verifier = Some(config::Verifier::Command(command));
        agent.practice.prompts = None;
    });
    sync(&world).await;
    assert_eq!(examples_of(&world).await, ["good"]);
}

#[tokio::test]
async fn a_client_cannot_change_what_the_file_says_and_is_told_so() {
    let world = World::new(standing(), "good.sh", &[]).await;
    teach(&world, "good");
    sync(&world).await;
    let other =
        "{\"prompt\":\"ask new\",\"answer\":\"x\"}\n{\"prompt\":\"ask\",\"answer\":\"best\"}\n";
    let told = faults(&world, other).await;
    assert!(
        told[0].0 == 2 && told[0].1.contains("file of examples names another answer"),
        "{told:?}"
    );
    let checked = json!({ "prompt": "ask", "answer": "good", "verifier": { "kind": "exact", "expected": "good" } });
    assert_eq!(faults(&world, &checked.to_string()).await[0].0, 1, "another verifier");
    assert_eq!(examples_of(&world).await, ["good"]);
    let known = Learned { known: 1, ..Learned::default() };
    let same = "{\"prompt\":\"ask\",\"answer\":\" good\"}\n";
    assert_eq!(learn(&world, same).await.unwrap(), known);

    let referred = json!({ "prompt": "ask", "answer": "good", "reference": "best" });
    assert_eq!(faults(&world, &referred.to_string()).await[0].0, 1, "another reference");
    let same = json!({ "prompt": "ask", "answer": "good", "reference": "good" });
    assert_eq!(learn(&world, &same.to_string()).await.unwrap(), known);

    // What the file names beside the answer stays.
    write(&world.root().join("examples.jsonl"), &checked.to_string());
    sync(&world).await;
    assert_eq!(learn(&world, &same.to_string()).await.unwrap(), known);
    let stored = world.parts.store.exchanges(None, 1).await.unwrap().remove(0);
    assert!(stored.verifier.is_some());

    // Of a file that cannot be read nothing is known.
    write(&world.root().join("examples.jsonl"), "{");
    let unknown = learn(&world, other).await.unwrap_err().to_string();
    assert!(unknown.contains("examples.jsonl:1: "), "{unknown}");
    assert_eq!(examples_of(&world).await, ["good"]);

    // Nor may what a practice prompt is checked by refuse it.
    let path = world.root().join("practice.jsonl");
    let verifier = json!({ "kind": "contains", "texts": ["good"] });
    write(&path, &json!({ "prompt": "ask new", "verifier": verifier }).to_string());
    world.change_agent(|agent| {
        (agent.examples, agent.practice.prompts) = (None, Some(path));
        agent.reflection.verifier_weight = 1.0;
    });
    let told = faults(&world, other).await;
    assert!(told.len() == 1 && told[0].1.contains("practice file"), "{told:?}");
    world.change_agent(|agent| agent.reflection.verifier_weight = 0.0);
    assert_eq!(
        learn(&world, other).await.unwrap(),
        Learned { new: 1, changed: 1, ..Learned::default() }
    );
}

#[tokio::test]
async fn two_examples_that_are_one_stored_prompt_are_told_of() {
    let world = World::new(standing(), "good.sh", &[]).await;
    world.change_agent(|agent| agent.system = Some("Be kind.".into()));
    let turns = [("system", "Be kind."), ("user", "ask")];
    let turns = turns.map(|(role, content)| json!({ "role": role, "content": content }));
    let whole = json!({ "messages": turns, "answer": "good" });
    let lines = format!("{}\n{whole}\n", json!({ "prompt": "ask", "answer": "best" }));
    let told = faults(&world, &lines).await;
    assert_eq!(told, [(2, "its prompt is that of line 1; leave one of them out".to_owned())]);

    // Of two practice prompts the first counts, or what was said of answers would end with each reading.
    let path = world.root().join("practice.jsonl");
    let practice = |prompt: serde_json::Value, id: usize| {
        let mut line = prompt;
        (line["id"], line["reference"]) = (id.to_string().into(), id.to_string().into());
        line.to_string() + "\n"
    };
    let first = practice(json!({ "prompt": "ask" }), 1);
    let others = (2..600).map(|id| practice(json!({ "prompt": format!("ask {id}") }), id));
    let last = practice(json!({ "messages": turns }), 600);
    write(&path, &(first + &others.collect::<String>() + &last));
    world.change_agent(|agent| agent.practice.prompts = Some(path));
    sync(&world).await;
    let stored = world.parts.store.exchanges(None, 1000).await.unwrap();
    let references: Vec<_> = stored.iter().filter_map(|it| it.reference.as_deref()).collect();
    assert_eq!((references.len(), references.contains(&"600")), (599, false));
}

#[tokio::test]
async fn an_example_whose_prompt_is_held_out_meanwhile_is_not_shown() {
    let world = with_examples(standing(), 3).await;
    world.change_agent(|agent| {
        (agent.practice.shots, agent.reflection.explore) = (9, (1, 0));
    });
    sync(&world).await;
    let held_out = world.root().join("held_out.jsonl");
    let lines = std::fs::read_to_string(&held_out).unwrap();
    write(&held_out, &(lines + "\n{\"id\":\"x\",\"prompt\":\"ASK: example 0?\"}"));
    counts(&world).await;
    let rows = world.parts.store.examples(vec!["tester".into()]).await.unwrap();
    let exchange = world.parts.store.exchange(rows[1].exchange).await.unwrap();
    let draft = exchange.candidates.iter().find(|it| it.author == Author::Model).unwrap();
    assert_eq!(draft.shots, [rows[2].candidate]);
}

#[tokio::test]
async fn what_is_looked_up_beside_everything_else_does_not_outlive_the_learner() {
    let world = World::new(standing(), "good.sh", &[]).await;
    let before = world.config.receiver_count();
    let path = world.root().join("examples.jsonl");
    let (kind, mode) =
        (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR);
    rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
    world.change_agent(|agent| agent.examples = Some(path.clone()));
    let (learner, task) = world.learner();
    // Somebody reads it when that is open, and goes on when it is closed.
    let open = move || std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let writer = tokio::task::spawn_blocking(open).await.unwrap();
    learner.shutdown().await;
    task.await.unwrap();
    drop(learner);
    assert_eq!(world.config.receiver_count(), before, "nobody holds parts of the daemon");
    drop(writer);
}
