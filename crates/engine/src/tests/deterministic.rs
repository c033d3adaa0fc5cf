//! A deterministic engine says the same whatever else it does: with llama.cpp and a quantized model,
//! whose kernels round in another way for other numbers of rows and other cells.

use std::path::Path;

use super::llama::config;
use super::*;

const NANO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../agents/nano/model.gguf");
const QUESTIONS: usize = 20;
const MAX_TOKENS: u32 = 24;

async fn nano(deterministic: bool) -> (Engine, EngineThread) {
    let (engine, thread) = judging_nano(deterministic, false).await;
    assert!(engine.judge_context().is_none());
    (engine, thread)
}

async fn judging_nano(deterministic: bool, deterministic_judge: bool) -> (Engine, EngineThread) {
    let config = EngineConfig {
        context_tokens: 2048,
        max_sequences: 16,
        batch_tokens: 512,
        flash_attention: FlashAttention::Auto,
        deterministic,
        deterministic_judge,
        queue: 64,
        ..config(NANO.into())
    };
    assert!(Path::new(NANO).is_file());
    spawn(&config).await.unwrap()
}

/// What prompts begin with.
fn stem() -> String {
    "Answer briefly, and only what was asked. Numbers are written as digits. ".repeat(4)
}

/// Half of them greedy. They begin alike, for one block of tokens and a part of the next, and two are
/// the same.
fn questions(engine: &Engine) -> Vec<GenerateRequest> {
    (0..QUESTIONS)
        .map(|i| {
            let temperature = if i % 2 == 0 { 0.0 } else { 0.8 };
            let seed = u64::try_from(i).ok();
            let sampling =
                Sampling { temperature, max_tokens: MAX_TOKENS, seed, ..Sampling::default() };
            let asked = i.min(QUESTIONS - 2) * 37 % 50;
            let prompt = prompt(engine, &format!("{}What is {asked} plus {}?", stem(), asked % 7));
            assert!((129..256).contains(&prompt.len()), "{}", prompt.len());
            GenerateRequest { sampling, ..request(prompt) }
        })
        .collect()
}

async fn said(engine: &Engine, request: GenerateRequest) -> Vec<Token> {
    let answers = read(engine.generate(request).await.unwrap(), 1).await;
    assert_eq!(answers.failed, None);
    answers.tokens[0].iter().map(|piece| piece.token).collect()
}

/// The answers, with so many requests under way at once.
async fn all(engine: &Engine, questions: &[GenerateRequest], at_once: usize) -> Vec<Vec<Token>> {
    let mut found = Vec::new();
    for some in questions.chunks(at_once) {
        let ask = |request: &GenerateRequest| {
            let (engine, request) = (engine.clone(), request.clone());
            tokio::spawn(async move { said(&engine, request).await })
        };
        for answer in some.iter().map(ask).collect::<Vec<_>>() {
            found.push(answer.await.unwrap());
        }
    }
    found
}

/// A long answer of idle work, that ends when it is dropped.
async fn explore(engine: &Engine) -> Started {
    let sampling = Sampling { max_tokens: 900, seed: Some(7), ..Sampling::default() };
    let prompt = prompt(engine, "Tell me something.");
    let request =
        GenerateRequest { n: 8, sampling, priority: Priority::Explore, ..request(prompt) };
    engine.generate(request).await.unwrap()
}

/// In turn: alone, with others, beside exploration, preempted by chats, and with much in the cache.
async fn differ(deterministic: bool) -> Vec<(&'static str, usize)> {
    let (engine, _thread) = nano(deterministic).await;
    let questions = questions(&engine);
    // Each in an engine that has seen nothing else.
    let mut alone = Vec::new();
    for question in &questions {
        let (engine, _thread) = nano(deterministic).await;
        alone.push(said(&engine, question.clone()).await);
    }
    let count = |found: &[Vec<Token>]| found.iter().zip(&alone).filter(|(a, b)| a != b).count();
    let mut differ = vec![("one after the other", count(&all(&engine, &questions, 1).await))];
    for (what, at_once) in [("with 3 others", 4), ("with 7 others", 8), ("with 15 others", 16)] {
        differ.push((what, count(&all(&engine, &questions, at_once).await)));
    }
    let exploration = explore(&engine).await;
    differ.push(("beside exploration", count(&all(&engine, &questions, 2).await)));
    drop(exploration);
    let idle: Vec<_> = questions
        .iter()
        .map(|it| GenerateRequest { priority: Priority::Explore, ..it.clone() })
        .collect();
    let preempted = tokio::spawn({
        let engine = engine.clone();
        async move { all(&engine, &idle, 4).await }
    });
    let chat = |text: &str| {
        let sampling = Sampling { max_tokens: 4, ..Sampling::default() };
        GenerateRequest { sampling, ..request(prompt(&engine, text)) }
    };
    let before = engine.stats();
    let mut n_chats = 0;
    // Not for ever: what is preempted evaluates its answer again, which needs a pause.
    while n_chats < 12 && !preempted.is_finished() {
        said(&engine, chat("Hello!")).await;
        n_chats += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(3 < n_chats, "{n_chats} chats preempt it");
    differ.push(("preempted", count(&preempted.await.unwrap())));
    // With many sequences chats come in beside what they interrupt.
    let n_preempted = engine.stats().preemptions - before.preemptions;
    assert!(!deterministic || 0 < n_preempted, "{n_preempted} preemptions");
    for i in 0..60 {
        said(&engine, chat(&format!("What is {i} minus {i}? {}", "Say why. ".repeat(12)))).await;
    }
    // A deterministic engine keeps no copies.
    let full = engine.stats().host_cache_bytes as u64;
    assert!(deterministic || engine.most_copies() / 2 < full, "{full} bytes of copies");
    differ.push(("with a full host cache", count(&all(&engine, &questions, 1).await)));
    differ
}

#[tokio::test]
async fn a_deterministic_engine_says_the_same_whatever_else_it_does() {
    let differ = differ(true).await;
    assert!(differ.iter().all(|(_, n)| *n == 0), "of {QUESTIONS} answers differ: {differ:?}");
}

/// Otherwise the test above could not fail.
#[tokio::test]
async fn an_engine_that_is_not_deterministic_now_and_then_says_something_else() {
    let differ = differ(false).await;
    assert!(differ.iter().any(|(_, n)| 0 < *n), "of {QUESTIONS} answers differ: {differ:?}");
}

/// The probabilities of two tokens after each of forty prompts, so many at once.
async fn scores(engine: &Engine, at_once: usize, priority: Priority) -> Vec<Vec<f32>> {
    let prompts: Vec<_> = (0..40)
        .map(|i| prompt(engine, &format!("{}Is {i} plus 3 equal to {}?", stem(), i + i % 5)))
        .collect();
    let labels = vec![prompts[0][0], prompts[0][1]];
    let mut found = Vec::new();
    for some in prompts.chunks(at_once) {
        let weights = Weights::Generation(Generation::BASE);
        let request =
            ScoreRequest { prompts: some.to_vec(), labels: labels.clone(), weights, priority };
        let scored = engine.score(request).await.unwrap();
        found.extend(scored.into_iter().map(|it| it.probabilities));
    }
    found
}

/// Widths at which a fresh engine's probabilities are not those of each prompt alone.
async fn other_scores(deterministic: bool) -> Vec<usize> {
    let (engine, _thread) = nano(deterministic).await;
    let alone = scores(&engine, 1, Priority::Gate).await;
    let mut other = Vec::new();
    for at_once in [2, 7, 16, 40] {
        let (engine, _thread) = nano(deterministic).await;
        let exploration = explore(&engine).await;
        if scores(&engine, at_once, Priority::Gate).await != alone {
            other.push(at_once);
        }
        drop(exploration);
    }
    other
}

#[tokio::test]
async fn a_deterministic_engine_judges_the_same_alone_and_beside_others() {
    assert_eq!(other_scores(true).await, [0; 0]);
    // Otherwise this test could not fail.
    assert_ne!(other_scores(false).await, [0; 0]);
}

/// Beside them means in turn with them: both are as urgent.
#[tokio::test]
async fn a_context_for_judgements_judges_the_same_alone_and_beside_chats() {
    let urgent = Priority::Inline;
    let (engine, _thread) = judging_nano(false, true).await;
    assert!(!engine.is_deterministic() && engine.judge().is_deterministic());
    let alone = scores(engine.judge(), 1, urgent).await;
    // Where answers are written it is otherwise, or this test could not fail.
    assert_ne!(scores(&engine, 16, urgent).await, alone);
    for at_once in [1, 16, 40] {
        let (engine, _thread) = judging_nano(false, true).await;
        let chats = tokio::spawn({
            let engine = engine.clone();
            let chats: Vec<_> = questions(&engine)
                .into_iter()
                .map(|it| GenerateRequest { priority: urgent, ..it })
                .collect();
            async move {
                loop {
                    all(&engine, &chats, 15).await;
                }
            }
        });
        let before = engine.stats().generated_tokens;
        assert_eq!(scores(engine.judge(), at_once, urgent).await, alone, "{at_once} at once");
        assert!(before < engine.stats().generated_tokens, "chats go on meanwhile");
        chats.abort();
    }
    // What is asked for first is broken off by chats, and begins again.
    let idle = tokio::spawn({
        let judge = engine.judge().clone();
        async move { scores(&judge, 40, Priority::Explore).await }
    });
    // Not for ever: it needs pauses as long as a block.
    for _ in 0..30 {
        let sampling = Sampling { max_tokens: 2, ..Sampling::default() };
        said(&engine, GenerateRequest { sampling, ..request(prompt(&engine, "Hello!")) }).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(idle.await.unwrap(), alone);
    assert!(0 < engine.judge().stats().interrupted_steps, "it was never broken off");
}

#[tokio::test]
async fn both_threads_of_a_model_end_with_its_last_handle() {
    let (engine, mut thread) = judging_nano(false, true).await;
    assert!(tokio::time::timeout(Duration::from_millis(20), thread.died()).await.is_err());
    drop(engine);
    thread.died().await;
    thread.join().unwrap();
}
