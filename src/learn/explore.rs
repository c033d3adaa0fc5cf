//! Exploration: fills stored prompts with drafts and refinements while nobody waits. What is made of
//! a prompt is `reflect`'s business; this walks over the prompts. It keeps no state of its own: which
//! prompts are left over is read from the store, so that a wish after a stop, a crash or a kill goes
//! on where the last one was. Used by `task`.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::error::RunError;
use super::expected::{self, Supplied};
use super::held_out::LeftOut;
use super::op_queue::Exploration;
use super::passing::{Counts, Passing};
use super::{Ended, Parts, Stage, examples, practice};
use crate::reflect::pursue::{self, Aim, Next, Reason};
use crate::reflect::{self, Compared, Explored, Practising, ReflectError, Shot, Trial};
use config::{Agent, Promising};
use engine::{EngineError, Priority, Sampling, Weights};
use prompt::{Message, Role};
use store::{ExchangeId, Filled};

/// Prompts under way at once: their drafts fill the batch, and a chat still finds room.
const PARALLEL: usize = 4;

/// What exploration has brought, since it began or since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Harvest {
    /// Prompts that were left, for whatever reason.
    pub prompts: usize,
    /// New candidates.
    pub candidates: usize,
    /// Candidates that were judged and pass every aspect.
    pub positives: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Prompts left early, with enough of good and bad answers.
    pub enough: usize,
    /// Prompts given up, because nothing passes.
    pub given_up: usize,
    /// Prompts whose right answer, as the verifier names it, is learned from now on, because none of the
    /// model's is right.
    pub expected: usize,
    /// Prompts of which it is not, because it does not fit the chat template or the context.
    pub unfit: usize,
    /// Prompts left after their first drafts, because next to no answer to prompts of their kind passes:
    /// what their verifier names is learned without further tries.
    pub unpursued: usize,
}

impl Harvest {
    fn add(&mut self, news: &Explored) {
        self.candidates += news.drafts + news.refinements;
        self.positives += news.positives;
        self.generated_tokens += news.generated_tokens;
    }
    fn leave(&mut self, reason: Option<Reason>) {
        self.prompts += 1;
        self.enough += usize::from(reason == Some(Reason::Enough));
        self.given_up += usize::from(reason == Some(Reason::Hopeless));
    }
    fn supply(&mut self, supplied: Supplied) {
        self.expected += usize::from(supplied == Supplied::New);
        self.unfit += usize::from(supplied == Supplied::Unfit);
    }
    /// The yield: positives for each 1,000 generated tokens.
    pub fn positives_per_1000_tokens(&self) -> f64 {
        self.positives as f64 * 1000.0 / self.generated_tokens.max(1) as f64
    }
}

/// Whether refinements or fresh drafts have yielded more for one agent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Refining {
    /// Its name.
    pub agent: String,
    /// The numbers of both.
    #[serde(flatten)]
    pub compared: Compared,
}

/// Who is told what exploration brings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tellers<'a> {
    /// What the learner is doing.
    pub(super) stage: &'a watch::Sender<Stage>,
    /// Since the daemon started.
    pub(super) total: &'a watch::Sender<Harvest>,
}

/// Explores as wished.
pub(super) async fn explore(
    parts: &Parts,
    wish: &Exploration,
    tellers: Tellers<'_>,
) -> Result<Ended, RunError> {
    let began = Instant::now();
    let Wanted { todo, tried, left_out } = wanted(parts, wish).await?;
    let total = todo.len();
    let agent = todo.first().map(|todo| todo.agent.clone());
    let mut trials: Vec<(String, Arc<Trial>)> = Vec::new();
    for trial in todo.iter().filter_map(|todo| Some((todo.agent.name.clone(), todo.trial.clone()?)))
    {
        if trials.last().is_none_or(|(agent, _)| *agent != trial.0) {
            trials.push(trial);
        }
    }
    let harvest = Mutex::new(Harvest::default());
    let begun = &AtomicUsize::new(0);
    let change = &|change: &dyn Fn(&mut Harvest)| {
        let mut harvest = harvest.lock().expect("nobody panics while holding the harvest");
        change(&mut harvest);
        tellers.total.send_modify(change);
        tellers.stage.send_replace(Stage::Exploring {
            done: harvest.prompts,
            begun: begun.load(Ordering::Relaxed),
            total,
            positives: harvest.positives,
            generated_tokens: harvest.generated_tokens,
            positives_per_1000_tokens: harvest.positives_per_1000_tokens(),
            unpursued: harvest.unpursued,
        });
    };
    change(&|_| {});
    for (agent, exchange) in tried {
        let supplied = expected::supply(parts, &agent, exchange).await?;
        change(&|harvest| harvest.supply(supplied));
    }
    let told = &|news: Explored| change(&|harvest| harvest.add(&news));
    let easy = &Mutex::new(BTreeMap::<String, Easy>::new());
    let lost = &Mutex::new(Vec::new());
    // First a few drafts of every prompt: an exploration that is cut short has something of all of them
    // and not everything of some.
    let first = |todo: Todo| async move {
        let aim = todo.aim.first_stage();
        let explored = fill(parts, &todo, aim, false, told, lost).await?;
        begun.fetch_add(1, Ordering::Relaxed);
        change(&|_| {});
        {
            let mut easy = easy.lock().expect("nobody panics while holding it");
            easy.entry(todo.agent.name.clone()).or_default().add(&explored);
        }
        todo.count(&explored);
        let negatives = explored.drafts.saturating_sub(explored.positives);
        let is_left = explored.left.is_none() || todo.aim.has_enough(explored.positives, negatives);
        if is_left {
            change(&|harvest| harvest.leave(explored.left));
        }
        Ok::<_, RunError>((!is_left).then_some(todo))
    };
    let fills: Vec<_> = todo.into_iter().map(first).collect();
    // In their order, so that the rest is pursued in it.
    let rest: Vec<_> = stream::iter(fills).buffered(PARALLEL).try_collect().await?;
    let easy = std::mem::take(&mut *easy.lock().expect("nobody panics while holding it"));
    for agent in easy.iter().filter(|(_, easy)| easy.are_most()).map(|(agent, _)| agent) {
        info!(agent, "The drafts of most prompts all pass, so further ones are sampled hotter.");
    }
    let easy = &easy;
    let second = |todo: Todo| async move {
        if let Some(supplied) = unpursued(parts, &todo).await? {
            change(&|harvest| {
                harvest.leave(None);
                harvest.unpursued += 1;
                harvest.supply(supplied);
            });
            return Ok(());
        }
        let all_pass = easy.get(&todo.agent.name).is_some_and(Easy::are_most);
        let explored = fill(parts, &todo, todo.aim, all_pass, told, lost).await?;
        todo.count(&explored);
        let supplied = supply(parts, &todo, explored.left).await?;
        change(&|harvest| {
            harvest.leave(explored.left);
            harvest.supply(supplied);
        });
        Ok::<(), RunError>(())
    };
    let fills: Vec<_> = rest.into_iter().flatten().map(second).collect();
    stream::iter(fills).buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await?;
    let failed = std::mem::take(&mut *lost.lock().expect("nobody panics while holding it"));
    let (prompts, failed) = (failed.len(), failed.iter().filter(|it| is_failure(it)).count());
    if let Some(agent) = agent.filter(|_| prompts == total && 0 < failed)
        && let Some(source) = engine_failure(parts, &agent).await
    {
        return Err(RunError::EngineFails { failed, prompts, source });
    }
    let harvest = harvest.into_inner().expect("nobody panics while holding the harvest");
    let refining = trials.into_iter().filter_map(|(agent, trial)| {
        let compared = trial.compared()?;
        Some(Refining { agent, compared })
    });
    Ok(Ended::Explored {
        refining: refining.collect(),
        left_out,
        positives_per_1000_tokens: harvest.positives_per_1000_tokens(),
        harvest,
        wall_s: began.elapsed().as_secs_f64(),
    })
}

fn is_failure(error: &EngineError) -> bool {
    matches!(error, EngineError::Failed(_))
}

/// How the engine fails at a prompt that is none of those explored: then it is not their fault.
async fn engine_failure(parts: &Parts, agent: &Agent) -> Option<EngineError> {
    let prompt = [Message { role: Role::User, content: "?".to_owned() }];
    let sampling = Sampling { temperature: 0.0, max_tokens: 1, ..Sampling::default() };
    let (weights, priority) = (Weights::Active, Priority::Explore);
    match parts.reflector.answer(agent, &prompt, weights, sampling, priority).await {
        Err(ReflectError::Engine(error)) => Some(error).filter(is_failure),
        _ => None,
    }
}

/// How many prompts of an agent are so easy that all of their first drafts pass.
#[derive(Debug, Default)]
struct Easy {
    prompts: usize,
    all_pass: usize,
}

impl Easy {
    fn add(&mut self, first: &Explored) {
        if 0 < first.drafts {
            self.prompts += 1;
            self.all_pass += usize::from(first.positives == first.drafts);
        }
    }
    fn are_most(&self) -> bool {
        self.prompts < 2 * self.all_pass
    }
}

/// One prompt and how far to fill it.
struct Todo {
    agent: Arc<Agent>,
    exchange: ExchangeId,
    aim: Aim,
    /// Whether refining pays; `None`: exactly what was asked for is made.
    trial: Option<Arc<Trial>>,
    /// How many answers pass to the prompts of its agent whose verifier names the right one; `None`: its own
    /// does not, or no file names it.
    passing: Option<Arc<Passing>>,
    shots: Vec<Shot>,
}

impl Todo {
    fn count(&self, &Explored { drafts, refinements, positives, .. }: &Explored) {
        if let Some(passing) = &self.passing {
            passing.add(Counts { drafts, refinements, passes: positives });
        }
    }
}

/// What there is to explore.
struct Wanted {
    /// The prompts that are worth it, fewest answers first. Those that an earlier exploration left for good
    /// do not count.
    todo: Vec<Todo>,
    /// Those among the prompts whose verifier names the right answer, and that have no example: their answers
    /// may be right by a verifier that was another one then, or the daemon was killed after the last.
    tried: Vec<(Arc<Agent>, ExchangeId)>,
    /// Prompts of files that are not explored.
    left_out: LeftOut,
}

async fn wanted(parts: &Parts, wish: &Exploration) -> Result<Wanted, RunError> {
    let config = parts.config.borrow().clone();
    let generation = parts.engine.stats().active;
    let is_wanted = |agent: &&Arc<Agent>| match &wish.agent {
        Some(name) => agent.name == *name,
        None => agent.learn,
    };
    let practised = practice::sync(parts, &config).await?;
    let (mut todo, mut tried) = (Vec::new(), Vec::new());
    for agent in config.agents.values().filter(is_wanted) {
        let (drafts, refinements) = wish.split.unwrap_or(agent.reflection.explore);
        let only = practised.by_agent.get(&agent.name).filter(|_| !wish.all);
        // What is practised on is practised on by each generation.
        let anew = only.is_some();
        let aim = Aim { drafts, refinements, stop_early: agent.reflection.stop_early, anew };
        let is_open = wish.split.is_none()
            && 0 < aim.stop_early.enough
            && agent.reflection.promising == Promising::BestFaulty;
        let trial = is_open.then(Arc::<Trial>::default);
        // Of what is practised on also those that are filled.
        let split = if anew { (u32::MAX, u32::MAX) } else { (drafts, refinements) };
        let name = agent.name.clone();
        let mut filled = parts.store.explorable(name, split, generation, anew).await?;
        filled.retain(|it| {
            !practised.aside.contains(&it.exchange)
                && only.is_none_or(|only| only.contains(&it.exchange))
        });
        let examples = parts.store.examples(vec![agent.name.clone()]).await?;
        let taught: HashSet<ExchangeId> = examples.iter().map(|row| row.exchange).collect();
        // What was set aside after it became an example would be given away.
        let shown = examples.into_iter().filter(|row| !practised.held_out.contains(&row.messages));
        let shown = match agent.practice.shots {
            0 => Vec::new(),
            _ => examples::in_order(shown.collect(), generation),
        };
        // Where the best draft is revised whatever its levels are, any draft may be it.
        let filled: Vec<_> = filled
            .into_iter()
            .map(|it| match agent.reflection.promising {
                Promising::BestFaulty => it,
                Promising::Best => Filled { faulty_drafts: it.drafts, ..it },
            })
            .collect();
        let has_answer = |it: &&Filled| anew && practised.answered.contains(&it.exchange);
        let passing = Arc::new(Passing::of(filled.iter().filter(has_answer)));
        // What is unjudged after a crash, or because the judge was away, may be all that training needs.
        let is_left =
            |it: &&Filled| it.unjudged == 0 && matches!(pursue::next(&aim, it), Next::Leave(_));
        let (left, worth): (Vec<_>, Vec<_>) = filled.iter().partition(is_left);
        let is_tried = |it: &&Filled| {
            has_answer(it) && 0 < it.drafts + it.refinements && !taught.contains(&it.exchange)
        };
        let left = left.into_iter().filter(is_tried);
        tried.extend(left.map(|it| (agent.clone(), it.exchange)));
        let worth = worth.into_iter().take(wish.limit - todo.len());
        todo.extend(worth.map(|it| Todo {
            agent: agent.clone(),
            exchange: it.exchange,
            aim,
            trial: trial.clone(),
            passing: has_answer(&it).then(|| passing.clone()),
            shots: examples::shots(&shown, it.exchange, agent.practice.shots),
        }));
    }
    Ok(Wanted { todo, tried, left_out: practised.left_out })
}

/// What became of a prompt that is left after its first drafts, because next to no answer to prompts of its
/// kind passes and what its verifier names is its example, or would be, were candidates not compared on the
/// prompt; `None`: it is to be pursued.
async fn unpursued(parts: &Parts, todo: &Todo) -> Result<Option<Supplied>, RunError> {
    let Some(passing) = &todo.passing else { return Ok(None) };
    let Some(counts) = passing.next_to_none(0 < todo.aim.refinements) else { return Ok(None) };
    let supplied = expected::supply(parts, &todo.agent, todo.exchange).await?;
    if matches!(supplied, Supplied::Unfit | Supplied::Nothing) {
        return Ok(None);
    }
    if passing.is_to_be_told() {
        let Counts { drafts, refinements, passes } = counts;
        info!(
            agent = todo.agent.name,
            drafts,
            refinements,
            passes,
            "Next to no answer passes, so prompts whose verifier names the right one are not pursued \
             further."
        );
    }
    Ok(Some(supplied))
}

/// Gives a prompt that a file names, and that was tried to the end, the answer that its verifier expects;
/// see [`expected`].
async fn supply(parts: &Parts, todo: &Todo, left: Option<Reason>) -> Result<Supplied, RunError> {
    match left {
        Some(Reason::Hopeless | Reason::Filled) if todo.passing.is_some() => {
            expected::supply(parts, &todo.agent, todo.exchange).await
        }
        _ => Ok(Supplied::Nothing),
    }
}

/// A prompt that no longer fits, that the engine fails at, or whose adapter went away during a swap, yields
/// nothing more; `lost` is told why.
async fn fill(
    parts: &Parts,
    todo: &Todo,
    aim: Aim,
    all_pass: bool,
    told: &(dyn Fn(Explored) + Sync),
    lost: &Mutex<Vec<EngineError>>,
) -> Result<Explored, ReflectError> {
    let &Todo { ref agent, exchange, ref trial, ref shots, .. } = todo;
    let sampling = reflect::exploring(agent, all_pass);
    let how = Practising { aim, shots, trial: trial.as_deref(), sampling };
    match parts.reflector.practise(agent, exchange, how, told).await {
        Err(ReflectError::Engine(
            error @ (EngineError::TooLong { .. }
            | EngineError::NotLoaded(_)
            | EngineError::Failed(_)),
        )) => {
            warn!(exchange = %exchange, %error, "A prompt is left out of the exploration.");
            lost.lock().expect("nobody panics while holding it").push(error);
            Ok(Explored::default())
        }
        other => other,
    }
}
