//! End to end: the real daemon as a child process, the real trainer, the real nano model, the real
//! socket. What the model says is not asserted, because it is learned again now and then; how the
//! daemon behaves is. One binary, so that the exploration that most tests begin with is done once.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod architectures;
mod chats;
mod check;
mod crash;
mod daemon;
mod doctor;
mod explored;
mod export;
mod hostile;
mod init;
mod judges;
mod learning;
mod newcomer;
mod objectives;
mod parity;
mod programs;
mod rounds;
mod scratch;
mod signals;
mod templates;
mod trust;
mod without_trainer;
mod wrong_adapters;
