//! A scripted reward model: it counts letters, says how it was read, and stops in the middle of a
//! step when it is told to. It refuses to be read with gaps.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use inference::backend::{Backend as _, Limits, RewardBackend};
use inference::{EngineError, ModelInfo, Token, Vocabulary};
use tokio::sync::mpsc;

use crate::fake::{Fake, Script};

/// One step of a [`FakeReward`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Read {
    /// Where it begins.
    pub position: usize,
    /// Tokens that it was given.
    pub n: usize,
    /// Whether it was broken off.
    pub is_interrupted: bool,
}

/// The steps of a [`FakeReward`] so far.
pub type Reads = Arc<Mutex<Vec<Read>>>;

/// How a sequence is valued.
type Value = fn(&str) -> f64;

/// The fake model.
#[derive(Debug)]
pub struct FakeReward {
    model: Fake,
    value: Value,
    per_token: Duration,
    /// The step with this number takes so long unless it is broken off.
    endless: Option<(usize, Duration)>,
    /// Each step waits for one of these.
    gate: Option<mpsc::Receiver<()>>,
    tokens: Vec<Token>,
    reads: Reads,
}

impl FakeReward {
    /// Gives a sequence the value of its text.
    pub fn new(value: Value) -> Self {
        let limits = Limits { cells: 4096, sequences: 1, batch_tokens: 512, outputs: 512 };
        Self {
            model: Fake::new(Script::new("").limits(limits)),
            value,
            per_token: Duration::ZERO,
            endless: None,
            gate: None,
            tokens: Vec::new(),
            reads: Reads::default(),
        }
    }
    /// Every token takes this long.
    #[must_use]
    pub fn per_token(mut self, took: Duration) -> Self {
        self.per_token = took;
        self
    }
    /// Step `number` takes so long unless it is broken off.
    #[must_use]
    pub fn endless(mut self, number: usize, most: Duration) -> Self {
        self.endless = Some((number, most));
        self
    }
    /// Each step waits for a word.
    #[must_use]
    pub fn gate(mut self, gate: mpsc::Receiver<()>) -> Self {
        self.gate = Some(gate);
        self
    }
    /// What it has done, as it does it.
    pub fn reads(&self) -> Reads {
        Arc::clone(&self.reads)
    }
}

impl RewardBackend for FakeReward {
    fn info(&self) -> ModelInfo {
        self.model.info()
    }

    fn vocabulary(&self) -> Arc<dyn Vocabulary> {
        self.model.vocabulary()
    }

    fn limits(&self) -> Limits {
        self.model.limits()
    }

    fn read(
        &mut self,
        tokens: &[Token],
        position: usize,
        interrupt: Option<&AtomicBool>,
    ) -> Result<usize, EngineError> {
        if tokens.is_empty() || self.tokens.len() < position {
            return Err(EngineError::Failed(format!("a gap at {position}")));
        }
        let number = {
            let mut reads = self.reads.lock().unwrap();
            reads.push(Read { position, n: tokens.len(), is_interrupted: false });
            reads.len() - 1
        };
        if let Some(gate) = &mut self.gate {
            // Without a sender it is open.
            gate.blocking_recv();
        }
        let took = match self.endless {
            Some((step, most)) if step == number => most,
            _ => self.per_token * u32::try_from(tokens.len()).unwrap(),
        };
        let begun = Instant::now();
        let is_broken_off = || interrupt.is_some_and(|signal| signal.load(Ordering::Relaxed));
        while begun.elapsed() < took && !is_broken_off() {
            std::thread::sleep(Duration::from_millis(1).min(took));
        }
        let is_interrupted = is_broken_off();
        let n = if is_interrupted { tokens.len() / 2 } else { tokens.len() };
        self.reads.lock().unwrap()[number].is_interrupted = is_interrupted;
        self.tokens.truncate(position);
        self.tokens.extend(&tokens[..n]);
        Ok(n)
    }

    fn reward(&mut self) -> Result<f64, EngineError> {
        let bytes = self.tokens.iter().filter_map(|token| u8::try_from(token.0).ok());
        let text = String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned();
        Ok((self.value)(&text))
    }
}
