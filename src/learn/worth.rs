//! What each answer of a prompt is worth to training: the judge's word, and the owner's, which
//! outranks it. Pure: an exchange in, answers out. Used by `pairs` and `groups`.
//!
//! The owner's words are read in their order, and the newest counts:
//! - A thumb down makes an answer a bad one, a thumb up a good one, whatever the judge says; their
//!   scalars are the ends of the scale. A rating of 0 takes the thumb back.
//! - A rating of one aspect takes the place of the judge's level. One below +1 also takes back a
//!   thumb up that is older.
//! - An edit is a good answer of its own, and like a thumb down on what it edits. Of several edits
//!   of one answer the newest counts.
//! - What a prompt's verifier names whole is an example that takes the place of the owner's; what it named
//!   before is neither good nor bad.
//! - A verifier that counts is as sure as the owner: what the owner praises and it refuses is
//!   neither good nor bad, and is left out.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::reflect::{passes, scalar};
use config::{BY_REFERENCE, Positives, REWARD, VERIFIER};
use store::{Assessment, Author, Candidate, CandidateId, Exchange, Expected, Standard};

/// An answer that somebody has judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer<'a> {
    pub(super) candidate: &'a Candidate,
    /// Weighted mean of the aspects, or the end of the scale where the owner has spoken; -1 to 1.
    pub(super) scalar: f64,
    /// It passes every aspect, or the owner says so.
    pub(super) is_good: bool,
    /// The owner has spoken of the whole answer.
    pub(super) by_owner: bool,
}

impl Answer<'_> {
    /// An answer that the owner wrote.
    pub(super) fn is_edit(&self) -> bool {
        self.candidate.author == Author::Owner
    }
    /// What programs that count say of it: verifiers, and the comparison with a reference where nothing
    /// else decides; `None`: none of them has spoken.
    pub(super) fn is_verified(&self) -> Option<bool> {
        verified(&self.candidate.assessments)
    }
    /// Whether it may be what is learned. By the scalar alone the caller compares two.
    pub(super) fn may_be_chosen(&self, positives: Positives) -> bool {
        match positives {
            Positives::Veto => self.is_good,
            Positives::Best => self.is_good || !self.by_owner,
        }
    }
    /// Whether it may be what is unlearned.
    pub(super) fn may_be_rejected(&self, positives: Positives) -> bool {
        match positives {
            Positives::Veto => !self.is_good,
            Positives::Best => !self.is_good || !self.by_owner,
        }
    }
}

/// The judged answers in the order of their making.
pub(super) fn answers(exchange: &Exchange) -> Vec<Answer<'_>> {
    // Scores of two versions of judge or rubrics are not compared; the newest counts.
    // Of what the owner wrote only a verifier has spoken.
    let own = exchange.candidates.iter().filter(|it| it.author == Author::Model);
    let newest = own.rev().map(standards).find(|it| !it.is_empty());
    let counts = |answer: &Answer<'_>| {
        let by = standards(answer.candidate);
        answer.by_owner || by.is_empty() || Some(by) == newest
    };
    let found = standing(exchange).into_iter().filter_map(|(_, answer)| answer);
    found.filter(counts).collect()
}

/// What is said by now of each answer, by whichever version; `None`: it is neither good nor bad. An
/// answer of which nobody has said anything is not there.
pub(super) fn standing(exchange: &Exchange) -> Vec<(CandidateId, Option<Answer<'_>>)> {
    let words = words(exchange);
    let silence = Words::default();
    let (own, named): (Vec<_>, Vec<_>) = edits(exchange).partition(|it| it.expected.is_none());
    let newest_edits: HashMap<_, _> =
        own.into_iter().chain(named).map(|it| (it.parent, it.id)).collect();
    let spoken_of = |it: &&Candidate| !it.assessments.is_empty() || words.contains_key(&it.id);
    let is_newest =
        |it: &Candidate| it.author == Author::Model || newest_edits.get(&it.parent) == Some(&it.id);
    let mut found = Vec::new();
    for candidate in exchange.candidates.iter().filter(spoken_of) {
        let said = words.get(&candidate.id).unwrap_or(&silence);
        found.push((candidate.id, is_newest(candidate).then(|| weigh(candidate, said)).flatten()));
    }
    found
}

/// What counts in a candidate's scalar is judged by these: a reward model's number too, which has no
/// weight. Where a reference has spoken in a judge's place it counts as the judge.
fn standards(candidate: &Candidate) -> BTreeSet<Standard> {
    let counts = |said: &&Assessment| said.weight > 0.0 || said.aspect == REWARD;
    let standard = |said: &Assessment| {
        let mut standard = said.standard();
        if let Some(judge) = standard.judge.strip_suffix(BY_REFERENCE) {
            standard.judge = judge.to_owned();
        }
        standard
    };
    candidate.assessments.iter().filter(counts).map(standard).collect()
}

/// Edits and examples that count.
fn edits(exchange: &Exchange) -> impl Iterator<Item = &Candidate> {
    let counts =
        |it: &&Candidate| it.author == Author::Owner && it.expected != Some(Expected::Before);
    exchange.candidates.iter().filter(counts)
}

/// What the owner last said of one answer.
#[derive(Debug, Default)]
struct Words<'a> {
    /// -1 or 1.
    thumb: Option<i8>,
    aspects: BTreeMap<&'a str, i8>,
}

fn words(exchange: &Exchange) -> HashMap<CandidateId, Words<'_>> {
    let mut words: HashMap<CandidateId, Words<'_>> = HashMap::new();
    for edit in edits(exchange) {
        words.entry(edit.id).or_default().thumb = Some(1);
    }
    for word in &exchange.feedback {
        let Some(candidate) = word.candidate else { continue };
        let said = words.entry(candidate).or_default();
        if word.edit.is_some() {
            said.thumb = Some(-1);
        }
        match (word.rating, &word.aspect) {
            (Some(rating), None) => said.thumb = Some(rating).filter(|&rating| rating != 0),
            (Some(rating), Some(aspect)) => {
                said.aspects.insert(aspect, rating);
                said.thumb = said.thumb.filter(|&thumb| thumb < 1 || rating == 1);
            }
            (None, _) => {}
        }
    }
    words
}

/// `None`: nobody has judged it, or owner and verifier disagree.
fn weigh<'a>(candidate: &'a Candidate, words: &Words<'_>) -> Option<Answer<'a>> {
    let answer = |scalar: f64, is_good| {
        let by_owner = words.thumb.is_some();
        scalar.is_finite().then_some(Answer { candidate, scalar, is_good, by_owner })
    };
    match words.thumb {
        Some(..0) => answer(-1.0, false),
        Some(_) if verified(&candidate.assessments) == Some(false) => None,
        Some(_) => answer(1.0, true),
        None => {
            let assessments = corrected(&candidate.assessments, &words.aspects);
            let is_judged = assessments.iter().any(|assessment| 0.0 < assessment.weight);
            is_judged.then(|| answer(scalar(&assessments), passes(&assessments))).flatten()
        }
    }
}

/// Whether all verifiers that count say yes; `None`: there are none.
fn verified(assessments: &[Assessment]) -> Option<bool> {
    let counts = |it: &&Assessment| it.aspect == VERIFIER && 0.0 < it.weight;
    assessments.iter().filter(counts).map(|verifier| verifier.passes).reduce(|a, b| a && b)
}

/// The judge's assessments with the owner's levels in their places.
fn corrected(assessments: &[Assessment], ratings: &BTreeMap<&str, i8>) -> Vec<Assessment> {
    let mut corrected = assessments.to_vec();
    for (&aspect, &rating) in ratings {
        let levels = match rating {
            ..0 => [1.0, 0.0, 0.0],
            0 => [0.0, 1.0, 0.0],
            1.. => [0.0, 0.0, 1.0],
        };
        let passes = rating == 1;
        match corrected.iter_mut().find(|assessment| assessment.aspect == aspect) {
            Some(judged) => {
                judged.levels = levels;
                judged.passes = passes;
            }
            None => corrected.push(Assessment {
                aspect: aspect.to_owned(),
                rubric_version: String::new(),
                judge: "owner".to_owned(),
                levels,
                mass: 1.0,
                weight: 1.0,
                passes,
                reason: None,
            }),
        }
    }
    corrected
}

#[cfg(test)]
mod tests;
