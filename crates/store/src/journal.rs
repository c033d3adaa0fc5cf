//! Table `events`, the journal, and counts over all tables.

use rusqlite::{Transaction, params};

use super::columns::{Count, Json, limit, now_ms};
use super::thread::Outcome;
use super::{Counts, Event};

pub(super) fn counts(tx: &Transaction<'_>) -> Outcome<Counts> {
    let sql = "SELECT
        (SELECT count(*) FROM exchanges),
        (SELECT count(*) FROM candidates),
        (SELECT count(*) FROM assessments),
        (SELECT count(*) FROM feedback),
        (SELECT count(*) FROM runs),
        (SELECT count(*) FROM (
            SELECT exchange FROM candidates
            WHERE id > coalesce((SELECT max(last_candidate) FROM runs
                WHERE data_sha256 <> ''), 0)
            UNION SELECT exchange FROM feedback
            WHERE id > coalesce((SELECT max(last_feedback) FROM runs
                WHERE data_sha256 <> ''), 0)))";
    let counts = tx.prepare_cached(sql)?.query_row([], |row| {
        let count = |index: usize| row.get::<_, Count<_>>(index).map(|it| it.0);
        Ok(Counts {
            exchanges: count(0)?,
            candidates: count(1)?,
            assessments: count(2)?,
            feedback: count(3)?,
            runs: count(4)?,
            new_exchanges: count(5)?,
        })
    })?;
    Ok(counts)
}

pub(super) fn insert_event(
    tx: &Transaction<'_>,
    kind: &str,
    detail: &serde_json::Value,
) -> Outcome<()> {
    tx.prepare_cached("INSERT INTO events (created_ms, kind, detail) VALUES (?, ?, ?)")?
        .execute(params![now_ms(), kind, Json(detail)])?;
    Ok(())
}

/// The newest events of one kind, newest first.
pub(super) fn events(tx: &Transaction<'_>, kind: &str, at_most: usize) -> Outcome<Vec<Event>> {
    let sql = "SELECT * FROM events WHERE kind = ? ORDER BY id DESC LIMIT ?";
    let mut query = tx.prepare_cached(sql)?;
    let events = query.query_map(params![kind, limit(at_most)], |row| {
        Ok(Event {
            created_ms: row.get("created_ms")?,
            kind: row.get("kind")?,
            detail: row.get::<_, Json<_>>("detail")?.0,
        })
    })?;
    Ok(events.collect::<rusqlite::Result<_>>()?)
}
