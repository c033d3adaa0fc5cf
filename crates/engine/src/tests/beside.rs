//! Two engines in one process: the one with the more urgent work computes, the other waits.

use std::path::Path;
use std::time::Duration;

use super::super::llama::{Llama, OtherModels, survey};
use super::super::step_lock::StepLock;
use super::llama::config;
use super::*;
use inference::backend::Backend as _;

const NANO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../agents/nano/model.gguf");

#[tokio::test]
async fn idle_work_of_another_engine_never_takes_a_step_of_a_chat() {
    let lock = StepLock::default();
    let script = || Script::new(&"word ".repeat(40)).step_delay(Duration::from_millis(1));
    let (chats, judged) = (script(), script());
    let (chats, _one) = spawn_on(&lock, 8, || Ok(Fake::new(chats))).await.unwrap();
    let (judge, _other) = spawn_on(&lock, 8, || Ok(Fake::new(judged))).await.unwrap();

    let idle = GenerateRequest { priority: Priority::Explore, ..request(prompt(&judge, "judge")) };
    let idle = judge.generate(idle).await.unwrap();
    let mut chat = chats.generate(request(prompt(&chats, "chat"))).await.unwrap();
    // From its first word to its last, the other engine ends at most the step that it was in.
    let mut n_pieces = 0;
    let mut before = None;
    while let Some(piece) = chat.pieces.recv().await {
        before.get_or_insert_with(|| judge.stats().steps);
        n_pieces += 1;
        if matches!(piece, Piece::Finished { .. }) {
            let after = judge.stats().steps;
            assert!(after <= before.unwrap() + 1, "{before:?} to {after} in {n_pieces} pieces");
            break;
        }
    }
    assert!(100 < n_pieces, "the chat is longer than a step or two: {n_pieces}");
    // And then it goes on to its end.
    let answers = read(idle, 1).await;
    assert_eq!(answers.reasons, [Some(FinishReason::Stop)]);
}

/// Two engines under one lock: chats of four words, and a judge whose steps take 30 ms.
async fn chats_beside_a_slow_judge() -> [(Engine, EngineThread); 2] {
    let lock = StepLock::default();
    let slow = Script::new("A").step_delay(Duration::from_millis(30));
    let quick = Script::new(&"word ".repeat(4));
    let chats = spawn_on(&lock, 8, || Ok(Fake::new(quick))).await.unwrap();
    [chats, spawn_on(&lock, 8, || Ok(Fake::new(slow))).await.unwrap()]
}

fn long_judgement(judge: &Engine, priority: Priority) -> GenerateRequest {
    let prompt = prompt(judge, &"a long text to judge ".repeat(40));
    GenerateRequest { priority, ..request(prompt) }
}

/// A step of the judge takes long; the chat does not wait for it.
#[tokio::test]
async fn a_chat_breaks_off_a_step_of_another_engine() {
    let [(chats, _one), (judge, _other)] = chats_beside_a_slow_judge().await;
    let idle = judge.generate(long_judgement(&judge, Priority::Explore)).await.unwrap();
    let mut n_chats = 0;
    while judge.stats().interrupted_steps < 3 {
        n_chats += 1;
        assert!(n_chats < 500, "its steps go on to their end");
        assert_eq!(ask(&chats, "chat").await, "word ".repeat(4));
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    assert_eq!(read(idle, 1).await.texts, ["A"]);
}

/// Each engine looks at signals for itself, so none is lost while both are busy.
#[tokio::test]
async fn no_step_of_idle_work_is_done_to_its_end_before_a_chat() {
    let lock = StepLock::default();
    let word = Script::new("A").on("long", &[(&"word ".repeat(4_000), 1.0)]);
    let slow = || word.clone().step_delay(Duration::from_millis(20));
    let (one, two) = (slow(), slow());
    let (chats, _one) = spawn_on(&lock, 8, || Ok(Fake::new(one))).await.unwrap();
    let (judge, _other) = spawn_on(&lock, 8, || Ok(Fake::new(two))).await.unwrap();
    let alone = chats.stats().steps;
    ask(&chats, "chat").await;
    let n_own = chats.stats().steps - alone;
    let mut idle = Vec::new();
    for engine in [&chats, &judge] {
        let request =
            GenerateRequest { priority: Priority::Explore, ..request(prompt(engine, "long")) };
        idle.push(engine.generate(request).await.unwrap());
    }
    let steps = || chats.stats().steps + judge.stats().steps;
    let mut n_others = 0;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(7)).await;
        let before = steps();
        ask(&chats, "chat").await;
        n_others += steps() - before - n_own;
    }
    // A step may end just before the chat comes.
    assert!(n_others <= 3, "{n_others} steps of idle work went before 20 chats");
}

/// Of a step that is broken off up to all is lost, and somebody waits for it too.
#[tokio::test]
async fn no_chat_breaks_off_a_step_that_somebody_waits_for() {
    let [(chats, _one), (judge, _other)] = chats_beside_a_slow_judge().await;
    let inline = judge.generate(long_judgement(&judge, Priority::Inline)).await.unwrap();
    let inline = tokio::spawn(read(inline, 1));
    let mut n_chats = 0;
    while !inline.is_finished() {
        assert_eq!(ask(&chats, "chat").await, "word ".repeat(4));
        tokio::time::sleep(Duration::from_millis(7)).await;
        n_chats += 1;
        assert!(n_chats < 500, "it never ends");
    }
    assert!(3 < n_chats, "{n_chats} chats came meanwhile");
    assert_eq!(inline.await.unwrap().texts, ["A"]);
    assert_eq!(judge.stats().interrupted_steps, 0);
}

#[test]
fn memory_of_models_that_are_loaded_counts_for_the_next_one() {
    let config = config(Path::new(NANO).to_owned());
    let load = |others| Llama::load_beside(&config, others);
    for others in [
        OtherModels { mapped: u64::MAX, ..OtherModels::default() },
        OtherModels { copies: u64::MAX, ..OtherModels::default() },
    ] {
        let error = load(others).unwrap_err();
        assert!(error.to_string().contains("and 0 MiB are there"), "{error}");
    }
    // Copies need not be made: a model that comes later is loaded nevertheless.
    assert!(0 < load(OtherModels::default()).unwrap().host_cache_bytes());
    let others = OtherModels { later: u64::MAX, ..OtherModels::default() };
    assert_eq!(load(others).unwrap().host_cache_bytes(), 0);
}

#[test]
fn judgements_have_a_context_of_their_own_where_memory_has_room_for_it() {
    let plain = config(Path::new(NANO).to_owned());
    let judging = EngineConfig { deterministic_judge: true, ..plain.clone() };
    let load = |config: &EngineConfig, later| {
        Llama::load_beside(config, OtherModels { later, ..OtherModels::default() }).unwrap()
    };
    let mut model = load(&judging, 0);
    let judge = model.take_judge().unwrap().open().unwrap();
    assert!(judge.is_deterministic() && !model.is_deterministic());
    assert_eq!((judge.limits().sequences, judge.limits().batch_tokens), (1, 128));
    assert_eq!(judge.info().max_sequence, model.info().max_sequence);
    assert!(model.take_judge().is_none(), "there is one");
    // What has to be there comes first; the model is served nevertheless.
    assert!(load(&judging, u64::MAX).take_judge().is_none());
    assert!(load(&plain, 0).take_judge().is_none());
    let deterministic = EngineConfig { deterministic: true, ..judging.clone() };
    assert!(load(&deterministic, 0).take_judge().is_none(), "its only one judges alike");

    let memory = |config: &EngineConfig| survey(config).unwrap().memory.unwrap();
    let (with, without) = (memory(&judging), memory(&plain));
    assert_eq!((with.host.kv_cache, without.host.judge), (without.host.kv_cache, 0));
    assert!(with.host.kv_cache < with.host.judge, "its cells, and what a step of it takes");
    assert_eq!(with.judge_refusal, None);
}
