//! Messages that the troubleshooting chapter quotes are messages of the code.

use super::{document, files, parts};
use testkit::tree::assert_none;

/// Shorter pieces occur in unrelated text.
const LEAST: usize = 6;

/// The pieces of the messages in a heading: code between backticks, `...` taken out.
fn pieces(heading: &str) -> impl Iterator<Item = &str> {
    let code = heading.split('`').skip(1).step_by(2);
    code.flat_map(|message| message.split("...")).map(str::trim).filter(|it| LEAST <= it.len())
}

/// All sources as one text in which literals that go on on the next line are whole.
fn sources() -> String {
    let end = regex::Regex::new(r"\\\n\s*").unwrap();
    let files = files(&["rs"]);
    let texts = files.iter().filter(|file| !file.path.starts_with("tests/docs"));
    texts.map(|file| end.replace_all(&file.text, "").into_owned()).collect()
}

#[test]
fn quoted_messages_are_in_the_code() {
    let sources = sources();
    let text = document("docs/guide/troubleshooting.md").text;
    let headings: Vec<_> =
        parts(&text).0.into_iter().filter(|(_, line)| line.starts_with("### ")).collect();
    let quoted: Vec<_> = headings
        .iter()
        .flat_map(|(line, heading)| pieces(heading).map(move |piece| (line, piece)))
        .collect();
    assert!(20 < quoted.len(), "the chapter quotes messages: {quoted:?}");
    let findings = quoted.iter().filter(|(_, piece)| !sources.contains(piece));
    let findings = findings.map(|(line, piece)| format!("line {line}: no source has {piece:?}"));
    assert_none(&findings.collect::<Vec<_>>());
}

#[test]
fn pieces_of_a_message_leave_out_what_it_fills_in() {
    let found: Vec<_> = pieces("### `load ...: it fails`, or `a ... b`").collect();
    assert_eq!(found, [": it fails"]);
}
