//! The main path of one task: render the prompt, then answer by its mode. Off, background and
//! explore stream here; `inline` holds its answers back. Used by [`Reflector::run`].

use tokio::sync::mpsc;

use config::Mode;
use engine::{GenerateRequest, Piece, Priority, Token, Weights};
use store::NewCandidate;

use super::batch::{Sample, Waiting};
use super::budget::Stop;
use super::prepared::{Prepared, record};
use super::{Outcome, Progress, ReflectError, Reflector, Task, inline};

pub(super) async fn run(
    reflector: &Reflector,
    task: &Task,
    progress: &mpsc::Sender<Progress>,
) -> Result<Outcome, ReflectError> {
    let prepared = Prepared::new(reflector, &task.agent, &task.messages, task.verifier.clone())?;
    let later = match task.mode {
        Mode::Inline => return inline::run(reflector, task, prepared, progress).await,
        Mode::Off => "off",
        Mode::Background => "background",
        Mode::Explore => "explore",
    };
    let streamed = stream(reflector, task, &prepared.prompt, progress).await?;
    let candidates: Vec<NewCandidate> =
        streamed.samples.iter().map(|sample| sample.to_candidate(None, Vec::new())).collect();
    let n_candidates = candidates.len();
    let (exchange, served) = match task.mode {
        Mode::Off => (None, Vec::new()),
        _ => {
            let served = (!streamed.client_left).then_some(0);
            record(reflector, task, prepared, candidates, served).await?
        }
    };
    Ok(Outcome {
        exchange,
        served: if streamed.client_left { Vec::new() } else { served },
        n_candidates,
        generated_tokens: streamed.generated_tokens,
        rounds: 0,
        stopped: if streamed.client_left { Stop::ClientLeft.word() } else { later },
    })
}

struct Streamed {
    samples: Vec<Sample>,
    generated_tokens: usize,
    client_left: bool,
}

/// Passes every piece on as it comes; a client that leaves cancels the rest.
async fn stream(
    reflector: &Reflector,
    task: &Task,
    prompt: &[Token],
    progress: &mpsc::Sender<Progress>,
) -> Result<Streamed, ReflectError> {
    let request = GenerateRequest {
        prompt: prompt.to_vec(),
        n: task.n.max(1),
        sampling: task.sampling,
        stop: task.stop.clone(),
        top_logprobs: task.top_logprobs,
        prediction: Vec::new(),
        weights: Weights::Active,
        priority: Priority::Chat,
    };
    let start = async {
        let waiting = Waiting::queue(&reflector.engine, request).await?;
        // A client that has left ends this.
        drop(progress.send(Progress::Queued).await);
        waiting.started().await
    };
    let mut batch = tokio::select! {
        batch = start => batch?,
        () = progress.closed() => {
            return Ok(Streamed { samples: Vec::new(), generated_tokens: 0, client_left: true });
        }
    };
    let mut news = Some(Progress::Started {
        generation: batch.generation,
        seed: batch.seed,
        n_prompt: prompt.len(),
        n_cached: batch.n_cached,
    });
    let mut client_left = false;
    while let Some(piece) = news {
        if progress.send(piece).await.is_err() {
            client_left = true;
            break;
        }
        let piece = tokio::select! {
            piece = batch.next() => piece?,
            () = progress.closed() => {
                client_left = true;
                break;
            }
        };
        news = piece.map(|piece| match piece {
            Piece::Token(token) => Progress::Token(token),
            Piece::Finished { index, text, reason } => Progress::Finished { index, text, reason },
            Piece::Failed(error) => Progress::Failed(error.into()),
        });
    }
    let generated_tokens = batch.n_tokens();
    Ok(Streamed { samples: batch.into_samples(), generated_tokens, client_left })
}
