//! Architectures as data (`architecture`), and the shape of one model (`shape`).

mod architecture;
mod shape;

pub(crate) use architecture::{Activation, RopeFactors, RopeStyle};
pub(crate) use shape::{Rope, Shape, Sizes};
