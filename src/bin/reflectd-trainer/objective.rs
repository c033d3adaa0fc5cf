//! The losses. Inputs are summed log-probs by sequence; outputs are a loss for each example and
//! the rewards that TRL reports. Pure tensor functions with golden tests.
//!
//! With pi the policy, ref the reference, y+ chosen, y- rejected, |y| tokens:
//! - `dpo`: -log sigmoid(beta (log pi/ref(y+) - log pi/ref(y-))) - nll log pi(y+) / |y+|
//!   (arXiv 2305.18290; NLL term after arXiv 2404.19733)
//! - `dpo_norm`: the same with each log-ratio divided by its |y| (length-normalised, arXiv 2411.15124)
//! - `sft`: -log pi(y+) / |y+| (the paper's RS)

use reflectd::protocol::Objective;
use tch::Tensor;

/// Summed log-probs of a batch of examples, each tensor `[B]`.
#[derive(Debug)]
pub(crate) struct LogProbs {
    pub chosen: Tensor,
    pub chosen_reference: Tensor,
    pub chosen_length: Tensor,
    /// Absent for `sft`.
    pub rejected: Option<Rejected>,
}

/// See [`LogProbs`].
#[derive(Debug)]
pub(crate) struct Rejected {
    pub policy: Tensor,
    pub reference: Tensor,
    pub length: Tensor,
}

/// What an objective gives for a batch, each tensor `[B]`.
#[derive(Debug)]
pub(crate) struct Losses {
    pub loss: Tensor,
    pub nll: Tensor,
    pub reward_chosen: Tensor,
    pub reward_rejected: Tensor,
}

/// Applies an objective. `None`: it needs rejected answers and there are none.
pub(crate) fn apply(objective: Objective, batch: &LogProbs) -> Option<Losses> {
    let nll = -(&batch.chosen / &batch.chosen_length);
    let preference = |beta: f64, weight: f64, normalised: bool| {
        let rejected = batch.rejected.as_ref()?;
        let mut ratio_chosen = &batch.chosen - &batch.chosen_reference;
        let mut ratio_rejected = &rejected.policy - &rejected.reference;
        if normalised {
            ratio_chosen = ratio_chosen.divide(&batch.chosen_length);
            ratio_rejected = ratio_rejected.divide(&rejected.length);
        }
        let (reward_chosen, reward_rejected) = (ratio_chosen * beta, ratio_rejected * beta);
        let loss = -(&reward_chosen - &reward_rejected).log_sigmoid() + &nll * weight;
        Some((loss, reward_chosen, reward_rejected))
    };
    let (loss, reward_chosen, reward_rejected) = match objective {
        Objective::Dpo { beta, nll } => preference(beta, nll, false)?,
        Objective::DpoNorm { beta, nll } => preference(beta, nll, true)?,
        Objective::Sft => {
            let ratio = &batch.chosen - &batch.chosen_reference;
            (nll.shallow_clone(), ratio.shallow_clone(), ratio.zeros_like())
        }
    };
    Some(Losses { loss, nll, reward_chosen, reward_rejected })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> LogProbs {
        let t = |values: &[f32]| Tensor::from_slice(values);
        LogProbs {
            chosen: t(&[-10.0, -6.0]),
            chosen_reference: t(&[-12.0, -5.0]),
            chosen_length: t(&[5.0, 4.0]),
            rejected: Some(Rejected {
                policy: t(&[-9.0, -8.0]),
                reference: t(&[-8.0, -8.5]),
                length: t(&[4.0, 8.0]),
            }),
        }
    }
    fn close(found: &Tensor, expected: [f64; 2]) {
        let found = Vec::<f64>::try_from(found.to_kind(tch::Kind::Double)).unwrap();
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} instead of {expected}");
        }
    }

    // The expected numbers were computed from the formulas with another language's
    // exp and log: log-ratios are (2, -1) for chosen and (-1, 0.5) for rejected.
    #[test]
    fn dpo_follows_its_formula() {
        let losses = apply(Objective::Dpo { beta: 0.1, nll: 1.0 }, &batch()).unwrap();
        // -ln sigmoid(0.3) = 0.554355, -ln sigmoid(-0.15) = 0.770957; NLL 2.0, 1.5
        close(&losses.loss, [2.554_355, 2.270_957]);
        close(&losses.reward_chosen, [0.2, -0.1]);
        close(&losses.reward_rejected, [-0.1, 0.05]);
    }

    #[test]
    fn dpo_norm_divides_by_length() {
        let losses = apply(Objective::DpoNorm { beta: 5.0, nll: 0.0 }, &batch()).unwrap();
        // rewards 5 * 2/5 = 2 and 5 * -1/4 = -1.25; 5 * -1/4 = -1.25 and 5 * 0.5/8 = 0.3125
        close(&losses.loss, [0.038_041, 1.752_799]);
    }

    #[test]
    fn sft_is_the_mean_nll() {
        let mut batch = batch();
        batch.rejected = None;
        close(&apply(Objective::Sft, &batch).unwrap().loss, [2.0, 1.5]);
        assert!(apply(Objective::Dpo { beta: 0.1, nll: 1.0 }, &batch).is_none());
    }
}
