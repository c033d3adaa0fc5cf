//! Files that a night practises on, examples, and the run on examples alone.

use serde_json::json;

use super::*;
use config::prompt_file::Faults;
use config::{ExampleLine, Verifier};
use examples::{Learned, Origin};

/// Examples of the right answer to so many prompts.
fn examples(n: usize) -> String {
    let line = |i| format!("{{\"prompt\":\"ask example {i}\",\"answer\":\"good\"}}\n");
    (0..n).map(line).collect()
}

/// A world whose agent has a file of examples.
pub(super) async fn with_examples(script: Script, n: usize) -> World {
    let world = World::new(script, "good.sh", &[]).await;
    let path = world.root().join("examples.jsonl");
    write(&path, &examples(n));
    world.change_agent(|agent| agent.examples = Some(path));
    world
}

/// As a client sends them.
pub(super) async fn learn(world: &World, lines: &str) -> Result<Learned, ExampleError> {
    learn_from(Origin::Client, world, lines).await
}

async fn learn_from(origin: Origin, world: &World, lines: &str) -> Result<Learned, ExampleError> {
    let config = world.parts.config.borrow().clone();
    let (_, held_out) = held_out::read_all(&world.parts.store, &config).await.unwrap();
    let lines: Vec<ExampleLine> = config::prompt_file::parse(lines).unwrap();
    let agent = &config.agents["tester"];
    let lines = (1..).zip(lines).collect();
    let (reflector, store) = (&world.parts.reflector, &world.parts.store);
    examples::learn(reflector, store, agent, held_out, origin, lines).await
}

#[tokio::test]
async fn a_model_that_can_do_nothing_begins_with_the_examples_in_a_run_of_its_own() {
    let world = with_examples(improving(), 12).await;
    let ended = world.train().await;
    let Ended::Promoted { run, .. } = ended else { panic!("{ended:?}") };
    let stored = world.parts.store.run(run).await.unwrap();
    assert_eq!((stored.n_pairs, &stored.metrics["lesson"]), (12, &"examples".into()));
    let (job, lines) = lines::<Example>(&world).await;
    assert_eq!(job.objective, Objective::Sft);
    let end = END.0;
    for example in &lines {
        assert_eq!(example.chosen.last(), Some(&end));
        assert_eq!(example.rejected, None);
    }
    // The examples are known to the model now, and there is nothing else.
    let again = world.train().await;
    let Ended::Rejected { reason, .. } = again else { panic!("{again:?}") };
    assert!(reason.contains("0 of 1 new pairs"), "{reason}");
}

#[tokio::test]
async fn what_imitates_rehearses_the_bases_own_answers_to_everyday_prompts() {
    let world = with_examples(improving(), 12).await;
    world.change(|config| config.learn.rehearsal = 0.25);
    assert!(matches!(world.train().await, Ended::Promoted { .. }));
    let run = world.last_run().await;
    assert_eq!((run.n_pairs, &run.metrics["rehearsed"]), (12, &3.into()));
    let (_, lines) = lines::<Example>(&world).await;
    // The base says "?" to what is not of the task.
    let rehearsed: Vec<_> = lines[12..].iter().map(|it| it.chosen.as_slice()).collect();
    assert_eq!(rehearsed, [[i32::from(b'?'), END.0]; 3]);

    // Preferences are no imitation.
    world.remember_some().await;
    assert!(matches!(world.train().await, Ended::Promoted { .. }));
    assert_eq!(world.last_run().await.metrics["rehearsed"], 0);
}

#[tokio::test]
async fn few_examples_are_not_worth_a_scheduled_run_and_answers_that_pass_are_worth_more() {
    let world = with_examples(improving(), 9).await;
    let config = world.parts.config.borrow().clone();
    practice::sync(&world.parts, &config).await.unwrap();
    let waiting = async |is_scheduled| {
        let held_out = HeldOut::default();
        examples::waiting(&world.parts, &config, &held_out, is_scheduled).await.unwrap()
    };
    assert!(waiting(true).await.is_none());
    assert_eq!(waiting(false).await.unwrap().rows.len(), 9);
    for i in 0..9 {
        world.remember(&format!("ask {i}")).await;
    }
    assert!(waiting(false).await.is_none(), "it can do as much by itself");
}

#[tokio::test]
async fn where_drafts_fail_the_example_is_what_is_learned() {
    let world = with_examples(improving(), 1).await;
    let config = world.parts.config.borrow().clone();
    practice::sync(&world.parts, &config).await.unwrap();
    let example = world.parts.store.examples(vec!["tester".into()]).await.unwrap().remove(0);
    // Longer than any ratio of lengths allows.
    let poor = answer("ask example 0", &" poor".repeat(20), false);
    world.parts.store.add_candidates(example.exchange, vec![poor]).await.unwrap();
    let pair = async || {
        let vocabulary = world.parts.engine.vocabulary().as_ref();
        let (policy, held_out) = (&config.learn.pairs, HeldOut::default());
        let objective = config.learn.objective;
        let mut pairing = pairs::Pairing::new(policy, &objective, &held_out, vocabulary);
        pairing.add(&world.parts.store.exchange(example.exchange).await.unwrap());
        pairing.finish().0.iter().map(|pair| pair.row.chosen).collect::<Vec<_>>()
    };
    assert_eq!(pair().await, [Some(example.candidate)]);
    // Its own right answer is nearer to the model than the owner's.
    let right = answer("ask example 0", &" fine".repeat(20), true);
    let ids = world.parts.store.add_candidates(example.exchange, vec![right]).await.unwrap();
    assert_eq!(pair().await, [Some(ids[0])]);
}

#[tokio::test]
async fn examples_are_learned_once_all_or_none_and_never_of_held_out_prompts() {
    let world = World::new(standing(), "good.sh", &[]).await;
    assert_eq!(
        learn(&world, &examples(3)).await.unwrap(),
        Learned { new: 3, ..Learned::default() }
    );
    assert_eq!(
        learn(&world, &examples(3)).await.unwrap(),
        Learned { known: 3, ..Learned::default() }
    );
    let other = examples(1).replace("good", "best");
    assert_eq!(learn(&world, &other).await.unwrap(), Learned { changed: 1, ..Learned::default() });

    let before = world.parts.store.counts().await.unwrap();
    let wrong = concat!(
        "{\"prompt\":\"ask new\",\"answer\":\"good\"}\n",
        "{\"prompt\":\"ask held out 7\",\"answer\":\"good\"}\n",
        "{\"prompt\":\"ask 3\",\"answer\":\"bad\",\"verifier\":{\"kind\":\"exact\",\"expected\":\"good\"}}\n",
    );
    let Err(ExampleError::Faults(Faults { told, .. })) = learn(&world, wrong).await else {
        panic!()
    };
    assert_eq!(told.iter().map(|it| it.line).collect::<Vec<_>>(), [2, 3], "{told:?}");
    assert!(told[0].message.contains("held out"), "{told:?}");
    assert!(told[1].message.contains("does not pass the verifier"), "{told:?}");
    assert_eq!(world.parts.store.counts().await.unwrap(), before, "nothing is half stored");
}

/// Of a file as of a client, and of examples that were stored before their prompts were held out.
#[tokio::test]
async fn near_copies_of_held_out_prompts_are_left_out_and_counted() {
    let world = World::new(improving(), "good.sh", &[]).await;
    let near = "{\"prompt\":\"Ask held out: 7!\",\"answer\":\"good\"}\n";
    let learned = learn(&world, &(examples(1) + near)).await.unwrap();
    assert_eq!(
        learned,
        Learned { new: 1, left_out: LeftOut { held_out: 0, near_copies: 1 }, ..Learned::default() }
    );

    let (practice, held_out) =
        (world.root().join("practice.jsonl"), world.root().join("held_out.jsonl"));
    let line = |prompt: &str| format!("{{\"id\":\"{prompt}\",\"prompt\":\"{prompt}\"}}\n");
    let questions = std::fs::read_to_string(&held_out).unwrap() + "\n";
    write(&held_out, &(questions + &line("please turn on the light in the kitchen now")));
    let prompts = [
        "please turn on the light in the kitchen",
        "please turn off the lamp in the hall",
        "ask held out 3",
    ];
    write(&practice, &prompts.map(line).concat());
    world.change_agent(|agent| agent.practice.prompts = Some(practice));
    let (learner, task) = world.learner();
    let ended = learner.explore(all(9)).await.unwrap();
    let Ended::Explored { left_out, .. } = ended else { panic!("{ended:?}") };
    assert_eq!(left_out, LeftOut { held_out: 1, near_copies: 1 });
    let stored = world.parts.store.exchanges(None, 9).await.unwrap();
    let stored: Vec<_> = stored.iter().map(|it| it.messages[0].content.as_str()).collect();
    assert_eq!(stored, [prompts[1], "ask example 0"]);

    // The example's prompt is nearly held out from now on.
    let questions = std::fs::read_to_string(&held_out).unwrap();
    write(&held_out, &(questions + &line("ASK: example 0?")));
    learner.shutdown().await;
    task.await.unwrap();
    let ended = world.train().await;
    let Ended::Rejected { run, .. } = ended else { panic!("{ended:?}") };
    let tally = &world.parts.store.run(run).await.unwrap().metrics["tally"];
    assert_eq!((&tally["held_out"], &tally["near_copies"]), (&0.into(), &1.into()), "{tally}");
}

#[tokio::test]
async fn the_answer_is_the_reference_unless_the_example_has_one() {
    let world = World::new(standing(), "good.sh", &[]).await;
    let own = "{\"prompt\":\"ask own\",\"answer\":\"good\",\"reference\":\"best\"}\n";
    learn(&world, &(examples(1) + own)).await.unwrap();
    let exchanges = world.parts.store.exchanges(None, 9).await.unwrap();
    let references: Vec<_> = exchanges.iter().map(|it| it.reference.as_deref()).collect();
    assert_eq!(references, [Some("best"), Some("good")]);
}

#[tokio::test]
async fn a_night_practises_on_its_file_alone_and_each_generation_does_anew() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    let path = world.root().join("practice.jsonl");
    let line = |i| format!("{{\"id\":\"{i}\",\"prompt\":\"ask practice {i}\"}}\n");
    let held_out = "{\"id\":\"x\",\"prompt\":\"ask held out 3\"}\n".to_owned();
    write(&path, &((0..3).map(line).collect::<String>() + &held_out));
    world.change_agent(|agent| agent.practice.prompts = Some(path));
    let (learner, task) = world.learner();
    let explored = async |all| {
        let wish = Exploration { agent: None, limit: 9, split: None, all };
        let ended = learner.explore(wish).await.unwrap();
        let Ended::Explored { harvest, .. } = ended else { panic!("{ended:?}") };
        harvest.prompts
    };
    assert_eq!(explored(false).await, 3, "chats and what is held out are left alone");
    assert_eq!(explored(false).await, 0, "all is there");
    assert!(matches!(learner.train().await.unwrap(), Ended::Promoted { .. }));
    assert_eq!(explored(false).await, 3, "another generation");
    let id = world.parts.store.exchanges(None, 1).await.unwrap()[0].id;
    let answers = world.parts.store.exchange(id).await.unwrap().candidates;
    let of = |generation| {
        answers
            .iter()
            .filter(move |it| it.generation == Generation(generation) && it.parent.is_none())
    };
    assert_eq!((of(0).count(), of(1).count()), (3, 3), "as many drafts as before");
    assert_eq!(explored(true).await, 4, "the chats");
    learner.shutdown().await;
    task.await.unwrap();
}

#[tokio::test]
async fn shots_are_shown_while_exploring_and_are_no_part_of_what_is_stored() {
    // Only a prompt with an example before it is answered well.
    let script = judge().on("good", &[("good", 1.0)]).on("ask", &[("bad", 1.0)]);
    let world = with_examples(script, 2).await;
    world.change_agent(|agent| agent.practice.shots = 1);
    let (learner, task) = world.learner();
    assert!(matches!(learner.explore(all(9)).await.unwrap(), Ended::Explored { .. }));
    learner.shutdown().await;
    task.await.unwrap();
    let examples = world.parts.store.examples(vec!["tester".into()]).await.unwrap();
    for (own, other) in [(&examples[0], &examples[1]), (&examples[1], &examples[0])] {
        let exchange = world.parts.store.exchange(own.exchange).await.unwrap();
        assert_eq!(exchange.prompt_tokens, rendered(&exchange.messages[0].content));
        let drafts: Vec<_> =
            exchange.candidates.iter().filter(|it| it.author == Author::Model).collect();
        let direct: Vec<_> = drafts.iter().filter(|it| it.parent.is_none()).collect();
        assert_eq!(direct.len(), 3);
        for draft in direct {
            assert_eq!(
                (draft.text.as_str(), draft.shots.as_slice()),
                ("good", &[other.candidate][..])
            );
        }
    }
}

#[tokio::test]
async fn a_file_of_examples_with_faults_stops_the_run_with_all_of_them() {
    let world = with_examples(improving(), 3).await;
    let path = world.root().join("examples.jsonl");
    let verifier = serde_json::to_string(&Verifier::Exact { expected: "good".into() }).unwrap();
    let wrong = format!("{{\"prompt\":\"ask\",\"answer\":\"bad\",\"verifier\":{verifier}}}\n");
    write(&path, &(examples(2) + &wrong));
    let ended = world.train().await;
    let Ended::Failed { run: None, reason } = ended else { panic!("{ended:?}") };
    assert!(reason.contains("examples.jsonl:3: ") && reason.contains("verifier"), "{reason}");
    write(&path, &(examples(2) + "{\"prompt\":\"ask\"}\n{\"answer\":\"good\"}\n"));
    let ended = world.train().await;
    let Ended::Failed { run: None, reason } = ended else { panic!("{ended:?}") };
    assert!(reason.contains(":3: ") && reason.contains(":4: "), "{reason}");
    assert_eq!(world.parts.store.counts().await.unwrap().exchanges, 0);
}

/// Prompts to practise on, all with this verifier.
pub(super) fn practice(n: usize, verifier: &serde_json::Value) -> String {
    let line = |i: usize| json!({ "id": i.to_string(), "prompt": format!("ask practice {i}"), "verifier": verifier });
    (0..n).map(|i| line(i).to_string() + "\n").collect()
}

#[tokio::test]
async fn where_no_answer_is_right_what_the_verifier_expects_is_learned() {
    let script = judge().on("ask practice 0", &[("good", 1.0)]).on("ask", &[("bad", 1.0)]);
    let world = World::new(script, "good.sh", &[]).await;
    let path = world.root().join("practice.jsonl");
    let exact = |expected| json!({ "kind": "exact", "expected": expected });
    write(&path, &practice(3, &exact("good")));
    world.change_agent(|agent| {
        agent.practice.prompts = Some(path.clone());
        agent.reflection.verifier_weight = 1.0;
        agent.reflection.explore = (2, 0);
    });
    let explored = async || {
        let (learner, task) = world.learner();
        let ended = learner.explore(all(9)).await.unwrap();
        let Ended::Explored { harvest, .. } = ended else { panic!("{ended:?}") };
        learner.shutdown().await;
        task.await.unwrap();
        harvest.expected
    };
    let examples = async || {
        let rows = world.parts.store.examples(vec!["tester".into()]).await.unwrap();
        rows.into_iter().map(|row| (row.messages[0].content.clone(), row.text)).collect::<Vec<_>>()
    };
    let of = |prompts: &[usize], text: &str| -> Vec<_> {
        prompts.iter().map(|i| (format!("ask practice {i}"), text.to_owned())).collect()
    };
    // It has solved the first prompt by itself.
    assert_eq!((explored().await, examples().await), (2, of(&[1, 2], "good")));
    // They are chosen over its wrong answers, as examples of a file are.
    let config = world.parts.config.borrow().clone();
    let material = material::collect(&world.parts, &config, &HeldOut::default()).await.unwrap();
    let chosen = material.rows.iter().map(|row| row.chosen);
    let rows = world.parts.store.examples(vec!["tester".into()]).await.unwrap();
    assert_eq!(
        chosen.collect::<Vec<_>>(),
        rows.iter().map(|it| Some(it.candidate)).collect::<Vec<_>>()
    );

    // What was right once is no longer learned.
    write(&path, &practice(3, &exact("better")));
    practice::sync(&world.parts, &config).await.unwrap();
    assert_eq!(examples().await, of(&[1, 2], "better"));

    // The owner's own example stays where it is right too, however it is written.
    let json = json!({ "kind": "json", "expected": { "a": 1 } });
    let spaced = "{\"prompt\":\"ask practice 1\",\"answer\":\"{ \\\"a\\\": 1 }\"}\n";
    learn_from(Origin::File, &world, spaced).await.unwrap();
    write(&path, &practice(3, &json));
    practice::sync(&world.parts, &config).await.unwrap();
    assert_eq!(examples().await, [of(&[1], "{ \"a\": 1 }"), of(&[2], "{\"a\":1}")].concat());

    // Two files that contradict each other store nothing without end.
    let other = "{\"prompt\":\"ask practice 2\",\"answer\":\"{}\"}\n";
    for _ in 0..3 {
        learn_from(Origin::File, &world, other).await.unwrap();
        practice::sync(&world.parts, &config).await.unwrap();
    }
    let id = world.parts.store.examples(vec!["tester".into()]).await.unwrap()[1].exchange;
    let stored = world.parts.store.exchange(id).await.unwrap().candidates;
    let by_owner = stored.iter().filter(|it| it.author == Author::Owner);
    let texts: Vec<_> = by_owner.map(|it| it.text.as_str()).collect();
    assert_eq!(texts, ["good", "better", "{\"a\":1}", "{}"]);

    // A pattern knows no whole answer, and a program whose word does not count teaches nothing.
    let pattern = practice(6, &json!({ "kind": "regex", "pattern": "^good$" }));
    write(&path, &pattern);
    assert_eq!(explored().await, 0);
    world.change_agent(|agent| agent.reflection.verifier_weight = 0.0);
    write(&path, &practice(9, &exact("good")));
    assert_eq!(explored().await, 0);
}

/// Gives a world's agent sixteen prompts to practise on, which a program checks.
pub(super) fn practise(world: &World) {
    let path = world.root().join("practice.jsonl");
    write(&path, &practice(16, &json!({ "kind": "contains", "texts": ["good"] })));
    world.change_agent(|agent| {
        agent.practice.prompts = Some(path);
        agent.reflection.verifier_weight = 1.0;
    });
}

/// A night of such prompts, each with a right answer and a wrong one.
pub(super) async fn checked(script: Script) -> World {
    let world = World::new(script, "good.sh", &[]).await;
    practise(&world);
    world.change(|config| config.learn.objective = Objective::Mixed { beta: 0.1, nll: 1.0 });
    world.remember_some().await;
    world
}

/// Of explored prompts `validation_share` are asked after a run on answers, which is none of examples.
#[tokio::test]
async fn what_examples_have_taught_is_compared_on_prompts_that_were_explored_before() {
    let script =
        judge().on_generation(Generation(1), "ask", &[("good", 1.0)]).on("ask", &[("bad", 1.0)]);
    let world = with_examples(script, 12).await;
    practise(&world);
    world.change_agent(|agent| agent.reflection.explore = (3, 0));
    let (learner, task) = world.learner();
    assert!(matches!(learner.explore(all(99)).await.unwrap(), Ended::Explored { .. }));
    learner.shutdown().await;
    task.await.unwrap();
    assert!(matches!(world.train().await, Ended::Promoted { .. }));
    let metrics = world.last_run().await.metrics;
    let compared = &metrics["selection"];
    assert_eq!((&metrics["lesson"], &compared["prompts"]), (&"examples".into(), &16.into()));
}

#[tokio::test]
async fn candidates_are_compared_by_right_answers_to_prompts_that_were_not_trained_on() {
    let world = checked(improving()).await;
    assert!(matches!(world.train().await, Ended::Promoted { .. }));
    let run = world.last_run().await;
    let found = &run.metrics["selection"];
    assert_eq!((&found["prompts"], &found["start"]), (&16.into(), &0.into()), "{found}");
    // The second one has learned from the good answers alone.
    let candidates = found["candidates"].as_array().unwrap();
    let objectives: Vec<_> = candidates.iter().map(|it| it["objective"].as_str()).collect();
    assert_eq!(objectives, [Some("mixed")], "all were right: {found}");

    // Where candidates are no better there is room for another one.
    let world = checked(standing()).await;
    assert!(matches!(world.train().await, Ended::Rejected { .. }));
    let found = world.last_run().await.metrics["selection"].clone();
    let candidates = found["candidates"].as_array().unwrap();
    let objectives: Vec<_> = candidates.iter().map(|it| it["objective"].as_str()).collect();
    assert_eq!(objectives, [Some("mixed"), Some("sft")], "{found}");
    // Equal ones go to the good answers alone.
    assert_eq!(found["chosen"], 1);
}

#[tokio::test]
async fn candidates_are_not_compared_on_prompts_that_have_examples() {
    let world = checked(improving()).await;
    world.change(|config| config.learn.validation_share = Some(0.5));
    let lines: String = (0..6)
        .map(|i| {
            json!({ "prompt": format!("ask practice {i}"), "answer": "good" }).to_string() + "\n"
        })
        .collect();
    learn(&world, &lines).await.unwrap();
    for lesson in ["examples", "answers"] {
        world.train().await;
        let metrics = world.last_run().await.metrics;
        let compared = &metrics["selection"]["prompts"];
        assert_eq!((&metrics["lesson"], compared), (&lesson.into(), &10.into()));
    }
}

/// Of what an earlier night has trained on a later run on examples asks what was kept aside.
#[tokio::test]
async fn examples_are_not_compared_on_prompts_that_an_earlier_run_has_learned_from() {
    let world = checked(improving()).await;
    let learned = async |share: f64| {
        world.change(|config| config.learn.validation_share = Some(share));
        world.train().await;
        world.last_run().await.metrics
    };
    for i in 0..16 {
        world.remember(&format!("ask practice {i}")).await;
    }
    let answers = learned(0.0).await;
    assert_eq!((&answers["lesson"], &answers["tally"]["prompts"]), (&"answers".into(), &20.into()));
    learn(&world, &examples(24)).await.unwrap();
    let metrics = learned(0.0).await;
    assert_eq!(
        (&metrics["lesson"], &metrics["selection"]),
        (&"examples".into(), &serde_json::Value::Null)
    );
}

#[tokio::test]
async fn a_run_whose_every_candidate_is_worse_ends_before_its_gate() {
    let worse = judge()
        .on_generation(Generation(1), "ask practice", &[("bad", 1.0)])
        .on_generation(Generation(1), "ask held out", &[("best", 1.0)])
        .on("ask practice", &[("good", 1.0)])
        .on("ask", &[("bad", 1.0)]);
    let world = checked(worse).await;
    let ended = world.train().await;
    let Ended::Rejected { reason, verdict, .. } = ended else { panic!("{ended:?}") };
    assert!(reason.contains("right of 16: 16 as served, at most 0 trained"), "{reason}");
    assert!(verdict.is_null() && world.active() == Generation::BASE);
    assert!(
        crate::learn::guards::is_round(&world.last_run().await),
        "a round without gain, which may pause"
    );
}

#[tokio::test]
async fn a_second_training_that_breaks_leaves_the_first_to_the_gate() {
    let world = checked(standing()).await;
    // It has a folder of its own.
    let breaks = "case \"$PWD\" in */good-alone) exit 70;; esac; exec \"$0\" \"$@\"";
    world.change(|config| {
        let trainer = config.trainer.command.clone().unwrap();
        config.trainer.command =
            Some(["sh", "-c", breaks].map(str::to_owned).into_iter().chain(trainer).collect());
    });
    let ended = world.train().await;
    // In the gate it is no better.
    let Ended::Rejected { verdict, .. } = ended else { panic!("{ended:?}") };
    assert!(verdict.is_object());
    let found = world.last_run().await.metrics["selection"].clone();
    assert_eq!((found["candidates"].as_array().unwrap().len(), &found["chosen"]), (1, &0.into()));
}

#[tokio::test]
async fn every_prompt_gets_its_first_drafts_first_and_easy_ones_are_explored_at_a_higher_temperature()
 {
    for (answer, temperature) in [("good", 1.2_f32), ("bad", 0.8)] {
        let script = judge().on("ask", &[(answer, 1.0)]).step_delay(Duration::from_millis(2));
        let world = World::new(script, "good.sh", &[]).await;
        world.change_agent(|agent| {
            agent.practice.temperature = None;
            agent.reflection.explore = (6, 0);
            agent.reflection.stop_early = StopEarly { enough: 2, give_up: 0 };
        });
        for i in 0..5 {
            world.remember_answers(&format!("ask {i}"), Vec::new()).await;
        }
        let (learner, task) = world.learner();
        let mut stages = learner.stage();
        let have_begun =
            |stage: &Stage| matches!(stage, Stage::Exploring { begun: 5, done: 0, total: 5, .. });
        let shown =
            tokio::time::timeout(LONG, async { stages.wait_for(have_begun).await.map(drop) });
        let (explored, shown) = tokio::join!(learner.explore(all(9)), shown);
        assert!(matches!(explored.unwrap(), Ended::Explored { .. }));
        assert!(shown.is_ok(), "all have begun before any is done");
        learner.shutdown().await;
        task.await.unwrap();
        let exchanges = world.parts.store.exchanges(None, 9).await.unwrap();
        let first: Vec<_> = exchanges.iter().flat_map(|it| it.candidates.iter().take(4)).collect();
        let rest: Vec<_> = exchanges.iter().flat_map(|it| it.candidates.iter().skip(4)).collect();
        assert_eq!((first.len(), rest.len()), (20, 10));
        let last_of_first = first.iter().map(|it| it.id).max().unwrap();
        assert!(rest.iter().all(|it| last_of_first < it.id), "a few drafts of every prompt first");
        let sampled = |of: &[&store::Candidate], wanted: f32| {
            of.iter().all(|it| it.sampling.temperature.to_bits() == wanted.to_bits())
        };
        assert!(sampled(&first, 0.8) && sampled(&rest, temperature), "{answer}");
    }
}
