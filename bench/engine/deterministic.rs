//! What `engine.deterministic` costs, and what it gives: the same answers alone, with 3, 7 and 15
//! others, beside an exploration, preempted and with a full cache, against an engine without it. And the
//! same of `engine.deterministic_judge`: how often a judgement comes out otherwise when it is asked for
//! with 63 others, in the context for judgements and in the one of answers. With `--model`, on that model.
//! Called by `main`.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use engine::{
    Engine, EngineConfig, GenerateRequest, Generation, Priority, ScoreRequest, Token, Weights,
};
use engine::{TextPart, spawn};
use futures_util::future::{try_join, try_join_all};
use prompt::{ChatTemplate, Message, Role};
use testkit::bench::statistics::median;

use crate::inside::{generate, request};
use crate::results::{Better, Findings, Goal, Measured};
use crate::setting::{ANSWER, Setting};

const ROUNDS: usize = 3;
/// Half of them greedy, half at temperature 0.8.
const QUESTIONS: u32 = 20;
/// Requests at once.
const CROWDS: [usize; 4] = [1, 4, 8, 16];
/// Chats that interrupt the answers, and the pause before each.
const CHATS: usize = 8;
const BETWEEN_CHATS: Duration = Duration::from_millis(700);
/// Prompts of some 400 tokens, more than the context has room for.
const FILLING: usize = 60;
const JUDGEMENTS: usize = 500;
/// Judgements at once.
const WIDTH: usize = 64;

pub(crate) async fn run(setting: &Setting) -> anyhow::Result<Findings> {
    let model = setting.real_model.clone().unwrap_or_else(|| setting.model.clone());
    let plain = EngineConfig { model, deterministic_judge: true, ..setting.engine() };
    let strict = EngineConfig { deterministic: true, ..plain.clone() };
    let (mut sides, mut judging) = (Vec::new(), None);
    for config in [strict, plain] {
        // Both models at once would share the processor's caches.
        let (engine, _thread) = spawn(&config).await?;
        sides.push(side(&engine, setting).await?);
        if let Some(judge) = engine.judge_context() {
            judging = Some([verdicts(judge).await?, verdicts(&engine).await?]);
        }
    }
    let [own, beside] = judging.context("judgements have a context of their own")?;
    let [strict, plain] = &sides[..] else { unreachable!("there are two") };
    let of = if setting.real_model.is_some() { "a real model" } else { "random weights" };
    let measured = |name: &str, title: String, unit, better, ours: &[f64], other: &[f64], goal| {
        let against = Some("without it".to_owned());
        let (ours, other) = (ours.to_vec(), other.to_vec());
        Measured {
            name: format!("deterministic_{name}"),
            title,
            unit,
            better,
            ours,
            other,
            against,
            goal,
        }
    };
    let speed = |at: usize, name: &str, what: &str| {
        let title = format!("deterministic, {of}: {what}");
        measured(
            name,
            title,
            "tokens/s",
            Better::Higher,
            &strict.speeds[at],
            &plain.speeds[at],
            None,
        )
    };
    let judged = |name: &str, what: &str, [own, beside]: [f64; 2]| {
        let title = format!("deterministic, {of}: {what}");
        measured(name, title, "judgements/s", Better::Higher, &[own], &[beside], None)
    };
    let asked = QUESTIONS as usize * strict.n_settings;
    Ok(Findings {
        measured: vec![
            measured(
                "differ",
                format!("deterministic, {of}: answers of {asked} that are not those given alone"),
                "answers",
                Better::Lower,
                &[strict.differ],
                &[plain.differ],
                Some(Goal::AtMost(0.0)),
            ),
            speed(0, "one_chat", "one chat after the other"),
            speed(CROWDS.len() - 1, "sixteen_chats", "sixteen chats at once"),
            judged("judgements_alone", "one judgement after the other", [own.alone, beside.alone]),
            judged("judgements", &format!("judgements, {WIDTH} at once"), [own.wide, beside.wide]),
            measured(
                "verdicts",
                format!(
                    "deterministic, {of}: of {JUDGEMENTS} verdicts, those that change at width {WIDTH}"
                ),
                "verdicts",
                Better::Lower,
                &[own.changed],
                &[beside.changed],
                Some(Goal::AtMost(0.01 * f64::from(u32::try_from(JUDGEMENTS)?))),
            ),
        ],
        curves: Vec::new(),
    })
}

#[derive(Debug, Default)]
struct Side {
    differ: f64,
    n_settings: usize,
    /// For each crowd, tokens a second of each round.
    speeds: Vec<Vec<f64>>,
}

/// What one context says and how fast.
#[derive(Clone, Copy, Debug)]
struct Judging {
    /// Verdicts that come out otherwise beside others than alone.
    changed: f64,
    /// Judgements a second, one by one.
    alone: f64,
    /// Judgements a second, [`WIDTH`] at once.
    wide: f64,
}

async fn side(engine: &Engine, setting: &Setting) -> anyhow::Result<Side> {
    let questions = questions(engine)?;
    let alone = all(engine, &questions, 1).await?;
    let mut side = Side::default();
    let compare = |side: &mut Side, found: &[Vec<Token>]| {
        side.n_settings += 1;
        let differ = found.iter().zip(&alone).filter(|(a, b)| a != b).count();
        side.differ += f64::from(u32::try_from(differ).unwrap_or(u32::MAX));
    };
    for at_once in CROWDS {
        let mut speeds = Vec::new();
        let is_measured = [CROWDS[0], CROWDS[CROWDS.len() - 1]].contains(&at_once);
        let rounds = if is_measured { setting.rounds(ROUNDS) } else { 1 };
        for round in 0..rounds {
            let began = Instant::now();
            let found = all(engine, &questions, at_once).await?;
            let n: usize = found.iter().map(Vec::len).sum();
            speeds.push(f64::from(u32::try_from(n)?) / began.elapsed().as_secs_f64());
            if round == 0 {
                compare(&mut side, &found);
            }
        }
        side.speeds.push(speeds);
    }
    let idle = GenerateRequest {
        priority: Priority::Explore,
        ..request(questions[1].prompt.clone(), 8, 4000)
    };
    let exploration = engine.generate(idle).await?;
    compare(&mut side, &all(engine, &questions, 4).await?);
    drop(exploration);
    compare(&mut side, &preempted(engine, &questions).await?);
    for text in (0..FILLING).map(|i| format!("Number {i}: {}", "say why that is so. ".repeat(60))) {
        generate(engine, request(rendered(engine, &text)?, 1, 1)).await?;
    }
    compare(&mut side, &all(engine, &questions, 1).await?);
    Ok(side)
}

/// The answers as idle work, which chats interrupt a few times.
async fn preempted(
    engine: &Engine,
    questions: &[GenerateRequest],
) -> anyhow::Result<Vec<Vec<Token>>> {
    let idle = |it: &GenerateRequest| GenerateRequest { priority: Priority::Explore, ..it.clone() };
    let idle: Vec<_> = questions.iter().map(idle).collect();
    let chat = request(rendered(engine, "Hello!")?, 1, 2);
    let before = engine.stats().preemptions;
    let interrupt = async {
        for _ in 0..CHATS {
            tokio::time::sleep(BETWEEN_CHATS).await;
            generate(engine, chat.clone()).await?;
        }
        Ok(())
    };
    let (answers, ()) = try_join(all(engine, &idle, 4), interrupt).await?;
    // With many sequences chats come in beside what they interrupt.
    let is_preempted = before < engine.stats().preemptions || !engine.is_deterministic();
    anyhow::ensure!(is_preempted, "none of {CHATS} chats preempts an answer: let them come sooner");
    Ok(answers)
}

fn questions(engine: &Engine) -> anyhow::Result<Vec<GenerateRequest>> {
    let topics = [
        "rain",
        "bread",
        "a bicycle",
        "the moon",
        "a river",
        "paper",
        "salt",
        "a clock",
        "snow",
        "glass",
    ];
    (0..QUESTIONS)
        .map(|i| {
            let topic = topics[i as usize % topics.len()];
            let text = format!(
                "Tell me in a few sentences what {topic} is and what number {i} has to do with it."
            );
            let mut request = request(rendered(engine, &text)?, 1, ANSWER);
            request.sampling.temperature = if i % 2 == 0 { 0.0 } else { 0.8 };
            request.sampling.top_p = 0.95;
            request.sampling.seed = Some(u64::from(i));
            Ok(request)
        })
        .collect()
}

fn rendered(engine: &Engine, text: &str) -> anyhow::Result<Vec<Token>> {
    let info = engine.info();
    let template = ChatTemplate::new(info.chat_template.as_deref(), &info.bos, &info.eos);
    let turn = Message { role: Role::User, content: text.to_owned() };
    let parts: Vec<TextPart> = template.render(&[turn])?;
    Ok(engine.vocabulary().tokenize(&parts))
}

/// The answers' tokens, with so many requests under way at once.
async fn all(
    engine: &Engine,
    questions: &[GenerateRequest],
    at_once: usize,
) -> anyhow::Result<Vec<Vec<Token>>> {
    let mut found = Vec::new();
    for some in questions.chunks(at_once) {
        let answers = try_join_all(some.iter().map(|it| generate(engine, it.clone()))).await?;
        found.extend(
            answers.into_iter().map(|it| it.pieces.iter().map(|(_, piece)| piece.token).collect()),
        );
    }
    Ok(found)
}

/// The same judgements alone and beside others. The threshold is the median, so that half of them pass
/// whatever the model is inclined to.
async fn verdicts(engine: &Engine) -> anyhow::Result<Judging> {
    let prompts: Vec<Vec<Token>> = (0..JUDGEMENTS)
        .map(|i| {
            let (a, b) = (i % 23, i * 7 % 19);
            let said = if i % 2 == 0 { a + b } else { a + b + i % 5 };
            rendered(engine, &format!("Question: what is {a} plus {b}? Answer: {said}. Is the answer right? Reply Yes or No."))
        })
        .collect::<Result<_, _>>()?;
    let label = |text: &str| {
        let part = TextPart { text: text.to_owned(), control: false };
        engine.vocabulary().tokenize(&[part]).first().copied().context("a label has a token")
    };
    let labels = vec![label("Yes")?, label("No")?];
    let (mut found, mut took) = (Vec::new(), Vec::new());
    for width in [1, WIDTH] {
        let began = Instant::now();
        let mut odds = Vec::new();
        for some in prompts.chunks(width) {
            let (labels, weights) = (labels.clone(), Weights::Generation(Generation::BASE));
            let request =
                ScoreRequest { prompts: some.to_vec(), labels, weights, priority: Priority::Gate };
            let scores = engine.score(request).await?;
            odds.extend(scores.iter().map(|it| f64::from(it.probabilities[0])));
        }
        found.push(odds);
        took.push(began.elapsed().as_secs_f64());
    }
    let threshold = median(&found[0]).context("there are judgements")?;
    let changed = found[0].iter().zip(&found[1]);
    let changed = changed.filter(|(a, b)| (threshold < **a) != (threshold < **b)).count();
    let speed = |seconds: f64| u32::try_from(JUDGEMENTS).map(|n| f64::from(n) / seconds);
    let changed = f64::from(u32::try_from(changed)?);
    Ok(Judging { changed, alone: speed(took[0])?, wide: speed(took[1])? })
}
