//! A clock that excludes the time in which the process was stopped (SIGSTOP), as the daemon does while
//! somebody chats. Speed, time left and the age of a checkpoint are measured by it. Used by `train` and
//! `checkpoint`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// Precision with which a stop is measured.
const TICK: Duration = Duration::from_millis(50);

/// Time since the first call, stops excluded.
pub(crate) fn active() -> Duration {
    static BEGIN: OnceLock<(Instant, Arc<AtomicU64>)> = OnceLock::new();
    let (begin, stopped_ms) = BEGIN.get_or_init(|| {
        let stopped_ms = Arc::new(AtomicU64::new(0));
        let continued = Arc::new(AtomicBool::new(false));
        // If the handler could not be registered, stops would count as work.
        if signal_hook::flag::register(signal_hook::consts::SIGCONT, continued.clone()).is_ok() {
            let stopped_ms = stopped_ms.clone();
            thread::spawn(move || watch(&continued, &stopped_ms));
        }
        (Instant::now(), stopped_ms)
    });
    begin.elapsed().saturating_sub(Duration::from_millis(stopped_ms.load(Ordering::Relaxed)))
}

/// Time since an earlier [`active`]; zero where that one lies ahead. It does when it was taken just after
/// a stop, because the stop is excluded only a tick later.
pub(crate) fn since(earlier: Duration) -> Duration {
    active().saturating_sub(earlier)
}

/// Measures stops. SIGCONT says that the process continues, but not since when it was stopped: that is
/// the last tick. A late tick without the signal is no stop, because at idle priority a thread waits long
/// for a busy processor.
fn watch(continued: &AtomicBool, stopped_ms: &AtomicU64) {
    let (mut last, mut gap_before) = (Instant::now(), Duration::ZERO);
    loop {
        thread::sleep(TICK);
        let gap = last.elapsed();
        last += gap;
        // This thread may wake up before another one has handled the signal.
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
