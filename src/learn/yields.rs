//! What stored answers come to, in numbers, for an owner who asks why there is nothing to learn. Pure:
//! exchanges in, counts out. Used by `material`.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::worth;
use config::VERIFIER;
use store::{Assessment, Exchange};

/// Reasons shown to a person, most frequent first.
const SHOWN: usize = 3;

/// What the stored answers come to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Yield {
    /// Answers of the model that somebody has judged.
    pub answers: usize,
    /// Of these, the good ones.
    pub passing: usize,
    /// Why the others are not, with the number of answers; one may have several reasons.
    pub refusals: BTreeMap<String, Refused>,
}

/// Answers refused for the same reason, but for the numbers in it.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Refused {
    /// How many.
    pub answers: usize,
    /// The reason as the first of them got it.
    pub example: String,
}

impl Yield {
    /// Counts the judged answers of an exchange.
    pub(super) fn add(&mut self, exchange: &Exchange) {
        let answers = worth::answers(exchange).into_iter();
        for answer in answers.filter(|answer| !answer.is_edit()) {
            self.answers += 1;
            if answer.is_good {
                self.passing += 1;
                continue;
            }
            let counts = |said: &&Assessment| 0.0 < said.weight && !said.passes;
            for said in answer.candidate.assessments.iter().filter(counts) {
                let reason = match &said.reason {
                    Some(reason) if said.aspect == VERIFIER => reason.clone(),
                    _ => said.aspect.clone(),
                };
                let refused = self.refusals.entry(without_numbers(&reason)).or_default();
                refused.answers += 1;
                if refused.example.is_empty() {
                    refused.example = reason;
                }
            }
        }
    }
}

/// `0 of 412 answers pass: 391 x "3 sentences, 1 wanted", 21 x "readability"`.
impl fmt::Display for Yield {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answers, passing, refusals } = self;
        write!(formatter, "{passing} of {answers} answers pass")?;
        let mut refusals: Vec<&Refused> = refusals.values().collect();
        refusals.sort_by_key(|refused| std::cmp::Reverse(refused.answers));
        for (place, refused) in refusals.iter().take(SHOWN).enumerate() {
            let before = if place == 0 { ": " } else { ", " };
            write!(formatter, "{before}{} x {:?}", refused.answers, refused.example)?;
        }
        match refusals.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            n => write!(formatter, " and {n} other reasons"),
        }
    }
}

/// Numbers make no other reason: `3 sentences, 1 wanted` is as `4 sentences, 1 wanted`.
fn without_numbers(reason: &str) -> String {
    let mut text = String::new();
    for c in reason.chars() {
        if !c.is_ascii_digit() {
            text.push(c);
        } else if !text.ends_with('0') {
            text.push('0');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_that_differ_in_numbers_are_one() {
        let keys = ["3 sentences, 1 wanted", "14 sentences, 1 wanted"].map(without_numbers);
        assert_eq!(keys, ["0 sentences, 0 wanted", "0 sentences, 0 wanted"]);
    }

    #[test]
    fn the_commonest_reasons_come_first() {
        let refused = |answers, example: &str| Refused { answers, example: example.to_owned() };
        let refusals = [refused(2, "a"), refused(9, "b"), refused(1, "c"), refused(1, "d")];
        let refusals = refusals.into_iter().map(|it| (it.example.clone(), it)).collect();
        let found = Yield { answers: 13, passing: 0, refusals };
        let text = r#"0 of 13 answers pass: 9 x "b", 2 x "a", 1 x "c" and 1 other reasons"#;
        assert_eq!(found.to_string(), text);
    }
}
