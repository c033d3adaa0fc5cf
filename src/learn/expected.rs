//! The answer that a prompt's verifier names whole (`exact`, `json`), as an example: where the model finds
//! no right answer by itself there is nothing else to learn from. It is marked in the store, so that it is
//! one only as long as the verifier names it. Reads and writes the store. Used by `explore`, and by
//! `practice` for verifiers that a file has changed.

use std::collections::HashSet;

use tracing::warn;

use super::Parts;
use super::error::RunError;
use super::job::{Lesson, validation_share};
use super::pairs::prompt_id;
use crate::reflect::Named;
use config::Agent;
use store::{Author, Candidate, Exchange, ExchangeId, Expected, NewCandidate};

/// What became of a prompt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Supplied {
    /// What its verifier names is its example now.
    New,
    /// It was before, or an example of the owner is right.
    Known,
    /// It cannot be one.
    Unfit,
    /// It is not one, because candidates are compared on the prompt.
    Untrained,
    /// An answer of the model is right, or its verifier names none.
    Nothing,
}

/// Makes it the example where neither an answer of the model nor an example of the owner passes the
/// verifier of today.
pub(super) async fn supply(
    parts: &Parts,
    agent: &Agent,
    id: ExchangeId,
) -> Result<Supplied, RunError> {
    let exchange = parts.store.exchange(id).await?;
    let named = parts.reflector.expected(agent, &exchange)?;
    if matches!(named, Named::Nothing) {
        return Ok(Supplied::Nothing);
    }
    let own = exchange.candidates.iter().filter(|it| it.author == Author::Model);
    let own: Vec<_> = own.collect();
    if is_any_right(parts, agent, &exchange, &own).await? {
        return Ok(Supplied::Nothing);
    }
    if is_any_right(parts, agent, &exchange, example(&exchange).as_slice()).await? {
        return Ok(Supplied::Known);
    }
    if is_untrained(parts, &exchange) {
        return Ok(Supplied::Untrained);
    }
    let Some(answer) = fitting(id, named) else { return Ok(Supplied::Unfit) };
    let is_new = parts.store.set_expected(id, Some(answer)).await?;
    Ok(if is_new { Supplied::New } else { Supplied::Known })
}

/// Takes it from the prompts of an agent that its file no longer `named`.
pub(super) async fn forget(
    parts: &Parts,
    agent: &Agent,
    named: &HashSet<ExchangeId>,
) -> Result<(), RunError> {
    for id in parts.store.expected(agent.name.clone()).await? {
        if !named.contains(&id) {
            parts.store.set_expected(id, None).await?;
        }
    }
    Ok(())
}

/// Brings the example of a prompt to what the verifier of today names, unless the owner's own is right.
pub(super) async fn renew(parts: &Parts, agent: &Agent, id: ExchangeId) -> Result<(), RunError> {
    let exchange = parts.store.exchange(id).await?;
    let mut expected = fitting(id, parts.reflector.expected(agent, &exchange)?);
    if expected.is_some()
        && (is_untrained(parts, &exchange)
            || is_any_right(parts, agent, &exchange, example(&exchange).as_slice()).await?)
    {
        expected = None;
    }
    let now = exchange.candidates.iter().find(|it| it.expected == Some(Expected::Now));
    if now.map(|it| &it.text) != expected.as_ref().map(|it| &it.text) {
        parts.store.set_expected(id, expected).await?;
    }
    Ok(())
}

/// Whether no run on answers trains on the prompt. A run on examples, which keeps none aside, must not either:
/// candidates are compared on such prompts, those that the model cannot do among them.
fn is_untrained(parts: &Parts, exchange: &Exchange) -> bool {
    let share = validation_share(&parts.config.borrow().learn, Lesson::Answers);
    protocol::fraction_of(&prompt_id(&exchange.prompt_tokens)) < share
}

/// What can be an example; of what cannot, the log tells.
fn fitting(exchange: ExchangeId, named: Named) -> Option<NewCandidate> {
    match named {
        Named::Nothing => None,
        Named::Answer(answer) => Some(*answer),
        Named::Unfit(reason) => {
            warn!(%exchange, reason, "What a verifier names is no example, because it does not fit.");
            None
        }
    }
}

/// The owner's newest own example.
pub(super) fn example(exchange: &Exchange) -> Option<&Candidate> {
    let is_own = |it: &&Candidate| it.is_example() && it.expected.is_none();
    exchange.candidates.iter().rfind(is_own)
}

/// By the verifier of today, which a file may have changed since the answers were judged.
async fn is_any_right(
    parts: &Parts,
    agent: &Agent,
    exchange: &Exchange,
    answers: &[&Candidate],
) -> Result<bool, RunError> {
    for answer in answers {
        if parts.reflector.check(agent, exchange, &answer.text).await? == Some(true) {
            return Ok(true);
        }
    }
    Ok(false)
}
