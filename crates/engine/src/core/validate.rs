//! What a request must be like before it waits: every number in its range, every token in the
//! vocabulary, and small enough to fit one day. Makes requests; used by `thread.rs`.

use std::fmt::Display;
use std::hash::{BuildHasher, Hasher};
use std::ops::RangeInclusive;
use std::sync::Arc;

use inference::ranges;

use super::super::draft::Draft;
use super::super::sample::Sampler;
use super::super::{
    EngineError, GenerateRequest, Generation, LogprobRequest, ModelInfo, Sampling, ScoreRequest,
    Token,
};
use super::request::{Generating, Purpose, Request, State};

/// Knows what fits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Validator {
    max_sequence: usize,
    n_vocab: usize,
}

impl Validator {
    pub(crate) fn new(info: &ModelInfo) -> Self {
        Self { max_sequence: info.max_sequence, n_vocab: info.n_vocab }
    }

    /// `max_tokens` is cut to what fits, as long as one token does.
    pub(crate) fn generate(
        self,
        request: GenerateRequest,
        generation: Generation,
    ) -> Result<Request, EngineError> {
        let max_tokens = self.check_generate(&request)?;
        let seed = request.sampling.seed.unwrap_or_else(fresh_seed);
        let text: Arc<[Token]> = request.prediction.into();
        let draft = (!text.is_empty()).then(|| Draft::new(text));
        let purpose =
            Purpose::Generate { seed, max_tokens, top_logprobs: widen(request.top_logprobs) };
        let sequences = (0_u64..).take(widen(request.n)).map(|i| {
            let sampler = Sampler::new(request.sampling, seed.wrapping_add(i));
            let generating = Generating::new(sampler, request.stop.clone(), draft.clone());
            (request.prompt.clone(), State::Generate(Box::new(generating)))
        });
        Ok(Request::new(request.priority, generation, purpose, sequences))
    }

    pub(crate) fn score(
        self,
        request: ScoreRequest,
        generation: Generation,
    ) -> Result<Request, EngineError> {
        self.check_score(&request)?;
        let scores = vec![None; request.prompts.len()];
        let purpose = Purpose::Score { labels: request.labels, scores };
        let sequences = request.prompts.into_iter().map(|prompt| (prompt, State::Score));
        Ok(Request::new(request.priority, generation, purpose, sequences))
    }

    pub(crate) fn logprobs(
        self,
        request: LogprobRequest,
        generation: Generation,
    ) -> Result<Request, EngineError> {
        self.check_logprobs(&request)?;
        let logprobs = vec![Vec::new(); request.sequences.len()];
        let sequences = request.sequences.into_iter().map(|(mut tokens, from)| {
            let targets = tokens[from..].to_vec();
            let values = Vec::with_capacity(targets.len());
            // Nothing follows the last token, so it need not be evaluated.
            tokens.truncate(tokens.len() - 1);
            (tokens, State::Logprobs { targets, values })
        });
        Ok(Request::new(request.priority, generation, Purpose::Logprobs { logprobs }, sequences))
    }

    fn check_generate(self, request: &GenerateRequest) -> Result<usize, EngineError> {
        let GenerateRequest { prompt, n, sampling, stop, top_logprobs, prediction, .. } = request;
        self.check_tokens(prompt, "the prompt")?;
        if !prediction.is_empty() {
            self.check_tokens(prediction, "the prediction")?;
            self.check_length(prediction.len())?;
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

    fn check_score(self, request: &ScoreRequest) -> Result<(), EngineError> {
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

    fn check_logprobs(self, request: &LogprobRequest) -> Result<(), EngineError> {
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

    fn check_tokens(self, tokens: &[Token], what: &str) -> Result<(), EngineError> {
        require(!tokens.is_empty(), || format!("{what} must not be empty"))?;
        let known = |t: &Token| usize::try_from(t.0).is_ok_and(|id| id < self.n_vocab);
        require(tokens.iter().all(known), || {
            format!("{what} has a token outside the vocabulary of {}", self.n_vocab)
        })
    }

    fn check_length(self, needed: usize) -> Result<(), EngineError> {
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
