//! What is evaluated next: who is admitted, who gives way, and which tokens make the batch.

use std::collections::BTreeSet;

use inference::backend::SequenceId;

use super::super::Priority;
use super::faults::{Fault, is_planted};
use super::op::Op;
use super::request::State;
use super::step::{Builder, Step};
use super::tree::Found;
use super::{Core, Owner, count};

/// Cells that a sequence which writes an answer is admitted with, beyond its prompt.
const GROWTH: usize = 32;

/// What came of the try to make a batch.
enum Built {
    Batch(Step),
    /// So many more cells are needed before anything can be evaluated.
    NoRoom(usize),
    Nothing,
}

impl Core {
    /// Whether cached sequences leave the context though nobody asks for anything.
    pub(super) fn tidies(&self) -> bool {
        self.may_gather() || self.caches_too_much()
    }

    /// The priority of the work that comes next.
    pub(in super::super) fn next_priority(&self) -> Option<Priority> {
        self.requests.iter().filter(|request| !request.is_stalled).map(|r| r.priority).min()
    }

    /// What the backend does next; `None` when no request can go on.
    pub(in super::super) fn next_step(&mut self) -> Option<Step> {
        if !self.freed.is_empty() {
            let mut ops = self.tree.take_ops();
            ops.extend(self.freed.drain(..).map(Op::Free));
            return Some(Step { ops, ..Step::default() });
        }
        while self.may_gather() && !self.tree.copies_enough() && self.tree.evict(None) {}
        if self.tree.has_saves() {
            // Who comes next takes back what it goes on with.
            return Some(Step { ops: self.tree.take_ops(), ..Step::default() });
        }
        self.admit();
        if self.tree.restores() || self.waits_for_copies() {
            // Whether they are back is seen before anything is built on them.
            return Some(Step { ops: self.tree.take_ops(), ..Step::default() });
        }
        while self.caches_too_much() && !self.tree.copies_enough() && self.tree.evict(None) {}
        loop {
            match self.build() {
                Built::Batch(step) => {
                    return Some(Step { ops: self.tree.take_ops(), ..step });
                }
                Built::NoRoom(_) if self.tree.copies_enough() => {
                    return Some(Step { ops: self.tree.take_ops(), ..Step::default() });
                }
                Built::NoRoom(needed) => self.make_room(needed),
                Built::Nothing if self.tree.has_ops() => {
                    return Some(Step { ops: self.tree.take_ops(), ..Step::default() });
                }
                Built::Nothing => return None,
            }
        }
    }

    /// Whether somebody comes in as soon as enough is copied, before whom nobody that runs goes on.
    fn waits_for_copies(&self) -> bool {
        let is_first =
            |next: Priority| self.running_priority().is_some_and(|running| next < running);
        self.tree.copies_enough() && self.next_priority().is_some_and(is_first)
    }

    /// The most urgent priority of those that run.
    fn running_priority(&self) -> Option<Priority> {
        let running = self.requests.iter().filter(|request| 0 < request.n_running());
        running.map(|request| request.priority).min()
    }

    /// Whether cached sequences slow every step, and leave between steps. When there is nothing else to do
    /// they leave as far as copies are kept, of them and of others: who comes next may go on with any.
    fn caches_too_much(&self) -> bool {
        let may_leave = !self.owners.is_empty() || self.tree.has_host_room();
        self.blocks.is_none() && self.tree.caches_too_much() && may_leave
    }

    /// Whether what is cached leaves to come back at the beginning of the context, while nobody runs. Once
    /// somebody waits for it, only where one step copies all of it.
    fn may_gather(&self) -> bool {
        let is_soon_done = self.requests.is_empty() || self.tree.fits_into_a_step();
        let is_wanted = self.blocks.is_none() && self.owners.is_empty();
        is_wanted && is_soon_done && self.tree.is_scattered()
    }

    /// Starts waiting sequences in the order of their requests until one does not fit: overtaking
    /// would starve it.
    fn admit(&mut self) {
        for at in 0..self.requests.len() {
            if self.requests[at].is_stalled {
                continue;
            }
            while let Some(sequence) = self.requests[at].next_waiting() {
                if self.limits.batch_tokens <= self.pending_of(at) {
                    // What cannot be evaluated yet need not hold an id.
                    break;
                }
                if self.tree.copies_enough() {
                    // The next step goes on.
                    return;
                }
                if !self.try_admit(at, sequence) {
                    return;
                }
            }
        }
    }

    /// Tokens that the running sequences of a request wait for; shared ones count once.
    fn pending_of(&self, at: usize) -> usize {
        let running = self.requests[at].sequences.iter().filter_map(|sequence| sequence.id);
        let spans = self.tree.pending_of(running);
        spans.iter().map(|span| span.to - span.from).sum()
    }

    /// Gives a sequence an id, and makes room for it: at the cost of the cache first, then of less
    /// urgent sequences, which go on later. False: there is no room.
    fn try_admit(&mut self, at: usize, sequence: usize) -> bool {
        let mut with_copies = true;
        loop {
            let request = &self.requests[at];
            let (priority, generation) = (request.priority, request.generation);
            let wanted = request.sequences[sequence].wanted(with_copies);
            let owner = Owner { request: request.id, sequence };
            if let Some(blocks) = self.blocks
                && self.paused.is_none_or(|(paused, _)| paused != owner)
            {
                // Of either only the prompt was evaluated in blocks.
                let most = self.paused.map_or(usize::MAX, |(_, n_prompt)| n_prompt);
                let own = request.sequences[sequence].n_prompt.min(wanted.wants_from);
                let common = own.min(most);
                self.tree.keep_common(generation, &wanted.tokens[..common], blocks.size());
                self.paused = None;
            }
            let found = self.tree.find(generation, wanted);
            let needed = wanted.tokens.len() - found.evaluated - found.pending
                + found.extra
                + request.growth(sequence).min(GROWTH)
                + self.tree.pending_tokens()
                + self.room_to_grow();
            let has_id = found.has_id || 0 < self.tree.free_ids();
            if needed <= self.tree.free() && has_id {
                if !self.tree.bring_back(generation, wanted, priority.is_urgent()) {
                    // The next step goes on.
                    return false;
                }
                self.start(at, sequence, with_copies, found);
                return true;
            }
            let yields = self.newest_below(priority);
            // In vain nothing is dropped: somebody may come back for it.
            let is_in_vain = self.tree.free() + self.yielded(priority) < needed;
            if is_in_vain && 0 < found.extra {
                // A copy comes back as a whole, and what is wanted of it may be little.
                with_copies = false;
                continue;
            }
            if is_in_vain || !has_id && !self.may_free_id(priority) {
                return false;
            }
            if self.tree.copies_enough() {
                return false;
            }
            let has_evicted = if has_id {
                self.tree.evict(found.source)
            } else {
                self.tree.evict_id(found.source)
            };
            if has_evicted {
                continue;
            }
            let Some(owner) = yields else { return false };
            self.give_way(owner);
        }
    }

    fn start(&mut self, at: usize, sequence: usize, with_copies: bool, found: Found) {
        let request = &mut self.requests[at];
        let (id, generation) = (request.id, request.generation);
        let wanted = &mut request.sequences[sequence];
        let sequence_id = self.tree.insert(generation, wanted.wanted(with_copies));
        wanted.id = Some(sequence_id);
        self.owners.insert(sequence_id, Owner { request: id, sequence });
        let n_cached = found.evaluated + found.copied;
        self.counters.cached_tokens += count(n_cached);
        if !std::mem::replace(&mut request.has_started, true)
            && let super::Purpose::Generate { seed, .. } = request.purpose
        {
            self.events.push(super::Event::Started { request: id, generation, seed, n_cached });
        }
    }

    /// Cells for the next tokens of the answers that are being written.
    fn room_to_grow(&self) -> usize {
        let running = self.requests.iter().flat_map(|request| {
            let sequences = request.sequences.iter().enumerate();
            let running = sequences.filter(|(_, sequence)| sequence.id.is_some());
            running.map(|(sequence, _)| request.growth(sequence).min(GROWTH))
        });
        running.sum()
    }

    /// Cells that would be free, or not be asked for, without the cache and the sequences below a
    /// priority. What these share with others is not.
    fn yielded(&self, priority: Priority) -> usize {
        let below = self.requests.iter().filter(|request| priority < request.priority);
        let mut growth = 0;
        let mut ids = BTreeSet::new();
        for request in below {
            for (sequence, id) in request.sequences.iter().map(|it| it.id).enumerate() {
                growth += id.map_or(0, |_| request.growth(sequence).min(GROWTH));
                ids.extend(id);
            }
        }
        let freed = self.tree.freed_without(|id| ids.contains(&id));
        freed + self.tree.waited_by(&ids) + growth
    }

    fn may_free_id(&self, priority: Priority) -> bool {
        0 < self.tree.cached_ids() || self.newest_below(priority).is_some()
    }

    /// The newest running sequence of the least urgent priority below `priority`.
    fn newest_below(&self, priority: Priority) -> Option<Owner> {
        self.newest().filter(|owner| {
            self.position(owner.request).is_some_and(|at| priority < self.requests[at].priority)
        })
    }

    /// The newest running sequence of the least urgent priority.
    fn newest(&self) -> Option<Owner> {
        let request = self.requests.iter().rev().find(|request| 0 < request.n_running())?;
        let sequence = request.sequences.iter().rposition(|sequence| sequence.id.is_some())?;
        Some(Owner { request: request.id, sequence })
    }

    fn give_way(&mut self, owner: Owner) {
        tracing::debug!(request = owner.request.0, "A sequence gives way.");
        self.counters.preemptions += 1;
        self.preempt(owner);
    }

    /// Frees cells at the cost of the cache, then of the newest of the least urgent.
    fn make_room(&mut self, needed: usize) {
        while self.tree.free() < needed && !self.tree.copies_enough() {
            if !self.tree.evict(None) {
                break;
            }
        }
        if self.tree.free() < needed
            && !self.tree.copies_enough()
            && let Some(owner) = self.newest()
        {
            self.give_way(owner);
        }
    }

    /// Makes a batch of the most urgent priority: first the next token of each answer, then what the
    /// answers may go on with, then prompts in the order of their arrival.
    fn build(&mut self) -> Built {
        let Some(priority) = self.running_priority() else { return Built::Nothing };
        let ready = self.requests.iter().filter(|r| r.priority == priority && 0 < r.n_running());
        let generation = self.turn.next(ready.map(|r| r.generation));
        let mut members = self.members(priority, generation);
        // What failed with others is tried alone.
        let suspect = members.iter().copied().find(|owner| {
            self.sequence(owner.1).is_some_and(|sequence| sequence.suspect_until.is_some())
        });
        if let Some(suspect) = suspect {
            members = vec![suspect];
        }
        let (mut decoding, prompts): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|&(id, _)| self.is_at_last_token(id));
        let (tokens, drafts) = if let Some(blocks) = self.blocks {
            let running = decoding.iter().chain(&prompts).next();
            let next = running.and_then(|&(id, owner)| {
                Some((self.tree.evaluated(id), self.sequence(owner)?.n_prompt))
            });
            (next.map_or(1, |(position, n_prompt)| blocks.next(position, n_prompt)), Vec::new())
        } else {
            let tokens = self.pace.tokens(priority, !decoding.is_empty(), &self.limits);
            // A slow model writes answers in turns, and leaves prompts their part of a step.
            let leaves_room = prompts.is_empty() || decoding.len() < tokens;
            let most = if leaves_room { tokens } else { tokens.div_ceil(2) };
            if most < decoding.len() {
                decoding.sort_by_key(|&(_, owner)| self.sequence(owner).map(|it| it.last_token));
                decoding.truncate(most);
            }
            for &(_, owner) in &decoding {
                self.n_planned += 1;
                if let Some(at) = self.position(owner.request) {
                    self.requests[at].sequences[owner.sequence].last_token = self.n_planned;
                }
            }
            // Drafts leave prompts their part of a step too.
            let most = if prompts.is_empty() { tokens } else { tokens / 2 };
            (tokens, self.drafts(&decoding, most))
        };
        let mut builder = Builder::new(&self.tree, tokens, self.limits.outputs);
        for &(id, _) in &decoding {
            if is_planted(Fault::GreedyDrafts) && 1 < builder.n_tokens() {
                break;
            }
            for span in self.tree.pending(id) {
                let from = builder.planned(span.node);
                if from < span.to {
                    if builder.room(span.node, span.to) < span.to - from {
                        return Built::NoRoom(decoding.len());
                    }
                    builder.push(span.node, from..span.to).expect("its parent is evaluated");
                }
            }
        }
        for (id, draft) in drafts {
            // Not at the cost of a prompt's place.
            let room = builder.tokens_left.min(builder.outputs_left).min(builder.cells_left);
            let draft = &draft[..draft.len().min(room)];
            builder.push_draft(id, draft).expect("its last token is in the batch");
        }
        for &(id, _) in &prompts {
            let mut spans = self.tree.pending(id);
            if is_planted(Fault::BeforeParent) {
                spans.reverse();
            }
            for span in spans {
                let from = builder.planned(span.node);
                let n = if from < span.to { builder.room(span.node, span.to) } else { 0 };
                if 0 < n {
                    builder.push(span.node, from..from + n).expect("its parent is in the batch");
                }
                if from + n < span.to {
                    break;
                }
            }
        }
        let spans = builder.finish();
        if spans.is_empty() {
            return if decoding.is_empty() && prompts.is_empty() {
                Built::Nothing
            } else {
                Built::NoRoom(1)
            };
        }
        self.alone = suspect.map(|(id, _)| id);
        let may_be_interrupted = !priority.is_urgent();
        Built::Batch(Step { ops: Vec::new(), generation, spans, may_be_interrupted })
    }

    /// Running sequences of a priority and generation, in the order of their arrival.
    fn members(
        &self,
        priority: Priority,
        generation: super::Generation,
    ) -> Vec<(SequenceId, Owner)> {
        let requests = self.requests.iter();
        let requests = requests.filter(|r| r.priority == priority && r.generation == generation);
        let sequences = requests.flat_map(|request| {
            let sequences = request.sequences.iter().enumerate();
            sequences.filter_map(|(sequence, it)| {
                Some((it.id?, Owner { request: request.id, sequence }))
            })
        });
        sequences.collect()
    }

    fn is_at_last_token(&self, id: SequenceId) -> bool {
        self.tree.evaluated(id) + 1 == self.tree.len(id)
    }

    /// What the answers may go on with, to each the same. With their last tokens it is at most half a
    /// batch and at most `most`, so that it costs no other answer its token.
    fn drafts(
        &mut self,
        decoding: &[(SequenceId, Owner)],
        most: usize,
    ) -> Vec<(SequenceId, Vec<super::Token>)> {
        let room = self.limits.batch_tokens.min(self.limits.outputs) / 2;
        let room = room.max(1).min(most).saturating_sub(decoding.len());
        let writers: Vec<(SequenceId, Owner)> = decoding
            .iter()
            .copied()
            .filter(|(_, owner)| {
                self.sequence(*owner).is_some_and(
                    |it| matches!(&it.state, State::Generate(it) if it.draft.is_some()),
                )
            })
            .collect();
        let most = room / writers.len().max(1);
        let mut drafts = Vec::new();
        for (id, owner) in writers {
            let Some(at) = self.position(owner.request) else { continue };
            let draft = self.requests[at].draft(owner.sequence, most);
            if !draft.is_empty() {
                drafts.push((id, draft));
            }
        }
        drafts
    }
}
