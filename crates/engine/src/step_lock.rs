//! The models of one process compute one step at a time. Two teams of ggml threads on the same
//! cores only wait for each other in spin barriers, and a chat would feel it: so a step of one
//! engine waits while another has something more urgent to do, as inside one engine, and a step of
//! idle work that is under way is broken off. Holds no model. Used by `thread` and `reward`; made by
//! `daemon`, one for all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Priority;

/// How long a step waits before its engine looks at what has come meanwhile.
const PATIENCE: Duration = Duration::from_millis(20);

/// What the engines of a process share.
#[derive(Clone, Debug, Default)]
pub struct StepLock {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What each engine wants to do next; `None` while it has nothing to do.
    wants: Vec<Option<Priority>>,
    /// Of each engine: somebody who is waited for has come, and a step of idle work ends early. Each has its
    /// own, because it takes the signal back when it has looked, and another one may not have looked yet.
    signals: Vec<Arc<AtomicBool>>,
    /// Since when a step is under way, and of which priority.
    taken: Option<(Instant, Priority)>,
    /// Who took the last step: the other one is next when both are as urgent.
    last: usize,
}

/// One engine's place in the queue for the lock.
#[derive(Debug)]
pub(super) struct Ticket {
    lock: StepLock,
    index: usize,
    signal: Arc<AtomicBool>,
}

impl StepLock {
    /// A place for one more engine.
    pub(super) fn ticket(&self) -> Ticket {
        let mut state = self.lock();
        let signal = Arc::new(AtomicBool::new(false));
        state.wants.push(None);
        state.signals.push(Arc::clone(&signal));
        Ticket { index: state.wants.len() - 1, lock: self.clone(), signal }
    }

    /// How long the step has taken that is under way. One that does not end holds up all engines,
    /// and those that wait look alive.
    pub fn busy_for(&self) -> Duration {
        self.lock().taken.map_or(Duration::ZERO, |(since, _)| since.elapsed())
    }

    /// Ends a step of idle work early, whichever engine is in one.
    pub(super) fn interrupt(&self) {
        for signal in &self.lock().signals {
            signal.store(true, Ordering::Release);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A place that was taken by a thread that panicked is given back by its `Ticket`.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Pure: whether engine `index` may take a step of this priority now.
    fn may_step(&self, index: usize, priority: Priority) -> bool {
        let others = || {
            let wants = self.wants.iter().enumerate();
            wants.filter(move |(other, _)| *other != index).filter_map(|(_, wants)| *wants)
        };
        let goes_before =
            |other: Priority| other < priority || other == priority && self.last == index;
        self.taken.is_none() && !others().any(goes_before)
    }
}

impl Ticket {
    /// Waits for a turn. False: it did not come soon.
    pub(super) fn take(&self, priority: Priority) -> bool {
        let until = Instant::now() + PATIENCE;
        let mut state = self.lock.lock();
        state.wants[self.index] = Some(priority);
        while !state.may_step(self.index, priority) {
            if state.taken.is_some_and(|(_, other)| priority < other) {
                state.signals[state.last].store(true, Ordering::Release);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.lock.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.taken = Some((Instant::now(), priority));
        state.last = self.index;
        true
    }

    /// Looks at what has come from now on, so that only who comes later breaks off a step.
    pub(super) fn expect_nobody(&self) {
        // A swap reads the newest value: who raised it before has sent what is looked for next, and who raises
        // it later is not overwritten.
        self.signal.swap(false, Ordering::AcqRel);
    }

    /// Whether a step of idle work of this engine shall end early.
    pub(super) fn interruption(&self) -> &AtomicBool {
        &self.signal
    }

    /// Ends a step. The engine still wants to go on, until it says otherwise.
    pub(super) fn leave(&self) {
        self.lock.lock().taken = None;
        self.lock.shared.changed.notify_all();
    }

    /// Has nothing to do.
    pub(super) fn rest(&self) {
        let mut state = self.lock.lock();
        if state.wants[self.index].take().is_some() {
            self.lock.shared.changed.notify_all();
        }
    }
}

impl Drop for Ticket {
    /// An engine that has ended stands in nobody's way.
    fn drop(&mut self) {
        let mut state = self.lock.lock();
        state.wants[self.index] = None;
        if state.last == self.index {
            state.taken = None;
        }
        self.lock.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_urgent_engine_goes_first_even_between_its_steps() {
        let lock = StepLock::default();
        let (chats, judge) = (lock.ticket(), lock.ticket());
        assert!(chats.take(Priority::Chat));
        assert!(!judge.take(Priority::Background), "a step is under way");
        assert!(PATIENCE <= lock.busy_for());
        chats.leave();
        assert_eq!(lock.busy_for(), Duration::ZERO);
        assert!(!judge.take(Priority::Background), "the chat goes on");
        chats.rest();
        assert!(judge.take(Priority::Background));
        judge.leave();
    }

    #[test]
    fn engines_that_are_as_urgent_take_turns() {
        let lock = StepLock::default();
        let (one, other) = (lock.ticket(), lock.ticket());
        assert!(one.take(Priority::Explore));
        assert!(!other.take(Priority::Explore), "a step is under way");
        one.leave();
        assert!(!one.take(Priority::Explore), "it is the other's turn");
        assert!(other.take(Priority::Explore));
        other.leave();
        assert!(one.take(Priority::Explore));
        one.leave();
    }

    #[test]
    fn an_engine_that_has_ended_stands_in_nobodys_way() {
        let lock = StepLock::default();
        let (ended, other) = (lock.ticket(), lock.ticket());
        assert!(ended.take(Priority::Chat));
        drop(ended);
        assert!(other.take(Priority::Explore));
        other.leave();
    }

    fn signals(engines: &[Ticket]) -> Vec<bool> {
        engines.iter().map(|it| it.interruption().load(Ordering::Relaxed)).collect()
    }

    #[test]
    fn a_signal_is_taken_back_by_each_engine_for_itself() {
        let lock = StepLock::default();
        let engines = [lock.ticket(), lock.ticket()];
        lock.interrupt();
        engines[0].expect_nobody();
        assert_eq!(signals(&engines), [false, true]);
    }

    #[test]
    fn an_engine_that_waits_breaks_off_the_step_under_way_and_not_its_own() {
        let lock = StepLock::default();
        let engines = [lock.ticket(), lock.ticket(), lock.ticket()];
        assert!(engines[1].take(Priority::Explore));
        assert!(!engines[2].take(Priority::Explore));
        assert_eq!(signals(&engines), [false; 3], "it is as urgent");
        assert!(!engines[0].take(Priority::Gate));
        assert_eq!(signals(&engines), [false, true, false]);
        engines[1].leave();
    }

    #[test]
    fn steps_of_two_threads_never_overlap() {
        let lock = StepLock::default();
        let inside = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let ticket = lock.ticket();
                    let mut done = 0;
                    while done < 50 {
                        if ticket.take(Priority::Gate) {
                            use std::sync::atomic::Ordering::SeqCst;
                            assert_eq!(inside.fetch_add(1, SeqCst), 0);
                            std::thread::yield_now();
                            assert_eq!(inside.fetch_sub(1, SeqCst), 1);
                            ticket.leave();
                            done += 1;
                        }
                    }
                });
            }
        });
    }
}
