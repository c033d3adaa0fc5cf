//! What is done, a step a line in `steps.jsonl`: `<unit>/explored/<policy>`, `<unit>/trained/<arm>`,
//! `<unit>/answered/<arm>`, `m0`. Used by `experiment` (writes) and `results` (reads).

use std::path::PathBuf;

use reflectd::learn::gate::Verdict;
use serde::{Deserialize, Serialize};
use statistics::{JudgeQuality, Judged, judge_quality};

use testkit::bench::records;

/// The steps that are done.
pub(crate) type Records = records::Records<Finding>;
/// One of them.
pub(crate) type Step = records::Step<Finding>;

/// What a step found.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(crate) enum Finding {
    Explored(Explored),
    Shown(Shown),
    Picked(Picked),
    Trained(Trained),
    Answered(Answered),
}

/// An exploration, and and how the judge agreed with the verifier in it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Explored {
    pub(crate) prompts: usize,
    pub(crate) drafts: Judgements,
    pub(crate) refinements: Judgements,
    /// Prompts with a draft that passes, and with any answer that passes.
    pub(crate) prompts_with_passing_draft: usize,
    pub(crate) prompts_with_passing_answer: usize,
}

/// Which of a problem's accepted answers is right: pairs take each text once and the best first.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Picked {
    /// Problems with an accepted answer.
    pub(crate) prompts: usize,
    /// Accepted texts, each counted once a problem.
    pub(crate) texts: usize,
    pub(crate) texts_right: usize,
    /// Of each problem, the accepted text with the largest scalar.
    pub(crate) best_right: usize,
    /// Of each problem, the accepted text that was sampled most often.
    pub(crate) most_frequent_right: usize,
}

/// The judge's assessments of the drafts again, with the reference in its prompt.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Shown {
    /// Of the agent.
    pub(crate) at_threshold: Judgements,
    /// An aspect passes when p(+1) is a half: the reference moves all of them.
    pub(crate) at_half: Judgements,
}

/// How a judge did.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Judgements {
    pub(crate) answers: usize,
    /// By the verifier.
    pub(crate) right: usize,
    /// By the judge.
    pub(crate) passing: usize,
    pub(crate) false_accept: Option<f64>,
    pub(crate) false_reject: Option<f64>,
    pub(crate) auc: Option<f64>,
}

/// A training run.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Trained {
    pub(crate) adapter: PathBuf,
    pub(crate) pairs: Pairs,
    pub(crate) steps: usize,
    pub(crate) best_step: usize,
    pub(crate) best_loss: Option<f64>,
    /// What the gate would have said.
    pub(crate) verdict: Gate,
}

/// What is reported of the gate.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Gate {
    pub(crate) promote: bool,
    pub(crate) reason: String,
    pub(crate) gain: f64,
    pub(crate) lower_bound: f64,
    pub(crate) parity_error: Option<f64>,
}

/// A data set against the verifier.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Pairs {
    pub(crate) n: usize,
    pub(crate) without_chosen: usize,
    pub(crate) without_rejected: usize,
    pub(crate) chosen_right: usize,
    /// 0 where there are none (RS).
    pub(crate) n_rejected: usize,
    pub(crate) rejected_right: usize,
    /// Chosen answers that are refinements.
    pub(crate) chosen_refined: usize,
    /// Mean.
    pub(crate) chosen_tokens: f64,
    /// Mean.
    pub(crate) rejected_tokens: Option<f64>,
}

/// How a policy answers the held-out problems, in their order.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Answered {
    /// 1 where the greedy answer is right, else 0.
    pub(crate) greedy: String,
    /// Mean tokens of the greedy answers.
    pub(crate) greedy_tokens: f64,
    /// Right ones among the samples of each sampled problem, a digit a problem.
    pub(crate) samples: String,
    /// Mean tokens of the samples.
    pub(crate) sample_tokens: f64,
    /// Mean log p(policy) - log p(base) over the tokens of the samples, which are the policy's.
    pub(crate) kl_per_token: f64,
    /// Different n-grams over all n-grams, among the samples of one problem; mean.
    pub(crate) distinct_1: f64,
    pub(crate) distinct_2: f64,
    /// Different texts over all, likewise.
    pub(crate) different: f64,
}

impl From<&Verdict> for Gate {
    fn from(verdict: &Verdict) -> Self {
        Self {
            promote: verdict.promote,
            reason: verdict.reason.clone(),
            gain: verdict.gain,
            lower_bound: verdict.lower_bound,
            parity_error: verdict.parity.map(|parity| parity.error),
        }
    }
}

impl Judgements {
    pub(crate) fn new(judged: &[Judged]) -> Self {
        let JudgeQuality { n, false_accept, false_reject, auc } = judge_quality(judged);
        Self {
            answers: n,
            right: judged.iter().filter(|one| one.is_right).count(),
            passing: judged.iter().filter(|one| one.is_accepted).count(),
            false_accept,
            false_reject,
            auc,
        }
    }
}
