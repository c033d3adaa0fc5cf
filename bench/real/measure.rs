//! How what is served answers: greedily to every prompt that measures, eight times to some of them, and
//! the general formats. All through the socket, and compared with the truth here, not by the product.
//! Used by `unit`.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use tasks::{Item, formats, messages};

use crate::daemon::Daemon;
use crate::records::Answered;
use crate::root::{MEASURE, PLAIN};
use crate::setting::Setting;
use crate::task::Task;

/// Samples of a prompt.
pub(crate) const SAMPLES: u32 = 8;
/// Prompts under way at once; the daemon takes as many chats by default.
const PARALLEL: usize = 16;
/// Samples come as one request each prompt.
const PARALLEL_SAMPLES: usize = 2;
/// Prompts and answers that are kept for people.
const SHOWN: usize = 5;

/// A reply.
struct Reply {
    text: String,
    tokens: u64,
    is_cut: bool,
}

/// Asks all of it.
pub(crate) async fn answers(
    setting: &Setting,
    daemon: &Daemon,
    task: &Task,
) -> anyhow::Result<Answered> {
    let generation = daemon.get("/health").await?["generation"].as_u64();
    let generation = generation.context("the daemon names what is served")?;
    let items: Vec<&Item> = task.all_measured().collect();
    let replies = greedy(daemon, MEASURE, &items).await?;
    let mut rest = replies.iter();
    let mut bits = BTreeMap::new();
    for (name, items) in &task.measured {
        let of_set = items.iter().zip(rest.by_ref());
        let right = of_set.map(|(item, reply)| digit(item.truth.holds(&reply.text)));
        bits.insert((*name).to_owned(), right.collect());
    }
    let mut seen = HashSet::new();
    let mut answered = Answered {
        generation,
        greedy: bits,
        samples: samples(setting, daemon, &items).await?,
        tokens: statistics::mean(replies.iter().map(|reply| reply.tokens as f64)),
        cut: replies.iter().filter(|reply| reply.is_cut).count(),
        different: 0,
        different_on_topic: 0,
        formats: String::new(),
        general_nats: None,
        shown: Vec::new(),
    };
    for (item, reply) in items.iter().zip(&replies) {
        let is_new = seen.insert(reply.text.trim());
        let is_on_topic = messages::shares_a_content_word(&item.prompt, &reply.text);
        answered.different += usize::from(is_new);
        answered.different_on_topic += usize::from(is_new && is_on_topic);
    }
    if !task.kind.is_public() {
        let pairs = items.iter().zip(&replies).take(SHOWN);
        answered.shown =
            pairs.map(|(item, reply)| (item.prompt.clone(), reply.text.clone())).collect();
    }
    let general = setting.cut(formats::prompts());
    let general: Vec<&Item> = general.iter().collect();
    let replies = greedy(daemon, PLAIN, &general).await?;
    let kept = general.iter().zip(&replies).map(|(item, reply)| item.truth.holds(&reply.text));
    answered.formats = kept.map(digit).collect();
    Ok(answered)
}

fn digit(is_right: bool) -> char {
    if is_right { '1' } else { '0' }
}

async fn greedy(daemon: &Daemon, agent: &str, items: &[&Item]) -> anyhow::Result<Vec<Reply>> {
    let ask = |item: &Item| {
        let body = json!({
            "model": agent, "temperature": 0,
            "messages": [{ "role": "user", "content": item.prompt }],
        });
        async move { Ok(replies(&daemon.post("/v1/chat/completions", &body).await?)?.remove(0)) }
    };
    stream::iter(items.iter().copied().map(ask).collect::<Vec<_>>())
        .buffered(PARALLEL)
        .try_collect()
        .await
}

async fn samples(setting: &Setting, daemon: &Daemon, items: &[&Item]) -> anyhow::Result<String> {
    let ask = |item: &Item| {
        let body = json!({
            "model": MEASURE, "n": SAMPLES, "seed": 1,
            "messages": [{ "role": "user", "content": item.prompt }],
        });
        let truth = item.truth.clone();
        async move {
            let replies = replies(&daemon.post("/v1/chat/completions", &body).await?)?;
            let right = replies.iter().filter(|reply| truth.holds(&reply.text)).count();
            anyhow::Ok(right.to_string())
        }
    };
    let asked = spread(items, setting.scale.sampled).into_iter().map(ask);
    let digits: Vec<String> =
        stream::iter(asked.collect::<Vec<_>>()).buffered(PARALLEL_SAMPLES).try_collect().await?;
    Ok(digits.concat())
}

/// `count` items from the whole of a list: test files are ordered by what is right.
pub(crate) fn spread<'a>(items: &[&'a Item], count: usize) -> Vec<&'a Item> {
    let count = count.min(items.len());
    (0..count).map(|at| items[at * items.len() / count]).collect()
}

fn replies(reply: &Value) -> anyhow::Result<Vec<Reply>> {
    let choices = reply["choices"].as_array().context("a reply has choices")?;
    ensure!(!choices.is_empty(), "a reply has no choice");
    let tokens = reply["usage"]["completion_tokens"].as_u64().unwrap_or(0);
    let tokens = tokens / choices.len() as u64;
    let reply = |choice: &Value| Reply {
        text: choice["message"]["content"].as_str().unwrap_or_default().to_owned(),
        tokens,
        is_cut: choice["finish_reason"] == "length",
    };
    Ok(choices.iter().map(reply).collect())
}
