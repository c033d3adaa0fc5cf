//! Fills a stored exchange with judged drafts and refinements, in one lane and without a deadline.
//! Nobody waits for it. Used by the [`Reflector`]'s `reflect_later` and `explore`.

use crate::config::Agent;
use crate::engine::{Class, Lane, Sampling};
use crate::store::{Exchange, ExchangeId};

use super::assess::{Verification, passes, question};
use super::choose::promising;
use super::judge::Judge;
use super::session::{Cut, Entry, Halt, Origin, Policy, Session};
use super::{Explored, ReflectError, Reflector};

/// How far to fill.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal {
    /// Drafts in all.
    pub(super) drafts: u32,
    /// Refinements in all.
    pub(super) refinements: u32,
    /// Tokens of all candidates at most.
    pub(super) tokens: usize,
    /// How urgent.
    pub(super) class: Class,
}

pub(super) async fn fill(
    reflector: &Reflector,
    agent: &Agent,
    id: ExchangeId,
    goal: Goal,
) -> Result<Explored, ReflectError> {
    let exchange = reflector.store.exchange(id).await?;
    let question = question(&exchange.messages);
    let judge = Judge {
        reflector,
        agent,
        question: &question,
        reference: exchange.reference.as_deref(),
        verification: Verification::new(agent, exchange.verifier.as_ref())?,
        class: goal.class,
    };
    let policy = Policy {
        lane: Lane::Active,
        class: goal.class,
        sampling: exploring(agent),
        stop: &[],
        top_logprobs: 0,
    };
    let spent: usize = exchange.candidates.iter().map(|candidate| candidate.tokens.len()).sum();
    let mut session = Session {
        reflector,
        agent,
        judge,
        policy,
        cut: Cut { client: None, deadline: None },
        max_tokens: goal.tokens.saturating_sub(spent),
        generated: 0,
        entries: entries(&exchange),
    };
    if let Err(Halt::Failed(error)) = steps(&mut session, &exchange, goal).await {
        return Err(error);
    }

    for (entry, candidate) in session.entries.iter().zip(&exchange.candidates) {
        if candidate.assessments.is_empty() && !entry.assessments.is_empty() {
            reflector.store.add_assessments(candidate.id, entry.assessments.clone()).await?;
        }
    }
    let new = session.new_candidates();
    let refinements = new.iter().filter(|candidate| candidate.parent.is_some()).count();
    let explored = Explored {
        drafts: new.len() - refinements,
        refinements,
        positives: session.entries.iter().filter(|entry| passes(&entry.assessments)).count(),
        generated_tokens: session.generated,
    };
    if !new.is_empty() {
        reflector.store.add_candidates(id, new).await?;
    }
    Ok(explored)
}

/// A halt leaves what is complete in the session.
async fn steps(session: &mut Session<'_>, exchange: &Exchange, goal: Goal) -> Result<(), Halt> {
    let old_refinements = exchange.candidates.iter().filter(|old| old.parent.is_some()).count();
    let old_drafts = exchange.candidates.len() - old_refinements;
    let drafts = missing(goal.drafts, old_drafts);
    if 0 < drafts {
        match session.draft_all(exchange.prompt_tokens.clone(), drafts).await {
            // The tokens are spent, but what is stored may still lack its assessments.
            Ok(()) | Err(Halt::Stop(_)) => {}
            Err(failed) => return Err(failed),
        }
    }
    session.judge().await?;
    let refinements = missing(goal.refinements, old_refinements);
    if refinements == 0 {
        return Ok(());
    }
    let Some(parent) = promising(&session.judged()) else { return Ok(()) };
    let critique = session.critique(parent).await?;
    session.refine(parent, &critique, refinements, None).await?;
    session.judge().await
}

fn missing(goal: u32, have: usize) -> u32 {
    goal.saturating_sub(u32::try_from(have).unwrap_or(u32::MAX))
}

/// The agent's sampling; of a greedy agent all drafts would be one and the same.
fn exploring(agent: &Agent) -> Sampling {
    let own = agent.sampling;
    let greedy = own.temperature <= 0.0;
    let temperature = if greedy { agent.reflection.refine_temperature } else { own.temperature };
    Sampling { temperature, seed: None, ..own }
}

fn entries(exchange: &Exchange) -> Vec<Entry> {
    let place = |id| exchange.candidates.iter().position(|candidate| candidate.id == id);
    exchange
        .candidates
        .iter()
        .map(|candidate| Entry {
            origin: Origin::Stored(candidate.id),
            revises: candidate
                .parent
                .and_then(place)
                .map(|parent| (parent, candidate.critique.clone().unwrap_or_default())),
            text: candidate.text.clone(),
            tokens: candidate.tokens.clone(),
            assessments: candidate.assessments.clone(),
        })
        .collect()
}
