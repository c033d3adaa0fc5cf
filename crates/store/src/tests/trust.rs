//! What the judge is measured by: thresholds, reports, and exchanges with labels.

use super::*;

#[tokio::test]
async fn calibrated_thresholds_hold_for_what_the_same_version_has_judged() {
    let Scratch { store, .. } = &Scratch::new().await;
    let (id, _) = record(store, "one").await;
    let (other, _) = record(store, "two").await;
    let threshold = |standard: Standard, pass| JudgeThreshold { standard, pass };
    let kind = assessment("kind").standard();
    let foreign = Standard { judge: "another".into(), ..assessment("true").standard() };
    let thresholds = vec![threshold(kind.clone(), 0.8), threshold(foreign, 0.9)];
    store.set_judge_thresholds("one".into(), thresholds).await.unwrap();
    let passes = async |id| {
        let found = store.exchange(id).await.unwrap().candidates.remove(0).assessments;
        found.into_iter().map(|it| (it.aspect, it.passes)).collect::<Vec<_>>()
    };
    assert_eq!(passes(id).await, [("kind".into(), false), ("true".into(), true)]);
    assert_eq!(passes(other).await, [("kind".into(), true), ("true".into(), true)]);
    store.set_judge_thresholds("one".into(), vec![threshold(kind.clone(), 0.5)]).await.unwrap();
    assert_eq!(passes(id).await[0], ("kind".into(), true));
    let kept = store.judge_thresholds("one".into()).await.unwrap();
    assert!(kept.contains(&threshold(kind, 0.5)) && kept.len() == 2, "{kept:?}");
    assert_eq!(store.judge_thresholds("two".into()).await.unwrap(), []);
}

#[tokio::test]
async fn reports_are_found_by_the_version_that_they_measured() {
    let Scratch { store, .. } = &Scratch::new().await;
    let report = |version: &str, n: u32| JudgeReport {
        created_ms: 1,
        agent: "one".into(),
        judge: "j".into(),
        version: version.into(),
        report: json!({ "n": n }),
        scores: json!({}),
    };
    for (version, n) in [("a", 1), ("a", 2), ("b", 3)] {
        store.add_judge_report(report(version, n)).await.unwrap();
    }
    let of = async |version: Option<&str>| {
        let version = version.map(|version| ("j".to_owned(), version.to_owned()));
        store.judge_report("one".into(), version).await.unwrap()
    };
    assert_eq!(of(Some("a")).await, Some(report("a", 2)));
    assert_eq!(of(None).await, Some(report("b", 3)));
    assert_eq!(of(Some("c")).await, None);
    assert_eq!(store.judge_report("two".into(), None).await.unwrap(), None);
}

#[tokio::test]
async fn exchanges_to_label_with_and_to_judge_again_are_found() {
    let Scratch { store, .. } = &Scratch::new().await;
    let (plain, _) = record(store, "one").await;
    let (rated, _) = record(store, "one").await;
    let verified = vec![answer(None, vec![assessment("kind"), assessment("verifier")])];
    let (verified, _) = store.record_exchange(prompt("one"), verified, None).await.unwrap();
    let feedback =
        Feedback { exchange: rated, candidate: None, rating: Some(1), aspect: None, edit: None };
    store.add_feedback(feedback).await.unwrap();
    let labelled = async |before| store.labelled("one".into(), before, 10).await.unwrap();
    assert_eq!(labelled(None).await, [verified, rated]);
    assert_eq!(labelled(Some(verified)).await, [rated]);

    let outdated = async |standards: &[Standard]| {
        store.outdated("one".into(), standards.to_vec(), None, 10).await.unwrap()
    };
    let (kind, truth) = (assessment("kind").standard(), assessment("true").standard());
    // Neither verifier nor owner has labelled the second draft of the first two.
    assert_eq!(outdated(&[kind.clone(), truth.clone()]).await, [plain, rated, verified]);
    assert_eq!(outdated(std::slice::from_ref(&kind)).await, [plain, rated]);
    let newer = Standard { rubric_version: "2".into(), ..kind };
    assert_eq!(outdated(&[newer]).await, [plain, rated, verified]);
    assert_eq!(store.outdated("two".into(), vec![truth], None, 10).await.unwrap(), []);
}
