//! What the judge is asked for besides reflection: measurements of itself, attacks on it, and its word
//! on answers that an earlier version has judged. Also whether a run may learn from it. What is
//! measured is `trust`'s business; this walks over agents and answers. Used by `task` and `run`.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::error::RunError;
use super::{Ended, JudgeTask, Parts, Stage};
use crate::trust::{self, Attack, Meter, Standing};
use config::{Agent, Config};
use engine::Priority;
use store::ExchangeId;

/// Exchanges read at once.
const PAGE: usize = 64;

/// What is wanted.
#[derive(Debug)]
pub(super) struct Errand {
    pub(super) task: JudgeTask,
    /// `None`: every agent's judge.
    pub(super) agent: Option<String>,
    pub(super) limit: usize,
    pub(super) attacks: Arc<Vec<Attack>>,
}

pub(super) async fn run(
    parts: &Parts,
    errand: &Errand,
    stage: &watch::Sender<Stage>,
) -> Result<Ended, RunError> {
    let config = parts.config.borrow().clone();
    let is_meant =
        |agent: &&Arc<Agent>| errand.agent.as_ref().is_none_or(|wanted| *wanted == agent.name);
    let agents: Vec<_> = config.agents.values().filter(is_meant).cloned().collect();
    let task = errand.task;
    // Verifiers and references are not measured; where they decide alone there is no judge.
    let judged = agents.iter().filter(|agent| agent.is_judged());
    let show = |done, total| {
        stage.send_replace(Stage::Judging { task, done, total });
    };
    show(0, 0);
    match task {
        JudgeTask::Calibrate => {
            let mut reports = Vec::new();
            for agent in judged {
                reports.push(meter(parts, &config, agent).measure(true, &show).await?);
            }
            Ok(Ended::Calibrated { reports })
        }
        JudgeTask::Attack => {
            let mut reports = Vec::new();
            for agent in judged {
                let meter = meter(parts, &config, agent);
                reports.push(trust::resist(&meter, &errand.attacks, errand.limit, &show).await?);
            }
            Ok(Ended::Attacked { reports })
        }
        JudgeTask::Rescore => rescore(parts, &agents, errand.limit, &show).await,
    }
}

fn meter<'a>(parts: &'a Parts, config: &'a Config, agent: &'a Agent) -> Meter<'a> {
    Meter {
        reflector: &parts.reflector,
        store: &parts.store,
        agent,
        config: &config.trust,
        active: parts.engine.stats().active,
    }
}

/// Goes on where it was stopped: an exchange whose answers are judged again is not outdated any more.
async fn rescore(
    parts: &Parts,
    agents: &[Arc<Agent>],
    limit: usize,
    show: &(dyn Fn(usize, usize) + Sync),
) -> Result<Ended, RunError> {
    let began = Instant::now();
    let mut todo = Vec::new();
    for agent in agents {
        let mut after = None;
        while todo.len() < limit {
            let standards = parts.reflector.standards(agent)?;
            let page = parts.store.outdated(agent.name.clone(), standards, after, PAGE).await?;
            after = page.last().copied();
            if page.is_empty() {
                break;
            }
            todo.extend(page.into_iter().map(|id| (agent, id)));
        }
    }
    todo.truncate(limit);
    let total = todo.len();
    let (mut exchanges, mut candidates) = (0, 0);
    for (agent, id) in todo {
        candidates += rescore_one(parts, agent, id).await?;
        exchanges += 1;
        show(exchanges, total);
    }
    Ok(Ended::Rescored { exchanges, candidates, wall_s: began.elapsed().as_secs_f64() })
}

/// All answers of an exchange at once, so that they can be compared with each other again.
async fn rescore_one(parts: &Parts, agent: &Agent, id: ExchangeId) -> Result<usize, RunError> {
    let exchange = parts.store.exchange(id).await?;
    let judged: Vec<_> =
        exchange.candidates.iter().filter(|it| !it.assessments.is_empty()).collect();
    let answers: Vec<&str> = judged.iter().map(|candidate| candidate.text.as_str()).collect();
    let assessments =
        parts.reflector.assess_all(agent, &exchange, &answers, Priority::Explore).await?;
    let rows: Vec<_> = judged.iter().map(|candidate| candidate.id).zip(assessments).collect();
    let n = rows.len();
    parts.store.replace_assessments(rows).await?;
    Ok(n)
}

/// What is known of each learning agent's judge. Unless the present judge and rubrics are trusted by
/// an earlier measurement they are measured now: a new version cannot slip through, and new labels
/// are heard.
pub(super) async fn standings(
    parts: &Parts,
    config: &Config,
    stage: &watch::Sender<Stage>,
) -> Result<BTreeMap<String, Standing>, RunError> {
    let show = |done, total| {
        stage.send_replace(Stage::Judging { task: JudgeTask::Calibrate, done, total });
    };
    let mut standings = BTreeMap::new();
    let has_judge = |agent: &&Arc<Agent>| agent.learn && agent.is_judged();
    for agent in config.agents.values().filter(has_judge) {
        let report = trust::newest(&parts.store, &parts.reflector, agent).await?;
        let meter = meter(parts, config, agent);
        let advisory: Vec<&str> = agent.advisory().collect();
        let (name, trust_config) = (&agent.name, &config.trust);
        let mut standing = trust::standing(name, &advisory, report.as_ref(), trust_config);
        if !matches!(standing, Standing::Trusted { .. }) {
            let report = meter.measure(false, &show).await?;
            standing = trust::standing(name, &advisory, Some(&report), trust_config);
        }
        standings.insert(agent.name.clone(), standing);
    }
    Ok(standings)
}
