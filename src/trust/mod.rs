//! How far the judge can be trusted: labelled answers in, a report out; bars that reach a target;
//! and whether a model may learn from this judge at all. The statistics are pure (`report`, `bar`,
//! `standing`, `probes`); `meter` and `attack` ask the judge. It trains nothing and stores nothing
//! but its reports. Used by `learn` and `api`.

mod attack;
mod bar;
mod meter;
mod probes;
mod report;
mod standing;

pub use attack::{Attack, AttackReport, AttackRow, builtin, resist};
pub use bar::{Calibration, choose};
pub use meter::{Meter, newest};
pub use probes::{Origin, Probe};
pub use report::{Drift, PositionBias, Report, Row, Sources};
pub use standing::{Standing, standing};

use crate::reflect::ReflectError;
use config::prompt_file::PromptFileError;
use store::StoreError;

/// Why a judge could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The judge could not be asked.
    #[error(transparent)]
    Reflect(#[from] ReflectError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The probes cannot be read.
    #[error(transparent)]
    Probes(#[from] PromptFileError),
    /// There is nothing to attack with.
    #[error("agent {0} has no answer that is known to be wrong: give it probes, or rate answers")]
    NothingWrong(String),
}
