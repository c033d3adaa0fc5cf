//! Chats as clients hold them, and what their replies say about who answered.

use std::collections::BTreeSet;
use std::path::Path;

use hyper::{Method, StatusCode};
use nano::world::{Problem, Split};
use serde_json::{Value, json};

use testkit::client::{Answer, request, send};

/// Problems that owners ask, from a seed.
pub(crate) fn questions(count: usize, seed: u64) -> Vec<String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..count).map(|_| Problem::sample(&mut rng, Split::Live).question).collect()
}

/// A streamed chat that has begun.
pub(crate) async fn begin(socket: &Path, question: &str, n: u32) -> Answer {
    let body = json!({
        "model": "nano",
        "messages": [{ "role": "user", "content": question }],
        "n": n,
        "stream": true,
        "reflectd": { "mode": "off" },
    });
    let request = request(Method::POST, "/v1/chat/completions", body.to_string());
    let answer = send(socket, request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    answer
}

/// Reads a chat to its end: the generations that its chunks name, which should be one.
pub(crate) async fn finish(answer: Answer) -> BTreeSet<u64> {
    let (events, is_done) = answer.events().await;
    assert!(is_done, "the stream ends without [DONE]: {events:?}");
    let fingerprint = |event: &Value| {
        let word = event["system_fingerprint"].as_str().unwrap_or_else(|| panic!("{event}"));
        word.strip_prefix("generation-").unwrap().parse::<u64>().unwrap()
    };
    let mut generations: BTreeSet<u64> = events.iter().map(fingerprint).collect();
    let receipt = &events.last().unwrap()["reflectd"];
    generations.insert(receipt["generation"].as_u64().expect("the last chunk has the receipt"));
    generations
}

/// A whole chat; the one generation that answered.
pub(crate) async fn chat(socket: &Path, question: &str) -> u64 {
    let generations = finish(begin(socket, question, 1).await).await;
    assert_eq!(generations.len(), 1, "one reply names generations {generations:?}");
    generations.into_iter().next().unwrap()
}
