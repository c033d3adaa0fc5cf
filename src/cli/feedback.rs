//! `reflectd feedback`: the owner's rating or edit of an answer. Called by `cli::run`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::client::Client;
use super::reply::{Candidate, Exchange};
use super::{editor, terminal};
use protocol::exit::Exit;
use store::{CandidateId, ExchangeId, Feedback};

/// What stands for a file that is not named.
const IN_EDITOR: &str = "$EDITOR";

/// The newest word counts. The whole answer's outranks the judge: bad is never chosen, good is
/// unless a verifier that counts says no, an edit is chosen over what it edits.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("word").required(true).multiple(true)))]
#[command(group(clap::ArgGroup::new("thumb").multiple(false)))]
pub(super) struct Arguments {
    /// The receipt that came with the answer.
    exchange: i64,
    /// The answer is good.
    #[arg(long, groups = ["word", "thumb"])]
    good: bool,
    /// The answer is bad.
    #[arg(long, groups = ["word", "thumb"])]
    bad: bool,
    /// -1, 0 or 1; 0 takes a thumb back, and is the middle level of an aspect.
    #[arg(
        long,
        groups = ["word", "thumb"],
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(i8).range(-1..=1)
    )]
    rating: Option<i8>,
    /// What the answer should have been; `-` reads standard input; without a file the answer is
    /// opened in $VISUAL or $EDITOR.
    #[arg(
        long,
        group = "word",
        value_name = "FILE",
        num_args = 0..=1,
        default_missing_value = IN_EDITOR
    )]
    edit: Option<PathBuf>,
    /// Which candidate [default: the one that was served].
    #[arg(long)]
    candidate: Option<i64>,
    /// Which aspect of it the rating is about [default: the whole].
    #[arg(long, requires = "thumb")]
    aspect: Option<String>,
}

pub(super) async fn run(client: &Client, arguments: &Arguments) -> anyhow::Result<Exit> {
    let edit = match &arguments.edit {
        None => None,
        Some(path) if path.as_os_str() == IN_EDITOR => Some(in_editor(client, arguments).await?),
        Some(path) => Some(read(path)?),
    };
    let rating = match (arguments.good, arguments.bad) {
        (true, _) => Some(1),
        (_, true) => Some(-1),
        _ => arguments.rating,
    };
    let feedback = Feedback {
        exchange: ExchangeId(arguments.exchange),
        candidate: arguments.candidate.map(CandidateId),
        rating,
        aspect: arguments.aspect.clone(),
        edit,
    };
    let _: Value = client.post("/v1/feedback", &feedback).await?;
    terminal::remark("Stored.\n")?;
    Ok(Exit::Ok)
}

fn read(path: &Path) -> anyhow::Result<String> {
    if path.as_os_str() == "-" {
        return std::io::read_to_string(std::io::stdin()).context("read the answer");
    }
    std::fs::read_to_string(path).with_context(|| format!("read the answer in {}", path.display()))
}

/// The stored answer as the owner leaves it in an editor.
async fn in_editor(client: &Client, arguments: &Arguments) -> anyhow::Result<String> {
    let path = format!("/v1/reflections/{}", arguments.exchange);
    let exchange: Exchange = client.get(&path).await?;
    let wanted = arguments.candidate.map(CandidateId).or(exchange.served);
    let is_wanted = |candidate: &&Candidate| Some(candidate.id) == wanted;
    let original = exchange.candidates.iter().find(is_wanted);
    let original = original.context("there is no such answer: name one with --candidate")?;
    let text = editor::edited(&original.text)?;
    if text.trim() == original.text.trim() {
        bail!("the answer was not changed, so nothing was stored");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        let words = line.split(' ').filter(|word| !word.is_empty());
        Line::try_parse_from(["feedback"].into_iter().chain(words)).map(|line| line.arguments)
    }

    #[test]
    fn a_word_is_a_thumb_a_level_an_edit_or_some_of_them() {
        assert!(parse("7 --good").unwrap().good);
        assert_eq!(parse("7 --rating -1 --aspect clarity").unwrap().rating, Some(-1));
        assert_eq!(parse("7 --edit").unwrap().edit, Some(IN_EDITOR.into()));
        assert_eq!(parse("7 --good --edit -").unwrap().edit, Some("-".into()));
        assert_eq!(parse("7 --edit better.txt").unwrap().edit, Some("better.txt".into()));
        for refused in ["7", "7 --good --bad", "7 --rating 2", "7 --aspect clarity", "--good"] {
            parse(refused).unwrap_err();
        }
    }
}
