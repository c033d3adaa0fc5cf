//! What systemd is told, and when. Without systemd every notification does nothing. Used by
//! `daemon`; nothing else knows systemd.

use std::future;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{self, Interval, MissedTickBehavior};
use tracing::warn;

use engine::EngineStats;

/// The socket answers; also the end of a reload.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// A reload begins. The unit is shown as reloading until [`ready`].
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => warn!(%error, "Could not read the clock for systemd."),
    }
}

/// The daemon is ending.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(words: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(words) {
        warn!(%error, "Could not tell systemd.");
    }
}

/// Tells systemd that the engine's loop goes round. When it does not, systemd restarts us: a loop
/// that hangs inside llama.cpp cannot be ended from within.
#[derive(Debug)]
pub(super) struct Watchdog {
    /// `None`: systemd does not watch us.
    interval: Option<Interval>,
    patience: Duration,
}

impl Watchdog {
    /// As systemd wants it.
    pub(super) fn new() -> Self {
        let patience = sd_notify::watchdog_enabled().unwrap_or_default();
        let interval = (!patience.is_zero()).then(|| {
            // Twice as often as systemd requires, so that one late notification does not make it
            // kill the daemon.
            let mut interval = time::interval(patience / 2);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        Self { interval, patience }
    }

    /// Resolves when the next notification is due.
    pub(super) async fn due(&mut self) {
        match &mut self.interval {
            Some(interval) => drop(interval.tick().await),
            None => future::pending().await,
        }
    }

    /// Notifies systemd if the engine's loop has run lately.
    pub(super) fn report(&self, stats: &EngineStats) {
        if Duration::from_millis(stats.last_beat_ms) < self.patience {
            tell(&[NotifyState::Watchdog]);
        } else {
            warn!(last_beat_ms = stats.last_beat_ms, "The engine's loop does not go round.");
        }
    }
}
