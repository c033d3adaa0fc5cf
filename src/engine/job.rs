//! One request inside the engine thread. All three kinds have the same shape: a *trunk* of tokens
//! that is evaluated once, and *branches* that go on from it. What a branch does with its logits
//! is the only difference. Made by `door.rs`, run by `thread.rs`.

use tokio::sync::{mpsc, oneshot};

use super::backend::{Backend, SequenceId};
use super::kv::Kv;
use super::sample::{self, Sampler};
use super::scheduler::{Tail, Work};
use super::text::{Release, TextStream};
use super::{
    Class, EngineError, FinishReason, Generation, LabelScores, Piece, Started, Token, TokenPiece,
    Vocabulary,
};

/// A checked request, waiting or running.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) class: Class,
    /// Pinned when the thread took the request.
    pub(super) generation: Generation,
    /// Orders requests of one class.
    pub(super) arrival: u64,
    pub(super) span: tracing::Span,
    /// What all branches begin with; may be empty.
    pub(super) trunk: Vec<Token>,
    pub(super) branches: Vec<Branch>,
    /// Branches that run at the same time; the others follow.
    pub(super) at_once: usize,
    /// Most tokens that a branch evaluates.
    pub(super) branch_cells: usize,
    pub(super) purpose: Purpose,
    /// Held while running; every one begins with the trunk.
    pub(super) sequences: Vec<SequenceId>,
}

/// What goes on from the trunk.
#[derive(Debug)]
pub(super) struct Branch {
    /// Tokens to evaluate after the trunk; grows while it generates.
    pub(super) tokens: Vec<Token>,
    pub(super) sequence: Option<SequenceId>,
    pub(super) state: BranchState,
}

/// What a branch does with its logits.
#[derive(Debug)]
pub(super) enum BranchState {
    Generate {
        sampler: Sampler,
        text: TextStream,
        n_sampled: u32,
    },
    Score,
    /// One target for each of the last tokens.
    Logprobs {
        targets: Vec<Token>,
        values: Vec<f32>,
    },
    Done,
}

/// What the request as a whole gives back, and to whom.
#[derive(Debug)]
pub(super) enum Purpose {
    Generate(Stream),
    Score {
        labels: Vec<Token>,
        scores: Vec<Option<LabelScores>>,
        reply: Option<Reply<Vec<LabelScores>>>,
    },
    Logprobs {
        logprobs: Vec<Vec<f32>>,
        reply: Option<Reply<Vec<Vec<f32>>>>,
    },
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, EngineError>>;

/// The receiving end of a generation.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) pieces: mpsc::Sender<Piece>,
    /// Both are given away at admission.
    pub(super) waiting: Option<(Reply<Started>, mpsc::Receiver<Piece>)>,
    pub(super) seed: u64,
    pub(super) max_tokens: u32,
    pub(super) top_logprobs: usize,
}

impl Job {
    /// Whether nobody waits for the result any more.
    pub(super) fn is_abandoned(&self) -> bool {
        match &self.purpose {
            Purpose::Generate(stream) => match &stream.waiting {
                Some((reply, _)) => reply.is_closed(),
                None => stream.pieces.is_closed(),
            },
            Purpose::Score { reply, .. } => reply.as_ref().is_none_or(Reply::is_closed),
            Purpose::Logprobs { reply, .. } => reply.as_ref().is_none_or(Reply::is_closed),
        }
    }

    /// Whether somebody waits for the words.
    pub(super) fn is_urgent(&self) -> bool {
        matches!(self.class, Class::Chat | Class::Inline)
    }

    /// Cells that it needs when `cached` tokens of its trunk are there already.
    pub(super) fn needed_cells(&self, cached: usize) -> usize {
        self.trunk.len() - cached + self.wanted_sequences() * self.branch_cells
    }

    /// Sequences that it needs; fewer when some branches had ended before it was preempted.
    pub(super) fn wanted_sequences(&self) -> usize {
        self.branches.iter().filter(|b| !b.is_done()).count().min(self.at_once)
    }

    /// Takes its sequences, which begin with `cached` tokens of `source`, and tells the caller.
    pub(super) fn start(
        &mut self,
        kv: &mut Kv,
        backend: &mut impl Backend,
        source: Option<(SequenceId, usize)>,
    ) {
        let wanted = self.wanted_sequences();
        for branch in self.branches.iter_mut().filter(|b| !b.is_done()).take(wanted) {
            let id = kv.start();
            if let Some((from, n)) = source {
                kv.share(backend, from, id, n);
            }
            branch.sequence = Some(id);
            self.sequences.push(id);
        }
        if let Purpose::Generate(stream) = &mut self.purpose
            && let Some((reply, pieces)) = stream.waiting.take()
        {
            let n_cached = source.map_or(0, |s| s.1);
            let started =
                Started { generation: self.generation, seed: stream.seed, n_cached, pieces };
            // When nobody takes it the closed channel is noticed at the next turn.
            drop(reply.send(Ok(started)));
        }
    }

    /// Cells that it may still ask for.
    pub(super) fn reserved_cells(&self, kv: &Kv) -> usize {
        let branches = self.sequences.iter().map(|&id| self.branch_cells - self.evaluated(kv, id));
        self.trunk_left(kv) + branches.sum::<usize>()
    }

    /// What it could do next. A slow reader stops its own sequences and nobody else's.
    pub(super) fn work(&self, kv: &Kv) -> Work {
        let tail = |(branch, b): (usize, &Branch)| {
            let evaluated = self.evaluated(kv, b.sequence?);
            let tokens = b.tokens.len() - evaluated;
            Some(Tail { branch, tokens, silent: b.first_output().saturating_sub(evaluated) })
        };
        let branches = match &self.purpose {
            Purpose::Generate(stream) if !stream.has_room(self.branches.len()) => Vec::new(),
            _ => self.branches.iter().enumerate().filter_map(tail).collect(),
        };
        let trunk = self.trunk_left(kv);
        Work { class: self.class, generation: self.generation, trunk, branches }
    }

    /// Takes the logits after a branch's next wanted token.
    pub(super) fn consume(
        &mut self,
        index: usize,
        logits: &[f32],
        vocabulary: &dyn Vocabulary,
    ) -> Result<(), EngineError> {
        let branch = &mut self.branches[index];
        match (&mut branch.state, &mut self.purpose) {
            (BranchState::Generate { sampler, text, n_sampled }, Purpose::Generate(stream)) => {
                let sampled = sampler.sample(logits, stream.top_logprobs)?;
                *n_sampled += 1;
                let reason = stream.send(index, text, &sampled, vocabulary);
                let reason = reason.or_else(|| {
                    (*n_sampled >= stream.max_tokens)
                        .then(|| (std::mem::take(text).finish(), FinishReason::Length))
                });
                match reason {
                    None => branch.tokens.push(sampled.token),
                    Some((text, reason)) => {
                        stream.push(Piece::Finished { index: narrow(index), text, reason });
                        branch.state = BranchState::Done;
                    }
                }
            }
            (BranchState::Score, Purpose::Score { labels, scores, .. }) => {
                scores[index] = Some(sample::label_scores(logits, labels)?);
                branch.state = BranchState::Done;
            }
            (BranchState::Logprobs { targets, values }, Purpose::Logprobs { logprobs, .. }) => {
                values.push(sample::logprob(logits, targets[values.len()])?);
                if values.len() == targets.len() {
                    logprobs[index] = std::mem::take(values);
                    branch.state = BranchState::Done;
                }
            }
            _ => unreachable!("a branch that is done has no sequence, and kinds do not mix"),
        }
        Ok(())
    }

    /// Gives the sequences of finished branches to branches that wait, to the prefix cache, or
    /// back. True when the whole request is done.
    pub(super) fn settle(&mut self, kv: &mut Kv, backend: &mut impl Backend) -> bool {
        for index in 0..self.branches.len() {
            if !self.branches[index].is_done() {
                continue;
            }
            let Some(id) = self.branches[index].sequence.take() else { continue };
            let next = self.branches.iter_mut().find(|b| !b.is_done() && b.sequence.is_none());
            if let Some(next) = next {
                kv.truncate(backend, id, self.trunk.len());
                next.sequence = Some(id);
                continue;
            }
            self.sequences.retain(|&held| held != id);
            if self.is_urgent() && matches!(self.purpose, Purpose::Generate(_)) {
                // The next turn of a chat begins with this answer.
                kv.keep(backend, id, self.generation);
            } else if self.sequences.is_empty() {
                kv.truncate(backend, id, self.trunk.len());
                kv.keep(backend, id, self.generation);
            } else {
                kv.remove(backend, id);
            }
        }
        self.branches.iter().all(Branch::is_done)
    }

    /// Gives all sequences back. It can start again: its branches know their tokens.
    pub(super) fn suspend(&mut self, kv: &mut Kv, backend: &mut impl Backend) {
        for id in self.sequences.drain(..) {
            kv.remove(backend, id);
        }
        for branch in &mut self.branches {
            branch.sequence = None;
        }
    }

    /// Hands over the results; generations have done so on the way.
    pub(super) fn finish(self) {
        match self.purpose {
            Purpose::Generate(_) => {}
            Purpose::Score { scores, reply, .. } => {
                let scores = scores.into_iter().map(|s| s.expect("every branch is done"));
                reply.map(|reply| reply.send(Ok(scores.collect())).ok());
            }
            Purpose::Logprobs { logprobs, reply } => {
                reply.map(|reply| reply.send(Ok(logprobs)).ok());
            }
        }
    }

    /// Tells the caller why it ends early; a caller that has left does not hear it.
    pub(super) fn fail(self, error: EngineError) {
        match self.purpose {
            Purpose::Generate(mut stream) => match stream.waiting.take() {
                Some((reply, _)) => drop(reply.send(Err(error))),
                None => stream.push(Piece::Failed(error)),
            },
            Purpose::Score { reply, .. } => {
                reply.map(|reply| reply.send(Err(error)).ok());
            }
            Purpose::Logprobs { reply, .. } => {
                reply.map(|reply| reply.send(Err(error)).ok());
            }
        }
    }

    fn trunk_left(&self, kv: &Kv) -> usize {
        self.sequences.first().map_or(0, |&id| self.trunk.len().saturating_sub(kv.len(id)))
    }

    /// Tokens of its own that a sequence has evaluated.
    fn evaluated(&self, kv: &Kv, id: SequenceId) -> usize {
        kv.len(id).saturating_sub(self.trunk.len())
    }
}

impl Branch {
    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, BranchState::Done)
    }

    /// The first of its tokens whose logits are wanted.
    fn first_output(&self) -> usize {
        match &self.state {
            BranchState::Logprobs { targets, values } => {
                self.tokens.len() - targets.len() + values.len()
            }
            _ => self.tokens.len() - 1,
        }
    }
}

impl Stream {
    /// Messages that `branches` sequences can cause in one step, and one for a failure.
    pub(super) fn room(branches: usize) -> usize {
        2 * branches + 1
    }

    fn has_room(&self, branches: usize) -> bool {
        self.pieces.capacity() >= Self::room(branches)
    }

    /// Reports a token; gives held text and reason when it ends the continuation.
    fn send(
        &mut self,
        index: usize,
        text: &mut TextStream,
        sampled: &sample::Sampled,
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

    fn push(&mut self, piece: Piece) {
        // Full cannot be (`has_room` was asked); closed is a caller that has left, which the next
        // turn notices.
        drop(self.pieces.try_send(piece));
    }
}

fn narrow(index: usize) -> u32 {
    u32::try_from(index).expect("a request has at most 64 continuations")
}
