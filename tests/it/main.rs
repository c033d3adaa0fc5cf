//! Integration tests: the real daemon in this process, on a folder of its own, with a scripted
//! model in place of llama.cpp. Everything is asked through the socket. One binary, because each
//! one more would link llama.cpp again.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod chat;
mod errors;
mod harness;
mod inspect;
mod life;
mod reload;
mod verifiers;
