//! Standard output and standard error. Text of a model or a file never reaches a terminal with its
//! control characters, because those could move the cursor or forge output.
//! Used by every subcommand.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};

use serde_json::Value;

/// Writes to standard output and flushes it, so that streams appear as they come.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(printable(text).as_bytes())?;
    out.flush()
}

/// Likewise to standard error: remarks that a pipe should not carry.
pub(super) fn remark(text: &str) -> io::Result<()> {
    let mut out = io::stderr().lock();
    let text = printable(text);
    out.write_all(dim(&text, out.is_terminal()).as_bytes())?;
    out.flush()
}

/// One line of JSON for machines.
pub(super) fn print_json(value: &Value) -> io::Result<()> {
    print(&format!("{value}\n"))
}

/// Every control character but line feed and tab becomes U+FFFD.
fn printable(text: &str) -> Cow<'_, str> {
    let is_hostile = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains(is_hostile) {
        text.replace(is_hostile, "\u{fffd}").into()
    } else {
        text.into()
    }
}

fn dim(text: &str, on_terminal: bool) -> Cow<'_, str> {
    if on_terminal && !text.is_empty() {
        format!("\x1b[2m{text}\x1b[0m").into()
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_cannot_send_control_sequences_to_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\r\u{9b}c\n\td"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}c\n\td");
        assert!(matches!(printable("plain ünïcode\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn only_a_terminal_gets_dim_text() {
        assert_eq!(dim("x", true), "\x1b[2mx\x1b[0m");
        assert_eq!(dim("x", false), "x");
    }
}
