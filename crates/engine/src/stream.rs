//! The way back from the engine thread to the caller of a request. A caller that reads slower than
//! the model writes loses nothing: what does not fit its channel waits here, and its request pauses.
//! Used by `thread.rs` alone.

use std::collections::VecDeque;

use tokio::sync::{mpsc, oneshot};

use super::{EngineError, Generation, LabelScores, Piece, Started};

/// Pieces that wait in the channel of a slow reader before its request pauses.
const PIECES: usize = 256;

/// The answer to a command.
pub(super) type Reply<T> = oneshot::Sender<Result<T, EngineError>>;

/// Who waits for a request.
#[derive(Debug)]
pub(super) enum Caller {
    Generate(Stream),
    Score(Reply<Vec<LabelScores>>),
    Logprobs(Reply<Vec<Vec<f32>>>),
}

impl Caller {
    /// Whether nobody waits for the result any more.
    pub(super) fn has_left(&self) -> bool {
        match self {
            Self::Generate(stream) => stream.has_left(),
            Self::Score(reply) => reply.is_closed(),
            Self::Logprobs(reply) => reply.is_closed(),
        }
    }

    /// Tells why the request ends early; a caller that has left does not hear it.
    pub(super) fn fail(self, error: EngineError) {
        match self {
            Self::Generate(stream) => stream.fail(error),
            Self::Score(reply) => drop(reply.send(Err(error))),
            Self::Logprobs(reply) => drop(reply.send(Err(error))),
        }
    }
}

/// One generation's pieces.
#[derive(Debug)]
pub(super) struct Stream {
    pieces: mpsc::Sender<Piece>,
    /// Both are given away when the request is admitted.
    waiting: Option<(Reply<Started>, mpsc::Receiver<Piece>)>,
    /// Pieces that the channel has no room for.
    backlog: VecDeque<Piece>,
    is_behind: bool,
    /// No piece follows those in the backlog.
    pub(super) has_ended: bool,
}

impl Stream {
    pub(super) fn new(reply: Reply<Started>) -> Self {
        let (pieces, receiver) = mpsc::channel(PIECES);
        let waiting = Some((reply, receiver));
        Self { pieces, waiting, backlog: VecDeque::new(), is_behind: false, has_ended: false }
    }

    fn has_left(&self) -> bool {
        match &self.waiting {
            Some((reply, _)) => reply.is_closed(),
            None => self.pieces.is_closed(),
        }
    }

    /// Tells the caller that its request is admitted.
    pub(super) fn start(&mut self, generation: Generation, seed: u64, n_cached: usize) {
        if let Some((reply, pieces)) = self.waiting.take() {
            let started = Started { generation, seed, n_cached, pieces };
            // When nobody takes it the closed channel is noticed at the next turn.
            drop(reply.send(Ok(started)));
        }
    }

    /// Whether its caller has been told that it is admitted.
    pub(super) fn has_started(&self) -> bool {
        self.waiting.is_none()
    }

    pub(super) fn send(&mut self, piece: Piece) {
        self.backlog.push_back(piece);
        self.flush();
    }

    /// Moves what fits from the backlog to the channel. True when nothing is left to be sent.
    pub(super) fn flush(&mut self) -> bool {
        while let Some(piece) = self.backlog.pop_front() {
            match self.pieces.try_send(piece) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(piece)) => {
                    self.backlog.push_front(piece);
                    return false;
                }
                // A caller that has left, which the next turn notices.
                Err(mpsc::error::TrySendError::Closed(_)) => self.backlog.clear(),
            }
        }
        true
    }

    /// Whether its reader is behind: from a full channel on, until half of it is read.
    pub(super) fn is_behind(&mut self) -> bool {
        let free = self.pieces.capacity();
        self.is_behind = !self.backlog.is_empty() || self.is_behind && free < PIECES / 2;
        self.is_behind
    }

    fn fail(mut self, error: EngineError) {
        match self.waiting.take() {
            Some((reply, _)) => drop(reply.send(Err(error))),
            // A reader that is far behind is told by the end of the channel.
            None => self.send(Piece::Failed(error)),
        }
    }
}
