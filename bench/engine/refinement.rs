//! Refinements that copy much of their parent, in process and greedy: tokens a second when the parent is
//! offered as a draft, against the same engine without it. A model with random weights copies
//! nothing by itself, so the parent is made of what the model is going to say: the model's own
//! continuation, of which a part is replaced in runs. Called by `main`.

use std::time::Instant;

use anyhow::Context as _;
use engine::{self, Engine, EngineConfig, GenerateRequest, Sampling, Token};
use futures_util::future::try_join_all;

use crate::inside::{Answer, generate, request};
use crate::results::{Better, Findings, Goal, Measured};
use crate::setting::{PROMPT, Setting};
use crate::texts::Texts;

const NEW: u32 = 128;
const ROUNDS: usize = 7;
/// Tokens that are replaced together, as an edit replaces a sentence.
const RUN: usize = 16;
/// (refinements at once, per cent of the parent that is copied)
const CASES: [(usize, usize); 4] = [(1, 60), (1, 90), (4, 60), (4, 90)];

/// A prompt and the text that its answer will copy from.
#[derive(Clone)]
struct Refinement {
    prompt: Vec<Token>,
    parent: Vec<Token>,
}

pub(crate) async fn run(setting: &Setting, texts: &mut Texts) -> anyhow::Result<Findings> {
    let config = EngineConfig { model: setting.predictable_model.clone(), ..setting.engine() };
    let (engine, _thread) = engine::spawn(&config).await?;
    let mut findings = Findings::default();
    for (at_once, percent) in CASES {
        let (mut with, mut without, mut copied) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..setting.rounds(ROUNDS) {
            let mut refinements = Vec::new();
            for _ in 0..at_once {
                refinements.push(make(&engine, texts, percent).await?);
            }
            without.push(speed(&engine, &refinements, false).await?.0);
            let (tokens_per_s, answers) = speed(&engine, &refinements, true).await?;
            with.push(tokens_per_s);
            let shares = answers.iter().zip(&refinements).map(|(answer, it)| share(answer, it));
            copied.push(100.0 * statistics::mean(shares));
        }
        let name = format!("refinement_{at_once}_copying_{percent}");
        findings.measured.push(Measured {
            name: name.clone(),
            title: format!("{at_once} at once, parent copied to {percent} %, greedy"),
            unit: "tokens/s",
            better: Better::Higher,
            ours: with,
            other: without,
            against: Some("engine without the parent".to_owned()),
            goal: Some(Goal::RatioAtLeast(1.5)),
        });
        findings.measured.push(Measured {
            name: format!("{name}_share"),
            title: format!("{at_once} at once: of the parent in the answer"),
            unit: "%",
            better: Better::Higher,
            ours: copied,
            other: Vec::new(),
            against: None,
            goal: None,
        });
    }
    Ok(findings)
}

async fn make(engine: &Engine, texts: &mut Texts, percent: usize) -> anyhow::Result<Refinement> {
    let prompt = texts.prompt(PROMPT)?;
    let answer = generate(engine, greedy(prompt.clone(), Vec::new())).await?;
    let mut parent = tokens(&answer);
    let n_replaced = parent.len() * (100 - percent) / 100;
    let runs = n_replaced.div_ceil(RUN).max(1);
    // Spread evenly, so that every part of the parent has its share.
    let stride = parent.len() / runs;
    let mut left = n_replaced;
    for run in 0..runs {
        for place in (run * stride..).take(RUN.min(left)) {
            *parent.get_mut(place).context("runs lie inside the parent")? = texts.token()?;
        }
        left = left.saturating_sub(RUN);
    }
    Ok(Refinement { prompt, parent })
}

fn greedy(prompt: Vec<Token>, prediction: Vec<Token>) -> GenerateRequest {
    let sampling = Sampling { temperature: 0.0, max_tokens: NEW, ..Sampling::default() };
    GenerateRequest { sampling, prediction, ..request(prompt, 1, NEW) }
}

/// Tokens a second from the first token on: the prompt is cached, and would be evaluated alike.
async fn speed(
    engine: &Engine,
    refinements: &[Refinement],
    with_parent: bool,
) -> anyhow::Result<(f64, Vec<Answer>)> {
    let asked = refinements.iter().map(|it| {
        let prediction = if with_parent { it.parent.clone() } else { Vec::new() };
        generate(engine, greedy(it.prompt.clone(), prediction))
    });
    let answers = try_join_all(asked).await?;
    let times = || answers.iter().flat_map(|answer| answer.pieces.iter().map(|(at, _)| *at));
    let first: Instant = times().min().context("nothing was generated")?;
    let last = times().max().context("nothing was generated")?;
    let n_tokens = times().count();
    Ok((n_tokens as f64 / (last - first).as_secs_f64(), answers))
}

/// The share of the answer that stands in the parent at the same place.
fn share(answer: &Answer, refinement: &Refinement) -> f64 {
    let said = tokens(answer);
    let same = said.iter().zip(&refinement.parent).filter(|(a, b)| a == b).count();
    same as f64 / said.len().max(1) as f64
}

fn tokens(answer: &Answer) -> Vec<Token> {
    answer.pieces.iter().map(|(_, piece)| piece.token).collect()
}
