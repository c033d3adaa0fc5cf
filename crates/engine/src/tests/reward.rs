//! A reward model beside an engine that answers chats, both scripted.

use std::time::Duration;

use super::super::reward::{self, Reward};
use super::super::step_lock::StepLock;
use super::*;
use testkit::reward::{FakeReward, Reads};

/// Only what is broken takes this long.
const LONG: Duration = Duration::from_secs(10);

fn n_letters(text: &str) -> f64 {
    text.bytes().filter(|byte| *byte == b'a').map(|_| 1.0).sum()
}

fn sequence(n: usize) -> Vec<Token> {
    b"ab".iter().cycle().take(n).map(|byte| Token(i32::from(*byte))).collect()
}

async fn reward(lock: &StepLock, model: FakeReward) -> (Reward, EngineThread, Reads) {
    let reads = model.reads();
    let (reward, thread) = reward::spawn_on(lock, move || Ok(model)).await.unwrap();
    (reward, thread, reads)
}

/// Waits until so many steps have begun.
async fn begun(reads: &Reads, n: usize) {
    let waited = async {
        while reads.lock().unwrap().len() < n {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, waited).await.expect("it does not go on");
}

#[tokio::test]
async fn a_first_step_is_short_and_the_next_ones_follow_the_measured_speed() {
    let model = FakeReward::new(n_letters).per_token(Duration::from_millis(1));
    let (reward, _thread, reads) = reward(&StepLock::default(), model).await;
    let scored = reward.score(vec![sequence(300), sequence(7)], Priority::Explore).await.unwrap();
    assert_eq!(scored, [150.0, 4.0]);
    let steps: Vec<(usize, usize)> =
        reads.lock().unwrap().iter().map(|it| (it.position, it.n)).collect();
    assert_eq!(steps[0], (0, 32));
    // A tenth of a second, and no less than is efficient.
    assert!((64..=100).contains(&steps[1].1), "{steps:?}");
    assert_eq!(steps.last(), Some(&(0, 7)), "each sequence begins anew");
}

#[tokio::test]
async fn a_chat_breaks_off_a_step_of_a_reward_model() {
    let lock = StepLock::default();
    let (chats, _one) = spawn_on(&lock, 8, || Ok(Fake::new(Script::new("fine")))).await.unwrap();
    let model = FakeReward::new(n_letters).endless(1, LONG);
    let (reward, _other, reads) = reward(&lock, model).await;
    let scored = tokio::spawn({
        let reward = reward.clone();
        async move { reward.score(vec![sequence(400)], Priority::Explore).await }
    });
    begun(&reads, 2).await;
    assert_eq!(ask(&chats, "chat").await, "fine");
    let scored = tokio::time::timeout(LONG, scored).await.expect("it does not go on");
    assert_eq!(scored.unwrap().unwrap(), [200.0]);
    let reads = reads.lock().unwrap();
    assert!(reads[1].is_interrupted, "the chat waited for it: {reads:?}");
    let n_broken_off = reads.iter().filter(|it| it.is_interrupted).count();
    assert_eq!(n_broken_off, 1, "one chat came: {reads:?}");
    let kept = reads[1].position + reads[1].n / 2;
    assert_eq!(reads[2].position, kept, "what was read is not read again");
}

#[tokio::test]
async fn a_reward_model_reads_no_further_for_a_caller_that_has_left() {
    let (gate, waits) = mpsc::channel(64);
    let (reward, _thread, reads) =
        reward(&StepLock::default(), FakeReward::new(n_letters).gate(waits)).await;
    let left = tokio::spawn({
        let reward = reward.clone();
        async move { reward.score(vec![sequence(4000), sequence(4000)], Priority::Explore).await }
    });
    gate.send(()).await.unwrap();
    begun(&reads, 2).await;
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    // From here on nothing waits.
    drop(gate);
    assert_eq!(reward.score(vec![sequence(8)], Priority::Explore).await.unwrap(), [4.0]);
    let reads = reads.lock().unwrap();
    assert_eq!((reads.len(), reads[2].n), (3, 8), "{reads:?}");
}
