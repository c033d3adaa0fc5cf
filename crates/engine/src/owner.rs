//! Threads that own a model each, and how their end is noticed. Used by `thread.rs` and `reward.rs`.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
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
    Ok((said, EngineThread { threads: vec![(thread, ended)] }))
}

/// The thread's end, held by `daemon` alone.
#[derive(Debug)]
pub struct EngineThread {
    /// With who hears of its end. A model with two contexts has two.
    threads: Vec<(thread::JoinHandle<()>, oneshot::Receiver<()>)>,
}

impl EngineThread {
    /// The same with one more thread.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.threads.extend(other.threads);
        self
    }
    /// Resolves when the thread has ended. While a handle exists that is a failure.
    pub async fn died(&mut self) {
        // The sender is never used: the error is the message.
        poll_fn(|context| {
            let has_ended =
                self.threads.iter_mut().any(|(_, ended)| Pin::new(ended).poll(context).is_ready());
            if has_ended { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
    /// Waits for the end; drop all handles before.
    pub fn join(self) -> thread::Result<()> {
        let ends: Vec<_> = self.threads.into_iter().map(|(thread, _)| thread.join()).collect();
        ends.into_iter().collect()
    }
}
