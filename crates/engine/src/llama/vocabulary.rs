//! The model's vocabulary: text to tokens and back. Text from users never becomes a control token.

use std::ffi::{CStr, c_char};
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::{Model, count, position};
use crate::{TextPart, Token, Vocabulary};

/// The model's vocabulary.
#[derive(Debug)]
pub(super) struct LlamaVocabulary {
    model: Arc<Model>,
    n_vocab: usize,
    /// The tokens that only a template may write.
    control: Vec<Control>,
    /// For each token whether it is such a one, so that text must not come out as it.
    forbidden: Vec<bool>,
    begin: Option<Token>,
}

/// A token that only a template may write.
#[derive(Debug)]
struct Control {
    text: String,
    token: Token,
    /// Takes the blanks before it, and those behind it, as llama.cpp has it for some models (phi-3).
    strips: [bool; 2],
}

impl LlamaVocabulary {
    /// What the template writes with a token of its own is control, also where the file calls that
    /// token user-defined: llama.cpp finds those in any text.
    pub(super) fn new(model: Arc<Model>, chat_template: &str) -> Self {
        let n_vocab = model.n_vocab();
        let (control, forbidden, begin) = (Vec::new(), vec![false; n_vocab], None);
        let mut vocabulary = Self { model, n_vocab, control, forbidden, begin };
        let vocab = vocabulary.model.vocab();
        for id in 0..position(n_vocab) {
            // SAFETY: the vocabulary lives and the id is in it.
            let attributes = unsafe { sys::llama_vocab_get_attr(vocab, id) };
            let is = |attribute| attributes & attribute != 0;
            let text = vocabulary.text(Token(id));
            let is_control = is(sys::LLAMA_TOKEN_ATTR_CONTROL)
                || is(sys::LLAMA_TOKEN_ATTR_USER_DEFINED)
                    && 1 < text.trim().chars().count()
                    && chat_template.contains(&text);
            // What text cannot be spelled with comes out as the unknown token, and may.
            if let Some(forbidden) = vocabulary.forbidden.get_mut(count(id)) {
                *forbidden = is_control;
            }
            if !text.is_empty() && (is_control || is(sys::LLAMA_TOKEN_ATTR_UNKNOWN)) {
                let strips = [sys::LLAMA_TOKEN_ATTR_LSTRIP, sys::LLAMA_TOKEN_ATTR_RSTRIP].map(is);
                vocabulary.control.push(Control { text, token: Token(id), strips });
            }
        }
        // SAFETY: the vocabulary lives.
        if unsafe { sys::llama_vocab_get_add_bos(vocab) } {
            // SAFETY: the vocabulary lives.
            let begin = Token(unsafe { sys::llama_vocab_bos(vocab) });
            vocabulary.begin = Some(begin).filter(|&begin| vocabulary.knows(begin));
        }
        vocabulary
    }

    fn knows(&self, token: Token) -> bool {
        usize::try_from(token.0).is_ok_and(|id| id < self.n_vocab)
    }

    /// The text that names a token; empty when there is none.
    pub(super) fn text(&self, token: Token) -> String {
        if !self.knows(token) {
            return String::new();
        }
        // SAFETY: the vocabulary lives and the id is in it.
        let text = unsafe { sys::llama_vocab_get_text(self.model.vocab(), token.0) };
        c_text(text)
    }

    /// Adds plain text; control tokens in it stay text. llama.cpp is told to leave them alone, but
    /// merges can still spell one, and user-defined ones are found in any text: such a one is spelled
    /// again character by character.
    fn tokenize_text(&self, text: &str, tokens: &mut Vec<Token>) {
        let from = tokens.len();
        self.spell(text, false, tokens);
        if !tokens.iter().skip(from).any(|&token| self.is_forbidden(token)) {
            return;
        }
        for token in tokens.split_off(from) {
            if !self.is_forbidden(token) {
                tokens.push(token);
                continue;
            }
            for character in self.text(token).chars() {
                let from = tokens.len();
                self.spell(character.encode_utf8(&mut [0; 4]), false, tokens);
                // A control token of one character has no other spelling.
                let spelled = tokens.split_off(from);
                tokens.extend(spelled.into_iter().filter(|&token| !self.is_forbidden(token)));
            }
        }
    }

    fn is_forbidden(&self, token: Token) -> bool {
        let known = usize::try_from(token.0).ok().and_then(|id| self.forbidden.get(id));
        known.copied().unwrap_or(false)
    }

    /// Adds text as llama.cpp spells it, with its control tokens as such or as text.
    fn spell(&self, text: &str, has_control: bool, tokens: &mut Vec<Token>) {
        let Ok(n_bytes) = i32::try_from(text.len()) else { return };
        let mut buffer = vec![0; text.len() + 8];
        for _ in 0..2 {
            // SAFETY: text and buffer have the lengths that are said; too small a buffer is
            // reported as the negated length.
            let n = unsafe {
                sys::llama_tokenize(
                    self.model.vocab(),
                    text.as_ptr().cast(),
                    n_bytes,
                    buffer.as_mut_ptr(),
                    position(buffer.len()),
                    false,
                    has_control,
                )
            };
            if n >= 0 {
                tokens.extend(buffer[..count(n)].iter().copied().map(Token));
                return;
            }
            buffer.resize(count(n.saturating_neg()), 0);
        }
    }

    /// The first control token in a template's text, the longest one where several begin.
    fn find_control(&self, text: &str) -> Option<(usize, &Control)> {
        self.control
            .iter()
            .filter_map(|control| Some((text.find(&control.text)?, control)))
            .min_by_key(|(at, control)| (*at, usize::MAX - control.text.len()))
    }
}

/// Plain text between two control tokens.
#[derive(Default)]
struct Plain {
    text: String,
    /// Whether the control token before it takes its first blanks.
    is_stripped: bool,
}

impl Plain {
    fn push(&mut self, text: &str) {
        let strips = self.is_stripped && self.text.is_empty();
        self.text.push_str(if strips { text.trim_start_matches(is_blank) } else { text });
    }

    /// The text without its last blanks where the next control token takes them.
    fn end(&mut self, is_stripped: bool) -> String {
        let mut text = std::mem::take(&mut self.text);
        if is_stripped {
            text.truncate(text.trim_end_matches(is_blank).len());
        }
        text
    }
}

/// C's `isspace`.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

/// How llama.cpp tokenizes a whole prompt in which every control token counts.
#[cfg(test)]
pub(crate) fn reference(model: &std::path::Path, prompt: &str) -> Vec<Token> {
    let model = Arc::new(Model::load(model, 0).expect("the test has written the model"));
    let mut tokens = Vec::new();
    LlamaVocabulary::new(model, prompt).spell(prompt, true, &mut tokens);
    tokens
}

impl Vocabulary for LlamaVocabulary {
    /// Plain text is tokenized together across parts, because where the template's words end and
    /// the user's begin there is no boundary for the model. Control tokens strip blanks also of
    /// contents, as they do where llama.cpp gets the whole prompt.
    fn tokenize(&self, parts: &[TextPart]) -> Vec<Token> {
        let mut tokens = Vec::new();
        let mut plain = Plain::default();
        for part in parts {
            let mut rest = part.text.as_str();
            while let Some((at, control)) = part.control.then(|| self.find_control(rest)).flatten()
            {
                let (before, after) = rest.split_at(at);
                let [strips_before, strips_after] = control.strips;
                plain.push(before);
                self.tokenize_text(&plain.end(strips_before), &mut tokens);
                tokens.push(control.token);
                plain.is_stripped = strips_after;
                rest = after.split_at(control.text.len()).1;
            }
            plain.push(rest);
        }
        self.tokenize_text(&plain.end(false), &mut tokens);
        if let Some(begin) = self.begin
            && tokens.first() != Some(&begin)
        {
            tokens.insert(0, begin);
        }
        tokens
    }

    fn piece(&self, token: Token) -> Vec<u8> {
        if !self.knows(token) {
            return Vec::new();
        }
        let mut buffer = vec![0_u8; 64];
        for _ in 0..2 {
            // SAFETY: the id is in the vocabulary (another one throws), and the buffer has the
            // length that is said; too small a buffer is reported as the negated length.
            let n = unsafe {
                sys::llama_token_to_piece(
                    self.model.vocab(),
                    token.0,
                    buffer.as_mut_ptr().cast(),
                    position(buffer.len()),
                    0,
                    false,
                )
            };
            if n >= 0 {
                buffer.truncate(count(n));
                return buffer;
            }
            buffer.resize(count(n.saturating_neg()), 0);
        }
        Vec::new()
    }

    fn is_end(&self, token: Token) -> bool {
        // SAFETY: the vocabulary lives and the id is in it.
        self.knows(token) && unsafe { sys::llama_vocab_is_eog(self.model.vocab(), token.0) }
    }
}

impl LlamaVocabulary {
    /// Begin, end of text, end of turn: -1 where the model has none.
    pub(super) fn special(&self) -> [Token; 3] {
        let vocab = self.model.vocab();
        // SAFETY: the vocabulary lives.
        let ids = unsafe {
            [sys::llama_vocab_bos(vocab), sys::llama_vocab_eos(vocab), sys::llama_vocab_eot(vocab)]
        };
        ids.map(Token)
    }
}

/// A C string of llama.cpp, which need not be UTF-8.
fn c_text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: llama.cpp's texts end with a zero, and the caller has it from a living vocabulary.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
