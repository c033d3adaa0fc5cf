//! Tests of the comparison of both trainers, in a program of their own: the benchmark has no test
//! harness.

mod parity;

use protocol::Compute;

use parity::{N_UPDATES, Step, compare, tolerance};

fn steps() -> Vec<Step> {
    let step = |number: usize| Step {
        loss: 0.69 - 0.01 * number as f64,
        grad_norm: 8.6,
        logps_chosen: -1369.0 + number as f64,
        logps_rejected: -1372.0 - number as f64,
    };
    (0..=N_UPDATES).map(step).collect()
}

fn fault(change: impl Fn(&mut Vec<Step>)) -> Option<String> {
    let mut theirs = steps();
    change(&mut theirs);
    compare(&steps(), &theirs, tolerance(Compute::F32)).expect("both have made all steps").fault()
}

#[test]
fn a_side_that_computes_something_else_is_told_from_one_that_rounds() {
    assert_eq!(fault(|_| ()), None);
    assert_eq!(fault(|steps| steps[0].grad_norm *= 1.0 + 1e-6), None);
    for (change, name) in [
        (
            &(|steps: &mut Vec<Step>| steps[0].grad_norm *= 1.001) as &dyn Fn(&mut Vec<Step>),
            "gradient",
        ),
        (&|steps| steps[0].logps_rejected -= 0.1, "log-probs of step 1"),
        (&|steps| steps[20].logps_chosen -= 1.0, "log-probs after 20"),
        (&|steps| steps[7].loss += 0.01, "loss"),
        (&|steps| steps[3].loss = f64::NAN, "loss"),
        (&|steps| steps[0].grad_norm = f64::NAN, "gradient"),
    ] {
        let fault = fault(change).unwrap_or_default();
        assert!(fault.starts_with(name), "{name}: {fault:?}");
    }
    let short = &steps()[..N_UPDATES];
    assert!(compare(&steps(), short, tolerance(Compute::F32)).is_none());
}
