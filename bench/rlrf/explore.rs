//! One exploration: a policy drafts and refines, the frozen judge judges, a database keeps it. The
//! arms that start from the same policy share it, so they differ only in what they make of it.
//! Used by `unit`.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Context as _;
use config::{Agent, PromptLine};
use engine::{Generation, Priority};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reflectd::reflect::pursue::Aim;
use reflectd::reflect::verify::Check;
use reflectd::reflect::{passes, question, scalar};
use statistics::Judged;
use store::{Assessment, Candidate, CandidateId, Exchange, Store};

use crate::arms::reference;
use crate::lab::Lab;
use crate::records::{Explored, Judgements, Picked, Shown};

/// Problems under way at once: enough to fill the engine's batch.
const PARALLEL: usize = 8;
/// Exchanges read at once.
const PAGE: usize = 128;

/// Fills every problem up to n drafts and m refinements by this policy. What an earlier run has
/// stored stays.
pub(crate) async fn fill(
    lab: &Lab,
    agent: &Agent,
    store: &Store,
    prompts: Vec<PromptLine>,
    policy: Generation,
) -> anyhow::Result<()> {
    let reflector = lab.reflector(store);
    let (n, m) = (lab.setting.scale.drafts, lab.setting.scale.refinements);
    let known = store.exchanges(None, prompts.len()).await?.len();
    for line in prompts.into_iter().skip(known) {
        reflector.remember(agent, line).await?;
    }
    let todo = store.explorable(agent.name.clone(), (n, m), policy, false).await?;
    lab.engine.activate(policy).await?;
    let aim =
        Aim { drafts: n, refinements: m, stop_early: agent.reflection.stop_early, anew: false };
    let fills = todo.into_iter().map(|filled| {
        let reflector = &reflector;
        async move { reflector.explore(agent, filled.exchange, aim, &|_| {}).await.map(drop) }
    });
    let filled = stream::iter(fills.collect::<Vec<_>>()).buffer_unordered(PARALLEL);
    filled.try_collect::<()>().await.context("explore a problem")?;
    lab.engine.activate(Generation::BASE).await?;
    Ok(())
}

/// All that is stored, oldest first.
pub(crate) async fn exchanges(agent: &Agent, store: &Store) -> anyhow::Result<Vec<Exchange>> {
    let mut all: Vec<Exchange> = Vec::new();
    loop {
        let after = all.last().map(|exchange| exchange.id);
        let page = store.learnable(vec![agent.name.clone()], after, PAGE).await?;
        let is_last = page.len() < PAGE;
        all.extend(page);
        if is_last {
            return Ok(all);
        }
    }
}

/// The right answers among all, by the problems' own verifiers: what a judge was told by a verifier
/// may be something else.
pub(crate) fn right(
    exchanges: &[Exchange],
    prompts: &[PromptLine],
) -> anyhow::Result<HashSet<CandidateId>> {
    let mut checks = HashMap::new();
    for line in prompts {
        let verifier = line.verifier.as_ref().context("a problem has no verifier")?;
        checks.insert(line.prompt.clone(), Check::new(verifier)?);
    }
    let mut right = HashSet::new();
    for exchange in exchanges {
        let check = checks.get(&question(&exchange.messages));
        let check = check.context("an exchange is about another problem")?;
        let answers = exchange.candidates.iter().filter(|one| check.holds(&one.text));
        right.extend(answers.map(|candidate| candidate.id));
    }
    Ok(right)
}

/// What an exploration gave.
pub(crate) fn summarize(exchanges: &[Exchange], right: &HashSet<CandidateId>) -> Explored {
    let with_passing = |refinements: bool| {
        let any = |exchange: &&Exchange| {
            exchange
                .candidates
                .iter()
                .any(|it| (refinements || it.parent.is_none()) && passes(&it.assessments))
        };
        exchanges.iter().filter(any).count()
    };
    Explored {
        prompts: exchanges.len(),
        drafts: judgements(exchanges, right, |candidate| candidate.parent.is_none()),
        refinements: judgements(exchanges, right, |candidate| candidate.parent.is_some()),
        prompts_with_passing_draft: with_passing(false),
        prompts_with_passing_answer: with_passing(true),
    }
}

/// Looks at the accepted answers of each problem by their texts.
pub(crate) fn picked(exchanges: &[Exchange], right: &HashSet<CandidateId>) -> Picked {
    let mut sum =
        Picked { prompts: 0, texts: 0, texts_right: 0, best_right: 0, most_frequent_right: 0 };
    for exchange in exchanges {
        let accepted = exchange.candidates.iter().filter(|one| passes(&one.assessments));
        // Sorted, so that ties are always broken the same way.
        let mut texts: BTreeMap<&str, Vec<&Candidate>> = BTreeMap::new();
        for candidate in accepted {
            texts.entry(&candidate.text).or_default().push(candidate);
        }
        let is_right = |same: &Vec<&Candidate>| right.contains(&same[0].id);
        let score = |same: &Vec<&Candidate>| scalar(&same[0].assessments);
        let best = texts.values().max_by(|a, b| score(a).total_cmp(&score(b)));
        let often =
            texts.values().max_by(|a, b| a.len().cmp(&b.len()).then(score(a).total_cmp(&score(b))));
        sum.prompts += usize::from(!texts.is_empty());
        sum.texts += texts.len();
        sum.texts_right += texts.values().filter(|same| is_right(same)).count();
        sum.best_right += usize::from(best.is_some_and(is_right));
        sum.most_frequent_right += usize::from(often.is_some_and(is_right));
    }
    sum
}

fn judgements(
    exchanges: &[Exchange],
    right: &HashSet<CandidateId>,
    which: fn(&Candidate) -> bool,
) -> Judgements {
    let answers = exchanges.iter().flat_map(|exchange| &exchange.candidates);
    let judged: Vec<Judged> = answers
        .filter(|candidate| which(candidate))
        .map(|candidate| judged(&candidate.assessments, right.contains(&candidate.id)))
        .collect();
    Judgements::new(&judged)
}

fn judged(assessments: &[Assessment], is_right: bool) -> Judged {
    Judged { score: scalar(assessments), is_accepted: passes(assessments), is_right }
}

/// How a reference in the judge's prompt changes its assessments of the drafts.
pub(crate) async fn shown(
    lab: &Lab,
    agent: &Agent,
    store: &Store,
    exchanges: &[Exchange],
    prompts: &[PromptLine],
) -> anyhow::Result<Shown> {
    let right = right(exchanges, prompts)?;
    let reflector = lab.reflector(store);
    let references: HashMap<&str, String> =
        prompts.iter().filter_map(|line| Some((line.prompt.as_str(), reference(line)?))).collect();
    let mut asked = Vec::new();
    for exchange in exchanges {
        let question = question(&exchange.messages);
        let reference = references.get(question.as_str()).context("a problem has no number")?;
        for draft in exchange.candidates.iter().filter(|one| one.parent.is_none()) {
            let (reflector, question) = (&reflector, question.clone());
            let is_right = right.contains(&draft.id);
            asked.push(async move {
                let said = reflector
                    .assess(agent, &question, &draft.text, Some(reference), None, Priority::Explore)
                    .await?;
                anyhow::Ok((said, is_right))
            });
        }
    }
    let said: Vec<(Vec<Assessment>, bool)> =
        stream::iter(asked).buffered(4 * PARALLEL).try_collect().await?;
    let at_threshold: Vec<Judged> =
        said.iter().map(|(said, is_right)| judged(said, *is_right)).collect();
    let at_half = said.iter().map(|(said, is_right)| Judged {
        is_accepted: said.iter().all(|one| 0.5 <= one.levels[2]),
        ..judged(said, *is_right)
    });
    let at_half: Vec<Judged> = at_half.collect();
    Ok(Shown { at_threshold: Judgements::new(&at_threshold), at_half: Judgements::new(&at_half) })
}
