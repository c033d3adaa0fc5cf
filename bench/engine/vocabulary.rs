//! The benchmark's vocabulary, made by rule: bytes, chains that grow a word letter by letter from the
//! space before it, and letter pairs for what is left. Random words of it come back as the tokens
//! that they were, so that a sampled answer has about as many tokens when it stands in a prompt.
//! Used by `model`, and by `texts` for [`word`].

use std::collections::HashSet;

use files::gguf::{Writer, gpt2_letter};

/// Tokens in all, as Llama has.
pub(crate) const SIZE: usize = 32_000;
/// Control tokens; their ids are their positions.
pub(crate) const CONTROL: [&str; 3] = ["<|im_start|>", "<|im_end|>", "<|pad|>"];
/// Id of the token that ends a turn.
const END: u64 = 1;
/// GPT-2's stand-in for the space.
pub(crate) const SPACE: &str = "\u{120}";
/// GGUF token types (`llama_token_type`).
const NORMAL: i64 = 1;
const CONTROL_TYPE: i64 = 3;
const CHAT_TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n\
     {{ message.content }}<|im_end|>\n{% endfor %}\
     {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Tokens by id and merges by rank.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    tokens: Vec<String>,
    pub(crate) merges: Vec<String>,
    known: HashSet<String>,
}

impl Vocabulary {
    /// Every word of the texts becomes one token, as in vocabularies that were trained on English.
    pub(crate) fn new(texts: &[String]) -> Self {
        let mut tokens: Vec<String> = CONTROL.map(str::to_owned).into();
        tokens.extend((0..=255).map(|byte| gpt2_letter(byte).to_string()));
        let known = tokens.iter().cloned().collect();
        let mut made = Self { tokens, merges: Vec::new(), known };
        let pairs: Vec<[char; 2]> =
            ('a'..='z').flat_map(|a| ('a'..='z').map(move |b| [a, b])).collect();
        for length in 1..=3 {
            for word in all_words(length) {
                made.grow(&word);
            }
        }
        for text in texts {
            for word in text.split(|c: char| !c.is_ascii_lowercase()).filter(|w| 3 < w.len()) {
                made.grow(word);
            }
        }
        // Pairs come last, and a merge of lower rank goes first: a chain is never broken up.
        for word in all_words(4) {
            if SIZE - pairs.len() <= made.tokens.len() {
                break;
            }
            made.grow(&word);
        }
        for [a, b] in pairs {
            made.merge(&a.to_string(), &b.to_string());
        }
        made
    }

    /// Adds the tokens of a word after a space that are not there yet.
    fn grow(&mut self, word: &str) {
        let mut left = SPACE.to_owned();
        for letter in word.chars() {
            self.merge(&left, &letter.to_string());
            left.push(letter);
        }
    }

    fn merge(&mut self, left: &str, right: &str) {
        let token = format!("{left}{right}");
        if self.tokens.len() < SIZE && self.known.insert(token.clone()) {
            self.tokens.push(token);
            self.merges.push(format!("{left} {right}"));
        }
    }

    /// The tokens by id.
    pub(crate) fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// Whether a token is a word after a space: only those may be sampled, because their text
    /// comes back as the same tokens.
    pub(crate) fn is_word(&self, id: usize) -> bool {
        self.tokens.get(id).is_some_and(|token| {
            token.strip_prefix(SPACE).is_some_and(|word| {
                !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase())
            })
        })
    }

    /// Adds the vocabulary and a chat template to a model file.
    pub(crate) fn write(&self, writer: &mut Writer) {
        let kind = |id| if id < CONTROL.len() { CONTROL_TYPE } else { NORMAL };
        files::gguf::Vocabulary {
            tokens: &self.tokens,
            kinds: (0..self.tokens.len()).map(kind).collect(),
            merges: self.merges.clone(),
            end: END,
            padding: None,
            chat_template: CHAT_TEMPLATE,
        }
        .write(writer);
    }
}

/// A space and three random letters: always one token.
pub(crate) fn word(rng: &mut fastrand::Rng) -> String {
    let letters = std::iter::repeat_with(|| rng.lowercase()).take(3);
    std::iter::once(' ').chain(letters).collect()
}

/// All words of a length, in order.
fn all_words(length: u32) -> impl Iterator<Item = String> {
    (0..26_u32.pow(length)).map(move |number| {
        let digit = |place: u32| number / 26_u32.pow(length - 1 - place) % 26;
        (0..length).filter_map(|place| char::from_u32(u32::from(b'a') + digit(place))).collect()
    })
}
