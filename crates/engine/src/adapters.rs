//! Which generations are loaded, which one is active, which one tries itself on a share of the chats
//! (the canary), which ones drain. Pure bookkeeping; the engine thread loads and frees the adapters.
//! Cells of one generation are never read by another.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::{Canary, Class, EngineError, Generation, Lane};

/// Told when a lane is gone.
pub(super) type Retired = oneshot::Sender<Result<(), EngineError>>;

/// All lanes.
#[derive(Debug)]
pub(super) struct Lanes {
    active: Generation,
    /// Loaded lanes; those that drain have somebody who waits for it.
    loaded: BTreeMap<Generation, Vec<Retired>>,
    /// With the stream of its choices.
    canary: Option<(Canary, fastrand::Rng)>,
}

impl Lanes {
    /// Only the base.
    pub(super) fn new() -> Self {
        let loaded = BTreeMap::from([(Generation::BASE, Vec::new())]);
        Self { active: Generation::BASE, loaded, canary: None }
    }

    /// New requests for [`Lane::Active`] go here.
    pub(super) fn active(&self) -> Generation {
        self.active
    }

    /// The canary, if there is one.
    pub(super) fn canary(&self) -> Option<Canary> {
        self.canary.as_ref().map(|(canary, _)| *canary)
    }

    /// See [`super::Engine::set_canary`].
    pub(super) fn set_canary(&mut self, canary: Option<Canary>) -> Result<(), EngineError> {
        if let Some(canary) = canary {
            self.open(canary.generation)?;
        }
        self.canary = canary.map(|canary| (canary, fastrand::Rng::with_seed(canary.seed)));
        Ok(())
    }

    /// A share of what somebody waits for goes to the canary; idle work never does.
    pub(super) fn choose(&mut self, lane: Lane, class: Class) -> Lane {
        let Some((canary, random)) = &mut self.canary else { return lane };
        let is_tried = match (lane, class) {
            (Lane::Active, Class::Chat | Class::Inline) => random.f64() < canary.share,
            _ => false,
        };
        if is_tried { Lane::Generation(canary.generation) } else { lane }
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
        let role = match generation {
            Generation::BASE => Some("base"),
            _ if generation == self.active => Some("active one"),
            _ if self.canary().is_some_and(|it| it.generation == generation) => Some("canary"),
            _ => None,
        };
        let refused = role.map(|role| {
            let fault = format!("generation {generation} is the {role} and cannot be retired");
            EngineError::Invalid(fault)
        });
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

    #[test]
    fn a_canary_gets_its_share_of_the_chats_and_none_of_the_idle_work() {
        let mut lanes = Lanes::new();
        let canary = Canary { generation: Generation(1), share: 0.25, seed: 7 };
        lanes.set_canary(Some(canary)).unwrap_err();
        lanes.insert(Generation(1));
        let chats = |lanes: &mut Lanes| -> Vec<Lane> {
            lanes.set_canary(Some(canary)).unwrap();
            (0..1000).map(|_| lanes.choose(Lane::Active, Class::Chat)).collect()
        };
        let first = chats(&mut lanes);
        let tried = first.iter().filter(|lane| **lane == Lane::Generation(Generation(1))).count();
        assert!((200..300).contains(&tried), "{tried}");
        assert_eq!(first, chats(&mut lanes), "the same seed gives the same choices");
        for class in [Class::Gate, Class::Background, Class::Explore] {
            assert!((0..50).all(|_| lanes.choose(Lane::Active, class) == Lane::Active));
        }
        let named = Lane::Generation(Generation::BASE);
        assert!((0..50).all(|_| lanes.choose(named, Class::Chat) == named));
        let (done, mut answer) = oneshot::channel();
        lanes.retire(Generation(1), done);
        answer.try_recv().unwrap().unwrap_err();
        lanes.set_canary(None).unwrap();
        assert!((0..50).all(|_| lanes.choose(Lane::Active, Class::Chat) == Lane::Active));
    }
}
