//! What the daemon thinks of an answer, in words. Pure. Used by `chat`.

use super::reply::{Candidate, Exchange};
use crate::reflect::{passes, scalar};
use store::Assessment;

/// The reflection on the served answer, as far as it has come.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Verdict {
    /// One line of scores; `None`: not yet judged.
    pub(super) scores: Option<String>,
    /// What falls short.
    pub(super) critique: Option<String>,
    /// A refinement that is judged to be better.
    pub(super) better: Option<String>,
    /// Nothing more is to be expected.
    pub(super) is_final: bool,
}

/// Reads the verdict from a stored exchange.
pub(super) fn verdict(exchange: &Exchange) -> Verdict {
    let Some(served) = served(exchange) else {
        return Verdict { scores: None, critique: None, better: None, is_final: false };
    };
    let refinements = || {
        let is_judged = |candidate: &&Candidate| !candidate.assessments.is_empty();
        exchange.candidates.iter().filter(|c| c.parent == Some(served.id)).filter(is_judged)
    };
    let value = |candidate: &Candidate| scalar(&candidate.assessments);
    let is_judged = !served.assessments.is_empty();
    Verdict {
        scores: is_judged.then(|| scores(&served.assessments)),
        critique: refinements().find_map(|candidate| candidate.critique.clone()),
        better: refinements()
            .max_by(|a, b| value(a).total_cmp(&value(b)))
            .filter(|best| value(served) < value(best))
            .map(|best| best.text.clone()),
        is_final: is_judged && (passes(&served.assessments) || refinements().next().is_some()),
    }
}

/// The answer that the client got.
pub(super) fn served(exchange: &Exchange) -> Option<&Candidate> {
    exchange.candidates.iter().find(|candidate| Some(candidate.id) == exchange.served)
}

/// `clarity +0.91, arithmetic -0.40 (falls short)`.
fn scores(assessments: &[Assessment]) -> String {
    let score = |assessment: &Assessment| {
        let short = if assessment.passes { "" } else { " (falls short)" };
        format!("{} {:+.2}{short}", assessment.aspect, assessment.value())
    };
    assessments.iter().map(score).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::{CandidateId, ExchangeId};

    fn candidate(id: i64, parent: Option<i64>, p_best: Option<f32>) -> Candidate {
        Candidate {
            id: CandidateId(id),
            parent: parent.map(CandidateId),
            text: format!("answer {id}"),
            critique: parent.map(|_| "the sum is wrong".to_owned()),
            assessments: p_best.into_iter().map(assessment).collect(),
        }
    }

    fn assessment(p_best: f32) -> Assessment {
        Assessment {
            aspect: "arithmetic".into(),
            rubric_version: String::new(),
            judge: String::new(),
            levels: [1.0 - p_best, 0.0, p_best],
            mass: 1.0,
            weight: 1.0,
            passes: 0.5 < p_best,
            reason: None,
        }
    }

    fn of(candidates: Vec<Candidate>) -> Verdict {
        verdict(&Exchange { id: ExchangeId(1), served: Some(CandidateId(1)), candidates })
    }

    #[test]
    fn an_answer_that_is_not_judged_yet_has_no_verdict() {
        let verdict = of(vec![candidate(1, None, None)]);
        assert_eq!((verdict.scores, verdict.is_final), (None, false));
    }

    #[test]
    fn an_answer_that_passes_is_final() {
        let verdict = of(vec![candidate(1, None, Some(0.75))]);
        assert_eq!(verdict.scores.as_deref(), Some("arithmetic +0.50"));
        assert_eq!((verdict.critique, verdict.better, verdict.is_final), (None, None, true));
    }

    #[test]
    fn an_answer_that_falls_short_waits_for_its_critique() {
        let verdict = of(vec![candidate(1, None, Some(0.25))]);
        assert_eq!(verdict.scores.as_deref(), Some("arithmetic -0.50 (falls short)"));
        assert!(!verdict.is_final);
    }

    #[test]
    fn only_a_refinement_with_a_higher_score_is_called_better() {
        let better =
            |p| of(vec![candidate(1, None, Some(0.25)), candidate(2, Some(1), Some(p))]).better;
        assert_eq!(better(0.75).as_deref(), Some("answer 2"));
        assert_eq!(better(0.125), None);
    }
}
