//! Table `file_prompts`: prompts that files name, and the owner's examples for them.

use prompt::{VERIFIER, Verifier};
use rusqlite::{OptionalExtension as _, Transaction, params};

use super::columns::{Count, Json, Tokens};
use super::thread::Outcome;
use super::{
    CandidateId, ExampleRow, ExchangeId, FilePrompt, Kept, NewExchange, PromptCheck, TodaysCheck,
    exchanges,
};

/// Stores what is not there yet. Of a prompt that is there the example becomes what the file says now, and so do
/// reference and verifier unless it keeps them.
pub(super) fn keep(
    tx: &Transaction<'_>,
    prompts: &[FilePrompt],
) -> Outcome<Vec<(ExchangeId, Kept)>> {
    prompts.iter().map(|prompt| keep_one(tx, prompt)).collect()
}

fn keep_one(
    tx: &Transaction<'_>,
    FilePrompt { exchange, example, keeps_check }: &FilePrompt,
) -> Outcome<(ExchangeId, Kept)> {
    let sql = "SELECT exchange FROM file_prompts WHERE agent = ? AND messages = ?";
    let key = params![exchange.agent, Json(&exchange.messages)];
    let known = tx.prepare_cached(sql)?.query_row(key, |row| row.get(0)).optional()?;
    let Some(id) = known else {
        let (id, _) = exchanges::insert(tx, exchange, example.as_slice(), None)?;
        let sql = "INSERT INTO file_prompts (agent, messages, exchange) VALUES (?, ?, ?)";
        tx.prepare_cached(sql)?.execute(params![exchange.agent, Json(&exchange.messages), id])?;
        return Ok((id, Kept::New));
    };
    let mut kept = Kept::Known;
    if let Some(example) = example {
        let sql = "SELECT text FROM candidates
            WHERE exchange = ? AND author = 'owner' AND parent IS NULL AND expected IS NULL
            ORDER BY id DESC LIMIT 1";
        let newest: Option<String> =
            tx.prepare_cached(sql)?.query_row([id], |row| row.get(0)).optional()?;
        if newest.as_deref() != Some(example.text.as_str()) {
            exchanges::insert_candidates(tx, id, std::slice::from_ref(example))?;
            kept = Kept::Changed;
        }
    }
    let is_changed = !keeps_check && check(tx, id, exchange)?;
    Ok((id, if is_changed { Kept::Changed } else { kept }))
}

/// Writes how answers are checked from now on; whether that is new.
fn check(tx: &Transaction<'_>, id: ExchangeId, exchange: &NewExchange) -> Outcome<bool> {
    let sql = "UPDATE exchanges SET reference = ?2, verifier = ?3
        WHERE id = ?1 AND (reference IS NOT ?2 OR verifier IS NOT ?3)";
    let verifier = exchange.verifier.as_ref().map(Json);
    Ok(0 < tx.prepare_cached(sql)?.execute(params![id, exchange.reference, verifier])?)
}

pub(super) fn forget_other_references(tx: &Transaction<'_>, prompts: &[ExchangeId]) -> Outcome<()> {
    let prompts = Json(prompts);
    let sql = "UPDATE assessments SET is_current = 0 WHERE is_current = 1 AND candidate IN (
            SELECT candidates.id FROM json_each(?)
                JOIN exchanges ON exchanges.id = value
                JOIN candidates ON exchange = exchanges.id
            WHERE judged_reference IS NOT reference AND author = 'model')";
    tx.prepare_cached(sql)?.execute([&prompts])?;
    let sql = "UPDATE exchanges SET judged_reference = reference
        WHERE id IN (SELECT value FROM json_each(?)) AND judged_reference IS NOT reference";
    tx.prepare_cached(sql)?.execute([&prompts])?;
    Ok(())
}

pub(super) fn checked_otherwise(
    tx: &Transaction<'_>,
    today: &[TodaysCheck],
) -> Outcome<Vec<(ExchangeId, CandidateId)>> {
    let sql = "SELECT exchange, id FROM (
            SELECT exchange, candidates.id AS id, value ->> 1 AS today, value ->> 2 AS todays_weight,
                max(rubric_version) FILTER (WHERE aspect = ?2 AND is_current = 1) AS checked,
                max(weight) FILTER (WHERE aspect = ?2 AND is_current = 1) AS weight
            FROM json_each(?1)
                JOIN candidates ON exchange = value ->> 0
                LEFT JOIN assessments ON candidate = candidates.id
            WHERE (author = 'owner' AND candidates.parent IS NULL)
                OR (assessments.id IS NOT NULL AND NOT value ->> 3)
            GROUP BY candidates.id)
        WHERE checked IS NOT today OR 1e-9 < abs(weight - todays_weight) ORDER BY exchange, id";
    let today: Vec<_> = today
        .iter()
        .map(|it| (it.exchange, &it.version, it.weight, it.for_examples_alone))
        .collect();
    let mut query = tx.prepare_cached(sql)?;
    let rows =
        query.query_map(params![Json(today), VERIFIER], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn example_checks(tx: &Transaction<'_>, agent: &str) -> Outcome<Vec<PromptCheck>> {
    let sql = "SELECT id, reference, verifier FROM exchanges
        WHERE agent = ? AND id IN
            (SELECT exchange FROM candidates
                WHERE author = 'owner' AND parent IS NULL AND expected IS NOT 0)
        ORDER BY id";
    let mut query = tx.prepare_cached(sql)?;
    let rows = query.query_map([agent], |row| {
        let verifier: Option<Json<Verifier>> = row.get(2)?;
        let verifier = verifier.map(|it| it.0);
        Ok(PromptCheck { exchange: row.get(0)?, reference: row.get(1)?, verifier })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The example of each prompt of these agents, in the order of the prompts: what its verifier names, which
/// is stored only where the owner's newest is not right, and else that, unless it refuses it.
pub(super) fn examples(tx: &Transaction<'_>, agents: &[String]) -> Outcome<Vec<ExampleRow>> {
    let sql = "SELECT agent, exchanges.id AS exchange, candidates.id AS candidate, messages,
            prompt_tokens, text, tokens
        FROM candidates JOIN exchanges ON exchanges.id = candidates.exchange
        WHERE author = 'owner' AND parent IS NULL
            AND agent IN (SELECT value FROM json_each(?))
            AND candidates.id = (SELECT id FROM candidates AS first
                WHERE first.exchange = exchanges.id AND author = 'owner' AND parent IS NULL
                    AND expected IS NOT 0
                ORDER BY expected IS NULL, id DESC LIMIT 1)
            AND NOT EXISTS (SELECT 1 FROM assessments
                WHERE candidate = candidates.id AND aspect = ?2
                    AND is_current = 1 AND weight > 0 AND passes = 0)
        ORDER BY exchanges.id";
    let mut query = tx.prepare_cached(sql)?;
    let rows = query.query_map(params![Json(agents), VERIFIER], |row| {
        Ok(ExampleRow {
            agent: row.get("agent")?,
            exchange: row.get("exchange")?,
            candidate: row.get("candidate")?,
            messages: row.get::<_, Json<_>>("messages")?.0,
            prompt: row.get::<_, Tokens<_>>("prompt_tokens")?.0,
            text: row.get("text")?,
            tokens: row.get::<_, Tokens<_>>("tokens")?.0,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Prompts of these agents to which the model itself has given an answer that passes.
pub(super) fn n_solved(tx: &Transaction<'_>, agents: &[String]) -> Outcome<usize> {
    let sql = "SELECT count(DISTINCT exchange) FROM (
            SELECT exchange FROM exchanges
                JOIN candidates ON exchange = exchanges.id
                JOIN assessments ON candidate = candidates.id
            WHERE agent IN (SELECT value FROM json_each(?)) AND author = 'model'
                AND weight > 0 AND is_current = 1
            GROUP BY candidates.id HAVING min(passes) = 1)";
    let count = tx.prepare_cached(sql)?.query_row([Json(agents)], |row| row.get::<_, Count<_>>(0));
    Ok(count?.0)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, assessment, path, prompt};
    use super::super::{Author, NewCandidate, Parent, Store};
    use super::*;

    fn example(text: &str) -> FilePrompt {
        let example =
            NewCandidate { author: Author::Owner, text: text.into(), ..answer(None, vec![]) };
        FilePrompt { exchange: prompt("one"), example: Some(example), keeps_check: false }
    }

    async fn keep(store: &Store, prompt: FilePrompt) -> (ExchangeId, Kept) {
        store.keep_prompts(vec![prompt]).await.unwrap().remove(0)
    }

    #[tokio::test]
    async fn a_prompt_of_a_file_is_stored_once_and_its_newest_example_counts() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _thread) = super::super::spawn(path(folder.path())).await.unwrap();
        let practice = FilePrompt { exchange: prompt("one"), example: None, keeps_check: false };
        let (id, kept) = keep(&store, practice.clone()).await;
        assert_eq!(kept, Kept::New);
        assert_eq!(keep(&store, practice.clone()).await, (id, Kept::Known));
        assert_eq!(keep(&store, example("4")).await, (id, Kept::Changed));
        assert_eq!(keep(&store, example("4")).await, (id, Kept::Known));
        assert_eq!(keep(&store, example("four")).await, (id, Kept::Changed));
        let others = FilePrompt { exchange: prompt("two"), ..practice.clone() };
        assert_ne!(keep(&store, others).await.0, id, "agents have their own");

        let rows = store.examples(vec!["one".into(), "two".into()]).await.unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].exchange, rows[0].text.as_str()), (id, "four"));
        assert_eq!(store.examples(vec!["two".into()]).await.unwrap(), []);

        let verifier = Some(Verifier::Exact { expected: "4".into() });
        let exchange = NewExchange { reference: None, verifier: verifier.clone(), ..prompt("one") };
        assert_eq!(
            keep(&store, FilePrompt { exchange, example: None, keeps_check: false }).await,
            (id, Kept::Changed)
        );
        let stored = store.exchange(id).await.unwrap();
        assert_eq!((stored.reference, stored.verifier), (None, verifier));
        assert_eq!(stored.candidates.len(), 2, "what the owner said before stays");
    }

    #[tokio::test]
    async fn of_what_the_owner_wrote_examples_alone_are_checked_where_a_program_is_not_asked_again()
    {
        let folder = tempfile::tempdir().unwrap();
        let (store, _thread) = super::super::spawn(path(folder.path())).await.unwrap();
        let (exchange, _) = keep(&store, example("4")).await;
        let draft = answer(None, vec![assessment(VERIFIER)]);
        let ids = store.add_candidates(exchange, vec![draft]).await.unwrap();
        let parent = Some(Parent::Stored(ids[0]));
        let edit = NewCandidate {
            author: Author::Owner,
            parent,
            ..answer(None, vec![assessment(VERIFIER)])
        };
        let edit = store.add_candidates(exchange, vec![edit]).await.unwrap()[0];
        let of = |version: Option<&str>, for_examples_alone| TodaysCheck {
            exchange,
            version: version.map(str::to_owned),
            weight: 1.0,
            for_examples_alone,
        };
        let listed = async |today| store.checked_otherwise(vec![today]).await.unwrap();
        let example = store.examples(vec!["one".into()]).await.unwrap()[0].candidate;
        assert_eq!(listed(of(Some("today"), true)).await, [(exchange, example)]);
        assert_eq!(listed(of(None, true)).await, []);
        let all = [example, ids[0], edit].map(|it| (exchange, it));
        assert_eq!(listed(of(Some("today"), false)).await, all);
    }

    #[tokio::test]
    async fn what_stood_before_a_prompt_is_kept_with_the_answer() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _thread) = super::super::spawn(path(folder.path())).await.unwrap();
        let (id, _) = keep(&store, example("4")).await;
        let shown = store.examples(vec!["one".into()]).await.unwrap()[0].candidate;
        let draft = NewCandidate { shots: vec![shown], ..answer(None, vec![]) };
        store.add_candidates(id, vec![draft, answer(None, vec![])]).await.unwrap();
        let shots: Vec<_> =
            store.exchange(id).await.unwrap().candidates.into_iter().map(|it| it.shots).collect();
        assert_eq!(shots, [vec![], vec![shown], vec![]]);
    }
}
