//! Collects what the engine samples for one request: token pieces in, complete samples out. Judges
//! nothing, stores nothing. Used by `run` (streams each piece on) and `session` (holds them).

use tokio::sync::mpsc;

use engine::{
    Engine, EngineError, FinishReason, GenerateRequest, Generation, Piece, Queued, Sampling, Token,
    TokenPiece,
};
use store::{Assessment, Author, Critic, NewCandidate, Parent};

/// A generation under way. Dropping it cancels what is not complete.
#[derive(Debug)]
pub(super) struct Batch {
    /// The weights that answer.
    pub(super) generation: Generation,
    /// Seed of answer 0; answer i has seed + i.
    pub(super) seed: u64,
    /// Answers asked for.
    pub(super) n: u32,
    /// Tokens of the prompt whose KV was there already.
    pub(super) n_cached: usize,
    sampling: Sampling,
    pieces: mpsc::Receiver<Piece>,
    answers: Vec<Partial>,
}

#[derive(Clone, Debug, Default)]
struct Partial {
    pieces: Vec<TokenPiece>,
    end: Option<(String, FinishReason)>,
}

/// What a refinement is to do better.
#[derive(Clone, Debug)]
pub(super) struct Critique {
    pub(super) text: String,
    pub(super) by: Critic,
}

/// A complete answer.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// The weights that wrote it.
    pub(super) generation: Generation,
    /// How it was sampled, with its own seed.
    pub(super) sampling: Sampling,
    /// Its tokens.
    pub(super) pieces: Vec<TokenPiece>,
    /// Text that was held back to the end.
    pub(super) tail: String,
    /// Why it ended.
    pub(super) finish: FinishReason,
}

/// A generation that waits to be admitted. Dropping it cancels it.
#[derive(Debug)]
pub(super) struct Waiting {
    n: u32,
    sampling: Sampling,
    queued: Queued,
}

impl Waiting {
    /// Resolves when the engine has found the request to be sound.
    pub(super) async fn queue(
        engine: &Engine,
        request: GenerateRequest,
    ) -> Result<Self, EngineError> {
        let (n, sampling) = (request.n, request.sampling);
        Ok(Self { n, sampling, queued: engine.queue(request).await? })
    }

    /// Resolves when the engine has admitted the request.
    pub(super) async fn started(self) -> Result<Batch, EngineError> {
        let Self { n, sampling, queued } = self;
        let started = queued.started().await?;
        Ok(Batch {
            generation: started.generation,
            seed: started.seed,
            n,
            n_cached: started.n_cached,
            sampling,
            pieces: started.pieces,
            answers: (0..n).map(|_| Partial::default()).collect(),
        })
    }
}

impl Batch {
    /// The next piece, which is recorded here too; `None` when all answers are complete.
    /// Cancel-safe: a dropped call loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<Piece>, EngineError> {
        if self.answers.iter().all(|answer| answer.end.is_some()) {
            return Ok(None);
        }
        let piece = self.pieces.recv().await.ok_or(EngineError::Stopped)?;
        match &piece {
            Piece::Token(token) => self.answer(token.index).pieces.push(token.clone()),
            Piece::Finished { index, text, reason } => {
                self.answer(*index).end = Some((text.clone(), *reason));
            }
            Piece::Failed(error) => return Err(error.clone()),
        }
        Ok(Some(piece))
    }

    /// Answers that have ended.
    pub(super) fn n_complete(&self) -> u32 {
        self.answers.iter().map(|answer| u32::from(answer.end.is_some())).sum()
    }

    /// Tokens sampled so far, also of answers that are not complete.
    pub(super) fn n_tokens(&self) -> usize {
        self.answers.iter().map(|answer| answer.pieces.len()).sum()
    }

    /// The complete answers in order; the others are cancelled and lost.
    pub(super) fn into_samples(self) -> Vec<Sample> {
        let (generation, seed, sampling) = (self.generation, self.seed, self.sampling);
        (0..)
            .zip(self.answers)
            .filter_map(|(index, answer)| {
                let (tail, finish) = answer.end?;
                let sampling = Sampling { seed: Some(seed.wrapping_add(index)), ..sampling };
                Some(Sample { generation, sampling, pieces: answer.pieces, tail, finish })
            })
            .collect()
    }

    fn answer(&mut self, index: u32) -> &mut Partial {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.answers.get_mut(index))
            .expect("the engine numbers the answers that were asked for")
    }
}

impl Sample {
    /// Its text.
    pub(super) fn text(&self) -> String {
        let pieces = self.pieces.iter().map(|piece| piece.text.as_str());
        pieces.chain([self.tail.as_str()]).collect()
    }

    /// Its tokens, with the end token if one came.
    pub(super) fn tokens(&self) -> Vec<Token> {
        self.pieces.iter().map(|piece| piece.token).collect()
    }

    /// One for each token.
    pub(super) fn logprobs(&self) -> Vec<f32> {
        self.pieces.iter().map(|piece| piece.logprob).collect()
    }

    /// As the store wants it.
    pub(super) fn to_candidate(
        &self,
        revises: Option<(Parent, Critique)>,
        assessments: Vec<Assessment>,
    ) -> NewCandidate {
        let (parent, critique) = revises.unzip();
        NewCandidate {
            author: Author::Model,
            parent,
            generation: self.generation,
            text: self.text(),
            tokens: self.tokens(),
            logprobs: self.logprobs(),
            sampling: self.sampling,
            finish: self.finish,
            critic: critique.as_ref().map(|critique| critique.by),
            critique: critique.map(|critique| critique.text),
            shots: Vec::new(),
            assessments,
        }
    }
}
