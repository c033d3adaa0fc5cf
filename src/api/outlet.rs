//! The way of a stream's events to its client. A client that stops reading holds up nobody: after a
//! moment its chat no longer counts among those of `server.max_requests`, and after a while its stream
//! ends. One that reads on loses nothing. Used by `chat`.

use std::time::Duration;

use axum::response::sse::Event;
use futures_util::{Stream, stream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Permit;

/// Events that wait for the client, beyond what the socket takes.
const EVENTS: usize = 64;

/// How long one event may wait for the client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Before the chat no longer counts.
    pub(super) counted: Duration,
    /// After that, before the stream ends.
    pub(super) open: Duration,
}

impl Default for Patience {
    /// Somebody who looks at the first page of an answer in a pager may come back.
    fn default() -> Self {
        Self { counted: Duration::from_secs(1), open: Duration::from_mins(10) }
    }
}

/// The sending end of one stream.
#[derive(Debug)]
pub(super) struct Outlet {
    events: mpsc::Sender<Event>,
    permit: Permit,
    patience: Patience,
}

/// The client has left, or has read nothing for too long.
#[derive(Debug)]
pub(super) struct Gone;

impl Outlet {
    /// With the stream that the client reads.
    pub(super) fn new(
        permit: Permit,
        patience: Patience,
    ) -> (Self, impl Stream<Item = Event> + Send + 'static) {
        let (events, mut waiting) = mpsc::channel(EVENTS);
        let read = stream::poll_fn(move |context| waiting.poll_recv(context));
        (Self { events, permit, patience }, read)
    }

    /// Resolves when there was room for it.
    pub(super) async fn send(&mut self, event: Event) -> Result<(), Gone> {
        if let Ok(room) = timeout(self.patience.counted, self.events.reserve()).await {
            room.map_err(|_| Gone)?.send(event);
            return Ok(());
        }
        tracing::debug!("A client reads nothing; its chat no longer counts.");
        self.permit.give_back();
        let room = timeout(self.patience.open, self.events.reserve()).await;
        self.permit.take_again();
        match room {
            Ok(room) => {
                room.map_err(|_| Gone)?.send(event);
                Ok(())
            }
            Err(_) => {
                tracing::info!("A client has read nothing for a long time; its stream ends.");
                Err(Gone)
            }
        }
    }

    /// What may be said besides, by whoever ends the stream.
    pub(super) fn sender(&self) -> mpsc::Sender<Event> {
        self.events.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::StreamExt as _;

    use super::*;

    const LONG: Duration = Duration::from_mins(1);
    const SHORT: Duration = Duration::from_millis(1);

    fn permit() -> (Permit, Arc<AtomicUsize>) {
        let chats = Arc::new(AtomicUsize::new(0));
        (Permit::new(&chats, 1).unwrap(), chats)
    }

    fn event(number: usize) -> Event {
        Event::default().data(number.to_string())
    }

    #[tokio::test]
    async fn a_client_that_stops_reading_does_not_count_until_it_reads_on_and_loses_nothing() {
        let (permit, chats) = permit();
        let (mut outlet, read) = Outlet::new(permit, Patience { counted: SHORT, open: LONG });
        let n_events = EVENTS + 5;
        let sent = tokio::spawn(async move {
            for number in 0..n_events {
                outlet.send(event(number)).await.unwrap();
            }
            outlet
        });
        let until = async |counted: usize| {
            while chats.load(Ordering::Acquire) != counted {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, until(0)).await.expect("it counts although nobody reads");
        let another = Permit::new(&chats, 1).expect("there is room for another chat");
        let mut read = Box::pin(read);
        for number in 0..n_events {
            let said = timeout(LONG, read.next()).await.unwrap().unwrap();
            assert_eq!(format!("{said:?}"), format!("{:?}", event(number)));
        }
        let outlet = sent.await.unwrap();
        timeout(LONG, until(2)).await.expect("it counts again, beside the other one");
        assert!(Permit::new(&chats, 1).is_none());
        drop((outlet, another));
        assert_eq!(chats.load(Ordering::Acquire), 0);
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_for_long_gets_no_more() {
        let (permit, chats) = permit();
        let (mut outlet, read) = Outlet::new(permit, Patience { counted: SHORT, open: SHORT });
        let mut n_sent = 0;
        while outlet.send(event(n_sent)).await.is_ok() {
            n_sent += 1;
            assert!(n_sent <= EVENTS, "there is no end to it");
        }
        assert_eq!(n_sent, EVENTS);
        drop(outlet);
        assert_eq!(chats.load(Ordering::Acquire), 0);
        assert_eq!(read.count().await, EVENTS, "what was sent is there");
    }

    #[tokio::test]
    async fn a_client_that_has_left_is_noticed() {
        let (permit, _chats) = permit();
        let (mut outlet, read) = Outlet::new(permit, Patience::default());
        drop(read);
        outlet.send(event(0)).await.unwrap_err();
    }
}
