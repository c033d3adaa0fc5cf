//! The engine thread with the scripted model: what callers may rely on. The fake refuses gaps,
//! mixed generations and too many cells, so every test here checks those too.

mod beside;
mod deterministic;
mod generations;
mod limits;
mod llama;
mod prediction;
mod reward;
mod sharing;
mod vocabulary;

use proptest::prelude::*;

use super::*;
use inference::backend::Limits;
use testkit::fake::{self, Fake, Script};

const LONG: usize = 600;

async fn engine(script: Script) -> (Engine, EngineThread) {
    engine_with_queue(script, 8).await
}

async fn engine_with_queue(script: Script, queue: usize) -> (Engine, EngineThread) {
    spawn_with(queue, move || Ok(Fake::new(script))).await.unwrap()
}

/// A rendered chat of one turn.
fn prompt(engine: &Engine, user: &str) -> Vec<Token> {
    let part = |text: &str, control| TextPart { text: text.to_owned(), control };
    let parts = [part("<|user|>", true), part(user, false), part("<|end|><|assistant|>", true)];
    engine.vocabulary().tokenize(&parts)
}

fn request(prompt: Vec<Token>) -> GenerateRequest {
    GenerateRequest {
        prompt,
        n: 1,
        sampling: Sampling { max_tokens: 1000, ..Sampling::default() },
        stop: Vec::new(),
        top_logprobs: 0,
        prediction: Vec::new(),
        weights: Weights::Active,
        priority: Priority::Chat,
    }
}

/// Everything that a generation gave.
#[derive(Debug, Default, PartialEq)]
struct Answers {
    texts: Vec<String>,
    tokens: Vec<Vec<TokenPiece>>,
    reasons: Vec<Option<FinishReason>>,
    failed: Option<EngineError>,
}

async fn read(mut started: Started, n: usize) -> Answers {
    let mut answers = Answers {
        texts: vec![String::new(); n],
        tokens: vec![Vec::new(); n],
        reasons: vec![None; n],
        failed: None,
    };
    while let Some(piece) = started.pieces.recv().await {
        match piece {
            Piece::Token(piece) => {
                let index = usize::try_from(piece.index).unwrap();
                answers.texts[index].push_str(&piece.text);
                answers.tokens[index].push(piece);
            }
            Piece::Finished { index, text, reason } => {
                let index = usize::try_from(index).unwrap();
                answers.texts[index].push_str(&text);
                assert!(answers.reasons[index].replace(reason).is_none(), "ended twice");
            }
            Piece::Failed(error) => answers.failed = Some(error),
        }
    }
    answers
}

async fn ask(engine: &Engine, user: &str) -> String {
    let started = engine.generate(request(prompt(engine, user))).await.unwrap();
    read(started, 1).await.texts.remove(0)
}

/// Waits until the loop says so. Each try is a command, so the loop turns between two tries.
async fn eventually(engine: &Engine, holds: impl Fn(&EngineStats) -> bool) -> EngineStats {
    for _ in 0..100_000 {
        let stats = engine.stats();
        if holds(&stats) {
            return stats;
        }
        engine.activate(stats.active).await.unwrap();
    }
    panic!("the engine never got there: {:?}", engine.stats());
}

fn limits(cells: usize, sequences: usize) -> Limits {
    Limits { cells, sequences, batch_tokens: 32, outputs: 32 }
}

#[tokio::test]
async fn an_answer_arrives_token_by_token_and_ends_with_the_end_token() {
    let (engine, _thread) = engine(Script::new("hi")).await;
    let request = GenerateRequest { top_logprobs: 2, ..request(prompt(&engine, "hello")) };
    let started = engine.generate(request).await.unwrap();
    assert_eq!(started.generation, Generation::BASE);
    let answers = read(started, 1).await;
    assert_eq!(answers.texts, ["hi"]);
    assert_eq!(answers.reasons, [Some(FinishReason::Stop)]);
    let last = answers.tokens[0].last().unwrap();
    assert_eq!((last.token, last.text.as_str()), (fake::END, ""));
    assert_eq!(answers.tokens[0][0].top[0].0, Token(i32::from(b'h')));
    assert!(answers.tokens[0][0].logprob.abs() < 1e-4);
}

#[tokio::test]
async fn drafts_differ_by_their_seed_share_the_prompt_and_can_be_repeated() {
    let script = Script::new("").on("dice", &[("one", 1.0), ("two", 1.0), ("six", 1.0)]);
    let (engine, _thread) = engine(script).await;
    let prompt = prompt(&engine, "dice");
    let n_prompt = u64::try_from(prompt.len()).unwrap();
    let draw = || GenerateRequest {
        n: 8,
        sampling: Sampling { seed: Some(5), max_tokens: 100, ..Sampling::default() },
        ..request(prompt.clone())
    };
    let first = read(engine.generate(draw()).await.unwrap(), 8).await;
    // The prompt is evaluated once, and all drafts begin from its one row of logits.
    let stats = eventually(&engine, |stats| stats.running == 0).await;
    assert_eq!((stats.prompt_tokens, stats.cached_tokens), (n_prompt, 7 * n_prompt));
    assert!(first.texts.iter().any(|text| *text != first.texts[0]), "{:?}", first.texts);
    let again = read(engine.generate(draw()).await.unwrap(), 8).await;
    assert_eq!(first, again);
    let single = GenerateRequest {
        sampling: Sampling { seed: Some(5 + 3), ..draw().sampling },
        n: 1,
        ..draw()
    };
    assert_eq!(read(engine.generate(single).await.unwrap(), 1).await.texts[0], first.texts[3]);
}

#[tokio::test]
async fn a_score_is_the_distribution_over_the_labels_and_agrees_with_logprobs() {
    let replies = [("A", 1.0), ("B", 2.0), ("C", 5.0), ("no", 2.0)];
    let (engine, _thread) = engine(Script::new("A").on("judge", &replies)).await;
    let prompts = vec![prompt(&engine, "judge this"), prompt(&engine, "nothing")];
    let labels: Vec<Token> = b"ABC".iter().map(|&b| Token(i32::from(b))).collect();
    let request = ScoreRequest {
        prompts: prompts.clone(),
        labels: labels.clone(),
        weights: Weights::Active,
        priority: Priority::Background,
    };
    let scores = engine.score(request).await.unwrap();
    assert!((scores[0].probabilities[2] - 5.0 / 8.0).abs() < 1e-4);
    assert!((scores[0].mass - 0.8).abs() < 1e-4);
    assert!(scores[1].probabilities[0] > 0.999);
    let sequences = labels.iter().map(|&label| {
        let tokens: Vec<Token> = prompts[0].iter().copied().chain([label]).collect();
        (tokens, prompts[0].len())
    });
    let request = LogprobRequest {
        sequences: sequences.collect(),
        weights: Weights::Active,
        priority: Priority::Background,
    };
    let logprobs = engine.logprobs(request).await.unwrap();
    assert_eq!((scores[0].probabilities.len(), logprobs.len()), (3, 3));
    for (label, logprob) in scores[0].probabilities.iter().zip(&logprobs) {
        assert!((label * scores[0].mass - logprob[0].exp()).abs() < 1e-4);
    }
}

#[tokio::test]
async fn more_prompts_than_sequences_are_scored_in_waves() {
    let script = Script::new("A").on("7", &[("B", 1.0)]).limits(limits(100, 3));
    let (engine, _thread) = engine(script).await;
    let prompts = (0..10).map(|i| prompt(&engine, &format!("number {i}"))).collect();
    let labels = vec![Token(i32::from(b'A')), Token(i32::from(b'B'))];
    let request =
        ScoreRequest { prompts, labels, weights: Weights::Active, priority: Priority::Gate };
    let scores = engine.score(request).await.unwrap();
    assert_eq!(scores.len(), 10);
    for (i, score) in scores.iter().enumerate() {
        assert_eq!(score.probabilities[1] > 0.5, i == 7, "prompt {i}");
    }
}

#[tokio::test]
async fn logprobs_begin_where_they_are_asked_for() {
    let (engine, _thread) = engine(Script::new("abc").limits(limits(40, 4))).await;
    let prompt = prompt(&engine, "x");
    let answer = b"abc".iter().map(|&b| Token(i32::from(b))).chain([fake::END]);
    let tokens: Vec<Token> = prompt.iter().copied().chain(answer).collect();
    let sequences = vec![(tokens.clone(), 1), (tokens, prompt.len())];
    let request = LogprobRequest { sequences, weights: Weights::Active, priority: Priority::Gate };
    let logprobs = engine.logprobs(request).await.unwrap();
    assert_eq!(logprobs[0].len(), prompt.len() - 1 + 4);
    assert_eq!(logprobs[1].len(), 4);
    assert!(logprobs[1].iter().all(|logprob| logprob.abs() < 1e-4), "{logprobs:?}");
    assert_eq!(logprobs[0].last(), logprobs[1].last());
}

#[tokio::test]
async fn the_next_turn_of_a_chat_finds_its_prefix() {
    let (engine, _thread) = engine(Script::new("sure")).await;
    let first = prompt(&engine, "one");
    let answers = read(engine.generate(request(first.clone())).await.unwrap(), 1).await;
    let answer: Vec<Token> = answers.tokens[0].iter().map(|piece| piece.token).collect();
    let second: Vec<Token> = [first, answer, prompt(&engine, "two")].concat();
    let started = engine.generate(request(second.clone())).await.unwrap();
    // All but the end token, which was sampled and never evaluated.
    assert_eq!(started.n_cached, prompt(&engine, "one").len() + "sure".len());
    drop(started);
    // The same words in another generation share nothing.
    let file = tempfile::NamedTempFile::new().unwrap();
    engine.load_adapter(Generation(1), file.path().to_owned()).await.unwrap();
    let other = GenerateRequest { weights: Weights::Generation(Generation(1)), ..request(second) };
    assert_eq!(engine.generate(other).await.unwrap().n_cached, 0);
}

#[tokio::test]
async fn a_caller_that_leaves_frees_its_cells() {
    let script = Script::new(&"x".repeat(LONG)).step_delay(Duration::from_millis(1));
    let (engine, _thread) = engine(script).await;
    let mut wanted = GenerateRequest { n: 4, ..request(prompt(&engine, "go on")) };
    let mut started = engine.generate(wanted.clone()).await.unwrap();
    assert!(matches!(started.pieces.recv().await, Some(Piece::Token(_))));
    eventually(&engine, |stats| stats.running == 4).await;
    drop(started);
    eventually(&engine, |stats| stats.running == 0 && stats.cells_used == 0).await;
    // A caller that leaves while it waits leaves nothing behind either.
    wanted.n = 32;
    wanted.sampling.max_tokens = 100;
    let _all = engine.generate(wanted.clone()).await.unwrap();
    let waiting = tokio::spawn({
        let engine = engine.clone();
        async move { engine.generate(wanted).await }
    });
    eventually(&engine, |stats| stats.queued == 1).await;
    waiting.abort();
    eventually(&engine, |stats| stats.queued == 0).await;
}

#[tokio::test]
async fn a_slow_reader_delays_nobody_and_loses_nothing() {
    let long = "x".repeat(LONG);
    let (engine, _thread) = engine(Script::new("short").on("long", &[(&long, 1.0)])).await;
    let slow = engine.generate(request(prompt(&engine, "long"))).await.unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&engine, "other").await, "short");
    }
    let answers = read(slow, 1).await;
    assert_eq!(answers.texts, [long]);
    assert_eq!(answers.tokens[0].len(), LONG + 1);
}

#[tokio::test]
async fn a_reader_that_stops_keeps_no_sequence_and_does_not_count_as_urgent() {
    let long = "x".repeat(LONG);
    let script = Script::new("short").on("long", &[(&long, 1.0)]).limits(limits(1000, 1));
    let (engine, _thread) = engine(script).await;
    let slow = engine.generate(request(prompt(&engine, "long"))).await.unwrap();
    let stats = eventually(&engine, |stats| stats.running == 0 && 0 < stats.quiet_ms).await;
    assert_eq!(stats.queued, 1);
    assert_eq!(ask(&engine, "other").await, "short");
    assert_eq!(read(slow, 1).await.texts, [long]);
}

#[tokio::test]
async fn a_chat_takes_the_cells_of_idle_work_which_then_goes_on_unharmed() {
    let long = "x".repeat(LONG);
    let script = Script::new("now").on("long", &[(&long, 1.0)]).limits(limits(LONG + 40, 4));
    let (engine, _thread) = engine(script).await;
    let explore =
        GenerateRequest { priority: Priority::Explore, ..request(prompt(&engine, "long")) };
    let explore = engine.generate(explore).await.unwrap();
    assert_eq!(ask(&engine, "chat").await, "now");
    assert_eq!(read(explore, 1).await.texts, [long]);
}

#[tokio::test]
async fn a_step_of_idle_work_ends_when_a_chat_comes_and_is_done_again_unharmed() {
    let long = "x".repeat(LONG);
    let script = Script::new("now").on("long", &[(&long, 1.0)]);
    let (engine, _thread) = engine(script.step_delay(Duration::from_millis(2))).await;
    let idle = prompt(&engine, &format!("{} long", "y".repeat(LONG)));
    let explore = GenerateRequest { priority: Priority::Explore, ..request(idle) };
    let explore = engine.generate(explore).await.unwrap();
    let mut n_chats = 0;
    while engine.stats().interrupted_steps < 3 {
        n_chats += 1;
        assert!(n_chats < 200, "its steps go on to their end");
        assert_eq!(ask(&engine, "chat").await, "now");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(read(explore, 1).await.texts, [long]);
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_before_it() {
    let (engine, _thread) = engine(Script::new("one\n\ntwo")).await;
    let stop = vec!["\n\n".to_owned(), "zzz".to_owned()];
    let request = GenerateRequest { stop, ..request(prompt(&engine, "x")) };
    let answers = read(engine.generate(request).await.unwrap(), 1).await;
    assert_eq!((answers.texts[0].as_str(), answers.reasons[0]), ("one", Some(FinishReason::Stop)));
    assert_eq!(answers.tokens[0].len(), 3, "the tokens of a stop string are not reported");
}

#[tokio::test]
async fn tokens_are_those_of_the_text_also_where_a_stop_string_was_half_seen() {
    let (engine, _thread) = engine(Script::new("a##b####c")).await;
    let stop = vec!["###".to_owned()];
    let request = GenerateRequest { stop, ..request(prompt(&engine, "x")) };
    let answers = read(engine.generate(request).await.unwrap(), 1).await;
    let bytes: Vec<u8> = answers.tokens[0].iter().flat_map(|piece| piece.bytes.clone()).collect();
    assert_eq!((answers.texts[0].as_str(), bytes.as_slice()), ("a##b", b"a##b".as_slice()));
}

#[tokio::test]
async fn an_answer_is_cut_to_what_fits() {
    let (engine, _thread) = engine(Script::new(&"x".repeat(LONG)).limits(limits(100, 4))).await;
    let prompt = prompt(&engine, "x");
    let n_prompt = prompt.len();
    let answers = read(engine.generate(request(prompt)).await.unwrap(), 1).await;
    assert_eq!(answers.reasons, [Some(FinishReason::Length)]);
    assert_eq!(answers.tokens[0].len(), 100 - n_prompt);
}

#[tokio::test]
async fn what_can_never_work_is_refused_at_admission() {
    let (engine, _thread) = engine(Script::new("x").limits(limits(50, 4))).await;
    let good = request(prompt(&engine, "x"));
    let sampling = good.sampling;
    let with = |sampling| GenerateRequest { sampling, ..good.clone() };
    let invalid = [
        GenerateRequest { prompt: Vec::new(), ..good.clone() },
        GenerateRequest { prompt: vec![Token(-1)], ..good.clone() },
        GenerateRequest { prompt: vec![Token(261)], ..good.clone() },
        GenerateRequest { n: 0, ..good.clone() },
        GenerateRequest { n: 65, ..good.clone() },
        GenerateRequest { prediction: vec![Token(261)], ..good.clone() },
        GenerateRequest { stop: vec![String::new()], ..good.clone() },
        GenerateRequest { stop: vec!["x".to_owned(); 17], ..good.clone() },
        GenerateRequest { top_logprobs: 21, ..good.clone() },
        with(Sampling { temperature: f32::NAN, ..sampling }),
        with(Sampling { temperature: -0.1, ..sampling }),
        with(Sampling { temperature: 10.1, ..sampling }),
        with(Sampling { top_p: 0.0, ..sampling }),
        with(Sampling { top_p: f32::NAN, ..sampling }),
        with(Sampling { min_p: 1.1, ..sampling }),
        with(Sampling { max_tokens: 0, ..sampling }),
    ];
    for request in invalid {
        let shown = format!("{request:?}");
        let error = engine.generate(request).await.unwrap_err();
        assert!(matches!(error, EngineError::Invalid(_)), "{error} for {shown}");
    }
    let long = GenerateRequest { prompt: vec![Token(65); 50], ..good.clone() };
    let error = engine.generate(long).await.unwrap_err();
    assert_eq!(error, EngineError::TooLong { needed: 51, limit: 50 });
    let score = |labels: &[i32]| ScoreRequest {
        prompts: vec![good.prompt.clone()],
        labels: labels.iter().copied().map(Token).collect(),
        weights: Weights::Active,
        priority: Priority::Chat,
    };
    for labels in [&[65][..], &[65, 65], &[65, 300]] {
        let error = engine.score(score(labels)).await.unwrap_err();
        assert!(matches!(error, EngineError::Invalid(_)), "{labels:?}");
    }
    for from in [0, good.prompt.len()] {
        let sequences = vec![(good.prompt.clone(), from)];
        let request =
            LogprobRequest { sequences, weights: Weights::Active, priority: Priority::Chat };
        let error = engine.logprobs(request).await.unwrap_err();
        assert!(matches!(error, EngineError::Invalid(_)), "{from}");
    }
}

#[tokio::test]
async fn a_full_queue_is_said_at_once() {
    let script = Script::new(&"x".repeat(LONG)).limits(limits(1000, 1));
    let script = script.step_delay(Duration::from_millis(5));
    let (engine, _thread) = engine_with_queue(script, 1).await;
    let wanted = || request(prompt(&engine, "x"));
    let running = engine.generate(wanted()).await.unwrap();
    let waiting = tokio::spawn({
        let (engine, wanted) = (engine.clone(), wanted());
        async move { engine.generate(wanted).await }
    });
    eventually(&engine, |stats| stats.queued == 1).await;
    let error = engine.generate(wanted()).await.unwrap_err();
    assert!(matches!(error, EngineError::Overloaded { .. }));
    drop(running);
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn logits_that_are_not_numbers_fail_their_request_alone() {
    let (engine, _thread) = engine(Script::new("fine").poison("bad")).await;
    let (bad, good) = tokio::join!(
        engine.generate(request(prompt(&engine, "bad"))),
        engine.generate(request(prompt(&engine, "good"))),
    );
    let bad = read(bad.unwrap(), 1).await;
    assert!(matches!(bad.failed, Some(EngineError::Failed(_))), "{bad:?}");
    assert!(bad.tokens[0].is_empty());
    assert_eq!(read(good.unwrap(), 1).await.texts, ["fine"]);
}

#[tokio::test]
async fn a_request_keeps_its_generation_while_adapters_change() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let [one, two] = [Generation(1), Generation(2)];
    let old = "o".repeat(LONG);
    let script = Script::new("base")
        .on_generation(one, "q", &[(&old, 1.0)])
        .on_generation(two, "q", &[("new", 1.0)])
        .refuse(Generation(3));
    let (engine, _thread) = engine(script).await;
    for generation in [one, two] {
        engine.load_adapter(generation, file.path().to_owned()).await.unwrap();
    }
    engine.activate(one).await.unwrap();
    // Nobody reads it yet, so it is still running when the generations change.
    let running = engine.generate(request(prompt(&engine, "q"))).await.unwrap();
    assert_eq!(running.generation, one);
    engine.activate(two).await.unwrap();
    let retiring = tokio::spawn({
        let engine = engine.clone();
        async move { engine.retire(one).await }
    });
    assert_eq!(ask(&engine, "q").await, "new");
    assert!(!retiring.is_finished());
    let late =
        GenerateRequest { weights: Weights::Generation(one), ..request(prompt(&engine, "q")) };
    assert_eq!(engine.generate(late).await.unwrap_err(), EngineError::NotLoaded(one));
    assert_eq!(read(running, 1).await.texts, [old]);
    assert_eq!(retiring.await.unwrap(), Ok(()));
    eventually(&engine, |stats| stats.generations == [(Generation(0), 0), (two, 0)]).await;
    // What is refused changes nothing.
    let refused = engine.load_adapter(Generation(3), file.path().to_owned()).await;
    assert!(matches!(refused, Err(EngineError::Load { .. })));
    let missing = engine.load_adapter(Generation(4), PathBuf::from("missing.gguf")).await;
    assert!(matches!(missing, Err(EngineError::Load { .. })));
    assert!(matches!(engine.retire(two).await, Err(EngineError::Invalid(_))));
    assert_eq!(engine.activate(one).await, Err(EngineError::NotLoaded(one)));
    assert_eq!(ask(&engine, "q").await, "new");
}

#[tokio::test]
async fn quiet_counts_from_the_last_chat_and_an_idle_loop_is_alive() {
    let script = Script::new(&"x".repeat(LONG)).on("hi", &[("hi", 1.0)]);
    let (engine, _thread) = engine(script.step_delay(Duration::from_millis(1))).await;
    let chat = engine.generate(request(prompt(&engine, "x"))).await.unwrap();
    eventually(&engine, |stats| stats.running == 1 && stats.quiet_ms == 0).await;
    drop(chat);
    let before = eventually(&engine, |stats| stats.quiet_ms > 0).await.quiet_ms;
    let explore = GenerateRequest { priority: Priority::Explore, ..request(prompt(&engine, "hi")) };
    read(engine.generate(explore).await.unwrap(), 1).await;
    let stats = eventually(&engine, |stats| stats.running == 0 && stats.last_beat_ms == 0).await;
    assert!(stats.quiet_ms >= before, "idle work does not end the quiet");
}

#[tokio::test]
async fn the_thread_ends_with_its_last_handle_and_tells_who_still_reads() {
    let (engine, thread) = engine(Script::new(&"x".repeat(LONG))).await;
    let started = engine.generate(request(prompt(&engine, "x"))).await.unwrap();
    drop(engine);
    assert_eq!(read(started, 1).await.failed, Some(EngineError::Stopped));
    thread.join().unwrap();
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_is_a_start_up_error() {
    let error = EngineError::Failed("no".to_owned());
    let given = error.clone();
    let spawned = spawn_with(1, move || Err::<Fake, _>(given)).await;
    assert_eq!(spawned.unwrap_err(), error);
}

#[tokio::test]
async fn a_dead_thread_is_noticed() {
    let spawned = spawn_with(1, || -> Result<Fake, _> { panic!("the model is gone") }).await;
    assert_eq!(spawned.unwrap_err(), EngineError::Stopped);
    let (engine, mut thread) = engine(Script::new("x")).await;
    drop(engine);
    thread.died().await;
}

/// What a caller may do, for the test below.
#[derive(Clone, Debug)]
struct Act {
    prompt: usize,
    n: u32,
    max_tokens: u32,
    priority: Priority,
    generation: u32,
    leaves: bool,
}

fn any_act() -> impl Strategy<Value = Act> {
    let priority = prop_oneof![Just(Priority::Chat), Just(Priority::Gate), Just(Priority::Explore)];
    (1_usize..30, 1_u32..4, 1_u32..40, priority, 0_u32..2, prop::bool::weighted(0.2)).prop_map(
        |(prompt, n, max_tokens, priority, generation, leaves)| Act {
            prompt,
            n,
            max_tokens,
            priority,
            generation,
            leaves,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_mix_of_requests_ends_well_in_a_small_cache(
        acts in prop::collection::vec(any_act(), 1..25),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let script = Script::new("a reply of some length").limits(limits(120, 5));
            let (engine, _thread) = engine_with_queue(script, 64).await;
            let file = tempfile::NamedTempFile::new().unwrap();
            engine.load_adapter(Generation(1), file.path().to_owned()).await.unwrap();
            let mut tasks = tokio::task::JoinSet::new();
            for act in acts {
                let wanted = GenerateRequest {
                    n: act.n,
                    sampling: Sampling { max_tokens: act.max_tokens, ..Sampling::default() },
                    weights: Weights::Generation(Generation(act.generation)),
                    priority: act.priority,
                    ..request(prompt(&engine, &"q".repeat(act.prompt)))
                };
                let engine = engine.clone();
                tasks.spawn(async move {
                    let started = engine.generate(wanted).await.unwrap();
                    if act.leaves {
                        return;
                    }
                    let n = usize::try_from(act.n).unwrap();
                    let answers = read(started, n).await;
                    assert_eq!(answers.failed, None);
                    for (text, tokens) in answers.texts.iter().zip(&answers.tokens) {
                        assert!("a reply of some length".starts_with(text.as_str()));
                        assert!(!tokens.is_empty());
                    }
                    assert!(answers.reasons.iter().all(Option::is_some));
                });
            }
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
            eventually(&engine, |stats| stats.running == 0 && stats.queued == 0).await;
        });
    }
}
