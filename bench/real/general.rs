//! What a candidate has forgotten: mean log p(base) - log p(candidate) of a token over the base's own
//! greedy answers to open questions. The API gives log-probs of what it samples alone, so this asks an
//! engine of its own. Used by `unit`.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use engine::{Engine, Generation, LogprobRequest, Priority, Sampling, Weights};
use files::write_atomic;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use prompt::{ChatTemplate, Message, Role};
use reflectd::reflect::{Answer, Reflector};
use serde::{Deserialize, Serialize};

use crate::data;
use crate::root::{PLAIN, Root};
use crate::setting::Setting;

/// Of an answer.
const MAX_TOKENS: u32 = 96;
/// Questions under way at once.
const PARALLEL: usize = 8;
/// The number under which the adapter is loaded.
const CANDIDATE: Generation = Generation(1);

/// An answer of the base: its tokens with its prompt's, where it begins, its log-probs.
#[derive(Deserialize, Serialize)]
struct OfBase {
    tokens: Vec<i32>,
    from: usize,
    logprobs: Vec<f32>,
}

/// In nats a token; `root` is any folder of this benchmark.
pub(crate) async fn nats(
    setting: &Setting,
    root: &Root,
    folder: &Path,
    adapter: &Path,
) -> anyhow::Result<Option<f64>> {
    let Some(data) = &setting.data else { return Ok(None) };
    let questions = data::mt_bench(data, setting.scale.general)?;
    let config = config::load(root.folder())?;
    let (engine, thread) = engine::spawn(&config.engine).await?;
    let cache = folder.join("general.json");
    let answers: Vec<OfBase> = match fs::read(&cache) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is damaged; remove it", cache.display()))?,
        Err(_) => {
            let agent = config.agents.get(PLAIN).context("the agent that measures is missing")?;
            let answers = of_base(&engine, agent, &questions, &folder.join("general.db")).await?;
            let text = serde_json::to_vec(&answers).context("answers are plain data")?;
            write_atomic(&cache, |file| file.write_all(&text))
                .context("keep the base's answers")?;
            answers
        }
    };
    engine.load_adapter(CANDIDATE, adapter.to_owned()).await.context("load the adapter")?;
    let tokens = |one: &OfBase| one.tokens.iter().map(|it| engine::Token(*it)).collect();
    let request = LogprobRequest {
        sequences: answers.iter().map(|one| (tokens(one), one.from)).collect(),
        weights: Weights::Generation(CANDIDATE),
        priority: Priority::Gate,
    };
    let candidate = engine.logprobs(request).await?;
    drop(engine);
    thread.join().map_err(|_| anyhow::anyhow!("the engine thread panicked"))?;
    let base = answers.iter().flat_map(|one| &one.logprobs);
    let differences = base.zip(candidate.iter().flatten()).map(|(base, it)| f64::from(base - it));
    Ok(Some(statistics::mean(differences)))
}

async fn of_base(
    engine: &Engine,
    agent: &config::Agent,
    questions: &[String],
    store: &Path,
) -> anyhow::Result<Vec<OfBase>> {
    let info = engine.info();
    let template = ChatTemplate::new(info.chat_template.as_deref(), &info.bos, &info.eos);
    let (store, _thread) = store::spawn(store.to_owned()).await?;
    let reflector = Reflector::new(engine.clone(), store, Arc::new(template));
    let sampling = Sampling { temperature: 0.0, max_tokens: MAX_TOKENS, ..agent.sampling };
    let base = Weights::Generation(Generation::BASE);
    let reflector = &reflector;
    let asked = questions.iter().map(|question| async move {
        let messages = [Message { role: Role::User, content: question.clone() }];
        let answer = reflector.answer(agent, &messages, base, sampling, Priority::Gate).await?;
        let Answer { tokens, from, .. } = answer;
        anyhow::Ok((tokens, from))
    });
    let asked = stream::iter(asked.collect::<Vec<_>>());
    let answers: Vec<_> = asked.buffered(PARALLEL).try_collect().await?;
    // By the same path as the candidate's: reading and writing a token differ in rounding.
    let request =
        LogprobRequest { sequences: answers.clone(), weights: base, priority: Priority::Gate };
    let logprobs = engine.logprobs(request).await?;
    let of = |((tokens, from), logprobs): ((Vec<engine::Token>, usize), Vec<f32>)| OfBase {
        tokens: tokens.iter().map(|token| token.0).collect(),
        from,
        logprobs,
    };
    Ok(answers.into_iter().zip(logprobs).map(of).collect())
}
