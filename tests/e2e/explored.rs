//! An exploration by the real daemon, whose database all tests share.

use std::fs;
use std::io::Write as _;

use files::write_atomic;
use reflectd::paths::StateDir;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::chats;
use crate::daemon::Daemon;
use crate::scratch::Scratch;

/// Prompts of the shared exploration: enough for pairs whatever the model is worth.
const PROMPTS: usize = 40;

/// The folder of a daemon that has explored and been stopped.
pub(crate) async fn explored() -> Scratch {
    static DATABASE: OnceCell<Vec<u8>> = OnceCell::const_new();
    let database = DATABASE.get_or_init(explore).await;
    let scratch = Scratch::new();
    let state = StateDir::open(&scratch.state()).unwrap();
    write_atomic(&state.database(), |file| file.write_all(database)).unwrap();
    scratch
}

/// The prompts of an exploration: problems of the live split, as the API takes them.
pub(crate) fn exploration(count: usize, seed: u64) -> Value {
    let prompt = |(i, prompt)| json!({ "id": format!("{seed}-{i}"), "prompt": prompt });
    let prompts: Vec<Value> =
        chats::questions(count, seed).into_iter().enumerate().map(prompt).collect();
    json!({ "prompts": prompts, "limit": count, "n": 4, "m": 2 })
}

/// The database after an exploration; a daemon that has ended leaves it in one file.
async fn explore() -> Vec<u8> {
    let daemon = Daemon::start(Scratch::new()).await;
    let ended = daemon.post("/v1/explore", &exploration(PROMPTS, 1)).await;
    assert_eq!((&ended["outcome"], &ended["prompts"]), (&json!("explored"), &json!(PROMPTS)));
    let candidates = ended["candidates"].as_u64().unwrap();
    assert!(4 * PROMPTS as u64 <= candidates, "four drafts each, and refinements: {ended}");
    let scratch = daemon.stop().await;
    let state = StateDir::open(&scratch.state()).unwrap();
    fs::read(state.database()).unwrap()
}
