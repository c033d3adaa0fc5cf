//! Every number by its name, out of the records: what `results.json` holds, and all that the table is made
//! of. Rows of earlier runs stay. Used by `main` and `table`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use statistics::{Share, mean};

use crate::arms::{Arm, Unit};
use crate::records::{Answered, Finding, Records, Trained};
use crate::task::Kind;
use testkit::bench::results::{Goal, Provenance, with_reasons};

/// All that was found.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Results {
    pub(crate) goals: Vec<Goal>,
    /// By unit.
    pub(crate) rows: BTreeMap<String, Row>,
}

/// What is known about one unit.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Row {
    #[serde(flatten)]
    pub(crate) provenance: Provenance,
    /// What `reflectd check` says of the owner's form; empty: it is taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) refused: Vec<String>,
    /// Each with its own gate, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) rounds: Vec<RoundRow>,
    /// Of the answers of the base (the unit `base`), or after the last round; `None`: not measured, or as
    /// the base's because nothing was promoted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) answers: Option<Answers>,
    /// Of the answers after each round that promoted something, by the number of the round.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) after: BTreeMap<usize, Answers>,
    /// Why nothing was learned, where nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
}

/// One round.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct RoundRow {
    /// With the reason.
    pub(crate) outcome: String,
    pub(crate) promoted: bool,
    pub(crate) pairs: Option<u64>,
    /// All of it.
    pub(crate) wall_s: f64,
    /// By stage.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) seconds: BTreeMap<String, f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) explored: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) verdict: Option<serde_json::Value>,
}

/// How one generation answers.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Answers {
    pub(crate) generation: u64,
    /// By set of prompts.
    pub(crate) greedy: BTreeMap<String, Greedy>,
    /// Of the first samples.
    pub(crate) mean_at_8: Option<f64>,
    pub(crate) tokens: f64,
    /// Shares of the greedy answers.
    pub(crate) cut: f64,
    pub(crate) different: f64,
    pub(crate) different_on_topic: f64,
    /// Share of the general formats that are kept.
    pub(crate) formats: Option<f64>,
    pub(crate) general_nats: Option<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) shown: Vec<(String, String)>,
}

/// Greedy answers to a set of prompts.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Greedy {
    pub(crate) n: usize,
    pub(crate) share: f64,
    /// 95 % (Wilson).
    pub(crate) lo: f64,
    pub(crate) hi: f64,
    /// Against the base.
    pub(crate) over_base: Option<Paired>,
    /// Against the answers before the round.
    pub(crate) over_before: Option<Paired>,
}

/// Two generations on the same prompts.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Paired {
    pub(crate) newly_right: usize,
    pub(crate) newly_wrong: usize,
    pub(crate) gain: f64,
    /// Of the gain, 95 %.
    pub(crate) lo: f64,
    pub(crate) hi: f64,
}

impl Paired {
    /// Of two rows of digits.
    pub(crate) fn new(before: &str, after: &str) -> Option<Self> {
        /// 97.5 % quantile of the normal distribution.
        const Z: f64 = 1.959_963_984_540_054;
        if before.len() != after.len() || before.is_empty() {
            return None;
        }
        let count = |a: char, b: char| {
            before.chars().zip(after.chars()).filter(|pair| *pair == (a, b)).count()
        };
        let (newly_right, newly_wrong) = (count('0', '1'), count('1', '0'));
        let n = before.len() as f64;
        let gain = (newly_right as f64 - newly_wrong as f64) / n;
        let changed = (newly_right + newly_wrong) as f64;
        let half = Z * (changed - n * gain * gain).max(0.0).sqrt() / n;
        Some(Self { newly_right, newly_wrong, gain, lo: gain - half, hi: gain + half })
    }
}

impl Answers {
    fn new(answered: &Answered, base: Option<&Answered>, before: Option<&Answered>) -> Self {
        let greedy = answered.greedy.iter().filter_map(|(set, bits)| {
            let n_right = bits.chars().filter(|bit| *bit == '1').count();
            let Share { value, lo, hi } = Share::new(n_right, bits.len())?;
            let against = |other: Option<&Answered>| Paired::new(other?.greedy.get(set)?, bits);
            let (over_base, over_before) = (against(base), against(before));
            let greedy = Greedy { n: bits.len(), share: value, lo, hi, over_base, over_before };
            Some((set.clone(), greedy))
        });
        let n: usize = answered.greedy.values().map(String::len).sum();
        let of_all = |part: usize| part as f64 / n as f64;
        let share = |bits: &str, most: f64| {
            let digits = bits.chars().filter_map(|digit| digit.to_digit(10));
            (!bits.is_empty()).then(|| mean(digits.map(|it| f64::from(it) / most)))
        };
        Self {
            generation: answered.generation,
            greedy: greedy.collect(),
            mean_at_8: share(&answered.samples, crate::measure::SAMPLES.into()),
            tokens: answered.tokens,
            cut: of_all(answered.cut),
            different: of_all(answered.different),
            different_on_topic: of_all(answered.different_on_topic),
            formats: share(&answered.formats, 1.0),
            general_nats: answered.general_nats,
            shown: answered.shown.clone(),
        }
    }

    /// The only set, or the one that begins so.
    pub(crate) fn share(&self, set: &str) -> Option<f64> {
        self.greedy.iter().find(|(name, _)| name.starts_with(set)).map(|(_, it)| it.share)
    }
}

/// [`Unit::Same`] by its name.
const SAME: &str = "control/same";

/// How the outcome of a round begins that the product refuses.
const NOT_POSSIBLE: &str = "not possible";

impl RoundRow {
    /// Whether the gate could have said something.
    fn was_possible(&self) -> bool {
        !self.outcome.starts_with(NOT_POSSIBLE)
    }

    fn new(wall_s: f64, trained: &Trained) -> Self {
        let reason = trained.reason.as_ref().map(|reason| format!(": {reason}"));
        let cut = if trained.is_cut {
            "; the exploration was stopped when its time was over"
        } else {
            ""
        };
        Self {
            outcome: format!("{}{}{cut}", trained.outcome, reason.unwrap_or_default()),
            promoted: trained.outcome == "promoted",
            pairs: trained.n_pairs,
            wall_s,
            seconds: trained.seconds.clone(),
            explored: trained.explored.clone(),
            verdict: trained.verdict.clone(),
        }
    }
}

/// Why a goal is not reached whose unit has not been run.
const NOT_MEASURED: &str = "not measured";

impl Results {
    /// Replaces the rows of these units by what is recorded of them.
    pub(crate) fn update(&mut self, records: &Records, units: &[Unit]) {
        // A reason that a row gave goes with the row; a person's stays.
        for goal in &mut self.goals {
            let of_row = self.rows.get(unit_of(&goal.name)).and_then(|row| row.why.as_ref());
            goal.why = goal.why.take().filter(|why| Some(why) != of_row && why != NOT_MEASURED);
        }
        for &unit in units {
            if let Some(row) = row(records, unit) {
                self.rows.insert(unit.to_string(), row);
            }
        }
        self.renew_goals();
    }

    /// The goals follow from the rows.
    pub(crate) fn renew_goals(&mut self) {
        let goals = self.new_goals();
        self.goals = with_reasons(goals, &self.goals);
        for goal in &mut self.goals {
            if goal.is_reached() != Some(true) && goal.why.is_none() {
                let row = self.rows.get(unit_of(&goal.name));
                let unmeasured = || goal.value.is_none().then(|| NOT_MEASURED.to_owned());
                goal.why = row.and_then(|row| row.why.clone()).or_else(unmeasured);
            }
        }
    }

    fn new_goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        let name = |kind, arm, seed| Unit::Learn(kind, arm, seed).to_string();
        for (kind, set, goal) in [(Kind::Sentence, "held out", 0.85), (Kind::Home, "known", 0.95)] {
            let unit = name(kind, Arm::Auto, 1);
            goals.push(Goal::at_least(
                format!("{unit}, greedy on {set}, mean of the seeds"),
                goal,
                self.mean_of_seeds(kind, Arm::Auto, |row| self.share(kind, row, set)),
            ));
        }
        let home = name(Kind::Home, Arm::Auto, 1);
        let unseen = |row: &Row| self.share(Kind::Home, row, "unseen");
        let unseen = self.rows.get(&home).and_then(unseen);
        goals.push(Goal::at_least(format!("{home}, greedy on unseen"), 0.7, unseen));
        let base =
            self.rows.get(&name(Kind::Home, Arm::Base, 1)).and_then(|row| row.answers.as_ref());
        let base = base.and_then(|answers| answers.share("unseen"));
        goals.push(Goal::at_most("home/base, greedy on unseen", 0.05, base));
        let sentence = name(Kind::Sentence, Arm::Auto, 1);
        let on_topic = self.rows.get(&sentence).and_then(|row| self.answers(Kind::Sentence, row));
        goals.push(Goal::at_least(
            format!("{sentence}, different answers that share a word with their message"),
            0.9,
            on_topic.map(|answers| answers.different_on_topic),
        ));
        for (kind, sft) in [(Kind::Intent, 0.9), (Kind::Slots, 0.28)] {
            let unit = name(kind, Arm::Auto, 1);
            let after_sft = |row: &Row| row.after.get(&1)?.share("test");
            let value = self.mean_of_seeds(kind, Arm::Auto, after_sft);
            goals.push(Goal::at_least(
                format!("{unit}, greedy after SFT, mean of the seeds"),
                sft,
                value,
            ));
            let gain = |row: &Row| Some(row.after.get(&2)?.greedy.get("test")?.over_before?.gain);
            let value = self.mean_of_seeds(kind, Arm::Auto, gain);
            goals.push(Goal::at_least(
                format!("{unit}, gain of the night, mean of the seeds"),
                0.03,
                value,
            ));
            let surely = |row: &Row| Some(row.after.get(&2)?.greedy.get("test")?.over_before?.lo);
            let lows: Vec<f64> = self.of_seeds(kind, Arm::Auto).filter_map(surely).collect();
            let n_sure = lows.iter().filter(|lo| 0.0 < **lo).count() as f64;
            let wanted = if kind == Kind::Intent { 2.0 } else { 1.0 };
            let value = (!lows.is_empty()).then_some(n_sure);
            goals.push(Goal::at_least(
                format!("{unit}, seeds whose gain is above 0 for certain"),
                wanted,
                value,
            ));
        }
        let all = name(Kind::Intent, Arm::SftAll, 1);
        let value = self.rows.get(&all).and_then(|row| row.after.get(&1)?.share("test"));
        goals.push(Goal::at_least(format!("{all}, greedy"), 0.94, value));
        for (kind, seconds) in [
            (Kind::Sentence, 900.0),
            (Kind::Intent, 900.0),
            (Kind::Slots, 2700.0),
            (Kind::Home, 900.0),
        ] {
            let unit = name(kind, Arm::Auto, 1);
            let row = self.rows.get(&unit).filter(|row| row.rounds.iter().any(|it| it.promoted));
            let value = row.map(|row| row.rounds.iter().map(|round| round.wall_s).sum());
            goals.push(Goal::at_most(format!("{unit}, seconds of the night"), seconds, value));
            let last = row.and_then(|row| row.answers.as_ref());
            let base =
                self.rows.get(&name(kind, Arm::Base, 1)).and_then(|row| row.answers.as_ref());
            let lost = last.zip(base).and_then(|(last, base)| Some(base.formats? - last.formats?));
            goals.push(Goal::at_most(format!("{unit}, general formats lost"), 0.05, lost));
            let nats = last.and_then(|answers| answers.general_nats);
            goals.push(Goal::at_most(
                format!("{unit}, nats a token on general prompts"),
                0.2,
                nats,
            ));
        }
        let promoted = |unit: &str| {
            // An import that was never compared says nothing; a night without pairs promotes nothing.
            let counts = |round: &&RoundRow| {
                round.was_possible() && (unit != SAME || round.verdict.is_some() || round.promoted)
            };
            let rounds = self.rows.get(unit)?.rounds.iter().filter(counts);
            let rounds: Vec<&RoundRow> = rounds.collect();
            (!rounds.is_empty()).then(|| rounds.iter().filter(|it| it.promoted).count() as f64)
        };
        for (unit, most) in [("maths/auto-1", 0.0), ("control/coin", 1.0), (SAME, 0.0)] {
            goals.push(Goal::at_most(format!("{unit}, promoted"), most, promoted(unit)));
        }
        for kind in [Kind::Sentence, Kind::Home] {
            let unit = Unit::Nights(kind).to_string();
            let gains = |answers: &Answers| -> Vec<f64> {
                answers.greedy.values().filter_map(|it| Some(it.over_base?.gain)).collect()
            };
            let least = self
                .rows
                .get(&unit)
                .map(|row| row.after.values().flat_map(gains).fold(0.0, f64::min));
            goals.push(Goal::at_least(
                format!("{unit}, least gain over the base of a night"),
                0.0,
                least,
            ));
        }
        goals
    }

    /// After the last round; the base's where nothing was promoted.
    pub(crate) fn answers<'a>(&'a self, kind: Kind, row: &'a Row) -> Option<&'a Answers> {
        let base = Unit::Learn(kind, Arm::Base, 1).to_string();
        row.answers.as_ref().or_else(|| self.rows.get(&base)?.answers.as_ref())
    }

    fn share(&self, kind: Kind, row: &Row, set: &str) -> Option<f64> {
        self.answers(kind, row)?.share(set)
    }

    fn of_seeds(&self, kind: Kind, arm: Arm) -> impl Iterator<Item = &Row> {
        (1..=9).filter_map(move |seed| self.rows.get(&Unit::Learn(kind, arm, seed).to_string()))
    }

    fn mean_of_seeds(&self, kind: Kind, arm: Arm, of: impl Fn(&Row) -> Option<f64>) -> Option<f64> {
        let values: Vec<f64> = self.of_seeds(kind, arm).filter_map(of).collect();
        (!values.is_empty()).then(|| mean(values))
    }
}

/// A goal's name begins with its unit's.
fn unit_of(goal: &str) -> &str {
    goal.split(',').next().unwrap_or_default()
}

/// `None`: nothing is recorded.
fn row(records: &Records, unit: Unit) -> Option<Row> {
    let name = unit.to_string();
    let steps: Vec<_> = records.of_unit(&name).collect();
    if steps.is_empty() {
        return None;
    }
    let base = Unit::Learn(unit.kind(), Arm::Base, 1).to_string();
    let base = records.get(&format!("{base}/answered-0")).map(|step| &step.finding);
    let base = base.and_then(|finding| match finding {
        Finding::Answered(answered) => Some(answered),
        _ => None,
    });
    let mut row = Row {
        provenance: Provenance::of_all(steps.iter().map(|step| &step.provenance)),
        ..Row::default()
    };
    let mut before = base;
    for step in steps {
        match &step.finding {
            Finding::Checked(checked) => {
                let new = checked.refused.iter().filter(|it| !row.refused.contains(it));
                let new: Vec<String> = new.cloned().collect();
                row.refused.extend(new);
            }
            Finding::Trained(trained) => row.rounds.push(RoundRow::new(step.wall_s, trained)),
            Finding::Failed { why } => {
                let what = step.name.rsplit('/').next().unwrap_or_default();
                let what = if what.starts_with("round") { "" } else { what };
                let outcome = format!("{what} {NOT_POSSIBLE}: {why}");
                row.rounds.push(RoundRow {
                    outcome: outcome.trim_start().to_owned(),
                    wall_s: step.wall_s,
                    ..RoundRow::default()
                });
            }
            Finding::Answered(_) => {}
        }
    }
    for step in records.of_unit(&name) {
        let Finding::Answered(answered) = &step.finding else { continue };
        let number = step.name.rsplit('-').next().and_then(|it| it.parse().ok()).unwrap_or(0);
        let is_base = number == 0;
        let answers =
            Answers::new(answered, base.filter(|_| !is_base), before.filter(|_| !is_base));
        if !is_base {
            row.after.insert(number, answers.clone());
        }
        row.answers = Some(answers);
        before = Some(answered);
    }
    row.why = why(&row);
    Some(row)
}

/// In one sentence for each fault.
fn why(row: &Row) -> Option<String> {
    let mut words = Vec::new();
    if !row.refused.is_empty() {
        words.push(format!("the owner's form is refused ({})", row.refused.join("; ")));
    }
    let rounds = (1..).zip(&row.rounds).filter(|(_, round)| !round.promoted);
    words.extend(rounds.map(|(number, round)| format!("round {number}: {}", round.outcome)));
    (!words.is_empty()).then(|| words.join(". "))
}
