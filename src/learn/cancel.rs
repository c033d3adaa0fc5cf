//! How a long operation is told to stop, and why. It stops nothing: each operation listens itself.
//! Used by `task`, which tells, and by `run`, `import` and `child`, which listen.

use tokio::sync::watch;

/// Why an operation has to stop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// The owner does not want it any more.
    Owner,
    /// The daemon ends: a training run goes on later.
    Shutdown,
}

impl std::fmt::Display for Stop {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Owner => "cancelled",
            Self::Shutdown => "the daemon was stopped",
        })
    }
}

/// Tells an operation to stop. Cloneable; dropping the other side stops it too.
#[derive(Clone, Debug)]
pub struct Cancel(watch::Receiver<Option<Stop>>);

impl Cancel {
    /// The switch and its sign.
    pub fn new() -> (watch::Sender<Option<Stop>>, Self) {
        let (switch, sign) = watch::channel(None);
        (switch, Self(sign))
    }
    /// Resolves when the operation has to stop.
    pub async fn cancelled(&mut self) -> Stop {
        let stop = self.0.wait_for(Option::is_some).await.ok().and_then(|stop| *stop);
        // An error means that the learning task has gone, which is a reason to stop as well.
        stop.unwrap_or(Stop::Shutdown)
    }
}
