//! Column `expected` of `candidates`: the answers that verifiers name whole, as examples that nobody wrote.
//! Decides nothing: what a verifier names, and whether that is needed, is `learn`'s business.

use rusqlite::{OptionalExtension as _, Transaction, params};

use super::thread::Outcome;
use super::{CandidateId, ExchangeId, NewCandidate, exchanges, require};

/// Of a prompt at most one counts. One that was named before is taken up again: what was learned from it
/// has its id.
pub(super) fn set(
    tx: &Transaction<'_>,
    exchange: ExchangeId,
    answer: Option<&NewCandidate>,
) -> Outcome<bool> {
    require::exchange(tx, exchange)?;
    let known: Option<CandidateId> = match answer {
        None => None,
        Some(answer) => {
            let sql = "SELECT id FROM candidates
                WHERE exchange = ? AND expected IS NOT NULL AND text = ?";
            let key = params![exchange, answer.text];
            tx.prepare_cached(sql)?.query_row(key, |row| row.get(0)).optional()?
        }
    };
    let sql = "UPDATE candidates SET expected = 0
        WHERE exchange = ?1 AND expected = 1 AND id IS NOT ?2";
    let withdrawn = tx.prepare_cached(sql)?.execute(params![exchange, known])?;
    let Some(answer) = answer else { return Ok(0 < withdrawn) };
    let new = match known {
        Some(_) => Vec::new(),
        None => exchanges::insert_candidates(tx, exchange, std::slice::from_ref(answer))?,
    };
    let sql = "UPDATE candidates SET expected = 1 WHERE id = ? AND expected IS NOT 1";
    let mut changed = false;
    for id in known.iter().chain(&new) {
        changed |= 0 < tx.prepare_cached(sql)?.execute([id])?;
    }
    if let Some(known) = known.filter(|_| changed) {
        exchanges::insert_assessments(tx, known, &answer.assessments)?;
    }
    Ok(changed)
}

/// The prompts of an agent that have one that counts.
pub(super) fn all(tx: &Transaction<'_>, agent: &str) -> Outcome<Vec<ExchangeId>> {
    let sql = "SELECT exchange FROM candidates JOIN exchanges ON exchanges.id = exchange
        WHERE expected = 1 AND agent = ? ORDER BY exchange";
    exchanges::ids(tx, sql, [agent])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, path, prompt};
    use super::super::{Author, Expected, FilePrompt, Store};
    use super::*;

    fn example(text: &str) -> NewCandidate {
        NewCandidate { author: Author::Owner, text: text.into(), ..answer(None, vec![]) }
    }

    async fn shown(store: &Store) -> Vec<(CandidateId, String)> {
        let rows = store.examples(vec!["one".into()]).await.unwrap();
        rows.into_iter().map(|row| (row.candidate, row.text)).collect()
    }

    #[tokio::test]
    async fn what_a_verifier_names_is_the_example_until_it_names_it_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _thread) = super::super::spawn(path(folder.path())).await.unwrap();
        let kept = FilePrompt { exchange: prompt("one"), example: None, keeps_check: false };
        let id = store.keep_prompts(vec![kept]).await.unwrap()[0].0;
        let named =
            async |text: Option<&str>| store.set_expected(id, text.map(example)).await.unwrap();
        assert!(!named(None).await, "there was none");
        assert!(named(Some("B")).await && !named(Some("B")).await);
        let first = shown(&store).await;
        assert!(named(Some("C")).await);
        assert_eq!(shown(&store).await[0].1, "C");
        // Back to what it was, which was learned from.
        assert!(named(Some("B")).await);
        assert_eq!(shown(&store).await, first);
        assert_eq!(store.expected("one".into()).await.unwrap(), [id]);
        assert_eq!(store.expected("two".into()).await.unwrap(), []);
        let candidates = store.exchange(id).await.unwrap().candidates;
        let marks: Vec<_> = candidates.iter().map(|it| (it.text.as_str(), it.expected)).collect();
        assert_eq!(marks, [("B", Some(Expected::Now)), ("C", Some(Expected::Before))]);
        assert_eq!(store.learned_prompts(vec!["one".into()]).await.unwrap().len(), 1);

        assert!(named(None).await);
        assert_eq!(shown(&store).await, []);
        assert_eq!(store.expected("one".into()).await.unwrap(), []);
        // Nothing was learned from it, so it may be set aside.
        assert_eq!(store.unlearned_prompts(vec!["one".into()]).await.unwrap().len(), 1);
        let missing = store.set_expected(ExchangeId(99), None).await;
        assert!(matches!(missing, Err(super::super::StoreError::NotFound { .. })));
    }

    #[tokio::test]
    async fn the_owners_own_example_of_the_same_text_is_another_one_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _thread) = super::super::spawn(path(folder.path())).await.unwrap();
        let kept = |text: &str| FilePrompt {
            exchange: prompt("one"),
            example: Some(example(text)),
            keeps_check: false,
        };
        let id = store.keep_prompts(vec![kept("A")]).await.unwrap()[0].0;
        store.set_expected(id, Some(example("B"))).await.unwrap();
        assert_eq!(shown(&store).await[0].1, "B", "what the verifier names comes first");
        store.keep_prompts(vec![kept("B")]).await.unwrap();
        store.set_expected(id, None).await.unwrap();
        let own = shown(&store).await.remove(0);
        let stored = store.exchange(id).await.unwrap().candidates;
        let of = |id| stored.iter().find(|it| it.id == id).unwrap();
        assert_eq!((own.1.as_str(), of(own.0).expected), ("B", None));
        // And one that was there before is not taken for what is named now.
        store.set_expected(id, Some(example("A"))).await.unwrap();
        assert_ne!(shown(&store).await[0].0, stored[0].id);
        assert_eq!(store.exchange(id).await.unwrap().candidates[0].expected, None);
    }
}
