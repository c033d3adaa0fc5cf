//! Which generations are loaded, which one is active, which ones drain. Pure bookkeeping; the
//! engine thread loads and frees the adapters. A lane's KV is never read by another lane.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::{EngineError, Generation, Lane};

/// Told when a lane is gone.
pub(super) type Retired = oneshot::Sender<Result<(), EngineError>>;

/// All lanes.
#[derive(Debug)]
pub(super) struct Lanes {
    active: Generation,
    /// Loaded lanes; those that drain have somebody who waits for it.
    loaded: BTreeMap<Generation, Vec<Retired>>,
}

impl Lanes {
    /// Only the base.
    pub(super) fn new() -> Self {
        let loaded = BTreeMap::from([(Generation::BASE, Vec::new())]);
        Self { active: Generation::BASE, loaded }
    }

    /// New requests for [`Lane::Active`] go here.
    pub(super) fn active(&self) -> Generation {
        self.active
    }

    /// Loaded generations, also those that drain.
    pub(super) fn loaded(&self) -> impl Iterator<Item = Generation> {
        self.loaded.keys().copied()
    }

    /// Pins a new request.
    pub(super) fn resolve(&self, lane: Lane) -> Result<Generation, EngineError> {
        match lane {
            Lane::Active => Ok(self.active),
            Lane::Generation(generation) => self.open(generation),
        }
    }

    /// Whether an adapter may be loaded under this number.
    pub(super) fn check_new(&self, generation: Generation) -> Result<(), EngineError> {
        if self.loaded.contains_key(&generation) {
            return Err(EngineError::Invalid(format!("generation {generation} is loaded already")));
        }
        Ok(())
    }

    /// Its adapter is loaded now.
    pub(super) fn insert(&mut self, generation: Generation) {
        self.loaded.insert(generation, Vec::new());
    }

    /// See [`super::Engine::activate`].
    pub(super) fn activate(&mut self, generation: Generation) -> Result<(), EngineError> {
        self.active = self.open(generation)?;
        Ok(())
    }

    /// Lets a lane drain; `done` hears when it is gone, or at once when it cannot go.
    pub(super) fn retire(&mut self, generation: Generation, done: Retired) {
        let refused = if generation == Generation::BASE || generation == self.active {
            Some(EngineError::Invalid(format!(
                "generation {generation} is the {} and cannot be retired",
                if generation == Generation::BASE { "base" } else { "active one" }
            )))
        } else {
            None
        };
        match (refused, self.loaded.get_mut(&generation)) {
            (None, Some(waiting)) => waiting.push(done),
            (None, None) => drop(done.send(Err(EngineError::NoLane(generation)))),
            (Some(error), _) => drop(done.send(Err(error))),
        }
    }

    /// Takes out the lanes that drain and have no request left.
    pub(super) fn take_drained(
        &mut self,
        in_use: impl Fn(Generation) -> bool,
    ) -> Vec<(Generation, Vec<Retired>)> {
        self.loaded.extract_if(.., |g, waiting| !waiting.is_empty() && !in_use(*g)).collect()
    }

    fn open(&self, generation: Generation) -> Result<Generation, EngineError> {
        match self.loaded.get(&generation) {
            Some(waiting) if waiting.is_empty() => Ok(generation),
            _ => Err(EngineError::NoLane(generation)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draining_lane_takes_no_requests_and_goes_when_its_last_one_has_ended() {
        let mut lanes = Lanes::new();
        let old = Generation(1);
        lanes.insert(old);
        lanes.activate(old).unwrap();
        lanes.insert(Generation(2));
        lanes.activate(Generation(2)).unwrap();
        let (done, _waits) = oneshot::channel();
        lanes.retire(old, done);
        assert_eq!(lanes.resolve(Lane::Generation(old)), Err(EngineError::NoLane(old)));
        assert_eq!(lanes.resolve(Lane::Active), Ok(Generation(2)));
        assert_eq!(lanes.activate(old), Err(EngineError::NoLane(old)));
        assert!(lanes.take_drained(|generation| generation == old).is_empty());
        assert_eq!(lanes.take_drained(|_| false).len(), 1);
        assert_eq!(lanes.loaded().collect::<Vec<_>>(), [Generation::BASE, Generation(2)]);
    }

    #[test]
    fn the_base_and_the_active_lane_cannot_be_retired() {
        let mut lanes = Lanes::new();
        lanes.insert(Generation(1));
        lanes.activate(Generation(1)).unwrap();
        for generation in [Generation::BASE, Generation(1)] {
            let (done, mut answer) = oneshot::channel();
            lanes.retire(generation, done);
            assert!(matches!(answer.try_recv().unwrap(), Err(EngineError::Invalid(_))));
        }
        assert!(lanes.take_drained(|_| false).is_empty());
    }
}
