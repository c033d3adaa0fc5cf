//! Which answers make a group, and what of them is written down.

use super::*;
use crate::learn::pairs::tests::{Words, candidate, edit, exchange, policy, word};
use config::PairPolicy;

fn grouped(policy: &PairPolicy, exchanges: &[Exchange]) -> (Vec<Grouped>, Tally) {
    let held_out = HeldOut::new(["held out"]);
    let mut grouping = Grouping::new(policy, &held_out, &Words);
    for exchange in exchanges {
        grouping.add(exchange);
    }
    grouping.finish()
}

/// Whose rewards are in which group.
fn rewards(groups: &[Grouped]) -> Vec<Vec<f64>> {
    let round = |reward: f64| (reward * 100.0).round() / 100.0;
    let of = |it: &Grouped| it.group.answers.iter().map(|it| round(it.reward)).collect();
    groups.iter().map(of).collect()
}

#[test]
fn the_direct_answers_to_a_prompt_are_a_group_with_their_behaviour() {
    let mut good = candidate(1, &[5, 6], 0.5, true);
    good.logprobs = vec![-0.5, 1e-7, -2.0];
    let bad = candidate(2, &[5, 7], -0.5, false);
    let (groups, tally) = grouped(&policy(), &[exchange(1, "p", vec![good, bad])]);
    assert_eq!(rewards(&groups), [[0.5, -0.5]]);
    let Group { prompt, answers, prompt_id } = &groups[0].group;
    assert_eq!((prompt.as_slice(), prompt_id.len()), (&[i32::from(b'p')][..], 16));
    assert_eq!(answers[0].tokens, [5, 6, 0]);
    assert_eq!(answers[0].logprobs, [-0.5, 0.0, -2.0]);
    assert_eq!(tally.tempered, 0);
    // Above the mean is chosen, below it rejected.
    let sides: Vec<_> = groups[0].rows.iter().map(|row| (row.chosen, row.rejected)).collect();
    assert_eq!(sides, [(Some(CandidateId(1)), None), (None, Some(CandidateId(2)))]);
}

#[test]
fn what_was_not_sampled_for_this_prompt_stays_out() {
    let good = candidate(1, &[5], 0.9, true);
    let mut refined = candidate(2, &[6], -0.9, false);
    refined.parent = Some(CandidateId(1));
    let mut greedy = candidate(3, &[7], -0.9, false);
    greedy.sampling.temperature = 0.0;
    let mut cut = candidate(4, &[8], -0.9, false);
    cut.finish = engine::FinishReason::Length;
    let mut impossible = candidate(5, &[9], -0.9, false);
    impossible.logprobs[0] = f32::NEG_INFINITY;
    let (edited, said) = edit(6, 1, &[4]);
    let mut one = exchange(1, "p", vec![good, refined, greedy, cut, impossible, edited]);
    one.feedback = vec![said];
    let (groups, tally) = grouped(&policy(), &[one]);
    assert_eq!((groups, tally.without_rejected), (vec![], 1));
}

#[test]
fn a_group_whose_answers_are_worth_the_same_is_left_out() {
    let alike = [1, 2, 3].map(|id| candidate(id.into(), &[id], 0.5, true)).to_vec();
    let (groups, tally) = grouped(&policy(), &[exchange(1, "p", alike.clone())]);
    assert_eq!((groups, tally.without_rejected), (vec![], 1));
    let spoken = Exchange { feedback: vec![word(2, Some(-1))], ..exchange(1, "p", alike) };
    assert_eq!(rewards(&grouped(&policy(), &[spoken]).0), [[0.5, -1.0, 0.5]]);
}

#[test]
fn a_prompt_that_was_asked_again_has_one_group_of_its_newest_answers() {
    let answers = |from: i64, value: f32| -> Vec<_> {
        (from..from + 2).map(|id| candidate(id, &[1, 1], value, true)).collect()
    };
    let mut tempered = answers(5, 0.3);
    tempered[0].sampling.temperature = 0.7;
    let all = [
        exchange(1, "p", answers(1, 0.1)),
        exchange(2, "q", answers(3, 0.2)),
        exchange(3, "p", tempered),
        exchange(4, "Held out", answers(7, 0.4)),
    ];
    let policy = PairPolicy { max_group: 3, ..policy() };
    let (groups, tally) = grouped(&policy, &all);
    // Texts that were sampled twice count twice, as they do for the policy.
    assert_eq!(rewards(&groups), [[0.1, 0.3, 0.3]]);
    assert_eq!((tally.prompts, tally.left_out.held_out, tally.tempered), (4, 1, 1));
    assert_eq!(groups[0].rows[0].exchange, ExchangeId(1));
    assert_eq!(groups[0].rows[2].exchange, ExchangeId(3));
}
