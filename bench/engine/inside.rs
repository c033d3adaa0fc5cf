//! The engine in this process, without a daemon around it. Used by the workloads that measure the
//! engine itself, or what the daemon adds to it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use engine::{
    Engine, GenerateRequest, Generation, Piece, Priority, Sampling, Token, TokenPiece, Weights,
};

/// What one request gave.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) generation: Generation,
    /// From the request to its first token.
    pub(crate) first_token: Duration,
    /// The tokens of all continuations, with the time at which each came.
    pub(crate) pieces: Vec<(Instant, TokenPiece)>,
}

/// `n` continuations of a prompt; the words of this benchmark never end by themselves.
pub(crate) fn request(prompt: Vec<Token>, n: u32, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt,
        n,
        sampling: Sampling { max_tokens, ..Sampling::default() },
        stop: Vec::new(),
        top_logprobs: 0,
        prediction: Vec::new(),
        weights: Weights::Active,
        priority: Priority::Chat,
    }
}

/// Runs a request to its end.
pub(crate) async fn generate(engine: &Engine, request: GenerateRequest) -> anyhow::Result<Answer> {
    let began = Instant::now();
    let mut started = engine.generate(request).await?;
    let mut pieces = Vec::new();
    while let Some(piece) = started.pieces.recv().await {
        match piece {
            Piece::Token(token) => pieces.push((Instant::now(), token)),
            Piece::Finished { .. } => {}
            Piece::Failed(error) => bail!("a request failed: {error}"),
        }
    }
    let (first, _) = pieces.first().context("a request gave no token")?;
    let first_token = *first - began;
    Ok(Answer { generation: started.generation, first_token, pieces })
}
