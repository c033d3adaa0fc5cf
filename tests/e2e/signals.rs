//! Signals to the real process.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{sleep, timeout};

use crate::chats::{begin, finish, questions};
use crate::daemon::{Daemon, PATIENCE};
use crate::explored::explored;
use crate::scratch::Scratch;

/// Between two looks at the runs.
const LOOK: Duration = Duration::from_millis(20);

#[tokio::test]
async fn sigterm_lets_a_running_stream_end() {
    let daemon = Daemon::start(Scratch::new()).await;
    // Many answers at once, so that most of the stream is still to come.
    let mut answer = begin(&daemon.scratch().socket(), &questions(1, 5)[0], 24).await;
    let first = answer.event().await.expect("the stream has begun");
    assert!(first.contains("\"choices\""), "{first}");
    daemon.signal(Signal::TERM);
    assert_eq!(finish(answer).await.into_iter().collect::<Vec<_>>(), [0]);
    let (status, scratch) = daemon.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(!scratch.socket().exists(), "a daemon that has ended leaves no socket");
}

#[tokio::test]
async fn sighup_reloads_and_sigusr1_trains() {
    let mut daemon = Daemon::start(explored().await).await;
    // No file has changed, so nothing but the signal can be the reason.
    daemon.signal(Signal::HUP);
    daemon.told("RELOADING=1").await;
    daemon.told("READY=1").await;
    assert_eq!(daemon.get("/health").await["config"]["state"], "ok");

    daemon.signal(Signal::USR1);
    // Nobody asked over the socket, so there is no reply to wait for.
    let ended = async {
        loop {
            let run = daemon.get("/v1/runs").await["data"][0].clone();
            if !run["ended_ms"].is_null() {
                return run;
            }
            sleep(LOOK).await;
        }
    };
    let run = timeout(PATIENCE, ended).await.expect("no run comes to its end");
    assert_eq!(run["state"], "promoted", "{run}");
    daemon.stop().await;
}
