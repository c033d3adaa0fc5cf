//! `reflectd`: a daemon that serves a GGUF model, reflects on its answers and fine-tunes it.
//!
//! Code map; start at [`daemon`]. A module may use those below it in this list, never those above:
//!
//! | module | owns |
//! |---|---|
//! | [`cli`] | subcommands; everything but `serve` is a client of the socket |
//! | [`signals`] | signals to the daemon's words |
//! | [`daemon`] | builds everything, one loop over `enum Event`, stops everything in order |
//! | [`api`] | HTTP on the Unix socket |
//! | [`learn`] | pairs, schedule, trainer child, gate, promotion |
//! | [`trust`] | how good the judge is, bars, attacks on it |
//! | [`reflect`] | draft, assess, critique, refine, choose |
//! | [`store`] | SQLite: one thread, one connection |
//! | [`nano`] | the embedded default: world, corpora, tokenizer |
//! | [`config`] | YAML to checked values, hot reload |
//! | [`prompt`] | templates; pure after load |
//! | [`lora`] | adapters as files: GGUF, PEFT, merged, with a card |
//! | [`engine`] | the model: one thread, one context, lanes |
//! | [`gguf`] | reading, checking and writing GGUF files |
//! | [`statistics`] | shares with intervals, a judge against the truth; pure |
//! | [`protocol`] | what daemon and trainer say to each other |
//! | [`socket_path`] | where the socket lies and clients look for it |
//! | [`telemetry`], [`paths`], [`exit`] | the edges of the process |

#![cfg_attr(
    test,
    allow(
        clippy::assertions_on_result_states,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::format_collect,
        clippy::format_push_string,
        reason = "a failed test prints what it needs to; its numbers are its own"
    )
)]

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod exit;
pub mod gguf;
pub mod learn;
pub mod lora;
pub mod nano;
pub mod paths;
pub mod prompt;
pub mod protocol;
pub mod reflect;
pub mod signals;
pub mod socket_path;
pub mod statistics;
pub mod store;
pub mod telemetry;
pub mod trust;
