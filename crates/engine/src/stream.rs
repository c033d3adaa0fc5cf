//! The sending end of one generation: what it was pinned to, then its pieces in order. Decides
//! nothing. Used by `job.rs` and `thread.rs`; made by `door.rs`.

use tokio::sync::mpsc;

use super::job::Waiting;
use super::lookup::WIDEST;
use super::sample::Sampled;
use super::text::{Release, TextStream};
use super::{EngineError, FinishReason, Generation, Piece, Started, TokenPiece, Vocabulary};

/// Pieces that wait for a slow reader before its sequences pause.
const PIECES: usize = 256;

/// One generation's way back to its caller.
#[derive(Debug)]
pub(super) struct Stream {
    pieces: mpsc::Sender<Piece>,
    /// Both are given away when the first continuation starts.
    waiting: Option<Waiting>,
    seed: u64,
    pub(super) max_tokens: usize,
    pub(super) top_logprobs: usize,
    /// Messages that one continuation can cause in one step.
    at_once: usize,
}

/// What a stream is made of besides its channel.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) n: usize,
    pub(super) seed: u64,
    pub(super) max_tokens: usize,
    pub(super) top_logprobs: usize,
    /// Whether several tokens of a continuation may come in one step.
    pub(super) guesses: bool,
}

impl Stream {
    pub(super) fn new(settings: &Settings, reply: super::job::Reply<Started>) -> Self {
        let Settings { n, seed, max_tokens, top_logprobs, guesses } = *settings;
        // The tokens, and the end.
        let at_once = if guesses { WIDEST + 2 } else { 2 };
        let (pieces, receiver) = mpsc::channel(PIECES.max(2 * (n * at_once + 1)));
        let waiting = Some((reply, receiver));
        Self { pieces, waiting, seed, max_tokens, top_logprobs, at_once }
    }

    /// Whether nobody reads any more.
    pub(super) fn is_abandoned(&self) -> bool {
        match &self.waiting {
            Some((reply, _)) => reply.is_closed(),
            None => self.pieces.is_closed(),
        }
    }

    /// Whether `n` continuations can go on for a step, and a failure can be told.
    pub(super) fn has_room(&self, n: usize) -> bool {
        n * self.at_once < self.pieces.capacity()
    }

    /// Tells the caller that its request is admitted, once.
    pub(super) fn start(&mut self, generation: Generation, n_cached: usize) {
        if let Some((reply, pieces)) = self.waiting.take() {
            let started = Started { generation, seed: self.seed, n_cached, pieces };
            // When nobody takes it the closed channel is noticed at the next turn.
            drop(reply.send(Ok(started)));
        }
    }

    /// Reports a token; gives held text and reason when it ends the continuation.
    pub(super) fn send(
        &mut self,
        index: usize,
        text: &mut TextStream,
        sampled: &Sampled,
        vocabulary: &dyn Vocabulary,
    ) -> Option<(String, FinishReason)> {
        let is_end = vocabulary.is_end(sampled.token);
        let bytes = if is_end { Vec::new() } else { vocabulary.piece(sampled.token) };
        let certain = match text.push(&bytes) {
            Release::Text(certain) => certain,
            Release::Stopped(before) => return Some((before, FinishReason::Stop)),
        };
        let top = sampled.top.iter().map(|&(t, logprob)| (t, logprob, vocabulary.piece(t)));
        self.push(Piece::Token(TokenPiece {
            index: narrow(index),
            token: sampled.token,
            text: certain,
            bytes,
            logprob: sampled.logprob,
            top: top.collect(),
        }));
        is_end.then(|| (std::mem::take(text).finish(), FinishReason::Stop))
    }

    /// A continuation has ended.
    pub(super) fn finish(&self, index: usize, text: String, reason: FinishReason) {
        self.push(Piece::Finished { index: narrow(index), text, reason });
    }

    /// The request has failed.
    pub(super) fn fail(mut self, error: EngineError) {
        match self.waiting.take() {
            Some((reply, _)) => drop(reply.send(Err(error))),
            None => self.push(Piece::Failed(error)),
        }
    }

    fn push(&self, piece: Piece) {
        // Full cannot be (`has_room` was asked); closed is a caller that has left, which the next
        // turn notices.
        drop(self.pieces.try_send(piece));
    }
}

fn narrow(index: usize) -> u32 {
    u32::try_from(index).expect("a request has at most 64 continuations")
}
