//! Tests of the core as a whole.

mod simulation;
