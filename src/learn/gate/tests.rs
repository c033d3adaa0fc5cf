//! Tests of the gate: its numbers against hand-made cases, and simulated candidates.

use proptest::prelude::*;

use super::*;
use crate::learn::random::Random;

pub(super) fn config() -> GateConfig {
    GateConfig {
        prompts: 200,
        margin: 0.0,
        confidence: 0.95,
        truth_margin: 0.05,
        general_prompts: 200,
        max_general_loss: 0.2,
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
        is_cut: false,
        tokens: (0..n_tokens).map(Token).collect(),
    }
}

fn comparisons(outcomes: impl IntoIterator<Item = (bool, bool)>) -> Vec<Comparison> {
    let compare = |(i, (active, candidate)): (i32, (bool, bool))| {
        let mut both = Comparison {
            verifier_decides: true,
            reference: None,
            log_ratios: vec![0.1; 10],
            active: answered(active, 10),
            candidate: answered(candidate, 10),
        };
        // Each prompt has its own words, and the two generations begin with different ones.
        for answer in [&mut both.active, &mut both.candidate] {
            answer.tokens.iter_mut().for_each(|token| token.0 += 1000 + 20 * i);
        }
        both.candidate.tokens[0].0 += 10;
        both
    };
    (0..).zip(outcomes).map(compare).collect()
}

/// `wins` prompts that only the candidate has right, `losses` that only the active one has.
fn evidence(wins: usize, losses: usize, ties: usize) -> Evidence {
    let outcomes = std::iter::repeat_n((false, true), wins)
        .chain(std::iter::repeat_n((true, false), losses))
        .chain(std::iter::repeat_n((true, true), ties));
    of(comparisons(outcomes))
}

/// Evidence in which all that could be asked was asked, in an order of no meaning.
fn of(mut comparisons: Vec<Comparison>) -> Evidence {
    Random::new(1).shuffle(&mut comparisons);
    let prompts = comparisons.len();
    let has_truth = |both: &&Comparison| truth(both).is_some();
    let verified = || comparisons.iter().filter(has_truth);
    let guarded = verified().filter(|both| !both.verifier_decides).count();
    let available = Available { prompts, verified: verified().count(), guarded, beyond: 0 };
    let parity = Some(Parity::new(&[(0.4, 0.41), (-0.2, -0.21)]));
    Evidence { parity, comparisons, available, general: Vec::new() }
}

#[test]
fn a_clearly_better_candidate_is_promoted_with_its_numbers() {
    let verdict = judge(&evidence(40, 10, 150), &config());
    assert!(verdict.promote, "{}", verdict.reason);
    assert!((verdict.gain - 0.15).abs() < 1e-9);
    assert!(verdict.lower_bound > 0.0 && verdict.lower_bound < verdict.gain);
    assert_eq!((verdict.wins, verdict.losses), (40, 10));
    assert!(verdict.p < 1e-4);
    assert_eq!(verdict.scored_by_verifier, 200);
}

#[test]
fn the_same_evidence_gives_the_same_verdict() {
    let evidence = evidence(30, 20, 100);
    assert_eq!(judge(&evidence, &config()), judge(&evidence, &config()));
}

/// (share promoted, mean prompts asked) of gates of at most 200 prompts that stop when they may.
fn simulate(seed: u64, mut draw: impl FnMut(&mut Random) -> Comparison) -> (f64, f64) {
    const RUNS: u32 = 2000;
    let config = config();
    let mut random = Random::new(seed);
    let (mut promoted, mut asked) = (0, 0);
    for _ in 0..RUNS {
        let comparisons: Vec<Comparison> = (0..200).map(|_| draw(&mut random)).collect();
        let mut evidence = of(comparisons);
        let mut trial = Trial::new(&config, evidence.available);
        let mut n = 0;
        for both in &evidence.comparisons {
            trial.observe(both);
            n += 1;
            if trial.stopped().is_some() {
                break;
            }
        }
        evidence.comparisons.truncate(n);
        asked += u32::try_from(n).unwrap();
        // A verdict costs more than a simulated answer; without a gain it is known.
        promoted += u32::from(trial.gain.is_won() && judge(&evidence, &config).promote);
    }
    (f64::from(promoted) / f64::from(RUNS), f64::from(asked) / f64::from(RUNS))
}

fn by_verifier_alone(active: bool, candidate: bool) -> Comparison {
    comparisons([(active, candidate)]).remove(0)
}

fn chance(random: &mut Random, percent: usize) -> bool {
    random.below(100) < percent
}

/// The judge's word on two answers of known truth: right ones get more, with this much noise.
fn by_judge(random: &mut Random, active: bool, candidate: bool, noise: f64) -> Comparison {
    let mut judged = |right: bool| {
        let luck = f64::from(u32::try_from(random.below(1000)).unwrap()) / 500.0 - 1.0;
        let scalar = ((if right { 0.4 } else { -0.4 }) + noise * luck).clamp(-1.0, 1.0);
        Answered { scalar, passes: scalar > 0.0, ..answered(right, 10) }
    };
    let (active, mut candidate) = (judged(active), judged(candidate));
    candidate.tokens[0] = Token(10);
    let log_ratios = vec![0.1; 10];
    Comparison { verifier_decides: false, reference: None, log_ratios, active, candidate }
}

#[test]
fn a_candidate_that_is_no_better_is_promoted_in_at_most_one_run_of_twenty() {
    // The same coin on both sides: half of the prompts are discordant.
    let coins = |random: &mut Random| by_verifier_alone(chance(random, 50), chance(random, 50));
    // Hard and easy prompts, which are so for both.
    let alike = |random: &mut Random| {
        let percent = [5, 95, 50, 20][random.below(4)];
        by_verifier_alone(chance(random, percent), chance(random, percent))
    };
    // Better on many prompts by a little what it is worse on few by a lot.
    let skewed = |random: &mut Random| {
        let mut both = by_verifier_alone(true, true);
        both.verifier_decides = false;
        (both.active.verified, both.candidate.verified) = (None, None);
        both.active.scalar = 0.9;
        both.candidate.scalar = if chance(random, 5) { -1.0 } else { 1.0 };
        both
    };
    // All that speaks for the candidate is the judge's noise.
    let noise = |random: &mut Random| {
        let right = chance(random, 60);
        by_judge(random, right, right, 1.0)
    };
    for (name, (promoted, asked)) in [
        ("coins", simulate(11, coins)),
        ("alike", simulate(12, alike)),
        ("skewed", simulate(13, skewed)),
        ("noise", simulate(14, noise)),
    ] {
        println!("no better, {name}: promoted {promoted:.4}, asked {asked:.1} of 200");
        assert!(promoted <= 0.05, "{name}: {promoted}");
        assert!(asked < 190.0, "{name}: {asked}");
    }
}

#[test]
fn a_candidate_that_gains_ten_points_is_promoted_in_four_runs_of_five() {
    // 30 % discordant, 20 % for and 10 % against.
    let (promoted, asked) = simulate(21, |random| match random.below(10) {
        0 | 1 => by_verifier_alone(false, true),
        2 => by_verifier_alone(true, false),
        _ => by_verifier_alone(true, true),
    });
    println!("10 points better: promoted {promoted:.4}, asked {asked:.1} of 200");
    assert!(promoted >= 0.8, "{promoted}");
    assert!(asked < 170.0, "{asked}");
    let (promoted, asked) = simulate(22, |random| match random.below(100) {
        0..30 => by_verifier_alone(false, true),
        30..35 => by_verifier_alone(true, false),
        _ => by_verifier_alone(true, true),
    });
    println!("25 points better: promoted {promoted:.4}, asked {asked:.1} of 200");
    assert!(promoted > 0.99 && asked < 80.0, "{promoted} {asked}");
}

#[test]
fn a_poisoned_judge_promotes_nothing_and_the_verdict_says_why() {
    // The candidate is better by every third prompt or worse by as many; what the judge makes of it
    // is another matter.
    let mut random = Random::new(31);
    let mut verdict = |change: fn(usize) -> (bool, bool),
                       judge_says: &dyn Fn(bool, &mut Random) -> f64| {
        let both = |i| {
            let (active, candidate) = change(i);
            let mut both = by_judge(&mut random, active, candidate, 0.0);
            for answer in [&mut both.active, &mut both.candidate] {
                let right = answer.verified == Some(true);
                answer.scalar = judge_says(right, &mut random);
                answer.passes = answer.scalar > 0.0;
            }
            both
        };
        judge(&of((0..200).map(both).collect()), &config())
    };
    let worse: fn(usize) -> (bool, bool) = |i| (true, i % 3 != 0);
    let better: fn(usize) -> (bool, bool) = |i| (i % 3 != 0, true);

    let random_judge = verdict(worse, &|_, random| if chance(random, 50) { 0.8 } else { -0.8 });
    assert!(!random_judge.promote && random_judge.reason.contains("gate.margin"));
    // It likes what is wrong, so the worse candidate pleases it. The verifiers object.
    let inverted = verdict(worse, &|right, _| if right { -0.8 } else { 0.8 });
    assert!(inverted.lower_bound > 0.0 && !inverted.promote, "{}", inverted.reason);
    assert!(inverted.reason.contains("gate.truth_margin"), "{}", inverted.reason);
    assert!(inverted.gap_alarm && inverted.reason.contains("ALARM"), "{}", inverted.reason);
    // It sees nothing, so it cannot show a gain, whatever there is.
    for change in [worse, better] {
        let always_yes = verdict(change, &|_, _| 1.0);
        assert!(!always_yes.promote && always_yes.reason.contains("gate.margin"));
    }
    // An honest judge of the same candidates.
    let honest = |right: bool, _: &mut Random| if right { 0.8 } else { -0.8 };
    let honest = verdict(better, &honest);
    assert!(honest.promote && !honest.gap_alarm, "{}", honest.reason);
}

#[test]
fn a_gain_that_the_verifiers_do_not_see_raises_the_alarm() {
    let mut random = Random::new(41);
    let both = |_| {
        let right = chance(&mut random, 70);
        let mut both = by_judge(&mut random, right, right, 0.1);
        both.candidate.scalar = (both.candidate.scalar + 0.3).min(1.0);
        both
    };
    let verdict = judge(&of((0..200).map(both).collect()), &config());
    // The truth has not moved at all, which is not worse.
    assert!(verdict.promote && verdict.gap_alarm, "{}", verdict.reason);
    assert!(verdict.verified.unwrap().guards);
}

#[test]
fn too_few_verifiers_to_tell_do_not_guard() {
    let mut random = Random::new(42);
    let both = |i| {
        let mut both = by_judge(&mut random, i % 3 != 0, true, 0.0);
        if i >= MIN_PROMPTS - 1 {
            (both.active.verified, both.candidate.verified) = (None, None);
        }
        both
    };
    let verdict = judge(&of((0..200).map(both).collect()), &config());
    assert!(verdict.promote && !verdict.verified.unwrap().guards, "{}", verdict.reason);
}

#[test]
fn what_is_lost_outside_the_task_stops_a_promotion() {
    let with_general = |loss: f64| {
        let mut evidence = evidence(60, 0, 60);
        evidence.general = vec![vec![loss; 30]; 40];
        judge(&evidence, &config())
    };
    let kept = with_general(0.15);
    assert!(kept.promote && kept.general.unwrap().is_kept, "{}", kept.reason);
    assert_eq!(kept.general.map(|it| (it.prompts, it.tokens)), Some((40, 1200)));
    for loss in [0.3, f64::NAN] {
        let lost = with_general(loss);
        assert!(!lost.promote && lost.reason.contains("gate.max_general_loss"), "{}", lost.reason);
    }
}

#[test]
fn an_adapter_made_elsewhere_has_no_parity_and_is_judged_by_the_rest() {
    let mut evidence = evidence(60, 0, 60);
    evidence.parity = None;
    assert!(judge(&evidence, &config()).promote);
}

#[test]
fn a_verdict_says_how_many_prompts_the_gain_seen_needs() {
    let verdict = judge(&evidence(32, 22, 146), &config());
    assert!(!verdict.promote);
    let needed = verdict.plan.prompts.unwrap();
    assert!((600..=700).contains(&needed), "{needed}");
    assert!(verdict.reason.contains(&format!("{needed} prompts are needed")), "{}", verdict.reason);
    assert!((0.08..0.1).contains(&verdict.plan.visible_gain), "{:?}", verdict.plan);
    assert!(!verdict.reason.contains("gate.prompts"), "{}", verdict.reason);
    // More are there, and a key says that they are not asked.
    let mut limited = evidence(32, 22, 146);
    limited.available.beyond = 300;
    let reason = judge(&limited, &config()).reason;
    assert!(reason.contains("; of 500 that there are `learn.gate.prompts` asks 200)"), "{reason}");
    assert_eq!(judge(&evidence(10, 20, 100), &config()).plan.prompts, None);
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
    let verdict = judge(&evidence, &config());
    assert!(!verdict.promote);
    assert_eq!(verdict.scored_by_verifier, 0);
    assert!((verdict.gain).abs() < 1e-12);
    let verified = verdict.verified.unwrap();
    assert!((verified.candidate - verified.active - 0.5).abs() < 1e-9);
}

/// What a judge alone says is 60 wins of 120.
fn by_judge_alone() -> Evidence {
    let mut evidence = evidence(60, 0, 60);
    for both in &mut evidence.comparisons {
        (both.active.verified, both.candidate.verified) = (None, None);
    }
    of(evidence.comparisons)
}

/// A band, and what leaves it.
type Change = (&'static str, fn(&mut Comparison));

/// Candidates that answer at length, in one word, or far from the active one.
const CHANGES: [Change; 4] = [
    ("length_ratio", |both| both.candidate.tokens.extend((50..80).map(Token))),
    ("length_ratio", |both| both.candidate.tokens.truncate(3)),
    ("min_diversity_ratio", |both| both.candidate.tokens[1..].fill(Token(1))),
    ("max_kl", |both| both.log_ratios.fill(0.9)),
];

#[test]
fn each_band_stops_a_promotion_that_a_judge_alone_speaks_for() {
    assert!(judge(&by_judge_alone(), &config()).promote);
    for (word, change) in CHANGES {
        let mut evidence = by_judge_alone();
        evidence.comparisons.iter_mut().for_each(change);
        let verdict = judge(&evidence, &config());
        assert!(!verdict.promote && !verdict.proven, "{}", verdict.reason);
        assert!(verdict.reason.contains(word), "{word}: {}", verdict.reason);
    }
}

#[test]
fn verifiers_that_show_the_gain_are_not_overruled_by_bands_which_are_reported() {
    for decides in [true, false] {
        for (word, change) in CHANGES {
            let mut evidence = evidence(60, 0, 60);
            for both in &mut evidence.comparisons {
                both.verifier_decides = decides;
                change(both);
            }
            let verdict = judge(&of(evidence.comparisons), &config());
            assert!(verdict.promote && verdict.proven, "{}", verdict.reason);
            assert!(verdict.reason.contains(word), "{word}: {}", verdict.reason);
            assert!(verdict.reason.contains("not held against it"), "{}", verdict.reason);
        }
    }
}

#[test]
fn bands_guard_the_prompts_that_only_a_judge_scores_beside_those_of_verifiers() {
    let mut evidence = evidence(60, 0, 60);
    // Another agent's prompts, where the judge may be fooled by length.
    let mut judged = by_judge_alone().comparisons;
    for both in &mut judged {
        both.candidate.tokens.extend((50..80).map(Token));
    }
    evidence.comparisons.extend(judged);
    let verdict = judge(&of(evidence.comparisons), &config());
    assert!(verdict.proven && !verdict.promote, "{}", verdict.reason);
    assert!(verdict.reason.contains("answers are 4.00 times as long"), "{}", verdict.reason);
}

#[test]
fn verifiers_that_do_not_show_the_gain_leave_the_bands_in_force() {
    let mut random = Random::new(43);
    let both = |_| {
        let right = chance(&mut random, 70);
        let mut both = by_judge(&mut random, right, right, 0.1);
        both.candidate.scalar = (both.candidate.scalar + 0.3).min(1.0);
        both.candidate.tokens.extend((50..80).map(Token));
        both
    };
    let verdict = judge(&of((0..200).map(both).collect()), &config());
    assert!(!verdict.promote && verdict.reason.contains("length_ratio"), "{}", verdict.reason);
}

/// The candidate gives one answer to so many prompts.
fn same(evidence: &mut Evidence, n: usize) {
    for both in evidence.comparisons.iter_mut().take(n) {
        both.candidate.tokens = answered(true, 10).tokens;
    }
}

#[test]
fn what_no_gain_excuses_stops_a_promotion_and_says_so() {
    let stopped = |change: fn(&mut Evidence), word: &str| {
        let mut evidence = evidence(60, 0, 60);
        assert!(judge(&evidence, &config()).promote);
        change(&mut evidence);
        let verdict = judge(&evidence, &config());
        assert!(!verdict.promote, "{word}");
        assert!(verdict.reason.contains(word), "{}", verdict.reason);
    };
    let disagree = "trainer and server disagree";
    stopped(|evidence| evidence.parity = Some(Parity::new(&[(0.4, 0.0)])), disagree);
    stopped(|evidence| evidence.parity = Some(Parity::new(&[])), disagree);
    stopped(|evidence| evidence.comparisons.truncate(MIN_PROMPTS - 1), "prove nothing");
    stopped(|evidence| same(evidence, 13), "one and the same answer is given to 10.8 %");
    // A verifier may be pleased by one sentence that fits everything.
    stopped(|evidence| same(evidence, 120), "one and the same answer is given to 100.0 %");
    let mut twelve = evidence(60, 0, 60);
    same(&mut twelve, 12);
    assert!(judge(&twelve, &config()).promote, "a tenth");
    stopped(
        |evidence| {
            for both in evidence.comparisons.iter_mut().take(7) {
                both.candidate.is_cut = true;
            }
        },
        "5.8 % of the answers are cut off",
    );
    let mut six = evidence(60, 0, 60);
    six.comparisons.iter_mut().take(6).for_each(|it| it.candidate.is_cut = true);
    assert!(judge(&six, &config()).promote, "five points more");
}

#[test]
fn an_answer_may_be_as_common_as_among_the_references_or_before() {
    let labels = |change: fn(&mut Comparison, Vec<Token>)| {
        let mut evidence = evidence(60, 0, 60);
        for (i, both) in (0..).zip(&mut evidence.comparisons) {
            change(both, vec![Token(i % 4), Token(99)]);
        }
        judge(&evidence, &config())
    };
    let unknown = labels(|both, label| both.candidate.tokens = label);
    assert!(!unknown.promote && unknown.reason.contains("25.0 %"), "{}", unknown.reason);
    let known = labels(|both, label| {
        both.reference = Some(format!("{:?}", label[0]));
        both.candidate.tokens = label;
    });
    assert!(known.promote, "{}", known.reason);
    let before = labels(|both, label| {
        both.candidate.tokens.clone_from(&label);
        both.active.tokens = [label, vec![Token(5)]].concat();
    });
    assert!(before.promote, "{}", before.reason);
}

#[test]
fn a_candidate_that_answers_as_the_active_one_is_never_promoted() {
    for margin in [0.0, -0.05, -1.0] {
        for right in [false, true] {
            let mut same = comparisons(std::iter::repeat_n((right, right), 200));
            for both in &mut same {
                both.candidate = both.active.clone();
                both.log_ratios.fill(0.0);
            }
            let verdict = judge(&of(same), &GateConfig { margin, ..config() });
            assert!(!verdict.promote, "margin {margin}: {}", verdict.reason);
            let words = if margin < 0.0 { "word for word" } else { "gate.margin" };
            assert!(verdict.reason.contains(words), "{}", verdict.reason);
        }
    }
}

#[test]
fn a_verifier_that_tosses_a_coin_promotes_no_more_than_the_stated_error() {
    // Answers differ, and what is said of them has nothing to do with them. Both when the verifier
    // decides and when the gate has only 20 prompts, over 50 times 20 nights.
    for (prompts, seed) in [(200, 51), (40, 52), (20, 53)] {
        let mut random = Random::new(seed);
        let (mut promoted, mut most) = (0, 0);
        for _ in 0..50 {
            let mut of_twenty = 0;
            for _ in 0..20 {
                let toss = |_| (chance(&mut random, 50), chance(&mut random, 50));
                let evidence = of(comparisons((0..prompts).map(toss)));
                of_twenty += u32::from(judge(&evidence, &config()).promote);
            }
            promoted += of_twenty;
            most = most.max(of_twenty);
        }
        println!("{prompts} prompts: {promoted} of 1000 promoted, at most {most} of 20");
        assert!(promoted <= 50, "{prompts} prompts: {promoted} of 1000");
    }
}

#[test]
fn empty_answers_are_outside_the_bands() {
    let mut evidence = by_judge_alone();
    for both in &mut evidence.comparisons {
        both.candidate.tokens.clear();
    }
    let verdict = judge(&evidence, &config());
    assert!(!verdict.promote && verdict.reason.contains("length_ratio"), "{}", verdict.reason);
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

proptest! {
    #[test]
    fn more_wins_never_make_the_evidence_weaker(wins in 0usize..60, losses in 0usize..60) {
        prop_assert!(mcnemar(wins + 1, losses) <= mcnemar(wins, losses) + 1e-12);
        prop_assert!(mcnemar(wins, losses + 1) >= mcnemar(wins, losses) - 1e-12);
    }

    #[test]
    fn swapping_the_sides_never_promotes_both(outcomes in prop::collection::vec(any::<(bool, bool)>(), 20..80)) {
        let forward = of(comparisons(outcomes.clone()));
        let swapped = outcomes.into_iter().map(|(a, b)| (b, a));
        let backward = of(comparisons(swapped));
        let promotes = |evidence| judge(evidence, &config()).promote;
        prop_assert!(!(promotes(&forward) && promotes(&backward)));
    }
}
