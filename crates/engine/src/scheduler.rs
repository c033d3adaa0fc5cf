//! Decides what one step evaluates. Pure: work and limits in, plan out; the engine thread does it.
//!
//! Only the most urgent class that can go on takes part, so that idle work never slows a chat: it
//! pauses between two steps and its KV stays. Inside a class, sequences that generate go first,
//! then prompts in order of arrival fill the rest of the batch.

use std::time::Duration;

use super::{Class, Generation};
use inference::backend::Limits;

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
    /// What is left to evaluate; a parent comes before its children.
    pub tails: Vec<Tail>,
}

/// Tokens of one or more sequences that could be evaluated now.
#[derive(Clone, Copy, Debug)]
pub struct Tail {
    /// How many.
    pub tokens: usize,
    /// Of these, the first ones whose logits nobody wants.
    pub silent: usize,
    /// The tail of the same work that must be evaluated whole before this one.
    pub parent: Option<usize>,
    /// The last sampled token of a continuation, and guesses of what follows it, which may be
    /// left out.
    pub is_decoding: bool,
}

/// Some tokens of one tail.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Slice {
    /// Index into the work.
    pub work: usize,
    /// Index into its tails.
    pub tail: usize,
    /// How many tokens.
    pub tokens: usize,
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
pub fn plan(work: &[Work], limits: &Limits, pace: &Pace, turn: &mut Turn) -> Option<Plan> {
    let ready = |w: &&Work| !w.tails.is_empty();
    let class = work.iter().filter(ready).map(|w| w.class).min()?;
    let in_class = |w: &&Work| ready(w) && w.class == class;
    turn.next(work.iter().filter(in_class).map(|w| w.generation));
    let generation = turn.generation;
    let members =
        || work.iter().enumerate().filter(|(_, w)| in_class(w) && w.generation == generation);
    let n_decoding: usize =
        members().map(|(_, w)| w.tails.iter().filter(|tail| tail.is_decoding).count()).sum();
    let tokens = pace.tokens(class, 0 < n_decoding, limits);
    let mut step = Step { tokens, outputs: limits.outputs, slices: Vec::new() };
    // Guesses must not cost another sequence its token, nor a prompt its place.
    let most = (limits.batch_tokens.min(limits.outputs) / 2 / n_decoding.max(1)).max(1);
    step.tokens = step.tokens.max(n_decoding);
    for (index, w) in members() {
        for (which, tail) in w.tails.iter().enumerate().filter(|(_, tail)| tail.is_decoding) {
            step.take(index, which, &Tail { tokens: tail.tokens.min(most), ..*tail });
        }
    }
    for (index, w) in members() {
        let mut is_whole = vec![false; w.tails.len()];
        for (which, tail) in w.tails.iter().enumerate().filter(|(_, tail)| !tail.is_decoding) {
            if tail.parent.is_none_or(|parent| is_whole[parent]) {
                is_whole[which] = step.take(index, which, tail) == tail.tokens;
            }
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
    fn take(&mut self, work: usize, index: usize, tail: &Tail) -> usize {
        let tokens = tail.tokens.min(tail.silent + self.outputs).min(self.tokens);
        self.outputs -= tokens.saturating_sub(tail.silent);
        self.tokens -= tokens;
        if 0 < tokens {
            self.slices.push(Slice { work, tail: index, tokens });
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

/// How many tokens a step may hold so that nobody waits long for its end. A step cannot be
/// interrupted, and one of 512 tokens takes 0.5 s on a small processor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Measured; zero until a step was large enough to tell.
    nanos_per_token: u64,
}

/// A chat that arrives waits for the step of idle work that is under way.
const IDLE_STEP: Duration = Duration::from_millis(100);
/// Chats that are being written wait for a step that holds somebody's prompt.
const SHARED_STEP: Duration = Duration::from_millis(250);
/// Smaller batches are evaluated much slower for each token.
const EFFICIENT: usize = 64;

impl Pace {
    /// Notes how long a step took.
    pub fn learn(&mut self, tokens: usize, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let Some(now) = nanos.checked_div(tokens as u64).filter(|_| EFFICIENT <= tokens) else {
            return;
        };
        // A single slow step, as when the machine sleeps, does not make all others small.
        self.nanos_per_token = match self.nanos_per_token {
            0 => now,
            before => before - before / 4 + now / 4,
        };
    }

    fn tokens(self, class: Class, others_wait: bool, limits: &Limits) -> usize {
        let longest = match class {
            Class::Chat | Class::Inline if others_wait => SHARED_STEP,
            Class::Chat | Class::Inline => return limits.batch_tokens,
            Class::Gate | Class::Background | Class::Explore => IDLE_STEP,
        };
        let fit = longest.as_nanos().checked_div(u128::from(self.nanos_per_token));
        let fit = fit.and_then(|fit| usize::try_from(fit).ok()).unwrap_or(limits.batch_tokens);
        fit.max(EFFICIENT).min(limits.batch_tokens)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { cells: 1000, sequences: 4, batch_tokens: 8, outputs: 4 };

    fn plan(work: &[Work], turn: &mut Turn) -> Option<Plan> {
        super::plan(work, &LIMITS, &Pace::default(), turn)
    }

    fn decoding(class: Class, generation: u32) -> Work {
        let tail = Tail { tokens: 1, silent: 0, parent: None, is_decoding: true };
        Work { class, generation: Generation(generation), tails: vec![tail] }
    }

    fn prompt(class: Class, generation: u32, tokens: usize) -> Work {
        let tail = Tail { tokens, silent: tokens - 1, parent: None, is_decoding: false };
        Work { class, generation: Generation(generation), tails: vec![tail] }
    }

    #[test]
    fn a_lower_class_waits_while_a_higher_one_has_work() {
        let work = [decoding(Class::Explore, 0), decoding(Class::Chat, 0)];
        let plan = plan(&work, &mut Turn::default()).unwrap();
        assert_eq!(plan.slices, [Slice { work: 1, tail: 0, tokens: 1 }]);
    }

    #[test]
    fn decoding_sequences_go_before_prompts_and_prompts_fill_the_rest() {
        let work = [prompt(Class::Chat, 0, 20), decoding(Class::Chat, 0)];
        let plan = plan(&work, &mut Turn::default()).unwrap();
        let expected =
            [Slice { work: 1, tail: 0, tokens: 1 }, Slice { work: 0, tail: 0, tokens: 7 }];
        assert_eq!(plan.slices, expected);
    }

    #[test]
    fn a_tail_follows_its_parent_in_the_same_step_only_when_that_is_whole() {
        let mut work = prompt(Class::Chat, 0, 3);
        work.tails.push(Tail { tokens: 2, silent: 1, parent: Some(0), is_decoding: false });
        let both = plan(&[work.clone()], &mut Turn::default()).unwrap();
        assert_eq!(both.slices.len(), 2);
        work.tails[0] = Tail { tokens: 9, silent: 8, ..work.tails[0] };
        let first = plan(&[work], &mut Turn::default()).unwrap();
        assert_eq!(first.slices, [Slice { work: 0, tail: 0, tokens: 8 }]);
    }

    #[test]
    fn rows_of_logits_are_limited() {
        let mut work = prompt(Class::Gate, 0, 7);
        work.tails[0].silent = 1;
        let plan = plan(&[work], &mut Turn::default()).unwrap();
        assert_eq!(plan.slices[0].tokens, 1 + LIMITS.outputs);
    }

    #[test]
    fn guesses_of_one_sequence_leave_the_others_their_token() {
        let mut guessing = decoding(Class::Chat, 0);
        guessing.tails[0].tokens = 40;
        let work = [guessing, decoding(Class::Chat, 0)];
        let limits = Limits { outputs: 8, ..LIMITS };
        let turn = &mut Turn::default();
        let plan = super::plan(&work, &limits, &Pace::default(), turn).unwrap();
        let expected =
            [Slice { work: 0, tail: 0, tokens: 2 }, Slice { work: 1, tail: 0, tokens: 1 }];
        assert_eq!(plan.slices, expected);
    }

    #[test]
    fn lanes_take_turns_of_several_steps() {
        let work = [decoding(Class::Chat, 0), decoding(Class::Chat, 3)];
        let mut turn = Turn::default();
        let order: Vec<u32> =
            (0..40).map(|_| plan(&work, &mut turn).unwrap().generation.0).collect();
        let changes = order.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert_eq!(changes, 4, "{order:?}");
    }

    #[test]
    fn steps_are_small_where_somebody_would_wait_for_their_end() {
        let limits = Limits { batch_tokens: 512, outputs: 512, ..LIMITS };
        let mut pace = Pace::default();
        let tokens = |pace: Pace, class, others| pace.tokens(class, others, &limits);
        assert_eq!(tokens(pace, Class::Explore, false), 512, "nothing is known yet");
        pace.learn(3, Duration::from_secs(9));
        pace.learn(500, Duration::from_millis(500));
        assert_eq!(tokens(pace, Class::Explore, false), 100);
        assert_eq!(tokens(pace, Class::Chat, true), 250);
        assert_eq!(tokens(pace, Class::Chat, false), 512);
        for _ in 0..30 {
            pace.learn(64, Duration::from_secs(64));
        }
        assert_eq!(tokens(pace, Class::Gate, true), EFFICIENT);
    }

    fn any_class() -> impl Strategy<Value = Class> {
        prop_oneof![Just(Class::Chat), Just(Class::Inline), Just(Class::Explore)]
    }

    fn any_work() -> impl Strategy<Value = Work> {
        let tails = prop::collection::vec((1_usize..12, 0_usize..12, any::<u8>()), 1..4);
        (any_class(), 0_u32..3, tails).prop_map(|(class, generation, tails)| {
            let tail = |(index, (tokens, silent, parent)): (usize, (usize, usize, u8))| {
                let parent = usize::from(parent) % (index + 1);
                Tail {
                    tokens,
                    silent: silent.min(tokens - 1),
                    parent: (parent < index).then_some(parent),
                    is_decoding: false,
                }
            };
            let tails = tails.into_iter().enumerate().map(tail).collect();
            Work { class, generation: Generation(generation), tails }
        })
    }

    /// Does what a plan says; panics when it says more than there is.
    fn apply(work: &mut [Work], plan: &Plan) {
        let mut outputs = 0;
        for slice in &plan.slices {
            let w = &mut work[slice.work];
            assert_eq!(w.generation, plan.generation);
            if let Some(parent) = w.tails[slice.tail].parent {
                assert_eq!(w.tails[parent].tokens, 0, "a tail came before its parent");
            }
            let tail = &mut w.tails[slice.tail];
            outputs += slice.tokens.saturating_sub(tail.silent);
            tail.silent = tail.silent.saturating_sub(slice.tokens);
            tail.tokens -= slice.tokens;
        }
        let tokens: usize = plan.slices.iter().map(|slice| slice.tokens).sum();
        assert!(0 < tokens && tokens <= LIMITS.batch_tokens, "{tokens} tokens");
        assert!(outputs <= LIMITS.outputs, "{outputs} rows");
    }

    /// What a request says of itself at the next step: only what is left.
    fn left(work: &[Work]) -> Vec<Work> {
        let rest = |w: &Work| {
            let mut places = Vec::new();
            let mut tails: Vec<Tail> = Vec::new();
            for tail in &w.tails {
                places.push((0 < tail.tokens).then_some(tails.len()));
                if 0 < tail.tokens {
                    tails.push(Tail { parent: tail.parent.and_then(|at| places[at]), ..*tail });
                }
            }
            Work { tails, ..w.clone() }
        };
        work.iter().map(rest).collect()
    }

    proptest! {
        #[test]
        fn every_request_ends_and_no_limit_is_exceeded(
            mut work in prop::collection::vec(any_work(), 1..5),
        ) {
            let tokens = |work: &[Work]| -> usize {
                work.iter().flat_map(|w| &w.tails).map(|tail| tail.tokens).sum()
            };
            let mut turn = Turn::default();
            while let Some(step) = plan(&work, &mut turn) {
                let before = tokens(&work);
                let most_urgent =
                    work.iter().filter(|w| !w.tails.is_empty()).map(|w| w.class).min();
                for slice in &step.slices {
                    prop_assert_eq!(Some(work[slice.work].class), most_urgent);
                }
                apply(&mut work, &step);
                work = left(&work);
                prop_assert!(tokens(&work) < before);
            }
            prop_assert_eq!(tokens(&work), 0);
        }

        #[test]
        fn nobody_in_the_running_class_starves(
            tokens in 1_usize..100,
            generations in prop::collection::vec(0_u32..3, 1..4),
            guesses in 0_usize..40,
        ) {
            // Sequences that generate for ever, in several lanes, beside one prompt.
            let mut work: Vec<Work> =
                generations.iter().map(|&g| decoding(Class::Chat, g)).collect();
            work[0].tails[0].tokens += guesses;
            work.push(prompt(Class::Chat, 1, tokens));
            let mut turn = Turn::default();
            let mut waited = vec![0_u32; work.len()];
            for _ in 0..200 {
                let step = plan(&work, &mut turn).unwrap();
                let wanted: usize = step.slices.iter().map(|slice| slice.tokens).sum();
                prop_assert!(wanted <= LIMITS.batch_tokens);
                for (index, wait) in waited.iter_mut().enumerate() {
                    let served = step.slices.iter().any(|slice| slice.work == index);
                    *wait = if served || work[index].tails.is_empty() { 0 } else { *wait + 1 };
                    prop_assert!(*wait <= 3 * STEPS_PER_TURN, "{index} waited");
                }
                let last = work.len() - 1;
                for slice in step.slices.iter().filter(|slice| slice.work == last) {
                    let tail = &mut work[last].tails[0];
                    tail.tokens -= slice.tokens;
                    tail.silent = tail.silent.saturating_sub(slice.tokens);
                }
                work[last].tails.retain(|tail| 0 < tail.tokens);
            }
        }
    }
}
