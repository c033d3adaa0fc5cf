//! What a run learns from now: examples, while the model can do less than they show, and then pairs and
//! answers. The one way to it, for the run and for who asks before it. Used by `run` and `preview`.

use super::Parts;
use super::error::RunError;
use super::examples;
use super::held_out::HeldOut;
use super::material::{self, Material};
use config::Config;

/// Whichever is due. `is_scheduled`: a few examples are not worth a night.
pub(super) async fn next(
    parts: &Parts,
    config: &Config,
    held_out: &HeldOut,
    is_scheduled: bool,
) -> Result<Material, RunError> {
    match examples::waiting(parts, config, held_out, is_scheduled).await? {
        Some(material) => Ok(material),
        None => material::collect(parts, config, held_out).await,
    }
}
