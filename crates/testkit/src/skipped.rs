//! How a test says that it did not run. Used by every test that needs something which a bare
//! machine lacks.

use std::io::Write as _;

/// Says so on standard error, past libtest, which keeps what a passing test prints to itself. The
/// line stands in the output of `cargo test`, whatever becomes of the test.
pub fn skipped(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // In one write, so that lines of tests that run side by side do not mix.
    let line = format!("\nSKIPPED {test}: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).expect("standard error is open");
}
