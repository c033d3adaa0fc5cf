//! Whether refinements yield more than fresh drafts at equal generated tokens. Pure but for a lock. At
//! the places where an exploration would refine, prompts take turns between refinements and as many
//! more drafts, so that both are tried on the same kind of prompts: drafts made before would not do,
//! because a prompt is refined just where they failed. Used by `explore`; `learn` makes one for each
//! agent and exploration.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};

/// Answers of either kind before anything is decided.
const ENOUGH: usize = 32;
/// Answers of either kind from which on the larger yield decides, however small the difference.
const PLENTY: usize = 256;
/// Standard errors that a difference must have before that (one-sided 95 %).
const CLEAR: f64 = 1.64;

/// What is made of a prompt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Choice {
    /// Refinements of its best faulty draft.
    Refine,
    /// More drafts.
    Draft,
}

/// What one kind of answers has brought.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Yield {
    /// Answers made.
    pub answers: usize,
    /// Of these, answers that pass.
    pub passes: usize,
    /// Tokens generated for them, critiques too.
    pub tokens: usize,
}

impl Yield {
    /// Answers that pass for each 1,000 generated tokens.
    pub fn per_1000_tokens(&self) -> f64 {
        self.passes as f64 * 1000.0 / self.tokens.max(1) as f64
    }
}

/// What a comparison has shown so far.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Compared {
    /// Refinements.
    pub refinements: Yield,
    /// Drafts made in their place.
    pub drafts: Yield,
    /// Refinements yield less, so none are made any more.
    pub stopped: bool,
}

/// A comparison under way.
#[derive(Debug, Default)]
pub struct Trial {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    turns: usize,
    compared: Compared,
    decided: Option<Choice>,
}

impl Trial {
    /// What to make of the next prompt that would be refined.
    pub(super) fn choose(&self) -> Choice {
        let mut state = self.state.lock().expect("nobody panics while holding a trial");
        state.turns += 1;
        let turn = if state.turns.is_multiple_of(2) { Choice::Draft } else { Choice::Refine };
        state.decided.unwrap_or(turn)
    }

    /// Adds what was made. Says what has been found when this decides that refining stops.
    pub(super) fn add(&self, choice: Choice, news: Yield) -> Option<Compared> {
        let mut state = self.state.lock().expect("nobody panics while holding a trial");
        if state.decided.is_some() {
            return None;
        }
        let Compared { refinements, drafts, .. } = &mut state.compared;
        let sum = if choice == Choice::Refine { refinements } else { drafts };
        sum.answers += news.answers;
        sum.passes += news.passes;
        sum.tokens += news.tokens;
        state.decided = decide(&state.compared);
        state.compared.stopped = state.decided == Some(Choice::Draft);
        state.compared.stopped.then_some(state.compared)
    }

    /// What was found so far; `None`: no prompt has come so far.
    pub fn compared(&self) -> Option<Compared> {
        let state = self.state.lock().expect("nobody panics while holding a trial");
        (0 < state.turns).then_some(state.compared)
    }
}

/// Of all passes, as many should be of refinements as their share of the tokens, if both yield the same.
fn decide(compared: &Compared) -> Option<Choice> {
    let Compared { refinements, drafts, .. } = compared;
    let answers = refinements.answers.min(drafts.answers);
    let passes = (refinements.passes + drafts.passes) as f64;
    let share = refinements.tokens as f64 / (refinements.tokens + drafts.tokens).max(1) as f64;
    let surplus = refinements.passes as f64 - passes * share;
    let error = (passes * share * (1.0 - share)).sqrt();
    let is_clear = ENOUGH <= answers && CLEAR * error <= surplus.abs() && 0.0 < error;
    // Where nothing passes at all nothing is known.
    if !is_clear && answers < PLENTY {
        return None;
    }
    Some(if surplus < 0.0 { Choice::Draft } else { Choice::Refine })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(answers: usize, passes: usize, tokens: usize) -> Yield {
        Yield { answers, passes, tokens }
    }

    #[test]
    fn prompts_take_turns_until_something_is_decided() {
        let trial = Trial::default();
        assert_eq!(trial.compared(), None);
        let turns: Vec<Choice> = (0..4).map(|_| trial.choose()).collect();
        assert_eq!(turns, [Choice::Refine, Choice::Draft, Choice::Refine, Choice::Draft]);
        assert_eq!(trial.add(Choice::Refine, of(40, 2, 4000)), None);
        let found = trial.add(Choice::Draft, of(40, 20, 4000)).unwrap();
        assert!(found.stopped && found.drafts.passes == 20);
        assert!((found.drafts.per_1000_tokens() - 5.0).abs() < 1e-9);
        assert_eq!(trial.choose(), Choice::Draft);
        assert_eq!(trial.choose(), Choice::Draft);
        assert_eq!(trial.add(Choice::Draft, of(9, 0, 1)), None, "it is said once");
        assert_eq!(trial.compared(), Some(found));
    }

    #[test]
    fn tokens_count_and_not_answers() {
        // As many refinements pass, but each costs three times as much.
        let dear =
            Compared { refinements: of(60, 30, 9000), drafts: of(60, 30, 3000), stopped: false };
        assert_eq!(decide(&dear), Some(Choice::Draft));
        let cheap =
            Compared { refinements: of(60, 30, 3000), drafts: of(60, 20, 6000), stopped: false };
        assert_eq!(decide(&cheap), Some(Choice::Refine));
    }

    #[test]
    fn a_small_sample_or_a_small_difference_decides_nothing() {
        let compared = |refinements, drafts| Compared { refinements, drafts, stopped: false };
        assert_eq!(decide(&compared(of(20, 0, 900), of(90, 90, 900))), None);
        assert_eq!(decide(&compared(of(50, 12, 900), of(50, 14, 900))), None);
        assert_eq!(decide(&compared(of(50, 0, 900), of(50, 0, 900))), None);
        // In the end one of them has to be taken.
        assert_eq!(decide(&compared(of(256, 60, 900), of(256, 70, 900))), Some(Choice::Draft));
        assert_eq!(decide(&compared(of(256, 0, 900), of(256, 0, 900))), Some(Choice::Refine));
    }

    #[test]
    fn equal_yields_are_seldom_told_apart() {
        let mut stopped = 0;
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let trial = Trial::default();
            // Up to 128 answers of each kind, looked at after every four.
            for _ in 0..64 {
                let choice = trial.choose();
                let passes = (0..4).filter(|_| random.f64() < 0.3).count();
                stopped += usize::from(trial.add(choice, of(4, passes, 120)).is_some());
            }
        }
        assert!(stopped <= 50, "{stopped} of 200");
    }
}
