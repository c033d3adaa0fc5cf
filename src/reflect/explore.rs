//! Fills a stored exchange with judged drafts and refinements, in one generation and without a deadline.
//! Nobody waits for it. It goes stage by stage (`pursue`), and what a stage has made is stored before
//! the next begins: an exploration that is stopped or killed goes on where it was. Used by the
//! [`Reflector`]'s `reflect_later` and `explore`.

use config::{Agent, Practice, Promising};
use engine::{Generation, Priority, Sampling, Weights};
use store::{Author, Critic, Exchange, ExchangeId, Filled};

use super::assess::{Verification, is_judgeable, passes};
use super::batch::Critique;
use super::budget::Stop;
use super::choose::promising;
use super::judge::Judge;
use super::pursue::{self, Aim, Next, Reason};
use super::session::{Cut, Entry, Halt, Origin, Policy, Session};
use super::trial::{Choice, Compared, Trial, Yield};
use super::{Explored, ReflectError, Reflector, Shot};

/// `temperature: auto`: what chat models are used with, and what makes a model err that seldom does.
const WARM: f32 = 0.8;
const HOT: f32 = 1.2;

/// How far to fill.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal<'a> {
    /// Answers in all.
    pub(super) aim: Aim,
    /// Tokens of all candidates at most.
    pub(super) tokens: usize,
    /// How urgent.
    pub(super) priority: Priority,
    /// What stands before the prompt of a draft.
    pub(super) shots: &'a [Shot],
    /// Of drafts.
    pub(super) sampling: Sampling,
    /// Of refinements.
    pub(super) refine_temperature: f32,
}

pub(super) async fn fill(
    reflector: &Reflector,
    agent: &Agent,
    id: ExchangeId,
    goal: Goal<'_>,
    trial: Option<&Trial>,
    told: &(dyn Fn(Explored) + Sync),
) -> Result<Explored, ReflectError> {
    let exchange = reflector.store.exchange(id).await?;
    let (reference, verifier) = (exchange.reference.as_deref(), exchange.verifier.as_ref());
    if !is_judgeable(agent, verifier, reference) {
        return Ok(Explored { left: Some(Reason::Filled), ..Explored::default() });
    }
    let verification = Verification::new(agent, verifier, reference)?;
    let judge = Judge::new(reflector, agent, &exchange.messages, goal.priority)?
        .with(reference, verification)
        .with_aspects(&aspects_so_far(&exchange));
    let policy = Policy {
        weights: Weights::Active,
        priority: goal.priority,
        sampling: goal.sampling,
        refine_temperature: goal.refine_temperature,
        stop: &[],
        top_logprobs: 0,
    };
    let entries = entries(&exchange);
    let mut only = goal.aim.anew.then(|| reflector.engine.stats().active);
    let shown = match goal.shots {
        [] => None,
        shots => reflector.prompt_with(&exchange.messages, shots, policy.sampling.max_tokens)?,
    };
    let shots = shown.iter().flat_map(|_| goal.shots).map(|shot| shot.candidate).collect();
    let prompt = shown.unwrap_or(exchange.prompt_tokens);
    let spent: usize = entries.iter().map(|entry| entry.tokens.len()).sum();
    let mut session = Session {
        reflector,
        agent,
        judge,
        policy,
        cut: Cut { client: None, deadline: None },
        max_tokens: goal.tokens.saturating_sub(spent),
        generated: 0,
        entries,
        shots,
    };
    let mut explored = Explored::default();
    let mut is_cut = false;
    let mut aim = goal.aim;
    let mut choice = None;
    loop {
        // First of all: what was answered in a chat may never have been judged.
        let judged = session.judge().await;
        let news = store(&mut session, id, explored.generated_tokens).await?;
        if let Some(generation) = only.take() {
            // Those of others are judged, and do not count.
            session.entries = of_generation(session.entries, generation);
        }
        explored.add(news);
        told(news);
        if let (Some(trial), Some(choice)) = (trial, choice) {
            record(trial, choice, news, &agent.name);
        }
        if let Err(Halt::Failed(error @ (ReflectError::Judge(_) | ReflectError::Command(_)))) =
            judged
        {
            // Drafts need no judge: they are kept and judged another time.
            let missing = aim.drafts.saturating_sub(filled(&session, id).drafts);
            if 0 < missing {
                is_cut_short(session.draft_all(prompt.clone(), missing).await)?;
                told(store(&mut session, id, explored.generated_tokens).await?);
            }
            return Err(error);
        }
        is_cut |= is_cut_short(judged)?;
        let mut next = if is_cut {
            Next::Leave(Reason::Spent)
        } else {
            pursue::next(&aim, &filled(&session, id))
        };
        if let (Some(trial), Next::Refine(_), None) = (trial, next, choice) {
            choice = Some(trial.choose());
            if choice == Some(Choice::Draft) {
                aim = aim.drafts_only();
                next = pursue::next(&aim, &filled(&session, id));
            }
        }
        let made = match next {
            Next::Draft(n) => session.draft_all(prompt.clone(), n).await,
            Next::Refine(n) => refine(&mut session, n).await,
            Next::Leave(reason) => {
                explored.left = Some(reason);
                return Ok(explored);
            }
        };
        // What is complete is judged and stored before the prompt is left.
        is_cut = is_cut_short(made)?;
    }
}

fn record(trial: &Trial, choice: Choice, news: Explored, agent: &str) {
    let Explored { drafts, refinements, positives, generated_tokens, .. } = news;
    let news = Yield { answers: drafts + refinements, passes: positives, tokens: generated_tokens };
    if let Some(Compared { refinements, drafts, .. }) = trial.add(choice, news) {
        tracing::info!(
            agent,
            refinements_per_1000_tokens = refinements.per_1000_tokens(),
            drafts_per_1000_tokens = drafts.per_1000_tokens(),
            "Exploration stops refining: fresh drafts yield more answers that pass."
        );
    }
}

/// Whether a step ended before its work was done.
fn is_cut_short(step: Result<(), Halt>) -> Result<bool, ReflectError> {
    match step {
        Ok(()) => Ok(false),
        Err(Halt::Stop(_)) => Ok(true),
        Err(Halt::Failed(error)) => Err(error),
    }
}

/// Refinements of the most promising draft. The critique is greedy, so one that an earlier stage has
/// answered would come out again.
async fn refine(session: &mut Session<'_>, n: u32) -> Result<(), Halt> {
    let which = session.agent.reflection.promising;
    let parent = promising(&session.judged(), which).ok_or(Halt::Stop(Stop::NoGain))?;
    let known = session.entries.iter().find_map(|entry| match &entry.revises {
        Some((index, critique)) if *index == parent && !critique.text.is_empty() => Some(critique),
        _ => None,
    });
    let critique = match known {
        Some(critique) => critique.clone(),
        None => session.critique(parent).await?,
    };
    session.refine(parent, &critique, n, None).await
}

/// Stores what is new in the session, and says what that is.
async fn store(
    session: &mut Session<'_>,
    id: ExchangeId,
    generated_before: usize,
) -> Result<Explored, ReflectError> {
    let mut news =
        Explored { generated_tokens: session.generated - generated_before, ..Explored::default() };
    for entry in &mut session.entries {
        let Origin::Stored { id, is_judged } = &mut entry.origin else { continue };
        if !*is_judged && !entry.assessments.is_empty() {
            session.reflector.store.add_assessments(*id, entry.assessments.clone()).await?;
            *is_judged = true;
            news.positives += usize::from(passes(&entry.assessments));
        }
    }
    if let Some(choice) = session.judge.choice.take() {
        session.reflector.store.set_aspect_choice(id, choice).await?;
    }
    let new = session.new_candidates();
    if new.is_empty() {
        return Ok(news);
    }
    news.refinements = new.iter().filter(|candidate| candidate.parent.is_some()).count();
    news.drafts = new.len() - news.refinements;
    news.positives += new.iter().filter(|candidate| passes(&candidate.assessments)).count();
    let ids = session.reflector.store.add_candidates(id, new).await?;
    session.stored(ids);
    Ok(news)
}

/// The session's answers in numbers.
fn filled(session: &Session<'_>, exchange: ExchangeId) -> Filled {
    let generation = session.reflector.engine.stats().active;
    let count = |is_counted: &dyn Fn(&Entry) -> bool| {
        let n = session.entries.iter().filter(|entry| is_counted(entry)).count();
        u32::try_from(n).unwrap_or(u32::MAX)
    };
    let is_judged = |entry: &Entry| !entry.assessments.is_empty();
    let fails = |entry: &Entry| is_judged(entry) && !passes(&entry.assessments);
    let revises_best = session.agent.reflection.promising == Promising::Best;
    let may_be_revised = |entry: &Entry| fails(entry) || revises_best && is_judged(entry);
    Filled {
        exchange,
        drafts: count(&|entry| entry.revises.is_none()),
        refinements: count(&|entry| entry.revises.is_some()),
        positives: count(&|entry| passes(&entry.assessments)),
        negatives: count(&fails),
        faulty_drafts: count(&|entry| entry.revises.is_none() && may_be_revised(entry)),
        tries: count(&|entry| is_judged(entry) && entry.generation == generation),
        unjudged: count(&|entry| !is_judged(entry)),
    }
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

/// The agent's sampling in chats; of a greedy agent all drafts would be one and the same.
pub(super) fn as_in_chats(agent: &Agent) -> Sampling {
    let own = agent.sampling;
    let greedy = own.temperature <= 0.0;
    let temperature = if greedy { agent.reflection.refine_temperature } else { own.temperature };
    Sampling { temperature, seed: None, ..own }
}

/// How an agent explores. `all_pass`: the drafts of most prompts, which have nothing to learn from then.
pub fn exploring(agent: &Agent, all_pass: bool) -> Sampling {
    let Practice { temperature, top_p, .. } = agent.practice;
    let auto = if all_pass { HOT } else { WARM };
    let temperature = temperature.unwrap_or(auto);
    Sampling { temperature, top_p, seed: None, ..agent.sampling }
}

/// Those of one generation; a refinement goes with the draft that it revises.
fn of_generation(entries: Vec<Entry>, generation: Generation) -> Vec<Entry> {
    let mut places = Vec::with_capacity(entries.len());
    let mut kept: Vec<Entry> = Vec::new();
    for mut entry in entries {
        let parent = match &mut entry.revises {
            None => Some(None),
            Some((index, _)) => places.get(*index).copied().flatten().map(Some),
        };
        let place = match parent {
            Some(parent) if entry.generation == generation => {
                if let (Some(parent), Some((index, _))) = (parent, &mut entry.revises) {
                    *index = parent;
                }
                kept.push(entry);
                Some(kept.len() - 1)
            }
            _ => None,
        };
        places.push(place);
    }
    kept
}

/// The model's own answers: the owner's edits are neither judged nor counted.
fn entries(exchange: &Exchange) -> Vec<Entry> {
    let own: Vec<_> =
        exchange.candidates.iter().filter(|candidate| candidate.author == Author::Model).collect();
    let place = |id| own.iter().position(|candidate| candidate.id == id);
    own.iter()
        .map(|candidate| Entry {
            origin: Origin::Stored {
                id: candidate.id,
                is_judged: !candidate.assessments.is_empty(),
            },
            generation: candidate.generation,
            revises: candidate.parent.and_then(place).map(|parent| {
                let text = candidate.critique.clone().unwrap_or_default();
                (parent, Critique { text, by: candidate.critic.unwrap_or(Critic::Judge) })
            }),
            text: candidate.text.clone(),
            tokens: candidate.tokens.clone(),
            assessments: candidate.assessments.clone(),
        })
        .collect()
}
