//! The core under everything that can happen to it, in any order: requests that come and leave,
//! readers that stall, steps that are interrupted or fail, copies that are lost, adapters that are
//! freed, too few cells. After every step the batch obeyed llama.cpp's rules, the books equal the
//! cells, and each answer so far equals that of an undisturbed run, token for token. Deterministic:
//! a failure prints its seed, and the seed repeats it.

mod batches;
mod model;
mod real;
mod world;

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
    let seen = run(from_environment("SIMULATION_SEED", 1), steps, Setting::default());
    println!("{seen:?}");
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

#[test]
fn each_planted_fault_is_found() {
    std::panic::set_hook(Box::new(|_| ()));
    let mut missed = Vec::new();
    for fault in Fault::ALL {
        faults::plant(Some(fault));
        let found = std::panic::catch_unwind(|| run(1, 100_000, Setting::default()));
        faults::plant(None);
        if found.is_ok() {
            missed.push(fault);
        }
    }
    drop(std::panic::take_hook());
    assert!(missed.is_empty(), "not found within 100,000 steps: {missed:?}");
}
