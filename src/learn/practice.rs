//! What a night practises on: the prompts and examples that agents' files name, which become stored
//! prompts; the examples that are shown while exploring; and the run on examples alone, with which a
//! model begins that cannot do its task yet. Used by `explore` and `run`, and by `api` for examples
//! that a client sends.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Parts;
use super::dataset::Dataset;
use super::error::{ExampleError, RunError};
use super::expected;
use super::held_out::{self, HeldOut, LeftOut};
use super::job::Lesson;
use super::material::{Material, learning};
use super::pairs::{Tally, ids, prompt_id};
use super::promote::blocking;
use super::replay::Replayed;
use super::yields::Yield;
use crate::reflect::{self, ReflectError, Reflector, Shot};
use config::prompt_file::{self, Faults, PromptFileError};
use config::{Agent, Config, ExampleLine, PromptLine};
use engine::Generation;
use prompt::{Message, Role};
use protocol::Example;
use store::{CandidateId, ExampleRow, ExchangeId, FilePrompt, Kept, PairRow, Store};

/// Prompts of a practice file that are used; of a longer file always the same ones.
pub(crate) const MOST_PROMPTS: usize = 10_000;
/// Rows stored at once, between which others may use the store.
const AT_ONCE: usize = 500;
/// A scheduled run on examples needs so many that are new.
pub const FEWEST_EXAMPLES: usize = 10;

/// What became of examples.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Learned {
    /// Their prompts were not there.
    pub new: usize,
    /// Their prompts had another answer, reference or verifier.
    pub changed: usize,
    /// They were there, just so.
    pub known: usize,
    /// Not stored: a near copy of a held-out prompt, or a prompt that `held_out: auto` has set aside.
    #[serde(flatten)]
    pub left_out: LeftOut,
}

/// Stores examples of an agent but near copies of held-out prompts, all of them or, when something is
/// wrong with any, none. They come with the numbers by which faults name them. A stored prompt that the
/// agent's practice file names too keeps its reference and verifier.
pub async fn learn(
    reflector: &Reflector,
    store: &Store,
    agent: &Arc<Agent>,
    held_out: HeldOut,
    lines: Vec<(usize, ExampleLine)>,
) -> Result<Learned, ExampleError> {
    let (reflector, agent) = (reflector.clone(), agent.clone());
    let (prompts, left_out) = blocking(move || {
        let mut faults = Faults::default();
        let mut kept = Vec::new();
        let mut left_out = LeftOut::default();
        for (number, line) in lines {
            let messages = line.messages();
            if let Err(fault) = reflect::try_example(&agent, Some(reflector.template()), &line) {
                faults.add(number, fault);
            } else if held_out.names(&messages) {
                faults.add(number, "the prompt is held out, and would no longer measure anything");
            } else if !left_out.counts(&held_out, &messages) {
                kept.push(line);
            }
        }
        if !faults.is_empty() {
            return Err(ExampleError::Faults(faults));
        }
        // Of a practice file that cannot be read nobody knows which prompts it names.
        let path = agent.practice.prompts.as_deref().filter(|_| !kept.is_empty());
        let named = path.map_or(Ok(Vec::new()), prompt_file::read).map(|lines| {
            lines.iter().map(|line| stored(&agent, &line.messages())).collect::<HashSet<_>>()
        });
        let prompts = kept.into_iter().map(|line| {
            let messages = stored(&agent, &line.messages());
            let keeps_check = named.as_ref().map_or(true, |named| named.contains(&messages));
            Ok::<_, ReflectError>(FilePrompt { keeps_check, ..reflector.example(&agent, line)? })
        });
        Ok((prompts.collect::<Result<Vec<_>, _>>()?, left_out))
    })
    .await?;
    let mut learned = Learned { left_out, ..Learned::default() };
    for (_, kept) in store.keep_prompts(prompts).await? {
        match kept {
            Kept::New => learned.new += 1,
            Kept::Changed => learned.changed += 1,
            Kept::Known => learned.known += 1,
        }
    }
    Ok(learned)
}

/// A conversation as the store compares it.
fn stored(agent: &Agent, messages: &[Message]) -> Vec<u8> {
    serde_json::to_vec(&reflect::conversation(agent, messages)).expect("messages are plain data")
}

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
    /// Lines of files that they do not practise on.
    pub(super) left_out: LeftOut,
}

/// Brings the store to what the files of the agents that learn say, and sets prompts aside.
pub(super) async fn sync(parts: &Parts, config: &Arc<Config>) -> Result<Practised, RunError> {
    let mut practised =
        Practised { left_out: sync_examples(parts, config).await?, ..Practised::default() };
    let mut stored = Vec::new();
    for agent in config.agents.values().filter(|agent| agent.learn) {
        let Some(path) = agent.practice.prompts.clone() else {
            expected::forget(parts, agent, &HashSet::new()).await?;
            continue;
        };
        let (lines, left_out) = lines(config, path).await?;
        practised.left_out.add(left_out);
        let prompts = store_prompts(parts, agent, lines).await?;
        let named: HashSet<ExchangeId> = prompts.iter().map(|it| it.exchange).collect();
        let answered = prompts.iter().filter(|it| it.is_answered).map(|it| it.exchange);
        practised.answered.extend(answered);
        expected::forget(parts, agent, &named).await?;
        let examples = parts.store.examples(vec![agent.name.clone()]).await?;
        for row in examples.iter().filter(|row| named.contains(&row.exchange)) {
            expected::renew(parts, agent, row.exchange).await?;
        }
        stored.push((agent.name.clone(), prompts, examples));
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
    Ok(Practised { aside, ..practised })
}

/// Stores the examples that the agents' files name, and says what of them is left out.
pub(super) async fn sync_examples(
    parts: &Parts,
    config: &Arc<Config>,
) -> Result<LeftOut, RunError> {
    let mut left_out = LeftOut::default();
    for agent in config.agents.values().filter(|agent| agent.learn) {
        let Some(path) = agent.examples.clone() else { continue };
        let (_, held_out) = held_out::read_all(&parts.store, config).await?;
        let lines = blocking(move || prompt_file::read_examples(&path)).await?;
        let learned = learn(&parts.reflector, &parts.store, agent, held_out, lines).await?;
        left_out.add(learned.left_out);
    }
    Ok(left_out)
}

/// The prompts of a practice file that no file holds out.
async fn lines(
    config: &Arc<Config>,
    path: std::path::PathBuf,
) -> Result<(Vec<PromptLine>, LeftOut), PromptFileError> {
    let config = config.clone();
    blocking(move || {
        let held_out = held_out::of_files(&config)?;
        let mut lines = prompt_file::read(&path)?;
        let mut left_out = LeftOut::default();
        lines.retain(|line| !left_out.counts(&held_out, &line.messages()));
        if MOST_PROMPTS < lines.len() {
            // Files are often sorted by kind.
            lines.sort_by_cached_key(|line| Sha256::digest(&line.id));
            lines.truncate(MOST_PROMPTS);
        }
        Ok((lines, left_out))
    })
    .await
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
        let checks: Vec<_> = prompts.iter().map(|it| Checked::of(&agent, it)).collect();
        let kept = parts.store.keep_prompts(prompts).await?;
        let ids = kept.iter().map(|&(exchange, _)| exchange).collect();
        parts.store.forget_other_references(ids).await?;
        let today = kept.iter().map(|&(exchange, _)| exchange).zip(checks);
        check_again(parts, &agent, today).await?;
        stored.extend(kept.into_iter().zip(said).map(
            |((exchange, _), (messages, is_answered))| Stored { exchange, messages, is_answered },
        ));
    }
}

/// What checks answers to a prompt today.
#[derive(Debug)]
enum Checked {
    /// This version of its verifier or reference; `None`: nothing does.
    By(Option<String>),
    /// The agent's own program. To ask it about everything again would take too long.
    ByProgram,
}

impl Checked {
    fn of(agent: &Agent, FilePrompt { exchange, .. }: &FilePrompt) -> Self {
        let (verifier, reference) = (exchange.verifier.as_ref(), exchange.reference.as_deref());
        let has_program = agent.verifier.as_ref().is_some_and(|it| !it.commands().is_empty());
        if verifier.is_none() && has_program {
            Self::ByProgram
        } else {
            Self::By(reflect::check_version(agent, verifier, reference))
        }
    }
}

/// Gives answers that another verifier has checked the word of the one of today.
async fn check_again(
    parts: &Parts,
    agent: &Agent,
    today: impl Iterator<Item = (ExchangeId, Checked)>,
) -> Result<(), RunError> {
    let today = today.filter_map(|(exchange, checked)| match checked {
        Checked::By(version) => Some((exchange, version)),
        Checked::ByProgram => None,
    });
    let answers = parts.store.checked_otherwise(today.collect()).await?;
    for answers in answers.chunk_by(|a, b| a.0 == b.0) {
        let exchange = parts.store.exchange(answers[0].0).await?;
        let ids: Vec<_> = answers.iter().map(|it| it.1).collect();
        let again = parts.reflector.check_again(agent, &exchange, &ids).await?;
        parts.store.replace_assessments(again).await?;
    }
    Ok(())
}

/// Examples in the order in which they are shown: another one for each generation, and the same for all
/// of its prompts, so that their cells are shared; with different answers first.
pub(super) fn in_order(mut examples: Vec<ExampleRow>, generation: Generation) -> Vec<ExampleRow> {
    examples.sort_by_cached_key(|row| Sha256::digest(format!("{generation} {}", row.candidate)));
    let mut answers = HashSet::new();
    let (mut order, rest): (Vec<_>, Vec<_>) =
        examples.into_iter().partition(|row| answers.insert(row.text.clone()));
    order.extend(rest);
    order
}

/// The `k` examples, in that order, that are shown before a prompt: all but its own.
pub(super) fn shots(order: &[ExampleRow], exchange: ExchangeId, k: usize) -> Vec<Shot> {
    order.iter().filter(|row| row.exchange != exchange).take(k).map(shot).collect()
}

fn shot(row: &ExampleRow) -> Shot {
    let turns = row.messages.iter().filter(|message| message.role != Role::System).cloned();
    let answer = Message { role: Role::Assistant, content: row.text.clone() };
    Shot { candidate: row.candidate, turns: turns.chain([answer]).collect() }
}

/// The run on examples that is due: when some are new and the model has solved fewer prompts than
/// there are new examples. `is_scheduled`: a few are not worth a night.
pub(super) async fn waiting(
    parts: &Parts,
    config: &Config,
    held_out: &HeldOut,
    is_scheduled: bool,
) -> Result<Option<Material>, RunError> {
    let agents = learning(config);
    let mut rows = parts.store.examples(agents.clone()).await?;
    let mut tally = Tally { prompts: rows.len(), ..Tally::default() };
    rows.retain(|row| !tally.left_out.counts(held_out, &row.messages));
    let learned = parts.store.learned().await?;
    let learned: HashSet<CandidateId> = learned.into_iter().filter_map(|it| it.0).collect();
    let n_new = rows.iter().filter(|row| !learned.contains(&row.candidate)).count();
    let fewest = if is_scheduled { FEWEST_EXAMPLES } else { 1 };
    if n_new < fewest || n_new <= parts.store.n_solved(agents).await? {
        return Ok(None);
    }
    let example = |row: &ExampleRow| Example {
        prompt_id: prompt_id(&row.prompt),
        prompt: ids(&row.prompt),
        chosen: ids(&row.tokens),
        rejected: None,
    };
    let pair = |row: &ExampleRow| PairRow {
        exchange: row.exchange,
        chosen: Some(row.candidate),
        rejected: None,
        margin: 0.0,
    };
    Ok(Some(Material {
        dataset: Dataset::new(rows.iter().map(example)),
        n_new,
        replayed: Replayed { pairs: rows.len(), old: rows.len() - n_new, stale: 0 },
        tally,
        rows: rows.iter().map(pair).collect(),
        yielded: Yield::default(),
        lesson: Lesson::Examples,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: i64, text: &str) -> ExampleRow {
        ExampleRow {
            agent: "tester".into(),
            exchange: ExchangeId(id),
            candidate: CandidateId(100 + id),
            messages: vec![
                Message { role: Role::System, content: "Be brief.".into() },
                Message { role: Role::User, content: format!("ask {id}") },
            ],
            prompt: Vec::new(),
            text: text.into(),
            tokens: Vec::new(),
        }
    }

    #[test]
    fn shots_are_the_same_for_all_prompts_but_their_own_and_differ_in_their_answers() {
        let rows: Vec<_> = ["yes", "no", "perhaps"]
            .iter()
            .cycle()
            .zip(0..20)
            .map(|(text, id)| row(id, text))
            .collect();
        let order = in_order(rows.clone(), Generation::BASE);
        let shown = shots(&order, ExchangeId(99), 3);
        let answer = |shot: &Shot| shot.turns.last().unwrap().content.clone();
        let answers: HashSet<_> = shown.iter().map(answer).collect();
        assert_eq!(answers.len(), 3, "{shown:?}");
        assert_eq!(shown, shots(&order, ExchangeId(98), 3));
        assert!(shown.iter().all(|shot| shot.turns.len() == 2), "no system text: {shown:?}");
        for row in &rows {
            let shown = shots(&order, row.exchange, 3);
            assert!(shown.iter().all(|shot| shot.candidate != row.candidate));
        }
        assert_eq!(shots(&order, ExchangeId(99), 50).len(), 20);
        assert_eq!(shots(&order, ExchangeId(99), 0), []);
    }
}
