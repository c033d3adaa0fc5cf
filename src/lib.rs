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
//! | [`trust`] | how good the judge is, thresholds, attacks on it |
//! | [`reflect`] | draft, assess, critique, refine, choose |
//! | [`merge`] | an adapter written into its base |
//! | [`socket_path`] | where the socket lies and clients look for it |
//! | [`telemetry`], [`paths`] | the edges of the process |
//!
//! Below them are the crates of the workspace: `engine` (the model), `store` (SQLite), `config`, `prompt`,
//! `jinja` (chat templates), `nano` (the embedded default), `tasks` (of the demonstration and the
//! benchmarks), `ggml`, `files` (GGUF and adapters), `protocol` (with the trainer), `statistics`,
//! `inference` (requests and replies as data); beside them `trainer` and, for tests, `testkit`.

pub mod api;
pub mod cli;
pub mod daemon;
pub mod learn;
pub mod merge;
pub mod paths;
pub mod reflect;
pub mod signals;
pub mod socket_path;
pub mod telemetry;
pub mod trust;
