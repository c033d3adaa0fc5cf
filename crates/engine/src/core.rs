//! The core of the engine: a state machine that says what the model evaluates next and takes in what
//! came of it. It has no thread, no clock and no backend: `thread.rs` asks for a [`Step`], lets the
//! backend do it and gives back the outcome, and `tests/simulation` does the same with a model of
//! llama.cpp's cells.
//!
//! - Only the most urgent priority that can go on takes part in a step, so that idle work never slows a
//!   chat: it pauses between two steps and its cells stay.
//! - A request is admitted when its prompt fits, with a little room to grow. When the cells end, the
//!   newest of the least urgent sequences is preempted; it keeps what it has as long as nobody needs
//!   the cells, and goes on when there is room again. The oldest of the most urgent is never
//!   preempted, and one sequence alone always fits, so every request ends.
//! - What sequences share is evaluated once, in the ids of all of them (`tree.rs`).
//! - A deterministic core has one sequence id, and its batches depend on that sequence alone
//!   (`blocks.rs`).

mod blocks;
mod faults;
mod op;
mod pace;
mod plan;
mod request;
mod step;
#[cfg(test)]
mod tests;
mod tree;
mod validate;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use inference::backend::{Limits, SequenceId};

use self::blocks::Blocks;
pub(super) use self::blocks::block_tokens;
use super::{EngineError, FinishReason, Generation, LabelScores, Token, TokenPiece, Vocabulary};
use faults::{Fault, is_planted};
pub(super) use pace::Pace;
use pace::Turn;
use request::{Purpose, Said};
pub(super) use request::{Request, RequestId};
use step::Source;
pub(super) use step::{Outcome, Step, execute};
pub(crate) use tree::CachePolicy;
use tree::Tree;
pub(super) use validate::Validator;

/// What callers must be told.
#[derive(Debug)]
pub(super) enum Event {
    /// A generation begins to run.
    Started { request: RequestId, generation: Generation, seed: u64, n_cached: usize },
    /// A sampled token.
    Token { request: RequestId, piece: TokenPiece },
    /// A continuation has ended.
    Finished { request: RequestId, index: usize, text: String, reason: FinishReason },
    /// All continuations have ended; nothing follows.
    Generated { request: RequestId },
    /// The result of a score; nothing follows.
    Scored { request: RequestId, scores: Vec<LabelScores> },
    /// Log-probs of a request; nothing follows.
    Logprobs { request: RequestId, logprobs: Vec<Vec<f32>> },
    /// The request has failed; nothing follows.
    Failed { request: RequestId, error: EngineError },
}

/// What has been done so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Counters {
    pub(super) steps: u64,
    pub(super) interrupted_steps: u64,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) generated_tokens: u64,
    pub(super) drafted_tokens: u64,
    pub(super) right_drafts: u64,
    pub(super) preemptions: u64,
}

/// See the file's header.
#[derive(Debug)]
pub(super) struct Core {
    limits: Limits,
    /// Where each sequence is evaluated as if it were alone.
    blocks: Option<Blocks>,
    /// Who was preempted last, and the tokens of its prompt: what follows is no block.
    paused: Option<(Owner, usize)>,
    vocabulary: Arc<dyn Vocabulary>,
    tree: Tree,
    /// By priority, then by arrival.
    requests: Vec<Request>,
    /// Whose sequence has an id.
    owners: BTreeMap<SequenceId, Owner>,
    n_arrived: u64,
    /// The sequence that the last step was about alone, because a step with it had failed.
    alone: Option<SequenceId>,
    turn: Turn,
    /// Tokens that were planned for answers.
    n_planned: u64,
    pace: Pace,
    freed: Vec<Generation>,
    events: Vec<Event>,
    counters: Counters,
}

/// A request, and which of its sequences.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Owner {
    request: RequestId,
    sequence: usize,
}

impl Core {
    /// Nothing to do yet.
    pub(super) fn new(limits: Limits, cache: CachePolicy, vocabulary: Arc<dyn Vocabulary>) -> Self {
        Self {
            tree: Tree::new(limits.cells, limits.sequences, cache),
            limits,
            blocks: None,
            paused: None,
            vocabulary,
            requests: Vec::new(),
            owners: BTreeMap::new(),
            n_arrived: 0,
            alone: None,
            turn: Turn::default(),
            n_planned: 0,
            pace: Pace::default(),
            freed: Vec::new(),
            events: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// The same, in which an answer depends on its request and seed alone. It has one sequence at a
    /// time and keeps no copies.
    pub(super) fn deterministic(limits: Limits, vocabulary: Arc<dyn Vocabulary>) -> Self {
        let limits = Limits { sequences: 1, ..limits };
        Self {
            blocks: Some(Blocks::new(&limits)),
            ..Self::new(limits, CachePolicy::new(0), vocabulary)
        }
    }

    /// Lets a checked request wait for room.
    pub(super) fn submit(&mut self, mut request: Request) -> RequestId {
        self.n_arrived += 1;
        request.id = RequestId(self.n_arrived);
        let id = request.id;
        let place =
            self.requests.partition_point(|r| (r.priority, r.id) <= (request.priority, request.id));
        self.requests.insert(place, request);
        id
    }

    /// Drops a request whose caller has left; one that has ended is no error.
    pub(super) fn cancel(&mut self, request: RequestId) {
        if !is_planted(Fault::LostCancel) {
            drop(self.remove(request));
        }
    }

    /// Says whether the reader of a request is behind. Its sequences give their ids back meanwhile.
    pub(super) fn set_stalled(&mut self, request: RequestId, is_stalled: bool) {
        let Some(at) = self.position(request) else { return };
        self.requests[at].is_stalled = is_stalled;
        if is_stalled && !is_planted(Fault::StalledKeeps) {
            for sequence in 0..self.requests[at].sequences.len() {
                self.preempt(Owner { request, sequence });
            }
        }
    }

    /// Takes an adapter out, which no request uses any more.
    pub(super) fn free(&mut self, generation: Generation) {
        self.tree.forget(generation);
        self.freed.push(generation);
    }

    /// Takes in what came of a step. `rows` gives the logits after an entry of its batch.
    pub(super) fn finish<'a>(
        &mut self,
        step: &Step,
        outcome: Outcome,
        rows: impl Fn(usize) -> Result<&'a [f32], EngineError>,
    ) {
        for (id, at) in outcome.not_restored {
            tracing::warn!("A copy of cells could not be restored; they are evaluated again.");
            self.tree.restore_failed(id, at);
        }
        // Before copies join and drop nodes, while they are those that the step names.
        self.take_in(step, outcome.evaluated, outcome.took, rows);
        for (copy, state) in outcome.saved {
            self.tree.saved(copy, state);
        }
    }

    fn take_in<'a>(
        &mut self,
        step: &Step,
        evaluated: Result<usize, EngineError>,
        took: Duration,
        rows: impl Fn(usize) -> Result<&'a [f32], EngineError>,
    ) {
        let alone = self.alone.take();
        if step.is_without_batch() {
            return;
        }
        match evaluated {
            Ok(n) if n == step.n_tokens() => {
                self.counters.steps += 1;
                self.pace.learn(n, took);
                self.advance(step);
                self.consume(step, rows);
                if let Some(id) = alone {
                    self.trust_again(id);
                }
            }
            Ok(n) => {
                self.counters.interrupted_steps += 1;
                self.keep_part(step, n);
            }
            Err(error) => self.recover(step, alone, &error),
        }
    }

    /// What callers must be told since the last call.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Whether a request wants this adapter.
    pub(super) fn uses(&self, generation: Generation) -> bool {
        self.requests.iter().any(|request| request.generation == generation)
    }

    /// Whether there is nothing to do, now or when a reader has caught up.
    pub(super) fn is_idle(&self) -> bool {
        self.requests.is_empty() && !self.tree.has_ops() && self.freed.is_empty() && !self.tidies()
    }

    /// Whether somebody waits for words, and reads them.
    pub(super) fn is_urgent(&self) -> bool {
        self.requests.iter().any(|request| request.is_urgent() && !request.is_stalled)
    }

    /// Running sequences, of one generation or of all.
    pub(super) fn n_running(&self, generation: Option<Generation>) -> usize {
        let of = |r: &&Request| generation.is_none_or(|wanted| r.generation == wanted);
        self.requests.iter().filter(of).map(Request::n_running).sum()
    }

    /// Requests of which nothing runs.
    pub(super) fn n_queued(&self) -> usize {
        self.requests.iter().filter(|request| request.n_running() == 0).count()
    }

    /// Cells in use.
    pub(super) fn cells_used(&self) -> usize {
        self.tree.used()
    }

    /// Memory of the copies of cells in host memory.
    pub(super) fn host_bytes(&self) -> usize {
        self.tree.host_bytes()
    }

    /// See [`Counters`].
    pub(super) fn counters(&self) -> Counters {
        self.counters
    }

    fn advance(&mut self, step: &Step) {
        for span in &step.spans {
            if let Source::Node(node) = span.source {
                self.tree.advance(node, span.tokens.len());
                self.count_prompt(span);
            }
        }
    }

    fn count_prompt(&mut self, span: &step::Span) {
        let is_decoding = |id: &SequenceId| {
            let owner = self.owners.get(id).copied();
            owner.is_some_and(|owner| {
                self.sequence(owner).is_some_and(request::Sequence::is_decoding)
            })
        };
        if span.tokens.len() == 1 && span.ids.iter().all(is_decoding) {
            return;
        }
        self.counters.prompt_tokens += count(span.tokens.len());
        self.counters.cached_tokens += count(span.tokens.len() * (span.ids.len() - 1));
    }

    /// Hands the rows of logits to their sequences; a request that cannot use its row fails alone.
    fn consume<'a>(&mut self, step: &Step, rows: impl Fn(usize) -> Result<&'a [f32], EngineError>) {
        // (position, token, entry of the batch) of each sequence, in order.
        let mut wanted: BTreeMap<SequenceId, Vec<(usize, Token, usize)>> = BTreeMap::new();
        let mut drafted: BTreeMap<SequenceId, usize> = BTreeMap::new();
        let mut entry = 0;
        for span in &step.spans {
            if let Source::Draft(id) = span.source {
                drafted.insert(id, span.tokens.len());
            }
            for (i, &token) in span.tokens.iter().enumerate() {
                let position = span.start + i;
                for &id in &span.ids {
                    let from = self.tree.wants_from(id);
                    if span.silent <= i && from.is_some_and(|from| from <= position) {
                        wanted.entry(id).or_default().push((position, token, entry));
                    }
                }
                entry += 1;
            }
        }
        let mut failed: BTreeMap<RequestId, EngineError> = BTreeMap::new();
        for (id, wanted) in wanted {
            let Some(&owner) = self.owners.get(&id) else { continue };
            if failed.contains_key(&owner.request) {
                continue;
            }
            let drafted = drafted.get(&id).copied().unwrap_or(0);
            if let Err(error) = self.consume_rows(owner, id, &wanted, drafted, &rows) {
                failed.insert(owner.request, error);
            }
        }
        for (request, error) in failed {
            self.fail(request, error);
        }
        self.finish_done();
    }

    fn consume_rows<'a>(
        &mut self,
        owner: Owner,
        id: SequenceId,
        wanted: &[(usize, Token, usize)],
        drafted: usize,
        rows: &impl Fn(usize) -> Result<&'a [f32], EngineError>,
    ) -> Result<(), EngineError> {
        let Some(at) = self.position(owner.request) else { return Ok(()) };
        let request = &mut self.requests[at];
        let is_generation = matches!(request.purpose, Purpose::Generate { .. });
        let n_before = request.sequences[owner.sequence].tokens.len();
        let mut n_used = 0;
        for &(position, token, entry) in wanted {
            let row = rows(entry)?;
            let said = request.consume(owner.sequence, position, token, row, &*self.vocabulary)?;
            let Some(said) = said else { break };
            n_used += 1;
            let (request, index) = (owner.request, request.sequences[owner.sequence].index);
            self.events.extend(said.into_iter().map(|said| match said {
                Said::Token(piece) => Event::Token { request, piece },
                Said::Finished(text, reason) => Event::Finished { request, index, text, reason },
            }));
        }
        if !is_generation {
            return Ok(());
        }
        self.counters.generated_tokens += count(n_used);
        // The last sampled token is not evaluated; those before it were drafted, and right.
        let right = n_used.saturating_sub(1);
        let sequence = &mut self.requests[at].sequences[owner.sequence];
        if 0 < drafted {
            sequence.learn(drafted, right);
            self.counters.drafted_tokens += count(drafted);
            self.counters.right_drafts += count(right);
        }
        let new = sequence.tokens[n_before..].to_vec();
        let is_done = sequence.is_done();
        self.tree.append_evaluated(id, &new[..right.min(new.len())]);
        if right < drafted {
            self.tree.cut(id);
        }
        if let (false, Some(&last)) = (is_done, new.last()) {
            self.tree.append(id, last);
        }
        Ok(())
    }

    /// Gives the ids of finished sequences to the cache, and ends finished requests.
    fn finish_done(&mut self) {
        let done: Vec<(SequenceId, Owner)> = self
            .owners
            .iter()
            .map(|(&id, &owner)| (id, owner))
            .filter(|&(_, owner)| self.sequence(owner).is_some_and(request::Sequence::is_done))
            .collect();
        for &(id, owner) in &done {
            let Some(at) = self.position(owner.request) else { continue };
            let request = &mut self.requests[at];
            let is_urgent = request.is_urgent();
            let sequence = &mut request.sequences[owner.sequence];
            sequence.id = None;
            let keep = sequence.keep;
            let keep = if self.blocks.is_some() { keep.min(sequence.n_prompt) } else { keep };
            self.owners.remove(&id);
            self.tree.cache(id, keep, is_urgent);
        }
        if done.is_empty() {
            return;
        }
        for request in self.requests.extract_if(.., |request| request.is_done()) {
            let (id, request) = (request.id, request.purpose);
            self.events.push(match request {
                Purpose::Generate { .. } => Event::Generated { request: id },
                Purpose::Score { scores, .. } => Event::Scored {
                    request: id,
                    scores: scores.into_iter().map(|s| s.expect("all are done")).collect(),
                },
                Purpose::Logprobs { logprobs } => Event::Logprobs { request: id, logprobs },
            });
        }
    }

    /// An interrupted step has evaluated its first `n` tokens. Those whose logits are wanted are
    /// evaluated again, because the rows of an interrupted batch are not there.
    fn keep_part(&mut self, step: &Step, n: usize) {
        // Of a block nothing is kept, because its rest would be another batch.
        let mut left = if self.blocks.is_some() { 0 } else { n };
        for span in &step.spans {
            let done = span.tokens.len().min(left);
            left -= done;
            // What follows a token that is evaluated again is evaluated again too.
            if let Source::Node(node) = span.source
                && self.tree.follows_whole(node)
            {
                let kept = done.min(span.silent);
                self.tree.advance(node, kept);
                self.counters.prompt_tokens += count(kept);
            }
        }
        self.cut_all(step);
    }

    /// The backend may have more cells of a step's sequences than the books say.
    fn cut_all(&mut self, step: &Step) {
        let mut ids: Vec<SequenceId> =
            step.spans.iter().flat_map(|span| span.ids.iter().copied()).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            self.tree.cut(id);
        }
    }

    /// A failed step ends nobody's request at once: all of its sequences start again from nothing,
    /// each alone until it is past the place, and only what fails alone too has failed.
    fn recover(&mut self, step: &Step, alone: Option<SequenceId>, error: &EngineError) {
        tracing::error!(%error, "Step failed.");
        let repeater = alone.and_then(|id| self.owners.get(&id)).map(|owner| owner.request);
        let mut reached: BTreeMap<SequenceId, usize> = BTreeMap::new();
        for span in &step.spans {
            for &id in &span.ids {
                let reached = reached.entry(id).or_default();
                *reached = (*reached).max(span.start + span.tokens.len());
            }
        }
        self.cut_all(step);
        for (id, reached) in reached {
            let Some(owner) = self.owners.remove(&id) else { continue };
            let at = self.position(owner.request).expect("an owner's request exists");
            let sequence = &mut self.requests[at].sequences[owner.sequence];
            sequence.id = None;
            let reached = reached.min(sequence.tokens.len());
            sequence.suspect_until = Some(sequence.suspect_until.unwrap_or(0).max(reached));
            self.tree.release(id);
            if is_planted(Fault::AllFail) {
                self.fail(owner.request, error.clone());
            }
        }
        if let Some(repeater) = repeater {
            self.fail(repeater, error.clone());
        }
    }

    /// A sequence that has come past the place where a step with it failed runs with others again.
    fn trust_again(&mut self, id: SequenceId) {
        let Some(&owner) = self.owners.get(&id) else { return };
        let evaluated = self.tree.evaluated(id);
        if let Some(at) = self.position(owner.request) {
            let sequence = &mut self.requests[at].sequences[owner.sequence];
            sequence.suspect_until = sequence.suspect_until.filter(|&until| evaluated < until);
        }
    }

    fn fail(&mut self, request: RequestId, error: EngineError) {
        if self.remove(request).is_some() {
            self.events.push(Event::Failed { request, error });
        }
    }

    /// Takes a request out, with its ids and cells.
    fn remove(&mut self, request: RequestId) -> Option<Request> {
        let at = self.position(request)?;
        let request = self.requests.remove(at);
        for id in request.sequences.iter().filter_map(|sequence| sequence.id) {
            self.owners.remove(&id);
            self.tree.release(id);
        }
        Some(request)
    }

    /// Takes the id of a sequence, which goes on later. Its cells stay until somebody needs them.
    fn preempt(&mut self, owner: Owner) {
        let Some(at) = self.position(owner.request) else { return };
        let request = &mut self.requests[at];
        let is_urgent = request.is_urgent();
        let Some(id) = request.sequences[owner.sequence].id.take() else { return };
        self.owners.remove(&id);
        if is_planted(Fault::ResumesEarly) && request.sequences[owner.sequence].is_decoding() {
            request.sequences[owner.sequence].tokens.pop();
        }
        if is_planted(Fault::PreemptForgets) {
            return self.tree.release(id);
        }
        let n_prompt = request.sequences[owner.sequence].n_prompt;
        self.paused = Some((owner, n_prompt));
        self.tree.cache(id, usize::MAX, is_urgent);
    }

    fn position(&self, request: RequestId) -> Option<usize> {
        self.requests.iter().position(|r| r.id == request)
    }

    fn sequence(&self, owner: Owner) -> Option<&request::Sequence> {
        let at = self.position(owner.request)?;
        self.requests[at].sequences.get(owner.sequence)
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).expect("a usize has at most 64 bits")
}
