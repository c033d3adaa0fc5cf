//! What a request must be like before the engine looks at it: every number in its range, every
//! token in the vocabulary, and small enough to fit one day. Makes jobs; used by `thread.rs`.

use std::fmt::Display;
use std::hash::{BuildHasher, Hasher};
use std::ops::RangeInclusive;
use std::sync::Arc;

use inference::ranges;

use super::job::{Branch, BranchState, Job, Purpose, Reply};
use super::kv::common_prefix;
use super::lookup::Lookup;
use super::sample::Sampler;
use super::stream::{Settings, Stream};
use super::text::TextStream;
use super::{
    Class, EngineError, GenerateRequest, Generation, LabelScores, LogprobRequest, ModelInfo,
    Sampling, ScoreRequest, Started, Token,
};

/// Knows what fits.
#[derive(Debug)]
pub(super) struct Door {
    max_sequence: usize,
    n_vocab: usize,
    n_arrived: u64,
}

/// A job without span, or the error with the reply that should carry it.
pub(super) type Checked<T> = Result<Job, (EngineError, Reply<T>)>;

impl Door {
    pub(super) fn new(info: &ModelInfo) -> Self {
        Self { max_sequence: info.max_sequence, n_vocab: info.n_vocab, n_arrived: 0 }
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
        let text: Arc<[Token]> = request.copies.into();
        let lookup = (!text.is_empty()).then(|| Lookup::new(text));
        let n = widen(request.n);
        let settings = Settings {
            n,
            seed,
            max_tokens,
            top_logprobs: widen(request.top_logprobs),
            guesses: lookup.is_some(),
        };
        let purpose = Purpose::Generate(Stream::new(&settings, reply));
        // The last sampled token is not evaluated.
        let most_cells = request.prompt.len() + max_tokens - 1;
        let branches = (0_u64..).take(n).map(|i| {
            let sampler = Sampler::new(request.sampling, seed.wrapping_add(i));
            let text = TextStream::new(request.stop.clone());
            let state =
                BranchState::Generate { sampler, text, n_sampled: 0, lookup: lookup.clone() };
            (request.prompt.clone(), most_cells, state)
        });
        Ok(self.job(request.class, generation, branches, purpose))
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
        let scores = vec![None; request.prompts.len()];
        let purpose = Purpose::Score { labels: request.labels, scores, reply: Some(reply) };
        let branches = request.prompts.into_iter().map(|prompt| {
            let cells = prompt.len();
            (prompt, cells, BranchState::Score)
        });
        Ok(self.job(request.class, generation, branches, purpose))
    }

    pub(super) fn logprobs(
        &mut self,
        request: LogprobRequest,
        generation: Generation,
        reply: Reply<Vec<Vec<f32>>>,
    ) -> Checked<Vec<Vec<f32>>> {
        if let Err(error) = self.check_logprobs(&request) {
            return Err((error, reply));
        }
        let logprobs = vec![Vec::new(); request.sequences.len()];
        let purpose = Purpose::Logprobs { logprobs, reply: Some(reply) };
        let branches = request.sequences.into_iter().map(|(mut tokens, from)| {
            let targets = tokens[from..].to_vec();
            let values = Vec::with_capacity(targets.len());
            // Nothing follows the last token, so it need not be evaluated.
            tokens.truncate(tokens.len() - 1);
            let cells = tokens.len();
            (tokens, cells, BranchState::Logprobs { targets, values })
        });
        Ok(self.job(request.class, generation, branches, purpose))
    }

    /// `branches`: tokens, most cells, state.
    fn job(
        &mut self,
        class: Class,
        generation: Generation,
        branches: impl Iterator<Item = (Vec<Token>, usize, BranchState)>,
        purpose: Purpose,
    ) -> Job {
        self.n_arrived += 1;
        let mut branches: Vec<Branch> = branches
            .enumerate()
            .map(|(index, (tokens, most_cells, state))| Branch {
                index,
                tokens,
                guess: Vec::new(),
                shared: 0,
                most_cells,
                sequence: None,
                state,
            })
            .collect();
        branches.sort_by(|a, b| a.tokens.cmp(&b.tokens));
        for next in 1..branches.len() {
            branches[next].shared =
                common_prefix(&branches[next - 1].tokens, &branches[next].tokens);
        }
        let span = tracing::Span::none();
        Job { class, generation, arrival: self.n_arrived, span, branches, purpose }
    }

    fn check_generate(&self, request: &GenerateRequest) -> Result<usize, EngineError> {
        let GenerateRequest { prompt, n, sampling, stop, top_logprobs, copies, .. } = request;
        self.check_tokens(prompt, "the prompt")?;
        if !copies.is_empty() {
            self.check_tokens(copies, "the text to copy")?;
            self.check_length(copies.len())?;
        }
        check_sampling(sampling)?;
        within("n", n, &ranges::CONTINUATIONS)?;
        within("top_logprobs", top_logprobs, &ranges::TOP_LOGPROBS)?;
        require(stop.len() <= ranges::MAX_STOPS && stop.iter().all(|s| !s.is_empty()), || {
            format!("stop must be at most {} strings, none of them empty", ranges::MAX_STOPS)
        })?;
        self.check_length(prompt.len() + 1)?;
        Ok(widen(sampling.max_tokens).min(self.max_sequence - prompt.len()))
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

fn check_sampling(sampling: &Sampling) -> Result<(), EngineError> {
    let Sampling { temperature, top_p, min_p, max_tokens, .. } = *sampling;
    within("temperature", &temperature, &ranges::TEMPERATURE)?;
    require(ranges::TOP_P.contains(&top_p), || {
        format!("top_p is {top_p} but must be above 0 and at most {}", ranges::TOP_P.end())
    })?;
    within("min_p", &min_p, &ranges::MIN_P)?;
    require(max_tokens > 0, || "max_tokens must be at least 1".to_owned())
}

/// NaN is in no range.
fn within<T: PartialOrd + Display>(
    what: &str,
    value: &T,
    range: &RangeInclusive<T>,
) -> Result<(), EngineError> {
    require(range.contains(value), || {
        format!("{what} is {value} but must be {} to {}", range.start(), range.end())
    })
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
