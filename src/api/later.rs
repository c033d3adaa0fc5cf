//! Background reflection: exchanges whose answers were sent at once wait here until one task has
//! judged and refined them. When the queue is full an exchange is dropped, because exploration
//! finds it in the store. Fed by `chat`; ends when the last [`Later`] is dropped.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::metrics::Metrics;
use super::{Parts, Phase};
use crate::reflect::Reflector;
use config::Agent;
use store::ExchangeId;

/// Exchanges that wait: minutes of work on a small machine. More would only delay exploration,
/// which picks by need and not by order of arrival.
const QUEUE: usize = 256;

/// The handle to the queue.
#[derive(Clone, Debug)]
pub(super) struct Later {
    queue: mpsc::Sender<(Arc<Agent>, ExchangeId)>,
    metrics: Arc<Metrics>,
}

impl Later {
    /// Starts the task that works the queue. It stops when the daemon drains.
    pub(super) fn spawn(parts: &Parts, metrics: Arc<Metrics>) -> Self {
        let (queue, inbox) = mpsc::channel(QUEUE);
        let (reflector, phase) = (parts.reflector.clone(), parts.phase.clone());
        tokio::spawn(work(inbox, reflector, phase));
        Self { queue, metrics }
    }

    /// Puts an exchange into the queue, or drops it.
    pub(super) fn offer(&self, agent: Arc<Agent>, exchange: ExchangeId) {
        if self.queue.try_send((agent, exchange)).is_err() {
            self.metrics.dropped_reflection();
            tracing::debug!(%exchange, "Background reflection is behind; left to exploration.");
        }
    }
}

async fn work(
    mut inbox: mpsc::Receiver<(Arc<Agent>, ExchangeId)>,
    reflector: Reflector,
    mut phase: watch::Receiver<Phase>,
) {
    let worked = async {
        while let Some((agent, exchange)) = inbox.recv().await {
            match reflector.reflect_later(&agent, exchange).await {
                Ok(explored) => {
                    tracing::debug!(%exchange, ?explored, "Reflected on an answer.");
                }
                Err(error) => {
                    tracing::warn!(%exchange, %error, "Could not reflect on an answer.");
                }
            }
        }
    };
    // Cutting a reflection short loses nothing: it is stored in whole transactions.
    tokio::select! {
        () = worked => {}
        _ = phase.wait_for(|phase| *phase != Phase::Serving) => {}
    }
}
