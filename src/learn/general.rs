//! The base's own answers to prompts that are not of the task. Made once for a model and a set of
//! prompts, and kept in the state folder: a gate only reads them again. It must not decide (`gate`
//! does). Used by `arena`.

use std::path::{Path, PathBuf};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::Parts;
use super::held_out::Question;
use super::promote::blocking;
use crate::reflect::ReflectError;
use config::Agent;
use engine::{EngineError, Generation, Priority, Sampling, Weights};

/// Tokens of an answer at most: what is lost shows in its beginning.
const ANSWER_TOKENS: u32 = 48;
/// Prompts under way at once.
const PARALLEL: usize = 4;
/// Files kept, the newest ones: one a model and set of prompts.
const FILES: usize = 4;

/// A prompt and what the base answers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct BaseAnswer {
    /// Prompt and answer.
    pub(super) tokens: Vec<i32>,
    /// Where the answer begins, at least 1.
    pub(super) from: usize,
}

/// The base's greedy answers, in the order of the prompts' texts. What does not fit the context is
/// left out.
pub(super) async fn answers(
    parts: &Parts,
    questions: &[Question],
) -> Result<Vec<BaseAnswer>, ReflectError> {
    let mut questions: Vec<&Question> = questions.iter().collect();
    questions.sort_by_cached_key(|question| text(question));
    let path = parts.state.general().join(format!("{}.json", key(parts, &questions)));
    if let Some(known) = blocking({
        let path = path.clone();
        move || read(&path)
    })
    .await
    {
        return Ok(known);
    }
    let asked: Vec<_> = questions.iter().map(|question| answer(parts, question)).collect();
    let answers: Vec<Option<BaseAnswer>> =
        stream::iter(asked).buffered(PARALLEL).try_collect().await?;
    let answers: Vec<BaseAnswer> = answers.into_iter().flatten().collect();
    let text = serde_json::to_vec(&answers).expect("answers are plain data");
    if let Err(error) = blocking(move || write(&path, &text)).await {
        warn!(%error, "The base's answers to general prompts are not kept.");
    }
    Ok(answers)
}

async fn answer(parts: &Parts, question: &Question) -> Result<Option<BaseAnswer>, ReflectError> {
    // The agent's system text would make it a prompt of the task.
    let bare = Agent { system: None, ..Agent::clone(&question.agent) };
    let messages = question.line.messages();
    let sampling = Sampling {
        temperature: 0.0,
        max_tokens: ANSWER_TOKENS,
        seed: Some(0),
        ..Sampling::default()
    };
    let base = Weights::Generation(Generation::BASE);
    match parts.reflector.answer(&bare, &messages, base, sampling, Priority::Gate).await {
        Ok(answer) if answer.from < answer.tokens.len() => Ok(Some(BaseAnswer {
            tokens: answer.tokens.iter().map(|token| token.0).collect(),
            from: answer.from,
        })),
        Ok(_) => Ok(None),
        Err(ReflectError::Engine(error @ EngineError::TooLong { .. })) => {
            warn!(prompt_id = %question.line.id, %error, "A general prompt is left out.");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The whole conversation, which may have more than the last words of the user.
fn text(question: &Question) -> String {
    serde_json::to_string(&question.line.messages()).expect("messages are plain data")
}

/// Names model, chat template and prompts.
fn key(parts: &Parts, questions: &[&Question]) -> String {
    let config = parts.config.borrow();
    let template = config.engine.chat_template.clone().unwrap_or_default();
    let head = [parts.engine.info().sha256.clone(), template];
    let prompts = questions.iter().map(|question| text(question));
    let mut digest = Sha256::new();
    for text in head.into_iter().chain(prompts) {
        digest.update(text.len().to_le_bytes());
        digest.update(text);
    }
    files::hex(&digest.finalize())
}

/// `None`: there is no file, or it is of no use.
fn read(path: &Path) -> Option<Vec<BaseAnswer>> {
    let text = std::fs::read(path).ok()?;
    let known = serde_json::from_slice::<Vec<BaseAnswer>>(&text).map_err(|error| {
        warn!(path = %path.display(), %error, "The base's answers to general prompts are made again.");
    });
    let is_sound = |answer: &BaseAnswer| (1..answer.tokens.len()).contains(&answer.from);
    known.ok().filter(|known| known.iter().all(is_sound))
}

fn write(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().expect("the file lies in a folder");
    std::fs::create_dir_all(folder)?;
    files::write_atomic(path, |file| std::io::Write::write_all(file, text))?;
    let mut all: Vec<(std::time::SystemTime, PathBuf)> = std::fs::read_dir(folder)?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .collect();
    all.sort();
    let n_old = all.len().saturating_sub(FILES);
    all.iter().take(n_old).try_for_each(|(_, path)| std::fs::remove_file(path))
}
