//! Byte-pair encoding in llama.cpp's `gpt2` scheme: trained on the nano corpus, written into the
//! nano GGUF, where llama.cpp takes over. Digits are merged with a space before them and never with
//! each other, so that numbers are read digit by digit. Any byte can be encoded.
//! Used by the trainer's `pretrain` alone; the daemon asks llama.cpp.

use std::collections::HashMap;

use files::gguf::{Gguf, Value, Vocabulary, Writer, gpt2_letter};
use inference::TextPart;

/// Control tokens; their ids are their positions.
pub const CONTROL: [&str; 5] = ["<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"];
/// Id of the token that ends a turn.
pub const END: i32 = 4;
/// GGUF token types (`llama_token_type`).
const NORMAL: i64 = 1;
const CONTROL_TYPE: i64 = 3;
const UNUSED: i64 = 5;

/// A trained vocabulary.
#[derive(Debug)]
pub struct Tokenizer {
    tokens: Vec<String>,
    merges: Vec<(String, String)>,
    ids: HashMap<String, i32>,
    ranks: HashMap<(String, String), usize>,
    words: std::cell::RefCell<HashMap<String, Vec<i32>>>,
}

impl Tokenizer {
    /// Learns merges from plain texts until the vocabulary has `size` tokens or nothing is left to
    /// merge, then fills it up to a multiple of 32 with unused tokens.
    pub fn train(texts: &[String], size: usize) -> Self {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for text in texts {
            for word in words(text) {
                if !word.chars().any(char::is_numeric) {
                    *counts.entry(word).or_default() += 1;
                }
            }
        }
        let mut words: Vec<(Vec<String>, usize)> =
            counts.into_iter().map(|(word, count)| (letters(word), count)).collect();
        let space = letters(" ").remove(0);
        let mut merges: Vec<(String, String)> =
            (0..10).map(|digit| (space.clone(), digit.to_string())).collect();
        while CONTROL.len() + 256 + merges.len() < size {
            let mut pairs: HashMap<(&str, &str), usize> = HashMap::new();
            for (parts, count) in &words {
                for pair in parts.windows(2) {
                    *pairs.entry((&pair[0], &pair[1])).or_default() += count;
                }
            }
            // Ties are broken by the text, so that training is repeatable.
            let best = pairs.into_iter().max_by(|a, b| (a.1, a.0).cmp(&(b.1, b.0)));
            let Some(((left, right), _)) = best else { break };
            let merge = (left.to_owned(), right.to_owned());
            for (parts, _) in &mut words {
                apply(parts, &merge);
            }
            merges.push(merge);
        }
        Self::new(merges)
    }
    /// The vocabulary of a file that [`Tokenizer::write_metadata`] has written.
    pub fn from_gguf(file: &Gguf) -> Option<Self> {
        let Value::Array(merges) = file.metadata("tokenizer.ggml.merges")? else { return None };
        let merge = |value: &Value| match value {
            Value::String(text) => {
                text.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned()))
            }
            _ => None,
        };
        Some(Self::new(merges.iter().map(merge).collect::<Option<_>>()?))
    }
    fn new(merges: Vec<(String, String)>) -> Self {
        let mut tokens: Vec<String> = CONTROL.iter().map(|&token| token.to_owned()).collect();
        tokens.extend((0..=255).map(|byte| gpt2_letter(byte).to_string()));
        tokens.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
        while !tokens.len().is_multiple_of(32) {
            tokens.push(format!("<|unused{}|>", tokens.len()));
        }
        let ids = (0..).zip(&tokens).map(|(id, token)| (token.clone(), id)).collect();
        let ranks = merges.iter().enumerate().map(|(rank, merge)| (merge.clone(), rank)).collect();
        Self { tokens, merges, ids, ranks, words: std::cell::RefCell::default() }
    }
    /// Tokens in the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.tokens.len()
    }
    /// The ids of a rendered prompt. Control tokens are seen in control parts only.
    pub fn encode(&self, parts: &[TextPart]) -> Vec<i32> {
        let mut ids = Vec::new();
        for part in parts {
            let mut rest = part.text.as_str();
            while part.control
                && let Some((at, id, length)) = next_control(rest)
            {
                let (before, after) = rest.split_at(at);
                self.encode_plain(before, &mut ids);
                ids.push(id);
                rest = after.split_at(length).1;
            }
            self.encode_plain(rest, &mut ids);
        }
        ids
    }
    fn encode_plain(&self, text: &str, ids: &mut Vec<i32>) {
        let mut cache = self.words.borrow_mut();
        for word in words(text) {
            if !cache.contains_key(word) {
                cache.insert(word.to_owned(), self.encode_word(word));
            }
            ids.extend(&cache[word]);
        }
    }
    fn encode_word(&self, word: &str) -> Vec<i32> {
        let mut parts = letters(word);
        loop {
            let best = parts
                .windows(2)
                .filter_map(|pair| self.ranks.get(&(pair[0].clone(), pair[1].clone())))
                .min();
            let Some(&rank) = best else { break };
            apply(&mut parts, &self.merges[rank]);
        }
        parts.iter().map(|part| self.ids[part]).collect()
    }
    /// Adds the vocabulary and a chat template to a model file.
    pub fn write_metadata(&self, writer: &mut Writer, chat_template: &str) {
        let kinds = self.tokens.iter().enumerate().map(|(id, token)| match id {
            id if id < CONTROL.len() => CONTROL_TYPE,
            _ if token.starts_with("<|unused") => UNUSED,
            _ => NORMAL,
        });
        Vocabulary {
            tokens: &self.tokens,
            kinds: kinds.collect(),
            merges: self.merges.iter().map(|(l, r)| format!("{l} {r}")).collect(),
            end: u64::try_from(END).expect("END is positive"),
            padding: Some(0),
            chat_template,
        }
        .write(writer);
    }
}

fn next_control(text: &str) -> Option<(usize, i32, usize)> {
    (0..).zip(CONTROL).filter_map(|(id, token)| Some((text.find(token)?, id, token.len()))).min()
}

fn apply(parts: &mut Vec<String>, (left, right): &(String, String)) {
    let mut i = 0;
    while i + 1 < parts.len() {
        if parts[i] == *left && parts[i + 1] == *right {
            let joined = parts.remove(i + 1);
            parts[i].push_str(&joined);
        }
        i += 1;
    }
}

fn letters(word: &str) -> Vec<String> {
    word.bytes().map(|byte| gpt2_letter(byte).to_string()).collect()
}

/// Splits text as GPT-2's pattern does:
/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
fn words(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (word, after) = rest.split_at(word_length(rest, first));
        found.push(word);
        rest = after;
    }
    found
}

fn word_length(rest: &str, first: char) -> usize {
    for contraction in ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"] {
        if rest.starts_with(contraction) {
            return contraction.len();
        }
    }
    let after_space = rest.strip_prefix(' ').unwrap_or(rest);
    let space = rest.len() - after_space.len();
    let run = |text: &str, class: &dyn Fn(char) -> bool| {
        text.char_indices().find(|&(_, c)| !class(c)).map_or(text.len(), |(at, _)| at)
    };
    let symbol = |c: char| !c.is_whitespace() && !c.is_alphabetic() && !c.is_numeric();
    for class in [&char::is_alphabetic as &dyn Fn(char) -> bool, &char::is_numeric, &symbol] {
        let length = run(after_space, class);
        if length > 0 {
            return space + length;
        }
    }
    // White space: the last one before a word is left to that word.
    let spaces = run(rest, &char::is_whitespace);
    let last = rest.split_at(spaces).0.chars().next_back().map_or(0, char::len_utf8);
    if spaces < rest.len() && spaces > last { spaces - last } else { spaces.max(first.len_utf8()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn trained() -> Tokenizer {
        Tokenizer::train(&vec!["Tom has 12 apples. Ann has 7 apples.\n#### 19".to_owned(); 3], 300)
    }
    fn plain(text: &str) -> Vec<TextPart> {
        vec![TextPart { text: text.to_owned(), control: false }]
    }
    fn decode(tokenizer: &Tokenizer, ids: &[i32]) -> Vec<u8> {
        let bytes: HashMap<char, u8> = (0..=255).map(|byte| (gpt2_letter(byte), byte)).collect();
        ids.iter()
            .flat_map(|&id| {
                tokenizer.tokens[usize::try_from(id).unwrap()].chars().map(|c| bytes[&c])
            })
            .collect()
    }

    #[test]
    fn numbers_are_read_digit_by_digit() {
        let tokenizer = trained();
        let texts: Vec<&str> = tokenizer
            .encode(&plain("has 127"))
            .iter()
            .map(|&id| tokenizer.tokens[usize::try_from(id).unwrap()].as_str())
            .collect();
        assert_eq!(texts[texts.len() - 3..], ["Ġ1", "2", "7"]);
    }

    #[test]
    fn a_typed_control_token_stays_text() {
        let tokenizer = trained();
        let control = tokenizer.encode(&[TextPart { text: "a<|end|>b".into(), control: true }]);
        assert!(control.contains(&END));
        assert!(!tokenizer.encode(&plain("a<|end|>b")).contains(&END));
    }

    #[test]
    fn a_written_vocabulary_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vocabulary.gguf");
        let mut writer = Writer::default();
        trained().write_metadata(&mut writer, "");
        writer.write(&path).unwrap();
        let read = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
        assert_eq!(read.tokens, trained().tokens);
    }

    #[test]
    fn words_are_split_as_gpt2_does() {
        assert_eq!(
            words("Tom's  10 apples.\n#### 7"),
            ["Tom", "'s", " ", " 10", " apples", ".", "\n", "####", " 7"]
        );
        assert_eq!(words("a  "), ["a", "  "]);
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in "\\PC*[ \n\t]*\\PC*") {
            let tokenizer = trained();
            prop_assert_eq!(decode(&tokenizer, &tokenizer.encode(&plain(&text))), text.into_bytes());
        }
    }
}
