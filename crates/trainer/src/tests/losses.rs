//! Every loss against TRL's own code on fixed log-probs: `trl.json`, which `bench/trainer/goldens.py`
//! writes. The file says where TRL's convention differs and what was done about it.

use protocol::Objective;
use serde::Deserialize;
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::objective::{self, Answers, Grpo, Kto, Losses, Mixed, Tokens};

#[derive(Deserialize)]
struct Goldens {
    pairs: Vec<OnPairs>,
    kto: Vec<OnSingles>,
    grpo: Vec<OnGroups>,
}

/// Log-probs of an answer's tokens.
#[derive(Deserialize)]
struct Answer {
    policy: Vec<f32>,
    reference: Vec<f32>,
}

#[derive(Deserialize)]
struct Pair {
    chosen: Answer,
    rejected: Answer,
}

#[derive(Deserialize)]
struct OnPairs {
    objective: Objective,
    pairs: Vec<Pair>,
    loss: Vec<f64>,
    metrics: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
struct Single {
    is_good: bool,
    #[serde(flatten)]
    answer: Answer,
}

#[derive(Deserialize)]
struct OnSingles {
    objective: Objective,
    singles: Vec<Single>,
    mismatched: Vec<Answer>,
    kl: f64,
    loss: Vec<f64>,
}

#[derive(Deserialize)]
struct Sampled {
    reward: f64,
    behaviour: Vec<f32>,
    #[serde(flatten)]
    answer: Answer,
}

#[derive(Deserialize)]
struct OnGroups {
    objective: Objective,
    groups: Vec<Vec<Sampled>>,
    advantages: Vec<f64>,
    loss: Vec<f64>,
    kl: Vec<f64>,
    clip_ratio: Vec<f64>,
}

fn goldens() -> Goldens {
    serde_json::from_str(include_str!("trl.json")).unwrap()
}

/// TRL computes in f32 too.
fn assert_near(what: &str, found: &Tensor, expected: &[f64]) {
    let found = Vec::<f64>::try_from(found.to_kind(Kind::Double)).unwrap();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        let gap = (found - expected).abs();
        assert!(gap < 2e-6 * expected.abs().max(1.0), "{what}: {found}, TRL {expected}");
    }
}

fn summed<'a>(answers: impl Iterator<Item = &'a Answer>) -> Answers {
    let [mut policy, mut reference, mut length] = [(); 3].map(|()| Vec::new());
    for answer in answers {
        policy.push(answer.policy.iter().sum::<f32>());
        reference.push(answer.reference.iter().sum::<f32>());
        length.push(answer.policy.len() as f32);
    }
    let tensor = |values: &[f32]| Tensor::from_slice(values);
    Answers { policy: tensor(&policy), reference: tensor(&reference), length: tensor(&length) }
}

fn metric(losses: &Losses, name: &str) -> Tensor {
    let found = losses.metrics.iter().find(|(found, _)| *found == name);
    found.unwrap_or_else(|| panic!("no metric {name}")).1.shallow_clone()
}

#[test]
fn losses_and_metrics_on_pairs_are_those_of_trl() {
    let cases = goldens().pairs;
    for OnPairs { objective, pairs, loss, metrics } in &cases {
        let chosen = summed(pairs.iter().map(|pair| &pair.chosen));
        let rejected = summed(pairs.iter().map(|pair| &pair.rejected));
        let losses = objective::preference(*objective, &chosen, Some(&rejected)).unwrap();
        assert_near(&format!("{objective:?}"), &losses.loss, loss);
        assert!(!metrics.is_empty(), "{objective:?}");
        for (name, expected) in metrics {
            let expected: Vec<f64> = serde_json::from_value(expected.clone()).unwrap();
            assert_near(&format!("{objective:?} {name}"), &metric(&losses, name), &expected);
        }
    }
    // No objective on pairs is without a golden; `mixed`, which TRL has not, is `dpo` or `sft` for each
    // pair, and compared with these below.
    let names =
        |objective: &Objective| serde_json::to_value(objective).unwrap()["name"].to_string();
    let mut found: Vec<String> = cases.iter().map(|case| names(&case.objective)).collect();
    found.dedup();
    let all = ["dpo", "dpo_norm", "robust_dpo", "ipo", "simpo", "sft"];
    assert_eq!(found, all.map(|name| format!("{name:?}")));
}

#[test]
fn pairs_without_rejected_answers_are_enough_for_sft_alone() {
    let Goldens { pairs, .. } = goldens();
    for OnPairs { objective, pairs, loss, .. } in &pairs {
        let chosen = summed(pairs.iter().map(|pair| &pair.chosen));
        match (objective, objective::preference(*objective, &chosen, None)) {
            (Objective::Sft, losses) => assert_near("sft", &losses.unwrap().loss, loss),
            (_, losses) => assert!(losses.is_none(), "{objective:?}"),
        }
    }
}

/// Two good answers of 2 and 3 tokens, the first with a rejected one: h = 0.5 + 0.5, both mean NLLs 1.
#[test]
fn the_mixed_loss_has_the_preference_term_where_there_is_a_rejected_answer() {
    let answers = |policy: &[f32], reference: &[f32], length: &[f32]| {
        let [policy, reference, length] = [policy, reference, length].map(Tensor::from_slice);
        Answers { policy, reference, length }
    };
    let chosen = answers(&[-2.0, -3.0], &[-2.5, -3.0], &[2.0, 3.0]);
    let rejected = answers(&[-4.0], &[-3.5], &[1.0]);
    let settings = Mixed { beta: 0.5, nll: 2.0 };
    let first = Tensor::from_slice(&[0_i64]);
    let losses = objective::mixed(settings, &chosen, &rejected, &first);
    // ln(1 + exp(-0.5)) = 0.474077
    assert_near("mixed", &losses.loss, &[2.474_077, 2.0]);
    assert_near("nll", &metric(&losses, "nll_loss"), &[1.0, 1.0]);
    assert_near("margins", &metric(&losses, "rewards/margins"), &[0.5]);

    // With a rejected answer everywhere it is DPO, with none it is weighted SFT.
    let [one, none] = [&[0_i64, 1][..], &[]].map(Tensor::from_slice);
    let dpo = Objective::Dpo { beta: 0.5, nll: 2.0 };
    let dpo = objective::preference(dpo, &chosen, Some(&chosen)).unwrap();
    let expected = Vec::<f64>::try_from(dpo.loss.to_kind(Kind::Double)).unwrap();
    assert_near("dpo", &objective::mixed(settings, &chosen, &chosen, &one).loss, &expected);
    let nothing = answers(&[], &[], &[]);
    assert_near("sft", &objective::mixed(settings, &chosen, &nothing, &none).loss, &[2.0, 2.0]);
}

#[test]
fn the_kto_loss_is_that_of_trl() {
    let cases = goldens().kto;
    assert!(!cases.is_empty());
    for OnSingles { objective, singles, mismatched, kl, loss } in cases {
        let Objective::Kto { beta, desirable_weight, undesirable_weight } = objective else {
            panic!("{objective:?}")
        };
        let other = summed(mismatched.iter());
        let estimate = (&other.policy - &other.reference).mean(Kind::Double).double_value(&[]);
        assert!((estimate.max(0.0) - kl).abs() < 1e-6, "{estimate} {kl}");
        let is_good: Vec<bool> = singles.iter().map(|single| single.is_good).collect();
        let answers = summed(singles.iter().map(|single| &single.answer));
        let settings = Kto { beta, desirable_weight, undesirable_weight };
        let losses = objective::kto(settings, &answers, &Tensor::from_slice(&is_good), kl);
        assert_near(&format!("{objective:?}"), &losses.loss, &loss);
        assert_near("kl", &metric(&losses, "kl"), &[kl]);
    }
}

#[test]
fn the_grpo_loss_is_that_of_trl_and_so_are_its_advantages() {
    let cases = goldens().grpo;
    assert!(!cases.is_empty());
    for case in cases {
        let Objective::Grpo { beta, epsilon, importance_cap } = case.objective else {
            panic!("{:?}", case.objective)
        };
        let rewards = |group: &Vec<Sampled>| group.iter().map(|it| it.reward).collect::<Vec<_>>();
        let advantages =
            case.groups.iter().flat_map(|group| objective::advantages(&rewards(group)).0);
        let advantages = Tensor::from_slice(&advantages.collect::<Vec<_>>());
        assert_near("advantages", &advantages, &case.advantages);
        let answers: Vec<&Sampled> = case.groups.iter().flatten().collect();
        let flat = |of: &dyn Fn(&Sampled) -> &[f32]| {
            let values = answers.iter().flat_map(|answer| of(answer));
            Tensor::from_slice(&values.copied().collect::<Vec<f32>>())
        };
        let lengths: Vec<i64> =
            answers.iter().map(|it| i64::try_from(it.behaviour.len()).unwrap()).collect();
        let lengths = Tensor::from_slice(&lengths);
        let answer = Tensor::arange(lengths.size()[0], (Kind::Int64, tch::Device::Cpu));
        let tokens = Tokens {
            policy: flat(&|it| &it.answer.policy),
            reference: flat(&|it| &it.answer.reference),
            behaviour: flat(&|it| &it.behaviour),
            answer: answer.repeat_interleave_self_tensor(&lengths, 0, None),
            lengths: lengths.to_kind(Kind::Float),
            advantages: advantages.to_kind(Kind::Float),
        };
        let losses = objective::grpo(Grpo { beta, epsilon, importance_cap }, &tokens);
        assert_near(&format!("{:?}", case.objective), &losses.loss, &case.loss);
        let mean = |name: &str| {
            let sums = tokens.lengths.zeros_like();
            sums.index_add(0, &tokens.answer, &metric(&losses, name)) / &tokens.lengths
        };
        if beta != 0.0 {
            assert_near("kl", &mean("kl"), &case.kl);
        }
        assert_near("clip ratio", &mean("clip_ratio/region_mean"), &case.clip_ratio);
    }
}
