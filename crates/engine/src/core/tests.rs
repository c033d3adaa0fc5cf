//! The core alone: what one step may hold, and a simulation of everything that can happen.

mod scheduling;
mod simulation;
