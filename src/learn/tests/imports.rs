//! Adapters that were made elsewhere on their way to a verdict.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::*;
use crate::learn::cancel::Cancel;

/// An adapter that says nothing of its base, or what it is told to say.
fn adapter(world: &World, base_sha256: Option<&str>) -> PathBuf {
    let path = world.root().join("elsewhere.gguf");
    let mut adapter = files::lora::Adapter::read(&world.root().join("trained.gguf")).unwrap();
    adapter.base_sha256 = base_sha256.map(str::to_owned);
    adapter.alpha = 4.0;
    adapter.write("elsewhere", &path).unwrap();
    path
}

async fn import(world: &World, path: &Path, base_sha256: Option<String>) -> Ended {
    let (learner, task) = world.learner();
    let ended = learner.import(path.to_owned(), base_sha256).await.unwrap();
    learner.shutdown().await;
    task.await.unwrap();
    ended
}

#[tokio::test]
async fn an_imported_adapter_that_wins_becomes_a_generation() {
    let world = World::new(improving(), "good.sh", &[]).await;
    let ended = import(&world, &adapter(&world, None), None).await;
    let Ended::Promoted { run, generation, verdict, .. } = ended else { panic!("{ended:?}") };
    assert_eq!((generation, world.active()), (Generation(1), Generation(1)));
    assert_eq!(verdict["parity"], json!(null), "nothing was compared");
    assert_eq!(verdict["losses"], 0);
    let run = world.parts.store.run(run).await.unwrap();
    assert_eq!(
        (run.state, run.n_pairs, run.job["kind"].as_str()),
        (RunState::Promoted, 0, Some("import"))
    );
    assert!(run.metrics["tie"].as_str().unwrap().contains("nothing ties it"), "{}", run.metrics);
    assert!(run.metrics["parity"].as_str().unwrap().contains("not measured"), "{}", run.metrics);
    // The file that is served names its base, so that it can be started from.
    let row = &world.parts.store.generations().await.unwrap()[0];
    let served = files::lora::Adapter::read(&row.path).unwrap();
    assert_eq!(served.base_sha256.as_ref(), Some(&world.parts.engine.info().sha256));
}

#[tokio::test]
async fn an_imported_adapter_that_does_not_win_is_kept_as_rejected() {
    let world = World::new(standing(), "good.sh", &[]).await;
    let sha256 = world.parts.engine.info().sha256.clone();
    let ended = import(&world, &adapter(&world, None), Some(sha256)).await;
    let Ended::Rejected { run, reason, .. } = ended else { panic!("{ended:?}") };
    assert!(reason.contains("gate.margin"), "{reason}");
    assert_eq!((world.active(), world.generations()), (Generation::BASE, vec![0]));
    let run = world.parts.store.run(run).await.unwrap();
    assert!(Path::new(run.job["out"].as_str().unwrap()).join("adapter.gguf").is_file());
    assert!(run.metrics["tie"].as_str().unwrap().contains("owner says"), "{}", run.metrics);
}

#[tokio::test]
async fn what_does_not_fit_leaves_nothing_behind() {
    let world = World::new(improving(), "good.sh", &[]).await;
    let refused = async |path: &Path, base: Option<String>, word: &str| {
        let ended = import(&world, path, base).await;
        let Ended::Failed { run: None, reason } = ended else { panic!("{ended:?}") };
        assert!(reason.contains(word), "{reason}");
    };
    refused(&adapter(&world, Some("another")), None, "trained for the base another").await;
    refused(&adapter(&world, None), Some("a".repeat(64)), "said to be for").await;
    refused(&world.root().join("absent.gguf"), None, "absent.gguf").await;
    refused(world.root(), None, "adapter_config.json").await;
    refused(&world.root().join("base.gguf"), None, "general.type").await;
    let path = adapter(&world, None);
    let mut wide = files::lora::Adapter::read(&path).unwrap();
    wide.pairs.values_mut().next().unwrap().a.width = 8;
    wide.pairs.values_mut().next().unwrap().a.values.extend([0.0; 8]);
    wide.write("wide", &path).unwrap();
    refused(&path, None, "wanted [in, r]").await;

    assert_eq!(world.active(), Generation::BASE);
    assert_eq!(world.parts.store.runs(9).await.unwrap(), []);
    let runs = world.parts.state.runs();
    assert_eq!(std::fs::read_dir(runs).unwrap().count(), 0);
}

#[tokio::test]
async fn pairs_are_not_new_again_after_an_import() {
    let world = World::new(improving(), "good.sh", &[]).await;
    world.remember_some().await;
    assert!(matches!(world.train().await, Ended::Promoted { .. }));
    let ended = import(&world, &adapter(&world, None), None).await;
    assert!(matches!(ended, Ended::Promoted { generation: Generation(2), .. }), "{ended:?}");
    assert_eq!(world.parts.store.counts().await.unwrap().new_exchanges, 0);
    let (stage, _) = watch::channel(Stage::Idle);
    let (_switch, sign) = Cancel::new();
    let ended =
        super::super::run::run(&world.parts, scheduled(1), Duration::ZERO, &stage, sign).await;
    let Ended::Rejected { reason, .. } = ended else { panic!("{ended:?}") };
    assert!(reason.contains("0 of 1 new pairs"), "{reason}");
}
