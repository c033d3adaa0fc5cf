//! How cost grows with drafts, aspects, parallel chats and context: the engine in this process, drawn
//! as curves. Called by `main`.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context as _;
use engine::{self, Engine, Priority, ScoreRequest, Token, Weights};
use futures_util::future::try_join_all;

use crate::inside::{Answer, generate, request};
use crate::results::{Curve, Findings};
use crate::setting::{ANSWER, PROMPT, Setting};
use crate::texts::Texts;
use testkit::bench::results::Provenance;
use testkit::bench::statistics::median;

const DRAFTS: [u32; 5] = [1, 2, 4, 8, 16];
const ASPECTS: [usize; 4] = [1, 3, 6, 12];
const CHATS: [usize; 5] = [1, 2, 4, 8, 16];
const CONTEXTS: [usize; 3] = [256, 1024, 4096];
/// What all aspects share, and what each has of its own.
const SHARED: usize = 400;
const OWN: usize = 100;
const ROUNDS: usize = 3;

type Points = Vec<(f64, f64)>;

pub(crate) async fn run(setting: &Setting, texts: &mut Texts) -> anyhow::Result<Findings> {
    let (engine, _thread) = engine::spawn(&setting.engine()).await?;
    let rounds = setting.rounds(ROUNDS);
    generate(&engine, request(texts.prompt(PROMPT)?, 1, ANSWER)).await?;

    let mut drafts = Points::new();
    for n in DRAFTS {
        let mut seconds = Vec::new();
        for _ in 0..rounds {
            let began = Instant::now();
            generate(&engine, request(texts.prompt(PROMPT)?, n, ANSWER)).await?;
            seconds.push(began.elapsed().as_secs_f64());
        }
        drafts.push((f64::from(n), median(&seconds).context("no rounds")?));
    }

    let mut aspects = Points::new();
    for n in ASPECTS {
        let mut seconds = Vec::new();
        for _ in 0..rounds {
            let prompts = judgements(texts, n)?;
            let began = Instant::now();
            score(&engine, prompts, texts).await?;
            seconds.push(began.elapsed().as_secs_f64());
        }
        aspects.push((n as f64, median(&seconds).context("no rounds")?));
    }

    let mut chats = Points::new();
    for n in CHATS {
        let mut per_second = Vec::new();
        for _ in 0..rounds {
            let prompts =
                (0..n).map(|_| texts.prompt(PROMPT)).collect::<anyhow::Result<Vec<_>>>()?;
            let began = Instant::now();
            let asked = prompts.into_iter().map(|it| generate(&engine, request(it, 1, ANSWER)));
            try_join_all(asked).await?;
            per_second.push(n as f64 * f64::from(ANSWER) / began.elapsed().as_secs_f64());
        }
        chats.push((n as f64, median(&per_second).context("no rounds")?));
    }

    let (mut firsts, mut steps) = (Points::new(), Points::new());
    for n in CONTEXTS {
        let (mut first, mut step) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let answer = generate(&engine, request(texts.prompt(n)?, 1, ANSWER)).await?;
            first.push(answer.first_token.as_secs_f64());
            step.push(seconds_per_token(&answer).context("an answer has several tokens")? * 1e3);
        }
        firsts.push((n as f64, median(&first).context("no rounds")?));
        steps.push((n as f64, median(&step).context("no rounds")?));
    }

    let curves = vec![
        curve(
            "drafts",
            &format!("Drafts of one prompt ({PROMPT} + {ANSWER} tokens each)"),
            ["drafts", "seconds"],
            &[("one request", drafts.clone()), ("n times one draft", multiples(&drafts))],
        ),
        curve(
            "aspects",
            &format!("Aspects of one answer ({SHARED} shared + {OWN} own tokens)"),
            ["aspects", "seconds"],
            &[("one request", aspects.clone()), ("n times one aspect", multiples(&aspects))],
        ),
        curve(
            "chats",
            &format!("Chats in parallel ({PROMPT} + {ANSWER} tokens each)"),
            ["chats", "new tokens a second, all together"],
            &[("in process", chats)],
        ),
        curve(
            "context_first_token",
            "Context length: first token",
            ["prompt tokens", "seconds to the first token"],
            &[("in process", firsts)],
        ),
        curve(
            "context_step",
            "Context length: further tokens",
            ["prompt tokens", "milliseconds a token"],
            &[("in process", steps)],
        ),
    ];
    Ok(Findings { measured: Vec::new(), curves })
}

/// Prompts of one answer's aspects.
fn judgements(texts: &mut Texts, n: usize) -> anyhow::Result<Vec<Vec<Token>>> {
    let shared = texts.prompt(SHARED)?;
    let mut own = || (0..OWN).map(|_| texts.token()).collect::<anyhow::Result<Vec<Token>>>();
    (0..n).map(|_| Ok([shared.clone(), own()?].concat())).collect()
}

async fn score(engine: &Engine, prompts: Vec<Vec<Token>>, texts: &Texts) -> anyhow::Result<()> {
    let labels = ["1", "2", "3"].map(|label| texts.plain(label)).concat();
    let request =
        ScoreRequest { prompts, labels, weights: Weights::Active, priority: Priority::Inline };
    engine.score(request).await?;
    Ok(())
}

/// Mean over an answer's tokens but the first.
fn seconds_per_token(answer: &Answer) -> Option<f64> {
    let ((first, _), (last, _)) = (answer.pieces.first()?, answer.pieces.last()?);
    let n_gaps = answer.pieces.len().checked_sub(1).filter(|n| 0 < *n)?;
    Some((*last - *first).as_secs_f64() / n_gaps as f64)
}

/// What it would cost without sharing anything.
fn multiples(points: &[(f64, f64)]) -> Points {
    let one = points.first().map_or(0.0, |(x, y)| y / x);
    points.iter().map(|(x, _)| (*x, x * one)).collect()
}

fn curve(name: &str, title: &str, [x, y]: [&str; 2], lines: &[(&str, Points)]) -> (String, Curve) {
    let lines: BTreeMap<_, _> =
        lines.iter().map(|(name, points)| ((*name).to_owned(), points.clone())).collect();
    let curve = Curve {
        title: title.to_owned(),
        x: x.to_owned(),
        y: y.to_owned(),
        lines,
        provenance: Provenance::default(),
    };
    (name.to_owned(), curve)
}
