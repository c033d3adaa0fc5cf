//! Table `evaluations`: what was answered to the held-out prompts of a gate.

use rusqlite::{Transaction, params};

use super::thread::Outcome;
use super::{Evaluation, RunId, runs};

pub(super) fn insert(tx: &Transaction<'_>, evaluations: &[Evaluation]) -> Outcome<()> {
    let mut insert = tx.prepare_cached(
        "INSERT INTO evaluations (run, candidate, agent, general, prompt_id, text, score, verified)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    for it in evaluations {
        insert.execute(params![
            it.run,
            it.candidate,
            it.agent,
            it.general,
            it.prompt_id,
            it.text,
            it.score,
            it.verified,
        ])?;
    }
    Ok(())
}

/// A gate that was interrupted asks everything again.
pub(super) fn forget(tx: &Transaction<'_>, run: RunId) -> Outcome<()> {
    tx.prepare_cached("DELETE FROM evaluations WHERE run = ?")?.execute([run])?;
    Ok(())
}

pub(super) fn of(tx: &Transaction<'_>, run: RunId) -> Outcome<Vec<Evaluation>> {
    runs::one(tx, run)?;
    let mut query = tx.prepare_cached("SELECT * FROM evaluations WHERE run = ? ORDER BY id")?;
    let rows = query.query_map([run], |row| {
        Ok(Evaluation {
            run: row.get("run")?,
            candidate: row.get("candidate")?,
            agent: row.get("agent")?,
            general: row.get("general")?,
            prompt_id: row.get("prompt_id")?,
            text: row.get("text")?,
            score: row.get("score")?,
            verified: row.get("verified")?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
