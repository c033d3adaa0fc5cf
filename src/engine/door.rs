//! What a request must be like before the engine looks at it: every number in its range, every
//! token in the vocabulary, and small enough to fit one day. Makes jobs; used by `thread.rs`.

use std::hash::{BuildHasher, Hasher};

use tokio::sync::mpsc;

use super::backend::Limits;
use super::job::{Branch, BranchState, Job, Purpose, Reply, Stream};
use super::kv::common_prefix;
use super::sample::Sampler;
use super::text::TextStream;
use super::{
    Class, EngineError, GenerateRequest, Generation, LabelScores, LogprobRequest, ModelInfo,
    Sampling, ScoreRequest, Started, Token,
};

/// Pieces that wait for a slow reader before its sequences pause.
const PIECES: usize = 256;
/// Branches of one scoring request that run at once: enough to fill a batch, and the rest of the
/// sequences stays free for others.
const SCORED_AT_ONCE: usize = 16;
const MAX_CONTINUATIONS: u32 = 64;
const MAX_STOPS: usize = 16;
const MAX_TOP_LOGPROBS: u32 = 20;

/// Knows what fits.
#[derive(Debug)]
pub(super) struct Door {
    limits: Limits,
    max_sequence: usize,
    n_vocab: usize,
    n_arrived: u64,
}

/// A job without span, or the error with the reply that should carry it.
pub(super) type Checked<T> = Result<Job, (EngineError, Reply<T>)>;

impl Door {
    pub(super) fn new(limits: Limits, info: &ModelInfo) -> Self {
        Self { limits, max_sequence: info.max_sequence, n_vocab: info.n_vocab, n_arrived: 0 }
    }

    /// `max_tokens` is cut to what fits, as long as one token does.
    pub(super) fn generate(
        &mut self,
        request: GenerateRequest,
        generation: Generation,
        reply: Reply<Started>,
    ) -> Checked<Started> {
        let max_tokens = match self.check_generate(&request) {
            Ok(max_tokens) => max_tokens,
            Err(error) => return Err((error, reply)),
        };
        let seed = request.sampling.seed.unwrap_or_else(fresh_seed);
        let mut trunk = request.prompt;
        let last = trunk.pop().expect("an empty prompt was refused");
        let branches = (0..request.n).map(|i| {
            let sampler = Sampler::new(request.sampling, seed.wrapping_add(u64::from(i)));
            let text = TextStream::new(request.stop.clone());
            let state = BranchState::Generate { sampler, text, n_sampled: 0 };
            Branch { tokens: vec![last], sequence: None, state }
        });
        let branches: Vec<Branch> = branches.collect();
        let capacity = PIECES.max(2 * Stream::room(branches.len()));
        let (pieces, receiver) = mpsc::channel(capacity);
        let purpose = Purpose::Generate(Stream {
            pieces,
            waiting: Some((reply, receiver)),
            seed,
            max_tokens,
            top_logprobs: widen(request.top_logprobs),
        });
        let at_once = branches.len();
        let mut job = self.job(request.class, generation, trunk, branches, purpose);
        job.at_once = at_once;
        job.branch_cells = widen(max_tokens);
        Ok(job)
    }

    pub(super) fn score(
        &mut self,
        request: ScoreRequest,
        generation: Generation,
        reply: Reply<Vec<LabelScores>>,
    ) -> Checked<Vec<LabelScores>> {
        if let Err(error) = self.check_score(&request) {
            return Err((error, reply));
        }
        let shortest = request.prompts.iter().map(Vec::len).min().unwrap_or(0);
        let trunk = trunk(request.prompts.iter(), shortest.saturating_sub(1));
        let branches = request.prompts.iter().map(|prompt| Branch {
            tokens: prompt[trunk.len()..].to_vec(),
            sequence: None,
            state: BranchState::Score,
        });
        let branches: Vec<Branch> = branches.collect();
        let scores = vec![None; branches.len()];
        let purpose = Purpose::Score { labels: request.labels, scores, reply: Some(reply) };
        Ok(self.job(request.class, generation, trunk, branches, purpose))
    }

    pub(super) fn logprobs(
        &mut self,
        request: &LogprobRequest,
        generation: Generation,
        reply: Reply<Vec<Vec<f32>>>,
    ) -> Checked<Vec<Vec<f32>>> {
        if let Err(error) = self.check_logprobs(request) {
            return Err((error, reply));
        }
        // The token before the first scored one gives logits, so it belongs to its branch.
        let shortest = request.sequences.iter().map(|s| s.1 - 1).min().unwrap_or(0);
        let trunk = trunk(request.sequences.iter().map(|s| &s.0), shortest);
        let branches = request.sequences.iter().map(|(tokens, from)| {
            let targets = tokens[*from..].to_vec();
            let values = Vec::with_capacity(targets.len());
            let state = BranchState::Logprobs { targets, values };
            // Nothing follows the last token, so it need not be evaluated.
            Branch { tokens: tokens[trunk.len()..tokens.len() - 1].to_vec(), sequence: None, state }
        });
        let branches: Vec<Branch> = branches.collect();
        let logprobs = vec![Vec::new(); branches.len()];
        let purpose = Purpose::Logprobs { logprobs, reply: Some(reply) };
        Ok(self.job(request.class, generation, trunk, branches, purpose))
    }

    fn job(
        &mut self,
        class: Class,
        generation: Generation,
        trunk: Vec<Token>,
        branches: Vec<Branch>,
        purpose: Purpose,
    ) -> Job {
        self.n_arrived += 1;
        let branch_cells = branches.iter().map(|b| b.tokens.len()).max().unwrap_or(1);
        let fit = (self.limits.cells - trunk.len()) / branch_cells;
        let at_once = branches.len().min(fit).min(self.limits.sequences).min(SCORED_AT_ONCE);
        Job {
            class,
            generation,
            arrival: self.n_arrived,
            span: tracing::Span::none(),
            trunk,
            branches,
            at_once,
            branch_cells,
            purpose,
            sequences: Vec::new(),
        }
    }

    fn check_generate(&self, request: &GenerateRequest) -> Result<u32, EngineError> {
        let GenerateRequest { prompt, n, sampling, stop, top_logprobs, .. } = request;
        self.check_tokens(prompt, "the prompt")?;
        check_sampling(sampling)?;
        let most = MAX_CONTINUATIONS.min(u32::try_from(self.limits.sequences).unwrap_or(u32::MAX));
        require((1..=most).contains(n), || format!("n is {n} but must be 1 to {most}"))?;
        require(*top_logprobs <= MAX_TOP_LOGPROBS, || {
            format!("top_logprobs is {top_logprobs} but must be at most {MAX_TOP_LOGPROBS}")
        })?;
        require(stop.len() <= MAX_STOPS && stop.iter().all(|s| !s.is_empty()), || {
            format!("stop must be at most {MAX_STOPS} strings, none of them empty")
        })?;
        self.check_length(prompt.len() + 1)?;
        // Each continuation evaluates the prompt's last token and all but its own last one.
        let shared = prompt.len() - 1;
        let of_pool = self.limits.cells.saturating_sub(shared) / widen(*n);
        if of_pool == 0 {
            let needed = shared + widen(*n);
            return Err(EngineError::TooLong { needed, limit: self.limits.cells });
        }
        let room = of_pool.min(self.max_sequence - prompt.len());
        Ok(sampling.max_tokens.min(u32::try_from(room).unwrap_or(u32::MAX)))
    }

    fn check_score(&self, request: &ScoreRequest) -> Result<(), EngineError> {
        let ScoreRequest { prompts, labels, .. } = request;
        require(!prompts.is_empty(), || "there is no prompt to score".to_owned())?;
        let distinct = labels.iter().collect::<std::collections::BTreeSet<_>>().len();
        require(distinct >= 2 && distinct == labels.len(), || {
            "labels must be at least two, all different".to_owned()
        })?;
        self.check_tokens(labels, "the labels")?;
        for prompt in prompts {
            self.check_tokens(prompt, "a prompt")?;
            self.check_length(prompt.len())?;
        }
        Ok(())
    }

    fn check_logprobs(&self, request: &LogprobRequest) -> Result<(), EngineError> {
        require(!request.sequences.is_empty(), || "there is no sequence to score".to_owned())?;
        for (tokens, from) in &request.sequences {
            self.check_tokens(tokens, "a sequence")?;
            require((1..tokens.len()).contains(from), || {
                format!("the first token to score is {from} of {} but must be inside", tokens.len())
            })?;
            self.check_length(tokens.len() - 1)?;
        }
        Ok(())
    }

    fn check_tokens(&self, tokens: &[Token], what: &str) -> Result<(), EngineError> {
        require(!tokens.is_empty(), || format!("{what} must not be empty"))?;
        let known = |t: &Token| usize::try_from(t.0).is_ok_and(|id| id < self.n_vocab);
        require(tokens.iter().all(known), || {
            format!("{what} has a token outside the vocabulary of {}", self.n_vocab)
        })
    }

    fn check_length(&self, needed: usize) -> Result<(), EngineError> {
        if needed > self.max_sequence {
            return Err(EngineError::TooLong { needed, limit: self.max_sequence });
        }
        Ok(())
    }
}

/// The longest prefix of all, at most `longest` tokens.
fn trunk<'a>(mut sequences: impl Iterator<Item = &'a Vec<Token>>, longest: usize) -> Vec<Token> {
    let Some(first) = sequences.next() else { return Vec::new() };
    let n = sequences.map(|other| common_prefix(first, other)).fold(longest, usize::min);
    first[..n].to_vec()
}

fn check_sampling(sampling: &Sampling) -> Result<(), EngineError> {
    let Sampling { temperature, top_p, min_p, max_tokens, .. } = *sampling;
    // A comparison with NaN is false, so NaN is refused too.
    require((0.0..=10.0).contains(&temperature), || {
        format!("temperature is {temperature} but must be 0 to 10")
    })?;
    require(top_p > 0.0 && top_p <= 1.0, || {
        format!("top_p is {top_p} but must be above 0 and at most 1")
    })?;
    require((0.0..=1.0).contains(&min_p), || format!("min_p is {min_p} but must be 0 to 1"))?;
    require(max_tokens > 0, || "max_tokens must be at least 1".to_owned())
}

fn require(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), EngineError> {
    if holds { Ok(()) } else { Err(EngineError::Invalid(otherwise())) }
}

/// From the system's randomness, below 2^53 so that it survives JSON.
fn fresh_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish() >> 11
}

fn widen(n: u32) -> usize {
    usize::try_from(n).expect("a usize has at least 32 bits")
}
