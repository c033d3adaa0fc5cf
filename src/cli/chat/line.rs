//! What a line typed into `reflectd chat` means. Pure. Used by `chat` alone.

use crate::cli::parse_mode;
use config::Mode;

/// One line that the owner typed.
#[derive(Debug, PartialEq)]
pub(super) enum Line {
    Empty,
    Help,
    Say(String),
    Mode(Mode),
    /// The level, and which aspect has it; `None`: the whole answer.
    Rate(i8, Option<String>),
    Edit(String),
    Why,
    New,
    Quit,
}

pub(super) const HELP: &str = "\
/mode off|inline|background|explore   when the model reflects
/why                                  what it thinks of its last answer
/good, /bad [ASPECT]                  what you think of it, or of one aspect of it
/edit TEXT                            what it should have said
/new                                  forget the conversation
/quit                                 leave
//TEXT                                a message that begins with a slash
";

impl Line {
    /// The meaning, or what to type instead.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let line = line.trim();
        if line.is_empty() {
            return Ok(Self::Empty);
        }
        let Some(command) = line.strip_prefix('/') else {
            return Ok(Self::Say(line.to_owned()));
        };
        let (word, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match (word, rest.trim()) {
            ("mode", mode) => parse_mode(mode).map(Self::Mode),
            ("edit", "") => Err("/edit wants the better answer on the same line".to_owned()),
            ("edit", text) => Ok(Self::Edit(text.to_owned())),
            ("good", aspect) => rate(1, aspect),
            ("bad", aspect) => rate(-1, aspect),
            ("why", "") => Ok(Self::Why),
            ("new", "") => Ok(Self::New),
            ("help", "") => Ok(Self::Help),
            ("quit" | "exit", "") => Ok(Self::Quit),
            _ if command.starts_with('/') => Ok(Self::Say(command.to_owned())),
            _ => Err(format!("/{word} is no command of this kind; /help lists them")),
        }
    }
}

fn rate(rating: i8, aspect: &str) -> Result<Line, String> {
    if aspect.contains(char::is_whitespace) {
        return Err("/good and /bad want nothing, or the name of one aspect".to_owned());
    }
    Ok(Line::Rate(rating, Some(aspect.to_owned()).filter(|aspect| !aspect.is_empty())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_without_a_slash_is_said() {
        assert_eq!(Line::parse("  what is 2+2? "), Ok(Line::Say("what is 2+2?".into())));
        assert_eq!(Line::parse("//etc"), Ok(Line::Say("/etc".into())));
        assert_eq!(Line::parse(" \t"), Ok(Line::Empty));
    }

    #[test]
    fn every_command_of_the_help_is_understood() {
        assert_eq!(Line::parse("/mode inline"), Ok(Line::Mode(Mode::Inline)));
        assert_eq!(Line::parse("/good"), Ok(Line::Rate(1, None)));
        assert_eq!(Line::parse("/bad clarity"), Ok(Line::Rate(-1, Some("clarity".into()))));
        assert_eq!(Line::parse("/edit  it is 4 "), Ok(Line::Edit("it is 4".into())));
        assert_eq!(Line::parse("/why"), Ok(Line::Why));
        assert_eq!(Line::parse("/new"), Ok(Line::New));
        assert_eq!(Line::parse("/help"), Ok(Line::Help));
        assert_eq!(Line::parse("/quit"), Ok(Line::Quit));
    }

    #[test]
    fn a_command_that_is_not_understood_is_never_sent_to_the_model() {
        for line in
            ["/mode", "/mode loud", "/edit", "/nonsense", "/", "/good job it is", "/quit now"]
        {
            assert!(Line::parse(line).is_err(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn only_slashes_make_commands(line in "[^/].*") {
            prop_assume!(!line.trim_start().starts_with('/'));
            prop_assert!(matches!(Line::parse(&line), Ok(Line::Say(_) | Line::Empty)));
        }
    }
}
