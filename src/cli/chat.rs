//! `reflectd chat`: a conversation on the terminal, or piped. Shows what the daemon thinks of each
//! answer as soon as it has judged it. Called by `cli::run`.

mod line;

use std::io::{self, BufRead as _, IsTerminal as _};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::client::{Client, ClientError};
use super::converse::{DEFAULT_AGENT, Part, Question, converse};
use super::reply::{Exchange, Learning};
use super::terminal::{print, remark};
use super::verdict::{Verdict, served, verdict};
use config::Mode;
use line::Line;
use prompt::{Message, Role};
use protocol::exit::Exit;
use store::{ExchangeId, Feedback};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Who answers.
    #[arg(long, default_value = DEFAULT_AGENT)]
    agent: String,
    /// off, inline, background or explore [default: the agent's].
    #[arg(long, value_parser = super::parse_mode)]
    mode: Option<Mode>,
}

/// How long a reflection in the background is waited for, and how often it is looked at.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(200);

pub(super) async fn run(client: &Client, arguments: &Arguments) -> anyhow::Result<Exit> {
    let mut session = Session {
        client,
        question: Question {
            model: arguments.agent.clone(),
            messages: Vec::new(),
            ..Question::new("", arguments.mode)
        },
        last: None,
        is_interactive: io::stdin().is_terminal(),
        lines: read_lines(),
        typed: None,
    };
    if session.is_interactive {
        let Now { learning } = client.get("/v1/status").await?;
        if let Some(learning) = learning {
            remark(&format!("{}\n", learning.sentence))?;
        }
        remark("Type a message, or /help. End with /quit or Ctrl-D.\n")?;
    }
    while let Some(line) = session.next_line().await? {
        match Line::parse(&line) {
            Ok(Line::Quit) => break,
            Ok(line) => match session.obey(line).await {
                // A refusal concerns this line alone; without a daemon there is nothing to do.
                Err(error) if is_refusal(&error) => remark(&format!("{error:#}\n"))?,
                result => result?,
            },
            Err(usage) => remark(&format!("{usage}\n"))?,
        }
    }
    Ok(Exit::Ok)
}

/// `GET /v1/status`, as far as a conversation begins with it.
#[derive(Debug, Deserialize)]
struct Now {
    learning: Option<Learning>,
}

fn is_refusal(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ClientError::Refused { .. }))
}

/// Reads standard input on a thread of its own, because a read that waits for a person cannot be
/// cancelled; the thread ends with the process. One line ahead is enough for one person.
fn read_lines() -> mpsc::Receiver<io::Result<String>> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

struct Session<'a> {
    client: &'a Client,
    /// The conversation so far, and how it is asked.
    question: Question,
    /// The receipt of the newest answer.
    last: Option<ExchangeId>,
    is_interactive: bool,
    lines: mpsc::Receiver<io::Result<String>>,
    /// A line that came while a reflection was waited for.
    typed: Option<io::Result<String>>,
}

impl Session<'_> {
    async fn next_line(&mut self) -> io::Result<Option<String>> {
        if let Some(line) = self.typed.take() {
            return line.map(Some);
        }
        self.prompt()?;
        self.lines.recv().await.transpose()
    }

    fn prompt(&self) -> io::Result<()> {
        if self.is_interactive { remark("> ") } else { Ok(()) }
    }

    async fn obey(&mut self, line: Line) -> anyhow::Result<()> {
        match line {
            Line::Empty | Line::Quit => {}
            Line::Help => remark(line::HELP)?,
            Line::Say(text) => self.say(text).await?,
            Line::Mode(mode) => self.question.reflectd.mode = Some(mode),
            Line::New => {
                self.question.messages.clear();
                self.last = None;
            }
            Line::Rate(rating, aspect) => self.feedback(Some(rating), aspect, None).await?,
            Line::Edit(text) => self.feedback(None, None, Some(text)).await?,
            Line::Why => self.why().await?,
        }
        Ok(())
    }

    async fn say(&mut self, text: String) -> anyhow::Result<()> {
        self.question.messages.push(Message { role: Role::User, content: text });
        let mut reasoned = false;
        let reply = converse(self.client, &self.question, |part| match part {
            Part::Reasoning(text) => {
                reasoned = true;
                remark(text)
            }
            Part::Content(text) => print(text),
        })
        .await;
        // A turn without an answer would leave the conversation in a shape that no model knows.
        let reply = reply.inspect_err(|_| drop(self.question.messages.pop()))?;
        print("\n")?;
        self.question.messages.push(Message { role: Role::Assistant, content: reply.text });
        self.last = reply.receipt.and_then(|receipt| receipt.exchange);
        match self.last {
            Some(exchange) if !reasoned && self.question.reflectd.mode != Some(Mode::Explore) => {
                self.await_verdict(exchange).await
            }
            _ => Ok(()),
        }
    }

    /// Waits until the daemon has judged its answer. A person who types on is not kept waiting.
    async fn await_verdict(&mut self, exchange: ExchangeId) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let verdict = self.look(exchange).await?;
            if verdict.is_final || deadline <= Instant::now() {
                return Ok(show(&verdict)?);
            }
            let next = deadline.min(Instant::now() + LOOK);
            if !self.is_interactive {
                sleep_until(next).await;
            } else if let Ok(line) = timeout_at(next, self.lines.recv()).await {
                self.typed = line;
                return Ok(show(&verdict)?);
            }
        }
    }

    async fn look(&self, exchange: ExchangeId) -> Result<Verdict, ClientError> {
        Ok(verdict(&self.exchange(exchange).await?))
    }

    async fn exchange(&self, exchange: ExchangeId) -> Result<Exchange, ClientError> {
        self.client.get(&format!("/v1/reflections/{exchange}")).await
    }

    async fn feedback(
        &self,
        rating: Option<i8>,
        aspect: Option<String>,
        edit: Option<String>,
    ) -> anyhow::Result<()> {
        let Some(exchange) = self.last else { return Ok(remark(NO_ANSWER)?) };
        let feedback = Feedback { exchange, candidate: None, rating, aspect, edit };
        let _: serde_json::Value = self.client.post("/v1/feedback", &feedback).await?;
        Ok(remark("Stored.\n")?)
    }

    async fn why(&self) -> anyhow::Result<()> {
        let Some(exchange) = self.last else { return Ok(remark(NO_ANSWER)?) };
        let exchange = self.exchange(exchange).await?;
        show(&verdict(&exchange))?;
        let others = exchange.candidates.len() - usize::from(served(&exchange).is_some());
        Ok(remark(&format!("Exchange {} with {others} other candidates.\n", exchange.id))?)
    }
}

const NO_ANSWER: &str = "There is no stored answer to speak of (mode off stores nothing).\n";

fn show(verdict: &Verdict) -> io::Result<()> {
    match &verdict.scores {
        Some(scores) => remark(&format!("  {scores}\n"))?,
        None => remark("  not yet judged; /why asks again\n")?,
    }
    if let Some(critique) = &verdict.critique {
        remark(&format!("  critique: {critique}\n"))?;
    }
    if let Some(better) = &verdict.better {
        remark(&format!("  better: {better}\n"))?;
    }
    Ok(())
}
