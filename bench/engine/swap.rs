//! Promotions under load, in process: a new adapter is loaded, made active, and the old one retired
//! while four chats stream. The longest gap between two tokens, failed and mixed answers, and what
//! 200 swaps leave in memory. Called by `main`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use engine::{self, Engine, Generation, LogprobRequest, Priority, Sampling, Token, Weights};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::inside::{Answer, generate, request};
use crate::model::write_adapter;
use crate::process::own_resident;
use crate::results::{Better, Findings, Goal, Measured};
use crate::setting::{ANSWER, Setting};
use crate::texts::Texts;
use testkit::bench::statistics::{median, range};

const CHATS: usize = 4;
/// Short, so that a chat that begins costs little more than a step.
const PROMPT: usize = 16;
const SWAPS: usize = 7;
const MANY_SWAPS: u32 = 200;
/// The first swaps fill llama.cpp's own pools.
const WARM: u32 = 20;
/// Between two swaps: the chats of the old generation end in it.
const PAUSE: Duration = Duration::from_millis(1500);
/// Log-probs of one answer under its own weights differ by rounding, under others by the adapter.
const OWN: f64 = 0.15;

/// A finished chat.
struct Streamed {
    prompt: Vec<Token>,
    answer: Answer,
}

pub(crate) async fn run(setting: &Setting, texts: &mut Texts) -> anyhow::Result<Findings> {
    let adapters = Adapters::write()?;
    let (engine, _thread) = engine::spawn(&setting.engine()).await?;
    let idle_load = load_when_idle(&engine, &adapters, texts).await?;

    let is_over = Arc::new(AtomicBool::new(false));
    let mut chats = JoinSet::new();
    for _ in 0..CHATS {
        let prompts = (0..64).map(|_| texts.prompt(PROMPT)).collect::<anyhow::Result<Vec<_>>>()?;
        chats.spawn(chat(engine.clone(), prompts, is_over.clone()));
    }
    sleep(PAUSE).await;
    let mut swaps = Vec::new();
    for number in 1..=setting.rounds(SWAPS) {
        let generation = Generation(u32::try_from(number)?);
        let began = Instant::now();
        engine.load_adapter(generation, adapters.path(generation)).await?;
        engine.activate(generation).await?;
        if 1 < generation.0 {
            engine.retire(Generation(generation.0 - 1)).await?;
        }
        sleep(PAUSE).await;
        swaps.push((began, Instant::now()));
    }
    is_over.store(true, Ordering::Relaxed);
    let mut streamed = Vec::new();
    let mut failed = 0;
    while let Some(ended) = chats.join_next().await {
        let (done, n_failed) = ended.context("a chat panicked")?;
        streamed.extend(done);
        failed += n_failed;
    }

    let gaps = gaps(&streamed);
    let during =
        |gap: &(Instant, Instant)| swaps.iter().any(|swap| swap.0 <= gap.1 && gap.0 <= swap.1);
    let millis = |gap: &(Instant, Instant)| (gap.1 - gap.0).as_secs_f64() * 1e3;
    let quiet: Vec<f64> = gaps.iter().filter(|gap| !during(gap)).map(millis).collect();
    let longest: Vec<f64> = swaps
        .iter()
        .filter_map(|swap| {
            let own = gaps.iter().filter(|gap| swap.0 <= gap.1 && gap.0 <= swap.1).map(millis);
            own.max_by(f64::total_cmp)
        })
        .collect();
    let step = median(&quiet).context("no chat went on before the swaps")?;
    let load = median(&idle_load).context("no adapter was loaded")?;
    let mixed = mixed(&engine, &adapters, &streamed).await?;
    let worst = range(&longest).map_or(0.0, |(_, worst)| worst);
    let growth = memory_growth(setting, &engine, &adapters, texts).await?;

    let row = |name: &str, title: String, unit, ours, goal| Measured {
        name: format!("swap_{name}"),
        title,
        unit,
        better: Better::Lower,
        ours,
        other: Vec::new(),
        against: None,
        goal,
    };
    let at_most = |most| Some(Goal::AtMost(most));
    let n_chats = streamed.len();
    let measured = vec![
        row(
            "adapter_load_ms",
            "adapter load, nothing else running".to_owned(),
            "ms",
            idle_load,
            None,
        ),
        row("step_ms", format!("gap between tokens, {CHATS} chats, no swap"), "ms", quiet, None),
        row(
            "longest_gap_ms",
            format!("longest gap in {} swaps (goal: adapter load + 2 steps)", swaps.len()),
            "ms",
            vec![worst],
            at_most(load + 2.0 * step),
        ),
        row(
            "failed",
            format!("failed of {n_chats} chats"),
            "",
            vec![f64::from(failed)],
            at_most(0.0),
        ),
        row("mixed", format!("mixed of {n_chats} chats"), "", vec![f64::from(mixed)], at_most(0.0)),
        row(
            "memory_growth_percent",
            format!("memory growth over {} swaps", many(setting)),
            "%",
            vec![growth],
            at_most(5.0),
        ),
    ];
    Ok(Findings { measured, curves: Vec::new() })
}

/// Two files in turn, so that neighbours differ.
struct Adapters {
    folder: TempDir,
}

impl Adapters {
    fn write() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("make a folder for adapters")?;
        let adapters = Self { folder };
        for number in 0..2 {
            write_adapter(&adapters.path(Generation(number)), u64::from(number) + 1)?;
        }
        Ok(adapters)
    }

    fn path(&self, generation: Generation) -> PathBuf {
        self.folder.path().join(format!("{}.gguf", generation.0 % 2))
    }
}

async fn load_when_idle(
    engine: &Engine,
    adapters: &Adapters,
    texts: &mut Texts,
) -> anyhow::Result<Vec<f64>> {
    let mut loads = Vec::new();
    for number in 0..4 {
        let generation = Generation(10_000 + number);
        let began = Instant::now();
        engine.load_adapter(generation, adapters.path(generation)).await?;
        // The first one reads the file from the disk.
        if 0 < number {
            loads.push(began.elapsed().as_secs_f64() * 1e3);
        }
        let mut asked = request(texts.prompt(PROMPT)?, 1, 2);
        asked.weights = Weights::Generation(generation);
        generate(engine, asked).await?;
        engine.retire(generation).await?;
    }
    Ok(loads)
}

/// Chats one after another until told to end; the ones that are done and how many failed.
async fn chat(
    engine: Engine,
    prompts: Vec<Vec<Token>>,
    is_over: Arc<AtomicBool>,
) -> (Vec<Streamed>, u32) {
    let (mut done, mut failed) = (Vec::new(), 0);
    for prompt in prompts {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        match generate(&engine, request(prompt.clone(), 1, ANSWER)).await {
            Ok(answer) if answer.pieces.len() == ANSWER as usize => {
                done.push(Streamed { prompt, answer });
            }
            Ok(_) | Err(_) => failed += 1,
        }
    }
    (done, failed)
}

/// From each token to the next of the same chat.
fn gaps(streamed: &[Streamed]) -> Vec<(Instant, Instant)> {
    let times = streamed.iter().map(|chat| chat.answer.pieces.iter().map(|(at, _)| *at));
    times
        .flat_map(|times| {
            let times: Vec<Instant> = times.collect();
            times.windows(2).map(|pair| (pair[0], pair[1])).collect::<Vec<_>>()
        })
        .collect()
}

/// Answers whose log-probs are not those of the weights that they name: each half of each answer is
/// evaluated again under its own generation. That the check would notice is checked too: answers
/// of an adapter must look wrong under the base.
async fn mixed(engine: &Engine, adapters: &Adapters, streamed: &[Streamed]) -> anyhow::Result<u32> {
    let mut mixed = 0;
    let mut unnoticed = 0;
    for parity in 0..2 {
        let check = Generation(20_000 + parity);
        engine.load_adapter(check, adapters.path(check)).await?;
    }
    for chat in streamed {
        let check = match chat.answer.generation {
            Generation::BASE => Generation::BASE,
            Generation(number) => Generation(20_000 + number % 2),
        };
        mixed += u32::from(differs(engine, chat, check).await?);
        if check != Generation::BASE {
            unnoticed += u32::from(!differs(engine, chat, Generation::BASE).await?);
        }
    }
    for parity in 0..2 {
        engine.retire(Generation(20_000 + parity)).await?;
    }
    ensure!(unnoticed == 0, "{unnoticed} answers of an adapter look like answers of the base");
    Ok(mixed)
}

/// Whether some half of an answer has other log-probs under these weights than it came with.
async fn differs(engine: &Engine, chat: &Streamed, weights: Generation) -> anyhow::Result<bool> {
    let Streamed { prompt, answer } = chat;
    let tokens: Vec<Token> = answer.pieces.iter().map(|(_, piece)| piece.token).collect();
    let request = LogprobRequest {
        sequences: vec![([prompt.as_slice(), &tokens].concat(), prompt.len())],
        weights: Weights::Generation(weights),
        priority: Priority::Gate,
    };
    let again = engine.logprobs(request).await?;
    let again = again.first().context("one sequence has one row of log-probs")?;
    let pairs = answer.pieces.iter().zip(again);
    let differences: Vec<f64> =
        pairs.map(|((_, piece), again)| f64::from((piece.logprob - again).abs())).collect();
    let mut halves = differences.chunks(differences.len().div_ceil(2).max(1));
    Ok(halves.any(|half| median(half).is_none_or(|it| OWN < it)))
}

fn many(setting: &Setting) -> u32 {
    if setting.is_quick { WARM + 5 } else { MANY_SWAPS }
}

/// Per cent of the resident memory after the first swaps.
async fn memory_growth(
    setting: &Setting,
    engine: &Engine,
    adapters: &Adapters,
    texts: &mut Texts,
) -> anyhow::Result<f64> {
    let mut before = 0;
    for number in 0..many(setting) {
        if number == WARM {
            before = own_resident(&setting.model)?.total;
        }
        let generation = Generation(30_000 + number);
        engine.load_adapter(generation, adapters.path(generation)).await?;
        engine.activate(generation).await?;
        let mut asked = request(texts.prompt(PROMPT)?, 1, 2);
        asked.sampling = Sampling { max_tokens: 2, ..Sampling::default() };
        generate(engine, asked).await?;
        if 0 < number {
            engine.retire(Generation(generation.0 - 1)).await?;
        }
    }
    let after = own_resident(&setting.model)?.total;
    Ok((after as f64 / before.max(1) as f64 - 1.0) * 100.0)
}
