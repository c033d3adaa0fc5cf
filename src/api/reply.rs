//! The shape of a chat's reply: progress in, JSON out. Pure; one [`Reply`] a request, used whole
//! or chunk by chunk by `chat`.

use crate::reflect::{self, Outcome, Progress};
use engine::{FinishReason, Generation, TokenPiece};
use store::Candidate;

use super::wire::{
    AnswerMessage, ChatReply, Choice, Chunk, ChunkChoice, CompletionTokens, Delta, JudgedAnswer,
    Logprobs, PromptTokens, Receipt, TokenLogprob, TopLogprob, Usage,
};

/// What the client asked of the reply.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) id: String,
    pub(super) created: i64,
    /// The agent's name.
    pub(super) model: String,
    pub(super) logprobs: bool,
    /// `usage` in a stream's last chunk.
    pub(super) usage: bool,
}

/// A reply as it grows.
#[derive(Debug)]
pub(super) struct Reply {
    shape: Shape,
    generation: Generation,
    answers: Vec<Answer>,
    reasoning: String,
    usage: Usage,
    served_tokens: usize,
    receipt: Option<Receipt>,
}

/// One answer as it grows.
#[derive(Debug, Default)]
struct Answer {
    text: String,
    logprobs: Logprobs,
    reason: Option<FinishReason>,
    /// Its first chunk, which names the role, has been sent.
    begun: bool,
}

impl Reply {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape,
            generation: Generation::BASE,
            answers: Vec::new(),
            reasoning: String::new(),
            usage: Usage::default(),
            served_tokens: 0,
            receipt: None,
        }
    }

    /// Adds a step to the whole reply.
    pub(super) fn take(&mut self, progress: Progress) {
        match progress {
            Progress::Started { generation, n_prompt, n_cached, seed: _ } => {
                self.start(generation, n_prompt, n_cached);
            }
            Progress::Token(piece) => {
                self.served_tokens += 1;
                let logprobs = self.shape.logprobs.then(|| logprob(&piece)).flatten();
                let answer = self.answer(piece.index);
                answer.text.push_str(&piece.text);
                answer.logprobs.content.extend(logprobs);
            }
            Progress::Finished { index, text, reason } => {
                let answer = self.answer(index);
                answer.text.push_str(&text);
                answer.reason = Some(reason);
            }
            Progress::Reasoning(text) => self.reasoning.push_str(&text),
            Progress::Done(outcome) => self.done(&outcome),
            // The handler has turned the second one into an error.
            Progress::Queued | Progress::Failed(_) => {}
        }
    }

    /// The whole reply, after `Done`.
    pub(super) fn finish(self) -> ChatReply {
        let Self { shape, generation, answers, reasoning, usage, receipt, .. } = self;
        let reasoning = Some(reasoning).filter(|text| !text.is_empty());
        let choices = (0..).zip(answers).map(|(index, answer)| Choice {
            index,
            message: AnswerMessage {
                role: "assistant".to_owned(),
                content: answer.text,
                reasoning_content: reasoning.clone(),
            },
            logprobs: shape.logprobs.then_some(answer.logprobs),
            finish_reason: answer.reason,
        });
        ChatReply {
            id: shape.id,
            object: "chat.completion".to_owned(),
            created: shape.created,
            system_fingerprint: fingerprint(generation),
            choices: choices.collect(),
            usage,
            reflectd: receipt.expect("finish is called after Done"),
            model: shape.model,
        }
    }

    /// What a step adds to the stream. Only what later chunks need is kept.
    pub(super) fn chunks(&mut self, progress: Progress) -> Vec<Chunk> {
        match progress {
            Progress::Started { generation, n_prompt, n_cached, seed: _ } => {
                self.start(generation, n_prompt, n_cached);
                Vec::new()
            }
            Progress::Token(piece) => {
                self.served_tokens += 1;
                let logprobs = self.shape.logprobs.then(|| logprob(&piece)).flatten();
                if piece.text.is_empty() && logprobs.is_none() {
                    return Vec::new();
                }
                let delta = Delta { content: Some(piece.text), ..Delta::default() };
                let mut choice = self.choice(piece.index, delta);
                choice.logprobs = logprobs.map(|logprob| Logprobs { content: vec![logprob] });
                vec![self.chunk(vec![choice])]
            }
            Progress::Finished { index, text, reason } => {
                let content = Some(text).filter(|text| !text.is_empty());
                let mut choice = self.choice(index, Delta { content, ..Delta::default() });
                choice.finish_reason = Some(reason);
                vec![self.chunk(vec![choice])]
            }
            Progress::Reasoning(text) => {
                let delta = Delta { reasoning_content: Some(text), ..Delta::default() };
                let choice = self.choice(0, delta);
                vec![self.chunk(vec![choice])]
            }
            Progress::Done(outcome) => {
                self.done(&outcome);
                let mut last = self.chunk(Vec::new());
                last.usage = self.shape.usage.then_some(self.usage);
                last.reflectd = self.receipt.take();
                vec![last]
            }
            // The handler has turned the second one into an error.
            Progress::Queued | Progress::Failed(_) => Vec::new(),
        }
    }

    fn start(&mut self, generation: Generation, n_prompt: usize, n_cached: usize) {
        self.generation = generation;
        self.usage.prompt_tokens = n_prompt;
        self.usage.prompt_tokens_details = PromptTokens { cached_tokens: n_cached };
    }

    fn done(&mut self, outcome: &Outcome) {
        let served = self.served_tokens;
        let generated = outcome.generated_tokens.max(served);
        self.usage.completion_tokens = generated;
        self.usage.total_tokens = self.usage.prompt_tokens + generated;
        self.usage.completion_tokens_details =
            CompletionTokens { reasoning_tokens: generated - served };
        self.receipt = Some(Receipt {
            exchange: outcome.exchange,
            generation: self.generation,
            candidates: outcome.n_candidates,
            rounds: outcome.rounds,
            stopped: outcome.stopped.to_owned(),
            answers: outcome.served.iter().enumerate().filter_map(judged).collect(),
        });
    }

    fn answer(&mut self, index: u32) -> &mut Answer {
        // The engine's indices are below the request's `n`, which is bounded.
        let index = index as usize;
        if self.answers.len() <= index {
            self.answers.resize_with(index + 1, Answer::default);
        }
        &mut self.answers[index]
    }

    fn choice(&mut self, index: u32, mut delta: Delta) -> ChunkChoice {
        let answer = self.answer(index);
        if !answer.begun {
            answer.begun = true;
            delta.role = Some("assistant".to_owned());
        }
        ChunkChoice { index, delta, logprobs: None, finish_reason: None }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>) -> Chunk {
        Chunk {
            id: self.shape.id.clone(),
            object: "chat.completion.chunk".to_owned(),
            created: self.shape.created,
            model: self.shape.model.clone(),
            system_fingerprint: fingerprint(self.generation),
            choices,
            usage: None,
            reflectd: None,
        }
    }
}

fn fingerprint(generation: Generation) -> String {
    format!("generation-{generation}")
}

fn judged((index, candidate): (usize, &Candidate)) -> Option<JudgedAnswer> {
    let assessments = &candidate.assessments;
    if assessments.is_empty() {
        return None;
    }
    Some(JudgedAnswer {
        index,
        candidate: candidate.id,
        value: reflect::scalar(assessments),
        passes: reflect::passes(assessments),
        aspects: assessments.iter().map(|one| (one.aspect.clone(), one.value())).collect(),
    })
}

/// `None` for tokens without text, because the end token is no part of the answer.
fn logprob(piece: &TokenPiece) -> Option<TokenLogprob> {
    if piece.bytes.is_empty() {
        return None;
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let top = piece.top.iter().map(|(_, logprob, bytes)| TopLogprob {
        token: text(bytes),
        logprob: *logprob,
        bytes: bytes.clone(),
    });
    Some(TokenLogprob {
        token: text(&piece.bytes),
        logprob: piece.logprob,
        bytes: piece.bytes.clone(),
        top_logprobs: top.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::Token;
    use store::ExchangeId;

    fn shape() -> Shape {
        Shape {
            id: "chatcmpl-1".into(),
            created: 1,
            model: "nano".into(),
            logprobs: true,
            usage: true,
        }
    }

    fn piece(index: u32, text: &str) -> Progress {
        Progress::Token(TokenPiece {
            index,
            token: Token(7),
            text: text.into(),
            bytes: text.into(),
            logprob: -0.5,
            top: vec![(Token(7), -0.5, text.into())],
        })
    }

    fn started() -> Progress {
        Progress::Started { generation: Generation(3), seed: 1, n_prompt: 10, n_cached: 4 }
    }

    fn finished(index: u32, text: &str) -> Progress {
        Progress::Finished { index, text: text.into(), reason: FinishReason::Stop }
    }

    fn done(generated_tokens: usize) -> Progress {
        Progress::Done(Box::new(Outcome {
            exchange: Some(ExchangeId(5)),
            served: Vec::new(),
            n_candidates: 2,
            generated_tokens,
            rounds: 1,
            stopped: "passes",
        }))
    }

    #[test]
    fn a_whole_reply_puts_each_answer_at_its_index() {
        let mut reply = Reply::new(shape());
        for progress in [started(), piece(1, "b"), piece(0, "a"), piece(0, "!"), piece(1, "")] {
            reply.take(progress);
        }
        for progress in [finished(1, "\u{fffd}"), finished(0, ""), done(9)] {
            reply.take(progress);
        }
        let reply = reply.finish();
        let texts: Vec<_> = reply.choices.iter().map(|c| c.message.content.as_str()).collect();
        assert_eq!(texts, ["a!", "b\u{fffd}"]);
        assert_eq!(reply.system_fingerprint, "generation-3");
        assert_eq!(reply.usage.prompt_tokens_details.cached_tokens, 4);
        assert_eq!(reply.usage.completion_tokens, 9);
        assert_eq!(reply.usage.completion_tokens_details.reasoning_tokens, 5);
        // The end token has no text and no place among the log-probs.
        let logprobs = reply.choices[1].logprobs.as_ref().unwrap();
        assert_eq!(logprobs.content.len(), 1);
    }

    #[test]
    fn a_stream_names_the_role_once_and_ends_with_receipt_and_usage() {
        let mut reply = Reply::new(shape());
        let steps = [started(), piece(0, "a"), piece(0, "b"), finished(0, "c"), done(3)];
        let chunks: Vec<_> = steps.into_iter().flat_map(|step| reply.chunks(step)).collect();
        let roles: Vec<_> =
            chunks.iter().flat_map(|c| &c.choices).map(|c| c.delta.role.is_some()).collect();
        assert_eq!(roles, [true, false, false]);
        let last = chunks.last().unwrap();
        assert!(last.choices.is_empty());
        assert_eq!(last.usage.unwrap().total_tokens, 13);
        assert_eq!(last.reflectd.as_ref().unwrap().exchange, Some(ExchangeId(5)));
        assert!(chunks.iter().rev().skip(1).all(|c| c.reflectd.is_none() && c.usage.is_none()));
    }
}
