//! What a file and a machine cannot tell: asked once, each with an answer that fits when nothing is
//! typed. Used by `init`.

use std::path::PathBuf;

use config::ExampleLine;
use config::prompt_file;
use serde_json::json;

use crate::reflect::verify::Check;

/// What the owner says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answers {
    /// What the model is told before a conversation.
    pub(super) system: Option<String>,
    /// A file of examples, whole.
    pub(super) examples: Option<PathBuf>,
    /// How long an answer may be at most.
    pub(super) length: Option<Length>,
    /// When nights begin, UTC; `None`: never by themselves.
    pub(super) hour: Option<u8>,
}

impl Default for Answers {
    /// Of an owner who is not asked.
    fn default() -> Self {
        Self { system: None, examples: None, length: None, hour: Some(3) }
    }
}

/// So many of a unit that the verifier `length` counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Length {
    pub(super) most: u32,
    /// A key of the verifier.
    pub(super) unit: &'static str,
}

impl Length {
    /// "1 sentence", "50 words", "3 lines".
    fn parse(said: &str) -> Option<Self> {
        let (most, unit) = said.split_once(' ')?;
        let most = most.parse().ok().filter(|most| 0 < *most)?;
        let unit = unit.trim().to_lowercase();
        let units = ["words", "sentences", "lines"];
        let unit =
            units.into_iter().find(|it| *it == unit || it.strip_suffix('s') == Some(&unit))?;
        Some(Self { most, unit })
    }

    /// Whether the answers that the owner wants are no longer.
    fn fits(self, examples: &[(usize, ExampleLine)]) -> Result<(), String> {
        let Self { most, unit } = self;
        let verifier = json!({ "kind": "length", unit: { "max": most } });
        let check = serde_json::from_value(verifier).map_err(|error| error.to_string())?;
        let check = Check::new(&check).map_err(|error| error.to_string())?;
        let fault = examples
            .iter()
            .find_map(|(number, line)| Some((number, check.check(&line.answer, &[]).reason?)));
        fault.map_or(Ok(()), |(number, why)| {
            Err(format!("Line {number} of the examples is longer: {why}"))
        })
    }
}

/// Asks until an answer fits; `ask` shows a question and gives what is typed, `refuse` says why it does
/// not fit.
pub(super) fn ask_all(
    ask: &dyn Fn(&str) -> anyhow::Result<String>,
    refuse: &dyn Fn(&str) -> std::io::Result<()>,
) -> anyhow::Result<Answers> {
    let said = ask("What is the model told before each conversation? [nothing]: ")?;
    let system = (!said.is_empty()).then_some(said);
    let mut of_examples = Vec::new();
    let examples = loop {
        let said = ask("A file of examples, prompts with the answers that you want? [none]: ")?;
        if said.is_empty() {
            break None;
        }
        let path = std::path::absolute(&said)?;
        match prompt_file::read_examples(&path) {
            Ok(lines) => {
                of_examples = lines;
                break Some(path);
            }
            Err(error) => refuse(&format!("{:#}\n", anyhow::Error::from(error)))?,
        }
    };
    let length = loop {
        let said =
            ask("How long may an answer be at most, as \"1 sentence\" or \"50 words\"? [any]: ")?;
        if said.is_empty() {
            break None;
        }
        let length = Length::parse(&said)
            .ok_or_else(|| format!("{said:?} is no number of words, sentences or lines"));
        match length.and_then(|length| length.fits(&of_examples).map(|()| length)) {
            Ok(length) => break Some(length),
            Err(why) => refuse(&format!("{why}.\n"))?,
        }
    };
    let hour = loop {
        let said = ask("At which hour may it train, 0 to 23 (UTC), or never? [3]: ")?;
        match said.as_str() {
            "" => break Some(3),
            "never" => break None,
            hour => match hour.parse::<u8>() {
                Ok(hour @ 0..=23) => break Some(hour),
                _ => refuse(&format!("{hour:?} is no hour from 0 to 23 and not \"never\".\n"))?,
            },
        }
    };
    Ok(Answers { system, examples, length, hour })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;

    use super::*;

    /// The answers to what is typed, and what was refused.
    fn answered(typed: &[&str]) -> (Answers, Vec<String>) {
        let typed = RefCell::new(VecDeque::from(typed.to_vec()));
        let refused = RefCell::new(Vec::new());
        let ask = |_: &str| -> anyhow::Result<String> {
            Ok(typed.borrow_mut().pop_front().unwrap().to_owned())
        };
        let refuse = |why: &str| -> std::io::Result<()> {
            refused.borrow_mut().push(why.to_owned());
            Ok(())
        };
        let answers = ask_all(&ask, &refuse).unwrap();
        assert!(typed.borrow().is_empty());
        (answers, refused.into_inner())
    }

    #[test]
    fn nothing_typed_is_as_nobody_asked() {
        assert_eq!(answered(&["", "", "", ""]), (Answers::default(), vec![]));
    }

    #[test]
    fn what_does_not_fit_is_asked_again_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("examples.jsonl");
        let write = |text: &str| {
            files::write_atomic(&path, |it| std::io::Write::write_all(it, text.as_bytes()))
                .unwrap();
        };
        let file = path.to_str().unwrap();
        // The examples' own answers have to be as short.
        write("{\"prompt\":\"a\",\"answer\":\"One. Two.\"}\n");
        let (answers, refused) = answered(&["", file, "1 sentence", "2 sentences", "7"]);
        assert_eq!(answers.length, Some(Length { most: 2, unit: "sentences" }));
        assert!(refused[0].contains("Line 1 of the examples is longer"), "{refused:?}");
        write("{\"prompt\":\"a\",\"answer\":\"b\"}\n");
        let typed = [
            "Be brief.",
            "/nowhere/x.jsonl",
            file,
            "short",
            "0 words",
            "1 Sentence",
            "24",
            "noon",
            "never",
        ];
        let (answers, refused) = answered(&typed);
        let expected = Answers {
            system: Some("Be brief.".into()),
            examples: Some(path.clone()),
            length: Some(Length { most: 1, unit: "sentences" }),
            hour: None,
        };
        assert_eq!(answers, expected);
        assert!(refused[0].contains("/nowhere/x.jsonl"), "{refused:?}");
        assert_eq!(refused.len(), 5);
        write("{\"prompt\":\"a\"}\n");
        let (_, refused) = answered(&["", file, "", "", "7"]);
        assert!(refused[0].contains("answer"), "{refused:?}");
    }
}
