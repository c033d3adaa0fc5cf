//! Labelled answers: from the agent's file, from what the owner said of stored answers, and from
//! verifiers. Pure. Used by `meter` and `attack`.

use std::collections::BTreeMap;

use crate::reflect::question;
use config::{ProbeLine, VERIFIER};
use engine::Generation;
use store::{Assessment, Candidate, Exchange, Expected, Feedback, Standard};

/// Where a label comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// The agent's file.
    File,
    /// The owner's ratings and edits.
    Feedback,
    /// A verifier.
    Verifier,
}

/// One answer whose worth is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// The same in the next measurement.
    pub id: String,
    /// As the judge sees it.
    pub question: String,
    /// What was answered.
    pub answer: String,
    /// Shown to the judge.
    pub reference: Option<String>,
    /// Whether the answer as a whole is good.
    pub good: Option<bool>,
    /// Levels of aspects: -1, 0 or 1.
    pub levels: BTreeMap<String, i8>,
    /// Where the label comes from.
    pub origin: Origin,
    /// The weights that wrote it, where they are known.
    pub generation: Option<Generation>,
    /// What the present judge has said of it already; empty: it must be asked.
    pub known: Vec<Assessment>,
}

impl Probe {
    /// Whether the label says that something is wrong with it.
    pub fn is_bad(&self) -> bool {
        self.good == Some(false) || self.good.is_none() && self.levels.values().any(|&l| l < 0)
    }
}

/// The probes of a file.
pub(super) fn of_file(lines: Vec<ProbeLine>) -> Vec<Probe> {
    let probe = |line: ProbeLine| Probe {
        id: format!("file {}", line.id),
        question: line.prompt,
        answer: line.answer,
        reference: line.reference,
        good: line.good,
        levels: line.aspects,
        origin: Origin::File,
        generation: None,
        known: Vec::new(),
    };
    lines.into_iter().map(probe).collect()
}

/// What one stored exchange tells. The owner's word outranks a verifier's, a later word an earlier
/// one. A rating of 0 is no label of the whole answer, and the middle level of an aspect.
pub(super) fn of_exchange(
    exchange: &Exchange,
    feedback: &[Feedback],
    standards: &[Standard],
) -> Vec<Probe> {
    let question = question(&exchange.messages);
    let probe = |id: String, answer: &str, origin| Probe {
        id: format!("exchange {} {id}", exchange.id),
        question: question.clone(),
        answer: answer.to_owned(),
        reference: exchange.reference.clone(),
        good: None,
        levels: BTreeMap::new(),
        origin,
        generation: None,
        known: Vec::new(),
    };
    let mut probes = Vec::new();
    // The owner's own examples stand beside themselves as the reference. The verifier that named others before
    // has said so of another right answer.
    let counts = |it: &&Candidate| match it.expected {
        Some(expected) => expected == Expected::Now,
        None => !it.is_example(),
    };
    for candidate in exchange.candidates.iter().filter(counts) {
        let mut labelled =
            probe(format!("candidate {}", candidate.id), &candidate.text, Origin::Verifier);
        labelled.generation = Some(candidate.generation);
        labelled.known = known(candidate, standards);
        let verified = candidate.assessments.iter().find(|said| said.aspect == VERIFIER);
        labelled.good = verified.map(|said| said.passes);
        for word in feedback {
            let Some(rating) = word.rating else { continue };
            if word.candidate.or(exchange.served) != Some(candidate.id) {
                continue;
            }
            labelled.origin = Origin::Feedback;
            match &word.aspect {
                Some(aspect) => drop(labelled.levels.insert(aspect.clone(), rating)),
                None if rating == 0 => {}
                None => labelled.good = Some(0 < rating),
            }
        }
        if labelled.good.is_some() || !labelled.levels.is_empty() {
            probes.push(labelled);
        }
    }
    // What the owner wrote is good; what it was written over may still have been good enough.
    if let Some(edit) = feedback.iter().rev().find_map(|word| word.edit.as_ref()) {
        let edited = probe("edit".to_owned(), edit, Origin::Feedback);
        probes.push(Probe { good: Some(true), ..edited });
    }
    probes
}

/// The stored assessments, when they are by the present standards and by all of them.
fn known(candidate: &Candidate, standards: &[Standard]) -> Vec<Assessment> {
    let by = |standard: &Standard| {
        candidate.assessments.iter().find(|said| said.standard() == *standard).cloned()
    };
    standards.iter().map(by).collect::<Option<_>>().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::{FinishReason, Sampling};
    use prompt::{Message, Role};
    use store::{Author, CandidateId, ExchangeId, Source};

    fn said(aspect: &str, right: bool) -> Assessment {
        Assessment {
            aspect: aspect.into(),
            rubric_version: "1".into(),
            judge: "j".into(),
            levels: if right { [0.0, 0.0, 1.0] } else { [1.0, 0.0, 0.0] },
            mass: 1.0,
            weight: 1.0,
            passes: right,
            reason: None,
        }
    }

    fn exchange(verified: [bool; 2]) -> Exchange {
        let candidate = |id, right| Candidate {
            author: Author::Model,
            id: CandidateId(id),
            parent: None,
            generation: Generation(3),
            text: format!("answer {id}"),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            sampling: Sampling::default(),
            finish: FinishReason::Stop,
            critique: None,
            critic: None,
            shots: Vec::new(),
            expected: None,
            assessments: vec![said("kind", true), said(VERIFIER, right)],
        };
        Exchange {
            id: ExchangeId(7),
            created_ms: 0,
            agent: "a".into(),
            source: Source::Chat,
            messages: vec![Message { role: Role::User, content: "why?".into() }],
            prompt_tokens: Vec::new(),
            reference: None,
            verifier: None,
            aspect_choice: None,
            served: Some(CandidateId(1)),
            candidates: vec![candidate(1, verified[0]), candidate(2, verified[1])],
            feedback: Vec::new(),
        }
    }

    fn word(rating: Option<i8>, aspect: Option<&str>, edit: Option<&str>) -> Feedback {
        Feedback {
            exchange: ExchangeId(7),
            candidate: None,
            rating,
            aspect: aspect.map(str::to_owned),
            edit: edit.map(str::to_owned),
        }
    }

    #[test]
    fn what_a_verifier_names_no_longer_is_no_label() {
        let mut exchange = exchange([true, true]);
        exchange.candidates[0].expected = Some(Expected::Before);
        exchange.candidates[1].expected = Some(Expected::Now);
        let probes = of_exchange(&exchange, &[], &[]);
        let answers: Vec<_> = probes.iter().map(|probe| probe.answer.as_str()).collect();
        assert_eq!(answers, ["answer 2"]);
        // Nor is an example of the owner's own.
        exchange.candidates[1] =
            Candidate { author: Author::Owner, expected: None, ..exchange.candidates[1].clone() };
        assert!(of_exchange(&exchange, &[], &[]).is_empty());
    }

    #[test]
    fn the_owner_outranks_the_verifier_and_the_last_word_counts() {
        let feedback = [
            word(Some(1), None, None),
            word(Some(-1), None, Some("better")),
            word(Some(0), Some("kind"), None),
        ];
        let probes = of_exchange(&exchange([true, false]), &feedback, &[]);
        let labels: Vec<_> = probes.iter().map(|p| (p.good, p.origin, &*p.answer)).collect();
        assert_eq!(
            labels,
            [
                (Some(false), Origin::Feedback, "answer 1"),
                (Some(false), Origin::Verifier, "answer 2"),
                (Some(true), Origin::Feedback, "better"),
            ]
        );
        assert_eq!(probes[0].levels["kind"], 0);
        assert_eq!(probes[0].generation, Some(Generation(3)));
    }

    #[test]
    fn stored_scores_are_used_only_when_they_are_by_the_present_standards() {
        let standard = |version: &str| Standard {
            aspect: "kind".into(),
            judge: "j".into(),
            rubric_version: version.into(),
        };
        let known = |standards: &[Standard]| {
            of_exchange(&exchange([true, false]), &[], standards)[0].known.len()
        };
        assert_eq!((known(&[standard("1")]), known(&[standard("2")])), (1, 0));
        let other = Standard { aspect: "true".into(), ..standard("1") };
        assert_eq!(known(&[standard("1"), other]), 0);
    }
}
