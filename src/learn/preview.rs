//! What the next scheduled run would learn, and what is left out and why, for an owner who asks before
//! it. Stores the examples that files name and reads the stored answers, as the run does, and sets nothing
//! aside. Used by `task`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::RunError;
use super::job::Lesson;
use super::lesson;
use super::material::Material;
use super::pairs::{Filtered, Tally};
use super::{Parts, examples, held_out};
use store::{CandidateId, Exchange, ExchangeId};

/// What would be learned now.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Preview {
    /// From what.
    pub lesson: Lesson,
    /// All pairs, answers and examples.
    pub total: usize,
    /// Of these, what no run has learned from.
    pub new: usize,
    /// So many new ones are wanted for a scheduled run.
    pub wanted: usize,
    /// The first ones.
    pub data: Vec<Shown>,
    /// How many were left out, by cause.
    pub left_out: BTreeMap<String, usize>,
}

/// One line of the data set.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Shown {
    /// Where it comes from.
    pub exchange: ExchangeId,
    /// Who was asked.
    pub agent: String,
    /// The user's last words.
    pub prompt: String,
    /// What is made more probable.
    pub chosen: Option<String>,
    /// What is made less probable.
    pub rejected: Option<String>,
    /// How much better the chosen one is; 0 where one is alone.
    pub margin: f64,
    /// No run has learned from it.
    pub is_new: bool,
}

/// At most `limit` of what would be learned.
pub(super) async fn preview(parts: &Parts, limit: usize) -> Result<Preview, RunError> {
    let config = parts.config.borrow().clone();
    let files = examples::sync(parts, &config).await?;
    let (_, held_out) = held_out::read_all(&parts.store, &config).await?;
    let material = lesson::next(parts, &config, &held_out, true).await?;
    let is_of_examples = material.lesson == Lesson::Examples;
    let learned = parts.store.learned().await?;
    let mut data = Vec::new();
    let mut last: Option<Exchange> = None;
    for row in material.rows.iter().take(limit) {
        // Rows of one exchange stand together.
        let exchange: &Exchange = match &last {
            Some(exchange) if exchange.id == row.exchange => exchange,
            _ => last.insert(parts.store.exchange(row.exchange).await?),
        };
        let text = |id: Option<CandidateId>| {
            let found = exchange.candidates.iter().find(|it| Some(it.id) == id);
            found.map(|it| it.text.clone())
        };
        let learned_as = if is_of_examples {
            learned.iter().any(|(chosen, _)| *chosen == row.chosen)
        } else {
            learned.contains(&(row.chosen, row.rejected))
        };
        data.push(Shown {
            exchange: row.exchange,
            agent: exchange.agent.clone(),
            prompt: exchange.messages.last().map(|it| it.content.clone()).unwrap_or_default(),
            chosen: text(row.chosen),
            rejected: text(row.rejected),
            margin: row.margin,
            is_new: !learned_as,
        });
    }
    let wanted = if is_of_examples { 1 } else { config.learn.min_new_pairs };
    let mut left_out = left_out(&material);
    // Examples that are not even stored.
    *left_out.entry("near_copies".to_owned()).or_default() += files.near_copies;
    *left_out.entry("held_out".to_owned()).or_default() += files.held_out;
    left_out.retain(|_, n| 0 < *n);
    let (lesson, total, new) = (material.lesson, material.rows.len(), material.n_new);
    Ok(Preview { lesson, total, new, wanted, data, left_out })
}

/// By cause: prompts, but for `equal_answers`, `over_per_prompt` and `stale`, which are pairs or
/// answers.
fn left_out(material: &Material) -> BTreeMap<String, usize> {
    let Tally { left_out, without_chosen, without_rejected, filtered, .. } = &material.tally;
    let Filtered { margin, length, likeness } = filtered;
    let unfiltered = without_rejected.saturating_sub(margin + length + likeness);
    let causes = [
        ("held_out", left_out.held_out),
        ("near_copies", left_out.near_copies),
        ("no_positive", *without_chosen),
        ("nothing_to_reject", unfiltered),
        ("margin_filter", *margin),
        ("length_filter", *length),
        ("likeness_filter", *likeness),
        ("equal_answers", material.tally.equal_answers),
        ("over_per_prompt", material.tally.over_per_prompt),
        ("stale", material.replayed.stale),
    ];
    causes.into_iter().map(|(cause, n)| (cause.to_owned(), n)).collect()
}
