//! Every number by its name, out of the records: what `results.json` holds, and all that the table
//! and the plot are made of. Used by `main`, `table` and `plot`.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use statistics::{Share, mean};

use crate::arms::{ARMS, Arm, EXPLORERS, JUDGES, Judge, Unit, name};
use crate::records::{
    Answered, Explored, Finding, Judgements, Picked, Records, Shown, Step, Trained,
};
use crate::setting::Scale;
use crate::statistics::{Difference, difference, mcnemar, pooled, shares};
use testkit::bench::results::{Goal, Provenance, with_reasons};

/// All that was found. A number's name begins with the row that it stands in:
/// `<judge>/<arm>/<what>` over all seeds, `<judge>/<arm>/<what>/<seed>` of one.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Results {
    pub(crate) goals: Vec<Goal>,
    pub(crate) scale: Scale,
    pub(crate) rows: BTreeMap<String, Row>,
}

/// What is known about one policy, or about two that are compared.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Row {
    /// Of the steps that it rests on.
    #[serde(flatten)]
    pub(crate) provenance: Provenance,
    /// By the rest of their names.
    pub(crate) numbers: BTreeMap<String, Number>,
    /// By seed: what the gate would have said.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) verdicts: BTreeMap<String, String>,
}

/// A number with what it rests on.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Number {
    pub(crate) value: f64,
    /// 95 % interval of shares and differences; least and most of the seeds for means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) range: Option<(f64, f64)>,
    /// Two-sided, for differences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) p: Option<f64>,
}

/// A name, and the judgements that it stands for in a finding.
type Kind<T> = (&'static str, fn(&T) -> &Judgements);

/// Arms that are compared with each other under one judge, the second minus the first.
pub(crate) const ARM_COMPARISONS: [(Arm, Arm); 7] = [
    (Arm::Rs, Arm::Rlrf1),
    (Arm::RewardOnly, Arm::Rlrf1),
    (Arm::DraftsOnly, Arm::Rlrf1),
    (Arm::RewardOnly, Arm::DraftsOnly),
    (Arm::Rlrf1, Arm::Rlrf2),
    (Arm::Rs, Arm::RsThenDpo),
    (Arm::RsThenDpo, Arm::Rlrf2),
];

/// Judges that are compared under one arm, the second minus the first.
pub(crate) const JUDGE_COMPARISONS: [(Judge, Judge); 2] =
    [(Judge::Own, Judge::Reference), (Judge::Reference, Judge::Gold)];

/// What has to be reached: judge, gain over M0 after round 2, and that in every seed.
pub(crate) const GOALS: [(Judge, f64); 2] = [(Judge::Own, 0.15), (Judge::Reference, 0.2)];
/// The largest p of a seed that counts.
pub(crate) const SIGNIFICANT: f64 = 0.05;

/// Cuts a name into its row and the rest: the base and the whole have one word, all others two.
fn place(name: &str) -> (&str, &str) {
    let n_words = if name.starts_with("m0/") || name.starts_with("all/") { 1 } else { 2 };
    let end = name.match_indices('/').nth(n_words - 1).map_or(name.len(), |(at, _)| at);
    let (row, rest) = name.split_at(end);
    (row, rest.trim_start_matches('/'))
}

impl Results {
    /// Fails when a step is missing. `older`: goals with the reasons for missing them.
    pub(crate) fn new(records: &Records, scale: &Scale, older: &[Goal]) -> anyhow::Result<Self> {
        let mut results = Self { scale: scale.clone(), ..Self::default() };
        let reader = Reader { records, seeds: scale.seeds };
        let base = reader.base()?;
        results.base(base);
        let base = Told::by(&vec![base; usize::try_from(scale.seeds).context("count seeds")?]);
        for judge in JUDGES {
            for explorer in EXPLORERS {
                results.explored(judge, explorer, &reader)?;
            }
            for arm in ARMS {
                results.trained(judge, arm, &reader)?;
                results.answered(judge, arm, &base, &reader)?;
            }
            results.compared(judge, &reader)?;
        }
        results.judges_compared(&reader)?;
        results.shown(&reader)?;
        results.times(&reader)?;
        for (name, row) in &mut results.rows {
            row.provenance = Provenance::of_all(reader.behind(name).map(|step| &step.provenance));
        }
        results.goals = with_reasons(results.goals(), older);
        Ok(results)
    }

    /// Of all steps.
    pub(crate) fn provenance(&self) -> Provenance {
        self.rows.get("all").map(|row| row.provenance.clone()).unwrap_or_default()
    }

    /// A number, if it is there.
    pub(crate) fn find(&self, name: &str) -> Option<Number> {
        let (row, rest) = place(name);
        self.rows.get(row)?.numbers.get(rest).copied()
    }

    /// A number that is there.
    pub(crate) fn get(&self, name: &str) -> Number {
        self.find(name).unwrap_or(Number { value: f64::NAN, ..Number::default() })
    }

    fn row(&mut self, row: &str) -> &mut Row {
        self.rows.entry(row.to_owned()).or_default()
    }

    fn set(&mut self, name: &str, number: Number) {
        let (row, rest) = place(name);
        self.row(row).numbers.insert(rest.to_owned(), number);
    }

    fn goals(&self) -> Vec<Goal> {
        let of = |(judge, gain): (Judge, f64)| {
            let name = format!("{}/{}/gain", judge.name(), Arm::Rlrf2.name());
            let found = self.find(&name).map(|gain| gain.value);
            let each = (1..=self.scale.seeds).map(|seed| self.get(&format!("{name}/{seed}")).p);
            let largest = each.into_iter().try_fold(0.0, |most: f64, p| Some(most.max(p?)));
            let p = Goal::at_most(format!("{name}, largest p of a seed"), SIGNIFICANT, largest);
            [Goal::at_least(name, gain, found), p]
        };
        GOALS.into_iter().flat_map(of).collect()
    }

    /// One value a seed: each by its seed, and their mean.
    fn per_seed(&mut self, name: &str, values: &[f64]) {
        for (seed, &value) in (1..).zip(values) {
            self.set(&format!("{name}/{seed}"), Number { value, ..Number::default() });
        }
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let value = mean(values.iter().copied());
        let number = Number { value, range: Some((least, most)), p: None };
        self.set(name, number);
    }

    fn base(&mut self, answered: &Answered) {
        self.greedy("m0", &[bits(&answered.greedy)]);
        for (what, value) in described(answered) {
            self.set(&format!("m0/{what}"), Number { value, ..Number::default() });
        }
    }

    /// Accuracy with intervals.
    fn greedy(&mut self, name: &str, seeds: &[Vec<bool>]) {
        let number = |share: Share| Number {
            value: share.value,
            range: Some((share.lo, share.hi)),
            p: None,
        };
        for (seed, answers) in (1..).zip(seeds) {
            let n_right = answers.iter().filter(|&&is_right| is_right).count();
            if let Some(share) = Share::new(n_right, answers.len()) {
                self.set(&format!("{name}/greedy/{seed}"), number(share));
            }
        }
        if let Some(share) = pooled(seeds) {
            self.set(&format!("{name}/greedy"), number(share));
        }
    }

    fn answered(
        &mut self,
        judge: Judge,
        arm: Arm,
        base: &Told,
        reader: &Reader<'_>,
    ) -> anyhow::Result<()> {
        let answered = reader.answered(judge, arm)?;
        let at = format!("{}/{}", judge.name(), arm.name());
        let told = Told::by(&answered);
        self.greedy(&at, &told.greedy);
        self.differ(&format!("{at}/gain"), base, &told);
        let described: Vec<_> = answered.iter().map(|one| described(one)).collect();
        for (place, (what, _)) in described[0].iter().enumerate() {
            let values: Vec<f64> = described.iter().map(|seed| seed[place].1).collect();
            self.per_seed(&format!("{at}/{what}"), &values);
        }
        Ok(())
    }

    /// b - a, over all seeds and of each: greedily, and in the mean of the samples.
    fn differ(&mut self, name: &str, a: &Told, b: &Told) {
        let number =
            |Difference { value, lo, hi, p }| Number { value, range: Some((lo, hi)), p: Some(p) };
        let shares_of = |told: &Told| told.greedy.iter().map(|one| shares(one)).collect::<Vec<_>>();
        for (what, a, b) in [
            (name.to_owned(), &shares_of(a), &shares_of(b)),
            (format!("{name}/at_8"), &a.samples, &b.samples),
        ] {
            self.set(&what, number(difference(a, b)));
            for (seed, (a, b)) in (1..).zip(a.iter().zip(b)) {
                let one = difference(std::slice::from_ref(a), std::slice::from_ref(b));
                self.set(&format!("{what}/{seed}"), number(one));
            }
        }
        for (seed, (a, b)) in (1..).zip(a.greedy.iter().zip(&b.greedy)) {
            let name = format!("{name}/{seed}");
            let exact = Number { p: Some(mcnemar(a, b)), ..self.get(&name) };
            self.set(&name, exact);
        }
    }

    fn compared(&mut self, judge: Judge, reader: &Reader<'_>) -> anyhow::Result<()> {
        for (first, second) in ARM_COMPARISONS {
            let at = format!("{}/{}-{}/gain", judge.name(), second.name(), first.name());
            self.differ(&at, &reader.told(judge, first)?, &reader.told(judge, second)?);
        }
        Ok(())
    }

    fn judges_compared(&mut self, reader: &Reader<'_>) -> anyhow::Result<()> {
        for (first, second) in JUDGE_COMPARISONS {
            for arm in ARMS {
                let at = format!("{}-{}/{}/gain", second.name(), first.name(), arm.name());
                self.differ(&at, &reader.told(first, arm)?, &reader.told(second, arm)?);
            }
        }
        Ok(())
    }

    fn explored(
        &mut self,
        judge: Judge,
        explorer: Option<Arm>,
        reader: &Reader<'_>,
    ) -> anyhow::Result<()> {
        let explored = reader.explored(judge, explorer)?;
        let at = format!("{}/explored_by_{}", judge.name(), name(explorer));
        let mut each = |what: &str, of: &dyn Fn(&Explored) -> Option<f64>| {
            // A judge that accepts no wrong answer because there is none has no such share.
            let values: Option<Vec<f64>> = explored.iter().map(|one| of(one)).collect();
            if let Some(values) = values {
                self.per_seed(&format!("{at}/{what}"), &values);
            }
        };
        let kinds: [Kind<Explored>; 2] =
            [("drafts", |one| &one.drafts), ("refinements", |one| &one.refinements)];
        for (kind, of) in kinds {
            let share = |part: usize, all: usize| (0 < all).then(|| part as f64 / all as f64);
            each(&format!("{kind}/answers"), &|one| Some(of(one).answers as f64));
            each(&format!("{kind}/right"), &|one| share(of(one).right, of(one).answers));
            each(&format!("{kind}/passing"), &|one| share(of(one).passing, of(one).answers));
            each(&format!("{kind}/accepted_right"), &|one| {
                let Judgements { right, passing, false_reject, .. } = of(one);
                let accepted_right = *right as f64 * (1.0 - (*false_reject)?);
                (0 < *passing).then(|| accepted_right / *passing as f64)
            });
            each(&format!("{kind}/false_accept"), &|one| of(one).false_accept);
            each(&format!("{kind}/false_reject"), &|one| of(one).false_reject);
            each(&format!("{kind}/auc"), &|one| of(one).auc);
        }
        let picked = reader.picked(judge, explorer)?;
        let mut each_picked = |what: &str, of: fn(&Picked) -> (usize, usize)| {
            let share = |one: &&Picked| of(one).0 as f64 / of(one).1 as f64;
            self.per_seed(&format!("{at}/{what}"), &picked.iter().map(share).collect::<Vec<_>>());
        };
        each_picked("texts_right", |one| (one.texts_right, one.texts));
        each_picked("best_right", |one| (one.best_right, one.prompts));
        each_picked("most_frequent_right", |one| (one.most_frequent_right, one.prompts));
        let mut each = |what: &str, of: &dyn Fn(&Explored) -> Option<f64>| {
            let values: Option<Vec<f64>> = explored.iter().map(|one| of(one)).collect();
            if let Some(values) = values {
                self.per_seed(&format!("{at}/{what}"), &values);
            }
        };
        each("prompts_with_passing_draft", &|one| {
            Some(one.prompts_with_passing_draft as f64 / one.prompts as f64)
        });
        each("prompts_with_passing_answer", &|one| {
            Some(one.prompts_with_passing_answer as f64 / one.prompts as f64)
        });
        Ok(())
    }

    fn shown(&mut self, reader: &Reader<'_>) -> anyhow::Result<()> {
        let shown: Vec<&Shown> = reader.each(Judge::Own, "shown", |finding| match finding {
            Finding::Shown(shown) => Some(shown),
            _ => None,
        })?;
        let kinds: [Kind<Shown>; 2] =
            [("at_threshold", |one| &one.at_threshold), ("at_half", |one| &one.at_half)];
        for (kind, of) in kinds {
            let mut each = |what: &str, of: &dyn Fn(&Shown) -> Option<f64>| {
                let values: Option<Vec<f64>> = shown.iter().map(|one| of(one)).collect();
                if let Some(values) = values {
                    self.per_seed(&format!("own/shown/{kind}/{what}"), &values);
                }
            };
            each("false_accept", &|one| of(one).false_accept);
            each("false_reject", &|one| of(one).false_reject);
            each("auc", &|one| of(one).auc);
        }
        Ok(())
    }

    fn trained(&mut self, judge: Judge, arm: Arm, reader: &Reader<'_>) -> anyhow::Result<()> {
        let trained = reader.trained(judge, arm)?;
        let at = format!("{}/{}", judge.name(), arm.name());
        let mut each = |what: &str, of: &dyn Fn(&Trained) -> Option<f64>| {
            let values: Option<Vec<f64>> = trained.iter().map(|one| of(one)).collect();
            if let Some(values) = values {
                self.per_seed(&format!("{at}/{what}"), &values);
            }
        };
        let share = |part: usize, all: usize| (0 < all).then(|| part as f64 / all as f64);
        each("pairs", &|one| Some(one.pairs.n as f64));
        each("chosen_right", &|one| share(one.pairs.chosen_right, one.pairs.n));
        each("rejected_right", &|one| share(one.pairs.rejected_right, one.pairs.n_rejected));
        each("chosen_refined", &|one| share(one.pairs.chosen_refined, one.pairs.n));
        each("chosen_tokens", &|one| Some(one.pairs.chosen_tokens));
        each("rejected_tokens", &|one| one.pairs.rejected_tokens);
        each("steps", &|one| Some(one.steps as f64));
        each("best_step", &|one| Some(one.best_step as f64));
        each("gate_gain", &|one| Some(one.verdict.gain));
        each("gate_lower_bound", &|one| Some(one.verdict.lower_bound));
        each("gate_promotes", &|one| Some(f64::from(u8::from(one.verdict.promote))));
        each("parity_error", &|one| one.verdict.parity_error);
        for (seed, one) in (1_u64..).zip(&trained) {
            self.row(&at).verdicts.insert(seed.to_string(), one.verdict.reason.clone());
        }
        Ok(())
    }

    fn times(&mut self, reader: &Reader<'_>) -> anyhow::Result<()> {
        let mut total = reader.step("m0")?.wall_s;
        for judge in JUDGES {
            let mut kinds: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
            for seed in 1..=reader.seeds {
                let unit = Unit { judge, seed };
                let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
                let explored = EXPLORERS.map(|by| ("explored", name(by)));
                let trained = ARMS.map(|arm| ("trained", arm.name()));
                let answered = ARMS.map(|arm| ("answered", arm.name()));
                for (kind, what) in explored.into_iter().chain(trained).chain(answered) {
                    let step = reader.step(&format!("{unit}/{kind}/{what}"))?;
                    *sums.entry(kind).or_default() += step.wall_s;
                    total += step.wall_s;
                }
                for (kind, sum) in sums {
                    kinds.entry(kind).or_default().push(sum);
                }
            }
            for (kind, values) in kinds {
                self.per_seed(&format!("{}/times/{kind}_wall_s", judge.name()), &values);
            }
        }
        self.set("all/wall_s", Number { value: total, ..Number::default() });
        Ok(())
    }
}

/// What was right, one list a seed.
struct Told {
    greedy: Vec<Vec<bool>>,
    /// Shares of each sampled problem's samples.
    samples: Vec<Vec<f64>>,
}

impl Told {
    fn by(answered: &[&Answered]) -> Self {
        Self {
            greedy: answered.iter().map(|one| bits(&one.greedy)).collect(),
            samples: answered.iter().map(|one| sampled(&one.samples)).collect(),
        }
    }
}

/// Digits as shares of the samples.
fn sampled(text: &str) -> Vec<f64> {
    let right = text.chars().filter_map(|digit| digit.to_digit(10));
    right.map(|right| f64::from(right) / f64::from(crate::measure::SAMPLES)).collect()
}

/// 1 and 0 as truth.
fn bits(text: &str) -> Vec<bool> {
    text.chars().map(|digit| digit == '1').collect()
}

/// What is reported of answers besides accuracy.
fn described(answered: &Answered) -> Vec<(&'static str, f64)> {
    let right = sampled(&answered.samples);
    let n = right.len() as f64;
    let solved = right.iter().filter(|&&right| 0.0 < right).count() as f64;
    vec![
        ("mean_at_8", mean(right.iter().copied())),
        ("pass_at_8", solved / n),
        ("greedy_tokens", answered.greedy_tokens),
        ("sample_tokens", answered.sample_tokens),
        ("kl_per_token", answered.kl_per_token),
        ("distinct_1", answered.distinct_1),
        ("distinct_2", answered.distinct_2),
        ("different", answered.different),
    ]
}

/// The records by what they are.
struct Reader<'a> {
    records: &'a Records,
    seeds: u64,
}

impl<'a> Reader<'a> {
    fn step(&self, name: &str) -> anyhow::Result<&'a Step> {
        self.records.get(name).with_context(|| format!("{name} is not done yet"))
    }

    /// The steps that a row rests on: those of its judges, and the base with which all begin.
    fn behind(&self, row: &str) -> impl Iterator<Item = &'a Step> {
        let judges = row.split('/').next().unwrap_or_default();
        let is_all = judges == "all";
        let units: Vec<String> = Unit::all(self.seeds)
            .into_iter()
            .filter(|unit| is_all || judges.split('-').any(|judge| judge == unit.judge.name()))
            .map(|unit| format!("{unit}/"))
            .collect();
        let is_behind = move |step: &&Step| {
            step.name == "m0" || units.iter().any(|unit| step.name.starts_with(unit))
        };
        self.records.steps().filter(is_behind)
    }

    fn base(&self) -> anyhow::Result<&'a Answered> {
        match &self.step("m0")?.finding {
            Finding::Answered(answered) => Ok(answered),
            _ => bail!("m0 is recorded as something else"),
        }
    }

    /// The findings of all seeds under a name.
    fn each<T>(
        &self,
        judge: Judge,
        what: &str,
        of: impl Fn(&'a Finding) -> Option<&'a T>,
    ) -> anyhow::Result<Vec<&'a T>> {
        (1..=self.seeds)
            .map(|seed| {
                let name = format!("{}/{what}", Unit { judge, seed });
                of(&self.step(&name)?.finding)
                    .with_context(|| format!("{name} is recorded as something else"))
            })
            .collect()
    }

    fn explored(&self, judge: Judge, by: Option<Arm>) -> anyhow::Result<Vec<&'a Explored>> {
        self.each(judge, &format!("explored/{}", name(by)), |finding| match finding {
            Finding::Explored(explored) => Some(explored),
            _ => None,
        })
    }

    fn picked(&self, judge: Judge, by: Option<Arm>) -> anyhow::Result<Vec<&'a Picked>> {
        self.each(judge, &format!("picked/{}", name(by)), |finding| match finding {
            Finding::Picked(picked) => Some(picked),
            _ => None,
        })
    }

    fn trained(&self, judge: Judge, arm: Arm) -> anyhow::Result<Vec<&'a Trained>> {
        self.each(judge, &format!("trained/{}", arm.name()), |finding| match finding {
            Finding::Trained(trained) => Some(trained),
            _ => None,
        })
    }

    fn answered(&self, judge: Judge, arm: Arm) -> anyhow::Result<Vec<&'a Answered>> {
        self.each(judge, &format!("answered/{}", arm.name()), |finding| match finding {
            Finding::Answered(answered) => Some(answered),
            _ => None,
        })
    }

    fn told(&self, judge: Judge, arm: Arm) -> anyhow::Result<Told> {
        Ok(Told::by(&self.answered(judge, arm)?))
    }
}
