//! Whether both sides compute the same: gradient norm and log-probs of the first step, how far twenty
//! steps with a learning rate above 0 from the first move the log-probs, and all losses. Every step
//! is over all pairs, so that the order of the pairs does not matter. Pure. Used by `main` and `results`.

use std::collections::BTreeMap;

use protocol::Compute;
use serde::{Deserialize, Serialize};

/// Optimizer steps before the last comparison.
pub(crate) const N_UPDATES: usize = 20;

/// A planted fault is a setting of ours that is so many times the other side's.
pub(crate) const PLANTED: f64 = 1.1;

/// What one side reports of one step, before the step's update.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Step {
    pub(crate) loss: f64,
    pub(crate) grad_norm: f64,
    pub(crate) logps_chosen: f64,
    pub(crate) logps_rejected: f64,
}

/// Largest differences that rounding explains.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tolerance {
    /// Relative, at the first step.
    grad_norm: f64,
    /// Relative, at the first step.
    logps: f64,
    /// Of what [`N_UPDATES`] change, relative to it.
    change: f64,
    /// Absolute, over all steps.
    loss: f64,
}

/// One compared number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Difference {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) at_most: f64,
}

/// The steps of both sides on the model and pairs of one seed, and their differences.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Parity {
    pub(crate) seed: u64,
    pub(crate) differences: Vec<Difference>,
    /// What the comparison shows when our side has a fault of [`PLANTED`], by fault.
    pub(crate) planted: BTreeMap<&'static str, Vec<Difference>>,
    /// How far each side is from itself in f32. `None`: this is f32, or f32 was not computed.
    pub(crate) rounding: Option<Rounding>,
    pub(crate) ours: Vec<Step>,
    pub(crate) theirs: Vec<Step>,
}

/// Differences of bf16 from f32.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Rounding {
    pub(crate) ours: Vec<Difference>,
    pub(crate) theirs: Vec<Difference>,
}

/// Both sides sum in another order; in bf16 they also round in other places.
///
/// Largest differences of three seeds, on two blocks of width 768 (the rows `parity_...` of
/// `results.json`), of gradient norm, log-probs, change and loss: f32 7e-8, 2e-7, 2.3e-6, 8e-7; bf16
/// 1.1e-3, 3.8e-4, 7.1e-3, 2.2e-3. A beta of 1.1 times changes the gradient norm by 0.1 and the loss by
/// 0.026, a learning rate of 1.1 times the change by 0.12 and the loss by 0.033.
pub(crate) fn tolerance(compute: Compute) -> Tolerance {
    match compute {
        Compute::Bf16 => Tolerance { grad_norm: 0.02, logps: 2e-3, change: 0.03, loss: 0.01 },
        Compute::F32 | Compute::Auto => {
            Tolerance { grad_norm: 1e-5, logps: 1e-6, change: 1e-4, loss: 1e-4 }
        }
    }
}

/// Compares step by step. `None`: a side has not made all steps.
pub(crate) fn compare(
    ours: &[Step],
    theirs: &[Step],
    tolerance: Tolerance,
) -> Option<Vec<Difference>> {
    if ours.len() <= N_UPDATES || theirs.len() <= N_UPDATES {
        return None;
    }
    let relative = |a: f64, b: f64| (a - b).abs() / b.abs().max(f64::MIN_POSITIVE);
    let chosen = relative(ours[0].logps_chosen, theirs[0].logps_chosen);
    let rejected = relative(ours[0].logps_rejected, theirs[0].logps_rejected);
    let losses = ours.iter().zip(theirs).map(|(a, b)| (a.loss - b.loss).abs());
    let difference = |name, value, at_most| Difference { name, value, at_most };
    Some(vec![
        difference(
            "gradient norm of step 1, relative",
            relative(ours[0].grad_norm, theirs[0].grad_norm),
            tolerance.grad_norm,
        ),
        difference("log-probs of step 1, relative", largest([chosen, rejected]), tolerance.logps),
        difference(
            "change of log-probs in 20 steps, relative",
            relative_change(change(ours), change(theirs)),
            tolerance.change,
        ),
        difference("loss in 20 steps", largest(losses), tolerance.loss),
    ])
}

/// What the updates did to the log-probs of chosen and rejected answers.
fn change(steps: &[Step]) -> [f64; 2] {
    let (first, last) = (steps[0], steps[N_UPDATES]);
    [last.logps_chosen - first.logps_chosen, last.logps_rejected - first.logps_rejected]
}

/// The larger difference over the larger change, because one of the two may hardly change.
fn relative_change(ours: [f64; 2], theirs: [f64; 2]) -> f64 {
    let differences = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
    largest(differences) / largest(theirs.map(f64::abs)).max(f64::MIN_POSITIVE)
}

/// NaN stays NaN, and is never within a tolerance.
fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, |a: f64, b| if b.is_nan() || a < b { b } else { a })
}

impl Difference {
    /// A number that is not finite is outside.
    pub(crate) fn is_inside(&self) -> bool {
        self.value <= self.at_most
    }
}

/// The differences that rounding does not explain, as one line.
pub(crate) fn fault(differences: &[Difference]) -> Option<String> {
    let outside = differences.iter().filter(|difference| !difference.is_inside());
    let lines: Vec<String> = outside
        .map(|Difference { name, value, at_most }| {
            format!("{name}: {value:.2e}, at most {at_most:.0e}")
        })
        .collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}

impl Parity {
    /// What is wrong with the two sides, or with a comparison that does not see a planted fault.
    pub(crate) fn faults(&self) -> Vec<String> {
        let unseen = self.planted.iter().filter(|(_, differences)| fault(differences).is_none());
        let unseen = unseen.map(|(name, _)| format!("the comparison does not see {name}"));
        let faults = fault(&self.differences).into_iter().chain(unseen);
        faults.map(|fault| format!("seed {}: {fault}", self.seed)).collect()
    }
}
