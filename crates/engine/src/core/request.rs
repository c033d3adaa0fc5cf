//! A request inside the core: its sequences, and what each does with the logits after its last
//! tokens. Pure. Made by `validate.rs`, run by `core.rs`.

use inference::backend::SequenceId;

use super::super::draft::Draft;
use super::super::sample::{self, Sampler};
use super::super::text::{Release, TextStream};
use super::super::{
    EngineError, FinishReason, Generation, LabelScores, Priority, Token, TokenPiece, Vocabulary,
};
use super::tree::{Wanted, common_prefix};

/// Names a request; later ones have higher numbers.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct RequestId(pub(crate) u64);

/// What a request as a whole gives back.
#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    Generate { seed: u64, max_tokens: usize, top_logprobs: usize },
    Score { labels: Vec<Token>, scores: Vec<Option<LabelScores>> },
    Logprobs { logprobs: Vec<Vec<f32>> },
}

/// A checked request, waiting or running.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(super) id: RequestId,
    pub(crate) priority: Priority,
    pub(crate) generation: Generation,
    pub(crate) purpose: Purpose,
    /// In the order of their tokens, so that those that begin alike start together.
    pub(super) sequences: Vec<Sequence>,
    /// Its reader is behind: it neither runs nor counts as urgent until it has caught up.
    pub(super) is_stalled: bool,
    pub(super) has_started: bool,
}

/// One sequence of tokens to evaluate.
#[derive(Clone, Debug)]
pub(super) struct Sequence {
    /// Its place in the request.
    pub(super) index: usize,
    /// Grows while it generates.
    pub(super) tokens: Vec<Token>,
    /// Of its tokens, those that it was given.
    pub(super) n_prompt: usize,
    /// While it runs.
    pub(super) id: Option<SequenceId>,
    /// Tokens to keep when it is done, for whoever begins alike.
    pub(super) keep: usize,
    pub(super) state: State,
    /// Its place among all tokens that were planned for answers.
    pub(super) last_token: u64,
    /// A step with it failed, and it must get so far alone before it runs with others again.
    pub(super) suspect_until: Option<usize>,
}

/// What a sequence does with its logits.
#[derive(Clone, Debug)]
pub(super) enum State {
    Generate(Box<Generating>),
    Score,
    /// One target for each of the last tokens.
    Logprobs {
        targets: Vec<Token>,
        values: Vec<f32>,
    },
    Done,
}

/// An answer that is being written.
#[derive(Clone, Debug)]
pub(super) struct Generating {
    sampler: Sampler,
    text: TextStream,
    pub(super) n_sampled: usize,
    pub(super) draft: Option<Draft>,
    /// Tokens that may belong to a stop string, and where in the held text each begins.
    held: Vec<(usize, TokenPiece)>,
}

/// What a sequence says when it takes logits.
#[derive(Debug)]
pub(super) enum Said {
    Token(TokenPiece),
    Finished(String, FinishReason),
}

impl Generating {
    pub(super) fn new(sampler: Sampler, stop: Vec<String>, draft: Option<Draft>) -> Self {
        Self { sampler, text: TextStream::new(stop), n_sampled: 0, draft, held: Vec::new() }
    }
}

impl Request {
    /// `sequences`: tokens, and what each does. The number is given by the core.
    pub(super) fn new(
        priority: Priority,
        generation: Generation,
        purpose: Purpose,
        sequences: impl Iterator<Item = (Vec<Token>, State)>,
    ) -> Self {
        let mut sequences: Vec<Sequence> = sequences
            .enumerate()
            .map(|(index, (tokens, state))| {
                let (n_prompt, id, suspect_until) = (tokens.len(), None, None);
                let (keep, last_token) = (0, 0);
                Sequence { index, tokens, n_prompt, id, keep, state, last_token, suspect_until }
            })
            .collect();
        sequences.sort_by(|a, b| a.tokens.cmp(&b.tokens));
        // An answer is the beginning of the next turn, or of its refinement. What is judged is
        // judged by the next aspect too, but the aspect itself never comes again.
        for next in 1..sequences.len() {
            let shared = common_prefix(&sequences[next - 1].tokens, &sequences[next].tokens);
            for sequence in &mut sequences[next - 1..=next] {
                sequence.keep = sequence.keep.max(shared);
            }
        }
        if matches!(purpose, Purpose::Generate { .. }) {
            for sequence in &mut sequences {
                sequence.keep = usize::MAX;
            }
        }
        Self {
            id: RequestId(0),
            priority,
            generation,
            purpose,
            sequences,
            is_stalled: false,
            has_started: false,
        }
    }

    /// Sequences that hold an id.
    pub(super) fn n_running(&self) -> usize {
        self.sequences.iter().filter(|sequence| sequence.id.is_some()).count()
    }

    /// The first sequence that has neither an id nor its result.
    pub(super) fn next_waiting(&self) -> Option<usize> {
        self.sequences.iter().position(|sequence| sequence.id.is_none() && !sequence.is_done())
    }

    pub(super) fn is_done(&self) -> bool {
        self.sequences.iter().all(Sequence::is_done)
    }

    /// Whether somebody waits for the words.
    pub(super) fn is_urgent(&self) -> bool {
        self.priority.is_urgent()
    }

    /// Cells that a sequence may need beyond its tokens.
    pub(super) fn growth(&self, sequence: usize) -> usize {
        match (&self.purpose, &self.sequences[sequence].state) {
            (Purpose::Generate { max_tokens, .. }, State::Generate(it)) => {
                max_tokens.saturating_sub(it.n_sampled + 1)
            }
            _ => 0,
        }
    }

    /// Tokens that a sequence may say next, at most so many.
    pub(super) fn draft(&mut self, sequence: usize, most: usize) -> Vec<Token> {
        // The last token of an answer is not evaluated.
        let most = most.min(self.growth(sequence));
        self.sequences[sequence].draft(most)
    }

    /// Takes the logits after `token`, which was evaluated at `position` of a sequence. `None` where
    /// nobody wants them: after a drafted token that was not the one sampled.
    pub(super) fn consume(
        &mut self,
        sequence: usize,
        position: usize,
        token: Token,
        logits: &[f32],
        vocabulary: &dyn Vocabulary,
    ) -> Result<Option<Vec<Said>>, EngineError> {
        let sequence = &mut self.sequences[sequence];
        let is_wanted = !sequence.is_done()
            && sequence.wants_from() <= position
            && sequence.tokens.get(position) == Some(&token);
        if !is_wanted {
            return Ok(None);
        }
        let mut said = Vec::new();
        let is_done = match (&mut sequence.state, &mut self.purpose) {
            (State::Generate(it), Purpose::Generate { max_tokens, top_logprobs, .. }) => {
                let sampled = it.sampler.sample(logits, *top_logprobs)?;
                it.n_sampled += 1;
                let token = sampled.token;
                let mut end = it.say(sequence.index, &sampled, vocabulary, &mut said);
                if end.is_none() && *max_tokens <= it.n_sampled {
                    said.extend(it.held.drain(..).map(|(_, piece)| Said::Token(piece)));
                    end = Some((std::mem::take(&mut it.text).finish(), FinishReason::Length));
                }
                if end.is_none() {
                    sequence.tokens.push(token);
                }
                let is_done = end.is_some();
                said.extend(end.map(|(text, reason)| Said::Finished(text, reason)));
                is_done
            }
            (State::Score, Purpose::Score { labels, scores }) => {
                scores[sequence.index] = Some(sample::label_scores(logits, labels)?);
                true
            }
            (State::Logprobs { targets, values }, Purpose::Logprobs { logprobs }) => {
                values.push(sample::logprob(logits, targets[values.len()])?);
                let is_done = values.len() == targets.len();
                if is_done {
                    logprobs[sequence.index] = std::mem::take(values);
                }
                is_done
            }
            _ => unreachable!("a sequence that is done wants nothing, and kinds do not mix"),
        };
        if is_done {
            sequence.state = State::Done;
        }
        Ok(Some(said))
    }
}

impl Generating {
    /// Reports a token as soon as it is certain that it belongs to no stop string. Gives held text
    /// and reason when it ends the answer.
    fn say(
        &mut self,
        index: usize,
        sampled: &sample::Sampled,
        vocabulary: &dyn Vocabulary,
        said: &mut Vec<Said>,
    ) -> Option<(String, FinishReason)> {
        let is_end = vocabulary.is_end(sampled.token);
        let bytes = if is_end { Vec::new() } else { vocabulary.piece(sampled.token) };
        let start = self.text.n_held();
        let release = self.text.push(&bytes);
        let top = sampled.top.iter().map(|&(t, logprob)| (t, logprob, vocabulary.piece(t)));
        let piece = TokenPiece {
            index: u32::try_from(index).expect("a request has at most 64 continuations"),
            token: sampled.token,
            text: String::new(),
            bytes,
            logprob: sampled.logprob,
            top: top.collect(),
        };
        self.held.push((start, piece));
        let certain = match release {
            Release::Text(certain) => certain,
            Release::Stopped(before) => {
                let kept = self.held.drain(..).filter(|(start, _)| *start < before.len());
                said.extend(kept.map(|(_, piece)| Said::Token(piece)));
                return Some((before, FinishReason::Stop));
            }
        };
        let n_certain = certain.len();
        if let Some((_, last)) = self.held.last_mut() {
            last.text = certain;
        }
        let n = if is_end || !self.text.may_stop() {
            self.held.len()
        } else {
            self.held.partition_point(|(start, _)| *start < n_certain)
        };
        said.extend(self.held.drain(..n).map(|(_, piece)| Said::Token(piece)));
        for (start, _) in &mut self.held {
            *start -= n_certain;
        }
        is_end.then(|| (std::mem::take(&mut self.text).finish(), FinishReason::Stop))
    }
}

impl Sequence {
    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// The first position whose logits are wanted.
    pub(super) fn wants_from(&self) -> usize {
        match &self.state {
            State::Logprobs { targets, values } => self.tokens.len() - targets.len() + values.len(),
            _ => self.tokens.len() - 1,
        }
    }

    /// What it needs of the tree.
    pub(super) fn wanted(&self, with_copies: bool) -> Wanted<'_> {
        Wanted { tokens: &self.tokens, wants_from: self.wants_from(), with_copies }
    }

    /// Whether it writes an answer and has begun to.
    pub(super) fn is_decoding(&self) -> bool {
        matches!(&self.state, State::Generate(it) if 0 < it.n_sampled)
    }

    /// Tokens that it may say next, at most so many.
    fn draft(&mut self, most: usize) -> Vec<Token> {
        let State::Generate(it) = &mut self.state else { return Vec::new() };
        let n_sampled = it.n_sampled;
        let Some(draft) = it.draft.as_mut().filter(|_| 0 < n_sampled) else { return Vec::new() };
        draft.next(&self.tokens[self.n_prompt..], most)
    }

    /// Notes how many drafted tokens were evaluated, and how many of them were right.
    pub(super) fn learn(&mut self, drafted: usize, right: usize) {
        if let State::Generate(it) = &mut self.state
            && let Some(draft) = &mut it.draft
        {
            draft.learn(drafted, right);
        }
    }
}
