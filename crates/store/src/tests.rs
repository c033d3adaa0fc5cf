//! Everything comes back as it went in; what fails leaves nothing; what is committed survives.

use std::path::Path;

use rusqlite::Connection;
use serde_json::json;

use super::thread::open;
use super::*;
use inference::{FinishReason, Sampling, Token};
use prompt::{Message, Role, Verifier};

mod trust;

/// A database in a folder of its own.
struct Scratch {
    folder: tempfile::TempDir,
    store: Store,
    thread: StoreThread,
}

impl Scratch {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, thread) = spawn(path(folder.path())).await.unwrap();
        Self { folder, store, thread }
    }
    /// Ends the thread in good order and opens the file again.
    async fn reopen(self) -> Self {
        let Self { folder, store, thread } = self;
        drop(store);
        thread.join().unwrap();
        let (store, thread) = spawn(path(folder.path())).await.unwrap();
        Self { folder, store, thread }
    }
    /// What `kill -9` now would leave behind.
    fn killed(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        for name in ["reflectd.db", "reflectd.db-wal"] {
            std::fs::copy(self.folder.path().join(name), copy.path().join(name)).unwrap();
        }
        copy
    }
}

pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join("reflectd.db")
}

pub(super) fn prompt(agent: &str) -> NewExchange {
    NewExchange {
        agent: agent.into(),
        source: Source::Chat,
        messages: vec![Message { role: Role::User, content: "2 + 2?\n\"'".into() }],
        prompt_tokens: vec![Token(1), Token(-7), Token(i32::MAX)],
        reference: Some("4".into()),
        verifier: Some(Verifier::Numeric { expected: 4.0, tolerance: 0.0, marker: None }),
        aspect_choice: None,
    }
}

pub(super) fn answer(parent: Option<Parent>, assessments: Vec<Assessment>) -> NewCandidate {
    NewCandidate {
        author: Author::Model,
        parent,
        generation: Generation(0),
        text: "4".into(),
        tokens: vec![Token(52), Token(2)],
        logprobs: vec![-0.25, f32::NEG_INFINITY],
        sampling: Sampling { seed: Some(u64::MAX), temperature: 0.7, ..Sampling::default() },
        finish: FinishReason::Stop,
        critique: parent.map(|_| "Add again.".into()),
        critic: parent.map(|_| Critic::Verifier),
        shots: Vec::new(),
        assessments,
    }
}

pub(super) fn assessment(aspect: &str) -> Assessment {
    Assessment {
        aspect: aspect.into(),
        rubric_version: "0123456789ab".into(),
        judge: "generation 0 of ba5eba5eba5e".into(),
        levels: [0.1, 0.2, 0.7],
        mass: 0.93,
        weight: 1.5,
        passes: true,
        reason: Some("3 sentences, 1 wanted".into()),
    }
}

/// An exchange with two assessed drafts and a refinement of the first.
async fn record(store: &Store, agent: &str) -> (ExchangeId, Vec<CandidateId>) {
    let candidates = vec![
        answer(None, vec![assessment("kind"), assessment("true")]),
        answer(None, vec![assessment("kind")]),
        answer(Some(Parent::Index(0)), vec![]),
    ];
    store.record_exchange(prompt(agent), candidates, Some(1)).await.unwrap()
}

fn is_missing<T>(result: &Result<T>, wanted: &'static str) -> bool {
    matches!(result, Err(StoreError::NotFound { what, .. }) if *what == wanted)
}

#[tokio::test]
async fn a_choice_of_aspects_is_kept_with_its_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _thread) = spawn(path(folder.path())).await.unwrap();
    let choice = |judge: &str| ChosenAspects {
        judge: judge.into(),
        chosen: vec!["format".into()],
        relevance: vec![Relevance { aspect: "format".into(), value: -0.5, mass: 0.75 }],
    };
    let chosen = NewExchange { aspect_choice: Some(choice("first")), ..prompt("one") };
    let (with, _) = store.record_exchange(chosen, vec![], None).await.unwrap();
    let (without, _) = store.record_exchange(prompt("one"), vec![], None).await.unwrap();
    store.set_aspect_choice(without, choice("second")).await.unwrap();
    let of = async |id| store.exchange(id).await.unwrap().aspect_choice;
    assert_eq!(of(with).await, Some(choice("first")));
    assert_eq!(of(without).await, Some(choice("second")));
    let missing = store.set_aspect_choice(ExchangeId(99), choice("third")).await;
    assert!(matches!(missing, Err(StoreError::NotFound { what: "exchange", id: 99 })));
}

#[tokio::test]
async fn an_exchange_comes_back_as_it_went_in_also_after_a_restart() {
    let scratch = Scratch::new().await;
    let (id, ids) = record(&scratch.store, "one").await;
    let scratch = scratch.reopen().await;
    let found = scratch.store.exchange(id).await.unwrap();
    let asked = prompt("one");
    assert_eq!((&found.agent, found.source), (&asked.agent, asked.source));
    assert_eq!(found.messages, asked.messages);
    assert_eq!(found.prompt_tokens, asked.prompt_tokens);
    assert_eq!((&found.reference, &found.verifier), (&asked.reference, &asked.verifier));
    assert_eq!(found.served, Some(ids[1]));
    assert!(found.created_ms > 1_700_000_000_000);
    let refinement = answer(Some(Parent::Index(0)), vec![]);
    let expected = Candidate {
        id: ids[2],
        author: Author::Model,
        parent: Some(ids[0]),
        generation: refinement.generation,
        text: refinement.text,
        tokens: refinement.tokens,
        logprobs: refinement.logprobs,
        sampling: refinement.sampling,
        finish: refinement.finish,
        critique: refinement.critique,
        critic: refinement.critic,
        shots: Vec::new(),
        expected: None,
        assessments: vec![],
    };
    assert_eq!(found.candidates[2], expected);
    assert_eq!(found.candidates[0].assessments, [assessment("kind"), assessment("true")]);
}

#[tokio::test]
async fn candidates_and_assessments_can_follow_later() {
    let Scratch { store, .. } = &Scratch::new().await;
    let (id, ids) = record(store, "one").await;
    let revised = answer(Some(Parent::Stored(ids[1])), vec![]);
    let more = store.add_candidates(id, vec![revised]).await.unwrap();
    let judged = Assessment { levels: [0.0, 0.0, 1.0], ..assessment("kind") };
    store.add_assessments(more[0], vec![assessment("kind")]).await.unwrap();
    store.add_assessments(more[0], vec![judged.clone()]).await.unwrap();
    let found = store.exchange(id).await.unwrap();
    assert_eq!(found.candidates.len(), 4);
    assert_eq!(found.candidates[3].parent, Some(ids[1]));
    let counts = &found.candidates[3].assessments;
    assert_eq!(counts, std::slice::from_ref(&judged), "the later judgement counts");
    let history = store.assessment_history(more[0]).await.unwrap();
    assert_eq!(history, [assessment("kind"), judged], "and the earlier one stays");
}

#[tokio::test]
async fn a_transaction_that_fails_leaves_nothing() {
    let Scratch { store, .. } = &Scratch::new().await;
    let forward = vec![answer(None, vec![]), answer(Some(Parent::Index(1)), vec![])];
    let result = store.record_exchange(prompt("one"), forward, None).await;
    assert!(is_missing(&result, "candidate"), "a parent comes before its refinement");
    let result = store.record_exchange(prompt("one"), vec![answer(None, vec![])], Some(1)).await;
    assert!(is_missing(&result, "candidate"), "the served answer is one of the list");
    let nan = Assessment { mass: f32::NAN, ..assessment("kind") };
    let result = store.record_exchange(prompt("one"), vec![answer(None, vec![nan])], None).await;
    assert!(matches!(result, Err(StoreError::Database { .. })), "NaN is no probability");
    let uneven = NewCandidate { logprobs: vec![], ..answer(None, vec![]) };
    let result = store.record_exchange(prompt("one"), vec![uneven], None).await;
    assert!(matches!(result, Err(StoreError::Database { .. })), "one log-prob for each token");
    assert_eq!(store.counts().await.unwrap(), Counts::default());
}

#[tokio::test]
async fn rows_that_are_not_there_are_named() {
    let Scratch { store, .. } = &Scratch::new().await;
    let (id, ids) = record(store, "one").await;
    let (other, _) = record(store, "one").await;
    let nobody = CandidateId(99);
    assert!(is_missing(&store.exchange(ExchangeId(99)).await, "exchange"));
    assert!(is_missing(&store.feedback(ExchangeId(99)).await, "exchange"));
    assert!(is_missing(&store.add_candidates(ExchangeId(99), vec![]).await, "exchange"));
    assert!(is_missing(&store.add_assessments(nobody, vec![]).await, "candidate"));
    let foreign = answer(Some(Parent::Stored(ids[0])), vec![]);
    assert!(is_missing(&store.add_candidates(other, vec![foreign]).await, "candidate"));
    assert!(is_missing(&store.run(RunId(99)).await, "run"));
    assert!(is_missing(&store.pairs(RunId(99)).await, "run"));
    assert!(is_missing(&store.evaluations(RunId(99)).await, "run"));
    assert!(is_missing(&store.set_active(Generation(9)).await, "generation"));
    assert_eq!(
        store.exchange(ExchangeId(99)).await.unwrap_err().to_string(),
        "no exchange 99",
        "the message names what was asked for"
    );
    assert_eq!(store.exchange(id).await.unwrap().id, id);
}

#[tokio::test]
async fn exchanges_are_listed_newest_first_in_pages() {
    let Scratch { store, .. } = &Scratch::new().await;
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(record(store, "one").await.0);
    }
    let ids = |page: Vec<Exchange>| page.into_iter().map(|it| it.id).collect::<Vec<_>>();
    assert_eq!(ids(store.exchanges(None, 2).await.unwrap()), [all[2], all[1]]);
    assert_eq!(ids(store.exchanges(Some(all[1]), 2).await.unwrap()), [all[0]]);
    assert!(store.exchanges(None, 0).await.unwrap().is_empty());
}

#[tokio::test]
async fn learnable_are_the_agents_exchanges_with_an_assessed_candidate_or_the_owners_word() {
    let Scratch { store, .. } = &Scratch::new().await;
    let (first, _) = record(store, "one").await;
    let (other, _) = record(store, "other").await;
    let unjudged = vec![answer(None, vec![]), answer(None, vec![])];
    let (unjudged, ids) = store.record_exchange(prompt("one"), unjudged, None).await.unwrap();
    let (spoken, _) = store.record_exchange(prompt("one"), vec![], None).await.unwrap();
    let learnable = async |agents: &[&str], after, limit| {
        let agents = agents.iter().map(ToString::to_string).collect();
        let page = store.learnable(agents, after, limit).await.unwrap();
        page.into_iter().map(|it| it.id).collect::<Vec<_>>()
    };
    assert_eq!(learnable(&["one"], None, 9).await, [first]);
    assert_eq!(learnable(&["one", "other"], None, 9).await, [first, other]);
    assert_eq!(learnable(&["one", "other"], None, 1).await, [first]);
    assert_eq!(learnable(&["one", "other"], Some(first), 9).await, [other]);
    assert_eq!(learnable(&[], None, 9).await, []);
    store.add_assessments(ids[1], vec![assessment("kind")]).await.unwrap();
    assert_eq!(learnable(&["one"], None, 9).await, [first, unjudged]);
    // A second one does not list it twice.
    store.add_assessments(ids[0], vec![assessment("kind")]).await.unwrap();
    assert_eq!(learnable(&["one"], None, 9).await, [first, unjudged]);
    // What no longer counts does not list it at all.
    let nothing = ids.iter().map(|id| (*id, Vec::new())).collect();
    store.replace_assessments(nothing).await.unwrap();
    assert_eq!(learnable(&["one"], None, 9).await, [first]);
    store.add_assessments(ids[0], vec![assessment("kind")]).await.unwrap();
    let word =
        Feedback { exchange: spoken, candidate: None, rating: Some(-1), aspect: None, edit: None };
    store.add_feedback(word).await.unwrap();
    assert_eq!(learnable(&["one"], None, 9).await, [first, unjudged, spoken]);
}

#[tokio::test]
async fn explorable_are_exchanges_with_too_few_drafts_or_refinements() {
    let Scratch { store, .. } = &Scratch::new().await;
    let (full, ids) = record(store, "one").await;
    store.add_assessments(ids[2], vec![assessment("kind")]).await.unwrap();
    let (empty, _) = store.record_exchange(prompt("one"), vec![], None).await.unwrap();
    let filled = async |n, m, generation| {
        store.explorable("one".into(), (n, m), Generation(generation), false).await.unwrap()
    };
    let explorable = async |n, m| -> Vec<_> {
        filled(n, m, 0).await.into_iter().map(|it| it.exchange).collect()
    };
    assert_eq!(explorable(2, 1).await, [empty]);
    assert_eq!(explorable(2, 2).await, [empty, full], "a refinement is missing");
    assert_eq!(explorable(3, 0).await, [empty, full], "a draft is missing");
    let (unjudged, _) =
        store.record_exchange(prompt("one"), vec![answer(None, vec![])], None).await.unwrap();
    assert_eq!(explorable(1, 0).await, [empty, unjudged], "an answer that nobody has judged");
    assert_eq!(store.explorable("two".into(), (3, 3), Generation(0), false).await.unwrap(), []);
}

#[tokio::test]
async fn how_far_a_prompt_is_filled_is_counted_without_the_owners_edits() {
    let Scratch { store, .. } = &Scratch::new().await;
    let fails = Assessment { passes: false, ..assessment("true") };
    let measured = Assessment { weight: 0.0, ..fails.clone() };
    let candidates = vec![
        answer(None, vec![assessment("kind"), fails]),
        answer(None, vec![assessment("kind"), measured]),
        answer(None, vec![]),
        NewCandidate {
            generation: Generation(3),
            ..answer(Some(Parent::Index(0)), vec![assessment("kind")])
        },
        NewCandidate { author: Author::Owner, ..answer(Some(Parent::Index(0)), vec![]) },
    ];
    let (exchange, _) = store.record_exchange(prompt("one"), candidates, None).await.unwrap();
    let expected = Filled {
        exchange,
        drafts: 3,
        refinements: 1,
        positives: 2,
        negatives: 1,
        faulty_drafts: 1,
        tries: 1,
        unjudged: 1,
    };
    assert_eq!(
        store.explorable("one".into(), (9, 9), Generation(3), false).await.unwrap(),
        [expected]
    );
    // Where each generation answers anew, what others have left unjudged is seen all the same.
    let anew = Filled {
        drafts: 0,
        refinements: 1,
        positives: 1,
        negatives: 0,
        faulty_drafts: 0,
        ..expected
    };
    assert_eq!(store.explorable("one".into(), (0, 0), Generation(3), true).await.unwrap(), [anew]);
}

#[tokio::test]
async fn what_a_judge_has_still_to_say_is_counted() {
    let Scratch { store, .. } = &Scratch::new().await;
    record(store, "one").await;
    let two = vec![answer(None, vec![]), answer(None, vec![])];
    store.record_exchange(prompt("one"), two, None).await.unwrap();
    store.record_exchange(prompt("one"), vec![], None).await.unwrap();
    let unjudged = store.unjudged("one".into()).await.unwrap();
    assert_eq!(unjudged, Unjudged { answers: 3, prompts: 2, without_choice: 2 });
    assert_eq!(store.unjudged("two".into()).await.unwrap(), Unjudged::default());
}

#[tokio::test]
async fn an_edit_is_an_answer_of_the_owner_and_stored_with_its_word_or_not_at_all() {
    let Scratch { store, .. } = &Scratch::new().await;
    let (exchange, ids) = record(store, "one").await;
    let said = |candidate| Feedback {
        exchange,
        candidate,
        rating: None,
        aspect: None,
        edit: Some("four".into()),
    };
    let edit = |parent| NewCandidate {
        author: Author::Owner,
        text: "four".into(),
        critique: None,
        critic: None,
        ..answer(Some(Parent::Stored(parent)), vec![])
    };
    let id = store.add_edit(said(Some(ids[0])), edit(ids[0])).await.unwrap();
    let found = store.exchange(exchange).await.unwrap();
    let stored = found.candidates.last().unwrap();
    assert_eq!((stored.id, stored.author, stored.parent), (id, Author::Owner, Some(ids[0])));
    assert_eq!(found.feedback, [said(Some(ids[0]))]);
    let foreign = CandidateId(999);
    assert!(is_missing(&store.add_edit(said(Some(ids[0])), edit(foreign)).await, "candidate"));
    assert_eq!(store.exchange(exchange).await.unwrap(), found, "half of it is not stored either");
}

#[tokio::test]
async fn what_runs_with_a_verdict_were_given_is_learned_and_new_words_make_an_exchange_new() {
    let Scratch { store, .. } = &Scratch::new().await;
    let (exchange, ids) = record(store, "one").await;
    let pair = PairRow { exchange, chosen: Some(ids[2]), rejected: Some(ids[0]), margin: 0.75 };
    let bad = PairRow { chosen: None, ..pair };
    let (judged, broken) = (start(store, vec![pair]).await, start(store, vec![bad]).await);
    store
        .update_run(judged, RunState::Rejected, None, json!({ "adapter_sha256": "1" }))
        .await
        .unwrap();
    store.update_run(broken, RunState::Failed, None, json!(null)).await.unwrap();
    let learned = store.learned().await.unwrap();
    assert_eq!(learned.into_iter().collect::<Vec<_>>(), [(pair.chosen, pair.rejected)]);

    assert_eq!(store.counts().await.unwrap().new_exchanges, 0);
    let thumb = Feedback { exchange, candidate: None, rating: Some(1), aspect: None, edit: None };
    store.add_feedback(thumb).await.unwrap();
    assert_eq!(store.counts().await.unwrap().new_exchanges, 1);
    start(store, vec![bad]).await;
    assert_eq!(store.counts().await.unwrap().new_exchanges, 0);
}

#[test]
fn a_database_of_the_first_version_keeps_its_pairs() {
    let folder = tempfile::tempdir().unwrap();
    let old = Connection::open(path(folder.path())).unwrap();
    old.execute_batch(include_str!("schema.sql")).unwrap();
    old.execute_batch(
        "INSERT INTO exchanges VALUES (1, 0, 'one', 'chat', '[]', x'', NULL, NULL, NULL);
         INSERT INTO candidates VALUES
            (1, 1, 0, NULL, 0, '', x'', x'', '{}', 'stop', NULL),
            (2, 1, 0, NULL, 0, '', x'', x'', '{}', 'stop', NULL);
         INSERT INTO runs VALUES (1, 0, 0, 'rejected', NULL, 0, '', '{}', '{}', NULL, 2);
         INSERT INTO pairs VALUES (1, 0, 1, 1, 2, 0.5), (1, 1, 1, 1, NULL, 0);
         PRAGMA user_version = 1;",
    )
    .unwrap();
    drop(old);
    let new = open(&path(folder.path())).unwrap();
    let count = |sql: &str| new.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM pairs WHERE chosen = 1"), 2);
    assert_eq!(count("SELECT count(*) FROM candidates WHERE author = 'model'"), 2);
    assert_eq!(count("SELECT count(*) FROM candidates WHERE expected IS NULL"), 2);
    assert_eq!(count("SELECT count(*) FROM pragma_foreign_key_check"), 0);
    let no_side = "INSERT INTO pairs VALUES (1, 2, 1, NULL, NULL, 0)";
    new.execute_batch(no_side).unwrap_err();
    let foreign = "INSERT INTO pairs VALUES (1, 2, 1, NULL, 7, 0)";
    new.execute_batch(foreign).unwrap_err();
}

#[tokio::test]
async fn feedback_comes_back_in_order() {
    let Scratch { store, .. } = &Scratch::new().await;
    let (exchange, ids) = record(store, "one").await;
    let thumb = Feedback { exchange, candidate: None, rating: Some(-1), aspect: None, edit: None };
    let edit = Feedback {
        candidate: Some(ids[0]),
        rating: None,
        aspect: Some("kind".into()),
        edit: Some("four".into()),
        ..thumb.clone()
    };
    store.add_feedback(thumb.clone()).await.unwrap();
    store.add_feedback(edit.clone()).await.unwrap();
    // A rating that names no answer is about the one that was served.
    let of_served = Feedback { candidate: Some(ids[1]), ..thumb.clone() };
    assert_eq!(store.feedback(exchange).await.unwrap(), [of_served, edit]);
    let (other, _) = record(store, "one").await;
    let foreign = Feedback { exchange: other, candidate: Some(ids[0]), ..thumb.clone() };
    assert!(is_missing(&store.add_feedback(foreign).await, "candidate"));
    let loud = Feedback { rating: Some(2), ..thumb };
    assert!(matches!(store.add_feedback(loud).await, Err(StoreError::Database { .. })));
}

async fn start(store: &Store, pairs: Vec<PairRow>) -> RunId {
    let job = json!({ "seed": 7 });
    store.start_run(Generation::BASE, "da7a".into(), job, pairs).await.unwrap()
}

#[tokio::test]
async fn a_run_is_followed_from_start_to_verdict() {
    let Scratch { store, .. } = &Scratch::new().await;
    let (exchange, ids) = record(store, "one").await;
    let pair = PairRow { exchange, chosen: Some(ids[2]), rejected: Some(ids[0]), margin: 0.75 };
    let alone = PairRow { rejected: None, ..pair };
    let id = start(store, vec![pair, alone]).await;
    assert_eq!(store.pairs(id).await.unwrap(), [pair, alone]);
    let run = store.run(id).await.unwrap();
    assert_eq!((run.state, run.n_pairs, run.ended_ms), (RunState::Training, 2, None));
    assert_eq!((run.job, run.data_sha256), (json!({ "seed": 7 }), "da7a".into()));
    store.update_run(id, RunState::Gating, None, json!({ "loss": 1, "step": 2 })).await.unwrap();
    let reason = Some("no gain".to_owned());
    store.update_run(id, RunState::Rejected, reason.clone(), json!({ "loss": 3 })).await.unwrap();
    let run = store.run(id).await.unwrap();
    assert_eq!((run.state, run.reason), (RunState::Rejected, reason));
    assert_eq!(run.metrics, json!({ "loss": 3, "step": 2 }));
    assert!(run.ended_ms >= Some(run.started_ms));
    let second = start(store, vec![]).await;
    let newest: Vec<_> = store.runs(9).await.unwrap().into_iter().map(|it| it.id).collect();
    assert_eq!(newest, [second, id]);
}

#[tokio::test]
async fn runs_that_a_crash_left_are_interrupted_and_go_on_or_end() {
    let Scratch { store, .. } = &Scratch::new().await;
    let (training, gating, done) =
        (start(store, vec![]).await, start(store, vec![]).await, start(store, vec![]).await);
    store.update_run(gating, RunState::Gating, None, json!(null)).await.unwrap();
    store.update_run(done, RunState::Cancelled, None, json!(null)).await.unwrap();
    let left = store.interrupt_unfinished_runs("killed".into()).await.unwrap();
    assert_eq!(left, [training, gating]);
    let run = store.run(gating).await.unwrap();
    assert_eq!((run.state, run.reason.as_deref()), (RunState::Interrupted, Some("killed")));
    assert_eq!(run.ended_ms, None);
    assert_eq!(store.run(done).await.unwrap().state, RunState::Cancelled);
    assert_eq!(store.interrupt_unfinished_runs("again".into()).await.unwrap(), []);

    store.update_run(training, RunState::Training, None, json!(null)).await.unwrap();
    let ids = async || -> Vec<RunId> {
        store.interrupted_runs().await.unwrap().into_iter().map(|run| run.id).collect()
    };
    assert_eq!(
        (store.run(training).await.unwrap().state, ids().await),
        (RunState::Training, vec![gating])
    );
    store.update_run(training, RunState::Interrupted, None, json!(null)).await.unwrap();
    assert_eq!(ids().await, [gating, training]);
    store.update_run(gating, RunState::Failed, None, json!(null)).await.unwrap();
    let run = store.run(gating).await.unwrap();
    assert!(run.state == RunState::Failed && run.ended_ms.is_some());
    assert_eq!(ids().await, [training]);
}

fn generation(number: u32, run: RunId) -> GenerationRow {
    GenerationRow {
        generation: Generation(number),
        run,
        parent: Generation(number - 1),
        path: "state/adapters/ü/adapter.gguf".into(),
        sha256: "ada".into(),
        base_sha256: "ba5e".into(),
        created_ms: 5,
        active: true,
        verdict: json!({ "gain": 0.08 }),
    }
}

#[tokio::test]
async fn promotion_marks_generation_and_run_in_one_step() {
    let Scratch { store, .. } = &Scratch::new().await;
    let (first, second) = (start(store, vec![]).await, start(store, vec![]).await);
    assert_eq!(store.next_generation().await.unwrap(), Generation(1));
    store.promote(generation(1, first), None).await.unwrap();
    store.promote(generation(2, second), None).await.unwrap();
    assert_eq!(store.next_generation().await.unwrap(), Generation(3));
    let old = GenerationRow { active: false, ..generation(1, first) };
    assert_eq!(store.generations().await.unwrap(), [old, generation(2, second)]);
    let run = store.run(second).await.unwrap();
    assert_eq!((run.state, run.generation), (RunState::Promoted, Some(Generation(2))));
    assert!(run.ended_ms.is_some());
}

#[tokio::test]
async fn a_promotion_that_fails_changes_neither_run_nor_active_generation() {
    let Scratch { store, .. } = &Scratch::new().await;
    let (first, second) = (start(store, vec![]).await, start(store, vec![]).await);
    store.promote(generation(1, first), None).await.unwrap();
    let taken = store.promote(generation(1, second), None).await;
    assert!(matches!(taken, Err(StoreError::Database { .. })), "the number is taken");
    assert!(is_missing(&store.promote(generation(2, RunId(99)), None).await, "run"));
    assert_eq!(store.run(second).await.unwrap().state, RunState::Training);
    assert_eq!(store.generations().await.unwrap(), [generation(1, first)]);
}

#[tokio::test]
async fn a_watch_is_opened_with_its_generation_and_settled_in_one_step() {
    let Scratch { store, .. } = &Scratch::new().await;
    let (first, second) = (start(store, vec![]).await, start(store, vec![]).await);
    store.promote(generation(1, first), Some(1.0)).await.unwrap();
    // A canary is not active, and the watch before it ends.
    let canary = GenerationRow { active: false, ..generation(2, second) };
    store.promote(canary, Some(0.2)).await.unwrap();
    let active = async || {
        let all = store.generations().await.unwrap();
        all.iter().filter(|it| it.active).map(|it| it.generation.0).collect::<Vec<_>>()
    };
    assert_eq!(active().await, [1]);
    let watch = store.watch_under_way().await.unwrap().unwrap();
    assert_eq!((watch.generation, watch.state), (Generation(2), WatchState::Canary));
    let settle = |state| store.settle_watch(Generation(2), state, Generation(2), "holds up".into());
    settle(WatchState::Watching).await.unwrap();
    assert_eq!(active().await, [2]);
    settle(WatchState::Passed).await.unwrap();
    assert_eq!(store.watch_under_way().await.unwrap(), None);
    assert!(is_missing(&settle(WatchState::Passed).await, "open watch"));
    let states: Vec<_> =
        store.watches(5).await.unwrap().into_iter().map(|watch| watch.state).collect();
    assert_eq!(states, [WatchState::Passed, WatchState::Ended]);
    assert_eq!(store.events("watch", 5).await.unwrap().len(), 2);
    store.go_to(Generation(1)).await.unwrap();
    assert_eq!(active().await, [1]);
}

#[tokio::test]
async fn live_scores_are_those_of_served_answers_to_chats_by_generation() {
    let Scratch { store, .. } = &Scratch::new().await;
    let (exchange, _) = record(store, "one").await;
    let served = store.exchange(exchange).await.unwrap().served.unwrap();
    let thumb = |aspect: Option<&str>, rating| Feedback {
        exchange,
        candidate: None,
        rating: Some(rating),
        aspect: aspect.map(str::to_owned),
        edit: None,
    };
    store.add_feedback(thumb(Some("right"), 1)).await.unwrap();
    store.add_feedback(thumb(None, -1)).await.unwrap();
    let by = store.exchange(exchange).await.unwrap();
    let by = by.candidates.iter().find(|it| it.id == served).unwrap().generation;
    let live = store.live(by, 0..=i64::MAX, 10).await.unwrap();
    assert_eq!(live.ratings, [("one".to_owned(), -1.0)]);
    assert!(matches!(&live.scores[..], [(_, score)] if (score - 0.6).abs() < 1e-6), "{live:?}");
    let other = Generation(by.0 + 1);
    assert_eq!(store.live(other, 0..=i64::MAX, 10).await.unwrap(), Live::default());
    assert_eq!(store.live(by, served.0 + 1..=i64::MAX, 10).await.unwrap(), Live::default());
    assert_eq!(store.feedback_since(0).await.unwrap(), 2);
}

#[tokio::test]
async fn rolling_back_activates_one_generation_or_the_base() {
    let Scratch { store, .. } = &Scratch::new().await;
    for number in 1..=2 {
        let run = start(store, vec![]).await;
        store.promote(generation(number, run), None).await.unwrap();
    }
    let active = async || {
        let all = store.generations().await.unwrap();
        all.iter().filter(|it| it.active).map(|it| it.generation.0).collect::<Vec<_>>()
    };
    assert_eq!(active().await, [2]);
    store.set_active(Generation(1)).await.unwrap();
    assert_eq!(active().await, [1]);
    assert!(is_missing(&store.set_active(Generation(3)).await, "generation"));
    assert_eq!(active().await, [1]);
    store.set_active(Generation::BASE).await.unwrap();
    assert!(active().await.is_empty());
}

#[tokio::test]
async fn evaluations_come_back_in_order() {
    let Scratch { store, .. } = &Scratch::new().await;
    let run = start(store, vec![]).await;
    let active = Evaluation {
        run,
        agent: "one".into(),
        general: false,
        candidate: false,
        prompt_id: "p1".into(),
        text: "4".into(),
        score: 0.5,
        verified: Some(true),
    };
    let candidate = Evaluation { candidate: true, verified: None, ..active.clone() };
    // Ids are unique in a file only.
    let general = Evaluation { general: true, ..active.clone() };
    let other = Evaluation { agent: "two".into(), ..active.clone() };
    let all = [active.clone(), candidate, general, other];
    store.add_evaluations(all.to_vec()).await.unwrap();
    assert_eq!(store.evaluations(run).await.unwrap(), all);
    store.add_evaluations(vec![active.clone()]).await.unwrap_err();
    store.forget_evaluations(run).await.unwrap();
    store.add_evaluations(vec![active]).await.unwrap();
}

#[tokio::test]
async fn counts_tell_what_is_new_since_the_last_run() {
    let Scratch { store, folder, .. } = &Scratch::new().await;
    let (old, _) = record(store, "one").await;
    assert_eq!(store.counts().await.unwrap().new_exchanges, 1);
    start(store, vec![]).await;
    assert_eq!(store.counts().await.unwrap().new_exchanges, 0);
    store.add_candidates(old, vec![answer(None, vec![]), answer(None, vec![])]).await.unwrap();
    let (exchange, _) = record(store, "one").await;
    let thumb = Feedback { exchange, candidate: None, rating: Some(1), aspect: None, edit: None };
    store.add_feedback(thumb).await.unwrap();
    store.add_event("test".into(), json!({ "a": 1 })).await.unwrap();
    let expected = Counts {
        exchanges: 2,
        candidates: 8,
        assessments: 6,
        feedback: 1,
        runs: 1,
        new_exchanges: 2,
    };
    assert_eq!(store.counts().await.unwrap(), expected);
    let journal = Connection::open(path(folder.path())).unwrap();
    let sql = "SELECT kind || detail FROM events";
    let event: String = journal.query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(event, r#"test{"a":1}"#);
}

#[tokio::test]
async fn what_was_committed_survives_a_kill() {
    let scratch = Scratch::new().await;
    let (id, _) = record(&scratch.store, "one").await;
    let left = scratch.killed();
    let (store, _thread) = spawn(path(left.path())).await.unwrap();
    assert_eq!(store.exchange(id).await.unwrap(), scratch.store.exchange(id).await.unwrap());
}

#[tokio::test]
async fn a_kill_inside_a_transaction_leaves_nothing_of_it() {
    let scratch = Scratch::new().await;
    record(&scratch.store, "one").await;
    let before = scratch.store.counts().await.unwrap();
    let left = scratch.killed();
    let mut connection = open(&path(left.path())).unwrap();
    // So small that SQLite writes pages into the log before the transaction is committed.
    connection.execute_batch("PRAGMA cache_size = 1").unwrap();
    let tx = connection.transaction().unwrap();
    exchanges::insert(&tx, &prompt("one"), &[answer(None, vec![])], None).unwrap();
    tx.execute("DELETE FROM assessments", []).unwrap();
    let inside = Scratch { folder: left, ..scratch }.killed();
    let (store, _thread) = spawn(path(inside.path())).await.unwrap();
    assert_eq!(store.counts().await.unwrap(), before);
}

#[tokio::test]
async fn joining_waits_for_what_was_asked_and_empties_the_log() {
    let Scratch { folder, store, thread } = Scratch::new().await;
    let writes: Vec<_> = (0..20)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { record(&store, "one").await })
        })
        .collect();
    for write in writes {
        write.await.unwrap();
    }
    drop(store);
    thread.join().unwrap();
    assert!(!folder.path().join("reflectd.db-wal").exists(), "SQLite removes an empty log");
    let (store, _thread) = spawn(path(folder.path())).await.unwrap();
    assert_eq!(store.counts().await.unwrap().exchanges, 20);
}

#[tokio::test]
async fn the_death_of_the_thread_is_noticed() {
    let Scratch { store, mut thread, .. } = Scratch::new().await;
    let broken = store.write("panic", |_| -> thread::Outcome<()> { panic!("on purpose") }).await;
    assert!(matches!(broken, Err(StoreError::Stopped)));
    thread.died().await;
    thread.died().await;
    assert!(matches!(store.counts().await, Err(StoreError::Stopped)));
    thread.join().unwrap_err();
}

#[tokio::test]
async fn a_file_of_version_0_is_brought_up_to_date_and_stays_durable() {
    let folder = tempfile::tempdir().unwrap();
    let empty = Connection::open(path(folder.path())).unwrap();
    empty.pragma_update(None, "user_version", 0).unwrap();
    drop(empty);
    let connection = open(&path(folder.path())).unwrap();
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    assert_eq!(schema::migrations().pending_migrations(&connection), Ok(0));
    assert_eq!(pragma("synchronous"), Ok(2), "full");
    assert_eq!(pragma("foreign_keys"), Ok(1));
    schema::migrations().validate().unwrap();
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let newer = open(&path(folder.path())).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    let refused = spawn(path(folder.path())).await;
    assert!(matches!(refused, Err(StoreError::TooNew { .. })));
    let still = Connection::open(path(folder.path())).unwrap();
    let version = still.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
    assert_eq!(version, Ok(99));
}

#[tokio::test]
async fn a_file_that_is_no_database_is_a_start_up_error() {
    let folder = tempfile::tempdir().unwrap();
    files::write_atomic(&path(folder.path()), |file| {
        std::io::Write::write_all(file, b"this is not a database, but it is long enough")
    })
    .unwrap();
    assert!(matches!(spawn(path(folder.path())).await, Err(StoreError::Database { .. })));
}
