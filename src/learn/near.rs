//! Which prompts are the same as known ones, or nearly: the same words, or most of their trigrams. Pure:
//! texts in, likeness out. Used by `held_out` and `aside`.
//!
//! A conversation is compared by what its user says: system texts and the model's words are not of the
//! prompt. As any of a user's turns may carry a known prompt in, each run of turns is compared with
//! the known conversations that have as many turns. Only known prompts that share one of a prompt's
//! rarest trigrams are looked at: two sets of which the smaller part differs cannot do without.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use sha2::{Digest as _, Sha256};

use crate::reflect::verify::normalized;
use prompt::{Message, Role};

/// Prompts with so large a part of their word trigrams in common (Jaccard) are near copies: a
/// numerator and a denominator.
const NEAR: (usize, usize) = (3, 5);

/// How a prompt is like a known one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Likeness {
    /// It is one of them, but for case and white space.
    Same,
    /// It says the same, or nearly the same.
    Near,
}

/// Known conversations, each as the turns of its user.
#[derive(Clone, Debug, Default)]
pub(super) struct NearIndex {
    by_length: BTreeMap<usize, Known>,
}

/// Those of one number of turns.
#[derive(Clone, Debug, Default)]
struct Known {
    texts: HashSet<[u8; 32]>,
    words: HashSet<[u8; 32]>,
    /// Of each conversation that has some, sorted.
    trigrams: Vec<Vec<u64>>,
    /// The places in `trigrams` that have a trigram.
    places: HashMap<u64, Vec<usize>>,
}

impl NearIndex {
    /// Takes a conversation in.
    pub(super) fn add(&mut self, turns: &[&str]) {
        if turns.is_empty() {
            return;
        }
        let known = self.by_length.entry(turns.len()).or_default();
        known.texts.insert(fingerprint(turns));
        let words = words(turns);
        if !known.words.insert(digest(&words)) {
            return;
        }
        let trigrams = trigrams(&words);
        for &trigram in &trigrams {
            known.places.entry(trigram).or_default().push(known.trigrams.len());
        }
        if !trigrams.is_empty() {
            known.trigrams.push(trigrams);
        }
    }

    /// How some turns in a row are like a known conversation.
    pub(super) fn find(&self, turns: &[&str]) -> Option<Likeness> {
        let windows = || {
            let of = |(&n, known)| turns.windows(n).map(move |turns| (turns, known));
            self.by_length.iter().flat_map(of)
        };
        if windows().any(|(turns, known): (&[&str], &Known)| known.has_text(turns)) {
            return Some(Likeness::Same);
        }
        windows().any(|(turns, known)| known.has_near(turns)).then_some(Likeness::Near)
    }
}

impl Known {
    fn has_text(&self, turns: &[&str]) -> bool {
        self.texts.contains(&fingerprint(turns))
    }

    fn has_near(&self, turns: &[&str]) -> bool {
        let words = words(turns);
        if self.words.contains(&digest(&words)) {
            return true;
        }
        let trigrams = trigrams(&words);
        let of = |trigram: &u64| self.places.get(trigram).map_or(&[][..], Vec::as_slice);
        let mut places: Vec<&[usize]> = trigrams.iter().map(of).collect();
        // What is shared of them is at least this, so one of the others and one more is shared too.
        let fewest = (trigrams.len() * NEAR.0).div_ceil(NEAR.1);
        places.sort_by_key(|places| places.len());
        places.truncate(trigrams.len() + 1 - fewest);
        let candidates: HashSet<usize> = places.into_iter().flatten().copied().collect();
        candidates.into_iter().any(|place| is_near(&self.trigrams[place], &trigrams))
    }
}

/// Both are sorted.
fn is_near(a: &[u64], b: &[u64]) -> bool {
    let shared = a.iter().filter(|trigram| b.binary_search(trigram).is_ok()).count();
    let all = a.len() + b.len() - shared;
    NEAR.0 * all <= NEAR.1 * shared
}

/// What the user says, turn by turn.
pub(super) fn user_turns(messages: &[Message]) -> Vec<&str> {
    let of_user = messages.iter().filter(|message| message.role == Role::User);
    of_user.map(|message| message.content.as_str()).collect()
}

/// Case and white space do not make another text.
pub(super) fn fingerprint(turns: &[&str]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for turn in turns {
        for word in turn.split_whitespace() {
            digest.update(word.to_lowercase());
            digest.update(b" ");
        }
        digest.update(b"\n");
    }
    digest.finalize().into()
}

/// What is said, whatever its spelling: one value for prompts that differ in compatibility forms
/// (NFKC), case, space and punctuation alone.
pub(super) fn hash_of_words(turns: &[&str]) -> [u8; 32] {
    digest(&words(turns))
}

/// The words without punctuation: around words, and inside those that have a letter (`1.5` is not
/// `15`). A text of signs alone is one word.
fn words(turns: &[&str]) -> Vec<String> {
    let mut words = Vec::new();
    for turn in turns {
        let normalized = normalized(turn);
        // Of `ß` and `ς` the lower case has two forms, the upper case one.
        let folded: String =
            normalized.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect();
        if folded.is_empty() {
            words.push(turn.trim().to_owned());
        }
        for word in folded.split_whitespace() {
            let has_letter = word.chars().any(char::is_alphabetic);
            let is_kept = |c: &char| !has_letter || c.is_alphanumeric() || "+#".contains(*c);
            push_words(&mut words, word.chars().filter(is_kept));
        }
    }
    words
}

/// Ideographs and kana stand without spaces, and each counts as a word.
fn push_words(words: &mut Vec<String>, characters: impl Iterator<Item = char>) {
    let is_word = |c| matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{20000}'..='\u{3ffff}');
    let mut word = String::new();
    for c in characters {
        if is_word(c) {
            words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
            words.push(c.to_string());
        } else {
            word.push(c);
        }
    }
    words.extend((!word.is_empty()).then_some(word));
}

fn digest(words: &[String]) -> [u8; 32] {
    Sha256::digest(words.join(" ")).into()
}

/// Each once, sorted; none of fewer than three words.
fn trigrams(words: &[String]) -> Vec<u64> {
    let hash = |words: &[String]| {
        let mut hasher = DefaultHasher::new();
        words.hash(&mut hasher);
        hasher.finish()
    };
    let mut trigrams: Vec<u64> = words.windows(3).map(hash).collect();
    trigrams.sort_unstable();
    trigrams.dedup();
    trigrams
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index(known: &[&str]) -> NearIndex {
        let mut index = NearIndex::default();
        for text in known {
            index.add(&[text]);
        }
        index
    }

    #[test]
    fn spelling_makes_no_other_prompt() {
        for (known, prompt) in [
            ("Where's my parcel?", "wheres   my PARCEL"),
            ("Turn on the Wi-Fi.", "“Turn on the WiFi”"),
            ("Ｗｈａｔ is ﬁne?", "what is fine!"),
            ("Die Straße, bitte", "die STRASSE bitte"),
            ("今日の天気は?", "今日の天気は。"),
        ] {
            assert_eq!(index(&[known]).find(&[prompt]), Some(Likeness::Near), "{prompt}");
        }
        assert_eq!(index(&["A  b?"]).find(&["a B?"]), Some(Likeness::Same));
    }

    #[test]
    fn short_prompts_and_signs_are_near_only_when_they_are_equal() {
        let index = index(&["Play music", "1.5 + 2", "👍", "C++"]);
        for near in ["play: music!", "1.5 + 2 ?", "👍 "] {
            assert!(index.find(&[near]).is_some(), "{near}");
        }
        for other in ["Stop music", "Play", "15 + 2", "1.5 2", "👎", "C", ""] {
            assert_eq!(index.find(&[other]), None, "{other}");
        }
    }

    #[test]
    fn prompts_are_near_from_three_fifths_of_common_trigrams_on() {
        // 8 words have 6 trigrams; another last word leaves 5 of 7.
        let index = index(&["a b c d e f g h"]);
        assert_eq!(index.find(&["a b c d e f g x"]), Some(Likeness::Near));
        // 5 words have 3: 2 of 4 are too few, and 3 of 5 with two words more are enough.
        let short = super::tests::index(&["a b c d e"]);
        assert_eq!(short.find(&["a b c d x"]), None);
        assert_eq!(short.find(&["a b c d e f g"]), Some(Likeness::Near));
        assert_eq!(short.find(&["a b c d e f g h"]), None);
    }

    #[test]
    fn turns_in_a_row_are_compared_with_conversations_of_as_many() {
        let mut index = NearIndex::default();
        index.add(&["turn on the light in the hall", "and now off again please"]);
        let (on, off) = ("turn on the light in the hall!", "And now off again");
        assert_eq!(index.find(&["hello", on, off, "thanks"]), Some(Likeness::Near));
        assert_eq!(index.find(&[on]), None);
        assert_eq!(index.find(&[on, "hello", off]), None);
    }

    /// As a slow comparison of all with all says.
    fn near_by_brute_force(a: &str, b: &str) -> bool {
        let set = |text: &str| -> HashSet<Vec<String>> {
            words(&[text]).windows(3).map(<[String]>::to_vec).collect()
        };
        let (a_set, b_set) = (set(a), set(b));
        let all = a_set.union(&b_set).count();
        let shared = a_set.intersection(&b_set).count();
        words(&[a]) == words(&[b]) || 0 < all && 0.6 <= shared as f64 / all as f64
    }

    proptest! {
        #[test]
        fn the_index_finds_what_comparing_all_with_all_finds(
            known in proptest::collection::vec("[abc]( [abc]){0,9}", 0..12),
            prompt in "[abc]( [abc]){0,9}",
        ) {
            let texts: Vec<&str> = known.iter().map(String::as_str).collect();
            let expected = known.iter().any(|text| near_by_brute_force(text, &prompt));
            prop_assert_eq!(index(&texts).find(&[&prompt]).is_some(), expected);
        }

        #[test]
        fn any_text_is_near_to_itself(text in ".*") {
            prop_assert!(index(&[&text]).find(&[&text]).is_some());
        }
    }

    /// 10,000 prompts of one template against 1,000 known ones, which share most of their trigrams.
    #[test]
    fn many_prompts_of_one_template_are_compared_quickly() {
        let text = |i: usize| {
            let rest = format!("w{} x{} y{} z{i}", i % 7, i % 11, i % 13);
            format!(
                "please turn the lamp in the room to {rest} of this great house at once {i} a{i} b{i}"
            )
        };
        let mut index = NearIndex::default();
        for i in 0..1000 {
            index.add(&[&text(i)]);
        }
        let found = (1000..11_000).filter(|&i| index.find(&[&text(i)]).is_some()).count();
        assert_eq!(found, 0);
        let compared = known_candidates(&index, &text(20_000));
        assert!(compared < 200, "{compared} of 1000 texts are compared");
    }

    fn known_candidates(index: &NearIndex, text: &str) -> usize {
        let known = &index.by_length[&1];
        let trigrams = trigrams(&words(&[text]));
        let fewest = (trigrams.len() * NEAR.0).div_ceil(NEAR.1);
        let mut places: Vec<usize> =
            trigrams.iter().map(|it| known.places.get(it).map_or(0, Vec::len)).collect();
        places.sort_unstable();
        places.iter().take(trigrams.len() + 1 - fewest).sum()
    }
}
