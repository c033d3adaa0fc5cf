//! Notices that YAML files below the root have changed, waits until no more changes come, and
//! reports once. Decides nothing and reads nothing. Only this file names `notify`. Used by
//! `daemon`.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// Editors and `git` write several files in a row; one reload is for all of them.
const QUIET: Duration = Duration::from_millis(300);

/// The folders that hold YAML, with everything below them.
const FOLDERS: [&str; 2] = ["agents", "prompts"];

/// Why files cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The system refused.
    #[error("watch {path}; reload with SIGHUP instead")]
    Watch {
        /// What was to be watched.
        path: PathBuf,
        /// Why not.
        #[source]
        source: notify::Error,
    },
    /// No thread.
    #[error("start the watch thread")]
    Thread(#[source] std::io::Error),
}

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Watch {
    // Field order is significant: the watcher holds the sender that ends the thread.
    watcher: Option<RecommendedWatcher>,
    thread: Option<JoinHandle<()>>,
}

/// Sends a unit whenever YAML files below `root` have changed and rested for a moment.
pub fn spawn(root: &Path, changed: mpsc::Sender<()>) -> Result<Watch, WatchError> {
    // A queue of one is enough: a second change before the first is handled adds nothing.
    let (noticed, inbox) = sync_channel(1);
    let watch = |watcher: &mut RecommendedWatcher, path: &Path, mode| {
        let failed = |source| WatchError::Watch { path: path.into(), source };
        watcher.watch(path, mode).map_err(failed)
    };
    let mut watcher = notify::recommended_watcher(move |event| notice(&event, &noticed))
        .map_err(|source| WatchError::Watch { path: root.into(), source })?;
    // The folder and not the file, because editors replace the file. Not recursive, because
    // `state/` and build folders lie there too.
    watch(&mut watcher, root, RecursiveMode::NonRecursive)?;
    for folder in FOLDERS.map(|folder| root.join(folder)) {
        if folder.is_dir() {
            watch(&mut watcher, &folder, RecursiveMode::Recursive)?;
        }
    }
    let thread = thread::Builder::new()
        .name("watch".into())
        .spawn(move || run(&inbox, &changed))
        .map_err(WatchError::Thread)?;
    Ok(Watch { watcher: Some(watcher), thread: Some(thread) })
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.watcher.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed already; nothing more can be done about it
            // here.
            drop(thread.join());
        }
    }
}

/// Errors count as changes: the system lost events (or a folder), and a reload costs little.
fn notice(event: &notify::Result<notify::Event>, noticed: &SyncSender<()>) {
    let matters = match event {
        Ok(event) => {
            !matches!(event.kind, EventKind::Access(_)) && event.paths.iter().any(|it| is_yaml(it))
        }
        Err(_) => true,
    };
    if matters {
        // Full: the thread knows already. Closed: the watch ends.
        noticed.try_send(()).ok();
    }
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml")
}

fn run(inbox: &Receiver<()>, changed: &mpsc::Sender<()>) {
    while inbox.recv().is_ok() {
        loop {
            match inbox.recv_timeout(QUIET) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        // A full queue holds a change that the daemon has not looked at yet, so nothing is lost;
        // waiting for room would keep `drop` waiting for the daemon.
        if let Err(mpsc::error::TrySendError::Closed(())) = changed.try_send(()) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Far more than the debounce; only a broken watch waits so long.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn write(path: &Path, text: &str) {
        files::write_atomic(path, |file| std::io::Write::write_all(file, text.as_bytes())).unwrap();
    }

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("agents/one/aspects")).unwrap();
        root
    }

    #[tokio::test]
    async fn several_changed_files_are_one_change() {
        let root = root();
        let (changed, mut changes) = mpsc::channel(8);
        let watch = spawn(root.path(), changed).unwrap();
        for name in ["reflectd.yaml", "agents/one.yaml", "agents/one/aspects/kind.yaml"] {
            write(&root.path().join(name), "a: 1");
        }
        tokio::time::timeout(PATIENCE, changes.recv()).await.unwrap().unwrap();
        drop(watch);
        assert_eq!(changes.recv().await, None, "dropping the watch ends its thread");
    }

    #[test]
    fn only_changes_of_yaml_files_matter() {
        let told = |kind, path: &str| {
            let (noticed, inbox) = sync_channel(1);
            notice(&Ok(notify::Event::new(kind).add_path(path.into())), &noticed);
            inbox.try_recv().is_ok()
        };
        let modified = EventKind::Modify(notify::event::ModifyKind::Any);
        assert!(told(modified, "agents/nano.yaml"));
        assert!(told(EventKind::Remove(notify::event::RemoveKind::File), "agents/nano.yaml"));
        assert!(!told(modified, "agents/nano/model.gguf"));
        assert!(!told(modified, ".nano.yaml.12.tmp"));
        assert!(!told(EventKind::Access(notify::event::AccessKind::Any), "agents/nano.yaml"));
    }

    #[test]
    fn lost_events_count_as_a_change() {
        let (noticed, inbox) = sync_channel(1);
        notice(&Err(notify::Error::generic("queue overflow")), &noticed);
        inbox.try_recv().unwrap();
    }
}
