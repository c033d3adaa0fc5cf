//! `reflectd feedback`: the owner's word on an answer. Called by `cli::run`.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::Value;

use super::client::Client;
use super::terminal;
use crate::exit::Exit;
use crate::store::{CandidateId, ExchangeId, Feedback};

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("word").required(true).multiple(true)))]
pub(super) struct Arguments {
    /// The receipt that came with the answer.
    exchange: i64,
    /// The answer is good.
    #[arg(long, group = "word", conflicts_with = "bad")]
    good: bool,
    /// The answer is bad.
    #[arg(long, group = "word")]
    bad: bool,
    /// What the answer should have been; `-` reads standard input.
    #[arg(long, group = "word", value_name = "FILE")]
    edit: Option<PathBuf>,
    /// Which candidate [default: the one that was served].
    #[arg(long)]
    candidate: Option<i64>,
    /// Which aspect of it [default: the whole].
    #[arg(long)]
    aspect: Option<String>,
}

pub(super) async fn run(client: &Client, arguments: &Arguments) -> anyhow::Result<Exit> {
    let edit = match &arguments.edit {
        Some(path) if path.as_os_str() == "-" => Some(std::io::read_to_string(std::io::stdin())?),
        Some(path) => Some(
            std::fs::read_to_string(path)
                .with_context(|| format!("read the answer in {}", path.display()))?,
        ),
        None => None,
    };
    let rating = match (arguments.good, arguments.bad) {
        (true, _) => Some(1),
        (_, true) => Some(-1),
        _ => None,
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
