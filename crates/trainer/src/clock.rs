//! Time in which the process could work: the clock stands still while it is stopped (SIGSTOP) for
//! somebody who chats. Speed and time left are told by it. Used by `train` and `checkpoint`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// How exactly a stop is measured.
const TICK: Duration = Duration::from_millis(50);

/// Time since the first call, without stops.
pub(crate) fn active() -> Duration {
    static BEGIN: OnceLock<(Instant, Arc<AtomicU64>)> = OnceLock::new();
    let (begin, stopped_ms) = BEGIN.get_or_init(|| {
        let stopped_ms = Arc::new(AtomicU64::new(0));
        let continued = Arc::new(AtomicBool::new(false));
        // Without the signal (which cannot be refused to us) stops would count as work, no more.
        if signal_hook::flag::register(signal_hook::consts::SIGCONT, continued.clone()).is_ok() {
            let stopped_ms = stopped_ms.clone();
            thread::spawn(move || watch(&continued, &stopped_ms));
        }
        (Instant::now(), stopped_ms)
    });
    begin.elapsed().saturating_sub(Duration::from_millis(stopped_ms.load(Ordering::Relaxed)))
}

/// Time since an earlier [`active`]. One that was taken just after a stop may have counted it, and so
/// lie ahead: a stop is known a tick later.
pub(crate) fn since(earlier: Duration) -> Duration {
    active().saturating_sub(earlier)
}

/// The system tells that the process goes on, but not since when it stood: since the last tick.
/// A late tick alone is no stop: at idle priority a thread waits long for a busy processor.
fn watch(continued: &AtomicBool, stopped_ms: &AtomicU64) {
    let (mut last, mut gap_before) = (Instant::now(), Duration::ZERO);
    loop {
        thread::sleep(TICK);
        let gap = last.elapsed();
        last += gap;
        // This thread may wake before another one has taken the signal.
        if continued.swap(false, Ordering::Relaxed) {
            let stopped = gap.max(gap_before).saturating_sub(TICK);
            let stopped = u64::try_from(stopped.as_millis()).unwrap_or(u64::MAX);
            stopped_ms.fetch_add(stopped, Ordering::Relaxed);
            gap_before = Duration::ZERO;
        } else {
            gap_before = gap;
        }
    }
}
