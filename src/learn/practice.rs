//! What a night practises on: the prompts and examples that agents' files name, which become stored
//! prompts. What was said of answers to them by another verifier, or beside another reference, than
//! today's ends here. Used by `explore`, `night` and `run`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use tracing::warn;

use super::error::RunError;
use super::held_out::{self, HeldOut, LeftOut};
use super::promote::blocking;
use super::{Parts, examples, expected, practice_file};
use crate::reflect;
use config::{Agent, Config, PromptLine};
use prompt::Message;
use store::{ExchangeId, FilePrompt, PromptCheck, TodaysCheck};

/// Rows stored at once, between which others may use the store.
const AT_ONCE: usize = 500;

/// What agents practise on.
#[derive(Debug, Default)]
pub(super) struct Practised {
    /// By their names: prompts and examples of those that name a file of prompts. Others practise on
    /// all that is stored.
    pub(super) by_agent: BTreeMap<String, HashSet<ExchangeId>>,
    /// Of these, prompts of files whose verifier names the right answer whole.
    pub(super) answered: HashSet<ExchangeId>,
    /// Set aside for the gate: nobody practises on these.
    pub(super) aside: HashSet<ExchangeId>,
    /// What never enters training.
    pub(super) held_out: HeldOut,
    /// Lines of files that they do not practise on.
    pub(super) left_out: LeftOut,
}

/// Brings the store to what the files of the agents that learn say, and sets prompts aside.
pub(super) async fn sync(parts: &Parts, config: &Arc<Config>) -> Result<Practised, RunError> {
    let mut practised =
        Practised { left_out: examples::sync(parts, config).await?, ..Practised::default() };
    let mut stored = Vec::new();
    for agent in config.agents.values().filter(|agent| agent.learn) {
        let (lines, left_out) = lines(config, agent).await?;
        practised.left_out.add(left_out);
        let prompts = store_prompts(parts, agent, lines).await?;
        let named: HashSet<ExchangeId> = prompts.iter().map(|it| it.exchange).collect();
        let answered = prompts.iter().filter(|it| it.is_answered).map(|it| it.exchange);
        practised.answered.extend(answered);
        expected::forget(parts, agent, &named).await?;
        let checks = parts.store.example_checks(agent.name.clone()).await?;
        let (of_file, own): (Vec<_>, Vec<_>) =
            checks.into_iter().partition(|it| named.contains(&it.exchange));
        for own in own.chunks(AT_ONCE) {
            judge_by_today(parts, agent, own).await?;
        }
        for check in of_file {
            expected::renew(parts, agent, check.exchange).await?;
        }
        if agent.practice.prompts.is_some() {
            let examples = parts.store.examples(vec![agent.name.clone()]).await?;
            stored.push((agent.name.clone(), prompts, examples));
        }
    }
    let (held_out, aside) = held_out::settle(&parts.store, config).await?;
    for (name, prompts, examples) in stored {
        let usable =
            prompts.into_iter().filter(|it| !practised.left_out.counts(&held_out, &it.messages));
        let mut found: HashSet<ExchangeId> = usable.map(|it| it.exchange).collect();
        let usable = examples.into_iter().filter(|row| !held_out.contains(&row.messages));
        found.extend(usable.map(|row| row.exchange));
        practised.by_agent.insert(name, found);
    }
    Ok(Practised { aside, held_out, ..practised })
}

/// The prompts of an agent's practice file that no file holds out.
async fn lines(
    config: &Arc<Config>,
    agent: &Arc<Agent>,
) -> Result<(Vec<PromptLine>, LeftOut), RunError> {
    let Some(path) = agent.practice.prompts.clone() else { return Ok(Default::default()) };
    let (config, agent) = (config.clone(), agent.clone());
    let used = move || practice_file::used(&agent, &path, &held_out::of_files(&config)?);
    Ok(blocking(used).await?)
}

/// A prompt of a practice file.
#[derive(Debug)]
struct Stored {
    /// Where it is in the store.
    exchange: ExchangeId,
    messages: Vec<Message>,
    /// Its verifier names the right answer whole.
    is_answered: bool,
}

async fn store_prompts(
    parts: &Parts,
    agent: &Arc<Agent>,
    lines: Vec<PromptLine>,
) -> Result<Vec<Stored>, RunError> {
    let mut stored = Vec::with_capacity(lines.len());
    let mut lines = lines.into_iter();
    loop {
        let some: Vec<_> = lines.by_ref().take(AT_ONCE).collect();
        if some.is_empty() {
            return Ok(stored);
        }
        let is_answered = |line: &PromptLine| {
            let verifier = line.verifier.as_ref().or(agent.verifier.as_ref());
            verifier.is_some_and(|verifier| verifier.whole_answer().is_some())
        };
        let said: Vec<_> = some.iter().map(|line| (line.messages(), is_answered(line))).collect();
        let (reflector, agent) = (parts.reflector.clone(), agent.clone());
        let prompts = blocking({
            let agent = agent.clone();
            move || {
                let prompts = some.into_iter().map(|line| reflector.practice_prompt(&agent, line));
                prompts.collect::<Result<Vec<_>, _>>()
            }
        });
        let prompts = prompts.await?;
        let checks = prompts.iter().map(|FilePrompt { exchange, .. }| {
            (exchange.reference.clone(), exchange.verifier.clone())
        });
        let checks: Vec<_> = checks.collect();
        let kept = parts.store.keep_prompts(prompts).await?;
        let named = kept.iter().zip(checks).map(|(&(exchange, _), (reference, verifier))| {
            PromptCheck { exchange, reference, verifier }
        });
        judge_by_today(parts, &agent, &named.collect::<Vec<_>>()).await?;
        stored.extend(kept.into_iter().zip(said).map(
            |((exchange, _), (messages, is_answered))| Stored { exchange, messages, is_answered },
        ));
    }
}

/// What was said of the model's answers beside another reference than today's no longer counts, and
/// answers that another verifier has checked get the word of the one of today.
async fn judge_by_today(
    parts: &Parts,
    agent: &Agent,
    prompts: &[PromptCheck],
) -> Result<(), RunError> {
    let ids = prompts.iter().map(|it| it.exchange).collect();
    parts.store.forget_other_references(ids).await?;
    let today = prompts.iter().map(|it| todays_check(agent, it));
    let answers = parts.store.checked_otherwise(today.collect()).await?;
    let mut again = Vec::with_capacity(answers.len());
    let mut n_refused = 0;
    for answers in answers.chunk_by(|a, b| a.0 == b.0) {
        let exchange = parts.store.exchange(answers[0].0).await?;
        let ids: Vec<_> = answers.iter().map(|it| it.1).collect();
        let said = parts.reflector.check_again(agent, &exchange, &ids).await?;
        let own = expected::example(&exchange).map(|it| it.id);
        let is_refused =
            |(id, said): &(_, Vec<_>)| Some(*id) == own && reflect::refusal(said).is_some();
        n_refused += said.iter().filter(|it| is_refused(it)).count();
        again.extend(said);
    }
    if 0 < n_refused {
        warn!(
            agent = agent.name,
            examples = n_refused,
            "Examples are not learned, because what checks answers to their prompts refuses them; \
             `reflectd check` names those of files."
        );
    }
    Ok(parts.store.replace_assessments(again).await?)
}

/// Where the agent's own program checks answers, those of the model are left as they are: to ask about
/// everything again would take too long.
fn todays_check(agent: &Agent, check: &PromptCheck) -> TodaysCheck {
    let (verifier, reference) = (check.verifier.as_ref(), check.reference.as_deref());
    let has_program = agent.verifier.as_ref().is_some_and(|it| !it.commands().is_empty());
    let by_program = verifier.is_none() && has_program;
    let version = reflect::check_version(agent, verifier, reference);
    TodaysCheck {
        exchange: check.exchange,
        version: version.filter(|_| !by_program),
        weight: agent.reflection.verifier_weight,
        for_examples_alone: by_program,
    }
}
