//! The answer that a prompt's verifier names whole (`exact`, `json`), as an example of the owner's: where
//! the model finds no right answer by itself there is nothing else to learn from. Reads and writes the
//! store. Used by `explore`, and by `practice` for verifiers that a file has changed.

use super::Parts;
use super::error::RunError;
use config::{Agent, VERIFIER};
use store::{Author, Candidate, Exchange, ExchangeId};

/// Stores it where no answer of the model passes the verifier; whether that is new.
pub(super) async fn supply(parts: &Parts, agent: &Agent, id: ExchangeId) -> Result<bool, RunError> {
    let exchange = parts.store.exchange(id).await?;
    let is_solved = own(&exchange).any(|candidate| {
        let mut said = candidate.assessments.iter();
        said.any(|said| said.aspect == VERIFIER && said.passes)
    });
    Ok(!is_solved && replace(parts, agent, &exchange).await?)
}

/// Stores it where an example for another verifier stands, so that nobody learns what was right once.
pub(super) async fn renew(parts: &Parts, agent: &Agent, id: ExchangeId) -> Result<(), RunError> {
    let exchange = parts.store.exchange(id).await?;
    if example(&exchange).is_some() {
        replace(parts, agent, &exchange).await?;
    }
    Ok(())
}

async fn replace(parts: &Parts, agent: &Agent, exchange: &Exchange) -> Result<bool, RunError> {
    let Some(expected) = parts.reflector.expected(agent, exchange)? else { return Ok(false) };
    if example(exchange).is_some_and(|example| example.text == expected.text) {
        return Ok(false);
    }
    parts.store.add_candidates(exchange.id, vec![expected]).await?;
    Ok(true)
}

fn own(exchange: &Exchange) -> impl Iterator<Item = &Candidate> {
    exchange.candidates.iter().filter(|candidate| candidate.author == Author::Model)
}

/// The newest.
fn example(exchange: &Exchange) -> Option<&Candidate> {
    let is_example = |it: &&Candidate| it.author == Author::Owner && it.parent.is_none();
    exchange.candidates.iter().rfind(is_example)
}
