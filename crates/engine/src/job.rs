//! One request inside the engine thread: *branches* of tokens, of which those that begin alike are
//! evaluated together. What a branch does with its logits is the only difference between the kinds
//! of requests. Made by `door.rs`, run by `thread.rs`.

use tokio::sync::{mpsc, oneshot};

use super::kv::{Kv, Source};
use super::lookup::Lookup;
use super::sample::{self, Sampler};
use super::segment::{Active, Segment, segments};
use super::stream::Stream;
use super::text::TextStream;
use super::{
    Class, EngineError, FinishReason, Generation, LabelScores, Piece, Started, Token, Vocabulary,
};
use inference::backend::{Backend, SequenceId};

/// A checked request, waiting or running.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) class: Class,
    /// Pinned when the thread took the request.
    pub(super) generation: Generation,
    /// Orders requests of one class.
    pub(super) arrival: u64,
    pub(super) span: tracing::Span,
    /// In the order of their tokens, so that those that begin alike are neighbours.
    pub(super) branches: Vec<Branch>,
    pub(super) purpose: Purpose,
}

/// One sequence of tokens to evaluate.
#[derive(Debug)]
pub(super) struct Branch {
    /// Its place in the request.
    pub(super) index: usize,
    /// Grows while it generates.
    pub(super) tokens: Vec<Token>,
    /// A guess of what follows, which is evaluated with the last token.
    pub(super) guess: Vec<Token>,
    /// Tokens in common with the branch before it, as the request came.
    pub(super) shared: usize,
    /// Cells that it takes at most.
    pub(super) most_cells: usize,
    /// Held while it runs.
    pub(super) sequence: Option<SequenceId>,
    pub(super) state: BranchState,
}

/// What a branch does with its logits.
#[derive(Debug)]
pub(super) enum BranchState {
    Generate {
        sampler: Sampler,
        text: TextStream,
        n_sampled: usize,
        lookup: Option<Lookup>,
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

/// The receiving end of a generation before its request is admitted.
pub(super) type Waiting = (Reply<Started>, mpsc::Receiver<Piece>);

impl Job {
    /// Whether nobody waits for the result any more.
    pub(super) fn is_abandoned(&self) -> bool {
        match &self.purpose {
            Purpose::Generate(stream) => stream.is_abandoned(),
            Purpose::Score { reply, .. } => reply.as_ref().is_none_or(Reply::is_closed),
            Purpose::Logprobs { reply, .. } => reply.as_ref().is_none_or(Reply::is_closed),
        }
    }

    /// Whether somebody waits for the words.
    pub(super) fn is_urgent(&self) -> bool {
        matches!(self.class, Class::Chat | Class::Inline)
    }

    /// Whether a slow reader holds it up, and nobody else.
    pub(super) fn is_stalled(&self) -> bool {
        matches!(&self.purpose, Purpose::Generate(stream) if !stream.has_room(self.n_running()))
    }

    /// Branches that hold a sequence.
    pub(super) fn n_running(&self) -> usize {
        self.branches.iter().filter(|b| b.sequence.is_some()).count()
    }

    /// Whether a step has enough to do with the branches that run: what cannot be evaluated yet
    /// need not hold cells.
    pub(super) fn fills(&self, kv: &Kv, batch_tokens: usize) -> bool {
        let active = self.active(kv, None);
        batch_tokens <= segments(&active).iter().map(|s| s.positions.len()).sum()
    }

    /// The first branch that has neither a sequence nor its result.
    pub(super) fn next_waiting(&self) -> Option<usize> {
        self.branches.iter().position(|b| b.sequence.is_none() && !b.is_done())
    }

    /// Cells that its running branches may still ask for, as if `extra`, a branch and its
    /// evaluated tokens, were one of them.
    pub(super) fn reserved_cells(&self, kv: &Kv, extra: Option<(usize, usize)>) -> usize {
        let active = self.active(kv, extra);
        let pending: usize = segments(&active).iter().map(|s| s.positions.len()).sum();
        let growth = active.iter().map(|a| self.branches[a.branch].most_cells - a.tokens);
        pending + growth.sum::<usize>()
    }

    /// Cells of its sequences; those that they share count for each.
    pub(super) fn held_cells(&self, kv: &Kv) -> usize {
        self.branches.iter().filter_map(|b| b.sequence).map(|id| kv.len(id)).sum()
    }

    /// What it could do next.
    pub(super) fn segments(&self, kv: &Kv) -> Vec<Segment> {
        if self.is_stalled() { Vec::new() } else { segments(&self.active(kv, None)) }
    }

    fn active(&self, kv: &Kv, extra: Option<(usize, usize)>) -> Vec<Active> {
        let mut active = Vec::new();
        // The least of the branches that were passed over is what their neighbours share.
        let mut shared = usize::MAX;
        for (branch, b) in self.branches.iter().enumerate() {
            shared = shared.min(b.shared);
            let evaluated = match (b.sequence, extra) {
                (Some(id), _) => kv.len(id),
                (None, Some((which, evaluated))) if which == branch => evaluated,
                (None, _) => continue,
            };
            let tokens = b.tokens.len() + b.guess.len();
            active.push(Active { branch, shared, evaluated, tokens });
            shared = usize::MAX;
        }
        active
    }

    /// Makes guesses for the continuations that have a text to guess from.
    pub(super) fn guess(&mut self, kv: &Kv) {
        let Purpose::Generate(stream) = &self.purpose else { return };
        for branch in &mut self.branches {
            let Some(id) = branch.sequence else { continue };
            let is_decoding = kv.len(id) + 1 == branch.tokens.len();
            if let BranchState::Generate { lookup: Some(lookup), n_sampled, .. } = &mut branch.state
                && is_decoding
                && 0 < *n_sampled
            {
                let answer = branch.tokens.len() - *n_sampled;
                let most = stream.max_tokens - *n_sampled - 1;
                branch.guess = lookup.guess(&branch.tokens[answer..], most);
            }
        }
    }

    /// Notes how many tokens of a guess were evaluated, and how many of them were right.
    pub(super) fn learn(&mut self, branch: usize, guessed: usize, right: usize) {
        let branch = &mut self.branches[branch];
        branch.guess.clear();
        if let BranchState::Generate { lookup: Some(lookup), .. } = &mut branch.state
            && 0 < guessed
        {
            lookup.learn(guessed, right);
        }
    }

    /// Gives a branch its sequence, which begins with what was found, and tells the caller when it
    /// is the first one.
    pub(super) fn start(
        &mut self,
        branch: usize,
        kv: &mut Kv,
        backend: &mut impl Backend,
        source: Option<Source>,
    ) {
        let id = kv.start(self.generation);
        if let Some(source) = source {
            kv.begin(backend, id, source);
        }
        self.branches[branch].sequence = Some(id);
        if let Purpose::Generate(stream) = &mut self.purpose {
            stream.start(self.generation, kv.len(id));
        }
    }

    /// Takes the logits after `token`, which was evaluated at `position` of a branch. False where
    /// nobody wants them: in a prompt, and after a guess that was wrong.
    pub(super) fn consume(
        &mut self,
        branch: usize,
        position: usize,
        token: Token,
        logits: &[f32],
        vocabulary: &dyn Vocabulary,
    ) -> Result<bool, EngineError> {
        let branch = &mut self.branches[branch];
        let is_right = branch.tokens.get(position) == Some(&token);
        if branch.is_done() || position < branch.first_output() || !is_right {
            return Ok(false);
        }
        match (&mut branch.state, &mut self.purpose) {
            (BranchState::Generate { sampler, text, n_sampled, .. }, Purpose::Generate(stream)) => {
                let sampled = sampler.sample(logits, stream.top_logprobs)?;
                *n_sampled += 1;
                let reason = stream.send(branch.index, text, &sampled, vocabulary);
                let reason = reason.or_else(|| {
                    (*n_sampled >= stream.max_tokens)
                        .then(|| (std::mem::take(text).finish(), FinishReason::Length))
                });
                match reason {
                    None => branch.tokens.push(sampled.token),
                    Some((text, reason)) => {
                        stream.finish(branch.index, text, reason);
                        branch.state = BranchState::Done;
                    }
                }
            }
            (BranchState::Score, Purpose::Score { labels, scores, .. }) => {
                scores[branch.index] = Some(sample::label_scores(logits, labels)?);
                branch.state = BranchState::Done;
            }
            (BranchState::Logprobs { targets, values }, Purpose::Logprobs { logprobs, .. }) => {
                values.push(sample::logprob(logits, targets[values.len()])?);
                if values.len() == targets.len() {
                    logprobs[branch.index] = std::mem::take(values);
                    branch.state = BranchState::Done;
                }
            }
            _ => unreachable!("a branch that is done wants nothing, and kinds do not mix"),
        }
        Ok(true)
    }

    /// Whether a branch is done that still holds its sequence.
    pub(super) fn has_finished(&self) -> bool {
        self.branches.iter().any(|b| b.is_done() && b.sequence.is_some())
    }

    /// Gives the sequences of finished branches to the prefix cache, or back. True when the whole
    /// request is done.
    pub(super) fn settle(&mut self, kv: &mut Kv, backend: &mut impl Backend) -> bool {
        let is_urgent = self.is_urgent();
        for index in 0..self.branches.len() {
            if !self.branches[index].is_done() {
                continue;
            }
            let Some(id) = self.branches[index].sequence.take() else { continue };
            // An answer is the beginning of the next turn, or of its refinement. What is judged is
            // judged by the next aspect too, but the aspect itself never comes again.
            if !matches!(self.purpose, Purpose::Generate(_)) {
                let after = self.branches.get(index + 1).map_or(0, |next| next.shared);
                let shared = self.branches[index].shared.max(after);
                if shared < kv.len(id) {
                    kv.truncate(backend, id, shared);
                }
            }
            kv.keep(backend, id, is_urgent);
        }
        self.branches.iter().all(Branch::is_done)
    }

    /// Takes a branch's sequence away. It can start again: it knows its tokens.
    pub(super) fn suspend(&mut self, branch: usize, kv: &mut Kv, backend: &mut impl Backend) {
        let branch = &mut self.branches[branch];
        branch.guess.clear();
        if let Some(id) = branch.sequence.take() {
            kv.remove(backend, id);
        }
    }

    /// Takes all its sequences away.
    pub(super) fn suspend_all(&mut self, kv: &mut Kv, backend: &mut impl Backend) {
        for branch in 0..self.branches.len() {
            self.suspend(branch, kv, backend);
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
            Purpose::Generate(stream) => stream.fail(error),
            Purpose::Score { reply, .. } => {
                reply.map(|reply| reply.send(Err(error)).ok());
            }
            Purpose::Logprobs { reply, .. } => {
                reply.map(|reply| reply.send(Err(error)).ok());
            }
        }
    }
}

impl Branch {
    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, BranchState::Done)
    }

    /// The first of its tokens whose logits are wanted.
    pub(super) fn first_output(&self) -> usize {
        match &self.state {
            BranchState::Logprobs { targets, values } => {
                self.tokens.len() - targets.len() + values.len()
            }
            _ => self.tokens.len() - 1,
        }
    }

    /// Tokens and guess from `position` on.
    pub(super) fn pending(&self, position: usize) -> impl Iterator<Item = Token> {
        self.tokens.iter().chain(&self.guess).skip(position).copied()
    }

    /// Whether the segment at `positions` is its last sampled token.
    pub(super) fn is_decoding(&self, positions: &std::ops::Range<usize>) -> bool {
        let sampled =
            matches!(self.state, BranchState::Generate { n_sampled, .. } if 0 < n_sampled);
        sampled && positions.start + 1 == self.tokens.len()
    }
}
