//! Which aspects judge a prompt, remembered while the daemon runs: whoever judges the same prompt
//! twice, as the gate does for two generations, judges by the same ones. What belongs to a stored
//! exchange is in the store. Used by `judge`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use store::ChosenAspects;

/// More than a gate has prompts; beyond it, all are asked again.
const MOST: usize = 4096;

type Cell = Arc<OnceCell<ChosenAspects>>;

/// One cell for each prompt, filled by the first who needs it.
#[derive(Debug, Default)]
pub(super) struct Choices(Mutex<HashMap<String, Cell>>);

impl Choices {
    /// The cell for all that a choice depends on.
    pub(super) fn cell(&self, key: String) -> Cell {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if MOST <= cells.len() && !cells.contains_key(&key) {
            cells.clear();
        }
        Arc::clone(cells.entry(key).or_default())
    }
}
