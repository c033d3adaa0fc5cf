//! Each rule about the owner's words on a small case.

use proptest::prelude::*;

use super::*;
use crate::learn::pairs::tests::{candidate, edit, exchange, word};
use store::Feedback;

/// (id, is good, scalar) of each answer.
fn worth(candidates: Vec<Candidate>, feedback: Vec<Feedback>) -> Vec<(i64, bool, f64)> {
    let exchange = Exchange { feedback, ..exchange(1, "p", candidates) };
    let worth = |answer: &Answer<'_>| (answer.candidate.id.0, answer.is_good, answer.scalar);
    answers(&exchange).iter().map(worth).collect()
}

/// The one answer, which the judge finds good (0.9) or bad (-0.9).
fn judged(passes: bool) -> Candidate {
    candidate(1, &[5], if passes { 0.9 } else { -0.9 }, passes)
}

fn of_one(passes: bool, feedback: Vec<Feedback>) -> Option<(bool, f64)> {
    let found = worth(vec![judged(passes)], feedback);
    assert!(found.len() <= 1);
    found.first().map(|&(_, is_good, scalar)| (is_good, (scalar * 100.0).round() / 100.0))
}

fn on_aspect(aspect: &str, rating: i8) -> Feedback {
    Feedback { aspect: Some(aspect.into()), ..word(1, Some(rating)) }
}

fn verifier(passes: bool, weight: f64) -> Assessment {
    let mut verifier = judged(passes).assessments.remove(0);
    verifier.aspect = VERIFIER.into();
    verifier.weight = weight;
    verifier
}

#[test]
fn a_thumb_outranks_the_judge_and_the_newest_one_counts() {
    assert_eq!(of_one(true, vec![]), Some((true, 0.9)));
    assert_eq!(of_one(true, vec![word(1, Some(-1))]), Some((false, -1.0)));
    assert_eq!(of_one(false, vec![word(1, Some(1))]), Some((true, 1.0)));
    let down_then_up = vec![word(1, Some(-1)), word(1, Some(1))];
    assert_eq!(of_one(false, down_then_up), Some((true, 1.0)));
    let taken_back = vec![word(1, Some(1)), word(1, Some(0))];
    assert_eq!(of_one(false, taken_back), Some((false, -0.9)));
}

#[test]
fn what_the_verifier_names_takes_the_place_of_an_example_and_what_it_named_before_counts_no_more() {
    let example = |id: i64, expected| Candidate {
        author: Author::Owner,
        expected,
        ..candidate(id, &[i32::try_from(id).unwrap()], 0.9, true)
    };
    let counting = |candidates: Vec<Candidate>| -> Vec<i64> {
        worth(candidates, vec![]).into_iter().map(|(id, ..)| id).collect()
    };
    let (now, before) = (Some(Expected::Now), Some(Expected::Before));
    assert_eq!(counting(vec![example(1, None), example(2, now)]), [2]);
    assert_eq!(counting(vec![example(1, now), example(2, None)]), [1], "whichever is newer");
    assert_eq!(counting(vec![example(1, None), example(2, before)]), [1]);
    // A pair of before is stale then, and not as it was.
    let exchange = exchange(1, "p", vec![example(1, before)]);
    let standing = standing(&exchange);
    assert!(matches!(standing.as_slice(), [(CandidateId(1), None)]), "{standing:?}");
}

#[test]
fn a_rating_of_an_aspect_replaces_the_judges_level() {
    assert_eq!(of_one(false, vec![on_aspect("correct", 1)]), Some((true, 1.0)));
    assert_eq!(of_one(true, vec![on_aspect("correct", 0)]), Some((false, 0.0)));
    // One that the judge does not know is one more.
    assert_eq!(of_one(true, vec![on_aspect("kind", -1)]), Some((false, -0.05)));
}

#[test]
fn a_newer_fault_takes_back_an_older_thumb_up_but_not_the_other_way_round() {
    let praised_then_faulted = vec![word(1, Some(1)), on_aspect("correct", -1)];
    assert_eq!(of_one(true, praised_then_faulted), Some((false, -1.0)));
    let faulted_then_praised = vec![on_aspect("correct", -1), word(1, Some(1))];
    assert_eq!(of_one(true, faulted_then_praised), Some((true, 1.0)));
    let refused_but_correct = vec![word(1, Some(-1)), on_aspect("correct", 1)];
    assert_eq!(of_one(true, refused_but_correct), Some((false, -1.0)));
}

#[test]
fn what_the_owner_praises_and_a_verifier_refuses_is_left_out() {
    let mut answer = judged(true);
    answer.assessments.push(verifier(false, 1.0));
    assert_eq!(worth(vec![answer.clone()], vec![word(1, Some(1))]), []);
    assert_eq!(worth(vec![answer.clone()], vec![word(1, Some(-1))]), [(1, false, -1.0)]);
    // One that only measures has no say.
    answer.assessments[1].weight = 0.0;
    assert_eq!(worth(vec![answer], vec![word(1, Some(1))]), [(1, true, 1.0)]);
    let (mut edited, said) = edit(2, 1, &[7]);
    edited.assessments = vec![verifier(false, 1.0)];
    assert_eq!(worth(vec![judged(true), edited], vec![said]), [(1, false, -1.0)]);
}

#[test]
fn an_answer_that_only_the_owner_has_judged_takes_part() {
    let mut unjudged = judged(true);
    unjudged.assessments.clear();
    assert_eq!(worth(vec![unjudged.clone()], vec![]), []);
    assert_eq!(worth(vec![unjudged.clone()], vec![word(1, Some(-1))]), [(1, false, -1.0)]);
    assert_eq!(worth(vec![unjudged], vec![on_aspect("correct", 1)]), [(1, true, 1.0)]);
}

#[test]
fn an_edit_is_good_and_speaks_against_what_it_edits() {
    let (first, said) = edit(2, 1, &[7]);
    let (second, said_again) = edit(3, 1, &[8]);
    let candidates = vec![judged(true), first, second];
    let both = vec![said.clone(), said_again.clone()];
    assert_eq!(worth(candidates.clone(), both.clone()), [(1, false, -1.0), (3, true, 1.0)]);
    // "Good, and yet better would be": both are good.
    let praised = Feedback { rating: Some(1), ..said_again };
    let found = worth(candidates.clone(), vec![said, praised]);
    assert_eq!(found, [(1, true, 1.0), (3, true, 1.0)]);
    // The owner may think otherwise of the edit too.
    let refused = [both, vec![word(3, Some(-1))]].concat();
    assert_eq!(worth(candidates, refused), [(1, false, -1.0), (3, false, -1.0)]);
}

proptest! {
    #[test]
    fn any_words_leave_every_answer_with_a_scalar_inside_the_scale(
        words in prop::collection::vec((1i64..4, prop::option::of(-1i8..2), 0usize..3), 0..12),
    ) {
        let feedback = words.into_iter().map(|(candidate, rating, aspect)| Feedback {
            aspect: ["correct", "kind"].get(aspect).map(|&aspect| aspect.to_owned()),
            edit: rating.is_none().then(|| "better".to_owned()),
            ..word(candidate, rating)
        });
        let candidates = vec![judged(true), candidate(2, &[6], -0.2, false), edit(3, 2, &[7]).0];
        let found = worth(candidates, feedback.collect());
        prop_assert!(!found.is_empty());
        for (_, _, scalar) in found {
            prop_assert!((-1.0..=1.0).contains(&scalar));
        }
    }
}
