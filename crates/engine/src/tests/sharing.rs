//! What requests share: the prefix of their prompts, the cache, and the time of the loop.

use super::*;

#[tokio::test]
async fn judging_evaluates_every_prefix_once() {
    let (engine, _thread) = engine(Script::new("A").on("one! 2", &[("B", 1.0)])).await;
    let question = "a long question that all the prompts begin with. ";
    let mut prompts = Vec::new();
    for answer in ["one", "two", "six"] {
        for aspect in ["1", "2", "3", "4"] {
            prompts.push(prompt(&engine, &format!("{question}{answer}! {aspect}")));
        }
    }
    let mut prefixes: Vec<&[Token]> =
        prompts.iter().flat_map(|p| (1..=p.len()).map(|n| &p[..n])).collect();
    prefixes.sort();
    prefixes.dedup();
    let n_prefixes = u64::try_from(prefixes.len()).unwrap();
    let all: usize = prompts.iter().map(Vec::len).sum();
    let labels = vec![Token(i32::from(b'A')), Token(i32::from(b'B'))];
    let request =
        ScoreRequest { prompts, labels, weights: Weights::Active, priority: Priority::Inline };
    let scores = engine.score(request.clone()).await.unwrap();
    assert_eq!(scores.len(), 12);
    for (i, score) in scores.iter().enumerate() {
        assert_eq!(score.probabilities[1] > 0.5, i == 1, "prompt {i}");
    }
    let stats = eventually(&engine, |stats| stats.running == 0 && stats.queued == 0).await;
    assert_eq!(stats.prompt_tokens, n_prefixes);
    assert_eq!(stats.prompt_tokens + stats.cached_tokens, u64::try_from(all).unwrap());
    // The critique of an answer finds what was read to judge it.
    let critique = prompt(&engine, &format!("{question}two? why"));
    let started = engine.generate(super::request(critique)).await.unwrap();
    assert_eq!(started.n_cached, 1 + question.len() + "two".len());
}

#[tokio::test]
async fn prompts_that_come_together_share_what_is_not_evaluated_yet() {
    let long = "x".repeat(1000);
    let (engine, _thread) = engine(Script::new("ok")).await;
    let ask = |end: &str| engine.generate(request(prompt(&engine, &format!("{long}{end}"))));
    let (a, b, c) = tokio::join!(ask("a"), ask("b"), ask("c"));
    for started in [a, b, c] {
        assert_eq!(read(started.unwrap(), 1).await.texts, ["ok"]);
    }
    let stats = eventually(&engine, |stats| stats.running == 0 && stats.queued == 0).await;
    assert!(stats.prompt_tokens < 1100, "{} tokens", stats.prompt_tokens);
}

#[tokio::test]
async fn drafts_that_do_not_fit_beside_each_other_follow_each_other() {
    let long = "x".repeat(100);
    let (engine, _thread) = engine(Script::new(&long).limits(limits(300, 2))).await;
    let sampling = Sampling { max_tokens: 200, ..Sampling::default() };
    let wanted = GenerateRequest { n: 5, sampling, ..request(prompt(&engine, "go")) };
    let answers = read(engine.generate(wanted).await.unwrap(), 5).await;
    assert_eq!(answers.texts, vec![long; 5]);
    assert_eq!(answers.reasons, vec![Some(FinishReason::Stop); 5]);
}

#[tokio::test]
async fn idle_work_that_was_paused_goes_on_from_its_kv() {
    let long = "x".repeat(LONG);
    let (engine, _thread) = engine(Script::new("now").on("long", &[(&long, 1.0)])).await;
    let idle = prompt(&engine, "long");
    let n_idle = u64::try_from(idle.len()).unwrap();
    let explore = GenerateRequest { priority: Priority::Explore, ..request(idle) };
    let mut explore = engine.generate(explore).await.unwrap();
    assert!(explore.pieces.recv().await.is_some());
    let chat = prompt(&engine, "chat");
    let n_chat = u64::try_from(chat.len()).unwrap();
    assert_eq!(read(engine.generate(request(chat)).await.unwrap(), 1).await.texts, ["now"]);
    let answers = read(explore, 1).await;
    assert_eq!(answers.tokens[0].len(), LONG);
    let stats = eventually(&engine, |stats| stats.running == 0 && stats.queued == 0).await;
    assert!(stats.prompt_tokens <= n_idle + n_chat, "nothing was evaluated twice");
}

#[tokio::test]
async fn a_request_that_has_to_wait_drops_nothing_from_the_cache() {
    let long = "x".repeat(LONG);
    let script = Script::new("ok").on("long", &[(&long, 1.0)]).limits(limits(LONG, 4));
    let (engine, _thread) = engine(script.step_delay(Duration::from_millis(2))).await;
    ask(&engine, "first").await;
    let with = |text, max_tokens| GenerateRequest {
        sampling: Sampling { max_tokens, ..Sampling::default() },
        ..request(prompt(&engine, text))
    };
    let text = format!("long {}", "y".repeat(300));
    let running = engine.generate(with(&text, 200)).await.unwrap();
    let cached = eventually(&engine, |stats| stats.running == 1).await.cells_used;
    let second = format!("second {}", "z".repeat(250));
    let waiting = tokio::spawn({
        let (engine, wanted) = (engine.clone(), with(&second, 200));
        async move { engine.generate(wanted).await }
    });
    let stats = eventually(&engine, |stats| stats.queued == 1).await;
    assert!(cached <= stats.cells_used, "the first chat's prefix is still there");
    drop(running);
    waiting.await.unwrap().unwrap();
    let again = engine.generate(with("first", 10)).await.unwrap();
    assert!("first".len() < again.n_cached);
}

#[tokio::test]
async fn a_copied_prefix_that_does_not_fit_is_evaluated_again() {
    let (engine, _thread) = engine(Script::new("ok").limits(limits(100, 4))).await;
    let with = |text: &str, max_tokens| GenerateRequest {
        sampling: Sampling { max_tokens, ..Sampling::default() },
        ..request(prompt(&engine, text))
    };
    let shared = "x".repeat(30);
    let first = with(&format!("{shared} first"), 10);
    assert_eq!(read(engine.generate(first).await.unwrap(), 1).await.texts, ["ok"]);
    // It needs every cell there is.
    let all = with(&"y".repeat(95), 100);
    assert_eq!(read(engine.generate(all).await.unwrap(), 1).await.texts, ["ok"]);
    assert!(0 < eventually(&engine, |stats| stats.running == 0).await.host_cache_bytes);
    let all = with(&format!("{shared} {}", "z".repeat(64)), 100);
    assert_eq!(read(engine.generate(all).await.unwrap(), 1).await.texts, ["ok"]);
}

/// Greedy, without an end before `max_tokens`.
fn long_request(engine: &Engine, text: &str, max_tokens: u32) -> GenerateRequest {
    let sampling = Sampling { temperature: 0.0, max_tokens, ..Sampling::default() };
    GenerateRequest { sampling, ..request(prompt(engine, text)) }
}

#[tokio::test]
async fn agents_that_ask_for_the_whole_context_all_end() {
    const CELLS: usize = 8192;
    let limits = Limits { cells: CELLS, sequences: 16, batch_tokens: 64, outputs: 64 };
    // Together they write more than twice the context, and each may write all of it.
    let script = Script::new(&"word ".repeat(450)).limits(limits);
    let (engine, _thread) = engine(script).await;
    let mut order = tokio::task::JoinSet::new();
    for agent in 0..8 {
        let started = engine.generate(long_request(&engine, &format!("agent {agent}"), 8192));
        let started = started.await.unwrap();
        order.spawn(async move { (agent, read(started, 1).await) });
    }
    let mut n_ended = 0;
    while let Some(one) = order.join_next().await {
        let (agent, answers) = one.unwrap();
        assert_eq!(answers.reasons, [Some(FinishReason::Stop)], "agent {agent}");
        assert_eq!(answers.texts[0].len(), 5 * 450);
        n_ended += 1;
    }
    assert_eq!(n_ended, 8);
    assert!(0 < engine.stats().preemptions, "the context holds less than half of it");
}

#[tokio::test]
async fn as_many_chats_run_at_once_as_their_tokens_fit() {
    let limits = Limits { cells: 8192, sequences: 16, batch_tokens: 512, outputs: 512 };
    let script = Script::new(&"x".repeat(300)).limits(limits).step_delay(Duration::from_millis(1));
    let (engine, _thread) = engine_with_queue(script, 16).await;
    let mut chats = tokio::task::JoinSet::new();
    for chat in 0..16 {
        let text = format!("{chat:03}{}", "y".repeat(250));
        let wanted = long_request(&engine, &text, 256);
        let engine = engine.clone();
        chats.spawn(async move { read(engine.generate(wanted).await.unwrap(), 1).await });
    }
    eventually(&engine, |stats| stats.running == 16).await;
    while let Some(answers) = chats.join_next().await {
        assert_eq!(answers.unwrap().reasons, [Some(FinishReason::Length)]);
    }
}
