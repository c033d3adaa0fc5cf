//! Tables `exchanges`, `candidates` and `assessments`: one prompt with everything made of it.

use rusqlite::{OptionalExtension as _, Row, Transaction, params};

use super::columns::{Json, Logprobs, Tokens, Word, limit, now_ms};
use super::thread::{Outcome, Refusal};
use super::{
    Assessment, Candidate, CandidateId, ChosenAspects, Exchange, ExchangeId, Expected,
    NewCandidate, NewExchange, Parent, feedback, require,
};
use inference::Generation;

pub(super) fn insert(
    tx: &Transaction<'_>,
    exchange: &NewExchange,
    candidates: &[NewCandidate],
    served: Option<usize>,
) -> Outcome<(ExchangeId, Vec<CandidateId>)> {
    tx.prepare_cached(
        "INSERT INTO exchanges
            (created_ms, agent, source, messages, prompt_tokens, reference, judged_reference,
             verifier, aspect_choice)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7, ?8)",
    )?
    .execute(params![
        now_ms(),
        exchange.agent,
        Word(exchange.source),
        Json(&exchange.messages),
        Tokens(exchange.prompt_tokens.as_slice()),
        exchange.reference,
        exchange.verifier.as_ref().map(Json),
        exchange.aspect_choice.as_ref().map(Json),
    ])?;
    let id = ExchangeId(tx.last_insert_rowid());
    let candidates = insert_candidates(tx, id, candidates)?;
    if let Some(index) = served {
        let served = at(&candidates, index)?;
        tx.prepare_cached("UPDATE exchanges SET served = ? WHERE id = ?")?
            .execute(params![served, id])?;
    }
    Ok((id, candidates))
}

pub(super) fn set_aspect_choice(
    tx: &Transaction<'_>,
    exchange: ExchangeId,
    choice: &ChosenAspects,
) -> Outcome<()> {
    require::exchange(tx, exchange)?;
    let sql = "UPDATE exchanges SET aspect_choice = ? WHERE id = ?";
    tx.prepare_cached(sql)?.execute(params![Json(choice), exchange])?;
    Ok(())
}

pub(super) fn insert_candidates(
    tx: &Transaction<'_>,
    exchange: ExchangeId,
    candidates: &[NewCandidate],
) -> Outcome<Vec<CandidateId>> {
    require::exchange(tx, exchange)?;
    let mut ids = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let parent = match candidate.parent {
            None => None,
            Some(Parent::Index(index)) => Some(at(&ids, index)?),
            Some(Parent::Stored(id)) => {
                require::candidate(tx, exchange, id)?;
                Some(id)
            }
        };
        tx.prepare_cached(
            "INSERT INTO candidates
                (exchange, created_ms, author, parent, generation, text, tokens, logprobs, sampling,
                 finish, critique, critic, shots)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            exchange,
            now_ms(),
            Word(candidate.author),
            parent,
            candidate.generation.0,
            candidate.text,
            Tokens(candidate.tokens.as_slice()),
            Logprobs(candidate.logprobs.as_slice()),
            Json(candidate.sampling),
            Word(candidate.finish),
            candidate.critique,
            candidate.critic.map(Word),
            (!candidate.shots.is_empty()).then_some(Json(&candidate.shots)),
        ])?;
        let id = CandidateId(tx.last_insert_rowid());
        put_assessments(tx, id, &candidate.assessments)?;
        ids.push(id);
    }
    Ok(ids)
}

/// The candidate at a position that the caller gave.
fn at(ids: &[CandidateId], index: usize) -> Outcome<CandidateId> {
    let missing = Refusal::NotFound { what: "candidate", id: limit(index) };
    ids.get(index).copied().ok_or(missing)
}

pub(super) fn insert_assessments(
    tx: &Transaction<'_>,
    candidate: CandidateId,
    assessments: &[Assessment],
) -> Outcome<()> {
    if !tx.prepare_cached("SELECT 1 FROM candidates WHERE id = ?")?.exists([candidate])? {
        return Err(Refusal::NotFound { what: "candidate", id: candidate.0 });
    }
    put_assessments(tx, candidate, assessments)
}

/// What was said of these candidates before no longer counts, but stays.
pub(super) fn replace_assessments(
    tx: &Transaction<'_>,
    judged: &[(CandidateId, Vec<Assessment>)],
) -> Outcome<()> {
    let sql = "UPDATE assessments SET is_current = 0 WHERE candidate = ? AND is_current = 1";
    let mut retire = tx.prepare_cached(sql)?;
    for (candidate, assessments) in judged {
        retire.execute([candidate])?;
        insert_assessments(tx, *candidate, assessments)?;
    }
    Ok(())
}

fn put_assessments(
    tx: &Transaction<'_>,
    candidate: CandidateId,
    assessments: &[Assessment],
) -> Outcome<()> {
    let mut retire = tx.prepare_cached(
        "UPDATE assessments SET is_current = 0
         WHERE candidate = ? AND aspect = ? AND is_current = 1",
    )?;
    let mut insert = tx.prepare_cached(
        "INSERT INTO assessments
            (candidate, created_ms, aspect, rubric_version, judge, p_minus, p_zero, p_plus, mass,
             weight, passes, reason, is_current)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)",
    )?;
    for it in assessments {
        let [p_minus, p_zero, p_plus] = it.levels;
        retire.execute(params![candidate, it.aspect])?;
        insert.execute(params![
            candidate,
            now_ms(),
            it.aspect,
            it.rubric_version,
            it.judge,
            p_minus,
            p_zero,
            p_plus,
            it.mass,
            it.weight,
            it.passes,
            it.reason,
        ])?;
    }
    Ok(())
}

/// Everything that was ever said of a candidate, oldest first.
pub(super) fn history(tx: &Transaction<'_>, candidate: CandidateId) -> Outcome<Vec<Assessment>> {
    let sql = "SELECT * FROM assessments WHERE candidate = ? ORDER BY id";
    let mut query = tx.prepare_cached(sql)?;
    let rows = query.query_map([candidate], read_assessment)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn one(tx: &Transaction<'_>, id: ExchangeId) -> Outcome<Exchange> {
    let sql = "SELECT * FROM exchanges WHERE id = ?";
    let exchange = tx.prepare_cached(sql)?.query_row([id], read_exchange).optional()?;
    let mut exchange = exchange.ok_or_else(|| require::no_exchange(id))?;
    let sql = "SELECT * FROM candidates WHERE exchange = ? ORDER BY id";
    exchange.candidates = tx
        .prepare_cached(sql)?
        .query_map([id], read_candidate)?
        .collect::<rusqlite::Result<_>>()?;
    for candidate in &mut exchange.candidates {
        let sql = "SELECT * FROM assessments WHERE candidate = ? AND is_current = 1 ORDER BY id";
        candidate.assessments = tx
            .prepare_cached(sql)?
            .query_map([candidate.id], read_assessment)?
            .collect::<rusqlite::Result<_>>()?;
    }
    exchange.feedback = feedback::of(tx, id)?;
    Ok(exchange)
}

fn read_exchange(row: &Row<'_>) -> rusqlite::Result<Exchange> {
    Ok(Exchange {
        id: row.get("id")?,
        created_ms: row.get("created_ms")?,
        agent: row.get("agent")?,
        source: row.get::<_, Word<_>>("source")?.0,
        messages: row.get::<_, Json<_>>("messages")?.0,
        prompt_tokens: row.get::<_, Tokens<_>>("prompt_tokens")?.0,
        reference: row.get("reference")?,
        verifier: row.get::<_, Option<Json<_>>>("verifier")?.map(|it| it.0),
        aspect_choice: row.get::<_, Option<Json<_>>>("aspect_choice")?.map(|it| it.0),
        served: row.get("served")?,
        candidates: Vec::new(),
        feedback: Vec::new(),
    })
}

fn read_candidate(row: &Row<'_>) -> rusqlite::Result<Candidate> {
    Ok(Candidate {
        id: row.get("id")?,
        author: row.get::<_, Word<_>>("author")?.0,
        parent: row.get("parent")?,
        generation: Generation(row.get("generation")?),
        text: row.get("text")?,
        tokens: row.get::<_, Tokens<_>>("tokens")?.0,
        logprobs: row.get::<_, Logprobs<_>>("logprobs")?.0,
        sampling: row.get::<_, Json<_>>("sampling")?.0,
        finish: row.get::<_, Word<_>>("finish")?.0,
        critique: row.get("critique")?,
        critic: row.get::<_, Option<Word<_>>>("critic")?.map(|it| it.0),
        shots: row.get::<_, Option<Json<_>>>("shots")?.map(|it| it.0).unwrap_or_default(),
        expected: row
            .get::<_, Option<bool>>("expected")?
            .map(|counts| if counts { Expected::Now } else { Expected::Before }),
        assessments: Vec::new(),
    })
}

fn read_assessment(row: &Row<'_>) -> rusqlite::Result<Assessment> {
    Ok(Assessment {
        aspect: row.get("aspect")?,
        rubric_version: row.get("rubric_version")?,
        judge: row.get("judge")?,
        levels: [row.get("p_minus")?, row.get("p_zero")?, row.get("p_plus")?],
        mass: row.get("mass")?,
        weight: row.get("weight")?,
        passes: row.get("passes")?,
        reason: row.get("reason")?,
    })
}

pub(super) fn newest(
    tx: &Transaction<'_>,
    before: Option<ExchangeId>,
    at_most: usize,
) -> Outcome<Vec<Exchange>> {
    let sql = "SELECT id FROM exchanges WHERE id < ? ORDER BY id DESC LIMIT ?";
    let before = before.unwrap_or(ExchangeId(i64::MAX));
    all_of(tx, &ids(tx, sql, params![before, limit(at_most)])?)
}

pub(super) fn learnable(
    tx: &Transaction<'_>,
    agents: &[String],
    after: Option<ExchangeId>,
    at_most: usize,
) -> Outcome<Vec<Exchange>> {
    let sql = "SELECT id FROM exchanges
        WHERE agent IN (SELECT value FROM json_each(?)) AND id > ? AND (
            EXISTS (SELECT 1 FROM feedback WHERE exchange = exchanges.id)
            OR EXISTS (SELECT 1 FROM candidates JOIN assessments ON candidate = candidates.id
                WHERE exchange = exchanges.id AND is_current = 1))
        ORDER BY id LIMIT ?";
    let after = after.unwrap_or(ExchangeId(0));
    all_of(tx, &ids(tx, sql, params![Json(agents), after, limit(at_most)])?)
}

pub(super) fn ids(
    tx: &Transaction<'_>,
    sql: &str,
    values: impl rusqlite::Params,
) -> Outcome<Vec<ExchangeId>> {
    let mut query = tx.prepare_cached(sql)?;
    let ids = query.query_map(values, |row| row.get(0))?;
    Ok(ids.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn all_of(tx: &Transaction<'_>, ids: &[ExchangeId]) -> Outcome<Vec<Exchange>> {
    ids.iter().map(|&id| one(tx, id)).collect()
}
