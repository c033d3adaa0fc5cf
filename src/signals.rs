//! Signals to the daemon's words: one thread owns the `signal_hook` iterator.
//! It decides nothing but the order of two stops; `daemon` acts. Called by `main` for `serve`.

use std::io;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};
use tokio::sync::mpsc;

use crate::daemon::Control;

/// Ends the thread when dropped. The handlers stay installed: a late signal is then ignored
/// rather than deadly, and the daemon is ending anyway.
#[derive(Debug)]
pub struct SignalThread {
    handle: Handle,
}

impl Drop for SignalThread {
    fn drop(&mut self) {
        self.handle.close();
    }
}

/// SIGHUP reloads, SIGTERM and SIGINT drain, the second of them ends at once, SIGUSR1 trains now.
pub fn spawn(controls: mpsc::Sender<Control>) -> io::Result<SignalThread> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM, SIGUSR1])?;
    let handle = signals.handle();
    thread::Builder::new().name("signals".into()).spawn(move || {
        let mut stopping = false;
        for signal in signals.forever() {
            let Some(control) = meaning(signal, &mut stopping) else { continue };
            // Blocking is right here: a signal must not be lost because the daemon is busy.
            if controls.blocking_send(control).is_err() {
                return;
            }
        }
    })?;
    Ok(SignalThread { handle })
}

fn meaning(signal: i32, stopping: &mut bool) -> Option<Control> {
    match signal {
        SIGHUP => Some(Control::Reload),
        SIGUSR1 => Some(Control::TrainNow),
        SIGINT | SIGTERM if *stopping => Some(Control::ExitNow),
        SIGINT | SIGTERM => {
            *stopping = true;
            Some(Control::Drain)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_stop_drains_and_the_second_ends_at_once() {
        let mut stopping = false;
        assert_eq!(meaning(SIGTERM, &mut stopping), Some(Control::Drain));
        assert_eq!(meaning(SIGHUP, &mut stopping), Some(Control::Reload));
        assert_eq!(meaning(SIGINT, &mut stopping), Some(Control::ExitNow));
    }

    #[tokio::test]
    async fn a_real_signal_reaches_the_channel() {
        let (controls, mut inbox) = mpsc::channel(8);
        let _thread = spawn(controls).unwrap();
        signal_hook::low_level::raise(SIGUSR1).unwrap();
        assert_eq!(inbox.recv().await, Some(Control::TrainNow));
    }
}
