//! Tables `judge_reports` and `judge_bars`: how far the judge can be trusted, and where calibration
//! has put its thresholds. Also which stored answers can label a judge, and which have been judged by
//! another version of it.

use prompt::{REWARD, VERIFIER};
use rusqlite::{OptionalExtension as _, Transaction, params};

use super::columns::{Json, limit, now_ms};
use super::thread::Outcome;
use super::{ExchangeId, JudgeReport, JudgeThreshold, Standard, exchanges};

pub(super) fn insert_report(tx: &Transaction<'_>, report: &JudgeReport) -> Outcome<()> {
    tx.prepare_cached(
        "INSERT INTO judge_reports (created_ms, agent, judge, version, report, scores)
         VALUES (?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        report.created_ms,
        report.agent,
        report.judge,
        report.version,
        Json(&report.report),
        Json(&report.scores),
    ])?;
    Ok(())
}

pub(super) fn newest_report(
    tx: &Transaction<'_>,
    agent: &str,
    version: Option<(&str, &str)>,
) -> Outcome<Option<JudgeReport>> {
    let (judge, version) = version.unzip();
    let sql = "SELECT * FROM judge_reports
        WHERE agent = ?1 AND (?2 IS NULL OR judge = ?2) AND (?3 IS NULL OR version = ?3)
        ORDER BY id DESC LIMIT 1";
    let report = tx.prepare_cached(sql)?.query_row(params![agent, judge, version], |row| {
        Ok(JudgeReport {
            created_ms: row.get("created_ms")?,
            agent: row.get("agent")?,
            judge: row.get("judge")?,
            version: row.get("version")?,
            report: row.get::<_, Json<_>>("report")?.0,
            scores: row.get::<_, Json<_>>("scores")?.0,
        })
    });
    Ok(report.optional()?)
}

/// Applies the new thresholds to what the same version of a judge has judged before, in whatever
/// state an endpoint was, because the levels are stored.
pub(super) fn set_thresholds(
    tx: &Transaction<'_>,
    agent: &str,
    thresholds: &[JudgeThreshold],
) -> Outcome<()> {
    let mut insert = tx.prepare_cached(
        "INSERT OR REPLACE INTO judge_bars
            (agent, aspect, judge, rubric_version, created_ms, pass)
         VALUES (?, ?, ?, ?, ?, ?)",
    )?;
    let mut update = tx.prepare_cached(
        "UPDATE assessments SET passes = (p_plus >= ?1)
         WHERE is_current = 1 AND aspect = ?2 AND rubric_version = ?4
            AND (judge = ?3 OR judge LIKE ?3 || ' (%')
            AND candidate IN (SELECT candidates.id FROM candidates
                JOIN exchanges ON exchanges.id = candidates.exchange WHERE agent = ?5)",
    )?;
    for JudgeThreshold { standard: Standard { aspect, judge, rubric_version }, pass } in thresholds
    {
        insert.execute(params![agent, aspect, judge, rubric_version, now_ms(), pass])?;
        update.execute(params![pass, aspect, judge, rubric_version, agent])?;
    }
    Ok(())
}

pub(super) fn thresholds(tx: &Transaction<'_>, agent: &str) -> Outcome<Vec<JudgeThreshold>> {
    let sql = "SELECT * FROM judge_bars WHERE agent = ?";
    let mut query = tx.prepare_cached(sql)?;
    let rows = query.query_map([agent], |row| {
        let standard = Standard {
            aspect: row.get("aspect")?,
            judge: row.get("judge")?,
            rubric_version: row.get("rubric_version")?,
        };
        Ok(JudgeThreshold { standard, pass: row.get("pass")? })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Newest first: those that the owner has rated, or a verifier has judged.
pub(super) fn labelled(
    tx: &Transaction<'_>,
    agent: &str,
    before: ExchangeId,
    at_most: usize,
) -> Outcome<Vec<ExchangeId>> {
    let sql = "SELECT id FROM exchanges WHERE agent = ? AND id < ? AND (
            EXISTS (SELECT 1 FROM feedback WHERE exchange = exchanges.id)
            OR EXISTS (SELECT 1 FROM assessments JOIN candidates
                ON candidates.id = assessments.candidate
                WHERE candidates.exchange = exchanges.id AND is_current = 1
                    AND aspect = ?))
        ORDER BY id DESC LIMIT ?";
    exchanges::ids(tx, sql, params![agent, before, VERIFIER, limit(at_most)])
}

/// Exchanges with a candidate that lacks assessments by these standards, all of them or those
/// chosen for the prompt; oldest first.
pub(super) fn outdated(
    tx: &Transaction<'_>,
    agent: &str,
    standards: &[Standard],
    after: ExchangeId,
    at_most: usize,
) -> Outcome<Vec<ExchangeId>> {
    let sql = "SELECT DISTINCT exchange FROM candidates
        JOIN exchanges ON exchanges.id = candidates.exchange
        JOIN (SELECT candidate, count(*) AS n, sum(EXISTS (
                SELECT 1 FROM json_each(?1) WHERE value ->> 'aspect' = aspect
                    AND (value ->> 'judge' = judge OR judge LIKE value ->> 'judge' || ' (%')
                    AND value ->> 'rubric_version' = rubric_version)) AS n_present
            FROM assessments WHERE is_current = 1 AND aspect NOT IN (?5, ?6)
                AND aspect NOT LIKE ?5 || '.%'
            GROUP BY candidate) AS judged ON judged.candidate = candidates.id
        WHERE agent = ?2 AND exchange > ?3 AND (n <> n_present OR (n <> json_array_length(?1)
            AND n IS NOT json_array_length(aspect_choice, '$.chosen')))
        ORDER BY exchange LIMIT ?4";
    let named = params![Json(standards), agent, after, limit(at_most), VERIFIER, REWARD];
    exchanges::ids(tx, sql, named)
}
