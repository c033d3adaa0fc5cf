//! Chats that go on while the weights are swapped, and the count of those that failed or were
//! answered by two generations. Used by `demo`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::cli::client::Client;
use crate::cli::converse::{Question, converse};
use config::{Mode, PromptLine};
use engine::Generation;

/// Chats at once.
const WORKERS: usize = 3;
/// Between two chats of a worker, so many times as long as the last one took: the gate waits while a chat
/// runs, and would never end otherwise.
const PAUSE: u32 = 8;
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// What became of the chats.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// By the generation that answered.
    pub(super) answered: BTreeMap<Generation, usize>,
    /// No whole reply came.
    pub(super) failed: usize,
    /// A reply named two generations.
    pub(super) mixed: usize,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        for (generation, n) in &other.answered {
            *self.answered.entry(*generation).or_default() += n;
        }
        self.failed += other.failed;
        self.mixed += other.mixed;
    }
}

/// Chats under way. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Load {
    is_last: Arc<AtomicBool>,
    workers: JoinSet<Counts>,
}

impl Load {
    pub(super) fn start(client: &Client, prompts: &Arc<[PromptLine]>) -> Self {
        let is_last = Arc::new(AtomicBool::new(false));
        let mut workers = JoinSet::new();
        for worker in 0..WORKERS {
            let (client, prompts, is_last) = (client.clone(), prompts.clone(), is_last.clone());
            workers.spawn(async move {
                let mut counts = Counts::default();
                let mine = prompts.iter().cycle().skip(worker).step_by(WORKERS);
                for prompt in mine {
                    // Read before the chat begins: the last one starts after `stop` was called.
                    let is_last = is_last.load(Ordering::Relaxed);
                    let began = Instant::now();
                    chat(&client, prompt, &mut counts).await;
                    if is_last {
                        break;
                    }
                    sleep(SHORTEST_PAUSE.max(PAUSE * began.elapsed())).await;
                }
                counts
            });
        }
        Self { is_last, workers }
    }

    /// Lets every worker finish, and ask once more.
    pub(super) async fn stop(mut self) -> anyhow::Result<Counts> {
        self.is_last.store(true, Ordering::Relaxed);
        let mut counts = Counts::default();
        while let Some(worker) = self.workers.join_next().await {
            counts.add(&worker.context("a chat of the load panicked")?);
        }
        Ok(counts)
    }
}

async fn chat(client: &Client, prompt: &PromptLine, counts: &mut Counts) {
    let question = Question::new(&prompt.prompt, Some(Mode::Off));
    match converse(client, &question, |_| Ok(())).await {
        Err(_) => counts.failed += 1,
        Ok(reply) if reply.receipt.is_none() => counts.failed += 1,
        Ok(reply) => match reply.generation() {
            Some(generation) => *counts.answered.entry(generation).or_default() += 1,
            None => counts.mixed += 1,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chats_without_a_daemon_are_counted_as_failed() {
        let client = Client::new(vec!["/nonexistent/reflectd.sock".into()]);
        let prompt = PromptLine::new("1", "x");
        let load = Load::start(&client, &Arc::from([prompt]));
        let counts = load.stop().await.unwrap();
        assert!(WORKERS <= counts.failed, "{counts:?}");
        assert!(counts.answered.is_empty() && counts.mixed == 0);
    }
}
