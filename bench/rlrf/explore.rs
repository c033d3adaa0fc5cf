//! One exploration: a policy drafts and refines, the frozen judge judges, a database keeps it. The
//! arms that start from the same policy share it, so they differ only in what they make of it.
//! Used by `unit`.

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reflectd::config::{Agent, PromptLine};
use reflectd::engine::Generation;
use reflectd::reflect::{passes, scalar};
use reflectd::statistics::{Judged, judge_quality};
use reflectd::store::{Candidate, Exchange, Store};

use crate::lab::Lab;
use crate::records::{Explored, Judgements};

/// Problems under way at once: enough to fill the engine's batch.
const PARALLEL: usize = 8;
/// Exchanges read at once.
const PAGE: usize = 128;

/// Fills every problem up to n drafts and m refinements by the policy in this lane. What an earlier
/// run has stored stays.
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
    let n_prompts = prompts.len();
    for line in prompts.into_iter().skip(known) {
        reflector.remember(agent, line).await?;
    }
    let names = vec![agent.name.clone()];
    let todo = store.explorable(names, n, m, n_prompts).await?;
    lab.engine.activate(policy).await?;
    let fills = todo.into_iter().map(|exchange| {
        let reflector = &reflector;
        async move { reflector.explore(agent, exchange, n, m).await.map(drop) }
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

/// The verifier's word on a stored answer.
pub(crate) fn is_right(candidate: &Candidate) -> bool {
    candidate.assessments.iter().any(|it| it.aspect == "verifier" && it.passes)
}

/// What an exploration gave.
pub(crate) fn summarize(exchanges: &[Exchange]) -> Explored {
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
        drafts: judgements(exchanges, |candidate| candidate.parent.is_none()),
        refinements: judgements(exchanges, |candidate| candidate.parent.is_some()),
        prompts_with_passing_draft: with_passing(false),
        prompts_with_passing_answer: with_passing(true),
    }
}

fn judgements(exchanges: &[Exchange], which: fn(&Candidate) -> bool) -> Judgements {
    let answers = exchanges.iter().flat_map(|exchange| &exchange.candidates);
    let judged: Vec<Judged> = answers
        .filter(|candidate| which(candidate))
        .map(|candidate| Judged {
            score: scalar(&candidate.assessments),
            is_accepted: passes(&candidate.assessments),
            is_right: is_right(candidate),
        })
        .collect();
    let quality = judge_quality(&judged);
    Judgements {
        answers: judged.len(),
        right: judged.iter().filter(|one| one.is_right).count(),
        passing: judged.iter().filter(|one| one.is_accepted).count(),
        false_accept: quality.false_accept,
        false_reject: quality.false_reject,
        auc: quality.auc,
    }
}
