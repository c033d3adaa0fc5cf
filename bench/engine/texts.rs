//! Prompts of a known length that no cache has seen. Used by every workload.

use std::sync::Arc;

use anyhow::Context as _;
use engine::{self, EngineConfig, KvCache, Token, Vocabulary};
use prompt::{ChatTemplate, Message, Role};

use crate::vocabulary::word;

/// Makes prompts and turns text into the served model's tokens.
#[derive(Debug)]
pub(crate) struct Texts {
    vocabulary: Arc<dyn Vocabulary>,
    template: ChatTemplate,
    /// Tokens that the chat template adds to one turn of the user.
    around: usize,
    rng: fastrand::Rng,
}

impl Texts {
    /// Loads the model for a moment, because its vocabulary is llama.cpp's.
    pub(crate) async fn new(config: &EngineConfig) -> anyhow::Result<Self> {
        let small = EngineConfig {
            context_tokens: 256,
            max_sequences: 1,
            batch_tokens: 32,
            kv_cache: KvCache::F16,
            ..config.clone()
        };
        let (engine, _thread) = engine::spawn(&small).await?;
        let info = engine.info();
        let template = info.chat_template.as_deref();
        let template = ChatTemplate::new(template, &info.bos, &info.eos);
        let vocabulary = Arc::clone(engine.vocabulary());
        let rng = fastrand::Rng::new();
        let mut texts = Self { vocabulary, template, around: 0, rng };
        texts.around = texts.tokens(&[user(" abc")])?.len() - 1;
        Ok(texts)
    }

    /// A turn of the user that makes a prompt of so many tokens; never the same twice.
    pub(crate) fn question(&mut self, n_tokens: usize) -> String {
        let n_words = n_tokens.saturating_sub(self.around).max(1);
        std::iter::repeat_with(|| word(&mut self.rng)).take(n_words).collect()
    }

    /// The rendered prompt of such a turn.
    pub(crate) fn prompt(&mut self, n_tokens: usize) -> anyhow::Result<Vec<Token>> {
        let question = self.question(n_tokens);
        self.tokens(&[user(&question)])
    }

    /// A random token of a word.
    pub(crate) fn token(&mut self) -> anyhow::Result<Token> {
        let part = engine::TextPart { text: word(&mut self.rng), control: false };
        self.vocabulary.tokenize(&[part]).first().copied().context("a word has a token")
    }

    /// A rendered conversation.
    pub(crate) fn tokens(&self, messages: &[Message]) -> anyhow::Result<Vec<Token>> {
        Ok(self.vocabulary.tokenize(&self.template.render(messages)?))
    }

    /// The tokens of text that stands alone.
    pub(crate) fn plain(&self, text: &str) -> Vec<Token> {
        self.vocabulary.tokenize(&[engine::TextPart { text: text.to_owned(), control: false }])
    }
}

/// A turn of the user.
pub(crate) fn user(content: &str) -> Message {
    Message { role: Role::User, content: content.to_owned() }
}
