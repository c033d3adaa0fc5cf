//! Which generations are loaded, which one is active, which one tries itself on a share of the chats
//! (the canary), which ones drain. Pure bookkeeping; the engine thread loads and frees the adapters.
//! Cells of one generation are never read by another.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::{Canary, EngineError, Generation, Priority, Weights};

/// Told when a generation is gone.
pub(super) type Retired = oneshot::Sender<Result<(), EngineError>>;

/// All generations.
#[derive(Debug)]
pub(super) struct Adapters {
    active: Generation,
    /// Loaded generations; those that drain have somebody who waits for it.
    loaded: BTreeMap<Generation, Vec<Retired>>,
    /// With the stream of its choices.
    canary: Option<(Canary, fastrand::Rng)>,
}

impl Adapters {
    /// Only the base.
    pub(super) fn new() -> Self {
        let loaded = BTreeMap::from([(Generation::BASE, Vec::new())]);
        Self { active: Generation::BASE, loaded, canary: None }
    }

    /// New requests for [`Weights::Active`] go here.
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
    pub(super) fn choose(&mut self, weights: Weights, priority: Priority) -> Weights {
        let Some((canary, random)) = &mut self.canary else { return weights };
        let is_tried = match (weights, priority) {
            (Weights::Active, Priority::Chat | Priority::Inline) => random.f64() < canary.share,
            _ => false,
        };
        if is_tried { Weights::Generation(canary.generation) } else { weights }
    }

    /// Loaded generations, also those that drain.
    pub(super) fn loaded(&self) -> impl Iterator<Item = Generation> {
        self.loaded.keys().copied()
    }

    /// Pins a new request.
    pub(super) fn resolve(&self, weights: Weights) -> Result<Generation, EngineError> {
        match weights {
            Weights::Active => Ok(self.active),
            Weights::Generation(generation) => self.open(generation),
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

    /// Lets a generation drain; `done` hears when it is gone, or at once when it cannot go.
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
            (None, None) => drop(done.send(Err(EngineError::NotLoaded(generation)))),
            (Some(error), _) => drop(done.send(Err(error))),
        }
    }

    /// Takes out the generations that drain and have no request left.
    pub(super) fn take_drained(
        &mut self,
        in_use: impl Fn(Generation) -> bool,
    ) -> Vec<(Generation, Vec<Retired>)> {
        self.loaded.extract_if(.., |g, waiting| !waiting.is_empty() && !in_use(*g)).collect()
    }

    fn open(&self, generation: Generation) -> Result<Generation, EngineError> {
        match self.loaded.get(&generation) {
            Some(waiting) if waiting.is_empty() => Ok(generation),
            _ => Err(EngineError::NotLoaded(generation)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draining_generation_takes_no_requests_and_goes_when_its_last_one_has_ended() {
        let mut generations = Adapters::new();
        let old = Generation(1);
        generations.insert(old);
        generations.activate(old).unwrap();
        generations.insert(Generation(2));
        generations.activate(Generation(2)).unwrap();
        let (done, _waits) = oneshot::channel();
        generations.retire(old, done);
        assert_eq!(generations.resolve(Weights::Generation(old)), Err(EngineError::NotLoaded(old)));
        assert_eq!(generations.resolve(Weights::Active), Ok(Generation(2)));
        assert_eq!(generations.activate(old), Err(EngineError::NotLoaded(old)));
        assert!(generations.take_drained(|generation| generation == old).is_empty());
        assert_eq!(generations.take_drained(|_| false).len(), 1);
        assert_eq!(generations.loaded().collect::<Vec<_>>(), [Generation::BASE, Generation(2)]);
    }

    #[test]
    fn the_base_and_the_active_generation_cannot_be_retired() {
        let mut generations = Adapters::new();
        generations.insert(Generation(1));
        generations.activate(Generation(1)).unwrap();
        for generation in [Generation::BASE, Generation(1)] {
            let (done, mut answer) = oneshot::channel();
            generations.retire(generation, done);
            assert!(matches!(answer.try_recv().unwrap(), Err(EngineError::Invalid(_))));
        }
        assert!(generations.take_drained(|_| false).is_empty());
    }

    #[test]
    fn a_canary_gets_its_share_of_the_chats_and_none_of_the_idle_work() {
        let mut generations = Adapters::new();
        let canary = Canary { generation: Generation(1), share: 0.25, seed: 7 };
        generations.set_canary(Some(canary)).unwrap_err();
        generations.insert(Generation(1));
        let chats = |generations: &mut Adapters| -> Vec<Weights> {
            generations.set_canary(Some(canary)).unwrap();
            (0..1000).map(|_| generations.choose(Weights::Active, Priority::Chat)).collect()
        };
        let first = chats(&mut generations);
        let tried =
            first.iter().filter(|weights| **weights == Weights::Generation(Generation(1))).count();
        assert!((200..300).contains(&tried), "{tried}");
        assert_eq!(first, chats(&mut generations), "the same seed gives the same choices");
        for priority in [Priority::Gate, Priority::Background, Priority::Explore] {
            assert!(
                (0..50).all(|_| generations.choose(Weights::Active, priority) == Weights::Active)
            );
        }
        let named = Weights::Generation(Generation::BASE);
        assert!((0..50).all(|_| generations.choose(named, Priority::Chat) == named));
        let (done, mut answer) = oneshot::channel();
        generations.retire(Generation(1), done);
        answer.try_recv().unwrap().unwrap_err();
        generations.set_canary(None).unwrap();
        assert!(
            (0..50).all(|_| generations.choose(Weights::Active, Priority::Chat) == Weights::Active)
        );
    }
}
