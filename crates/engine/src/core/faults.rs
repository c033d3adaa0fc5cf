//! Mistakes that the simulation must find when they are planted. Nothing of it is in a release.

/// A mistake.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// A request that was cancelled goes on.
    LostCancel,
    /// A cell is counted as free twice.
    DoubleFree,
    /// A new sequence shares one token more than it has in common.
    WrongParent,
    /// A preempted sequence resumes one token early.
    ResumesEarly,
    /// An id that nobody has keeps its cells.
    LeakedId,
    /// Sequences at their last token go first, although what they follow is not evaluated.
    BeforeParent,
    /// Drafts of one answer cost another its token.
    GreedyDrafts,
    /// A failed step fails all of its requests.
    AllFail,
    /// A stalled request keeps its ids.
    StalledKeeps,
    /// What is preempted forgets its cells.
    PreemptForgets,
}

#[cfg(test)]
pub(super) use planted::{is_planted, plant};

#[cfg(not(test))]
pub(super) const fn is_planted(_: Fault) -> bool {
    false
}

#[cfg(test)]
mod planted {
    use std::cell::Cell;

    use super::Fault;

    thread_local! {
        static PLANTED: Cell<Option<Fault>> = const { Cell::new(None) };
    }

    impl Fault {
        pub(crate) const ALL: [Self; 10] = [
            Self::LostCancel,
            Self::DoubleFree,
            Self::WrongParent,
            Self::ResumesEarly,
            Self::LeakedId,
            Self::BeforeParent,
            Self::GreedyDrafts,
            Self::AllFail,
            Self::StalledKeeps,
            Self::PreemptForgets,
        ];
    }

    /// From now on, in this thread.
    pub(crate) fn plant(fault: Option<Fault>) {
        PLANTED.set(fault);
    }

    pub(crate) fn is_planted(fault: Fault) -> bool {
        PLANTED.get() == Some(fault)
    }
}
