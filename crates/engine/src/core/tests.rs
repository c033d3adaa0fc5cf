mod scheduling;
mod simulation;
