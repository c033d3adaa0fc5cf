//! The answer that a prompt's verifier names whole (`exact`, `json`), as an example of the owner's: where
//! the model finds no right answer by itself there is nothing else to learn from. Reads and writes the
//! store. Used by `explore`, and by `practice` for verifiers that a file has changed.

use super::Parts;
use super::error::RunError;
use config::Agent;
use store::{Author, Candidate, Exchange, ExchangeId};

/// Stores it where neither an answer of the model nor an example passes the verifier of today; whether
/// that is new.
pub(super) async fn supply(parts: &Parts, agent: &Agent, id: ExchangeId) -> Result<bool, RunError> {
    let exchange = parts.store.exchange(id).await?;
    let own = exchange.candidates.iter().filter(|it| it.author == Author::Model);
    add(parts, agent, &exchange, own.collect()).await
}

/// Stores it where the newest example fails the verifier of today.
pub(super) async fn renew(parts: &Parts, agent: &Agent, id: ExchangeId) -> Result<(), RunError> {
    let exchange = parts.store.exchange(id).await?;
    add(parts, agent, &exchange, Vec::new()).await.map(drop)
}

/// Stores it unless the newest example or one of these answers is right.
async fn add(
    parts: &Parts,
    agent: &Agent,
    exchange: &Exchange,
    answers: Vec<&Candidate>,
) -> Result<bool, RunError> {
    let Some(expected) = parts.reflector.expected(agent, exchange)? else { return Ok(false) };
    let mut examples =
        exchange.candidates.iter().filter(|it| it.author == Author::Owner && it.parent.is_none());
    // Where two files contradict each other it was stored before, and the other one is stored again.
    if examples.clone().any(|example| example.text == expected.text) {
        return Ok(false);
    }
    for answer in examples.next_back().into_iter().chain(answers) {
        // By the verifier of today, which a file may have changed since the answer was judged.
        if parts.reflector.check(agent, exchange, &answer.text).await? == Some(true) {
            return Ok(false);
        }
    }
    parts.store.add_candidates(exchange.id, vec![expected]).await?;
    Ok(true)
}
