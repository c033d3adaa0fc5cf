//! Table `watches`: how a promoted generation does beside the one before it, and the live scores and
//! ratings that tell.

use rusqlite::{OptionalExtension as _, Row, Transaction, params};

use super::columns::{Word, limit, now_ms};
use super::thread::{Outcome, Refusal};
use super::{Live, Watch, WatchState, generations, journal};
use inference::Generation;

/// Opens a generation's watch; one that was open for another ends.
pub(super) fn open(
    tx: &Transaction<'_>,
    generation: Generation,
    parent: Generation,
    share: f64,
) -> Outcome<()> {
    close(tx, "another generation was promoted")?;
    let state = if share < 1.0 { WatchState::Canary } else { WatchState::Watching };
    tx.prepare_cached(
        "INSERT INTO watches (generation, parent, share, started_ms, after_candidate, state)
         VALUES (?, ?, ?, ?, (SELECT coalesce(max(id), 0) FROM candidates), ?)",
    )?
    .execute(params![generation.0, parent.0, share, now_ms(), Word(state)])?;
    Ok(())
}

/// Ends the open watch, if there is one, without a verdict.
pub(super) fn close(tx: &Transaction<'_>, reason: &str) -> Outcome<()> {
    let sql = "UPDATE watches SET state = 'ended', ended_ms = ?, reason = ? WHERE ended_ms IS NULL";
    tx.prepare_cached(sql)?.execute(params![now_ms(), reason])?;
    Ok(())
}

pub(super) fn under_way(tx: &Transaction<'_>) -> Outcome<Option<Watch>> {
    let sql = "SELECT * FROM watches WHERE ended_ms IS NULL";
    Ok(tx.prepare_cached(sql)?.query_row([], read).optional()?)
}

pub(super) fn newest(tx: &Transaction<'_>, at_most: usize) -> Outcome<Vec<Watch>> {
    let mut query = tx.prepare_cached("SELECT * FROM watches ORDER BY generation DESC LIMIT ?")?;
    let watches = query.query_map([limit(at_most)], read)?;
    Ok(watches.collect::<rusqlite::Result<_>>()?)
}

/// Moves the open watch on and says who serves from now on, in one step with its event, which is an
/// alarm when the generation is taken back.
pub(super) fn settle(
    tx: &Transaction<'_>,
    generation: Generation,
    state: WatchState,
    active: Generation,
    reason: &str,
) -> Outcome<()> {
    let ended_ms = match state {
        WatchState::Canary | WatchState::Watching => None,
        WatchState::Passed | WatchState::RolledBack | WatchState::Ended => Some(now_ms()),
    };
    let sql = "UPDATE watches SET state = ?, ended_ms = ?, reason = ?
        WHERE generation = ? AND ended_ms IS NULL";
    let moved =
        tx.prepare_cached(sql)?.execute(params![Word(state), ended_ms, reason, generation.0])?;
    if moved == 0 {
        return Err(Refusal::NotFound { what: "open watch", id: generation.0.into() });
    }
    generations::set_active(tx, active)?;
    let word = serde_json::to_value(state).unwrap_or_default();
    let detail = serde_json::json!({
        "generation": generation, "state": word, "active": active, "reason": reason,
    });
    let kind = if state == WatchState::RolledBack { "alarm" } else { "watch" };
    journal::insert_event(tx, kind, &detail)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Watch> {
    Ok(Watch {
        generation: Generation(row.get("generation")?),
        parent: Generation(row.get("parent")?),
        share: row.get("share")?,
        started_ms: row.get("started_ms")?,
        after_candidate: row.get("after_candidate")?,
        state: row.get::<_, Word<_>>("state")?.0,
        ended_ms: row.get("ended_ms")?,
        reason: row.get("reason")?,
    })
}

/// The answers that a generation served to chats, as far as somebody has judged or rated them; those
/// from `after` on, oldest first, or the newest ones up to it. In the order of the judgements and
/// ratings, which only grows at its end.
pub(super) fn live(
    tx: &Transaction<'_>,
    generation: Generation,
    range: std::ops::RangeInclusive<i64>,
    at_most: usize,
) -> Outcome<Live> {
    // Two queries, because an answer that is judged now may be rated next week.
    let scores = "SELECT agent, score FROM (
            SELECT exchanges.agent AS agent, min(assessments.id) AS at,
                sum(is_current * weight * (p_plus - p_minus)) / sum(is_current * weight) AS score
            FROM exchanges
                JOIN candidates ON candidates.id = exchanges.served
                JOIN assessments ON assessments.candidate = candidates.id
            WHERE exchanges.source = 'chat' AND candidates.generation = ?
                AND candidates.id BETWEEN ? AND ? AND weight > 0
            GROUP BY candidates.id HAVING sum(is_current * weight) > 0
            ORDER BY at DESC LIMIT ?)
        ORDER BY at";
    let ratings = "SELECT agent, rating FROM (
            SELECT exchanges.agent AS agent, feedback.id AS at, CAST(feedback.rating AS REAL) AS rating
            FROM exchanges
                JOIN candidates ON candidates.id = exchanges.served
                JOIN feedback ON feedback.exchange = exchanges.id
            WHERE exchanges.source = 'chat' AND candidates.generation = ?
                AND candidates.id BETWEEN ? AND ?
                AND feedback.rating IS NOT NULL AND feedback.aspect IS NULL
                AND coalesce(feedback.candidate, candidates.id) = candidates.id
            ORDER BY at DESC LIMIT ?)
        ORDER BY at";
    let rows = |sql: &str| -> Outcome<Vec<(String, f64)>> {
        let mut query = tx.prepare_cached(sql)?;
        let values = params![generation.0, range.start(), range.end(), limit(at_most)];
        let rows = query.query_map(values, |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    };
    Ok(Live { scores: rows(scores)?, ratings: rows(ratings)? })
}
