//! Whether both sides compute the same: gradient norm and log-probs of the first step, and losses,
//! log-probs and gradient norms of twenty steps with a learning rate above 0 from the first. Every step
//! is over all pairs, so that the order of the pairs does not matter. Pure. Used by `main` and `results`.

use protocol::Compute;
use serde::{Deserialize, Serialize};

/// Optimizer steps before the last comparison.
pub(crate) const N_UPDATES: usize = 20;

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
    /// Relative, at the first step and after [`N_UPDATES`].
    logps: [f64; 2],
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

/// The steps of both sides, and their differences.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Parity {
    pub(crate) differences: Vec<Difference>,
    pub(crate) ours: Vec<Step>,
    pub(crate) theirs: Vec<Step>,
}

/// Both sides sum in another order; in bf16 they also round in other places. In f32 a llama of 6 blocks,
/// width 384, was 1e-7 away at the first step, and after twenty steps 1e-7 (log-probs) and 7e-7 (loss).
pub(crate) fn tolerance(compute: Compute) -> Tolerance {
    match compute {
        Compute::Bf16 => Tolerance { grad_norm: 0.05, logps: [5e-3, 2e-2], loss: 0.05 },
        Compute::F32 | Compute::Auto => {
            Tolerance { grad_norm: 1e-5, logps: [1e-6, 1e-5], loss: 1e-4 }
        }
    }
}

/// Compares step by step. `None`: a side has not made all steps.
pub(crate) fn compare(ours: &[Step], theirs: &[Step], tolerance: Tolerance) -> Option<Parity> {
    if ours.len() <= N_UPDATES || theirs.len() <= N_UPDATES {
        return None;
    }
    let relative = |a: f64, b: f64| (a - b).abs() / b.abs().max(f64::MIN_POSITIVE);
    let logps = |at: usize| {
        let chosen = relative(ours[at].logps_chosen, theirs[at].logps_chosen);
        chosen.max(relative(ours[at].logps_rejected, theirs[at].logps_rejected))
    };
    let losses = ours.iter().zip(theirs).map(|(a, b)| (a.loss - b.loss).abs());
    // NaN stays NaN, and is never within a tolerance.
    let largest = losses.fold(0.0, |a: f64, b| if b.is_nan() || a < b { b } else { a });
    let difference = |name, value, at_most| Difference { name, value, at_most };
    let differences = vec![
        difference(
            "gradient norm of step 1, relative",
            relative(ours[0].grad_norm, theirs[0].grad_norm),
            tolerance.grad_norm,
        ),
        difference("log-probs of step 1, relative", logps(0), tolerance.logps[0]),
        difference("log-probs after 20 steps, relative", logps(N_UPDATES), tolerance.logps[1]),
        difference("loss in 20 steps", largest, tolerance.loss),
    ];
    Some(Parity { differences, ours: ours.to_vec(), theirs: theirs.to_vec() })
}

impl Difference {
    /// A number that is not finite is outside.
    pub(crate) fn is_inside(&self) -> bool {
        self.value <= self.at_most
    }
}

impl Parity {
    /// The differences that rounding does not explain, as one line.
    pub(crate) fn fault(&self) -> Option<String> {
        let outside = self.differences.iter().filter(|difference| !difference.is_inside());
        let lines: Vec<String> = outside
            .map(|Difference { name, value, at_most }| {
                format!("{name}: {value:.2e}, at most {at_most:.0e}")
            })
            .collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }
}
