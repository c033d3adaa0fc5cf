//! The losses, and the metrics that TRL reports, under its names. Pure tensor functions, tested against
//! TRL's own code (`tests/losses.rs`); no model and no data set here. Used by `step`.
//!
//! With pi the policy, ref the reference, y+ chosen, y- rejected, |y| tokens, s the sigmoid,
//! r(y) = log pi(y) - log ref(y) and h = r(y+) - r(y-):
//! - `dpo`: -log s(beta h) - nll log pi(y+) / |y+|
//!   (arXiv 2305.18290; NLL term after arXiv 2404.19733)
//! - `dpo_norm`: the same with each r(y) divided by its |y| (arXiv 2411.15124)
//! - `robust_dpo`: ((1 - e) -log s(beta h) - e -log s(-beta h)) / (1 - 2 e) with e the share of
//!   wrong labels, plus the NLL term (arXiv 2403.00409)
//! - `ipo`: (h - 1 / (2 beta))^2 (arXiv 2310.12036, with sums; TRL takes means over tokens)
//! - `simpo`: -log s(beta log pi(y+) / |y+| - beta log pi(y-) / |y-| - gamma) (arXiv 2405.14734)
//! - `kto`: w+ (1 - s(beta (r(y) - z))) for a good answer, w- (1 - s(beta (z - r(y)))) for a bad
//!   one, z the mean of r over answers to other prompts, at least 0 (arXiv 2402.01306)
//! - `sft`: -log pi(y+) / |y+| (the paper's RS)
//! - `mixed`: -nll log pi(y+) / |y+|, plus -log s(beta h) where there is a y-. A batch is the mean over
//!   its examples, with and without y-, so that an example counts alike in whatever batch it comes
//! - `grpo`: the mean over an answer's tokens of -w min(q A, clip(q, 1 +- epsilon) A) + beta k, with
//!   A = (reward - mean) / (deviation + 1e-4) in its group, q = pi / ref of the token, k = 1 / q +
//!   log q - 1 (arXiv 2402.03300), and w = min(ref / behaviour, `importance_cap`), because the
//!   answers were sampled by earlier generations (truncated importance sampling, as TRL does between
//!   sampler and trainer)

use protocol::Objective;
use statistics::mean;
use tch::{Kind, Tensor};

/// Answers of a batch, each tensor `[B]`.
#[derive(Debug)]
pub(crate) struct Answers {
    /// Summed log-probs.
    pub policy: Tensor,
    pub reference: Tensor,
    /// Tokens.
    pub length: Tensor,
}

/// Losses and metrics of a batch.
#[derive(Debug)]
pub(crate) struct Losses {
    /// `[B]`; the loss of a batch is their mean.
    pub loss: Tensor,
    /// TRL's name, and values whose mean is reported.
    pub metrics: Vec<(&'static str, Tensor)>,
}

/// The tokens of grouped answers, each tensor `[M]` unless it says otherwise.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub policy: Tensor,
    pub reference: Tensor,
    /// Log-probs under the policies that sampled them.
    pub behaviour: Tensor,
    /// The answer that a token belongs to.
    pub answer: Tensor,
    /// `[G]` tokens of each answer.
    pub lengths: Tensor,
    /// `[G]`.
    pub advantages: Tensor,
}

impl Answers {
    /// The answers at these places, `[P]`.
    fn at(&self, places: &Tensor) -> Self {
        let [policy, reference, length] =
            [&self.policy, &self.reference, &self.length].map(|it| it.index_select(0, places));
        Self { policy, reference, length }
    }
}

/// Settings of `mixed`, as in the protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mixed {
    pub beta: f64,
    pub nll: f64,
}

/// Settings of `kto`, as in the protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kto {
    pub beta: f64,
    pub desirable_weight: f64,
    pub undesirable_weight: f64,
}

/// Settings of `grpo`, as in the protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grpo {
    pub beta: f64,
    pub epsilon: f64,
    pub importance_cap: f64,
}

/// Objectives on pairs, and `sft`. `None`: the objective is another one, or needs rejected answers
/// and there are none.
pub(crate) fn preference(
    objective: Objective,
    chosen: &Answers,
    rejected: Option<&Answers>,
) -> Option<Losses> {
    let ratio = |answers: &Answers| &answers.policy - &answers.reference;
    let per_token = |answers: &Answers| ratio(answers) / &answers.length;
    let nll = -(&chosen.policy / &chosen.length);
    let of_margin = |margin: Tensor| -margin.log_sigmoid();
    let (loss, reward_chosen, reward_rejected) = match objective {
        Objective::Dpo { beta, nll: weight } => {
            let (good, bad) = (ratio(chosen) * beta, ratio(rejected?) * beta);
            (of_margin(&good - &bad) + &nll * weight, good, bad)
        }
        Objective::DpoNorm { beta, nll: weight } => {
            let (good, bad) = (per_token(chosen) * beta, per_token(rejected?) * beta);
            (of_margin(&good - &bad) + &nll * weight, good, bad)
        }
        Objective::RobustDpo { beta, nll: weight, label_smoothing: wrong } => {
            let (good, bad) = (ratio(chosen) * beta, ratio(rejected?) * beta);
            let clean = of_margin(&good - &bad) * (1.0 - wrong);
            let flipped = of_margin(&bad - &good) * wrong;
            ((clean - flipped) / (1.0 - 2.0 * wrong) + &nll * weight, good, bad)
        }
        Objective::Ipo { beta } => {
            let (good, bad) = (ratio(chosen), ratio(rejected?));
            let error = &good - &bad - 1.0 / (2.0 * beta);
            (error.square(), good * beta, bad * beta)
        }
        Objective::Simpo { beta, gamma } => {
            let mean = |answers: &Answers| &answers.policy / &answers.length * beta;
            let (good, bad) = (mean(chosen), mean(rejected?));
            (of_margin(&good - &bad - gamma), good, bad)
        }
        Objective::Sft => {
            let metrics = vec![
                ("nll_loss", nll.detach()),
                ("rewards/chosen", ratio(chosen).detach()),
                ("logps/chosen", chosen.policy.detach()),
            ];
            return Some(Losses { loss: nll, metrics });
        }
        Objective::Mixed { .. } | Objective::Kto { .. } | Objective::Grpo { .. } => return None,
    };
    let (good, bad) = (reward_chosen.detach(), reward_rejected.detach());
    let metrics = vec![
        ("nll_loss", nll.detach()),
        ("rewards/margins", &good - &bad),
        ("rewards/accuracies", good.gt_tensor(&bad).to_kind(Kind::Float)),
        ("rewards/chosen", good),
        ("rewards/rejected", bad),
        ("logps/chosen", chosen.policy.detach()),
        ("logps/rejected", rejected?.policy.detach()),
    ];
    Some(Losses { loss, metrics })
}

/// Good answers, some of them with a rejected one: that of `paired` (`[P]`) is at the same place of
/// `rejected`.
pub(crate) fn mixed(
    Mixed { beta, nll: weight }: Mixed,
    chosen: &Answers,
    rejected: &Answers,
    paired: &Tensor,
) -> Losses {
    let nll = -(&chosen.policy / &chosen.length);
    let dpo = Objective::Dpo { beta, nll: 0.0 };
    let pairs = preference(dpo, &chosen.at(paired), Some(rejected)).expect("dpo is on pairs");
    let is_of_pairs = |(name, _): &(&str, Tensor)| !["nll_loss", "logps/chosen"].contains(name);
    let mut metrics: Vec<_> = pairs.metrics.into_iter().filter(is_of_pairs).collect();
    metrics.push(("nll_loss", nll.detach()));
    metrics.push(("logps/chosen", chosen.policy.detach()));
    Losses { loss: (nll * weight).index_add(0, paired, &pairs.loss), metrics }
}

/// Single answers, good where `is_good` (`[B]`, bool). `kl` is z, at least 0.
pub(crate) fn kto(settings: Kto, answers: &Answers, is_good: &Tensor, kl: f64) -> Losses {
    let ratio = &answers.policy - &answers.reference;
    let good = ((&ratio - kl) * settings.beta).sigmoid();
    let bad = ((kl - &ratio) * settings.beta).sigmoid();
    let good: Tensor = (1.0 - good) * settings.desirable_weight;
    let bad: Tensor = (1.0 - bad) * settings.undesirable_weight;
    let rewards = ratio.detach() * settings.beta;
    let is_bad = is_good.logical_not();
    let metrics = vec![
        ("rewards/chosen", rewards.masked_select(is_good)),
        ("rewards/rejected", rewards.masked_select(&is_bad)),
        ("logps/chosen", answers.policy.detach().masked_select(is_good)),
        ("logps/rejected", answers.policy.detach().masked_select(&is_bad)),
        ("kl", Tensor::full([1], kl, (Kind::Float, ratio.device()))),
    ];
    Losses { loss: good.where_self(is_good, &bad), metrics }
}

/// Rewarded answers of whole groups.
pub(crate) fn grpo(settings: Grpo, tokens: &Tokens) -> Losses {
    let advantage = tokens.advantages.index_select(0, &tokens.answer);
    let ratio = (&tokens.policy - &tokens.reference).exp();
    let (least, most) = (1.0 - settings.epsilon, 1.0 + settings.epsilon);
    let unclipped = &ratio * &advantage;
    let clipped = ratio.clamp(least, most) * &advantage;
    let importance =
        (&tokens.reference - &tokens.behaviour).exp().clamp_max(settings.importance_cap);
    let log_inverse = &tokens.reference - &tokens.policy; // -ln q
    let kl = log_inverse.exp() - log_inverse - 1.0;
    let by_token = unclipped.minimum(&clipped) * importance * -1.0 + &kl * settings.beta;
    let loss = tokens.lengths.zeros_like().index_add(0, &tokens.answer, &by_token);
    let is_clipped = ratio
        .gt(most)
        .logical_and(&advantage.gt(0.0))
        .logical_or(&ratio.lt(least).logical_and(&advantage.lt(0.0)));
    let metrics =
        vec![("kl", kl.detach()), ("clip_ratio/region_mean", is_clipped.to_kind(Kind::Float))];
    Losses { loss: loss / &tokens.lengths, metrics }
}

/// Advantage of each answer in its group, and the standard deviation of the rewards.
pub(crate) fn advantages(rewards: &[f64]) -> (Vec<f64>, f64) {
    let n = rewards.len() as f64;
    let mean = mean(rewards.iter().copied());
    let squares: f64 = rewards.iter().map(|reward| (reward - mean).powi(2)).sum();
    let deviation = (squares / (n - 1.0).max(1.0)).sqrt();
    (rewards.iter().map(|reward| (reward - mean) / (deviation + 1e-4)).collect(), deviation)
}
