//! Drafts how an answer goes on that copies much of a known text: a refinement its parent. The
//! draft is evaluated together with the last token, and what the model would not have said is
//! taken back, so that it changes the speed of an answer and nothing else (prompt lookup: Saxena,
//! 2023; speculative decoding: Leviathan and others, 2023). Pure. Used by `core/request.rs`.

use std::sync::Arc;

use super::Token;

/// Tokens of a draft at most. A step of 48 tokens costs as much as 11 steps of one on a small
/// processor, one of 16 as much as 5, and one of 4 as much as 3: short drafts do not pay.
pub(super) const WIDEST: usize = 47;
/// Tokens of the first draft, for most refinements begin like their parent, and of the draft after
/// a wrong one. With the token before it, it fills the rows that matrix kernels work on at once.
const NARROWEST: usize = 15;
/// So many tokens must be alike before the next draft once one was wrong.
const EVIDENCE: usize = 2;

/// One answer's drafts.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    text: Arc<[Token]>,
    /// For each place in the text, how many tokens before it are those at the end of the answer. It
    /// goes on from token to token, so that a text that repeats itself costs no more than another.
    alike: Vec<usize>,
    /// Tokens of the answer that are counted in it.
    n_seen: usize,
    /// Tokens of the next draft.
    width: usize,
    /// Where the last draft began in the text; of two places that fit, the later one follows on.
    from: usize,
    /// Tokens of the answer that must be found in the text.
    evidence: usize,
}

impl Draft {
    pub(super) fn new(text: Arc<[Token]>) -> Self {
        Self { alike: vec![0; text.len()], n_seen: 0, text, width: NARROWEST, from: 0, evidence: 1 }
    }

    /// What may follow: the text after the place that is most like the end of the answer, which only
    /// grows.
    pub(super) fn next(&mut self, answer: &[Token], most: usize) -> Vec<Token> {
        for &token in &answer[self.n_seen.min(answer.len())..] {
            self.see(token);
        }
        self.n_seen = answer.len();
        let place = |end: usize| (self.alike[end], end >= self.from, std::cmp::Reverse(end));
        let best = (0..self.text.len()).max_by_key(|&end| place(end));
        let known = |end: usize| answer.is_empty() || self.evidence <= self.alike[end];
        let Some(from) = best.filter(|&end| known(end)) else {
            return Vec::new();
        };
        self.from = from;
        let n = self.width.min(most).min(self.text.len() - from);
        self.text[from..from + n].to_vec()
    }

    /// The answer goes on with this token.
    fn see(&mut self, token: Token) {
        // From the end, because a place follows from the one before it.
        for end in (1..self.text.len()).rev() {
            self.alike[end] =
                if is_same(self.text[end - 1], token) { self.alike[end - 1] + 1 } else { 0 };
        }
    }

    /// Right drafts make the next one longer.
    pub(super) fn learn(&mut self, drafted: usize, right: usize) {
        let is_right = right == drafted;
        self.width = if is_right { WIDEST.min(2 * self.width + 1) } else { NARROWEST };
        self.evidence = if is_right { 1 } else { EVIDENCE };
    }
}

fn is_same(a: Token, b: Token) -> bool {
    #[cfg(test)]
    tests::COMPARED.set(tests::COMPARED.get() + 1);
    a == b
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// Tokens that were compared.
        pub(super) static COMPARED: Cell<usize> = const { Cell::new(0) };
    }

    /// Each token of an answer is compared once with each of the text, whatever they say.
    #[test]
    fn a_text_that_repeats_itself_costs_no_more_than_another() {
        let compared = |text: &str| {
            let mut draft = draft(text);
            let before = COMPARED.get();
            let answer = tokens(text);
            for n in 0..=answer.len() {
                draft.next(&answer[..n], 4);
            }
            COMPARED.get() - before
        };
        let varied: String = ('!'..='~').cycle().take(400).collect();
        let (one, other) = (compared(&"x".repeat(400)), compared(&varied));
        assert_eq!(one, other);
        assert!((1..=400 * 400).contains(&one), "{one} comparisons");
    }

    fn tokens(text: &str) -> Vec<Token> {
        text.bytes().map(|byte| Token(i32::from(byte))).collect()
    }

    fn draft(text: &str) -> Draft {
        Draft::new(tokens(text).into())
    }

    #[test]
    fn an_answer_is_expected_to_begin_like_the_text() {
        let text = "abcdefghijklmnopqrstuvwxyz";
        assert_eq!(draft(text).next(&[], 100), tokens("abcdefghijklmno"));
        assert_eq!(draft(text).next(&[], 2), tokens("ab"));
        assert!(draft("").next(&[], 9).is_empty());
    }

    #[test]
    fn the_longest_end_that_is_known_decides() {
        assert_eq!(draft("1 + 2 = 3; 4 + 2 = 6").next(&tokens("so 4 + 2"), 4), tokens(" = 6"));
        assert!(draft("abc").next(&tokens("abc"), 9).is_empty(), "nothing follows its end");
    }

    #[test]
    fn after_a_wrong_draft_two_tokens_must_be_alike() {
        let mut draft = draft("abcdef");
        draft.learn(15, 3);
        assert!(draft.next(&tokens("xyz"), 9).is_empty());
        assert!(draft.next(&tokens("xyza"), 9).is_empty());
        assert_eq!(draft.next(&tokens("xyzab"), 9), tokens("cdef"));
    }

    #[test]
    fn of_equal_places_the_next_one_forward_is_taken() {
        let mut draft = draft("a1 a2 a3 ");
        assert_eq!(draft.next(&tokens("x "), 1), tokens("a"));
        draft.from = 4;
        assert_eq!(draft.next(&tokens("x "), 2), tokens("a3"));
    }

    #[test]
    fn right_drafts_grow_and_a_wrong_one_is_followed_by_a_short_one() {
        let mut draft = draft(&"x".repeat(200));
        let mut width = |drafted, right| {
            draft.learn(drafted, right);
            draft.next(&tokens("xx"), 100).len()
        };
        assert_eq!(width(15, 15), 31);
        assert_eq!(width(31, 31), WIDEST);
        assert_eq!(width(WIDEST, WIDEST), WIDEST);
        assert_eq!(width(WIDEST, 46), NARROWEST);
    }
}
