//! What a run learns from now: examples, while the model can do less than they show, and then pairs and
//! answers. The one way to it, for the run and for who asks before it. Used by `run` and `preview`.

use super::Parts;
use super::error::RunError;
use super::held_out::HeldOut;
use super::material::{self, Material};
use super::practice;
use config::Config;

/// What is learned from.
#[derive(Debug)]
pub(super) struct Lesson {
    /// As a run's record has it under `lesson`.
    pub(super) name: &'static str,
    pub(super) material: Material,
}

impl Lesson {
    /// Whether it is of examples alone, which have no number of new pairs to reach.
    pub(super) fn is_of_examples(&self) -> bool {
        self.name == practice::EXAMPLES
    }
}

/// Whichever is due. `is_scheduled`: a few examples are not worth a night.
pub(super) async fn next(
    parts: &Parts,
    config: &Config,
    held_out: &HeldOut,
    is_scheduled: bool,
) -> Result<Lesson, RunError> {
    if let Some(material) = practice::waiting(parts, config, held_out, is_scheduled).await? {
        return Ok(Lesson { name: practice::EXAMPLES, material });
    }
    let material = material::collect(parts, config, held_out).await?;
    Ok(Lesson { name: "answers", material })
}
