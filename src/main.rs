//! The program `reflectd`: arguments in, one exit code out. Everything else is in the library.
//! The only place that prints an error of the command line.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use protocol::exit::Exit;
use reflectd::cli::{self, Arguments};

fn main() -> ExitCode {
    let exit = cli::run(Arguments::parse()).unwrap_or_else(|error| {
        let exit = cli::exit_of(&error);
        if exit != Exit::Ok {
            // When standard error is closed there is nowhere to report to.
            drop(writeln!(std::io::stderr(), "reflectd: {error:#}"));
        }
        exit
    });
    exit.into()
}
