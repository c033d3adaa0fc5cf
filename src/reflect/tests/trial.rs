//! Exploration that finds out whether refining pays.

use super::*;

/// Drafts are right now and then; refinements are `refined`.
async fn world(refined: &str) -> (World, Agent) {
    let drafts = [("good", 0.13), ("bad", 0.87)];
    let script = Script::new("?").on("refine", &[(refined, 1.0)]).on("ask mixed", &drafts);
    let world = World::new(answers(script)).await;
    let verifier = Some(exact("good"));
    let agent = Agent { aspects: Vec::new(), judge: JudgeConfig::Nobody, verifier, ..agent() };
    (world, agent)
}

/// Drafts and refinements of each of three prompts.
async fn explored(world: &World, agent: &Agent, trial: &Trial) -> Vec<(usize, usize)> {
    let mut made = Vec::new();
    for n in 0..3 {
        let (id, prompt) = (n.to_string(), format!("ask mixed {n}"));
        let line = PromptLine::new(id, prompt);
        let id = world.reflector.remember(agent, line).await.unwrap();
        let aim = stopping(4, 100, 64, 0);
        // Without one, four drafts are all right now and then, which leaves nothing to refine.
        let sampling = Sampling { seed: Some(7), ..exploring(agent, false) };
        let how = Practising { aim, shots: &[], trial: Some(trial), sampling };
        world.reflector.practise(agent, id, how, &|_| {}).await.unwrap();
        let candidates = world.store.exchange(id).await.unwrap().candidates;
        let refined = candidates.iter().filter(|candidate| candidate.parent.is_some()).count();
        made.push((candidates.len() - refined, refined));
    }
    made
}

#[tokio::test]
async fn refining_stops_where_fresh_drafts_yield_more_and_goes_on_where_they_do_not() {
    let (hopeless, agent) = world("bad").await;
    let trial = Trial::default();
    let made = explored(&hopeless, &agent, &trial).await;
    assert_eq!(made, [(4, 100), (104, 0), (104, 0)], "the third prompt is not refined");
    let found = trial.compared().unwrap();
    assert!(found.stopped && found.refinements.passes == 0 && 0 < found.drafts.passes, "{found:?}");
    assert_eq!((found.refinements.answers, found.drafts.answers), (100, 100));
    assert_eq!(found.refinements.tokens, 100 * ("bad".len() + 1), "a reason costs no tokens");

    let (helpful, agent) = world("good").await;
    let trial = Trial::default();
    let made = explored(&helpful, &agent, &trial).await;
    assert_eq!(made, [(4, 100), (104, 0), (4, 100)], "refinements are right");
    assert!(!trial.compared().unwrap().stopped);
}
