//! Fills a stored exchange with judged drafts and refinements, in one lane and without a deadline.
//! Nobody waits for it. Used by the [`Reflector`]'s `reflect_later` and `explore`.

use crate::config::Agent;
use crate::engine::{Class, Lane, Sampling};
use crate::store::{Exchange, ExchangeId};

use super::assess::{Verification, passes};
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
    let verification = Verification::new(agent, exchange.verifier.as_ref())?;
    let judge = Judge::new(reflector, agent, &exchange.messages, goal.class)?
        .with(exchange.reference.as_deref(), verification)
        .with_aspects(&aspects_so_far(&exchange));
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
    let without_judge = match steps(&mut session, &exchange, goal).await {
        // What was sampled is kept and judged another time.
        Err(Halt::Failed(error @ ReflectError::Judge(_))) => Some(error),
        Err(Halt::Failed(error)) => return Err(error),
        Ok(()) | Err(Halt::Stop(_)) => None,
    };

    if let Some(choice) = session.judge.choice.take() {
        reflector.store.set_aspect_choice(id, choice).await?;
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
    without_judge.map_or(Ok(explored), Err)
}

/// The aspects that the prompt's answers are judged by: those that were chosen for it, or those
/// that answers have been judged by before anybody chose. All answers of a prompt are judged alike.
pub(super) fn aspects_so_far(exchange: &Exchange) -> Vec<String> {
    if let Some(choice) = &exchange.aspect_choice {
        return choice.chosen.clone();
    }
    let judged = exchange.candidates.iter().flat_map(|candidate| &candidate.assessments);
    judged.map(|assessment| assessment.aspect.clone()).collect()
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
    let which = session.agent.reflection.promising;
    let Some(parent) = promising(&session.judged(), which) else { return Ok(()) };
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
