//! Threads that own a model each, and how their end is noticed. Used by `thread.rs` and `reward.rs`.

use std::thread;

use tokio::sync::oneshot;

use super::EngineError;

/// Starts a thread that owns a model. Resolves with what it says when it is ready, or has failed.
pub(super) async fn own<T: Send + 'static>(
    name: &str,
    body: impl FnOnce(oneshot::Sender<Result<T, EngineError>>) + Send + 'static,
) -> Result<(T, EngineThread), EngineError> {
    let (ready, is_ready) = oneshot::channel();
    let (alive, ended) = oneshot::channel();
    let thread = thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // Dropped at the end of the thread, by a panic too.
            let _alive: oneshot::Sender<()> = alive;
            body(ready);
        })
        .map_err(|error| EngineError::Failed(format!("start the {name} thread: {error}")))?;
    let said = is_ready.await.map_err(|_| EngineError::Stopped)??;
    Ok((said, EngineThread { thread, ended }))
}

/// The thread's end, held by `daemon` alone.
#[derive(Debug)]
pub struct EngineThread {
    thread: thread::JoinHandle<()>,
    ended: oneshot::Receiver<()>,
}

impl EngineThread {
    /// Resolves when the thread has ended. While a handle exists that is a failure.
    pub async fn died(&mut self) {
        // The sender is never used: the error is the message.
        drop((&mut self.ended).await);
    }
    /// Waits for the end; drop all handles before.
    pub fn join(self) -> thread::Result<()> {
        self.thread.join()
    }
}
