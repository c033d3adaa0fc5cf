//! What a measurement of a judge says: one row an aspect, one for the whole answer. Pure: answers
//! with label and score in, numbers with intervals out. Used by `meter`, `standing` and whoever
//! shows it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::bar::Calibration;
use super::probes::{Origin, Probe};
use crate::reflect::scalar;
use engine::Generation;
use statistics::{self, Estimate, Judged, auc_estimate, kappa, partial_spearman};
use store::Assessment;

/// The name of the row on whole answers.
pub(super) const WHOLE: &str = "whole answer";
/// Own and other answers of one label that a comparison needs.
const MIN_PER_SIDE: usize = 5;

/// How good an agent's judge is.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Report {
    /// The agent's name.
    pub agent: String,
    /// Who judged.
    pub judge: String,
    /// Of all rubrics together.
    pub version: String,
    /// Unix milliseconds.
    pub created_ms: i64,
    /// Labelled answers by where their labels come from.
    pub sources: Sources,
    /// Labelled answers that the judge could not read, because they are too long.
    pub unjudged: usize,
    /// Aspects that labels name and the agent does not have.
    pub unknown_aspects: Vec<String>,
    /// The whole answer, then each aspect in the agent's order.
    pub rows: Vec<Row>,
}

/// See [`Report::sources`].
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Sources {
    /// The agent's file of probes.
    pub file: usize,
    /// The owner's feedback.
    pub feedback: usize,
    /// Verifiers.
    pub verifier: usize,
}

/// How good the judge is at one thing. What cannot be told is absent.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Row {
    /// The aspect, or `whole answer`.
    pub name: String,
    /// The bar in force; the whole answer has none of its own.
    pub pass: Option<f64>,
    /// Labels that say good.
    pub n_good: usize,
    /// Labels that say bad.
    pub n_bad: usize,
    /// Share of bad answers that pass.
    pub false_accept: Option<Estimate>,
    /// Share of good answers that do not pass.
    pub false_reject: Option<Estimate>,
    /// Chance that a good answer scores higher than a bad one.
    pub auc: Option<Estimate>,
    /// Cohen's kappa of verdict and label.
    pub kappa: Option<Estimate>,
    /// Partial Spearman correlation of score and length, the label held fixed.
    pub length_bias: Option<Estimate>,
    /// By how much own answers score higher than others of the same label.
    pub self_preference: Option<Estimate>,
    /// What the order of the labels does.
    pub position_bias: Option<PositionBias>,
    /// What has changed since the last report of this version.
    pub drift: Option<Drift>,
    /// The bar that calibration would choose.
    pub calibration: Option<Calibration>,
}

/// The same answers judged with the levels in the opposite order.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct PositionBias {
    /// Mean change of p(+1) - p(-1).
    pub change: Estimate,
    /// Mean absolute change.
    pub absolute: f64,
    /// Share of verdicts that change.
    pub flips: Estimate,
}

/// Against the report before.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Drift {
    /// When that was, Unix milliseconds.
    pub since_ms: i64,
    /// Answers that both have judged.
    pub n: usize,
    /// Mean change of their scores.
    pub mean: f64,
    /// Largest absolute change.
    pub largest: f64,
    /// Change of the area under the curve, on all answers.
    pub auc: Option<f64>,
}

/// Scores by probe and row, for the drift until the next report.
pub(super) type Scores = BTreeMap<String, BTreeMap<String, f64>>;

/// A probe with what the judge said of it; the verifier's word is not among it.
#[derive(Clone, Debug)]
pub(super) struct Answered {
    pub(super) probe: Probe,
    /// One for each of the agent's aspects, in its order.
    pub(super) said: Vec<Assessment>,
}

/// One label with its score.
#[derive(Clone, Debug)]
pub(super) struct Observation<'a> {
    pub(super) id: &'a str,
    pub(super) judged: Judged,
    length: f64,
    is_own: bool,
}

/// The aspects' names and bars, in the agent's order.
pub(super) type Bars<'a> = [(&'a str, f64)];

/// The whole answer, then each aspect. `own`: the generation whose answers are the judge's own.
pub(super) fn observations<'a>(
    answered: &'a [Answered],
    bars: &Bars<'_>,
    own: Generation,
) -> Vec<Vec<Observation<'a>>> {
    let observation = |it: &'a Answered, judged| Observation {
        id: &it.probe.id,
        judged,
        length: it.probe.answer.chars().count() as f64,
        is_own: it.probe.generation == Some(own),
    };
    let meets = |(said, (_, bar)): (&Assessment, &(&str, f64))| *bar <= f64::from(said.levels[2]);
    let whole = answered.iter().filter_map(|it| {
        let all_known = || bars.iter().all(|(name, _)| it.probe.levels.contains_key(*name));
        let all_best = || bars.iter().all(|(name, _)| it.probe.levels.get(*name) == Some(&1));
        let is_right = it.probe.good.or_else(|| all_known().then(all_best))?;
        let is_accepted = it.said.iter().zip(bars).all(meets);
        Some(observation(it, Judged { score: scalar(&it.said), is_accepted, is_right }))
    });
    let mut rows = vec![whole.collect()];
    for (index, (name, bar)) in bars.iter().enumerate() {
        let of_aspect = answered.iter().filter_map(|it| {
            let level = it.probe.levels.get(*name).map(|&level| level == 1);
            // A word on the whole is a word on the only aspect.
            let is_right = level.or_else(|| it.probe.good.filter(|_| bars.len() == 1))?;
            let score = f64::from(it.said.get(index)?.levels[2]);
            Some(observation(it, Judged { score, is_accepted: *bar <= score, is_right }))
        });
        rows.push(of_aspect.collect());
    }
    rows
}

impl Row {
    /// All that labels and scores tell.
    pub(super) fn new(name: &str, pass: Option<f64>, observations: &[Observation<'_>]) -> Self {
        let judged: Vec<Judged> = observations.iter().map(|it| it.judged).collect();
        let count = |is_right: bool, is_accepted: Option<bool>| {
            let fits = |it: &&Judged| {
                it.is_right == is_right && is_accepted.is_none_or(|wanted| it.is_accepted == wanted)
            };
            judged.iter().filter(fits).count()
        };
        let (n_good, n_bad) = (count(true, None), count(false, None));
        let column =
            |of: fn(&Observation<'_>) -> f64| -> Vec<f64> { observations.iter().map(of).collect() };
        Self {
            name: name.to_owned(),
            pass,
            n_good,
            n_bad,
            false_accept: Estimate::share(count(false, Some(true)), n_bad),
            false_reject: Estimate::share(count(true, Some(false)), n_good),
            auc: auc_estimate(&judged),
            kappa: kappa(&judged),
            length_bias: partial_spearman(
                &column(|it| it.judged.score),
                &column(|it| it.length),
                &column(|it| f64::from(u8::from(it.judged.is_right))),
            ),
            self_preference: self_preference(observations),
            position_bias: None,
            drift: None,
            calibration: None,
        }
    }
}

/// Own minus other, within each label, weighted by how many answers have it. `None`: no label has
/// enough of both.
fn self_preference(observations: &[Observation<'_>]) -> Option<Estimate> {
    let (mut sum, mut variance, mut n) = (0.0, 0.0, 0);
    for is_right in [false, true] {
        let scores = |is_own: bool| -> Vec<f64> {
            let fits =
                |it: &&Observation<'_>| it.judged.is_right == is_right && it.is_own == is_own;
            observations.iter().filter(fits).map(|it| it.judged.score).collect()
        };
        let (own, other) = (scores(true), scores(false));
        if own.len().min(other.len()) < MIN_PER_SIDE {
            continue;
        }
        let weight = own.len() + other.len();
        let [(own_mean, own_error), (other_mean, other_error)] =
            [&own, &other].map(|scores| mean_and_standard_error(scores));
        sum += weight as f64 * (own_mean - other_mean);
        variance += (weight as f64).powi(2) * (own_error.powi(2) + other_error.powi(2));
        n += weight;
    }
    (0 < n).then(|| Estimate::normal(sum / n as f64, variance.sqrt() / n as f64, n))
}

fn mean_and_standard_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = statistics::mean(values.iter().copied());
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0) / n).sqrt())
}

impl PositionBias {
    /// From the same answers judged in both orders: (value, passes) each. `None`: there are none.
    pub(super) fn new(both: &[[(f64, bool); 2]]) -> Option<Self> {
        let changes: Vec<f64> = both.iter().map(|[usual, turned]| turned.0 - usual.0).collect();
        let flips = both.iter().filter(|[usual, turned]| usual.1 != turned.1).count();
        let absolute = statistics::mean(changes.iter().map(|change| change.abs()));
        let flips = Estimate::share(flips, both.len())?;
        let (change, error) = mean_and_standard_error(&changes);
        let change = Estimate::normal(change, error, both.len());
        Some(Self { change, absolute, flips })
    }
}

impl Drift {
    /// `None`: no answer was judged both times.
    pub(super) fn new(
        row: &Row,
        now: &[Observation<'_>],
        before: &Scores,
        report: &Report,
    ) -> Option<Self> {
        let old = |it: &Observation<'_>| before.get(it.id)?.get(&row.name).copied();
        let changes: Vec<f64> =
            now.iter().filter_map(|it| Some(it.judged.score - old(it)?)).collect();
        if changes.is_empty() {
            return None;
        }
        let old_row = report.rows.iter().find(|old| old.name == row.name);
        let old_auc = old_row.and_then(|row| row.auc).map(|auc| auc.value);
        Some(Self {
            since_ms: report.created_ms,
            n: changes.len(),
            mean: statistics::mean(changes.iter().copied()),
            largest: changes.iter().fold(0.0, |largest, change| change.abs().max(largest)),
            auc: row.auc.zip(old_auc).map(|(now, old)| now.value - old),
        })
    }
}

impl Sources {
    pub(super) fn count<'a>(probes: impl Iterator<Item = &'a Probe>) -> Self {
        let mut sources = Self::default();
        for probe in probes {
            *(match probe.origin {
                Origin::File => &mut sources.file,
                Origin::Feedback => &mut sources.feedback,
                Origin::Verifier => &mut sources.verifier,
            }) += 1;
        }
        sources
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observation(score: f64, is_right: bool, is_own: bool) -> Observation<'static> {
        let judged = Judged { score, is_accepted: 0.5 <= score, is_right };
        Observation { id: "x", judged, length: 10.0, is_own }
    }

    fn answered(id: &str, good: Option<bool>, levels: &[(&str, i8)], plus: [f32; 2]) -> Answered {
        let said = |(aspect, plus): (&str, f32)| Assessment {
            aspect: aspect.into(),
            rubric_version: "1".into(),
            judge: "j".into(),
            levels: [1.0 - plus, 0.0, plus],
            mass: 1.0,
            weight: 1.0,
            passes: false,
            reason: None,
        };
        let levels = levels.iter().map(|&(name, level)| (name.to_owned(), level)).collect();
        let probe = Probe {
            id: id.into(),
            question: "q".into(),
            answer: "a".into(),
            reference: None,
            good,
            levels,
            origin: Origin::File,
            generation: None,
            known: Vec::new(),
        };
        Answered { probe, said: ["kind", "true"].into_iter().zip(plus).map(said).collect() }
    }

    #[test]
    fn each_row_sees_its_own_labels_and_the_whole_is_a_veto() {
        let answered = [
            answered("a", Some(true), &[("kind", 1)], [0.9, 0.9]),
            answered("b", None, &[("kind", 1), ("true", 0)], [0.9, 0.2]),
            answered("c", Some(false), &[("true", -1)], [0.9, 0.8]),
        ];
        let bars = [("kind", 0.5), ("true", 0.7)];
        let rows = observations(&answered, &bars, Generation(0));
        let seen: Vec<Vec<(&str, bool, bool)>> = rows
            .iter()
            .map(|row| {
                row.iter().map(|o| (o.id, o.judged.is_right, o.judged.is_accepted)).collect()
            })
            .collect();
        assert_eq!(seen[0], [("a", true, true), ("b", false, false), ("c", false, true)]);
        assert_eq!(seen[1], [("a", true, true), ("b", true, true)]);
        assert_eq!(seen[2], [("b", false, false), ("c", false, true)]);
        let row = Row::new(WHOLE, None, &rows[0]);
        assert_eq!((row.n_good, row.n_bad), (1, 2));
        assert!((row.false_accept.unwrap().value - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_judge_that_prefers_its_own_answers_of_equal_worth_is_seen() {
        let side = |is_own, is_right, base: f64| {
            (0..20).map(move |i| observation(base + 0.001 * f64::from(i), is_right, is_own))
        };
        let fair: Vec<_> = side(true, true, 0.8)
            .chain(side(false, true, 0.8))
            .chain(side(false, false, 0.1))
            .collect();
        let estimate = self_preference(&fair).unwrap();
        assert!(estimate.lo < 0.0 && 0.0 < estimate.hi && estimate.n == 40, "{estimate:?}");
        let vain: Vec<_> = side(true, true, 0.9).chain(side(false, true, 0.8)).collect();
        assert!((self_preference(&vain).unwrap().value - 0.1).abs() < 1e-9);
        assert_eq!(self_preference(&vain[..20]), None);
    }

    #[test]
    fn the_order_of_labels_and_the_time_between_reports_leave_their_traces() {
        let bias = PositionBias::new(&[[(0.5, true), (0.1, false)], [(0.2, false), (0.2, false)]]);
        let bias = bias.unwrap();
        assert!((bias.change.value + 0.2).abs() < 1e-9 && (bias.absolute - 0.2).abs() < 1e-9);
        assert!((bias.flips.value - 0.5).abs() < 1e-9 && bias.flips.n == 2);

        let now = [observation(0.9, true, false)];
        let row = Row::new("kind", Some(0.5), &now);
        let report = Report {
            agent: "a".into(),
            judge: "j".into(),
            version: "v".into(),
            created_ms: 5,
            sources: Sources::default(),
            unjudged: 0,
            unknown_aspects: Vec::new(),
            rows: vec![row.clone()],
        };
        let before =
            |id: &str| Scores::from([(id.to_owned(), BTreeMap::from([("kind".to_owned(), 0.7)]))]);
        let drift = Drift::new(&row, &now, &before("x"), &report).unwrap();
        assert!((drift.mean - 0.2).abs() < 1e-9 && drift.n == 1 && drift.since_ms == 5);
        assert_eq!(Drift::new(&row, &now, &before("y"), &report), None);
        let text = serde_json::to_value(&report).unwrap();
        assert_eq!(serde_json::from_value::<Report>(text).unwrap(), report);
    }
}
