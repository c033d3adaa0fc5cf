//! Examples, prompts with the answers that an owner wants: those that agents' files name and that
//! clients send become stored prompts, are shown while exploring, and are what the run on examples alone
//! learns, with which a model begins that cannot do its task yet. Used by `practice`, `explore`, `night`,
//! `lesson`, `preview` and `readiness`, and by `api` for examples that a client sends.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Parts;
use super::dataset::Dataset;
use super::error::{ExampleError, RunError};
use super::held_out::{self, HeldOut, LeftOut};
use super::job::Lesson;
use super::material::{Material, learning};
use super::pairs::{Tally, ids, prompt_id};
use super::practice_file::{self, Check};
use super::promote::blocking;
use super::replay::Replayed;
use super::yields::Yield;
use crate::reflect::{self, ExampleCheck, ReflectError, Reflector, Shot};
use config::prompt_file::{self, Faults, PromptFileError};
use config::{Agent, Config, ExampleLine};
use engine::Generation;
use prompt::{Message, Role};
use protocol::Example;
use store::{CandidateId, ExampleRow, ExchangeId, FilePrompt, Kept, PairRow, Store};

/// A scheduled run on examples needs so many that are new.
pub const FEWEST_EXAMPLES: usize = 10;

/// Where examples come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// The file that their agent names.
    File,
    /// A client. What the agent's file says of a prompt stays, because it is read again and again.
    Client,
}

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
/// agent's practice file names too keeps its reference and verifier; a client is told where these refuse
/// the answer, or where the agent's own examples say something else.
pub async fn learn(
    reflector: &Reflector,
    store: &Store,
    agent: &Arc<Agent>,
    held_out: HeldOut,
    origin: Origin,
    lines: Vec<(usize, ExampleLine)>,
) -> Result<Learned, ExampleError> {
    // Before anything of the daemon is held that its end would wait for.
    let read = {
        let (agent, is_wanted) = (agent.clone(), !lines.is_empty());
        move || {
            let path = agent.practice.prompts.as_deref().filter(|_| is_wanted);
            let practised = path.map_or_else(
                || Ok(HashMap::new()),
                |path| practice_file::named(&agent, path, &held_out),
            );
            let of_file = match origin {
                Origin::File => HashMap::new(),
                Origin::Client => of_file(&agent)?,
            };
            Ok::<_, ExampleError>((held_out, practised, of_file))
        }
    };
    let (held_out, practised, of_file) = blocking(read).await?;
    let (reflector, agent) = (reflector.clone(), agent.clone());
    let (prompts, left_out) = blocking(move || {
        let mut check = ExampleCheck::new(&agent, Some(reflector.template()));
        let mut faults = Faults::default();
        let mut kept = Vec::new();
        let mut left_out = LeftOut::default();
        for (number, line) in lines {
            let messages = line.messages();
            let prompt = reflect::stored(&agent, &messages);
            let mut fault = check.check(number, &line).err();
            if held_out.names(&messages) {
                fault.get_or_insert_with(|| held_out::NO_EXAMPLE.to_owned());
            }
            if origin == Origin::Client {
                let of_practice = practised.as_ref().ok().and_then(|named| named.get(&prompt));
                let contradicts =
                    || contradiction(&agent, &line, of_file.get(&prompt), of_practice);
                fault = fault.or_else(contradicts);
            }
            if let Some(fault) = fault {
                faults.add(number, fault);
            } else if !left_out.counts(&held_out, &messages) {
                // Of a practice file that cannot be read nobody knows which prompts it names.
                let keeps_check =
                    practised.as_ref().map_or(true, |named| named.contains_key(&prompt));
                kept.push((of_file.get(&prompt).cloned().unwrap_or(line), keeps_check));
            }
        }
        if !faults.is_empty() {
            return Err(ExampleError::Faults(faults));
        }
        let prompts = kept.into_iter().map(|(line, keeps_check)| {
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

/// The examples of an agent's file by their prompts.
fn of_file(agent: &Agent) -> Result<HashMap<Vec<u8>, ExampleLine>, PromptFileError> {
    let lines = agent.examples.as_deref().map_or(Ok(Vec::new()), prompt_file::read_examples)?;
    let prompt = |line: &ExampleLine| reflect::stored(agent, &line.messages());
    Ok(lines.into_iter().map(|(_, line)| (prompt(&line), line)).collect())
}

/// Why what a client sends would not stay: the agent's files are read again and again.
fn contradiction(
    agent: &Agent,
    line: &ExampleLine,
    of_file: Option<&ExampleLine>,
    of_practice: Option<&Check>,
) -> Option<String> {
    let reference =
        |line: &ExampleLine| line.reference.as_deref().unwrap_or(&line.answer).trim().to_owned();
    let differs = |of_file: &&ExampleLine| {
        of_file.answer.trim() != line.answer.trim()
            || (line.reference.is_some() && reference(line) != reference(of_file))
            || (line.verifier.is_some() && line.verifier != of_file.verifier)
    };
    let refuses = |(verifier, reference): &&Check| {
        reflect::refuses(agent, verifier.as_ref(), reference.as_deref(), &line.answer)
    };
    let of_examples = of_file.filter(differs).map(|_| {
        "the agent's own file of examples names another answer, reference or verifier for this prompt: \
         change it there"
    });
    let of_practice = of_practice.filter(refuses).map(|_| {
        "what the agent's practice file names for this prompt refuses the answer: change it there, or \
         the answer"
    });
    of_examples.or(of_practice).map(str::to_owned)
}

/// Stores the examples that the agents' files name, and says what of them is left out.
pub(super) async fn sync(parts: &Parts, config: &Arc<Config>) -> Result<LeftOut, RunError> {
    let mut left_out = LeftOut::default();
    for agent in config.agents.values().filter(|agent| agent.learn) {
        let Some(path) = agent.examples.clone() else { continue };
        let (_, held_out) = held_out::read_all(&parts.store, config).await?;
        let file = path.clone();
        let lines = blocking(move || prompt_file::read_examples(&file)).await?;
        let (reflector, store) = (&parts.reflector, &parts.store);
        let learned = learn(reflector, store, agent, held_out, Origin::File, lines).await;
        let learned = learned.map_err(|error| match error {
            ExampleError::Faults(faults) => prompt_file::faulty_examples(path, faults).into(),
            other => other,
        })?;
        left_out.add(learned.left_out);
    }
    Ok(left_out)
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
