//! A judge that cannot be trusted stops a run before its trainer starts; answers that another version
//! has judged are judged again; calibrated bars count.

use std::collections::BTreeMap;

use super::*;
use crate::learn::*;
use config::{Agent, Pass};
use prompt::{Message, PromptSet, Role};
use store::{Feedback, RunState};
use testkit::fake::Script;

/// Labelled answers: `says` is what the scripted judge will say to each.
fn probes(world: &World, n: usize, label_of_good: bool) {
    let line = |i: usize| {
        let good = i.is_multiple_of(2);
        let answer = if good { "good" } else { "bad" };
        let label = if good { label_of_good } else { !label_of_good };
        format!(
            "{{\"id\":\"{i}\",\"prompt\":\"ask probe {i}\",\"answer\":\"{answer}\",\"good\":{label}}}"
        )
    };
    let lines: Vec<String> = (0..n).map(line).collect();
    write(&world.root().join("probes.jsonl"), &lines.join("\n"));
    let path = world.root().join("probes.jsonl");
    world.change_agent(|agent| agent.probes = Some(path));
}

#[tokio::test]
async fn a_judge_that_is_worse_than_the_floor_stops_the_run_before_the_trainer() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    probes(&world, 60, false);
    let ended = world.train().await;
    let Ended::Rejected { run, reason, .. } = ended else { panic!("{ended:?}") };
    assert!(reason.contains("cannot be trusted on whole answer"), "{reason}");
    assert!(reason.contains("trust.min_auc"), "{reason}");
    let stored = world.parts.store.run(run).await.unwrap();
    assert_eq!(stored.state, RunState::Rejected);
    assert_eq!(stored.metrics["judge"]["tester"]["standing"], "blocked");
    assert_eq!(stored.metrics.get("adapter_sha256"), None, "the trainer has not run");
    assert_eq!(world.active(), Generation::BASE);

    // The same labels the right way round: another measurement, and the pairs are still to be learned.
    probes(&world, 60, true);
    let (learner, _task) = world.learner();
    let measured = learner.judge(JudgeTask::Calibrate, None, 1, Vec::new()).await.unwrap();
    let Ended::Calibrated { reports } = measured else { panic!("{measured:?}") };
    assert_eq!((reports[0].sources.file, reports[0].rows.len()), (60, 2));
    assert!(1.0 - 1e-9 < reports[0].rows[1].auc.unwrap().value);
    // The labels have changed and the answers have not: no score has moved.
    let drift = reports[0].rows[1].drift.unwrap();
    assert_eq!((drift.n, drift.auc), (60, Some(1.0)));
    assert!(drift.largest < 1e-9);
    learner.shutdown().await;
    assert!(matches!(world.train().await, Ended::Promoted { .. }));
}

#[tokio::test]
async fn without_labels_a_run_goes_on_and_says_so_unless_they_are_required() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    world.change(|config| config.trust.required = true);
    let ended = world.train().await;
    let Ended::Rejected { reason, .. } = ended else { panic!("{ended:?}") };
    assert!(reason.contains("reflectd judge calibrate"), "{reason}");
    world.change(|config| config.trust.required = false);
    let ended = world.train().await;
    let Ended::Promoted { run, .. } = ended else { panic!("{ended:?}") };
    let stored = world.parts.store.run(run).await.unwrap();
    assert_eq!(stored.metrics["judge"]["tester"]["standing"], "unmeasured");
}

#[tokio::test]
async fn prompts_of_probes_are_never_trained_on() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember("ask probe 0").await;
    probes(&world, 60, true);
    let ended = world.train().await;
    let Ended::Rejected { reason, .. } = ended else { panic!("{ended:?}") };
    assert!(reason.contains("all 1 stored prompts are held out"), "{reason}");
}

#[tokio::test]
async fn answers_of_another_version_are_judged_again_and_the_old_words_stay() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    let store = &world.parts.store;
    let before = store.exchanges(None, 10).await.unwrap();
    let old = before[0].candidates[0].assessments[0].clone();
    let (learner, _task) = world.learner();
    let rescore = async |limit| {
        let ended = learner.judge(JudgeTask::Rescore, Some("tester".into()), limit, Vec::new());
        let Ended::Rescored { exchanges, candidates, .. } = ended.await.unwrap() else {
            panic!("not rescored")
        };
        (exchanges, candidates)
    };
    // In two pieces: what is done is not done again.
    assert_eq!(rescore(1).await, (1, 2));
    assert_eq!(rescore(100).await, (3, 6));
    assert_eq!(rescore(100).await, (0, 0));
    let after = store.exchange(before[0].id).await.unwrap();
    let new = &after.candidates[0].assessments;
    assert_eq!(new.len(), 1);
    assert_ne!(new[0].standard(), old.standard());
    let history = store.assessment_history(after.candidates[0].id).await.unwrap();
    assert_eq!(history, [old, new[0].clone()]);
    learner.shutdown().await;
}

#[tokio::test]
async fn a_calibrated_bar_counts_for_what_is_judged_and_for_what_was() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.change_agent(|agent| agent.aspects[0].pass = Pass::Calibrated);
    let agent = |world: &World| -> Arc<Agent> { world.config.borrow().agents["tester"].clone() };
    let judge = async |answer: &str| {
        let priority = engine::Priority::Gate;
        let agent = agent(&world);
        let said = world.parts.reflector.assess(&agent, "ask", answer, None, None, priority);
        said.await.unwrap().remove(0)
    };
    assert!(judge("good").await.passes, "0.8 meets the bar of an aspect that is not calibrated");
    // Only the best answers are right: the bar must be above what is said of good ones.
    let line = |i: usize| {
        let answer = ["best", "good"][i % 2];
        format!(
            "{{\"id\":\"{i}\",\"prompt\":\"ask {i}\",\"answer\":\"{answer}\",\"good\":{}}}",
            i.is_multiple_of(2)
        )
    };
    let lines: Vec<String> = (0..40).map(line).collect();
    write(&world.root().join("probes.jsonl"), &lines.join("\n"));
    let path = world.root().join("probes.jsonl");
    world.change_agent(|agent| agent.probes = Some(path));
    let (learner, _task) = world.learner();
    learner.judge(JudgeTask::Calibrate, None, 1, Vec::new()).await.unwrap();
    assert!(!judge("good").await.passes && judge("best").await.passes);
    learner.shutdown().await;
}

#[tokio::test]
async fn the_owners_ratings_are_labels() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    let store = &world.parts.store;
    for exchange in store.exchanges(None, 10).await.unwrap() {
        for (candidate, rating) in exchange.candidates.iter().zip([1, -1]) {
            let feedback = Feedback {
                exchange: exchange.id,
                candidate: Some(candidate.id),
                rating: Some(rating),
                aspect: Some("right".into()),
                edit: None,
            };
            store.add_feedback(feedback).await.unwrap();
        }
    }
    let (learner, _task) = world.learner();
    let ended = learner.judge(JudgeTask::Calibrate, None, 1, Vec::new()).await.unwrap();
    let Ended::Calibrated { reports } = ended else { panic!("{ended:?}") };
    assert_eq!(reports[0].sources.feedback, 8);
    let row = &reports[0].rows[1];
    assert_eq!((row.name.as_str(), row.n_good, row.n_bad), ("right", 4, 4));
    learner.shutdown().await;
}

#[tokio::test]
async fn a_judge_that_likes_the_last_label_is_seen_when_the_levels_are_turned_round() {
    let mut script = Script::new("?");
    for (levels, answers) in [("no yes", ["good", "bad"]), ("yes no", ["good", "bad"])] {
        for answer in answers {
            let prompt = format!("judge {levels} of {answer}");
            script = script.on(&prompt, &[("-", 0.1), ("0", 0.1), ("+", 0.8)]);
        }
    }
    let world = World::new(script, "good.sh", &[]).await;
    probes(&world, 40, true);
    world.change_agent(|agent| {
        let turn = |content: &str| vec![Message { role: Role::User, content: content.into() }];
        let assess =
            "judge {{ aspect.levels[0] }} {{ aspect.levels[2] }} of {{ response }} {{ best }}";
        let templates = BTreeMap::from([
            ("assess".to_owned(), turn(assess)),
            ("critique".to_owned(), turn("critique {{ response }}")),
            ("refine".to_owned(), turn("refine {{ response }} {{ critique }}")),
        ]);
        let labels = ["-", "0", "+"].map(str::to_owned);
        agent.prompts = Arc::new(PromptSet::new(labels, templates).unwrap());
    });
    let (learner, _task) = world.learner();
    let ended = learner.judge(JudgeTask::Calibrate, None, 1, Vec::new()).await.unwrap();
    let Ended::Calibrated { reports } = ended else { panic!("{ended:?}") };
    let bias = reports[0].rows[1].position_bias.unwrap();
    // 0.8 - 0.1 becomes 0.1 - 0.8, and what passed does not.
    assert!((bias.change.value + 1.4).abs() < 1e-3 && 1.0 - 1e-9 < bias.flips.value, "{bias:?}");
    learner.shutdown().await;
}
