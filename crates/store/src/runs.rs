//! Tables `runs` and `pairs`: what was trained on what, and how it ended.

use std::collections::HashSet;

use rusqlite::{OptionalExtension as _, Row, Transaction, params};
use serde_json::Value;

use super::columns::{Count, Json, Tokens, Word, limit, now_ms};
use super::thread::{Outcome, Refusal};
use super::{CandidateId, EarlierPair, PairRow, Run, RunId, RunState};
use inference::Generation;

const SELECT: &str =
    "SELECT *, (SELECT count(*) FROM pairs WHERE run = runs.id) AS n_pairs FROM runs";

pub(super) fn insert(
    tx: &Transaction<'_>,
    start: Generation,
    data_sha256: &str,
    job: &Value,
    pairs: &[PairRow],
) -> Outcome<RunId> {
    tx.prepare_cached(
        "INSERT INTO runs (started_ms, state, start, data_sha256, job, metrics, last_candidate,
            last_feedback)
         VALUES (?, ?, ?, ?, ?, '{}', (SELECT coalesce(max(id), 0) FROM candidates),
            (SELECT coalesce(max(id), 0) FROM feedback))",
    )?
    .execute(params![now_ms(), Word(RunState::Training), start.0, data_sha256, Json(job)])?;
    let id = RunId(tx.last_insert_rowid());
    let mut insert = tx.prepare_cached(
        "INSERT INTO pairs (run, position, exchange, chosen, rejected, margin)
         VALUES (?, ?, ?, ?, ?, ?)",
    )?;
    for (position, pair) in pairs.iter().enumerate() {
        insert.execute(params![
            id,
            limit(position),
            pair.exchange,
            pair.chosen,
            pair.rejected,
            pair.margin,
        ])?;
    }
    Ok(id)
}

pub(super) fn update(
    tx: &Transaction<'_>,
    id: RunId,
    state: RunState,
    reason: Option<String>,
    metrics: Value,
) -> Outcome<()> {
    let run = one(tx, id)?;
    let ended_ms = is_over(state).then(|| run.ended_ms.unwrap_or_else(now_ms));
    // The state of an interrupted run stays, because it says what the run was doing.
    let is_interrupted = state == RunState::Interrupted;
    tx.prepare_cached(
        "UPDATE runs SET state = coalesce(?, state), interrupted = ?, ended_ms = ?, reason = ?,
         metrics = ? WHERE id = ?",
    )?
    .execute(params![
        (!is_interrupted).then_some(Word(state)),
        is_interrupted,
        ended_ms,
        reason.or(run.reason),
        Json(merged(run.metrics, metrics)),
        id,
    ])?;
    Ok(())
}

fn is_over(state: RunState) -> bool {
    match state {
        RunState::Training | RunState::Gating | RunState::Interrupted => false,
        RunState::Promoted | RunState::Rejected | RunState::Failed | RunState::Cancelled => true,
    }
}

/// New keys are added, known ones replaced. Null changes nothing.
fn merged(old: Value, new: Value) -> Value {
    match (old, new) {
        (Value::Object(mut old), Value::Object(new)) => {
            old.extend(new);
            Value::Object(old)
        }
        (old, Value::Null) => old,
        (_, new) => new,
    }
}

pub(super) fn one(tx: &Transaction<'_>, id: RunId) -> Outcome<Run> {
    let mut query = tx.prepare_cached(&format!("{SELECT} WHERE id = ?"))?;
    let run = query.query_row([id], read).optional()?;
    run.ok_or(Refusal::NotFound { what: "run", id: id.0 })
}

pub(super) fn newest(tx: &Transaction<'_>, at_most: usize) -> Outcome<Vec<Run>> {
    let mut query = tx.prepare_cached(&format!("{SELECT} ORDER BY id DESC LIMIT ?"))?;
    let runs = query.query_map([limit(at_most)], read)?;
    Ok(runs.collect::<rusqlite::Result<_>>()?)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Run> {
    let state = row.get::<_, Word<_>>("state")?.0;
    Ok(Run {
        id: row.get("id")?,
        started_ms: row.get("started_ms")?,
        ended_ms: row.get("ended_ms")?,
        state: if row.get("interrupted")? { RunState::Interrupted } else { state },
        reason: row.get("reason")?,
        start: Generation(row.get("start")?),
        n_pairs: row.get::<_, Count<_>>("n_pairs")?.0,
        data_sha256: row.get("data_sha256")?,
        job: row.get::<_, Json<_>>("job")?.0,
        metrics: row.get::<_, Json<_>>("metrics")?.0,
        generation: row.get::<_, Option<u32>>("generation")?.map(Generation),
    })
}

pub(super) fn pairs(tx: &Transaction<'_>, run: RunId) -> Outcome<Vec<PairRow>> {
    one(tx, run)?;
    let mut query = tx.prepare_cached("SELECT * FROM pairs WHERE run = ? ORDER BY position")?;
    let pairs = query.query_map([run], |row| {
        Ok(PairRow {
            exchange: row.get("exchange")?,
            chosen: row.get("chosen")?,
            rejected: row.get("rejected")?,
            margin: row.get("margin")?,
        })
    })?;
    Ok(pairs.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn earlier_pairs(
    tx: &Transaction<'_>,
    agents: &[String],
    at_most: usize,
) -> Outcome<Vec<EarlierPair>> {
    // The newest record of a pair that several runs had.
    let sql = "SELECT pairs.exchange, pairs.chosen, pairs.rejected, pairs.margin, max(pairs.run),
            exchanges.messages, exchanges.prompt_tokens,
            chosen.tokens AS chosen_tokens, rejected.tokens AS rejected_tokens
        FROM pairs
            JOIN runs ON runs.id = pairs.run
            JOIN exchanges ON exchanges.id = pairs.exchange
            JOIN candidates AS chosen ON chosen.id = pairs.chosen
            LEFT JOIN candidates AS rejected ON rejected.id = pairs.rejected
        WHERE runs.state IN (?, ?) AND agent IN (SELECT value FROM json_each(?))
        GROUP BY pairs.chosen, pairs.rejected
        ORDER BY max(pairs.run) DESC, min(pairs.position) LIMIT ?";
    let mut query = tx.prepare_cached(sql)?;
    let values =
        params![Word(RunState::Promoted), Word(RunState::Rejected), Json(agents), limit(at_most)];
    let pairs = query.query_map(values, |row| {
        Ok(EarlierPair {
            row: PairRow {
                exchange: row.get("exchange")?,
                chosen: row.get("chosen")?,
                rejected: row.get("rejected")?,
                margin: row.get("margin")?,
            },
            messages: row.get::<_, Json<_>>("messages")?.0,
            prompt: row.get::<_, Tokens<_>>("prompt_tokens")?.0,
            chosen: row.get::<_, Tokens<_>>("chosen_tokens")?.0,
            rejected: row.get::<_, Option<Tokens<_>>>("rejected_tokens")?.map(|it| it.0),
        })
    })?;
    Ok(pairs.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn learned(
    tx: &Transaction<'_>,
) -> Outcome<HashSet<(Option<CandidateId>, Option<CandidateId>)>> {
    let mut query = tx.prepare_cached(
        "SELECT DISTINCT chosen, rejected FROM pairs JOIN runs ON runs.id = pairs.run
         WHERE state IN (?1, ?2) AND (state = ?1 OR metrics ->> 'adapter_sha256' IS NOT NULL)",
    )?;
    let states = params![Word(RunState::Promoted), Word(RunState::Rejected)];
    let learned = query.query_map(states, |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(learned.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn interrupt_unfinished(tx: &Transaction<'_>, reason: &str) -> Outcome<Vec<RunId>> {
    let mut update = tx.prepare_cached(
        "UPDATE runs SET interrupted = 1, reason = ?
         WHERE state IN (?, ?) AND interrupted = 0 RETURNING id",
    )?;
    let values = params![reason, Word(RunState::Training), Word(RunState::Gating)];
    let ids = update.query_map(values, |row| row.get(0))?;
    Ok(ids.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn interrupted(tx: &Transaction<'_>) -> Outcome<Vec<Run>> {
    let mut query =
        tx.prepare_cached(&format!("{SELECT} WHERE interrupted = 1 ORDER BY id DESC"))?;
    let runs = query.query_map([], read)?;
    Ok(runs.collect::<rusqlite::Result<_>>()?)
}
