//! A question whose answer takes long to find, asked one at a time however many ask. Used by `task`.

use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// The newest answer. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Shared<T> {
    /// With when it was begun. Locked while somebody looks for the next one.
    newest: Arc<Mutex<Option<(Instant, T)>>>,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { newest: Arc::default() }
    }
}

impl<T: Clone> Shared<T> {
    /// What `look` finds, or what somebody else finds who has begun to look after this was asked: so nobody
    /// is told how it was before.
    pub(super) async fn get(&self, look: impl Future<Output = T>) -> T {
        let asked = Instant::now();
        let mut newest = self.newest.lock().await;
        if let Some((began, found)) = &*newest
            && asked <= *began
        {
            return found.clone();
        }
        let began = Instant::now();
        let found = look.await;
        *newest = Some((began, found.clone()));
        found
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn many_who_ask_at_once_cost_two_looks_one_after_the_other() {
        let shared = Shared::default();
        let (under_way, looks) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let may_end = Semaphore::new(0);
        let ask = async || {
            let look = async {
                assert_eq!(under_way.fetch_add(1, Ordering::Relaxed), 0, "one at a time");
                may_end.acquire().await.unwrap().forget();
                under_way.fetch_sub(1, Ordering::Relaxed);
                looks.fetch_add(1, Ordering::Relaxed)
            };
            shared.get(look).await
        };
        let others = join_all((0..99).map(|_| ask()));
        // All have asked by then.
        let end = async { may_end.add_permits(9) };
        let (first, others, ()) = tokio::join!(ask(), others, end);
        // It began before the others asked.
        assert_eq!((first, others), (0, vec![1; 99]));
        assert_eq!(ask().await, 2, "nobody is told what was found before");
    }
}
