//! Every way in which a program of ours ends, as a number. Used by both mains and documented in
//! `docs/reference/api.md`. The values follow `sysexits.h` where it has a word for the case.

use std::process::ExitCode;

/// How a program ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Exit {
    /// All done.
    Ok = 0,
    /// The request was understood and failed; the message says why.
    Failed = 1,
    /// Wrong command line (clap ends with this by itself).
    Usage = 2,
    /// Input data is wrong; trying again will not help (`EX_DATAERR`).
    BadData = 65,
    /// The daemon does not answer on its socket (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// Our own bug, or an owner thread died (`EX_SOFTWARE`).
    Internal = 70,
    /// The operating system refused something: file, socket, lock (`EX_OSERR`).
    System = 71,
    /// Not enough memory or another shortage that passes; trying again may help (`EX_TEMPFAIL`).
    TryAgain = 75,
    /// The configuration is wrong (`EX_CONFIG`).
    Config = 78,
    /// A second SIGINT or SIGTERM cut the drain short.
    Forced = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
