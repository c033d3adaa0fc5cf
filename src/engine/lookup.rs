//! Guesses how an answer goes on that copies much of a known text: a refinement its parent. The
//! guess is evaluated together with the last token, and what the model would not have said is
//! taken back, so that it changes the speed of an answer and nothing else (prompt lookup: Saxena,
//! 2023; speculative decoding: Leviathan and others, 2023). Pure. Used by `job.rs`.

use std::sync::Arc;

use super::Token;

/// Tokens of a guess at most. Longer ones gain little: a wide batch costs what its tokens cost.
pub(super) const WIDEST: usize = 32;
/// Tokens of a guess after a wrong one.
const NARROWEST: usize = 2;
/// Tokens of the first guess: most refinements begin like their parent.
const FIRST: usize = 8;

/// One continuation's guesses.
#[derive(Clone, Debug)]
pub(super) struct Lookup {
    text: Arc<[Token]>,
    /// Tokens of the next guess.
    width: usize,
    /// Where the last guess began in the text; of two places that fit, the later one follows on.
    from: usize,
}

impl Lookup {
    pub(super) fn new(text: Arc<[Token]>) -> Self {
        Self { text, width: FIRST, from: 0 }
    }

    /// What may follow: the text after the place that is most like the end of the answer.
    pub(super) fn guess(&mut self, answer: &[Token], most: usize) -> Vec<Token> {
        let like = |end: usize| {
            let before = self.text[..end].iter().rev();
            before.zip(answer.iter().rev()).take_while(|(a, b)| a == b).count()
        };
        let place = |end: usize| (like(end), end >= self.from, std::cmp::Reverse(end));
        let best = (0..self.text.len()).max_by_key(|&end| place(end));
        let Some(from) = best.filter(|&end| answer.is_empty() || 0 < like(end)) else {
            return Vec::new();
        };
        self.from = from;
        let n = self.width.min(most).min(self.text.len() - from);
        self.text[from..from + n].to_vec()
    }

    /// Right guesses make the next one longer.
    pub(super) fn learn(&mut self, guessed: usize, right: usize) {
        self.width = if right < guessed { right.max(NARROWEST) } else { 2 * self.width };
        self.width = self.width.min(WIDEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<Token> {
        text.bytes().map(|byte| Token(i32::from(byte))).collect()
    }

    fn lookup(text: &str) -> Lookup {
        Lookup::new(tokens(text).into())
    }

    #[test]
    fn an_answer_is_expected_to_begin_like_the_text() {
        assert_eq!(lookup("abcdefghij").guess(&[], 100), tokens("abcdefgh"));
        assert_eq!(lookup("abc").guess(&[], 2), tokens("ab"));
        assert!(lookup("").guess(&[], 9).is_empty());
    }

    #[test]
    fn the_longest_end_that_is_known_decides() {
        assert_eq!(lookup("1 + 2 = 3; 4 + 2 = 6").guess(&tokens("so 4 + 2"), 4), tokens(" = 6"));
        assert!(lookup("abc").guess(&tokens("xyz"), 9).is_empty());
        assert!(lookup("abc").guess(&tokens("abc"), 9).is_empty(), "nothing follows its end");
    }

    #[test]
    fn of_equal_places_the_next_one_forward_is_taken() {
        let mut lookup = lookup("a1 a2 a3 ");
        assert_eq!(lookup.guess(&tokens("x "), 1), tokens("a"));
        lookup.from = 4;
        assert_eq!(lookup.guess(&tokens("x "), 2), tokens("a3"));
    }

    #[test]
    fn right_guesses_grow_and_wrong_ones_shrink() {
        let mut lookup = lookup(&"x".repeat(200));
        lookup.learn(8, 8);
        assert_eq!(lookup.guess(&[], 100).len(), 16);
        lookup.learn(16, 5);
        assert_eq!(lookup.guess(&[], 100).len(), 5);
        lookup.learn(5, 0);
        assert_eq!(lookup.guess(&[], 100).len(), NARROWEST);
        for _ in 0..9 {
            lookup.learn(9, 9);
        }
        assert_eq!(lookup.guess(&[], 100).len(), WIDEST);
    }
}
