//! Table `feedback`: the owner's ratings and edits of answers.

use rusqlite::{Transaction, params};

use super::columns::{Count, now_ms};
use super::thread::Outcome;
use super::{ExchangeId, Feedback, require};

pub(super) fn insert(tx: &Transaction<'_>, feedback: &Feedback) -> Outcome<()> {
    require::exchange(tx, feedback.exchange)?;
    if let Some(candidate) = feedback.candidate {
        require::candidate(tx, feedback.exchange, candidate)?;
    }
    tx.prepare_cached(
        "INSERT INTO feedback (created_ms, exchange, candidate, rating, aspect, edit)
         VALUES (?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        now_ms(),
        feedback.exchange,
        feedback.candidate,
        feedback.rating,
        feedback.aspect,
        feedback.edit,
    ])?;
    Ok(())
}

pub(super) fn of(tx: &Transaction<'_>, exchange: ExchangeId) -> Outcome<Vec<Feedback>> {
    require::exchange(tx, exchange)?;
    let sql = "SELECT feedback.exchange, coalesce(candidate, served) AS candidate, rating, aspect,
            edit
        FROM feedback JOIN exchanges ON exchanges.id = feedback.exchange
        WHERE feedback.exchange = ? ORDER BY feedback.id";
    let mut query = tx.prepare_cached(sql)?;
    let rows = query.query_map([exchange], |row| {
        Ok(Feedback {
            exchange: row.get("exchange")?,
            candidate: row.get("candidate")?,
            rating: row.get("rating")?,
            aspect: row.get("aspect")?,
            edit: row.get("edit")?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn since(tx: &Transaction<'_>, since_ms: i64) -> Outcome<usize> {
    let sql = "SELECT count(*) FROM feedback WHERE created_ms > ?";
    Ok(tx.prepare_cached(sql)?.query_row([since_ms], |row| row.get::<_, Count<_>>(0))?.0)
}
