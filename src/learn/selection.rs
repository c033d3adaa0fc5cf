//! Which of a run's candidates goes to the gate: by how many of their answers are right, checked by
//! program, to prompts that the run has not trained on. The validation loss says how probable the
//! wanted answers are, not whether the model's own are right. Asks and checks; it must not decide on
//! promotion (`gate` does), and never sees a held-out prompt. Used by `run`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Parts;
use super::error::RunError;
use super::gate::mcnemar;
use super::held_out::HeldOut;
use super::job::{Lesson, validation_share};
use super::pairs::prompt_id;
use super::practice::Practised;
use super::promote::blocking;
use crate::reflect::{ReflectError, is_checked};
use config::{Agent, Config};
use engine::{EngineError, Generation, Priority, Sampling, Weights};
use prompt::Message;
use protocol::{Job, Objective};
use store::{Author, Candidate, Exchange};

/// Prompts asked at most.
const MOST: usize = 64;
/// With fewer a difference is chance, and the validation loss decides.
const FEWEST: usize = 10;
/// Stored prompts looked at for them, at most.
const LOOKED_AT: usize = 1000;
/// How probable so many losses may be where nothing is worse: what a normal error exceeds by one standard
/// error or more.
const CHANCE: f64 = 0.1587;
/// Prompts under way at once.
const PARALLEL: usize = 4;

/// Where such prompts come from.
#[derive(Debug)]
pub(super) struct Practice {
    pub(super) practised: Practised,
    /// Never asked.
    pub(super) held_out: HeldOut,
    /// What the run learns from.
    pub(super) lesson: Lesson,
}

/// Prompts that measure candidates: a program decides whether an answer is right, they are not held out,
/// and neither this run nor an earlier one trains on them.
#[derive(Debug)]
pub(super) struct Untrained {
    prompts: Vec<(Arc<Agent>, Exchange)>,
}

/// What a candidate has come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Standing {
    /// What was minimised. The second one of an objective is what it was after the last step, the first
    /// one where the validation loss was smallest.
    pub(super) objective: &'static str,
    /// Right answers.
    pub(super) right: usize,
    /// Of these, answers that what is served has wrong.
    pub(super) wins: usize,
    /// Wrong answers that what is served has right.
    pub(super) losses: usize,
}

impl Standing {
    /// Whether each answer is right, by the candidate and by what is served.
    fn new(objective: Objective, candidate: &[bool], start: &[bool]) -> Self {
        let count = |of: &dyn Fn(bool, bool) -> bool| {
            candidate.iter().zip(start).filter(|&(&candidate, &start)| of(candidate, start)).count()
        };
        Self {
            objective: objective.name(),
            right: count(&|candidate, _| candidate),
            wins: count(&|candidate, start| candidate && !start),
            losses: count(&|candidate, start| !candidate && start),
        }
    }

    /// By an exact sign test. A loss that may be chance is for the gate, which has more prompts.
    fn is_worse(&self) -> bool {
        mcnemar(self.losses, self.wins) < CHANCE
    }
}

/// What the candidates of a run have come to; in a run's record.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Selection {
    /// Prompts asked.
    pub(super) prompts: usize,
    /// Right answers of what is served.
    pub(super) start: usize,
    /// In the order in which they were asked.
    pub(super) candidates: Vec<Standing>,
    /// The place of the one that went to the gate; `None`: none did.
    pub(super) chosen: Option<usize>,
}

impl Selection {
    /// Of these answers of what is served; there are no candidates yet.
    pub(super) fn new(start: &[bool]) -> Self {
        let n_right = start.iter().filter(|&&is_right| is_right).count();
        Self { prompts: start.len(), start: n_right, candidates: Vec::new(), chosen: None }
    }

    /// The next candidate: whether each answer is right, by the candidate and by what is served.
    pub(super) fn add(&mut self, objective: Objective, candidate: &[bool], start: &[bool]) {
        self.candidates.push(Standing::new(objective, candidate, start));
    }

    /// Whether a further candidate could be better.
    pub(super) fn has_room(&self) -> bool {
        self.candidates.iter().all(|it| it.right < self.prompts)
    }

    /// The one with the most right answers. Of equal ones the good answers alone, which push nothing down,
    /// and then the earlier.
    pub(super) fn best(&self) -> usize {
        let rank = |it: &Standing| (it.right, it.objective == Objective::Sft.name());
        let best = self.candidates.iter().map(rank).max();
        self.candidates.iter().position(|it| Some(rank(it)) == best).unwrap_or(0)
    }

    /// Why none of them goes to the gate, if all are worse than what is served.
    pub(super) fn refusal(&self) -> Option<String> {
        let Self { prompts, start, candidates, chosen: _ } = self;
        if !candidates.iter().all(Standing::is_worse) {
            return None;
        }
        let best = candidates.iter().map(|it| it.right).max().unwrap_or(0);
        Some(format!(
            "every candidate is worse than what is served on practice prompts that were not trained on \
             (right of {prompts}: {start} as served, at most {best} trained): more right answers to learn \
             from would help, by examples or by shots"
        ))
    }
}

/// `right of 40 prompts: as served 10, auto 12, auto 25, sft 25`.
impl fmt::Display for Selection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prompts, start, candidates, chosen: _ } = self;
        write!(formatter, "right of {prompts} prompts: as served {start}")?;
        candidates.iter().try_for_each(|it| write!(formatter, ", {} {}", it.objective, it.right))
    }
}

impl Untrained {
    /// `None`: there are too few.
    pub(super) async fn find(
        parts: &Parts,
        config: &Config,
        Practice { practised, held_out, lesson }: &Practice,
        job: &Job,
    ) -> Result<Option<Self>, RunError> {
        let path = job.data.clone();
        let share = job.validation_share;
        // Of those that were explored and gave nothing to learn the same share as of the others: they are
        // mostly those that the model cannot do, and all of them would make what is served look worse than
        // it is. Examples leave no prompt out for what the model can do.
        let explored_share = if *lesson == Lesson::Examples { 1.0 } else { share };
        // Of those that an earlier run has learned from, what it kept aside.
        let learned_share = validation_share(&config.learn, Lesson::Answers);
        let data = blocking(move || Data::read(&path, share));
        let data =
            data.await.map_err(|source| RunError::Write { path: job.data.clone(), source })?;
        let mut by_agent = Vec::new();
        for agent in config.agents.values().filter(|agent| agent.learn) {
            // Else the program's word does not count, and guards.
            if agent.reflection.verifier_weight <= 0.0 {
                continue;
            }
            let name = agent.name.clone();
            let learned = parts.store.learned_prompts(vec![name.clone()]).await?;
            let learned: HashSet<_> = learned.iter().map(|(_, messages)| words(messages)).collect();
            let examples = parts.store.examples(vec![name.clone()]).await?;
            let taught: HashSet<_> = examples.iter().map(|it| prompt_id(&it.prompt)).collect();
            let all = parts.store.explorable(name, (u32::MAX, 0), Generation::BASE, true).await?;
            let mut ids: Vec<_> = all.into_iter().map(|it| it.exchange).collect();
            if let Some(only) = practised.by_agent.get(&agent.name) {
                ids.retain(|id| only.contains(id));
            }
            ids.retain(|id| !practised.aside.contains(id));
            ids.sort_by_cached_key(|id| Sha256::digest(id.to_string()));
            let mut prompts = BTreeMap::new();
            for id in ids.into_iter().take(LOOKED_AT) {
                if prompts.len() == MOST {
                    break;
                }
                let exchange = parts.store.exchange(id).await?;
                let id = prompt_id(&exchange.prompt_tokens);
                // A run on examples keeps none aside, so what is served knows their answers by heart.
                let has_example =
                    taught.contains(&id) || exchange.candidates.iter().any(Candidate::is_example);
                let share_left = if learned.contains(&words(&exchange.messages)) {
                    learned_share
                } else if exchange.candidates.iter().any(|it| it.author == Author::Model) {
                    explored_share
                } else {
                    1.0
                };
                if !has_example
                    && data.has_left(&id, share_left)
                    && !held_out.contains(&exchange.messages)
                    && is_checked(agent, exchange.verifier.as_ref(), exchange.reference.as_deref())
                {
                    // A prompt that was asked twice counts once.
                    prompts.insert(id, (agent.clone(), exchange));
                }
            }
            by_agent.push(prompts.into_values());
        }
        // In turn, so that no agent decides alone.
        let mut prompts = Vec::new();
        while prompts.len() < MOST {
            let before = prompts.len();
            prompts.extend(by_agent.iter_mut().filter_map(Iterator::next));
            if prompts.len() == before {
                break;
            }
        }
        prompts.truncate(MOST);
        Ok((FEWEST <= prompts.len()).then_some(Self { prompts }))
    }

    pub(super) fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Whether each answer of a loaded generation is right, greedily. `show` is told how many there are.
    pub(super) async fn right(
        &self,
        parts: &Parts,
        by: Generation,
        show: &(dyn Fn(usize) + Sync),
    ) -> Result<Vec<bool>, ReflectError> {
        let asked =
            self.prompts.iter().map(|(agent, exchange)| is_right(parts, agent, exchange, by));
        let mut answers = stream::iter(asked.collect::<Vec<_>>()).buffered(PARALLEL);
        let mut right = Vec::new();
        while let Some(is_right) = answers.try_next().await? {
            right.push(is_right);
            show(right.len());
        }
        Ok(right)
    }
}

async fn is_right(
    parts: &Parts,
    agent: &Agent,
    exchange: &Exchange,
    by: Generation,
) -> Result<bool, ReflectError> {
    let max_tokens = agent.sampling.max_tokens;
    let sampling = Sampling { temperature: 0.0, max_tokens, seed: Some(0), ..Sampling::default() };
    let (weights, reflector) = (Weights::Generation(by), &parts.reflector);
    let answer =
        reflector.answer(agent, &exchange.messages, weights, sampling, Priority::Gate).await;
    match answer {
        // It is too long for all candidates alike.
        Err(ReflectError::Engine(EngineError::TooLong { .. })) => Ok(false),
        answer => Ok(reflector.check(agent, exchange, &answer?.text).await? == Some(true)),
    }
}

/// Which prompts a data set has, by their ids.
#[derive(Debug)]
struct Data {
    all: BTreeSet<String>,
    validation: BTreeSet<String>,
}

impl Data {
    fn read(path: &Path, share: f64) -> io::Result<Self> {
        #[derive(Deserialize)]
        struct Line {
            prompt_id: String,
        }
        let text = std::fs::read_to_string(path)?;
        let all: BTreeSet<String> = text
            .lines()
            .map(|line| serde_json::from_str(line).map(|Line { prompt_id }| prompt_id))
            .collect::<Result<_, _>>()?;
        let validation = protocol::validation_prompts(all.clone(), share);
        Ok(Self { all, validation })
    }

    /// Whether the run does not train on a prompt; of those that its data set does not have, a share.
    fn has_left(&self, id: &str, share: f64) -> bool {
        if self.all.contains(id) {
            return self.validation.contains(id);
        }
        protocol::fraction_of(id) < share
    }
}

/// Equal for equal conversations, also where they were stored twice.
fn words(messages: &[Message]) -> String {
    serde_json::to_string(messages).expect("messages are plain data")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// What is served has the first ten of forty right; candidates so many from some on.
    fn selection(candidates: &[(usize, usize)]) -> Selection {
        let right = |(first, end): (usize, usize)| -> Vec<bool> {
            (0..40).map(|at| (first..end).contains(&at)).collect()
        };
        let start = right((0, 10));
        let mut selection = Selection::new(&start);
        for &range in candidates {
            selection.add(Objective::Sft, &right(range), &start);
        }
        selection
    }

    #[test]
    fn the_candidate_with_the_most_right_answers_goes_to_the_gate() {
        let found = selection(&[(0, 12), (5, 25), (5, 25)]);
        assert_eq!((found.best(), found.refusal()), (1, None));
        let second = Standing { objective: "sft", right: 20, wins: 15, losses: 5 };
        assert_eq!(found.candidates[1], second);
        assert_eq!(found.to_string(), "right of 40 prompts: as served 10, sft 12, sft 20, sft 20");
        let mut equal = selection(&[(5, 25)]);
        equal.candidates.insert(0, Standing { objective: "mixed", ..equal.candidates[0].clone() });
        assert_eq!(equal.best(), 1);
        assert!(found.has_room() && !selection(&[(0, 40)]).has_room());
    }

    #[test]
    fn a_night_ends_where_every_candidate_is_worse_than_what_is_served() {
        let refusal = selection(&[(0, 3), (4, 10)]).refusal().unwrap();
        assert!(refusal.contains("right of 40: 10 as served, at most 6 trained"), "{refusal}");
        assert_eq!(selection(&[(0, 3), (0, 10)]).refusal(), None);
        assert_eq!(selection(&[(1, 10)]).refusal(), None, "one answer may be chance");
        assert_eq!(selection(&[(2, 10)]).refusal(), None, "two may be, in one of four cases");
        assert!(selection(&[(3, 10)]).refusal().is_some());
    }

    #[test]
    fn what_is_validated_on_is_not_trained_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.jsonl");
        let line = |i| format!("{{\"prompt_id\":\"{i}\",\"prompt\":[1],\"chosen\":[2]}}\n");
        let data = |n: usize, share| {
            let lines: String = (0..2 * n).map(|i| line(i / 2)).collect();
            files::write_atomic(&path, |file| file.write_all(lines.as_bytes())).unwrap();
            Data::read(&path, share).unwrap()
        };
        let (early, late) = (data(100, 0.5), data(200, 0.5));
        assert_eq!((early.all.len(), data(100, 0.0).validation.len()), (100, 0));
        assert!((35..65).contains(&early.validation.len()), "{:?}", early.validation);
        // What an earlier night has trained on is never compared on.
        assert!(early.validation.is_subset(&late.validation));
        let trained: BTreeSet<_> = early.all.difference(&early.validation).cloned().collect();
        assert!(trained.is_disjoint(&late.validation));
    }
}
