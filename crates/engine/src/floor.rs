//! The models of one process compute one step at a time. Two teams of ggml threads on the same
//! cores only wait for each other in spin barriers, and a chat would feel it: so a step of one
//! engine waits while another has something more urgent to do, as inside one engine. Holds no
//! model. Used by `thread` and `reward`; made by `daemon`, one for all.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Class;

/// How long a step waits before its engine looks at what has come meanwhile.
const PATIENCE: Duration = Duration::from_millis(20);

/// What the engines of a process share.
#[derive(Clone, Debug, Default)]
pub struct Floor {
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
    wants: Vec<Option<Class>>,
    /// Since when a step is under way.
    taken: Option<Instant>,
    /// Who took the last step: the other one is next when both are as urgent.
    last: usize,
}

/// One engine's place.
#[derive(Debug)]
pub(super) struct Seat {
    floor: Floor,
    index: usize,
}

impl Floor {
    /// A place for one more engine.
    pub(super) fn seat(&self) -> Seat {
        let mut state = self.lock();
        state.wants.push(None);
        Seat { index: state.wants.len() - 1, floor: self.clone() }
    }

    /// How long the step has taken that is under way. One that does not end holds up all engines,
    /// and those that wait look alive.
    pub fn busy_for(&self) -> Duration {
        self.lock().taken.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A place that was taken by a thread that panicked is given back by its `Seat`.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Pure: whether engine `index` may take a step of this class now.
    fn may_step(&self, index: usize, class: Class) -> bool {
        let others = || {
            let wants = self.wants.iter().enumerate();
            wants.filter(move |(other, _)| *other != index).filter_map(|(_, wants)| *wants)
        };
        let goes_before = |other: Class| other < class || other == class && self.last == index;
        self.taken.is_none() && !others().any(goes_before)
    }
}

impl Seat {
    /// Waits for a turn. False: it did not come soon.
    pub(super) fn take(&self, class: Class) -> bool {
        let until = Instant::now() + PATIENCE;
        let mut state = self.floor.lock();
        state.wants[self.index] = Some(class);
        while !state.may_step(self.index, class) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.floor.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.taken = Some(Instant::now());
        state.last = self.index;
        true
    }

    /// Ends a step. The engine still wants to go on, until it says otherwise.
    pub(super) fn leave(&self) {
        self.floor.lock().taken = None;
        self.floor.shared.changed.notify_all();
    }

    /// Has nothing to do.
    pub(super) fn rest(&self) {
        let mut state = self.floor.lock();
        if state.wants[self.index].take().is_some() {
            self.floor.shared.changed.notify_all();
        }
    }
}

impl Drop for Seat {
    /// An engine that has ended stands in nobody's way.
    fn drop(&mut self) {
        let mut state = self.floor.lock();
        state.wants[self.index] = None;
        if state.last == self.index {
            state.taken = None;
        }
        self.floor.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_urgent_engine_goes_first_even_between_its_steps() {
        let floor = Floor::default();
        let (chats, judge) = (floor.seat(), floor.seat());
        assert!(chats.take(Class::Chat));
        assert!(!judge.take(Class::Background), "a step is under way");
        assert!(PATIENCE <= floor.busy_for());
        chats.leave();
        assert_eq!(floor.busy_for(), Duration::ZERO);
        assert!(!judge.take(Class::Background), "the chat goes on");
        chats.rest();
        assert!(judge.take(Class::Background));
        judge.leave();
    }

    #[test]
    fn engines_that_are_as_urgent_take_turns() {
        let floor = Floor::default();
        let (one, other) = (floor.seat(), floor.seat());
        assert!(one.take(Class::Explore));
        assert!(!other.take(Class::Explore), "a step is under way");
        one.leave();
        assert!(!one.take(Class::Explore), "it is the other's turn");
        assert!(other.take(Class::Explore));
        other.leave();
        assert!(one.take(Class::Explore));
        one.leave();
    }

    #[test]
    fn an_engine_that_has_ended_stands_in_nobodys_way() {
        let floor = Floor::default();
        let (ended, other) = (floor.seat(), floor.seat());
        assert!(ended.take(Class::Chat));
        drop(ended);
        assert!(other.take(Class::Explore));
        other.leave();
    }

    #[test]
    fn steps_of_two_threads_never_overlap() {
        let floor = Floor::default();
        let inside = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let seat = floor.seat();
                    let mut done = 0;
                    while done < 50 {
                        if seat.take(Class::Gate) {
                            use std::sync::atomic::Ordering::SeqCst;
                            assert_eq!(inside.fetch_add(1, SeqCst), 0);
                            std::thread::yield_now();
                            assert_eq!(inside.fetch_sub(1, SeqCst), 1);
                            seat.leave();
                            done += 1;
                        }
                    }
                });
            }
        });
    }
}
