//! Twelve prompts of six drafts; each draft has a token of its prompt and words that all prompts have.

use prompt::{Bounds, Verifier};
use proptest::prelude::*;

use super::*;
use crate::learn::held_out::HeldOut;
use crate::learn::pairs::Pairing;
use crate::learn::pairs::tests::{Words, candidate, exchange, policy};
use protocol::Objective;

const PROMPTS: i64 = 12;
const DRAFTS: i64 = 6;
/// The token of the first prompt.
const OWN: i32 = 100;
/// Words that drafts of other prompts have.
const USUAL: [i32; 2] = [50, 51];

fn one_sentence() -> Verifier {
    Verifier::Length { words: None, sentences: Some(Bounds::Exactly(1)), lines: None }
}

/// Drafts about the prompt, the last one of usual words alone.
fn drafts(prompt: i64) -> Vec<Candidate> {
    let about = |draft: i64| {
        let own = OWN + i32::try_from(prompt).unwrap();
        let tokens =
            [own, USUAL[usize::try_from(draft).unwrap() % 2], 60 + i32::try_from(draft).unwrap()];
        candidate(100 * prompt + draft, &tokens, 1.0, true)
    };
    let usual = candidate(100 * prompt + DRAFTS, &USUAL, 1.0, true);
    (0..DRAFTS).map(about).chain([usual]).collect()
}

fn prompt_of(number: i64, candidates: Vec<Candidate>) -> Exchange {
    let verifier = Some(one_sentence());
    Exchange { verifier, ..exchange(number, &format!("prompt {number}"), candidates) }
}

fn prompts() -> Vec<Exchange> {
    (0..PROMPTS).map(|number| prompt_of(number, drafts(number))).collect()
}

fn counted(verifier: Verifier, exchanges: &[Exchange]) -> Topics {
    let mut topics = Topics::of([("test".to_owned(), verifier)].into_iter());
    for exchange in exchanges {
        topics.add(exchange);
    }
    topics.settle();
    topics
}

#[test]
fn an_answer_of_usual_words_is_off_topic_and_one_about_its_prompt_is_not() {
    let prompts = prompts();
    let topics = counted(one_sentence(), &prompts);
    for prompt in &prompts {
        let off: Vec<_> =
            prompt.candidates.iter().filter(|it| topics.is_off_topic(prompt, it)).collect();
        assert_eq!(off, [&prompt.candidates[6]]);
    }
}

/// By hand: of six other drafts three have the first word, and of 77 elsewhere 44.
#[test]
fn the_specificity_is_the_mean_information_of_a_token() {
    let prompts = prompts();
    let topics = counted(one_sentence(), &prompts);
    let word = |here: f64, elsewhere: f64| {
        let elsewhere = (elsewhere + 0.5) / 78.0;
        (((here + 4.0 * elsewhere) / 10.0) / elsewhere).ln()
    };
    // Both words, and the end token, which every draft has.
    let wanted = (2.0 * word(3.0, 44.0) + word(6.0, 77.0)) / 3.0;
    let found = topics.specificity(&prompts[0], &prompts[0].candidates[6]).unwrap();
    assert!((found - wanted).abs() < 1e-12, "{found} {wanted}");
}

#[test]
fn nothing_is_off_topic_where_the_check_sees_the_prompt_or_little_is_known() {
    let all = prompts();
    let is_off = |topics: &Topics, prompt: &Exchange| {
        prompt.candidates.last().is_some_and(|it| topics.is_off_topic(prompt, it))
    };
    let topics = counted(one_sentence(), &all);
    assert!(is_off(&topics, &all[0]));
    let reference = Some("the right one".to_owned());
    assert!(!is_off(&topics, &Exchange { reference, ..all[0].clone() }));
    let verifier = Some(Verifier::Exact { expected: "right".into() });
    assert!(!is_off(&topics, &Exchange { verifier, ..all[0].clone() }));
    assert!(!is_off(&topics, &Exchange { agent: "other".into(), ..all[0].clone() }));
    assert!(!is_off(&counted(one_sentence(), &all[..9]), &all[0]), "nine prompts");
    let few = prompt_of(0, drafts(0).split_off(3));
    let with_few = [std::slice::from_ref(&few), &all[1..]].concat();
    assert!(!is_off(&counted(one_sentence(), &with_few), &few));
    // A check that knows what is right.
    let exact = Verifier::Exact { expected: "right".into() };
    let same = |it: &Exchange| Exchange { verifier: Some(exact.clone()), ..it.clone() };
    let all: Vec<_> = all.iter().map(same).collect();
    assert!(counted(exact.clone(), &all).agents().is_empty());
}

/// Its words are no usual ones because it was asked thirty times.
#[test]
fn a_prompt_that_was_stored_often_is_no_other_prompt() {
    let mut all = prompts();
    for round in 1..30 {
        let again = drafts(0).into_iter().map(|draft| {
            let id = CandidateId(10_000 * round + draft.id.0);
            Candidate { id, ..draft }
        });
        all.push(prompt_of(0, again.collect()));
    }
    let topics = counted(one_sentence(), &all);
    for draft in &all[0].candidates[..6] {
        assert!(!topics.is_off_topic(&all[0], draft));
    }
}

#[test]
fn an_answer_that_was_given_often_is_on_topic_and_a_refinement_is_no_draft() {
    let mut all = prompts();
    // Five drafts of ten are the same, with a word that no other prompt has, and the others are usual.
    let again = |draft: i64| candidate(500 + draft, &[7], 1.0, true);
    let usual = |draft: i64| candidate(600 + draft, &USUAL, 1.0, true);
    all[0].candidates = (0..5).map(again).chain((0..5).map(usual)).collect();
    let refined = Candidate { parent: Some(CandidateId(500)), ..candidate(700, &[7], 1.0, true) };
    let topics = counted(one_sentence(), &all);
    let before = topics.specificity(&all[0], &refined).unwrap();
    assert!(!topics.is_off_topic(&all[0], &all[0].candidates[0]));
    all[0].candidates.push(refined.clone());
    let after = counted(one_sentence(), &all).specificity(&all[0], &refined).unwrap();
    assert_eq!(after.to_bits(), before.to_bits());
}

/// Two words for every draft that no other has, and one that all have.
#[test]
fn nothing_is_off_topic_where_drafts_of_a_prompt_have_nothing_in_common() {
    let draft = |number: i64| {
        let word = 1000 + 2 * i32::try_from(number).unwrap();
        candidate(number, &[word, word + 1, USUAL[0]], 1.0, true)
    };
    let all: Vec<_> = (0..PROMPTS)
        .map(|prompt| prompt_of(prompt, (0..DRAFTS).map(|it| draft(100 * prompt + it)).collect()))
        .collect();
    let topics = counted(one_sentence(), &all);
    let answer = &all[0].candidates[0];
    assert!(topics.specificity(&all[0], answer).is_some_and(|it| it < 0.0));
    assert!(!topics.is_off_topic(&all[0], answer));
}

#[test]
fn what_is_off_topic_is_not_learned_but_for_the_owner() {
    let prompts = prompts();
    let topics = counted(one_sentence(), &prompts);
    let (policy, held_out) = (policy(), HeldOut::default());
    let mut pairing =
        Pairing::new(&policy, &Objective::Sft, &held_out, &Words).without_off_topic(&topics);
    let mut usual = prompts[0].clone();
    usual.candidates.rotate_right(1);
    pairing.add(&usual);
    let (pairs, tally) = pairing.finish();
    let chosen: Vec<_> = pairs.iter().filter_map(|pair| pair.row.chosen).collect();
    assert_eq!((chosen.len(), tally.off_topic), (2, 1));
    assert!(!chosen.contains(&usual.candidates[0].id));

    let mut praised = usual;
    praised.feedback = vec![store::Feedback {
        exchange: praised.id,
        candidate: Some(praised.candidates[0].id),
        rating: Some(1),
        aspect: None,
        edit: None,
    }];
    let mut pairing =
        Pairing::new(&policy, &Objective::Sft, &held_out, &Words).without_off_topic(&topics);
    pairing.add(&praised);
    let (pairs, tally) = pairing.finish();
    assert_eq!((pairs[0].row.chosen, tally.off_topic), (Some(praised.candidates[0].id), 0));
}

proptest! {
    #[test]
    fn any_drafts_have_a_finite_specificity(
        texts in prop::collection::vec(prop::collection::vec(1..40_i32, 1..12), 5..9),
    ) {
        let of = |number: i64| {
            let drafts = texts.iter().enumerate().map(|(i, tokens)| {
                candidate(100 * number + i64::try_from(i).unwrap(), tokens, 1.0, true)
            });
            prompt_of(number, drafts.collect())
        };
        let prompts: Vec<_> = (0..PROMPTS).map(of).collect();
        let topics = counted(one_sentence(), &prompts);
        for answer in &prompts[0].candidates {
            if let Some(specificity) = topics.specificity(&prompts[0], answer) {
                prop_assert!(specificity.is_finite());
            }
        }
    }
}
