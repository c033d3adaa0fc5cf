//! The core under everything that can happen to it, in any order: requests that come and leave,
//! readers that stall, steps that are interrupted or fail, copies that are lost, adapters that are
//! freed, too few cells. After every step the batch obeyed llama.cpp's rules, the books equal the
//! cells, and each answer so far equals that of an undisturbed run, token for token. Deterministic:
//! a failure prints its seed, and the seed repeats it.

mod batches;
mod model;
mod real;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub(super) use model::{Chances, Letters, Model};

use super::super::faults::{self, Fault};
use world::{Setting, World};

/// Steps of one seed.
const STEPS: u64 = 2_000;

/// Runs seeds from `first` on until so many steps are done. Returns what was counted.
fn run(first: u64, steps: u64, setting: Setting) -> world::Seen {
    let mut seen = world::Seen::default();
    let mut seed = first;
    while seen.steps < steps {
        let mut world = World::new(seed, setting);
        world.run(STEPS.min(steps - seen.steps));
        seen.add(&world.seen);
        seed += 1;
    }
    seen
}

/// `SIMULATION_STEPS` and `SIMULATION_SEED` make it longer, or begin it elsewhere.
fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[test]
fn whatever_happens_every_answer_is_that_of_an_undisturbed_run() {
    let steps = from_environment("SIMULATION_STEPS", 1_000_000);
    let seed = from_environment("SIMULATION_SEED", 1);
    let seen = run(seed, steps, Setting::default());
    println!("from seed {seed} on: {seen:?}");
    // Nothing that it should meet is missing.
    let least = steps / 10_000;
    for (what, n) in seen.all() {
        assert!(least <= n, "only {n} {what} in {} steps", seen.steps);
    }
}

/// Kernels round in another way for another number of rows, and attention for other cells.
#[test]
fn a_deterministic_core_says_the_same_though_each_batch_rounds_in_its_own_way() {
    let setting = Setting { is_deterministic: true, ..Setting::default() };
    let steps = from_environment("SIMULATION_STEPS", 1_000_000) / 5;
    let seen = run(from_environment("SIMULATION_SEED", 1), steps, setting);
    println!("{seen:?}");
    let cannot_happen = ["copies restored", "tidied while idle", "right drafts"];
    for (what, n) in seen.all().into_iter().filter(|(what, _)| !cannot_happen.contains(what)) {
        assert!(steps / 10_000 <= n, "only {n} {what} in {} steps", seen.steps);
    }
}

/// Steps until a planted fault is found; `None`: it is not within 100,000.
fn steps_until_found(fault: Fault) -> Option<u64> {
    let mut steps = 0;
    faults::plant(Some(fault));
    for seed in 1.. {
        let mut world = World::new(seed, Setting::default());
        let is_found = catch_unwind(AssertUnwindSafe(|| world.run(STEPS))).is_err();
        steps += world.seen.steps;
        if is_found || 100_000 < steps {
            faults::plant(None);
            return Some(steps).filter(|_| is_found && steps <= 100_000);
        }
    }
    unreachable!("each seed has steps")
}

#[test]
fn each_planted_fault_is_found() {
    std::panic::set_hook(Box::new(|_| ()));
    let found = Fault::ALL.map(|fault| (fault, steps_until_found(fault)));
    drop(std::panic::take_hook());
    println!("steps until it is found: {found:?}");
    assert!(found.iter().all(|(_, steps)| steps.is_some()), "{found:?}");
}
