//! The owner's own answer to a stored prompt, as a candidate: the tokens that the model would have
//! had to say, and what it gives to them. Stores nothing. Used by `api`; `from_file` has the
//! same for examples.

use config::Agent;
use engine::{FinishReason, LogprobRequest, Priority, Sampling, TextPart, Token, Weights};
use prompt::Message;
use store::{Author, CandidateId, Exchange, NewCandidate, Parent};

use super::assess::Verification;
use super::verify::command::Question;
use super::{ReflectError, Reflector, question};

impl Reflector {
    /// What the owner has made of a stored answer. It ends with the model's end of turn, like an
    /// answer that was sampled, and has the log-probs that the active generation gives to it. Of
    /// the judges only a verifier is asked: it takes no time.
    pub async fn edited(
        &self,
        agent: &Agent,
        exchange: &Exchange,
        original: CandidateId,
        text: &str,
    ) -> Result<NewCandidate, ReflectError> {
        let mut tokens = self.continuation(&exchange.messages, &exchange.prompt_tokens, text)?;
        tokens.push(self.engine.info().end_of_turn);
        let generation = self.engine.stats().active;
        let prompt = &exchange.prompt_tokens;
        let request = LogprobRequest {
            sequences: vec![([prompt.as_slice(), &tokens].concat(), prompt.len())],
            weights: Weights::Generation(generation),
            // The owner waits for it.
            priority: Priority::Chat,
        };
        let logprobs = self.engine.logprobs(request).await?.pop().unwrap_or_default();
        let reference = exchange.reference.as_deref();
        let verification = Verification::new(agent, exchange.verifier.as_ref(), reference)?;
        let assessments = match verification {
            None => Vec::new(),
            Some(verification) => {
                let prompt = &question(&exchange.messages);
                let asked = Question { prompt, answer: text, reference };
                verification.assess(&self.programs, asked).await?
            }
        };
        Ok(NewCandidate {
            author: Author::Owner,
            parent: Some(Parent::Stored(original)),
            generation,
            text: text.to_owned(),
            tokens,
            logprobs,
            sampling: Sampling::default(),
            finish: FinishReason::Stop,
            critique: None,
            critic: None,
            assessments,
            shots: Vec::new(),
        })
    }

    /// A text as it is tokenized where it follows the prompt.
    pub(super) fn continuation(
        &self,
        messages: &[Message],
        prompt: &[Token],
        text: &str,
    ) -> Result<Vec<Token>, ReflectError> {
        let vocabulary = self.engine.vocabulary();
        let part = TextPart { text: text.to_owned(), control: false };
        let mut parts = self.template.render(messages)?;
        parts.push(part.clone());
        let whole = vocabulary.tokenize(&parts);
        if let Some(tokens) = whole.strip_prefix(prompt) {
            return Ok(tokens.to_vec());
        }
        // The text would grow together with the template's last word, or the template has changed
        // since; sampling would have begun with a token of its own.
        let alone = vocabulary.tokenize(&[part]);
        let begin = vocabulary.tokenize(&[]);
        Ok(alone.strip_prefix(begin.as_slice()).unwrap_or(&alone).to_vec())
    }
}
