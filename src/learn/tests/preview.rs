//! What the next run would learn, asked before it.

use super::lessons::with_examples;
use super::*;

#[tokio::test]
async fn the_preview_is_what_the_run_learns_and_says_what_is_left_out() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    world.remember("ask held out 3").await;
    world.remember("Ask held out: 4!").await;
    let alone = |text: &str, passes| answer("ask", text, passes);
    world.remember_answers("ask bad", vec![alone(" poor", false)]).await;
    world.remember_answers("ask good", vec![alone(" fine", true)]).await;
    let long = alone(&" poor".repeat(20), false);
    world.remember_answers("ask long", vec![alone(" fine", true), long]).await;
    world.change(|config| config.learn.objective = Objective::Dpo { beta: 0.1, nll: 1.0 });

    let (learner, task) = world.learner();
    let before = world.parts.store.counts().await.unwrap();
    let preview = learner.preview(3).await.unwrap();
    assert_eq!(world.parts.store.counts().await.unwrap(), before);
    assert_eq!((preview.lesson, preview.total, preview.new), (job::Lesson::Answers, 4, 4));
    let shown = &preview.data[0];
    assert_eq!((preview.data.len(), shown.prompt.as_str()), (3, "ask 0"));
    assert_eq!(
        (shown.chosen.as_deref(), shown.rejected.as_deref()),
        (Some(" fine"), Some(" poor"))
    );
    assert!(shown.is_new);
    let left_out: Vec<_> = preview.left_out.iter().map(|(cause, n)| (cause.as_str(), *n)).collect();
    let expected = [
        ("held_out", 1),
        ("length_filter", 1),
        ("near_copies", 1),
        ("no_positive", 1),
        ("nothing_to_reject", 1),
    ];
    assert_eq!(left_out, expected);

    let all = learner.preview(99).await.unwrap().data;
    let Ended::Promoted { run, .. } = learner.train().await.unwrap() else { panic!() };
    let pairs = world.parts.store.pairs(run).await.unwrap();
    let learned: Vec<_> = pairs.iter().map(|pair| pair.exchange).collect();
    assert_eq!(all.iter().map(|shown| shown.exchange).collect::<Vec<_>>(), learned);
    let again = learner.preview(99).await.unwrap();
    assert_eq!((again.total, again.new), (4, 0));
    assert!(again.data.iter().all(|shown| !shown.is_new));

    // The owner changes his mind.
    let exchange = world.parts.store.exchange(pairs[0].exchange).await.unwrap();
    let word = |candidate, rating| Feedback {
        exchange: exchange.id,
        candidate: Some(candidate),
        rating: Some(rating),
        aspect: None,
        edit: None,
    };
    world.parts.store.add_feedback(word(pairs[0].chosen.unwrap(), -1)).await.unwrap();
    assert_eq!(learner.preview(99).await.unwrap().left_out["stale"], 1);
    learner.shutdown().await;
    task.await.unwrap();
}

#[tokio::test]
async fn examples_that_wait_are_in_the_preview_and_in_the_sentence_before_anything_ran() {
    let world = with_examples(improving(), 12).await;
    let ready = readiness::look(&world.parts).await.unwrap();
    assert_eq!((ready.examples, ready.new_pairs), (12, 0));
    let sentence = ready.to_string();
    assert_eq!(sentence, "Ready to learn: 12 examples wait for their first run");
    let (learner, task) = world.learner();
    let preview = learner.preview(1).await.unwrap();
    assert_eq!((preview.lesson, preview.total, preview.new), (job::Lesson::Examples, 12, 12));
    let shown = &preview.data[0];
    assert_eq!((shown.chosen.as_deref(), &shown.rejected), (Some("good"), &None));
    assert!(matches!(learner.train().await.unwrap(), Ended::Promoted { .. }));
    let learned = readiness::look(&world.parts).await.unwrap();
    assert_eq!(learned.examples, 0, "{learned}");
    learner.shutdown().await;
    task.await.unwrap();
}

#[tokio::test]
async fn the_sentence_follows_ratings_files_and_the_configuration() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_answers("ask 0", vec![answer("ask 0", " fine", true)]).await;
    let (learner, task) = world.learner();
    let found = async || learner.readiness().await.unwrap();
    assert_eq!((found().await.new_pairs, found().await.yielded.passing), (0, 1));
    let exchange = world.parts.store.exchanges(None, 1).await.unwrap().remove(0);
    let thumb_down = Feedback {
        exchange: exchange.id,
        candidate: Some(exchange.candidates[0].id),
        rating: Some(-1),
        aspect: None,
        edit: None,
    };
    world.parts.store.add_feedback(thumb_down).await.unwrap();
    assert_eq!(found().await.yielded.passing, 0);
    assert_eq!(found().await.unjudgeable, None);
    world.change(|config| config.learn.gate.prompts = 10);
    let sentence = found().await.to_string();
    assert!(
        sentence.ends_with("; of 60 that there are `learn.gate.prompts` asks 10"),
        "{sentence}"
    );
    write(&world.root().join("held_out.jsonl"), "{\"id\":\"1\",\"prompt\":\"ask\"}");
    let unjudgeable = found().await.unjudgeable.unwrap();
    assert!(unjudgeable.starts_with("1 held-out prompts (which could show"), "{unjudgeable}");
    world.change_agent(|agent| agent.held_out = None);
    let unjudgeable = found().await.unjudgeable.unwrap();
    assert!(unjudgeable.contains("agent tester has no held-out prompts"), "{unjudgeable}");
    learner.shutdown().await;
    task.await.unwrap();
}

#[tokio::test]
async fn a_file_of_examples_with_faults_is_told_of_before_the_night() {
    let world = with_examples(improving(), 1).await;
    write(&world.root().join("examples.jsonl"), "{\"prompt\":\"ask\"}\n");
    let sentence = readiness::look(&world.parts).await.unwrap().to_string();
    assert!(sentence.starts_with("Not learning yet: "), "{sentence}");
    assert!(sentence.contains("examples.jsonl:1: "), "{sentence}");
}
