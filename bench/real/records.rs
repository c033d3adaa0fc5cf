//! What is done, a step a line in `steps.jsonl`: `<unit>/check`, `<unit>/round-1`, `<unit>/answered-1` and so
//! on. Used by `unit` (writes) and `results` (reads).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use testkit::bench::records;

/// The steps that are done.
pub(crate) type Records = records::Records<Finding>;

/// What a step found.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(crate) enum Finding {
    Checked(Checked),
    Trained(Trained),
    Answered(Answered),
    /// The step was not possible.
    Failed {
        why: String,
    },
}

/// Whether the product takes the owner's form.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Checked {
    /// Empty: it does.
    pub(crate) refused: Vec<String>,
}

/// A round of a night.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Trained {
    /// `promoted`, `rejected`, `failed`, ...
    pub(crate) outcome: String,
    pub(crate) reason: Option<String>,
    pub(crate) n_pairs: Option<u64>,
    /// Of the gate.
    pub(crate) verdict: Option<Value>,
    /// What is served afterwards.
    pub(crate) generation: u64,
    /// By stage.
    pub(crate) seconds: BTreeMap<String, f64>,
    /// What the exploration said; `None`: there was none.
    pub(crate) explored: Option<Value>,
    /// The exploration was stopped because its time was over.
    pub(crate) is_cut: bool,
}

/// How what is served answers the prompts that measure.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Answered {
    pub(crate) generation: u64,
    /// Of each set: 1 where the greedy answer is right, else 0.
    pub(crate) greedy: BTreeMap<String, String>,
    /// Of the first prompts, right ones of the samples, a digit a prompt.
    pub(crate) samples: String,
    /// Mean tokens of the greedy answers.
    pub(crate) tokens: f64,
    /// Greedy answers that were cut off.
    pub(crate) cut: usize,
    /// Greedy answers that no earlier prompt has.
    pub(crate) different: usize,
    /// Those of them that share a word with their prompt.
    pub(crate) different_on_topic: usize,
    /// 1 where a general format is kept, else 0.
    pub(crate) formats: String,
    /// Mean log p(base) - log p(served) of a token over the base's own answers to general questions;
    /// `None`: there is no public data.
    pub(crate) general_nats: Option<f64>,
    /// For people: the first prompts and what is answered to them. Tasks of our own alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) shown: Vec<(String, String)>,
}
