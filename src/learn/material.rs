//! What a run learns from: all stored exchanges of the agents that learn, as the objective wants
//! them. Reads the store; what is made of an exchange is decided by `pairs` and `groups`. Used by
//! `run`.

use super::Parts;
use super::balance;
use super::dataset::Dataset;
use super::error::RunError;
use super::groups::Grouping;
use super::held_out::HeldOut;
use super::job::Lesson;
use super::pairs::{Pairing, Tally};
use super::replay::{self, Earlier, Replayed};
use super::yields::Yield;
use config::{Config, Start};
use protocol::Objective;
use store::{Exchange, PairRow};

/// Exchanges read at once.
const PAGE: usize = 256;

/// A data set with where it comes from.
#[derive(Debug)]
pub(super) struct Material {
    pub(super) dataset: Dataset,
    pub(super) rows: Vec<PairRow>,
    /// Rows that no run which came to a verdict has learned from: what a run that broke was given is
    /// still to be learned, and a word of the owner makes new pairs of old answers.
    pub(super) n_new: usize,
    /// Old pairs among the rows.
    pub(super) replayed: Replayed,
    /// What became of the prompts.
    pub(super) tally: Tally,
    /// What the stored answers come to.
    pub(super) yielded: Yield,
    /// What it is.
    pub(super) lesson: Lesson,
}

pub(super) async fn collect(
    parts: &Parts,
    config: &Config,
    held_out: &HeldOut,
) -> Result<Material, RunError> {
    let learn = &config.learn;
    let vocabulary = parts.engine.vocabulary().as_ref();
    let learned = parts.store.learned().await?;
    let n_new = |rows: &[PairRow]| {
        rows.iter().filter(|row| !learned.contains(&(row.chosen, row.rejected))).count()
    };
    let mut yielded = Yield::default();
    if let Objective::Grpo { .. } = learn.objective {
        let mut grouping = Grouping::new(&learn.pairs, held_out, vocabulary);
        let visit = |exchange: &Exchange| {
            yielded.add(exchange);
            grouping.add(exchange);
        };
        each(parts, config, visit).await?;
        let (groups, tally) = grouping.finish();
        let dataset = Dataset::new(groups.iter().map(|grouped| &grouped.group));
        let rows: Vec<_> = groups.into_iter().flat_map(|grouped| grouped.rows).collect();
        let (n_new, replayed) = (n_new(&rows), Replayed::default());
        let lesson = Lesson::Answers;
        return Ok(Material { dataset, rows, n_new, replayed, tally, yielded, lesson });
    }
    let mut pairing = Pairing::new(&learn.pairs, &learn.objective, held_out, vocabulary);
    let earlier = parts.store.earlier_pairs(learning(config), replay::MAX_EARLIER).await?;
    let mut earlier = Earlier::new(earlier, held_out, &learn.objective, learn.pairs.positives);
    let visit = |exchange: &Exchange| {
        yielded.add(exchange);
        pairing.add(exchange);
        earlier.compare(exchange);
    };
    each(parts, config, visit).await?;
    let (pairs, tally) = pairing.finish();
    let share = match learn.start {
        // What is learned anew is learned from everything.
        Start::Base => 1.0,
        Start::Adapter => learn.pairs.replay,
    };
    let (mut pairs, replayed) = replay::mix(pairs, earlier, &learned, share);
    if let Objective::Kto { .. } = learn.objective {
        pairs = balance::thinned(pairs, learn.pairs.max_imbalance);
    }
    let rows: Vec<_> = pairs.iter().map(|pair| pair.row).collect();
    Ok(Material {
        dataset: Dataset::new(pairs.iter().map(|pair| &pair.example)),
        n_new: n_new(&rows),
        rows,
        replayed,
        tally,
        yielded,
        lesson: Lesson::Answers,
    })
}

/// Visits the exchanges in their order.
async fn each(
    parts: &Parts,
    config: &Config,
    mut visit: impl FnMut(&Exchange),
) -> Result<(), RunError> {
    let agents = learning(config);
    let mut after = None;
    loop {
        let page = parts.store.learnable(agents.clone(), after, PAGE).await?;
        page.iter().for_each(&mut visit);
        after = page.last().map(|exchange| exchange.id);
        if page.len() < PAGE {
            return Ok(());
        }
    }
}

/// The agents whose answers are learned from.
pub(super) fn learning(config: &Config) -> Vec<String> {
    let learning = config.agents.values().filter(|agent| agent.learn);
    learning.map(|agent| agent.name.clone()).collect()
}
