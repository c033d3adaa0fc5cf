//! How far prompts are filled with answers and judgements, counted over `exchanges`, `candidates` and
//! `assessments`. Decides nothing: whether that is enough is `reflect`'s business.

use rusqlite::{Transaction, params};

use super::columns::Count;
use super::thread::Outcome;
use super::{Filled, Unjudged};
use inference::Generation;

pub(super) fn explorable(
    tx: &Transaction<'_>,
    agent: &str,
    (n, m): (u32, u32),
    generation: Generation,
    anew: bool,
) -> Outcome<Vec<Filled>> {
    // `passes` is null of an answer of which nothing that counts was said.
    let sql = "WITH answers AS (
            SELECT exchange, parent, generation, NOT ?5 OR generation = ?4 AS counts,
                count(candidate) AS said, min(passes) FILTER (WHERE weight > 0) AS passes
            FROM exchanges JOIN candidates ON exchange = exchanges.id
                LEFT JOIN assessments ON candidate = candidates.id AND is_current = 1
            WHERE agent = ?1 AND author = 'model'
            GROUP BY candidates.id)
        SELECT exchanges.id,
            count(*) FILTER (WHERE counts AND parent IS NULL) AS drafts,
            count(*) FILTER (WHERE counts AND parent IS NOT NULL) AS refinements,
            count(*) FILTER (WHERE counts AND passes = 1) AS positives,
            count(*) FILTER (WHERE counts AND passes = 0) AS negatives,
            count(*) FILTER (WHERE counts AND passes = 0 AND parent IS NULL) AS faulty_drafts,
            count(*) FILTER (WHERE passes IS NOT NULL AND generation = ?4) AS tries,
            count(*) FILTER (WHERE said = 0) AS unjudged
        FROM exchanges LEFT JOIN answers ON answers.exchange = exchanges.id
        WHERE agent = ?1 GROUP BY exchanges.id HAVING drafts < ?2 OR refinements < ?3 OR 0 < unjudged
        ORDER BY drafts + refinements, exchanges.id";
    let mut query = tx.prepare_cached(sql)?;
    let filled = query.query_map(params![agent, n, m, generation.0, anew], |row| {
        let count = |name: &str| row.get::<_, Count<u32>>(name).map(|it| it.0);
        Ok(Filled {
            exchange: row.get(0)?,
            drafts: count("drafts")?,
            refinements: count("refinements")?,
            positives: count("positives")?,
            negatives: count("negatives")?,
            faulty_drafts: count("faulty_drafts")?,
            tries: count("tries")?,
            unjudged: count("unjudged")?,
        })
    })?;
    Ok(filled.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn unjudged(tx: &Transaction<'_>, agent: &str) -> Outcome<Unjudged> {
    let sql = "WITH prompts AS (
            SELECT aspect_choice, count(candidates.id) AS answers,
                count(*) FILTER (WHERE EXISTS (
                    SELECT 1 FROM assessments WHERE candidate = candidates.id AND is_current = 1
                )) AS judged
            FROM exchanges LEFT JOIN candidates ON exchange = exchanges.id AND author = 'model'
            WHERE agent = ? GROUP BY exchanges.id)
        SELECT coalesce(sum(answers - judged), 0) AS answers,
            count(*) FILTER (WHERE judged < answers) AS prompts,
            count(*) FILTER (WHERE judged = 0 AND aspect_choice IS NULL) AS without_choice
        FROM prompts";
    let unjudged = tx.prepare_cached(sql)?.query_row([agent], |row| {
        let count = |name: &str| row.get::<_, Count<usize>>(name).map(|it| it.0);
        Ok(Unjudged {
            answers: count("answers")?,
            prompts: count("prompts")?,
            without_choice: count("without_choice")?,
        })
    })?;
    Ok(unjudged)
}
