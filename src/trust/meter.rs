//! Measures an agent's judge: gathers labelled answers, asks the judge about those that it has not
//! judged yet, and stores the report. Nobody waits for it, so it works at the priority of exploration.
//! Used by `learn`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sha2::{Digest as _, Sha256};

use super::TrustError;
use super::bar::{Calibration, choose};
use super::probes::{self, Probe};
use super::report::{
    Answered, Drift, Observation, PositionBias, Report, Row, Scores, Sources, WHOLE, observations,
};
use crate::reflect::{ReflectError, Reflector};
use config::prompt_file;
use config::{Agent, Aspect, AspectChoice, Pass, ScalarConfig, TrustConfig};
use engine::{Generation, Priority};
use prompt::AspectView;
use statistics::Judged;
use store::{Assessment, JudgeReport, JudgeThreshold, Standard, Store, StoreError};

/// Answers under judgement at once: enough to fill the batch, and a chat still finds room.
pub(super) const PARALLEL: usize = 8;
/// Exchanges read at once.
const PAGE: usize = 64;
/// Answers that are judged a second time with the labels turned round.
const TURNED: usize = 100;

/// What a measurement needs.
#[derive(Clone, Copy, Debug)]
pub struct Meter<'a> {
    /// Asks the judge.
    pub reflector: &'a Reflector,
    /// Has answers and reports.
    pub store: &'a Store,
    /// Whose judge.
    pub agent: &'a Agent,
    /// How much is enough.
    pub config: &'a TrustConfig,
    /// The generation that answers now: its answers are the judge's own.
    pub active: Generation,
}

/// The newest report on the judge that the agent has now, whatever was measured before with other
/// rubrics.
pub async fn newest(
    store: &Store,
    reflector: &Reflector,
    agent: &Agent,
) -> Result<Option<Report>, ReflectError> {
    let stored = of_version(store, agent, &reflector.standards(agent)?).await?;
    Ok(stored.map(|(report, _)| report))
}

async fn of_version(
    store: &Store,
    agent: &Agent,
    standards: &[Standard],
) -> Result<Option<(Report, Scores)>, StoreError> {
    let version = (judge(standards), version(standards));
    let stored = store.judge_report(agent.name.clone(), Some(version)).await?;
    // One that a later version wrote differently counts as none.
    Ok(stored.and_then(|row| {
        let report = serde_json::from_value(row.report).ok()?;
        Some((report, serde_json::from_value(row.scores).ok()?))
    }))
}

fn judge(standards: &[Standard]) -> String {
    standards.first().map(|standard| standard.judge.clone()).unwrap_or_default()
}

/// Names all rubrics together.
fn version(standards: &[Standard]) -> String {
    let mut digest = Sha256::new();
    for standard in standards {
        digest.update(format!("{} {}\n", standard.aspect, standard.rubric_version));
    }
    files::hex(&digest.finalize()[..6])
}

impl Meter<'_> {
    /// Measures and stores the report. `calibrate`: puts the bars of aspects that want it where the
    /// target is reached, before the report is made. `show` hears how many of how many answers are
    /// judged.
    pub async fn measure(
        &self,
        calibrate: bool,
        show: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Report, TrustError> {
        let standards = self.reflector.standards(self.agent)?;
        let before = of_version(self.store, self.agent, &standards).await?;
        let probes = self.probes().await?;
        let names: BTreeSet<&str> = standards.iter().map(|it| it.aspect.as_str()).collect();
        let labelled: BTreeSet<&str> =
            probes.iter().flat_map(|probe| probe.levels.keys()).map(String::as_str).collect();
        let unknown_aspects = labelled.difference(&names).map(|&name| name.to_owned()).collect();
        let sources = Sources::count(probes.iter());

        let n_probes = probes.len();
        let turned = turned(self.agent);
        let sample = every(&probes, if turned.is_some() { TURNED } else { 0 });
        let total = n_probes + sample.len();
        let answered = self.answer(self.agent, probes, &|done| show(done, total)).await?;
        let mut bars = self.reflector.bars_in_force(self.agent).await?;
        let calibrations = self.calibrations(&standards, &answered, &bars);
        if calibrate {
            self.calibrate(&standards, &calibrations).await?;
            bars = self.reflector.bars_in_force(self.agent).await?;
        }
        let biases = match &turned {
            Some(turned) => {
                let again =
                    self.answer(turned, sample, &|done| show(n_probes + done, total)).await?;
                biases(&answered, &again, &bars)
            }
            None => BTreeMap::new(),
        };

        let all = observations(&answered, &as_bars(&standards, &bars), self.active);
        let row_names = std::iter::once(WHOLE).chain(standards.iter().map(|it| &*it.aspect));
        let mut rows = Vec::new();
        let mut scores = Scores::new();
        for (index, (name, seen)) in row_names.zip(&all).enumerate() {
            let aspect = index.checked_sub(1);
            let mut row = Row::new(name, aspect.and_then(|at| bars.get(at)).copied(), seen);
            row.position_bias = biases.get(name).copied();
            row.calibration = aspect.and_then(|at| calibrations.get(at)).cloned();
            row.drift =
                before.as_ref().and_then(|(report, scores)| Drift::new(&row, seen, scores, report));
            for it in seen {
                let of_probe = scores.entry(it.id.to_owned()).or_default();
                of_probe.insert(name.to_owned(), it.judged.score);
            }
            rows.push(row);
        }
        let report = Report {
            agent: self.agent.name.clone(),
            judge: judge(&standards),
            version: version(&standards),
            created_ms: chrono::Utc::now().timestamp_millis(),
            sources,
            unjudged: n_probes - answered.len(),
            unknown_aspects,
            rows,
        };
        self.store(&report, &scores).await?;
        Ok(report)
    }

    /// All labelled answers, those of the file first, then the newest, up to the limit.
    pub async fn probes(&self) -> Result<Vec<Probe>, TrustError> {
        let mut found = match &self.agent.probes {
            Some(path) => probes::of_file(prompt_file::read_probes(path)?),
            None => Vec::new(),
        };
        let standards = self.reflector.standards(self.agent)?;
        let mut before = None;
        while found.len() < self.config.max_probes {
            let page = self.store.labelled(self.agent.name.clone(), before, PAGE).await?;
            before = page.last().copied();
            if page.is_empty() {
                break;
            }
            for id in page {
                let exchange = self.store.exchange(id).await?;
                let feedback = self.store.feedback(id).await?;
                found.extend(probes::of_exchange(&exchange, &feedback, &standards));
            }
        }
        found.truncate(self.config.max_probes);
        Ok(found)
    }

    /// The judge's word on each probe; those that are too long for it are left out.
    pub(super) async fn answer(
        &self,
        agent: &Agent,
        probes: Vec<Probe>,
        show: &(dyn Fn(usize) + Sync),
    ) -> Result<Vec<Answered>, TrustError> {
        // Every aspect is measured, whatever the judge would choose for a prompt and whatever programs
        // would say in its place; a reward model is not.
        let (aspect_choice, scalar) = (AspectChoice::All, ScalarConfig::Aspects);
        let mut agent = Agent { aspect_choice, scalar, verifier: None, ..agent.clone() };
        for rated in &mut agent.aspects {
            rated.aspect = Arc::new(Aspect { correctness: false, ..Aspect::clone(&rated.aspect) });
        }
        let agent = &agent;
        let asked: Vec<_> = probes.into_iter().map(|probe| self.ask(agent, probe)).collect();
        let mut answers = stream::iter(asked).buffered(PARALLEL);
        let mut answered = Vec::new();
        let mut done = 0;
        while let Some(one) = answers.try_next().await? {
            done += 1;
            show(done);
            if one.said.len() == agent.aspects.len() {
                answered.push(one);
            }
        }
        Ok(answered)
    }

    async fn ask(&self, agent: &Agent, mut probe: Probe) -> Result<Answered, TrustError> {
        let mut said = std::mem::take(&mut probe.known);
        if said.is_empty() {
            let (reference, priority) = (probe.reference.as_deref(), Priority::Explore);
            said = self
                .reflector
                .assess(agent, &probe.question, &probe.answer, reference, None, priority)
                .await?;
        }
        Ok(Answered { probe, said })
    }

    fn calibrations(
        &self,
        standards: &[Standard],
        answered: &[Answered],
        bars: &[f64],
    ) -> Vec<Calibration> {
        let rows = observations(answered, &as_bars(standards, bars), self.active);
        let of_row = |row: &Vec<Observation<'_>>| {
            choose(&row.iter().map(|it| it.judged).collect::<Vec<Judged>>(), self.config)
        };
        rows.iter().skip(1).map(of_row).collect()
    }

    /// The owner's fixed numbers stay.
    async fn calibrate(
        &self,
        standards: &[Standard],
        calibrations: &[Calibration],
    ) -> Result<(), TrustError> {
        let wanting = self.agent.aspects.iter().zip(standards).zip(calibrations);
        let bars = wanting
            .filter(|((rated, _), _)| rated.pass == Pass::Calibrated)
            .filter_map(|((_, standard), calibration)| match calibration {
                Calibration::Found { pass, .. } => {
                    Some(JudgeThreshold { standard: standard.clone(), pass: *pass })
                }
                Calibration::MissingLabels { .. } | Calibration::OutOfReach => None,
            })
            .collect();
        Ok(self.store.set_judge_thresholds(self.agent.name.clone(), bars).await?)
    }

    async fn store(&self, report: &Report, scores: &Scores) -> Result<(), TrustError> {
        let json = |value| serde_json::to_value(value).expect("a report is plain data");
        let row = JudgeReport {
            created_ms: report.created_ms,
            agent: report.agent.clone(),
            judge: report.judge.clone(),
            version: report.version.clone(),
            report: json(report),
            scores: serde_json::to_value(scores).expect("scores are plain data"),
        };
        Ok(self.store.add_judge_report(row).await?)
    }
}

fn as_bars<'a>(standards: &'a [Standard], bars: &[f64]) -> Vec<(&'a str, f64)> {
    standards.iter().map(|it| it.aspect.as_str()).zip(bars.iter().copied()).collect()
}

/// The agent with the levels of its rubrics in the opposite order; `None`: its prompts do not show
/// them, so that there is nothing to turn round.
fn turned(agent: &Agent) -> Option<Agent> {
    let mut turned = agent.clone();
    turned.prompts = Arc::new(agent.prompts.reversed());
    for rated in &mut turned.aspects {
        let mut aspect = Aspect::clone(&rated.aspect);
        aspect.levels.reverse();
        rated.aspect = Arc::new(aspect);
    }
    let shown = |agent: &Agent| {
        let aspect = &agent.aspects.first()?.aspect;
        let view = AspectView {
            name: &aspect.name,
            description: &aspect.description,
            levels: &aspect.levels,
        };
        agent.prompts.assess("?", "!", None, &view).ok()
    };
    (shown(agent) != shown(&turned)).then_some(turned)
}

/// At most `n` of these, evenly spread. Labels that are known already are asked anew.
fn every(probes: &[Probe], n: usize) -> Vec<Probe> {
    let step = probes.len().div_ceil(n.max(1)).max(1);
    let sample = probes.iter().step_by(step).take(n);
    sample.map(|probe| Probe { known: Vec::new(), ..probe.clone() }).collect()
}

/// Row name to what the order of the labels did.
fn biases(usual: &[Answered], again: &[Answered], bars: &[f64]) -> BTreeMap<String, PositionBias> {
    let by_id: BTreeMap<&str, &Answered> =
        usual.iter().map(|answered| (answered.probe.id.as_str(), answered)).collect();
    let mut both: BTreeMap<String, Vec<[(f64, bool); 2]>> = BTreeMap::new();
    for turned in again {
        let Some(usual) = by_id.get(turned.probe.id.as_str()) else { continue };
        for ((usual, turned), bar) in usual.said.iter().zip(&turned.said).zip(bars) {
            let [best, middle, worst] = turned.levels;
            let turned = Assessment { levels: [worst, middle, best], ..turned.clone() };
            let seen = |it: &Assessment| (it.value(), *bar <= f64::from(it.levels[2]));
            both.entry(usual.aspect.clone()).or_default().push([seen(usual), seen(&turned)]);
        }
    }
    both.into_iter().filter_map(|(name, both)| Some((name, PositionBias::new(&both)?))).collect()
}
