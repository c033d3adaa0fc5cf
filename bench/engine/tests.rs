//! Tests of the benchmark's pure parts: a program without a test harness cannot run its own.

#![allow(dead_code, reason = "the parts are used by the benchmark, which is another program")]

mod process;
mod results;
mod statistics;
mod table;
mod vocabulary;

/// `process` asks a server whether it is ready.
mod http;
