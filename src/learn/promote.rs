//! A judged adapter becomes a generation, and back: promotion, the end of a canary or of a watch,
//! restoring at start, rollback, and the pruning of old files. It must not judge. Used by `run` and
//! `task`.
//!
//! The order is what makes `kill -9` harmless at every point:
//! 1. The file appears at `adapters/<generation>/` (temporary file, fsync, rename). Killed before or
//!    here: nobody refers to it, and the next promotion gets the same number and overwrites it.
//! 2. The store records generation, active mark and run in one transaction. Killed after: the next
//!    start finds the mark and the whole file, and serves them.
//! 3. The engine takes new requests on the new generation, which the gate has loaded: all, or a share of
//!    the chats while it is a canary. Running requests stay on theirs.
//! 4. The old adapter is retired when its last request has ended; old files go. Killed here: memory is
//!    gone anyway, and the next run prunes.
//!
//! A canary that takes all chats, and a drop that takes a generation back, go the same way: one
//! transaction in the store, then the engine. A start always brings the engine to what the store
//! says, a canary included.

use std::io;
use std::path::{Path, PathBuf};

use tracing::{error, info, warn};

use super::adapter::{self, AdapterError};
use super::child::Trained;
use super::live::Outlook;
use super::{LearnError, Parts};
use engine::{Canary, EngineError, Generation};
use store::{GenerationRow, RunId, StoreError, Watch, WatchState};

/// Files of reference log-probs that are kept: that of the served generation, and of those around it.
const KEEP_REFERENCES: usize = 4;
/// Run folders that are kept: data set, curves and adapter of refused runs, for the owner to look at.
const KEEP_RUNS: usize = 16;

/// Why a generation did not come to be.
#[derive(Debug, thiserror::Error)]
pub(super) enum PromoteError {
    /// The file could not be put in its place.
    #[error("install the adapter {path}: {source}")]
    Install {
        /// Where it should have gone.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// It changed on its way.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What is promoted. Its adapter is loaded.
#[derive(Debug)]
pub(super) struct Promotion<'a> {
    pub(super) run: RunId,
    pub(super) generation: Generation,
    pub(super) parent: Generation,
    pub(super) trained: &'a Trained,
    pub(super) verdict: serde_json::Value,
}

/// Makes new requests go to the new generation, or a share of the chats while it is a canary;
/// returns the share.
pub(super) async fn promote(parts: &Parts, promotion: Promotion<'_>) -> Result<f64, PromoteError> {
    let Promotion { run, generation, parent, trained, verdict } = promotion;
    let (share, is_watched) = {
        let learn = &parts.config.borrow().learn;
        (learn.canary.share, 0 < learn.watch.chats)
    };
    let is_canary = share < 1.0;
    let path = parts.state.adapter(generation.0);
    install(&trained.adapter, &path, &trained.sha256).await?;
    let row = GenerationRow {
        generation,
        run,
        parent,
        path,
        sha256: trained.sha256.clone(),
        base_sha256: parts.engine.info().sha256.clone(),
        created_ms: chrono::Utc::now().timestamp_millis(),
        active: !is_canary,
        verdict,
    };
    parts.store.promote(row, (is_canary || is_watched).then_some(share)).await?;
    if is_canary {
        if let Err(error) = parts.engine.set_canary(Some(canary(generation, share))).await {
            parts.store.go_to(parent).await?;
            return Err(error.into());
        }
        info!(generation = generation.0, run_id = %run, share, "A generation became the canary.");
        return Ok(share);
    }
    if let Err(error) = parts.engine.activate(generation).await {
        // The store must not name what nobody serves.
        parts.store.go_to(parent).await?;
        return Err(error.into());
    }
    info!(generation = generation.0, run_id = %run, "A generation was promoted.");
    retire_later(parts, parent);
    Ok(share)
}

/// The number is the seed: it is the same after a restart.
fn canary(generation: Generation, share: f64) -> Canary {
    Canary { generation, share, seed: generation.0.into() }
}

/// Does what the watch has come to. The store first: a crash between the two is mended by `restore`.
pub(super) async fn settle(
    parts: &Parts,
    watch: &Watch,
    outlook: Outlook,
) -> Result<(), PromoteError> {
    let Watch { generation, parent, state, .. } = *watch;
    let is_canary = state == WatchState::Canary;
    match outlook {
        Outlook::Open => {}
        Outlook::Passed(reason) => {
            let is_watched = 0 < parts.config.borrow().learn.watch.chats;
            let next =
                if is_canary && is_watched { WatchState::Watching } else { WatchState::Passed };
            info!(generation = generation.0, reason, "A generation holds up in live use.");
            parts.store.settle_watch(generation, next, generation, reason).await?;
            if is_canary {
                parts.engine.activate(generation).await?;
                parts.engine.set_canary(None).await?;
                retire_later(parts, parent);
            }
        }
        Outlook::Dropped(reason) => {
            let reason = format!("generation {generation} was taken back: {reason}");
            warn!(generation = generation.0, reason, "A generation is taken back.");
            let back = if is_canary { parent } else { loaded_or_base(parts, parent).await? };
            let state = WatchState::RolledBack;
            parts.store.settle_watch(generation, state, back, reason).await?;
            parts.engine.activate(back).await?;
            parts.engine.set_canary(None).await?;
            retire_later(parts, generation);
        }
    }
    Ok(())
}

/// Loads a generation to go back to; when its file is gone, it is the base.
async fn loaded_or_base(parts: &Parts, wanted: Generation) -> Result<Generation, PromoteError> {
    if wanted == Generation::BASE {
        return Ok(wanted);
    }
    let rows = parts.store.generations().await?;
    let Some(row) = rows.iter().find(|row| row.generation == wanted) else {
        return Ok(Generation::BASE);
    };
    match load(parts, row).await {
        Ok(()) => Ok(wanted),
        Err(error) => {
            warn!(generation = wanted.0, %error, "The base is served instead.");
            Ok(Generation::BASE)
        }
    }
}

/// Loads and activates what the store names as active; when that cannot be, the generation before
/// it, else the base. What is served is then what the store names. A canary goes on.
pub(super) async fn restore(parts: &Parts) -> Result<Generation, StoreError> {
    let reason = "the daemon ended during the run".to_owned();
    for run in parts.store.interrupt_unfinished_runs(reason).await? {
        warn!(run_id = %run, "A run was left unfinished; it goes on when the engine is quiet.");
    }
    let rows = parts.store.generations().await?;
    let served = restore_active(parts, &rows).await?;
    if let Some(watch) = parts.store.watch_under_way().await? {
        restore_watch(parts, &rows, &watch, served).await?;
    }
    Ok(served)
}

async fn restore_active(parts: &Parts, rows: &[GenerationRow]) -> Result<Generation, StoreError> {
    let Some(active) = rows.iter().find(|row| row.active) else { return Ok(Generation::BASE) };
    let before = rows.iter().find(|row| row.generation == active.parent);
    for row in [Some(active), before].into_iter().flatten() {
        match serve(parts, row).await {
            Ok(()) => {
                if !row.active {
                    parts.store.set_active(row.generation).await?;
                }
                return Ok(row.generation);
            }
            Err(error) => {
                warn!(generation = row.generation.0, %error, "A generation cannot be served.");
            }
        }
    }
    warn!("The base model is served, because no adapter can be.");
    parts.store.set_active(Generation::BASE).await?;
    Ok(Generation::BASE)
}

/// A watch whose generation is not served as the store says has nothing to look at.
async fn restore_watch(
    parts: &Parts,
    rows: &[GenerationRow],
    watch: &Watch,
    served: Generation,
) -> Result<(), StoreError> {
    let Watch { generation, parent, state, share, .. } = *watch;
    let fault = match (state, rows.iter().find(|row| row.generation == generation)) {
        (WatchState::Canary, Some(row)) if served == parent => match load(parts, row).await {
            Ok(()) => match parts.engine.set_canary(Some(canary(generation, share))).await {
                Ok(()) => return Ok(()),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        },
        (WatchState::Watching, _) if served == generation => return Ok(()),
        _ => format!("generation {served} is served since a restart"),
    };
    warn!(generation = generation.0, error = fault, "A watch ends.");
    parts.store.settle_watch(generation, WatchState::Ended, served, fault).await
}

/// Serves this generation from now on. The store first: a crash between the two restores the
/// owner's wish. Ends a watch, and a canary: as the new active one when it is the wish.
pub(super) async fn rollback(parts: &Parts, to: Generation) -> Result<(), LearnError> {
    let stats = parts.engine.stats();
    let (from, canary) = (stats.active, stats.canary.map(|canary| canary.generation));
    if from == to && canary.is_none() {
        return Ok(());
    }
    let refused = |error: PromoteError| LearnError::Adapter(error.to_string());
    if ![Some(Generation::BASE), Some(from), canary].contains(&Some(to)) {
        let rows = parts.store.generations().await?;
        let row = rows.iter().find(|row| row.generation == to);
        let row = row.ok_or(StoreError::NotFound { what: "generation", id: to.0.into() })?;
        load(parts, row).await.map_err(refused)?;
    }
    parts.store.go_to(to).await?;
    if let Err(error) = parts.engine.activate(to).await {
        parts.store.set_active(from).await?;
        return Err(refused(error.into()));
    }
    parts.engine.set_canary(None).await.map_err(|error| refused(error.into()))?;
    info!(generation = to.0, from = from.0, "The owner has gone to another generation.");
    for old in [Some(from), canary].into_iter().flatten().filter(|old| *old != to) {
        retire_later(parts, old);
    }
    Ok(())
}

async fn serve(parts: &Parts, row: &GenerationRow) -> Result<(), PromoteError> {
    load(parts, row).await?;
    Ok(parts.engine.activate(row.generation).await?)
}

/// Loads a generation's adapter. The file was checked in full before it was promoted, so its hash is
/// enough.
async fn load(parts: &Parts, row: &GenerationRow) -> Result<(), PromoteError> {
    let base_sha256 = &parts.engine.info().sha256;
    if row.base_sha256 != *base_sha256 {
        let reason =
            format!("it was trained for the base {}, and {base_sha256} is served", row.base_sha256);
        return Err(AdapterError::Unfit { path: row.path.clone(), reason }.into());
    }
    // An adapter that is there already drains: its last request has to end before it comes again.
    if parts.engine.stats().generations.iter().any(|(generation, _)| *generation == row.generation)
    {
        match parts.engine.retire(row.generation).await {
            Ok(()) | Err(EngineError::NotLoaded(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (path, sha256) = (row.path.clone(), row.sha256.clone());
    blocking(move || adapter::check_hash(&path, &sha256)).await?;
    Ok(parts.engine.load_adapter(row.generation, row.path.clone()).await?)
}

/// Copies the file to its place and looks whether it arrived whole.
async fn install(from: &Path, to: &Path, sha256: &str) -> Result<(), PromoteError> {
    let (from, to, sha256) = (from.to_owned(), to.to_owned(), sha256.to_owned());
    blocking(move || {
        let copy = || {
            std::fs::create_dir_all(to.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
            let mut source = std::fs::File::open(&from)?;
            files::write_atomic(&to, |target| io::copy(&mut source, target).map(drop))
        };
        copy().map_err(|source| PromoteError::Install { path: to.clone(), source })?;
        Ok(adapter::check_hash(&to, &sha256)?)
    })
    .await
}

/// Frees an adapter when its last request has ended. The base is never freed.
fn retire_later(parts: &Parts, generation: Generation) {
    if generation == Generation::BASE {
        return;
    }
    let engine = parts.engine.clone();
    tokio::spawn(async move {
        match engine.retire(generation).await {
            Ok(()) => info!(generation = generation.0, "An old adapter was freed."),
            Err(EngineError::Stopped) => {}
            Err(error) => {
                error!(generation = generation.0, %error, "An old adapter keeps its memory.");
            }
        }
    });
}

/// Removes the files of old generations and the folders of old runs. The rows stay: what was
/// learned when is worth more than its bytes. A file that cannot be removed is tried again next time.
pub(super) async fn prune(parts: &Parts) {
    let keep = parts.config.borrow().learn.keep_generations;
    let rows = match parts.store.generations().await {
        Ok(rows) => rows,
        Err(error) => {
            warn!(%error, "Old adapters are not pruned.");
            return;
        }
    };
    let mut folders: Vec<PathBuf> = expendable(&rows, keep)
        .into_iter()
        .filter_map(|generation| Some(parts.state.adapter(generation.0).parent()?.to_owned()))
        .collect();
    let (runs, references) = (parts.state.runs(), parts.state.references());
    blocking(move || {
        folders.extend(old_runs(&runs));
        for folder in folders.iter().filter(|folder| folder.exists()) {
            match std::fs::remove_dir_all(folder) {
                Ok(()) => info!(folder = %folder.display(), "An old folder was removed."),
                Err(error) => {
                    warn!(folder = %folder.display(), %error, "An old folder was not removed.");
                }
            }
        }
        for file in old_references(&references) {
            if let Err(error) = std::fs::remove_file(&file) {
                warn!(file = %file.display(), %error, "Old log-probs were not removed.");
            }
        }
    })
    .await;
}

/// All but the newest run folders. Their names begin with the time, so they sort by age.
fn old_runs(runs: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(runs) else { return Vec::new() };
    let mut folders: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.sort_unstable();
    folders.truncate(folders.len().saturating_sub(KEEP_RUNS));
    folders
}

/// All but those that were written last.
fn old_references(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let written = |entry: io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
    };
    let mut files: Vec<_> = entries.filter_map(written).collect();
    files.sort_unstable();
    files.truncate(files.len().saturating_sub(KEEP_REFERENCES));
    files.into_iter().map(|(_, path)| path).collect()
}

/// All but the newest `keep`, and never what is served or what a rollback goes back to.
fn expendable(rows: &[GenerationRow], keep: usize) -> Vec<Generation> {
    let active = rows.iter().find(|row| row.active);
    let needed = active.map(|row| [row.generation, row.parent]).unwrap_or_default();
    let mut generations: Vec<_> = rows.iter().map(|row| row.generation).collect();
    generations.sort_unstable();
    generations.truncate(generations.len().saturating_sub(keep));
    generations.retain(|generation| !needed.contains(generation));
    generations
}

/// Files are read and written where blocking is allowed.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("reading and writing files does not panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(generation: u32, parent: u32, active: bool) -> GenerationRow {
        GenerationRow {
            generation: Generation(generation),
            run: RunId(generation.into()),
            parent: Generation(parent),
            path: PathBuf::new(),
            sha256: String::new(),
            base_sha256: String::new(),
            created_ms: 0,
            active,
            verdict: serde_json::Value::Null,
        }
    }

    #[test]
    fn pruning_keeps_the_newest_the_active_one_and_its_predecessor() {
        let rows = [row(1, 0, false), row(2, 1, false), row(3, 2, true), row(4, 3, false)];
        assert_eq!(expendable(&rows, 1), [Generation(1)]);
        assert_eq!(expendable(&rows, 10), []);
        let rows = [row(1, 0, true), row(2, 1, false), row(3, 2, false)];
        assert_eq!(expendable(&rows, 0), [Generation(2), Generation(3)]);
    }

    #[test]
    fn the_newest_run_folders_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for day in 10..30 {
            std::fs::create_dir(folder.path().join(format!("202611{day}T030000.000-abc"))).unwrap();
        }
        let old = old_runs(folder.path());
        assert_eq!(old.len(), 20 - KEEP_RUNS);
        assert!(old.iter().all(|path| path.to_string_lossy().contains("2026111")));
    }

    #[test]
    fn the_reference_log_probs_that_were_written_last_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = |i: u64| folder.path().join(format!("{i}.safetensors"));
        for i in 0..6 {
            files::write_atomic(&path(i), |_| Ok(())).unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(100 - i);
            std::fs::File::options().write(true).open(path(i)).unwrap().set_modified(time).unwrap();
        }
        assert_eq!(old_references(folder.path()), [path(5), path(4)]);
        assert_eq!(old_references(&folder.path().join("none")), [] as [PathBuf; 0]);
    }

    #[test]
    fn with_the_base_active_only_the_newest_are_kept() {
        let rows = [row(1, 0, false), row(2, 1, false)];
        assert_eq!(expendable(&rows, 1), [Generation(1)]);
    }

    #[tokio::test]
    async fn an_installed_file_is_whole_and_replaces_what_a_crash_left() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("trained.gguf");
        files::write_atomic(&from, |file| io::Write::write_all(file, b"weights")).unwrap();
        let sha256 = files::sha256(&from).unwrap();
        let to = folder.path().join("adapters/1/adapter.gguf");
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        files::write_atomic(&to, |file| io::Write::write_all(file, b"left over")).unwrap();
        install(&from, &to, &sha256).await.unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), b"weights");
        install(&from, &to, "another hash").await.unwrap_err();
    }
}
