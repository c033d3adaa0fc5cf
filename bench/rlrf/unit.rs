//! One judge in one repetition, from the first exploration to the last arm, straight. Every step
//! that is recorded is passed over. Used by `experiment`.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use engine::Generation;
use nano::prompts::prompt_lines;
use nano::world::Split;

use crate::arms::{ARMS, Arm, EXPLORERS, Judge, Unit, generation, name};
use crate::explore;
use crate::lab::Lab;
use crate::measure;
use crate::records::{Finding, Trained};
use crate::train::Run;

/// Steps of a unit.
pub(crate) const STEPS: usize = EXPLORERS.len() + 2 * ARMS.len();

/// How the base answers; the same for all units.
pub(crate) async fn base(lab: &mut Lab) -> anyhow::Result<()> {
    if lab.step("m0").is_none() {
        lab.say("m0: answering");
        let began = Instant::now();
        let store = lab.store(lab.folder().join("m0.db")).await?;
        let reflector = lab.reflector(&store);
        let answered = measure::answers(lab, &reflector, Generation::BASE).await?;
        lab.record("m0".to_owned(), began, Finding::Answered(answered))?;
    }
    lab.advance(1);
    Ok(())
}

pub(crate) async fn run(lab: &mut Lab, unit: Unit) -> anyhow::Result<()> {
    for explorer in EXPLORERS {
        if is_done(lab, unit, explorer) {
            lab.advance(1 + 2 * ARMS.iter().filter(|arm| arm.start() == explorer).count());
            continue;
        }
        explore_and_learn(lab, unit, explorer)
            .await
            .with_context(|| format!("{unit}, explored by {}", name(explorer)))?;
    }
    lab.unload().await
}

/// Whether nothing is left to do of an exploration and its arms. Then nothing is opened or loaded.
fn is_done(lab: &Lab, unit: Unit, explorer: Option<Arm>) -> bool {
    let arms = ARMS.into_iter().filter(|arm| arm.start() == explorer);
    let of_arms = arms.flat_map(|arm| ["trained", "answered"].map(|step| (step, arm.name())));
    let of_explorer = ["explored", "picked"].map(|step| (step, name(explorer)));
    let mut steps = of_explorer.into_iter().chain(of_arms);
    steps.all(|(step, what)| lab.step(&format!("{unit}/{step}/{what}")).is_some())
}

/// What one policy explores, and the arms that start from it.
async fn explore_and_learn(lab: &mut Lab, unit: Unit, explorer: Option<Arm>) -> anyhow::Result<()> {
    let agent = Arc::new(unit.judge.agent(&lab.agent));
    let start = match explorer {
        None => None,
        Some(arm) => Some(load(lab, unit, arm).await?),
    };
    let folder = lab.folder().join(unit.to_string());
    let store = lab.store(folder.join(format!("{}.db", name(explorer)))).await?;

    let step = format!("{unit}/explored/{}", name(explorer));
    let count = lab.setting.scale.prompts;
    let prompts = prompt_lines(Split::Live, count, unit.prompt_seed(explorer));
    if lab.step(&step).is_none() {
        lab.say(&format!("{unit}: {} explores {count} problems", name(explorer)));
        let began = Instant::now();
        let lines = prompts.iter().map(|line| unit.judge.line(line)).collect();
        explore::fill(lab, &agent, &store, lines, generation(explorer)).await?;
        let exchanges = explore::exchanges(&agent, &store).await?;
        let right = explore::right(&exchanges, &prompts)?;
        let explored = explore::summarize(&exchanges, &right);
        lab.record(step, began, Finding::Explored(explored))?;
    }
    lab.advance(1);

    let exchanges = explore::exchanges(&agent, &store).await?;
    let right = explore::right(&exchanges, &prompts)?;
    let step = format!("{unit}/picked/{}", name(explorer));
    if lab.step(&step).is_none() {
        let picked = explore::picked(&exchanges, &right);
        lab.record(step, Instant::now(), Finding::Picked(picked))?;
    }
    let step = format!("{unit}/shown");
    if unit.judge == Judge::Own && explorer.is_none() && lab.step(&step).is_none() {
        lab.say(&format!("{unit}: the judge is shown the reference"));
        let began = Instant::now();
        let shown = explore::shown(lab, &agent, &store, &exchanges, &prompts).await?;
        lab.record(step, began, Finding::Shown(shown))?;
    }
    for arm in ARMS.into_iter().filter(|arm| arm.start() == explorer) {
        let step = format!("{unit}/trained/{}", arm.name());
        if lab.step(&step).is_none() {
            lab.say(&format!("{unit}: {} trains", arm.name()));
            let began = Instant::now();
            let run = Run {
                lab,
                unit,
                arm,
                agent: &agent,
                store: &store,
                exchanges: &exchanges,
                right: &right,
                start: start.as_deref(),
            };
            let trained = run.train().await?;
            lab.record(step, began, Finding::Trained(trained))?;
        }
        lab.advance(1);

        let step = format!("{unit}/answered/{}", arm.name());
        if lab.step(&step).is_none() {
            load(lab, unit, arm).await?;
            lab.say(&format!("{unit}: {} answers", arm.name()));
            let began = Instant::now();
            let answered = measure::answers(lab, &lab.reflector(&store), arm.generation()).await?;
            lab.record(step, began, Finding::Answered(answered))?;
        }
        lab.advance(1);
    }
    Ok(())
}

/// Loads the adapter of an arm that is trained.
async fn load(lab: &Lab, unit: Unit, arm: Arm) -> anyhow::Result<std::path::PathBuf> {
    let step = lab.step(&format!("{unit}/trained/{}", arm.name()));
    let Some(Finding::Trained(Trained { adapter, .. })) = step.map(|step| &step.finding) else {
        anyhow::bail!("{} of {unit} is not trained yet", arm.name());
    };
    let adapter = lab.folder().join(adapter);
    lab.load(arm, adapter.clone()).await?;
    Ok(adapter)
}
