//! Checks that a row exists before others refer to it. Used by the files of the tables.

use rusqlite::{Transaction, params};

use super::thread::{Outcome, Refusal};
use super::{CandidateId, ExchangeId};

/// An error when there is no such exchange.
pub(super) fn exchange(tx: &Transaction<'_>, id: ExchangeId) -> Outcome<()> {
    let mut query = tx.prepare_cached("SELECT 1 FROM exchanges WHERE id = ?")?;
    if query.exists([id])? { Ok(()) } else { Err(no_exchange(id)) }
}

/// An error when the exchange has no such candidate.
pub(super) fn candidate(
    tx: &Transaction<'_>,
    exchange: ExchangeId,
    id: CandidateId,
) -> Outcome<()> {
    let sql = "SELECT 1 FROM candidates WHERE exchange = ? AND id = ?";
    let found = tx.prepare_cached(sql)?.exists(params![exchange, id])?;
    if found { Ok(()) } else { Err(Refusal::NotFound { what: "candidate", id: id.0 }) }
}

/// There is no such exchange.
pub(super) fn no_exchange(id: ExchangeId) -> Refusal {
    Refusal::NotFound { what: "exchange", id: id.0 }
}
