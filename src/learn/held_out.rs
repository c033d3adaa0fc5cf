//! The held-out prompts: read from the agents' files, or set aside, asked by the gate, kept out of
//! training. It must never hand a prompt to `dataset`. Used by `run` and `pairs`.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::aside::{self, Aside};
use super::gate::Power;
use super::near::{Likeness, NearIndex, fingerprint, user_turns};
use super::promote::blocking;
use super::random::Random;
use crate::reflect;
use config::prompt_file::{self, PromptFileError};
use config::{Agent, Config, PromptLine};
use prompt::Message;
use store::{ExchangeId, Store, StoreError};

/// Why a prompt that a file holds out cannot be an example.
pub const NO_EXAMPLE: &str = "the prompt is held out, and would no longer measure anything";

/// One held-out prompt with the agent that answers it.
#[derive(Clone, Debug)]
pub struct Question {
    /// Who answers.
    pub agent: Arc<Agent>,
    /// What is asked.
    pub line: PromptLine,
}

/// The prompts that never enter training, nor do near copies of them.
#[derive(Clone, Debug, Default)]
pub struct HeldOut {
    /// By files.
    named: NearIndex,
    /// By `held_out: auto`.
    aside: NearIndex,
}

/// Why the held-out prompts are not known.
#[derive(Debug, thiserror::Error)]
pub enum HeldOutError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] PromptFileError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl HeldOut {
    /// These texts.
    pub fn new<'a>(prompts: impl IntoIterator<Item = &'a str>) -> Self {
        Self::of(prompts.into_iter().map(|prompt| vec![prompt]))
    }
    /// These conversations, each as the turns of its user.
    pub fn of<'a>(conversations: impl IntoIterator<Item = Vec<&'a str>>) -> Self {
        let mut held_out = Self::default();
        conversations.into_iter().for_each(|turns| held_out.named.add(&turns));
        held_out
    }
    /// Prompts of a file.
    pub fn of_prompts<'a>(lines: impl IntoIterator<Item = &'a PromptLine>) -> Self {
        Self::of(lines.into_iter().map(turns_of))
    }
    /// How any of the user's turns is like a held-out prompt, or some of them in a row like a
    /// held-out conversation. Any, not only the last one: a follow-up ("are you sure?") would
    /// otherwise carry the held-out prompt in.
    pub fn find(&self, messages: &[Message]) -> Option<Likeness> {
        let turns = user_turns(messages);
        let like = self.named.find(&turns);
        like.filter(|like| *like == Likeness::Same).or_else(|| self.aside.find(&turns)).or(like)
    }
    /// Whether a file holds out this very prompt, and not only a near copy of it.
    pub fn names(&self, messages: &[Message]) -> bool {
        self.named.find(&user_turns(messages)) == Some(Likeness::Same)
    }
    /// Without what `held_out: auto` has set aside.
    pub(super) fn of_files_alone(&self) -> Self {
        Self { named: self.named.clone(), aside: NearIndex::default() }
    }
    /// Whether they may not enter training.
    pub fn contains(&self, messages: &[Message]) -> bool {
        self.find(messages).is_some()
    }
}

/// How many prompts do not enter training, and why.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct LeftOut {
    /// They are held out.
    pub held_out: usize,
    /// They are near copies of held-out prompts.
    pub near_copies: usize,
}

impl LeftOut {
    /// Counts a prompt if it may not enter training; whether that is so.
    pub(super) fn counts(&mut self, held_out: &HeldOut, messages: &[Message]) -> bool {
        match held_out.find(messages) {
            Some(Likeness::Same) => self.held_out += 1,
            Some(Likeness::Near) => self.near_copies += 1,
            None => return false,
        }
        true
    }
    /// Counts those of another set too.
    pub(super) fn add(&mut self, other: Self) {
        self.held_out += other.held_out;
        self.near_copies += other.near_copies;
    }
}

fn turns_of(line: &PromptLine) -> Vec<&str> {
    user_turns(&line.earlier).into_iter().chain([line.prompt.as_str()]).collect()
}

/// All prompts that never enter training.
#[derive(Clone, Debug, Default)]
pub struct Questions {
    /// Of the agents' tasks: here a candidate has to be better.
    pub held_out: Vec<Question>,
    /// Not of the tasks: here it must not be worse. Asked without the agents' system texts.
    pub general: Vec<Question>,
}

impl Questions {
    /// Their fingerprints, and those of further prompts that never enter training.
    pub fn fingerprints<'a>(&'a self, others: impl Iterator<Item = &'a str>) -> HeldOut {
        let questions = self.held_out.iter().chain(&self.general);
        let conversations = questions.map(|question| turns_of(&question.line));
        HeldOut::of(conversations.chain(others.map(|prompt| vec![prompt])))
    }
}

/// Prompts of everyday life, where no agent names general ones.
const BUILT_IN: &str = include_str!("general.jsonl");

/// The prompts of all these agents that have some. Where no agent that learns names general prompts,
/// the built-in ones are.
pub fn load<'a>(
    agents: impl IntoIterator<Item = &'a Arc<Agent>>,
) -> Result<Questions, PromptFileError> {
    let mut questions = Questions::default();
    let mut first_learning = None;
    for agent in agents {
        if agent.learn {
            first_learning.get_or_insert(agent);
        }
        let files = [
            (agent.held_out_file(), &mut questions.held_out),
            (agent.general.as_ref(), &mut questions.general),
        ];
        for (path, questions) in files {
            let Some(path) = path else { continue };
            let lines = prompt_file::read(path)?.into_iter();
            questions.extend(lines.map(|line| Question { agent: agent.clone(), line }));
        }
    }
    if let Some(agent) = first_learning
        && !questions.general.iter().any(|question| question.agent.learn)
    {
        let lines = prompt_file::parse(BUILT_IN).expect("a test reads them");
        let question = |line| Question { agent: agent.clone(), line };
        questions.general.extend(lines.into_iter().map(question));
    }
    Ok(questions)
}

impl Question {
    /// Whether a gate may ask it: its agent learns, and something says which answers are good.
    fn is_judgeable(&self) -> bool {
        let Self { agent, line } = self;
        agent.learn
            && reflect::is_judgeable(agent, line.verifier.as_ref(), line.reference.as_deref())
    }
}

/// Those that a gate may ask.
pub(super) fn judgeable(questions: &[Question]) -> impl Iterator<Item = &Question> {
    questions.iter().filter(|question| question.is_judgeable())
}

/// Held-out prompts that a gate may ask.
pub fn count(questions: &[Question]) -> usize {
    judgeable(questions).count()
}

/// Why nothing could judge what would be trained, and what would help.
pub(super) fn unjudgeable(questions: &Questions, config: &Config) -> Option<String> {
    missing(questions, config).or_else(|| {
        let power = Power::new(count(&questions.held_out), &config.learn.gate);
        (!power.is_enough()).then_some(power.says)
    })
}

/// An agent whose answers are learned from, but that has nothing to be judged by.
fn missing(questions: &Questions, config: &Config) -> Option<String> {
    let has_some = |agent: &Agent| {
        judgeable(&questions.held_out).any(|question| question.agent.name == agent.name)
    };
    let agent = config.agents.values().find(|agent| agent.learn && !has_some(agent))?;
    let of_agent = questions.held_out.iter().filter(|it| it.agent.name == agent.name);
    let n_unjudgeable = of_agent.count();
    if 0 < n_unjudgeable {
        return Some(format!(
            "agent {} has {n_unjudgeable} held-out prompts and nothing that says which answers to them are \
             good: give each a `reference` or a `verifier`, or the agent `aspects`, or set `learn: false`",
            agent.name
        ));
    }
    let advice = match agent.held_out {
        Some(config::HeldOut::Auto) => {
            "`held_out: auto` sets some aside when there are more prompts with a verifier, a \
             reference or your words; or add a held_out file to it"
        }
        _ => "add a held_out file to it, or set `held_out: auto`",
    };
    Some(format!(
        "agent {} has no held-out prompts, so nothing can show that an adapter is better: {advice}, or \
         set `learn: false`",
        agent.name
    ))
}

/// What never enters training because a file says so: questions, and the prompts of labelled answers.
pub fn of_files(config: &Config) -> Result<HeldOut, PromptFileError> {
    read(config).map(|(_, held_out)| held_out)
}

fn read(config: &Config) -> Result<(Questions, HeldOut), PromptFileError> {
    let questions = load(config.agents.values())?;
    let probes = probes(config.agents.values())?;
    let held_out = questions.fingerprints(probes.iter().map(String::as_str));
    Ok((questions, held_out))
}

/// The questions of all agents, and what never enters training. What is to be set aside counts, and
/// [`settle`] makes it so.
pub async fn read_all(
    store: &Store,
    config: &Arc<Config>,
) -> Result<(Questions, HeldOut), HeldOutError> {
    let (questions, held_out, _) = all(store, config).await?;
    Ok((questions, held_out))
}

/// Sets prompts aside, for good. Only what runs as the one operation of the learner may call it: a run
/// that goes on beside it might have learned from them.
pub(super) async fn settle(
    store: &Store,
    config: &Arc<Config>,
) -> Result<(HeldOut, HashSet<ExchangeId>), HeldOutError> {
    let (_, held_out, aside) = all(store, config).await?;
    let new = aside.iter().filter(|it| it.is_new);
    let new: Vec<ExchangeId> = new.map(|it| it.exchange).collect();
    if !new.is_empty() {
        tracing::info!(prompts = new.len(), "Prompts are set aside as held out.");
        store.set_aside(new).await?;
    }
    Ok((held_out, aside.into_iter().map(|it| it.exchange).collect()))
}

async fn all(
    store: &Store,
    config: &Arc<Config>,
) -> Result<(Questions, HeldOut, Vec<Aside>), HeldOutError> {
    let files = config.clone();
    let (mut questions, mut held_out) = blocking(move || read(&files)).await?;
    let aside = aside::look(store, config, &held_out.named).await?;
    for it in &aside {
        held_out.aside.add(&user_turns(&it.messages));
        let agent = config.agents.get(&it.agent);
        let agent = agent.filter(|agent| agent.held_out == Some(config::HeldOut::Auto));
        if let (Some(agent), Some(line)) = (agent, &it.line) {
            questions.held_out.push(Question { agent: agent.clone(), line: line.clone() });
        }
    }
    Ok((questions, held_out, aside))
}

/// The prompts of the answers that measure these agents' judges.
pub fn probes<'a>(
    agents: impl IntoIterator<Item = &'a Arc<Agent>>,
) -> Result<Vec<String>, PromptFileError> {
    let mut prompts = Vec::new();
    for path in agents.into_iter().filter_map(|agent| agent.probes.as_ref()) {
        prompts.extend(prompt_file::read_probes(path)?.into_iter().map(|line| line.prompt));
    }
    Ok(prompts)
}

/// At most `limit` questions: the same ones every time, in an order that the seed gives. Chosen by a
/// hash of their ids, because files are often sorted by kind and a prefix would ask one kind only; in
/// another order each time, because asking stops when the verdict is clear and the first ones would
/// otherwise decide every verdict.
pub(super) fn choose<'a>(
    questions: impl Iterator<Item = &'a Question>,
    limit: usize,
    seed: u64,
) -> Vec<Question> {
    let mut questions: Vec<Question> = questions.cloned().collect();
    questions.sort_by_cached_key(|question| {
        fingerprint(&[&format!("{} {}", question.line.id, question.agent.name)])
    });
    questions.truncate(limit);
    Random::new(seed).shuffle(&mut questions);
    questions
}

#[cfg(test)]
mod tests {
    use super::*;
    use prompt::Role;

    fn user(content: &str) -> Message {
        Message { role: Role::User, content: content.into() }
    }

    #[test]
    fn case_and_white_space_do_not_hide_a_held_out_prompt() {
        let held_out = HeldOut::new(["What is  2 + 2?"]);
        assert!(held_out.contains(&[user(" what is 2 +\n2? ")]));
        assert!(!held_out.contains(&[user("What is 2 + 3?")]));
    }

    #[test]
    fn what_nothing_can_judge_is_held_out_and_not_asked() {
        let judged = crate::learn::tests::agent(std::path::Path::new("/nowhere"));
        let unjudged = Agent { aspects: Vec::new(), ..judged.clone() };
        let ask = |agent: &Agent, reference: Option<&str>| Question {
            agent: Arc::new(agent.clone()),
            line: PromptLine {
                reference: reference.map(str::to_owned),
                ..PromptLine::new("1", "What is 2 + 2?")
            },
        };
        let of = |agent: &Agent, references: &[Option<&str>]| Questions {
            held_out: references.iter().map(|&reference| ask(agent, reference)).collect(),
            general: Vec::new(),
        };
        let questions = of(&unjudged, &[None, Some("4"), None]);
        assert_eq!(count(&questions.held_out), 1);
        assert!(
            of(&unjudged, &[None]).fingerprints([].into_iter()).contains(&[user("What is 2 + 2?")])
        );
        assert_eq!(count(&of(&judged, &[None; 3]).held_out), 3);
        assert_eq!(count(&of(&Agent { learn: false, ..judged }, &[None; 3]).held_out), 0);
    }

    #[test]
    fn held_out_prompts_that_nothing_can_judge_are_told_of_with_what_would_help() {
        let root = std::path::Path::new("/nowhere");
        let judged = crate::learn::tests::agent(root);
        let mut config = crate::learn::tests::configuration(root, "good.sh", &[]);
        let mut unjudgeable = |agent: &Agent, n: usize, reference: Option<&str>| {
            let agent = Arc::new(agent.clone());
            config.agents.insert(agent.name.clone(), agent.clone());
            let line = |i: usize| PromptLine {
                reference: reference.map(str::to_owned),
                ..PromptLine::new(i.to_string(), format!("What is {i} + 2?"))
            };
            let question = |i| Question { agent: agent.clone(), line: line(i) };
            let questions =
                Questions { held_out: (0..n).map(question).collect(), general: Vec::new() };
            super::unjudgeable(&questions, &config)
        };
        let unjudged = Agent { aspects: Vec::new(), ..judged.clone() };
        let said = unjudgeable(&unjudged, 60, None).unwrap();
        let expected = "agent tester has 60 held-out prompts and nothing that says which answers to them \
                        are good: give each a `reference` or a `verifier`, or the agent `aspects`, or set \
                        `learn: false`";
        assert_eq!(said, expected);
        assert_eq!(unjudgeable(&unjudged, 60, Some("4")), None);
        assert_eq!(unjudgeable(&judged, 60, None), None);
        let said = unjudgeable(&judged, 0, None).unwrap();
        assert!(said.starts_with("agent tester has no held-out prompts, so nothing"), "{said}");
    }

    #[test]
    fn there_are_forty_built_in_general_prompts_that_never_enter_training() {
        let lines: Vec<PromptLine> = prompt_file::parse(BUILT_IN).unwrap();
        let held_out = HeldOut::new(lines.iter().map(|line| line.prompt.as_str()));
        let message = |line: &PromptLine| [user(&line.prompt)];
        let same = lines.iter().filter(|it| held_out.find(&message(it)) == Some(Likeness::Same));
        assert_eq!((lines.len(), same.count()), (40, 40));
    }

    #[test]
    fn an_earlier_turn_counts_too_but_what_the_model_said_does_not() {
        let held_out = HeldOut::new(["What is 2 + 2?"]);
        assert!(held_out.contains(&[user("What is 2 + 2?"), user("Are you sure?")]));
        let said = Message { role: Role::Assistant, content: "What is 2 + 2?".into() };
        assert!(!held_out.contains(&[said, user("Yes")]));
    }

    #[test]
    fn of_a_held_out_conversation_the_turns_in_a_row_count_and_none_alone() {
        let held_out = HeldOut::of([vec!["What is 2 + 2?", "Are you sure?"]]);
        let said = Message { role: Role::Assistant, content: "5".into() };
        let whole = [user("Hello"), user("what is 2 + 2?"), said.clone(), user("Are you sure?")];
        assert!(held_out.contains(&whole));
        assert!(!held_out.contains(&[user("What is 2 + 2?")]));
        assert!(!held_out.contains(&[user("Is it rain?"), said, user("Are you sure?")]));
    }
}
