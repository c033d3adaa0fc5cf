//! Tests of the pairing: each rule on a small case, and properties that hold for any candidates.

use proptest::prelude::*;

use super::*;
use crate::reflect;
use config::VERIFIER;
use engine::{Generation, Sampling, TextPart};
use prompt::{Message, Role};
use store::{Assessment, Author, CandidateId, ExchangeId, Feedback, Source};

pub(in crate::learn) const END: Token = Token(0);

#[derive(Debug)]
pub(in crate::learn) struct Words;

impl Vocabulary for Words {
    fn tokenize(&self, _: &[TextPart]) -> Vec<Token> {
        Vec::new()
    }
    fn piece(&self, _: Token) -> Vec<u8> {
        Vec::new()
    }
    fn is_end(&self, token: Token) -> bool {
        token == END
    }
}

pub(in crate::learn) fn policy() -> PairPolicy {
    PairPolicy {
        per_prompt: 2,
        min_margin: 0.1,
        max_length_ratio: 1.5,
        max_parent_similarity: 0.8,
        positives: Positives::Veto,
        rejected: Rejected::Random,
        use_refinements: true,
        replay: 1.0,
        max_imbalance: 4.0,
        max_group: 16,
    }
}

/// One aspect with this value (-1 to 1).
pub(in crate::learn) fn assessment(value: f32, passes: bool) -> Assessment {
    Assessment {
        aspect: "correct".into(),
        rubric_version: "1".into(),
        judge: "test".into(),
        levels: [f32::midpoint(1.0, -value), 0.0, f32::midpoint(1.0, value)],
        mass: 1.0,
        weight: 1.0,
        passes,
        reason: None,
    }
}

/// A draft that ends well; `tokens` get the end token.
pub(in crate::learn) fn candidate(id: i64, tokens: &[i32], value: f32, passes: bool) -> Candidate {
    let mut tokens: Vec<Token> = tokens.iter().copied().map(Token).collect();
    tokens.push(END);
    Candidate {
        id: CandidateId(id),
        author: Author::Model,
        parent: None,
        generation: Generation::BASE,
        text: String::new(),
        logprobs: vec![0.0; tokens.len()],
        tokens,
        sampling: Sampling::default(),
        finish: FinishReason::Stop,
        critique: None,
        critic: None,
        shots: Vec::new(),
        expected: None,
        assessments: vec![assessment(value, passes)],
    }
}

pub(in crate::learn) fn exchange(id: i64, prompt: &str, candidates: Vec<Candidate>) -> Exchange {
    Exchange {
        id: ExchangeId(id),
        created_ms: 0,
        agent: "test".into(),
        source: Source::Chat,
        messages: vec![Message { role: Role::User, content: prompt.into() }],
        prompt_tokens: prompt.bytes().map(|byte| Token(byte.into())).collect(),
        reference: None,
        verifier: None,
        aspect_choice: None,
        served: None,
        candidates,
        feedback: Vec::new(),
    }
}

const DPO: Objective = Objective::Dpo { beta: 0.1, nll: 1.0 };

fn paired(policy: &PairPolicy, objective: Objective, exchanges: &[Exchange]) -> (Vec<Pair>, Tally) {
    let held_out = HeldOut::new(["held out"]);
    let mut pairing = Pairing::new(policy, &objective, &held_out, &Words);
    for exchange in exchanges {
        pairing.add(exchange);
    }
    pairing.finish()
}

fn chosen_and_rejected(pairs: &[Pair]) -> Vec<(i64, Option<i64>)> {
    let sides = |pair: &Pair| (pair.row.chosen.unwrap().0, pair.row.rejected.map(|id| id.0));
    pairs.iter().map(sides).collect()
}

#[test]
fn the_best_answer_that_passes_is_chosen_against_one_that_fails() {
    let one = exchange(
        1,
        "p",
        vec![
            candidate(1, &[5, 6, 7], -0.5, false),
            candidate(2, &[5, 6, 8], 0.5, true),
            candidate(3, &[5, 6, 9], 0.9, true),
        ],
    );
    let (pairs, _) = paired(&PairPolicy { per_prompt: 1, ..policy() }, DPO, &[one]);
    assert_eq!(chosen_and_rejected(&pairs), [(3, Some(1))]);
    assert!((pairs[0].row.margin - 1.4).abs() < 1e-6);
    assert_eq!(pairs[0].example.chosen, [5, 6, 9, 0]);
    assert_eq!(pairs[0].example.prompt, [i32::from(b'p')]);
}

#[test]
fn answers_that_two_versions_have_judged_are_not_compared() {
    let mut old_best = candidate(1, &[5, 6, 7], 0.9, true);
    let mut old_worst = candidate(2, &[5, 6, 8], -0.9, false);
    let new_good = candidate(3, &[5, 6, 9], 0.5, true);
    let new_bad = candidate(4, &[5, 7, 9], -0.5, false);
    for old in [&mut old_best, &mut old_worst] {
        old.assessments[0].rubric_version = "0".into();
    }
    let candidates = vec![old_best, old_worst.clone(), new_good.clone(), new_bad];
    let (pairs, _) = paired(&policy(), DPO, &[exchange(1, "p", candidates)]);
    assert_eq!(chosen_and_rejected(&pairs), [(3, Some(4))]);
    // Another judge is another version too.
    old_worst.assessments[0].rubric_version = "1".into();
    old_worst.assessments[0].judge = "another".into();
    let (pairs, tally) = paired(&policy(), DPO, &[exchange(1, "p", vec![old_worst, new_good])]);
    assert_eq!((pairs.len(), tally.without_rejected), (0, 1));
}

#[test]
fn by_scalar_alone_the_best_is_chosen_whatever_its_aspects_say() {
    let one = exchange(
        1,
        "p",
        vec![
            candidate(1, &[5, 6, 7], 0.5, true),
            candidate(2, &[5, 6, 8], 0.9, false),
            candidate(3, &[5, 6, 9], 0.9, false),
        ],
    );
    let best = PairPolicy { positives: Positives::Best, per_prompt: 1, ..policy() };
    let (pairs, _) = paired(&best, DPO, std::slice::from_ref(&one));
    // Its equal is not worse than it.
    assert_eq!(chosen_and_rejected(&pairs), [(2, Some(1))]);
    let (pairs, _) = paired(&best, Objective::Sft, std::slice::from_ref(&one));
    assert_eq!(chosen_and_rejected(&pairs), [(2, None)]);
    let (pairs, _) = paired(&policy(), DPO, &[one]);
    assert_eq!(pairs, [], "the veto finds no answer that passes and is better");
}

#[test]
fn an_answer_that_was_cut_off_is_never_chosen() {
    let mut cut = candidate(1, &[5, 6, 7], 0.9, true);
    cut.finish = FinishReason::Length;
    let mut stopped_by_a_string = candidate(2, &[5, 6, 8], 0.9, true);
    stopped_by_a_string.tokens.pop();
    let wrong = candidate(3, &[5, 6, 9], -0.9, false);
    let one = exchange(1, "p", vec![cut, stopped_by_a_string, wrong]);
    let (pairs, tally) = paired(&policy(), DPO, &[one]);
    assert_eq!(pairs, []);
    assert_eq!(tally.without_chosen, 1);
}

#[test]
fn a_refinement_is_not_paired_with_a_parent_that_it_hardly_changes() {
    let parent = candidate(1, &[1, 2, 3, 4, 5, 6, 7, 8, 9], -0.5, false);
    let mut refinement = candidate(2, &[1, 2, 3, 4, 5, 6, 7, 8, 99], 0.9, true);
    refinement.parent = Some(CandidateId(1));
    let one = exchange(1, "p", vec![parent, refinement]);
    let (pairs, tally) = paired(&policy(), DPO, std::slice::from_ref(&one));
    assert_eq!(pairs, []);
    assert_eq!(tally.without_rejected, 1);
    // The same texts without the kinship are a fine pair.
    let mut strangers = one;
    strangers.candidates[1].parent = None;
    assert_eq!(paired(&policy(), DPO, &[strangers]).0.len(), 1);
}

#[test]
fn refinements_take_part_only_where_the_policy_wants_them() {
    let mut refinement = candidate(2, &[5, 6, 8], 0.9, true);
    refinement.parent = Some(CandidateId(9));
    let one = exchange(1, "p", vec![candidate(1, &[7, 7, 7], -0.5, false), refinement]);
    let without = PairPolicy { use_refinements: false, ..policy() };
    assert_eq!(paired(&without, DPO, std::slice::from_ref(&one)).0, []);
    assert_eq!(paired(&policy(), DPO, &[one]).0.len(), 1);
}

#[test]
fn for_sft_every_positive_counts_up_to_the_cap_and_nothing_is_rejected() {
    let candidates = (1..=4).map(|id| candidate(id, &[7, i32::try_from(id).unwrap()], 0.9, true));
    let one = exchange(1, "p", candidates.collect());
    let (pairs, _) = paired(&policy(), Objective::Sft, &[one]);
    assert_eq!(chosen_and_rejected(&pairs), [(1, None), (2, None)]);
    assert!(pairs.iter().all(|pair| pair.example.rejected.is_none()));
}

#[test]
fn mixed_takes_pairs_where_there_are_and_the_good_answers_of_other_prompts_alone() {
    let mixed = Objective::Mixed { beta: 0.1, nll: 1.0 };
    let exchanges = [
        exchange(
            1,
            "one good",
            vec![candidate(1, &[1], 0.9, true), candidate(2, &[2], -0.9, false)],
        ),
        exchange(2, "all good", (3..7).map(|id| candidate(id, &[3, 1], 0.9, true)).collect()),
        exchange(
            3,
            "two good",
            vec![
                candidate(7, &[4], 0.9, true),
                candidate(8, &[5], 0.8, true),
                candidate(9, &[6], -0.9, false),
                candidate(10, &[7], 0.7, true),
            ],
        ),
        exchange(4, "all bad", vec![candidate(11, &[8], -0.9, false)]),
    ];
    let (pairs, tally) = paired(&policy(), mixed, &exchanges);
    let expected = [(1, Some(2)), (3, None), (7, Some(9)), (8, None)];
    assert_eq!(chosen_and_rejected(&pairs), expected, "no text twice, no prompt above its cap");
    assert_eq!((tally.alone, tally.without_chosen), (1, 1));
}

#[test]
fn a_prompt_that_was_asked_twice_gives_no_pair_twice_and_shares_its_cap() {
    let candidates = |from: i64| {
        vec![candidate(from, &[5, 6, 7], -0.5, false), candidate(from + 1, &[5, 6, 8], 0.9, true)]
    };
    let (pairs, _) =
        paired(&policy(), DPO, &[exchange(1, "p", candidates(1)), exchange(2, "p", candidates(3))]);
    assert_eq!(chosen_and_rejected(&pairs), [(2, Some(1))]);
    let other = vec![candidate(5, &[8, 6, 7], -0.5, false), candidate(6, &[8, 6, 8], 0.9, true)];
    let third = vec![candidate(7, &[9, 6, 7], -0.5, false), candidate(8, &[9, 6, 8], 0.9, true)];
    let all = [
        exchange(1, "p", candidates(1)),
        exchange(2, "p", other),
        exchange(3, "p", third),
        exchange(4, "q", candidates(9)),
    ];
    let (pairs, _) = paired(&policy(), DPO, &all);
    assert_eq!(chosen_and_rejected(&pairs), [(2, Some(1)), (6, Some(5)), (10, Some(9))]);
}

#[test]
fn mean_minus_two_deviations_leaves_the_outlier_alone() {
    let mut candidates: Vec<_> =
        (1..=8).map(|id| candidate(id, &[1, i32::try_from(id).unwrap()], 0.5, true)).collect();
    candidates.push(candidate(9, &[2, 9], 0.0, false));
    candidates.push(candidate(10, &[2, 10], -1.0, false));
    // Mean 0.3, deviation 0.456: the target is -0.61, and the outlier at -1 is nearer to it.
    let policy = PairPolicy { rejected: Rejected::MeanMinus2Sd, per_prompt: 1, ..policy() };
    let near = exchange(1, "p", candidates.clone());
    assert_eq!(paired(&policy, DPO, &[near]).0[0].row.rejected, Some(CandidateId(10)));
    // With one more in the middle, that one is nearer.
    candidates.push(candidate(11, &[2, 11], -0.6, false));
    let middle = exchange(1, "p", candidates);
    assert_eq!(paired(&policy, DPO, &[middle]).0[0].row.rejected, Some(CandidateId(11)));
}

#[test]
fn likeness_is_one_minus_the_normalized_edit_distance() {
    let tokens = |ids: &[i32]| ids.iter().copied().map(Token).collect::<Vec<_>>();
    let alike = |a: &[i32], b: &[i32]| similarity(&tokens(a), &tokens(b));
    assert!((alike(&[1, 2, 3], &[1, 2, 3]) - 1.0).abs() < 1e-12);
    assert!((alike(&[1, 2, 3, 4], &[1, 3, 4]) - 0.75).abs() < 1e-12);
    assert!(alike(&[1, 2], &[3, 4]).abs() < 1e-12);
    assert!(alike(&[], &[3]).abs() < 1e-12);
}

/// Which single answers are used: good ones and bad ones.
fn singles(pairs: &[Pair]) -> (Vec<i64>, Vec<i64>) {
    let ids = |side: fn(&Pair) -> Option<CandidateId>| {
        pairs.iter().filter_map(side).map(|id| id.0).collect()
    };
    assert!(pairs.iter().all(|pair| pair.sides().0 != pair.sides().1));
    (ids(|pair| pair.row.chosen), ids(|pair| pair.row.rejected))
}

const KTO: Objective = Objective::Kto { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0 };

#[test]
fn kto_learns_from_prompts_whose_answers_are_all_good_or_all_bad() {
    let all = |from: i32, value, passes| -> Vec<Candidate> {
        (from..from + 3).map(|id| candidate(id.into(), &[id], value, passes)).collect()
    };
    let mixed = vec![candidate(7, &[7], 0.9, true), candidate(8, &[8, 8, 8, 8], 0.85, false)];
    let exchanges = [
        exchange(1, "good", all(1, 0.9, true)),
        exchange(2, "bad", all(4, -0.9, false)),
        exchange(3, "mixed", mixed),
        exchange(4, "silent", Vec::new()),
    ];
    let (pairs, tally) = paired(&policy(), KTO, &exchanges);
    // At most two of a side of a prompt; neither margin nor length ties single answers together.
    assert_eq!(singles(&pairs).0, [1, 2, 7]);
    assert_eq!(singles(&pairs).1.len(), 3);
    assert_eq!((tally.alone, tally.without_chosen, tally.without_rejected), (2, 1, 0));
    assert_eq!(pairs[0].example.chosen, [1, 0]);
    assert_eq!(pairs[0].example.rejected, None);
    let bad = pairs.iter().find(|pair| pair.row.rejected == Some(CandidateId(8))).unwrap();
    assert_eq!((&bad.example.chosen, &bad.example.rejected), (&vec![], &Some(vec![8, 8, 8, 8, 0])));
    // Where pairs are wanted these prompts give nothing.
    assert_eq!(paired(&policy(), DPO, &exchanges).0, []);
}

#[test]
fn by_the_scalar_alone_no_answer_is_good_and_bad_at_once() {
    let answers = [1, 2, 3].map(|id| candidate(id.into(), &[id], 0.1, true)).to_vec();
    let policy = PairPolicy { positives: Positives::Best, per_prompt: 2, ..policy() };
    let (pairs, _) = paired(&policy, KTO, &[exchange(1, "p", answers)]);
    assert_eq!(singles(&pairs), (vec![1, 2], vec![3]));
}

pub(in crate::learn) fn word(candidate: i64, rating: Option<i8>) -> Feedback {
    Feedback {
        exchange: ExchangeId(1),
        candidate: Some(CandidateId(candidate)),
        rating,
        aspect: None,
        edit: None,
    }
}

/// The owner's own version of an answer, and the word that it came with.
pub(in crate::learn) fn edit(id: i64, parent: i64, tokens: &[i32]) -> (Candidate, Feedback) {
    let author = Author::Owner;
    let assessments = Vec::new();
    let parent_id = Some(CandidateId(parent));
    let edit =
        Candidate { author, parent: parent_id, assessments, ..candidate(id, tokens, 0.0, true) };
    (edit, Feedback { edit: Some("better".into()), ..word(parent, None) })
}

#[test]
fn the_owners_thumbs_turn_a_pair_round() {
    let mut one = exchange(
        1,
        "p",
        vec![candidate(1, &[5, 6, 7], -0.5, false), candidate(2, &[5, 6, 8], 0.9, true)],
    );
    assert_eq!(chosen_and_rejected(&paired(&policy(), DPO, &[one.clone()]).0), [(2, Some(1))]);
    one.feedback = vec![word(1, Some(1)), word(2, Some(-1))];
    let (pairs, _) = paired(&policy(), DPO, &[one]);
    assert_eq!(chosen_and_rejected(&pairs), [(1, Some(2))]);
    assert!(pairs[0].by_owner && (pairs[0].row.margin - 2.0).abs() < 1e-9, "{pairs:?}");
}

#[test]
fn an_edit_is_chosen_against_what_it_edits_however_short_it_is() {
    let long: Vec<i32> = (1..40).collect();
    let other = candidate(2, &[9, 9, 9], -0.9, false);
    let (edit_of_long, said) = edit(3, 1, &[7, 8]);
    let mut one = exchange(1, "p", vec![candidate(1, &long, 0.9, true), other, edit_of_long]);
    one.feedback = vec![said];
    let policy = PairPolicy { use_refinements: false, ..policy() };
    let (pairs, _) = paired(&policy, DPO, std::slice::from_ref(&one));
    assert_eq!(chosen_and_rejected(&pairs), [(3, Some(1))]);
    // A model's refinement of that length is refused: there the rule keeps a taste for length out.
    one.candidates[2].author = Author::Model;
    one.feedback.clear();
    assert!(!chosen_and_rejected(&paired(&policy, DPO, &[one]).0).contains(&(3, Some(1))));
}

#[test]
fn an_edit_that_changes_next_to_nothing_is_no_pair_with_its_original_but_with_others() {
    let original: Vec<i32> = (1..20).collect();
    let mut edited = original.clone();
    edited[3] = 99;
    let other: Vec<i32> = (21..40).collect();
    let (edit_of_first, said) = edit(3, 1, &edited);
    let mut one = exchange(
        1,
        "p",
        vec![candidate(1, &original, 0.9, true), candidate(2, &other, -0.9, false), edit_of_first],
    );
    one.feedback = vec![said.clone()];
    assert_eq!(chosen_and_rejected(&paired(&policy(), DPO, &[one.clone()]).0), [(3, Some(2))]);
    // The very same text is a good answer and nothing else.
    one.candidates[2].tokens = one.candidates[0].tokens.clone();
    assert_eq!(chosen_and_rejected(&paired(&policy(), DPO, &[one.clone()]).0), [(3, Some(2))]);
    assert_eq!(singles(&paired(&policy(), KTO, &[one]).0), (vec![3], vec![2]));
}

#[test]
fn the_owners_word_is_not_cut_by_a_cap_and_a_held_out_prompt_is_never_learned_from() {
    let answers = |from: i64, token: i32| {
        vec![
            candidate(from, &[token, 6, 7], -0.5, false),
            candidate(from + 1, &[token, 6, 8], 0.9, true),
        ]
    };
    let mut third = exchange(3, "p", answers(5, 3));
    third.feedback = vec![word(5, Some(1)), word(6, Some(-1))];
    let policy = PairPolicy { per_prompt: 1, ..policy() };
    let all = [exchange(1, "p", answers(1, 1)), exchange(2, "p", answers(3, 2)), third.clone()];
    assert_eq!(chosen_and_rejected(&paired(&policy, DPO, &all).0), [(2, Some(1)), (5, Some(6))]);
    third.messages[0].content = "held  OUT".into();
    let mut near = third.clone();
    near.messages[0].content = "Held out!".into();
    let (pairs, tally) = paired(&policy, DPO, &[third, near]);
    assert_eq!((pairs, tally.left_out), (vec![], LeftOut { held_out: 1, near_copies: 1 }));
}

/// The same with the word of a verifier of this weight.
fn checked(mut candidate: Candidate, passes: bool, weight: f64) -> Candidate {
    let said = assessment(if passes { 1.0 } else { -1.0 }, passes);
    candidate.assessments.push(Assessment { aspect: VERIFIER.into(), weight, ..said });
    candidate
}

#[test]
fn where_a_verifier_or_the_owner_decides_answers_may_differ_in_length() {
    let long: Vec<i32> = (1..40).collect();
    let (good, bad) = (candidate(1, &[5], 0.9, true), candidate(2, &long, -0.9, false));
    let of = |good: &Candidate, bad: &Candidate, feedback: Vec<Feedback>| {
        let one = exchange(1, "p", vec![good.clone(), bad.clone()]);
        let (pairs, tally) = paired(&policy(), DPO, &[Exchange { feedback, ..one }]);
        assert_eq!(tally.filtered.length, usize::from(pairs.is_empty()));
        pairs.len()
    };
    assert_eq!(of(&good, &bad, vec![]), 0, "a judge may have a taste for short answers");
    let by_verifier = |passes, weight| {
        of(&checked(good.clone(), true, weight), &checked(bad.clone(), passes, weight), vec![])
    };
    assert_eq!(by_verifier(false, 1.0), 1);
    assert_eq!(by_verifier(false, 0.0), 0, "it only measures");
    assert_eq!(by_verifier(true, 1.0), 0, "it tells nothing apart");
    for (id, rating) in [(1, 1), (2, -1)] {
        assert_eq!(of(&good, &bad, vec![word(id, Some(rating))]), 1);
    }
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    let tokens = prop::collection::vec(1i32..4, 0..6);
    (tokens, -1.0f32..1.0, any::<bool>(), any::<bool>(), any::<bool>(), prop::option::of(1i64..6))
        .prop_map(|(tokens, value, passes, complete, judged, parent)| {
            let mut candidate = candidate(0, &tokens, value, passes);
            candidate.parent = parent.map(CandidateId);
            if !complete {
                candidate.finish = FinishReason::Length;
                candidate.tokens.pop();
            }
            if !judged {
                candidate.assessments.clear();
            }
            candidate
        })
}

fn any_exchanges() -> impl Strategy<Value = Vec<Exchange>> {
    let prompt = prop::sample::select(vec!["a", "b", "c", "Held  OUT"]);
    // Each with what a verifier would say of it, where the prompt has one.
    let candidates = prop::collection::vec((any_candidate(), any::<bool>()), 0..12);
    prop::collection::vec((prompt, any::<bool>(), candidates), 0..6).prop_map(|list| {
        let mut next = 0;
        let mut exchanges = Vec::new();
        for (index, (prompt, has_verifier, candidates)) in (0..).zip(list) {
            let number = |(mut candidate, passes): (Candidate, bool)| {
                next += 1;
                candidate.id = CandidateId(next);
                let is_checked = has_verifier && !candidate.assessments.is_empty();
                if is_checked { checked(candidate, passes, 1.0) } else { candidate }
            };
            exchanges.push(exchange(index, prompt, candidates.into_iter().map(number).collect()));
        }
        exchanges
    })
}

proptest! {
    #[test]
    fn every_pair_keeps_every_rule(
        exchanges in any_exchanges(),
        positives in prop::sample::select(vec![Positives::Veto, Positives::Best]),
        rejected in prop::sample::select(vec![Rejected::Random, Rejected::MeanMinus2Sd]),
        supervised in any::<bool>(),
        per_prompt in 1usize..4,
    ) {
        let policy = PairPolicy { per_prompt, positives, rejected, ..policy() };
        let is_vetoed = positives == Positives::Veto;
        let objective = if supervised { Objective::Sft } else { DPO };
        let (pairs, tally) = paired(&policy, objective, &exchanges);
        prop_assert_eq!(&paired(&policy, objective, &exchanges).0, &pairs);
        prop_assert_eq!(tally.prompts, exchanges.len());
        let find = |pair: &Pair, id| {
            let exchange = exchanges.iter().find(|e| e.id == pair.row.exchange).unwrap();
            exchange.candidates.iter().find(|c| c.id == id).unwrap().clone()
        };
        let mut per = HashMap::new();
        for (index, pair) in pairs.iter().enumerate() {
            prop_assert!(!pairs[..index].iter().any(|earlier| earlier.example == pair.example));
            let exchange = exchanges.iter().find(|e| e.id == pair.row.exchange).unwrap();
            prop_assert!(exchange.messages[0].content != "Held  OUT");
            let count = per.entry(&exchange.messages[0].content).or_insert(0);
            *count += 1;
            prop_assert!(*count <= per_prompt);
            let chosen = find(pair, pair.row.chosen.unwrap());
            prop_assert!(!is_vetoed || reflect::passes(&chosen.assessments));
            prop_assert_eq!(chosen.finish, FinishReason::Stop);
            prop_assert_eq!(chosen.tokens.last(), Some(&END));
            prop_assert_eq!(pair.row.rejected.is_none(), supervised);
            if let Some(id) = pair.row.rejected {
                let rejected = find(pair, id);
                prop_assert!(!rejected.assessments.is_empty());
                prop_assert!(!is_vetoed || !reflect::passes(&rejected.assessments));
                prop_assert!(0.0 < pair.row.margin && policy.min_margin <= pair.row.margin);
                prop_assert!(chosen.tokens != rejected.tokens);
                let said = |candidate: &Candidate| {
                    let verifier = candidate.assessments.iter().find(|it| it.aspect == VERIFIER);
                    verifier.map(|it| it.passes)
                };
                let by_verifier = (said(&chosen), said(&rejected)) == (Some(true), Some(false));
                let ratio = length_ratio(&chosen.tokens, &rejected.tokens);
                prop_assert!(by_verifier || ratio <= policy.max_length_ratio);
            }
        }
    }
}
