//! Decides what one step evaluates. Pure: work and limits in, plan out; the engine thread does it.
//!
//! Only the most urgent class that can go on takes part, so that idle work never slows a chat: it
//! pauses between two steps and its KV stays. Inside a class, sequences that generate go first
//! (one token each), then prompts in order of arrival fill the rest of the batch.

use super::backend::Limits;
use super::{Class, Generation};

/// After so many steps another lane gets its turn. Changing the adapter costs 1 to 5 ms, as much
/// as a step of a small model; eight steps make that cheap and nobody waits noticeably.
const STEPS_PER_TURN: u32 = 8;

/// What one admitted request could do next.
#[derive(Clone, Debug)]
pub struct Work {
    /// How urgent.
    pub class: Class,
    /// Which weights.
    pub generation: Generation,
    /// Tokens of the shared prefix that are left; they come before any branch.
    pub trunk: usize,
    /// What is left of the branches that are under way.
    pub branches: Vec<Tail>,
}

/// Tokens that a branch could evaluate now.
#[derive(Clone, Copy, Debug)]
pub struct Tail {
    /// Names the branch in the plan.
    pub branch: usize,
    /// How many.
    pub tokens: usize,
    /// Of these, the first ones whose logits nobody wants.
    pub silent: usize,
}

/// Some tokens of one request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Slice {
    /// Index into the work.
    pub work: usize,
    /// Which part of it.
    pub part: Part,
    /// How many tokens.
    pub tokens: usize,
}

/// A part of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// The prefix that all branches share.
    Trunk,
    /// One branch.
    Branch(usize),
}

/// One step.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    /// The weights for all of it.
    pub generation: Generation,
    /// What is evaluated, in this order. Not empty.
    pub slices: Vec<Slice>,
}

/// Which lane has its turn; kept from step to step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    generation: Generation,
    steps: u32,
}

/// Plans the next step, or nothing when no work can go on. `work` is in order of arrival.
pub fn plan(work: &[Work], limits: &Limits, turn: &mut Turn) -> Option<Plan> {
    let ready = |w: &&Work| w.trunk > 0 || !w.branches.is_empty();
    let class = work.iter().filter(ready).map(|w| w.class).min()?;
    let in_class = |w: &&Work| ready(w) && w.class == class;
    turn.next(work.iter().filter(in_class).map(|w| w.generation));
    let generation = turn.generation;
    let mut step =
        Step { tokens: limits.batch_tokens, outputs: limits.outputs, slices: Vec::new() };
    let members =
        || work.iter().enumerate().filter(|(_, w)| in_class(w) && w.generation == generation);
    for (index, w) in members().filter(|(_, w)| w.trunk == 0) {
        for tail in w.branches.iter().filter(|tail| tail.tokens == 1) {
            step.take_tail(index, tail);
        }
    }
    for (index, w) in members() {
        let taken = step.take(index, Part::Trunk, w.trunk);
        if taken < w.trunk {
            break;
        }
        for tail in w.branches.iter().filter(|tail| w.trunk > 0 || tail.tokens > 1) {
            step.take_tail(index, tail);
        }
    }
    Some(Plan { generation, slices: step.slices })
}

/// What is left of a step.
struct Step {
    tokens: usize,
    outputs: usize,
    slices: Vec<Slice>,
}

impl Step {
    fn take_tail(&mut self, work: usize, tail: &Tail) {
        let tokens = tail.tokens.min(tail.silent + self.outputs).min(self.tokens);
        self.outputs -= tokens.saturating_sub(tail.silent);
        self.take(work, Part::Branch(tail.branch), tokens);
    }

    fn take(&mut self, work: usize, part: Part, tokens: usize) -> usize {
        let tokens = tokens.min(self.tokens);
        self.tokens -= tokens;
        if tokens > 0 {
            self.slices.push(Slice { work, part, tokens });
        }
        tokens
    }
}

impl Turn {
    /// Goes on with the same lane while it has work, but not for ever when others have some too;
    /// then the next higher generation follows, round and round.
    fn next(&mut self, with_work: impl Iterator<Item = Generation> + Clone) {
        let stays = with_work.clone().any(|generation| generation == self.generation);
        if stays && self.steps < STEPS_PER_TURN {
            self.steps += 1;
            return;
        }
        let lowest = with_work.clone().min();
        let higher = with_work.filter(|&generation| generation > self.generation).min();
        self.generation = higher.or(lowest).unwrap_or(self.generation);
        self.steps = 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { cells: 1000, sequences: 4, batch_tokens: 8, outputs: 4 };

    fn decoding(class: Class, generation: u32) -> Work {
        Work {
            class,
            generation: Generation(generation),
            trunk: 0,
            branches: vec![Tail { branch: 0, tokens: 1, silent: 0 }],
        }
    }

    #[test]
    fn a_lower_class_waits_while_a_higher_one_has_work() {
        let work = [decoding(Class::Explore, 0), decoding(Class::Chat, 0)];
        let plan = plan(&work, &LIMITS, &mut Turn::default()).unwrap();
        assert_eq!(plan.slices, [Slice { work: 1, part: Part::Branch(0), tokens: 1 }]);
    }

    #[test]
    fn decoding_sequences_go_before_prompts_and_prompts_fill_the_rest() {
        let prompt = Work {
            trunk: 20,
            branches: vec![Tail { branch: 0, tokens: 3, silent: 2 }],
            ..decoding(Class::Chat, 0)
        };
        let work = [prompt, decoding(Class::Chat, 0)];
        let plan = plan(&work, &LIMITS, &mut Turn::default()).unwrap();
        let expected = [
            Slice { work: 1, part: Part::Branch(0), tokens: 1 },
            Slice { work: 0, part: Part::Trunk, tokens: 7 },
        ];
        assert_eq!(plan.slices, expected);
    }

    #[test]
    fn branches_follow_their_trunk_in_the_same_step() {
        let work = [Work { trunk: 3, ..decoding(Class::Chat, 0) }];
        let plan = plan(&work, &LIMITS, &mut Turn::default()).unwrap();
        assert_eq!(plan.slices.len(), 2);
        assert_eq!(plan.slices[1].part, Part::Branch(0));
    }

    #[test]
    fn rows_of_logits_are_limited() {
        let scored = Work {
            branches: vec![Tail { branch: 0, tokens: 7, silent: 1 }],
            ..decoding(Class::Gate, 0)
        };
        let plan = plan(&[scored], &LIMITS, &mut Turn::default()).unwrap();
        assert_eq!(plan.slices[0].tokens, 1 + LIMITS.outputs);
    }

    #[test]
    fn lanes_take_turns_of_several_steps() {
        let work = [decoding(Class::Chat, 0), decoding(Class::Chat, 3)];
        let mut turn = Turn::default();
        let order: Vec<u32> =
            (0..40).map(|_| plan(&work, &LIMITS, &mut turn).unwrap().generation.0).collect();
        let changes = order.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert_eq!(changes, 4, "{order:?}");
    }

    fn any_work() -> impl Strategy<Value = Work> {
        let class = prop_oneof![Just(Class::Chat), Just(Class::Explore)];
        let tails = prop::collection::vec((1_usize..12, 0_usize..12), 0..2);
        (class, 0_u32..3, 0_usize..30, tails).prop_map(|(class, generation, trunk, tails)| Work {
            class,
            generation: Generation(generation),
            trunk,
            branches: tails
                .into_iter()
                .enumerate()
                .map(|(branch, (tokens, silent))| Tail {
                    branch,
                    tokens,
                    silent: silent.min(tokens - 1),
                })
                .collect(),
        })
    }

    /// Does what a plan says; panics when it says more than there is.
    fn apply(work: &mut [Work], plan: &Plan, limits: &Limits) {
        let mut outputs = 0;
        for slice in &plan.slices {
            let w = &mut work[slice.work];
            assert_eq!(w.generation, plan.generation);
            match slice.part {
                Part::Trunk => w.trunk -= slice.tokens,
                Part::Branch(branch) => {
                    assert_eq!(w.trunk, 0, "a branch came before its trunk");
                    let tail = w.branches.iter_mut().find(|t| t.branch == branch).unwrap();
                    outputs += slice.tokens.saturating_sub(tail.silent);
                    tail.silent = tail.silent.saturating_sub(slice.tokens);
                    tail.tokens -= slice.tokens;
                    w.branches.retain(|tail| tail.tokens > 0);
                }
            }
        }
        let tokens: usize = plan.slices.iter().map(|slice| slice.tokens).sum();
        assert!(0 < tokens && tokens <= limits.batch_tokens, "{tokens} tokens");
        assert!(outputs <= limits.outputs, "{outputs} rows");
    }

    proptest! {
        #[test]
        fn every_request_ends_and_no_limit_is_exceeded(
            mut work in prop::collection::vec(any_work(), 1..5),
        ) {
            let left = |work: &[Work]| -> usize {
                work.iter()
                    .map(|w| w.trunk + w.branches.iter().map(|t| t.tokens).sum::<usize>())
                    .sum()
            };
            let mut turn = Turn::default();
            let mut total = left(&work);
            while let Some(step) = plan(&work, &LIMITS, &mut turn) {
                apply(&mut work, &step, &LIMITS);
                prop_assert!(left(&work) < total);
                total = left(&work);
            }
            prop_assert_eq!(total, 0);
        }

        #[test]
        fn nobody_in_the_running_class_starves(
            prompt in 1_usize..100,
            generations in prop::collection::vec(0_u32..3, 1..4),
        ) {
            // Sequences that generate for ever, in several lanes, beside one prompt.
            let mut work: Vec<Work> =
                generations.iter().map(|&g| decoding(Class::Chat, g)).collect();
            work.push(Work { trunk: prompt, ..decoding(Class::Chat, 1) });
            let mut turn = Turn::default();
            let mut waited = vec![0_u32; work.len()];
            for _ in 0..200 {
                let step = plan(&work, &LIMITS, &mut turn).unwrap();
                for (index, wait) in waited.iter_mut().enumerate() {
                    let served = step.slices.iter().any(|slice| slice.work == index);
                    *wait = if served { 0 } else { *wait + 1 };
                    prop_assert!(*wait <= 2 * STEPS_PER_TURN, "{index} waited");
                }
                for slice in step.slices.iter().filter(|slice| slice.part == Part::Trunk) {
                    work[slice.work].trunk -= slice.tokens;
                }
            }
        }
    }
}
