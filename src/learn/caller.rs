//! Who wants a run, and what follows of that. Pure. Used by `op_queue`, `task`, `night` and `run`.

/// Who wants a run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Caller {
    /// The owner: whatever there is, is learned.
    Owner,
    /// The schedule.
    Schedule {
        /// Pairs that are newer than the last run's; fewer than these, and nothing is trained.
        min_new_pairs: usize,
    },
    /// The schedule, where a run was interrupted; no new one begins.
    Resumption,
}

impl Caller {
    /// Nobody waits for its end.
    pub(super) fn is_scheduled(self) -> bool {
        self != Self::Owner
    }
    /// Of a new run; `None`: it is no new run.
    pub(super) fn min_new_pairs(self) -> Option<usize> {
        match self {
            Self::Owner => Some(0),
            Self::Schedule { min_new_pairs } => Some(min_new_pairs),
            Self::Resumption => None,
        }
    }
}
