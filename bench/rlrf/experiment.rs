//! The experiment from end to end: every unit in turn, then the numbers. Used by `main` and the
//! test.

use anyhow::Context as _;

use crate::arms::Unit;
use crate::lab::Lab;
use crate::records::Records;
use crate::setting::Setting;
use crate::unit::{self, STEPS};

/// Runs these units (all of them when `only` is empty); what is recorded is not done again.
pub(crate) async fn run(setting: &Setting, only: &[Unit]) -> anyhow::Result<Records> {
    let units: Vec<Unit> = Unit::all(setting.scale.seeds)
        .into_iter()
        .filter(|unit| only.is_empty() || only.contains(unit))
        .collect();
    let mut lab = Lab::open(setting, 1 + units.len() * STEPS).await?;
    unit::base(&mut lab).await.context("m0")?;
    for unit in units {
        unit::run(&mut lab, unit).await?;
    }
    lab.close()
}
