//! Sets up tracing for the whole process, and the field names that more than one module uses.
//! Everything goes to standard error: standard output belongs to the command line's answers.
//! Called once by `main`.

use std::env;
use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

/// The variable that filters events, in `tracing_subscriber`'s syntax; `info` when unset.
pub const FILTER: &str = "REFLECTD_LOG";
/// The variable that picks the format: `plain` (default) or `json`, one object a line.
pub const FORMAT: &str = "REFLECTD_LOG_FORMAT";

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("parse the log filter in {FILTER}; use for example `info` or `reflectd=debug`")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
    /// The format is unknown.
    #[error("{FORMAT} is `{0}`; use `plain` or `json`")]
    Format(String),
    /// Somebody else has set up tracing.
    #[error("set up logging twice in one process")]
    Twice(#[from] TryInitError),
}

/// Installs the global subscriber as the environment says.
pub fn init() -> Result<(), TelemetryError> {
    let filter = env::var(FILTER).unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::try_new(filter).map_err(TelemetryError::Filter)?;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    match env::var(FORMAT).as_deref() {
        Err(_) | Ok("" | "plain") => {
            let colours = io::IsTerminal::is_terminal(&io::stderr());
            registry.with(layer.with_ansi(colours)).try_init()?;
        }
        Ok("json") => registry.with(layer.json().flatten_event(true)).try_init()?,
        Ok(other) => return Err(TelemetryError::Format(other.to_owned())),
    }
    Ok(())
}
