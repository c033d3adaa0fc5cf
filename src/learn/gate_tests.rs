//! Tests of the gate: its numbers against hand-made cases, and simulated candidates.

use proptest::prelude::*;

use super::*;

fn config() -> GateConfig {
    GateConfig {
        prompts: 200,
        margin: 0.0,
        confidence: 0.95,
        max_parity_error: 0.05,
        length_ratio: (0.67, 1.5),
        min_diversity_ratio: 0.8,
        max_kl: 0.5,
    }
}

fn answered(right: bool, n_tokens: i32) -> Answered {
    Answered {
        scalar: if right { 0.8 } else { -0.8 },
        passes: right,
        verified: Some(right),
        tokens: (0..n_tokens).map(Token).collect(),
    }
}

fn comparisons(outcomes: impl IntoIterator<Item = (bool, bool)>) -> Vec<Comparison> {
    let compare = |(active, candidate)| Comparison {
        verifier_decides: true,
        active: answered(active, 10),
        candidate: answered(candidate, 10),
    };
    outcomes.into_iter().map(compare).collect()
}

/// `wins` prompts that only the candidate has right, `losses` that only the active one has.
fn evidence(wins: usize, losses: usize, ties: usize) -> Evidence {
    let outcomes = std::iter::repeat_n((false, true), wins)
        .chain(std::iter::repeat_n((true, false), losses))
        .chain(std::iter::repeat_n((true, true), ties));
    Evidence { parity_error: Some(0.01), kl: 0.1, comparisons: comparisons(outcomes) }
}

#[test]
fn a_clearly_better_candidate_is_promoted_with_its_numbers() {
    let verdict = judge(&evidence(40, 10, 150), &config(), 1);
    assert!(verdict.promote, "{}", verdict.reason);
    assert!((verdict.gain - 0.15).abs() < 1e-9);
    assert!(verdict.lower_bound > 0.05 && verdict.lower_bound < verdict.gain);
    assert_eq!((verdict.wins, verdict.losses), (40, 10));
    assert!(verdict.p < 1e-4);
    assert_eq!(verdict.scored_by_verifier, 200);
}

#[test]
fn the_same_evidence_gives_the_same_verdict() {
    let evidence = evidence(30, 20, 100);
    assert_eq!(judge(&evidence, &config(), 5), judge(&evidence, &config(), 5));
}

#[test]
fn a_candidate_that_is_no_better_is_rarely_promoted() {
    // Both sides are right or wrong by the same coin, so every promotion is a mistake.
    let mut random = Random::new(11);
    let trials = 1000;
    let mut promoted = 0;
    for _ in 0..trials {
        let gains: Vec<f64> = (0..200)
            .map(|_| {
                let mut coin = || f64::from(u8::from(random.below(2) == 1));
                coin() - coin()
            })
            .collect();
        let bound = lower_bound(&gains, 0.95, 1000, &mut random);
        promoted += usize::from(bound > 0.0);
    }
    assert!(promoted <= trials * 6 / 100, "{promoted} of {trials}");
    assert!(promoted > 0, "a gate that never errs does not promote anything either");
}

#[test]
fn a_candidate_that_gains_ten_points_is_mostly_promoted() {
    let mut random = Random::new(12);
    let mut promoted = 0;
    for _ in 0..200 {
        // 30 % discordant, 20 % for and 10 % against: rlrf.md says 183 prompts have power 0.8.
        let gains: Vec<f64> = (0..183)
            .map(|_| match random.below(10) {
                0 | 1 => 1.0,
                2 => -1.0,
                _ => 0.0,
            })
            .collect();
        promoted += usize::from(lower_bound(&gains, 0.95, 1000, &mut random) > 0.0);
    }
    assert!(promoted >= 140, "{promoted} of 200");
}

#[test]
fn a_verifier_that_only_measures_is_reported_but_does_not_decide() {
    let mut evidence = evidence(60, 0, 60);
    for both in &mut evidence.comparisons {
        both.verifier_decides = false;
        // The judge sees no difference, though the verifier does.
        both.candidate.scalar = both.active.scalar;
        both.candidate.passes = both.active.passes;
    }
    let verdict = judge(&evidence, &config(), 1);
    assert!(!verdict.promote);
    assert_eq!(verdict.scored_by_verifier, 0);
    assert!((verdict.gain).abs() < 1e-12);
    let verified = verdict.verified.unwrap();
    assert!((verified.candidate - verified.active - 0.5).abs() < 1e-9);
}

#[test]
fn each_band_can_stop_a_promotion_and_says_so() {
    let stopped = |change: fn(&mut Evidence), word: &str| {
        let mut evidence = evidence(60, 0, 60);
        assert!(judge(&evidence, &config(), 1).promote);
        change(&mut evidence);
        let verdict = judge(&evidence, &config(), 1);
        assert!(!verdict.promote);
        assert!(verdict.reason.contains(word), "{}", verdict.reason);
    };
    stopped(|evidence| evidence.parity_error = Some(0.2), "max_parity_error");
    stopped(|evidence| evidence.parity_error = Some(f64::NAN), "max_parity_error");
    stopped(|evidence| evidence.kl = 0.9, "max_kl");
    stopped(|evidence| evidence.kl = f64::NAN, "max_kl");
    stopped(|evidence| evidence.comparisons.truncate(MIN_PROMPTS - 1), "prove nothing");
    stopped(
        |evidence| {
            for both in &mut evidence.comparisons {
                both.candidate.tokens = (0..30).map(Token).collect();
            }
        },
        "length_ratio",
    );
    stopped(
        |evidence| {
            for both in &mut evidence.comparisons {
                both.candidate.tokens = vec![Token(1); 10];
            }
        },
        "min_diversity_ratio",
    );
}

#[test]
fn empty_answers_are_outside_the_bands() {
    let mut evidence = evidence(60, 0, 60);
    for both in &mut evidence.comparisons {
        both.candidate.tokens.clear();
    }
    assert!(!judge(&evidence, &config(), 1).promote);
}

#[test]
fn mcnemar_agrees_with_hand_computed_tails() {
    assert!((mcnemar(0, 0) - 1.0).abs() < 1e-12);
    assert!((mcnemar(3, 0) - 0.125).abs() < 1e-12);
    assert!((mcnemar(3, 1) - 5.0 / 16.0).abs() < 1e-12);
    assert!((mcnemar(0, 4) - 1.0).abs() < 1e-9);
    // scipy.stats.binom.sf(59, 100, 0.5)
    assert!((mcnemar(60, 40) - 0.028_443_966_820_490_4).abs() < 1e-9);
}

#[test]
fn distinct_2_counts_pairs_of_neighbours() {
    let value = distinct_2(&[&[Token(1), Token(2), Token(1), Token(2)], &[Token(5)]]);
    assert!((value - 2.0 / 3.0).abs() < 1e-12);
}

proptest! {
    #[test]
    fn the_bound_lies_between_the_worst_gain_and_the_best(
        gains in prop::collection::vec(-1.0f64..1.0, 1..60), seed in any::<u64>(),
    ) {
        let bound = lower_bound(&gains, 0.95, 200, &mut Random::new(seed));
        let worst = gains.iter().copied().fold(f64::INFINITY, f64::min);
        let best = gains.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        prop_assert!(bound >= worst - 1e-9 && bound <= best + 1e-9);
    }

    #[test]
    fn more_wins_never_make_the_evidence_weaker(wins in 0usize..60, losses in 0usize..60) {
        prop_assert!(mcnemar(wins + 1, losses) <= mcnemar(wins, losses) + 1e-12);
        prop_assert!(mcnemar(wins, losses + 1) >= mcnemar(wins, losses) - 1e-12);
    }

    #[test]
    fn swapping_the_sides_never_promotes_both(outcomes in prop::collection::vec(any::<(bool, bool)>(), 20..80)) {
        let forward = Evidence { comparisons: comparisons(outcomes.clone()), ..Evidence::default() };
        let swapped = outcomes.into_iter().map(|(a, b)| (b, a));
        let backward = Evidence { comparisons: comparisons(swapped), ..Evidence::default() };
        let promotes = |evidence| judge(evidence, &config(), 3).promote;
        prop_assert!(!(promotes(&forward) && promotes(&backward)));
    }
}
