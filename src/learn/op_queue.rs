//! One long operation at a time. A wish equal to the running one joins it and gets its end; another
//! one is refused as busy. Pure bookkeeping: starting and stopping is `task`'s business.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::caller::Caller;
use super::import::Source;
use super::{Ended, JudgeTask, LearnError};
use crate::trust::Attack;

/// Which stored prompts to fill, and how far.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Exploration {
    /// Whose; `None`: those of all agents that learn.
    pub agent: Option<String>,
    /// Prompts at most.
    pub limit: usize,
    /// (n, m); `None`: the agents' own numbers.
    pub split: Option<(u32, u32)>,
    /// Also prompts that are not of the files which agents practise on.
    pub all: bool,
}

/// A long operation.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Wish {
    /// Fill stored prompts with candidates.
    Explore(Exploration),
    /// Pair, train, gate, promote, or go on with the run that was interrupted, if it still makes sense.
    Run(Caller),
    /// Explore, train, gate, promote, and again: what the schedule starts.
    Night {
        /// As of a run.
        min_new_pairs: usize,
    },
    /// Ask the judge about answers that are there.
    Judge {
        /// What for.
        task: JudgeTask,
        /// Whose judge; `None`: every agent's.
        agent: Option<String>,
        /// Answers (calibration: no limit but `trust.max_probes`) or exchanges at most.
        limit: usize,
        /// What to attack with.
        attacks: Arc<Vec<Attack>>,
    },
    /// Put an adapter that was made elsewhere on trial.
    Import(Source),
}

impl Wish {
    /// What a client who comes too late is told.
    fn busy(&self) -> &'static str {
        match self {
            Self::Explore(_) => "it explores stored prompts",
            Self::Run(_) => "a training run is under way",
            Self::Night { .. } => "it learns by its schedule",
            Self::Judge { .. } => "it measures the judge",
            Self::Import(_) => "an imported adapter is on trial",
        }
    }
    /// Whether the schedule wants it: nobody waits for its end.
    pub(super) fn is_scheduled(&self) -> bool {
        match self {
            Self::Run(caller) => caller.is_scheduled(),
            Self::Night { .. } => true,
            Self::Explore(_) | Self::Judge { .. } | Self::Import(_) => false,
        }
    }
    /// Whether the end of `running` is what this wish asks for.
    fn joins(&self, running: &Self) -> bool {
        match (self, running) {
            (Self::Run(_), Self::Run(_) | Self::Night { .. }) => true,
            _ => self == running,
        }
    }
}

/// Answers a wish with how it ended.
pub(super) type Reply = oneshot::Sender<Result<Ended, LearnError>>;

/// The operation under way and who waits for it.
#[derive(Debug, Default)]
pub(super) struct OpQueue {
    running: Option<(Wish, Vec<Reply>)>,
    /// What somebody wants who joined a resumption, should there be nothing to resume.
    instead: Option<Wish>,
}

impl OpQueue {
    /// Takes a wish; true when the caller has to start it now.
    pub(super) fn ask(&mut self, wish: Wish, reply: Option<Reply>) -> bool {
        match &mut self.running {
            None => {
                self.running = Some((wish, reply.into_iter().collect()));
                return true;
            }
            Some((running, replies)) if wish.joins(running) => {
                replies.extend(reply);
                let resumption = Wish::Run(Caller::Resumption);
                if *running == resumption && wish != resumption {
                    self.instead = Some(wish);
                }
            }
            Some((running, _)) => {
                if let Some(reply) = reply {
                    drop(reply.send(Err(LearnError::Busy(running.busy()))));
                }
            }
        }
        false
    }
    /// What is under way.
    pub(super) fn running(&self) -> Option<&Wish> {
        self.running.as_ref().map(|(wish, _)| wish)
    }
    /// The operation has come to this. What the caller has to start in its place, for the same
    /// people, because there was nothing to resume.
    pub(super) fn instead(&mut self, ended: &Ended) -> Option<Wish> {
        let wish = self.instead.take()?;
        let (running, _) = self.running.as_mut()?;
        if !matches!(ended, Ended::Failed { run: None, .. }) {
            return None;
        }
        *running = wish.clone();
        Some(wish)
    }
    /// The operation has ended: tells everyone who waits.
    pub(super) fn ended(&mut self, ended: &Ended) {
        self.instead = None;
        for reply in self.running.take().into_iter().flat_map(|(_, replies)| replies) {
            // A client that has left does not want to know.
            drop(reply.send(Ok(ended.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended() -> Ended {
        Ended::Failed { run: None, reason: "over".into() }
    }

    #[test]
    fn who_asks_for_training_joins_a_run_that_goes_on() {
        let mut queue = OpQueue::default();
        assert!(queue.ask(Wish::Run(Caller::Resumption), None));
        let (reply, mut end) = oneshot::channel();
        assert!(!queue.ask(Wish::Run(Caller::Owner), Some(reply)));
        let run = Some(store::RunId(1));
        let resumed = Ended::Failed { run, reason: "it broke".into() };
        assert_eq!(queue.instead(&resumed), None, "it was the run that was wanted");
        queue.ended(&resumed);
        assert!(matches!(end.try_recv().unwrap(), Ok(Ended::Failed { .. })));
    }

    #[test]
    fn who_joined_a_run_that_could_not_go_on_gets_a_new_one() {
        let mut queue = OpQueue::default();
        assert!(queue.ask(Wish::Run(Caller::Resumption), None));
        let (reply, mut end) = oneshot::channel();
        let train = Wish::Run(Caller::Owner);
        assert!(!queue.ask(train.clone(), Some(reply)));
        assert_eq!(queue.instead(&ended()), Some(train.clone()));
        end.try_recv().unwrap_err();
        assert_eq!(queue.running(), Some(&train));
        assert_eq!(queue.instead(&ended()), None);
        queue.ended(&ended());
        end.try_recv().unwrap().unwrap();
    }

    fn explore(limit: usize) -> Wish {
        Wish::Explore(Exploration { agent: None, limit, split: None, all: false })
    }

    #[test]
    fn an_equal_wish_joins_and_both_get_the_end() {
        let mut queue = OpQueue::default();
        let (first, mut first_end) = oneshot::channel();
        let (second, mut second_end) = oneshot::channel();
        assert!(queue.ask(Wish::Run(Caller::Schedule { min_new_pairs: 50 }), Some(first)));
        assert!(!queue.ask(Wish::Run(Caller::Owner), Some(second)));
        queue.ended(&ended());
        for end in [&mut first_end, &mut second_end] {
            assert!(matches!(end.try_recv().unwrap(), Ok(Ended::Failed { .. })));
        }
        assert_eq!(queue.running(), None);
    }

    #[test]
    fn another_wish_is_told_what_is_under_way() {
        let mut queue = OpQueue::default();
        assert!(queue.ask(explore(10), None));
        for other in [Wish::Run(Caller::Owner), explore(11)] {
            let (reply, mut end) = oneshot::channel();
            assert!(!queue.ask(other, Some(reply)));
            assert!(matches!(end.try_recv().unwrap(), Err(LearnError::Busy(_))));
        }
        assert_eq!(queue.running(), Some(&explore(10)));
    }

    #[test]
    fn after_the_end_the_next_wish_starts() {
        let mut queue = OpQueue::default();
        assert!(queue.ask(explore(10), None));
        queue.ended(&ended());
        assert!(queue.ask(Wish::Run(Caller::Owner), None));
    }
}
