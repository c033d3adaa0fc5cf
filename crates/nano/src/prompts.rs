//! Sets of problems, all different, and the same as prompts with their verifiers. Pure. Used by
//! `cli` (`reflectd nano`, the demo) and by the experiment in `bench/rlrf`.

use std::collections::HashSet;

use fastrand::Rng;

use super::world::{Problem, Split};
use prompt::{PromptLine, Verifier};

/// Different problems of one set; the same seed gives the same problems.
pub fn problems(split: Split, count: usize, seed: u64) -> Vec<Problem> {
    let mut rng = Rng::with_seed(seed);
    let mut seen = HashSet::new();
    std::iter::repeat_with(|| Problem::sample(&mut rng, split))
        .filter(|problem| seen.insert(problem.question.clone()))
        .take(count)
        .collect()
}

/// Different problems of one set with their verifiers.
pub fn prompt_lines(split: Split, count: usize, seed: u64) -> Vec<PromptLine> {
    let set = match split {
        Split::Train => "train",
        Split::Live => "live",
        Split::HeldOut => "held-out",
    };
    let line = |(number, problem): (usize, Problem)| {
        let answer = i32::try_from(problem.answer).expect("the world has small numbers only");
        let verifier = Verifier::Numeric {
            expected: answer.into(),
            tolerance: 0.0,
            marker: Some("####".to_owned()),
        };
        PromptLine {
            verifier: Some(verifier),
            ..PromptLine::new(format!("{set}-{seed}-{number}"), problem.question)
        }
    };
    problems(split, count, seed).into_iter().enumerate().map(line).collect()
}
