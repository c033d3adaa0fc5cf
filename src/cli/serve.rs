//! `reflectd serve`: the daemon in the foreground. Logging, signals and exit code only; what a
//! daemon is stands in `daemon`. Called by `cli::run`.

use super::Places;
use crate::daemon::{self, EngineSource, Options};
use crate::{signals, telemetry};
use protocol::exit::Exit;

pub(super) fn run(places: &Places) -> anyhow::Result<Exit> {
    telemetry::init()?;
    let options = Options {
        root: places.root(),
        state: places.state(),
        socket: places.socket_path(),
        engine: EngineSource::Llama,
    };
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let daemon = daemon::start(options).await?;
        // Signals are handled only from here on, so that one during the load ends the process as
        // usual.
        let _signals = signals::spawn(daemon.control())?;
        Ok(daemon.run().await)
    })
}
