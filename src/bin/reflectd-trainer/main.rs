//! The trainer program: the only one that links libtorch. Without a subcommand it reads one job
//! (`reflectd::protocol`) from standard input and answers with events on standard output.

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

mod batch;
mod lora;
mod model;
mod optimizer;
mod pretrain;
mod weights;

use clap::Parser as _;

#[derive(Debug, clap::Parser)]
#[command(version, about = "Trains an adapter for the model that reflectd serves")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Train the nano model from scratch on the nano world.
    Pretrain(pretrain::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Some(Command::Pretrain(options)) => pretrain::run(&options),
        None => anyhow::bail!("no job"),
    }
}
