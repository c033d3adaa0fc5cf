//! `reflectd ask`: one question, one answer. Called by `cli::run`.

use std::io::{self, IsTerminal as _, Read as _};

use serde_json::Value;

use super::client::Client;
use super::converse::{DEFAULT_AGENT, Part, Question, converse};
use super::terminal;
use config::Mode;
use protocol::exit::Exit;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The question; without it, standard input is read to its end.
    prompt: Option<String>,
    /// off, inline, background or explore [default: the agent's].
    #[arg(long, value_parser = super::parse_mode)]
    mode: Option<Mode>,
    /// Print the whole reply as JSON.
    #[arg(long)]
    json: bool,
    /// Of the sampling; the same seed gives the same answer.
    #[arg(long)]
    seed: Option<i64>,
    /// 0 always takes the likeliest token.
    #[arg(long)]
    temperature: Option<f32>,
    /// Who answers.
    #[arg(long, default_value = DEFAULT_AGENT)]
    agent: String,
}

pub(super) async fn run(client: &Client, arguments: Arguments) -> anyhow::Result<Exit> {
    let prompt = match arguments.prompt {
        Some(prompt) => prompt,
        None => read_input()?,
    };
    let question = Question {
        model: arguments.agent,
        stream: !arguments.json,
        seed: arguments.seed,
        temperature: arguments.temperature,
        ..Question::new(&prompt, arguments.mode)
    };
    if arguments.json {
        let reply: Value = client.post("/v1/chat/completions", &question).await?;
        terminal::print_json(&reply)?;
        return Ok(Exit::Ok);
    }
    converse(client, &question, |part| match part {
        Part::Reasoning(text) => terminal::remark(text),
        Part::Content(text) => terminal::print(text),
    })
    .await?;
    terminal::print("\n")?;
    Ok(Exit::Ok)
}

fn read_input() -> anyhow::Result<String> {
    let mut input = io::stdin();
    if input.is_terminal() {
        terminal::remark("Your question, then Ctrl-D:\n")?;
    }
    let mut text = String::new();
    input.read_to_string(&mut text)?;
    Ok(text.trim_end().to_owned())
}
