//! Answers that programs decide on: what is asked of whom, what is stored, what a refinement is told.

use super::*;
use prompt::Command;
use store::Critic;

/// An agent whose answers a verifier alone decides on.
fn checked(verifier: serde_json::Value) -> Agent {
    let verifier = Some(serde_json::from_value(verifier).unwrap());
    Agent { aspects: Vec::new(), judge: JudgeConfig::Nobody, verifier, ..agent() }
}

fn program(script: &str) -> Verifier {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).into();
    Verifier::Command(Command { command, pass: 1.0, timeout_s: 30.0, folder: "/".into() })
}

fn aspects_of(candidate: &store::Candidate) -> Vec<(&str, bool)> {
    candidate.assessments.iter().map(|said| (said.aspect.as_str(), said.passes)).collect()
}

#[tokio::test]
async fn an_agent_with_a_verifier_alone_asks_no_judge_for_levels_or_critiques() {
    let script = Script::new("?")
        .on("judge", &[("x", 1.0)])
        .on("critique", &[("asked", 1.0)])
        .on("ask refine One. Two. after 2 sentences, 1 wanted", &[("One.", 1.0)])
        .on("ask", &[("One. Two.", 1.0)]);
    let world = World::new(script).await;
    let agent = checked(json!({"kind": "length", "sentences": 1}));
    world.reflector.check_agent(&agent).unwrap();
    let seen = world.run(task(agent, Mode::Inline, "ask")).await;
    assert_eq!(text_of(&seen, 0), "One.");
    let outcome = outcome(&seen);
    assert_eq!(outcome.stopped, "passes");
    assert_eq!(outcome.generated_tokens, "One. Two.".len() + 1 + "One.".len() + 1);
    let stored = world.stored(outcome).await;
    assert_eq!(aspects_of(&stored.candidates[0]), [("verifier", false)]);
    assert_eq!(
        stored.candidates[0].assessments[0].reason.as_deref(),
        Some("2 sentences, 1 wanted")
    );
    let refined = &stored.candidates[1];
    assert_eq!(refined.critique.as_deref(), Some("2 sentences, 1 wanted"));
    assert_eq!(refined.critic, Some(Critic::Verifier));
    assert!(reasoning(&seen).contains("verifier -1.00 (2 sentences, 1 wanted)"));
}

#[tokio::test]
async fn a_critique_of_the_judge_is_told_apart_from_a_reason() {
    let world = World::new(script()).await;
    let outcome = world.outcome(task(agent(), Mode::Inline, "ask bad")).await;
    let stored = world.stored(&outcome).await;
    assert_eq!(stored.candidates[1].critique.as_deref(), Some("be right"));
    assert_eq!(stored.candidates[1].critic, Some(Critic::Judge));
    assert_eq!(stored.candidates[0].critic, None);
}

#[tokio::test]
async fn each_part_of_all_is_an_aspect_that_only_measures() {
    let world = World::new(Script::new("?").on("ask", &[("one two", 1.0)])).await;
    let agent = checked(json!({"kind": "all", "of": [
        {"kind": "length", "words": 2}, {"kind": "regex", "pattern": "^[A-Z]"},
        {"kind": "length", "words": {"max": 1}},
    ]}));
    let outcome = world.outcome(task(agent, Mode::Inline, "ask")).await;
    let stored = world.stored(&outcome).await;
    let draft = &stored.candidates[0];
    assert_eq!(
        aspects_of(draft),
        [
            ("verifier", false),
            ("verifier.length", true),
            ("verifier.regex", false),
            ("verifier.length 2", false)
        ]
    );
    let [whole, parts @ ..] = draft.assessments.as_slice() else { panic!() };
    assert!((whole.weight - 1.0).abs() < 1e-9 && parts.iter().all(|part| part.weight == 0.0));
    assert_eq!(parts[1].judge, "verifier:regex");
    assert_eq!(parts[2].reason.as_deref(), Some("2 words, at most 1 wanted"));
    assert!((f64::from(whole.levels[2]) - 1.0 / 3.0).abs() < 1e-6);
}

#[tokio::test]
async fn a_reference_that_equals_the_answer_speaks_for_the_aspects_that_ask_whether_it_is_right() {
    // The judge would refuse every answer as wrong.
    let script = Script::new("?")
        .on("judge right of", BAD)
        .on("judge clear of", GOOD)
        .on("ask same", &[("It is 42.", 1.0)])
        .on("ask other", &[("It is 43.", 1.0)]);
    let world = World::new(script).await;
    let mut agent = agent();
    agent.reflection.refinements = 0;
    let right = Arc::make_mut(&mut agent.aspects[0].aspect);
    right.correctness = true;
    let ask = async |prompt: &str| {
        let reference = Some("42".to_owned());
        let task = Task { reference, ..task(agent.clone(), Mode::Inline, prompt) };
        let outcome = world.outcome(task).await;
        world.stored(&outcome).await.candidates.remove(0)
    };
    let same = ask("ask same").await;
    assert_eq!(aspects_of(&same), [("right", true), ("clear", true)]);
    let judges: Vec<&str> = same.assessments.iter().map(|said| said.judge.as_str()).collect();
    assert_eq!(judges[0], format!("{} (reference)", judges[1]), "told apart from the judge's word");
    assert_eq!(same.assessments[0].rubric_version.len(), 12);
    let other = ask("ask other").await;
    assert_eq!(aspects_of(&other), [("right", false), ("clear", true)], "the judge was asked");
}

#[tokio::test]
async fn without_aspects_and_verifier_the_reference_decides() {
    let world = World::new(script()).await;
    let agent = Agent { aspects: Vec::new(), judge: JudgeConfig::Nobody, ..agent() };
    for (reference, passes) in [("GOOD!", true), ("better", false)] {
        let reference = Some(reference.to_owned());
        let task = Task { reference, ..task(agent.clone(), Mode::Inline, "ask good") };
        let outcome = world.outcome(task).await;
        let stored = world.stored(&outcome).await;
        assert_eq!(aspects_of(&stored.candidates[0]), [("verifier", passes)]);
        assert_eq!(stored.candidates[0].assessments[0].judge, "verifier:reference");
    }
    let outcome = world.outcome(task(agent.clone(), Mode::Inline, "ask good")).await;
    assert_eq!(world.stored(&outcome).await.candidates[0].assessments, [], "nothing decides");
    let id = outcome.exchange.unwrap();
    let explored = world.reflector.explore(&agent, id, aim(4, 4), &|_| {}).await.unwrap();
    assert_eq!((explored.drafts, explored.generated_tokens), (0, 0), "so nothing is explored");
}

#[tokio::test]
async fn a_program_that_checks_is_asked_and_never_stored() {
    let world = World::new(script()).await;
    let verifier = program(
        "while read -r line; do case \"$line\" in \
           *'\"answer\":\"good\"'*) echo '{\"score\": 1}';; \
           *) echo '{\"score\": 0.25, \"reason\": \"be right\"}';; esac; done",
    );
    let agent =
        Agent { verifier: Some(verifier), ..checked(json!({"kind": "exact", "expected": ""})) };
    let seen = world.run(task(agent.clone(), Mode::Inline, "ask bad")).await;
    assert_eq!((text_of(&seen, 0).as_str(), outcome(&seen).stopped), ("good", "passes"));
    let stored = world.stored(outcome(&seen)).await;
    assert_eq!(stored.verifier, None, "who changes a row runs no program");
    assert_eq!(stored.candidates[0].assessments[0].judge, "verifier:command");
    assert!((stored.candidates[0].assessments[0].value() + 0.5).abs() < 1e-6);
    // Judged again later it is the agent's program of the day that is asked.
    let again =
        world.reflector.assess_all(&agent, &stored, &["good"], Priority::Gate).await.unwrap();
    assert!(again[0][0].passes);
}

#[tokio::test]
async fn a_program_that_breaks_passes_nothing_and_says_why() {
    let world = World::new(script()).await;
    let agent = Agent {
        verifier: Some(program("read -r line; echo ready; cat >/dev/null")),
        ..checked(json!({"kind": "exact", "expected": ""}))
    };
    // A chat is answered all the same.
    let seen = world.run(task(agent.clone(), Mode::Inline, "ask bad")).await;
    assert_eq!((text_of(&seen, 0).as_str(), outcome(&seen).stopped), ("bad", "no judge"));
    assert_eq!(world.stored(outcome(&seen)).await.candidates[0].assessments, []);
    // Whoever needs the verdict hears of it, and the drafts are kept.
    let id = outcome(&seen).exchange.unwrap();
    let failed = world.reflector.explore(&agent, id, aim(3, 0), &|_| {}).await.unwrap_err();
    assert!(failed.to_string().contains("no verdict"), "{failed}");
    assert_eq!(world.store.exchange(id).await.unwrap().candidates.len(), 3);
}
