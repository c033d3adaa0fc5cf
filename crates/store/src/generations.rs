//! Table `generations`: the promoted adapters, of which at most one is active.

use rusqlite::{Transaction, params};

use super::columns::{Json, Word};
use super::thread::{Outcome, Refusal};
use super::{GenerationRow, RunState, runs};
use inference::Generation;

pub(super) fn next(tx: &Transaction<'_>) -> Outcome<Generation> {
    let sql = "SELECT coalesce(max(generation), 0) + 1 FROM generations";
    Ok(Generation(tx.prepare_cached(sql)?.query_row([], |row| row.get(0))?))
}

pub(super) fn promote(tx: &Transaction<'_>, row: &GenerationRow) -> Outcome<()> {
    runs::update(tx, row.run, RunState::Promoted, None, serde_json::Value::Null)?;
    tx.prepare_cached(
        "INSERT INTO generations
            (generation, run, parent, path, sha256, base_sha256, created_ms, active, verdict)
         VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?)",
    )?
    .execute(params![
        row.generation.0,
        row.run,
        row.parent.0,
        Word(&row.path),
        row.sha256,
        row.base_sha256,
        row.created_ms,
        Json(&row.verdict),
    ])?;
    tx.prepare_cached("UPDATE runs SET generation = ? WHERE id = ?")?
        .execute(params![row.generation.0, row.run])?;
    if row.active { set_active(tx, row.generation) } else { Ok(()) }
}

pub(super) fn set_active(tx: &Transaction<'_>, generation: Generation) -> Outcome<()> {
    // Two steps, because SQLite looks at the unique index after every row.
    tx.prepare_cached("UPDATE generations SET active = 0 WHERE active = 1")?.execute([])?;
    if generation == Generation::BASE {
        return Ok(());
    }
    let sql = "UPDATE generations SET active = 1 WHERE generation = ?";
    match tx.prepare_cached(sql)?.execute([generation.0])? {
        0 => Err(Refusal::NotFound { what: "generation", id: generation.0.into() }),
        _ => Ok(()),
    }
}

pub(super) fn all(tx: &Transaction<'_>) -> Outcome<Vec<GenerationRow>> {
    let mut query = tx.prepare_cached("SELECT * FROM generations ORDER BY generation")?;
    let rows = query.query_map([], |row| {
        Ok(GenerationRow {
            generation: Generation(row.get("generation")?),
            run: row.get("run")?,
            parent: Generation(row.get("parent")?),
            path: row.get::<_, Word<_>>("path")?.0,
            sha256: row.get("sha256")?,
            base_sha256: row.get("base_sha256")?,
            created_ms: row.get("created_ms")?,
            active: row.get("active")?,
            verdict: row.get::<_, Json<_>>("verdict")?.0,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
