//! Poisoned judges, runs that collapse, rounds without gain, canaries and drops in live use: nothing
//! of it is promoted or stays, and each says why.

use std::time::Duration;

use super::*;
use crate::learn::task::Task;
use store::WatchState;

/// The base answers `before` to what is asked, generation 1 `after`.
fn answering(judge: Script, before: &str, after: &str) -> Script {
    let after = [(after, 1.0)];
    judge.on_generation(Generation(1), "ask", &after).on("ask", &[(before, 1.0)])
}

/// The verdict of one run, whose held-out prompts have the right answer `good` for a verifier that
/// only measures.
async fn verdict(script: Script) -> (World, Ended) {
    let world = World::new(script, "good.sh", &[]).await;
    let line = |i| {
        let verifier = serde_json::json!({ "kind": "exact", "expected": "good" });
        serde_json::json!({ "id": i, "prompt": format!("ask held out {i}"), "verifier": verifier })
    };
    let lines: Vec<String> = (0..HELD_OUT).map(|i| line(i.to_string()).to_string()).collect();
    write(&world.root().join("held_out.jsonl"), &lines.join("\n"));
    world.remember_some().await;
    let ended = world.train().await;
    (world, ended)
}

async fn rejected(script: Script, why: &str) -> World {
    let (world, ended) = verdict(script).await;
    let Ended::Rejected { reason, .. } = ended else { panic!("{ended:?}") };
    assert!(reason.contains(why), "{reason}");
    assert_eq!((world.active(), world.stored_active().await), (Generation::BASE, None));
    assert_eq!(world.generations(), [0]);
    world
}

#[tokio::test]
async fn an_inverted_judge_is_contradicted_by_the_verifiers_and_alarms() {
    let inverted = Script::new("?")
        .on("judge right of bad", &[("-", 0.1), ("0", 0.1), ("+", 0.8)])
        .on("judge right of good", &[("-", 0.8), ("0", 0.1), ("+", 0.1)])
        .on("probe", &[("x", 1.0)]);
    let world = rejected(answering(inverted, "good", "bad"), "gate.truth_margin").await;
    let alarms = world.parts.store.events("alarm", 5).await.unwrap();
    assert_eq!(alarms.len(), 1);
    let alarm = alarms[0].detail["reason"].as_str().unwrap();
    assert!(alarm.contains("that the verifiers do not see"), "{alarm}");
    let run = world.last_run().await;
    assert_eq!(run.metrics["gate"]["gap_alarm"], true);
    assert!(run.metrics["gate"]["lower_bound"].as_f64().unwrap() > 0.0, "the judge was pleased");
}

#[tokio::test]
async fn a_judge_that_always_says_yes_shows_no_gain() {
    let yes = || Script::new("?").on("judge", &[("+", 1.0)]).on("probe", &[("x", 1.0)]);
    rejected(answering(yes(), "good", "bad"), "gate.margin").await;
    rejected(answering(yes(), "bad", "good"), "gate.margin").await;
}

/// Tosses one coin for each answer to each held-out prompt: heads, and it passes.
fn coins(seed: u64) -> Script {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut script = Script::new("?");
    for prompt in 0..HELD_OUT {
        for answer in ["bad", "poor"] {
            let label = if rng.bool() { "+" } else { "-" };
            let judgement = format!("held out {prompt} judge right of {answer}");
            script = script.on(&judgement, &[(label, 1.0)]);
        }
    }
    script.on("probe", &[("x", 1.0)])
}

#[tokio::test]
async fn a_judge_that_tosses_coins_shows_no_gain() {
    for seed in 1..=4 {
        // Both answers are wrong, so that the verifiers have nothing to say and the coins decide.
        let world = rejected(answering(coins(seed), "bad", "poor"), "gate.margin").await;
        let gate = world.last_run().await.metrics["gate"].clone();
        let number = |key: &str| gate[key].as_f64().unwrap_or_else(|| panic!("{key} of {gate}"));
        let (prompts, wins, losses) = (number("prompts"), number("wins"), number("losses"));
        // Two coins differ every second time, to either side: each within four standard deviations.
        let n = wins + losses;
        assert!(0.0 < wins && 0.0 < losses && 20.0 <= prompts, "seed {seed}: {gate}");
        assert!((n - prompts / 2.0).abs() <= 2.0 * prompts.sqrt(), "seed {seed}: {gate}");
        assert!((wins - losses).abs() <= 4.0 * n.sqrt(), "seed {seed}: {gate}");
        assert!((number("gain") - (wins - losses) / prompts).abs() < 1e-3, "seed {seed}: {gate}");
        assert!(number("lower_bound") <= 0.0, "seed {seed}: {gate}");
    }
}

#[tokio::test]
async fn a_run_that_collapses_into_repetition_is_refused_though_the_judge_likes_it() {
    // The judge reads "good" at the beginning of it.
    let world = rejected(answering(judge(), "bad", "goodgoodgoodgood"), "gate.length_ratio").await;
    let reason = world.last_run().await.reason.unwrap();
    assert!(reason.contains("of the answers are cut off at max_tokens"), "{reason}");
}

#[tokio::test]
async fn what_gets_worse_outside_the_task_is_not_promoted() {
    let forgets = improving().on_generation(Generation(1), "else", &[("bad", 1.0)]);
    let world = World::new(forgets.on("else", &[("good", 1.0)]), "good.sh", &[]).await;
    let path = world.root().join("general.jsonl");
    let line = |i| format!("{{\"id\":\"{i}\",\"prompt\":\"something else {i}\"}}");
    write(&path, &(0..HELD_OUT).map(line).collect::<Vec<_>>().join("\n"));
    world.change_agent(|agent| agent.general = Some(path));
    world.remember_some().await;
    let ended = world.train().await;
    let Ended::Rejected { run, reason, .. } = ended else { panic!("{ended:?}") };
    assert!(reason.contains("gate.max_general_loss"), "{reason}");
    let stored = world.parts.store.evaluations(run).await.unwrap();
    assert!(!stored.is_empty() && stored.iter().all(|it| !it.general), "{stored:?}");
    // What the base answers is kept, and read again by the next gate.
    let folder = world.parts.state.general();
    let kept =
        || std::fs::read_dir(&folder).unwrap().map(|it| it.unwrap().path()).collect::<Vec<_>>();
    let files = kept();
    assert_eq!(files.len(), 1);
    write(&files[0], "[]");
    let ended = world.train().await;
    assert!(matches!(ended, Ended::Promoted { .. }), "nothing to compare with: {ended:?}");
    assert_eq!(kept(), files);
}

#[tokio::test]
async fn held_out_prompts_that_are_too_long_for_the_judge_to_choose_aspects_are_left_out() {
    let script = judge().on("needs", &[("+", 1.0)]);
    let world = World::new(answering(script, "bad", "good"), "good.sh", &[]).await;
    // With an answer each of them fits, but half of them not with what the judge is asked.
    let line = |i: usize| {
        let prompt = format!("ask held out {i}{}", " long".repeat(i % 2 * 600));
        serde_json::json!({ "id": i.to_string(), "prompt": prompt }).to_string()
    };
    let lines: Vec<String> = (0..HELD_OUT).map(line).collect();
    write(&world.root().join("held_out.jsonl"), &lines.join("\n"));
    world.change_agent(|agent| {
        let turn = |text: &str| vec![user(text)];
        let templates = BTreeMap::from([
            ("assess".to_owned(), turn("judge {{ aspect.name }} of {{ response }}")),
            ("critique".to_owned(), turn("critique {{ response }}")),
            ("refine".to_owned(), turn("refine {{ response }} {{ critique }}")),
            ("choose".to_owned(), turn("{{ question }} {{ question }} needs {{ aspect.name }}")),
        ]);
        let labels = ["-", "0", "+"].map(str::to_owned);
        agent.prompts = Arc::new(PromptSet::new(labels, templates).unwrap());
        agent.aspect_choice = AspectChoice::Judge(1);
    });
    world.remember_some().await;
    let ended = world.train().await;
    let Ended::Promoted { run, .. } = ended else { panic!("{ended:?}") };
    let asked = world.parts.store.evaluations(run).await.unwrap();
    assert!(asked.iter().all(|it| it.prompt_id.parse::<usize>().unwrap() % 2 == 0), "{asked:?}");
}

#[tokio::test]
async fn a_general_prompt_never_enters_training() {
    let world = World::new(improving(), "good.sh", &[]).await;
    let path = world.root().join("general.jsonl");
    write(&path, "{\"id\":\"0\",\"prompt\":\"ask 0\"}");
    world.change_agent(|agent| agent.general = Some(path));
    world.remember("ask 0").await;
    let ended = world.train().await;
    let Ended::Rejected { reason, .. } = ended else { panic!("{ended:?}") };
    assert!(reason.contains("all 1 stored prompts are held out"), "{reason}");
}

#[tokio::test]
async fn two_rounds_without_gain_pause_what_is_scheduled_until_the_owner_says_so() {
    let world = World::new(standing(), "good.sh", &[]).await;
    world.remember_some().await;
    assert!(matches!(world.train().await, Ended::Rejected { .. }));
    let (learner, task) = world.learner();
    learner.train().await.unwrap();
    let reason = learner.guards().paused.expect("the second round brought no gain either");
    assert!(reason.contains("run 1 was rejected"), "{reason}");
    learner.shutdown().await;
    task.await.unwrap();

    // It is read from the store: a new start knows it.
    let world = world.restarted(standing()).await;
    let (mut task, shown) = Task::new(world.parts.clone(), Utc::now());
    task.look(false).await;
    assert!(shown.guards.borrow().paused.is_some());
    let (learner, _task) = world.learner();
    learner.resume().await.unwrap();
    assert_eq!(learner.guards().paused, None);
    // One more is not yet two in a row.
    learner.train().await.unwrap();
    assert_eq!(learner.guards().paused, None);
}

#[tokio::test]
async fn replayed_pairs_are_counted_and_bounded() {
    let world = World::new(standing(), "good.sh", &[]).await;
    world.change(|config| config.learn.pairs.replay = 0.5);
    world.remember_some().await;
    world.train().await;
    assert_eq!(
        world.last_run().await.metrics["replayed"],
        serde_json::json!({"pairs": 4, "old": 0, "stale": 0})
    );
    world.remember("ask more").await;
    world.train().await;
    assert_eq!(
        world.last_run().await.metrics["replayed"],
        serde_json::json!({"pairs": 2, "old": 1, "stale": 0})
    );
}

/// A chat that this generation answered, as background reflection judged it.
async fn chatted(world: &World, generation: Generation, passes: bool) {
    let exchange = NewExchange {
        agent: "tester".into(),
        source: Source::Chat,
        messages: vec![user("ask live")],
        prompt_tokens: rendered("ask live"),
        reference: None,
        verifier: None,
        aspect_choice: None,
    };
    let candidate = NewCandidate { generation, ..answer("ask live", " it", passes) };
    world.parts.store.record_exchange(exchange, vec![candidate], Some(0)).await.unwrap();
}

async fn chats(world: &World, generation: Generation, n: usize, passes: bool) {
    for _ in 0..n {
        chatted(world, generation, passes).await;
    }
}

/// What the learning task does at its start and then every few seconds.
async fn look(world: &World) -> Guards {
    let (mut task, shown) = Task::new(world.parts.clone(), Utc::now());
    task.look(false).await;
    task.look(true).await;
    shown.guards.borrow().clone()
}

async fn states(world: &World) -> Vec<WatchState> {
    let watches = world.parts.store.watches(10).await.unwrap();
    watches.into_iter().map(|watch| watch.state).collect()
}

#[tokio::test]
async fn a_generation_that_does_worse_in_live_use_is_taken_back() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    chats(&world, Generation::BASE, 60, true).await;
    assert!(matches!(world.train().await, Ended::Promoted { .. }));
    chats(&world, Generation(1), 5, false).await;
    let (watch, seen) = look(&world).await.watch.expect("five chats are not enough");
    assert_eq!((watch.state, seen.judged.pairs), (WatchState::Watching, 5));
    chats(&world, Generation(1), 50, false).await;
    assert_eq!(look(&world).await.watch, None);
    assert_eq!((world.active(), world.stored_active().await), (Generation::BASE, None));
    assert_eq!(states(&world).await, [WatchState::RolledBack]);
    let alarms = look(&world).await.alarms;
    let reason = alarms[0].detail["reason"].as_str().unwrap();
    assert!(reason.contains("taken back: the judge's score of live answers fell"), "{reason}");
    // The owner may still want it.
    let (learner, _task) = world.learner();
    learner.rollback(Generation(1)).await.unwrap();
    assert_eq!(world.active(), Generation(1));
}

#[tokio::test]
async fn a_watch_goes_on_after_a_restart_and_ends_with_what_was_watched() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    chats(&world, Generation::BASE, 60, true).await;
    assert!(matches!(world.train().await, Ended::Promoted { .. }));
    chats(&world, Generation(1), 55, false).await;
    let world = world.restarted(improving()).await;
    assert_eq!(restore(&world.parts).await, Generation(1));
    assert_eq!(states(&world).await, [WatchState::Watching]);
    // Killed between the store's word and the engine's: the start follows the store.
    let store = &world.parts.store;
    let (to, state) = (Generation::BASE, WatchState::RolledBack);
    store.settle_watch(Generation(1), state, to, "worse".into()).await.unwrap();
    let world = world.restarted(improving()).await;
    assert_eq!(restore(&world.parts).await, Generation::BASE);
    assert_eq!(look(&world).await.watch, None);
}

#[tokio::test]
async fn a_rollback_by_the_owner_ends_the_watch() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    assert!(matches!(world.train().await, Ended::Promoted { .. }));
    let (learner, _task) = world.learner();
    learner.rollback(Generation::BASE).await.unwrap();
    assert_eq!(learner.guards().watch, None);
    assert_eq!(states(&world).await, [WatchState::Ended]);
}

/// A promoted generation that half of the chats try.
async fn canary() -> World {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.change(|config| config.learn.canary.share = 0.5);
    world.remember_some().await;
    let ended = world.train().await;
    assert!(matches!(ended, Ended::Promoted { share: 0.5, .. }), "{ended:?}");
    assert_eq!((world.active(), world.stored_active().await), (Generation::BASE, None));
    world
}

#[tokio::test]
async fn a_canary_answers_its_share_and_takes_all_chats_when_it_holds_up() {
    let world = canary().await;
    let mut answered = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let request = engine::GenerateRequest {
            prompt: rendered("ask"),
            n: 1,
            sampling: Sampling { max_tokens: 1, ..Sampling::default() },
            stop: Vec::new(),
            top_logprobs: 0,
            prediction: Vec::new(),
            weights: engine::Weights::Active,
            priority: engine::Priority::Chat,
        };
        answered.insert(world.parts.engine.generate(request).await.unwrap().generation.0);
    }
    assert_eq!(answered.into_iter().collect::<Vec<_>>(), [0, 1]);

    // Nothing is trained meanwhile.
    let (learner, task) = world.learner();
    let busy = learner.train().await.unwrap_err();
    assert!(busy.to_string().contains("canary"), "{busy}");
    learner.shutdown().await;
    task.await.unwrap();

    // A new start tries it further.
    let world = world.restarted(improving()).await;
    world.change(|config| config.learn.canary.share = 0.5);
    assert_eq!(restore(&world.parts).await, Generation::BASE);
    let canary = world.parts.engine.stats().canary.unwrap();
    assert_eq!((canary.generation, canary.share), (Generation(1), 0.5));

    chats(&world, Generation::BASE, 30, true).await;
    chats(&world, Generation(1), 30, true).await;
    let (watch, _) = look(&world).await.watch.expect("it is watched further");
    assert_eq!(watch.state, WatchState::Watching);
    assert_eq!((world.active(), world.stored_active().await), (Generation(1), Some(1)));
    assert_eq!(world.parts.engine.stats().canary, None);
}

#[tokio::test]
async fn a_canary_that_does_worse_never_takes_all_chats() {
    let world = canary().await;
    chats(&world, Generation::BASE, 25, true).await;
    chats(&world, Generation(1), 25, false).await;
    assert_eq!(look(&world).await.watch, None);
    assert_eq!((world.active(), world.stored_active().await), (Generation::BASE, None));
    assert_eq!(
        (world.parts.engine.stats().canary, states(&world).await),
        (None, vec![WatchState::RolledBack])
    );
    while world.generations().contains(&1) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_owner_may_end_a_canary_either_way() {
    for (wish, other) in [(Generation(1), 0), (Generation::BASE, 1)] {
        let world = canary().await;
        let (learner, _task) = world.learner();
        learner.rollback(wish).await.unwrap();
        assert_eq!(world.active(), wish);
        assert_eq!(world.parts.engine.stats().canary, None);
        assert_eq!(states(&world).await, [WatchState::Ended]);
        while other == 1 && world.generations().contains(&other) {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_canary_whose_adapter_is_damaged_ends_at_the_next_start() {
    let world = canary().await;
    write(&world.parts.state.adapter(1), "damaged");
    let world = world.restarted(improving()).await;
    assert_eq!(restore(&world.parts).await, Generation::BASE);
    assert_eq!(
        (world.parts.engine.stats().canary, states(&world).await),
        (None, vec![WatchState::Ended])
    );
}

#[tokio::test]
async fn a_canary_ends_well_after_its_time() {
    let world = canary().await;
    world.change(|config| config.learn.canary.duration = Duration::ZERO);
    look(&world).await;
    assert_eq!(world.active(), Generation(1));
}
