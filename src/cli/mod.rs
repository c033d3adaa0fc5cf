//! The command line: one file a subcommand. Everything but `serve`, `check`, `init`, `doctor`, `probe`
//! and `demo` is only a client of the daemon's socket; `export` also reads the files that it names. The
//! one place where an error becomes an exit code. Called by `main`; nothing else uses it.

mod adapters;
mod ask;
mod chat;
mod check;
mod client;
mod converse;
mod demo;
mod doctor;
mod editor;
mod explore;
mod export;
mod feedback;
mod gate;
mod init;
mod judge;
mod judge_report;
mod learn;
mod nano;
mod operation;
mod pages;
mod pairs;
mod probe;
mod progress;
mod reply;
mod runs;
mod serve;
mod sse;
mod status;
mod table;
mod terminal;
mod train;
mod verdict;

use std::io;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::daemon::StartError;
use crate::socket_path::SocketPath;
use client::{Client, ClientError};
use config::prompt_file::PromptFileError;
use config::{ConfigError, Mode};
use engine::EngineError;
use files::gguf::GgufError;
use files::lora::LoraError;
use protocol::exit::Exit;

/// Serves a GGUF model, reflects on its answers and fine-tunes it on this machine.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
pub struct Arguments {
    #[command(flatten)]
    places: Places,
    #[command(subcommand)]
    command: Command,
}

/// Where things lie.
#[derive(Clone, Debug, clap::Args)]
struct Places {
    /// Folder of reflectd.yaml, agents/ and prompts/ [default: .].
    #[arg(long, global = true, help_heading = "Places", env = "REFLECTD_ROOT", value_name = "DIR")]
    root: Option<PathBuf>,
    /// Folder of everything that the daemon writes [default: ROOT/state].
    #[arg(
        long,
        global = true,
        help_heading = "Places",
        env = "REFLECTD_STATE",
        value_name = "DIR"
    )]
    state: Option<PathBuf>,
    /// The daemon's socket [default: `server.socket`; or reflectd.sock in the service's or user's runtime
    /// folder, or in STATE].
    #[arg(
        long,
        global = true,
        help_heading = "Places",
        env = "REFLECTD_SOCKET",
        value_name = "PATH"
    )]
    socket: Option<PathBuf>,
}

impl Places {
    fn root(&self) -> PathBuf {
        self.root.clone().unwrap_or_else(|| ".".into())
    }

    fn state(&self) -> PathBuf {
        self.state.clone().unwrap_or_else(|| self.root().join("state"))
    }

    fn socket_path(&self) -> SocketPath {
        SocketPath::new(self.socket.clone(), self.root.as_deref(), self.state.as_deref())
    }

    fn client(&self) -> Client {
        let configured = config::configured_socket(&self.root());
        Client::new(self.socket_path().of_clients(configured.as_deref(), &self.state()))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground.
    Serve,
    /// Talk to the model; shows what it thinks of its own answers.
    Chat(chat::Arguments),
    /// Ask one question and print the answer.
    Ask(ask::Arguments),
    /// Show what the daemon is doing.
    Status(Json),
    /// Begin: choose a model, and write the files that serve it.
    Init(init::Arguments),
    /// Read the configuration and report every problem in it.
    Check(Json),
    /// Show what this machine would serve with, and what stands in the way of it.
    Doctor(doctor::Arguments),
    /// Try a model file, and an adapter on it, in this process; the daemon asks for it.
    #[command(hide = true)]
    Probe(probe::Arguments),
    /// Write the manual pages and the completions of bash, zsh and fish into a folder.
    #[command(hide = true)]
    Pages(pages::Arguments),
    /// Let the model work on stored prompts now: answers, judgements, refinements.
    Explore(explore::Arguments),
    /// Learn from examples: prompts with the answers that you want.
    Learn(learn::Arguments),
    /// Train now, compare on held-out prompts, and swap if it is better.
    Train(train::Arguments),
    /// Show the training runs.
    Runs(runs::Arguments),
    /// Show what the next run would learn, and what is left out.
    Pairs(pairs::Arguments),
    /// Plan held-out comparisons.
    #[command(subcommand)]
    Gate(gate::Command),
    /// Show the adapters, go back to an earlier one, or try one that was made elsewhere.
    Adapters(adapters::Arguments),
    /// Take a generation along: as an adapter, for PEFT, or merged into a model.
    Export(export::Arguments),
    /// Say what you think of an answer.
    Feedback(feedback::Arguments),
    /// Measure how far the judge can be trusted, calibrate it, attack it, judge stored answers again.
    Judge(judge::Arguments),
    /// Serve, explore, train and swap in a scratch folder, and measure what it brings.
    Demo(demo::Arguments),
    /// Make and measure the embedded model.
    #[command(subcommand)]
    Nano(nano::Command),
}

/// How to print.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Json {
    /// Print JSON for machines.
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand to its end.
pub fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let Arguments { places, command } = arguments;
    match command {
        Command::Serve => serve::run(&places),
        Command::Check(json) => check::run(&places.root(), json),
        Command::Probe(arguments) => probe::run(&arguments),
        Command::Pages(arguments) => pages::run(&arguments),
        Command::Gate(command) => gate::run(&command),
        command => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(run_client(&places, command)),
    }
}

async fn run_client(places: &Places, command: Command) -> anyhow::Result<Exit> {
    let client = places.client();
    match command {
        Command::Serve
        | Command::Check(_)
        | Command::Probe(_)
        | Command::Pages(_)
        | Command::Gate(_) => unreachable!("`run` has taken these"),
        Command::Init(arguments) => init::run(places, arguments).await,
        Command::Doctor(arguments) => doctor::run(places, arguments).await,
        Command::Chat(arguments) => chat::run(&client, &arguments).await,
        Command::Ask(arguments) => ask::run(&client, arguments).await,
        Command::Status(json) => status::run(&client, json).await,
        Command::Explore(arguments) => explore::run(&client, &arguments).await,
        Command::Learn(arguments) => learn::run(&client, &arguments).await,
        Command::Train(arguments) => train::run(&client, &arguments).await,
        Command::Runs(arguments) => runs::run(&client, &arguments).await,
        Command::Pairs(arguments) => pairs::run(&client, &arguments).await,
        Command::Adapters(arguments) => adapters::run(&client, &arguments).await,
        Command::Export(arguments) => export::run(&client, arguments).await,
        Command::Feedback(arguments) => feedback::run(&client, &arguments).await,
        Command::Judge(arguments) => judge::run(&client, &arguments).await,
        Command::Demo(arguments) => demo::run(&places.root(), arguments).await,
        Command::Nano(command) => nano::run(command).await,
    }
}

/// The number that the program ends with after this error.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    if let Some(error) = error.downcast_ref::<ClientError>() {
        return error.exit();
    }
    if let Some(error) = error.downcast_ref::<StartError>() {
        return error.exit();
    }
    if let Some(error) = error.downcast_ref::<init::SampleError>() {
        return error.exit();
    }
    if error.is::<ConfigError>() {
        return Exit::Config;
    }
    match error.downcast_ref() {
        Some(EngineError::Load { .. }) => return Exit::BadData,
        Some(EngineError::Kernels(_)) => return Exit::Config,
        _ => {}
    }
    if error.is::<PromptFileError>() || error.is::<GgufError>() {
        return Exit::BadData;
    }
    if let Some(error) = error.downcast_ref::<LoraError>() {
        return match error {
            LoraError::Gguf(_) | LoraError::Refused { .. } => Exit::BadData,
            LoraError::Read { .. } | LoraError::Write(_) => Exit::System,
        };
    }
    match error.downcast_ref::<io::Error>() {
        // `reflectd runs | head`: the reader has seen enough.
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
        Some(_) => Exit::System,
        None => Exit::Failed,
    }
}

/// A mode as the command line spells it.
fn parse_mode(word: &str) -> Result<Mode, String> {
    match word {
        "off" => Ok(Mode::Off),
        "inline" => Ok(Mode::Inline),
        "background" => Ok(Mode::Background),
        "explore" => Ok(Mode::Explore),
        _ => Err(format!("{word:?} is not one of off, inline, background, explore")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_socket_lies_in_the_state_folder_which_lies_in_the_root() {
        let sockets = |line: &[&str]| {
            let client = Arguments::parse_from(line).places.client();
            client.sockets().last().unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(sockets(&["reflectd", "status", "--root", "/r"]), "/r/state/reflectd.sock");
        assert_eq!(sockets(&["reflectd", "--state", "/s", "status"]), "/s/reflectd.sock");
        let all = ["reflectd", "--socket", "/x", "--state", "/s", "status"];
        assert_eq!(sockets(&all), "/x");
    }

    #[test]
    fn clients_go_where_the_configuration_puts_the_socket() {
        let root = tempfile::tempdir().unwrap();
        let sockets = || {
            let line = ["reflectd", "status", "--root", root.path().to_str().unwrap()];
            Arguments::parse_from(line).places.client().sockets().to_owned()
        };
        let write = |text: &str| {
            let file = root.path().join("reflectd.yaml");
            files::write_atomic(&file, |it| io::Write::write_all(it, text.as_bytes())).unwrap();
        };
        write("server: { socket: here.sock }\nengine: { nonsense: 1 }\n");
        assert_eq!(sockets(), [root.path().join("here.sock")], "other faults do not matter");
        for none in ["server: { max_requests: 3 }\n", "server: [", ""] {
            write(none);
            assert_eq!(sockets().last(), Some(&root.path().join("state/reflectd.sock")), "{none}");
        }
    }

    #[test]
    fn every_error_has_its_exit_code_also_under_context() {
        let broken = |kind| anyhow::Error::from(io::Error::from(kind)).context("print");
        assert_eq!(exit_of(&broken(io::ErrorKind::BrokenPipe)), Exit::Ok);
        assert_eq!(exit_of(&broken(io::ErrorKind::PermissionDenied)), Exit::System);
        assert_eq!(exit_of(&anyhow::anyhow!("no")), Exit::Failed);
        assert_eq!(exit_of(&ConfigError(Vec::new()).into()), Exit::Config);
        let absent = ClientError::NoDaemon { paths: vec!["/x".into()] };
        assert_eq!(exit_of(&anyhow::Error::from(absent).context("ask")), Exit::Unavailable);
    }

    #[test]
    fn a_mode_is_spelled_as_in_the_configuration() {
        for mode in [Mode::Off, Mode::Inline, Mode::Background, Mode::Explore] {
            let word = serde_json::to_value(mode).unwrap();
            assert_eq!(parse_mode(word.as_str().unwrap()), Ok(mode));
        }
        parse_mode("Inline").unwrap_err();
    }
}
