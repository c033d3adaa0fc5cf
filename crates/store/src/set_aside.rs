//! Table `set_aside`: prompts that were taken out of training for good, so that they measure what is
//! learned. Decides nothing: which ones is `learn`'s business.

use rusqlite::{Transaction, params};

use super::columns::{Json, now_ms};
use super::exchanges::{all_of, ids};
use super::thread::Outcome;
use super::{Exchange, ExchangeId, require};
use prompt::Message;

pub(super) fn insert(tx: &Transaction<'_>, exchanges: &[ExchangeId]) -> Outcome<()> {
    let sql = "INSERT OR IGNORE INTO set_aside (exchange, created_ms) VALUES (?, ?)";
    for &exchange in exchanges {
        require::exchange(tx, exchange)?;
        tx.prepare_cached(sql)?.execute(params![exchange, now_ms()])?;
    }
    Ok(())
}

/// With all that is known of them, oldest prompts first.
pub(super) fn all(tx: &Transaction<'_>) -> Outcome<Vec<Exchange>> {
    all_of(tx, &ids(tx, "SELECT exchange FROM set_aside ORDER BY exchange", [])?)
}

/// What these agents were asked, oldest first, and the model has not learned from: no run has, and
/// there is no example.
pub(super) fn unlearned(
    tx: &Transaction<'_>,
    agents: &[String],
) -> Outcome<Vec<(ExchangeId, Vec<Message>)>> {
    messages(tx, agents, "NOT IN")
}

/// What these agents were asked and the model has learned from, or is to learn from as an example.
pub(super) fn learned(
    tx: &Transaction<'_>,
    agents: &[String],
) -> Outcome<Vec<(ExchangeId, Vec<Message>)>> {
    messages(tx, agents, "IN")
}

fn messages(
    tx: &Transaction<'_>,
    agents: &[String],
    operator: &str,
) -> Outcome<Vec<(ExchangeId, Vec<Message>)>> {
    let sql = format!(
        "SELECT id, messages FROM exchanges
        WHERE agent IN (SELECT value FROM json_each(?)) AND id {operator} (
            SELECT exchange FROM pairs
            UNION SELECT exchange FROM candidates
                WHERE author = 'owner' AND parent IS NULL AND expected IS NOT 0)
        ORDER BY id"
    );
    let mut query = tx.prepare_cached(&sql)?;
    let rows =
        query.query_map([Json(agents)], |row| Ok((row.get(0)?, row.get::<_, Json<_>>(1)?.0)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, path, prompt};
    use super::super::{Author, FilePrompt, NewCandidate, PairRow};
    use super::*;
    use inference::Generation;

    #[tokio::test]
    async fn what_is_set_aside_stays_and_what_was_learned_from_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let (store, thread) = super::super::spawn(path(folder.path())).await.unwrap();
        let mut found = Vec::new();
        for agent in ["one", "one", "two"] {
            let answers = vec![answer(None, vec![])];
            found.push(store.record_exchange(prompt(agent), answers, None).await.unwrap());
        }
        let example = NewCandidate { author: Author::Owner, ..answer(None, vec![]) };
        let kept =
            FilePrompt { exchange: prompt("one"), example: Some(example), keeps_check: false };
        let example = store.keep_prompts(vec![kept]).await.unwrap()[0].0;
        let (first, candidates) = &found[0];
        let pair =
            PairRow { exchange: *first, chosen: Some(candidates[0]), rejected: None, margin: 0.0 };
        let job = serde_json::json!({});
        store.start_run(Generation::BASE, "ab".into(), job, vec![pair]).await.unwrap();
        let ids = |rows: Vec<(ExchangeId, Vec<Message>)>| -> Vec<ExchangeId> {
            rows.into_iter().map(|row| row.0).collect()
        };
        let agents = || vec!["one".to_owned()];
        assert_eq!(ids(store.learned_prompts(agents()).await.unwrap()), [*first, example]);
        assert_eq!(ids(store.unlearned_prompts(agents()).await.unwrap()), [found[1].0]);

        store.set_aside(vec![found[1].0, found[2].0]).await.unwrap();
        store.set_aside(vec![found[1].0]).await.unwrap();
        store.set_aside(vec![found[1].0, ExchangeId(99)]).await.unwrap_err();
        drop(store);
        tokio::task::spawn_blocking(|| thread.join()).await.unwrap().unwrap();
        let (store, _thread) = super::super::spawn(path(folder.path())).await.unwrap();
        let aside: Vec<_> =
            store.all_set_aside().await.unwrap().into_iter().map(|it| it.id).collect();
        assert_eq!(aside, [found[1].0, found[2].0]);
    }
}
