//! What the benchmarks share: where a number was measured, how results are kept, medians, and their place
//! in documents.

pub mod machine;
pub mod markers;
pub mod records;
pub mod results;
pub mod statistics;
