//! The flow of reflection against the scripted engine and a real store. Each answer's text is part
//! of the prompt that judges it, so a script can say what the judge thinks of which answer.

mod trial;
mod verifiers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;

use super::*;
use config::{
    AgentAspect, Aspect, AspectChoice, JudgeConfig, Pass, Promising, Reflection, ScalarConfig,
    StopEarly,
};
use engine::{self, EngineThread};
use prompt::PromptSet;
use store::{self, Exchange, NewCandidate, StoreThread};
use testkit::fake::{CHAT_TEMPLATE, Fake, Script};

/// The judge's words for "bad", "so-so" and "good".
pub(super) const BAD: &[(&str, f32)] = &[("-", 0.8), ("0", 0.1), ("+", 0.1)];
const SO_SO: &[(&str, f32)] = &[("-", 0.3), ("0", 0.3), ("+", 0.4)];
pub(super) const GOOD: &[(&str, f32)] = &[("-", 0.05), ("0", 0.05), ("+", 0.9)];

/// A bad draft, a critique of it, and a good refinement.
pub(super) fn script() -> Script {
    answers(Script::new("?"))
}

/// The same after other rules.
pub(super) fn answers(before: Script) -> Script {
    before
        .on("judge right of bad", BAD)
        .on("judge right of fair", SO_SO)
        .on("judge right of good", GOOD)
        .on("judge clear of", GOOD)
        .on("critique bad for right.", &[("be right", 1.0)])
        .on("critique fair for right.", &[("be right", 1.0)])
        .on("refine bad after be right", &[("good", 1.0)])
        .on("refine fair after be right", &[("fair", 1.0)])
        .on("ask bad", &[("bad", 1.0)])
        .on("ask fair", &[("fair", 1.0)])
        .on("ask good", &[("good", 1.0)])
        .on("ask mixed", &[("bad", 0.4), ("fair", 0.3), ("good", 0.3)])
}

pub(super) struct World {
    pub(super) reflector: Reflector,
    pub(super) store: Store,
    pub(super) engine: Engine,
    // Field order is significant: the handles go before the threads that they keep alive.
    _threads: (EngineThread, StoreThread),
    _state: tempfile::TempDir,
}

impl World {
    pub(super) async fn new(script: Script) -> Self {
        let state = tempfile::tempdir().unwrap();
        let (engine, engine_thread) =
            engine::spawn_with(8, move || Ok(Fake::new(script))).await.unwrap();
        let (store, store_thread) = store::spawn(state.path().join("reflectd.db")).await.unwrap();
        let template = ChatTemplate::new(Some(CHAT_TEMPLATE), "<|begin|>", "<|end|>");
        let reflector = Reflector::new(engine.clone(), store.clone(), Arc::new(template));
        Self { reflector, store, engine, _threads: (engine_thread, store_thread), _state: state }
    }

    /// The same with another reflector.
    pub(super) fn with(self, change: impl FnOnce(Reflector) -> Reflector) -> Self {
        Self { reflector: change(self.reflector.clone()), ..self }
    }

    /// Runs a task to its end and returns all that the client saw.
    pub(super) async fn run(&self, task: Task) -> Vec<Progress> {
        let (sender, mut receiver) = mpsc::channel(1);
        let reflector = self.reflector.clone();
        let running = tokio::spawn(async move { reflector.run(task, sender).await });
        let mut seen = Vec::new();
        while let Some(progress) = receiver.recv().await {
            seen.push(progress);
        }
        running.await.unwrap();
        seen
    }

    pub(super) async fn outcome(&self, task: Task) -> Outcome {
        outcome(&self.run(task).await).clone()
    }

    async fn explore(&self, id: ExchangeId, aim: Aim) -> Result<Explored, ReflectError> {
        self.reflector.explore(&agent(), id, aim, &|_| {}).await
    }

    pub(super) async fn stored(&self, outcome: &Outcome) -> Exchange {
        self.store.exchange(outcome.exchange.unwrap()).await.unwrap()
    }
}

/// All of it, without stopping early.
pub(super) fn aim(drafts: u32, refinements: u32) -> Aim {
    Aim { drafts, refinements, stop_early: StopEarly { enough: 0, give_up: 0 }, anew: false }
}

pub(super) fn outcome(seen: &[Progress]) -> &Outcome {
    match seen.last() {
        Some(Progress::Done(outcome)) => outcome,
        other => panic!("the task ended with {other:?}"),
    }
}

/// What the client read as answer `wanted`.
pub(super) fn text_of(seen: &[Progress], wanted: u32) -> String {
    seen.iter()
        .filter_map(|progress| match progress {
            Progress::Token(piece) if piece.index == wanted => Some(piece.text.as_str()),
            Progress::Finished { index, text, .. } if *index == wanted => Some(text.as_str()),
            _ => None,
        })
        .collect()
}

fn reasoning(seen: &[Progress]) -> String {
    seen.iter()
        .filter_map(|progress| match progress {
            Progress::Reasoning(text) => Some(text.as_str()),
            _ => None,
        })
        .collect()
}

pub(super) fn texts(exchange: &Exchange) -> Vec<&str> {
    exchange.candidates.iter().map(|candidate| candidate.text.as_str()).collect()
}

fn prompts(labels: [&str; 3]) -> PromptSet {
    let user = |text: &str| vec![Message { role: Role::User, content: text.to_owned() }];
    let templates = BTreeMap::from([
        (
            "assess".to_owned(),
            user(
                "{{ question }}{% if reference %} ref {{ reference }}{% endif %} judge \
                  {{ aspect.name }} of {{ response }}",
            ),
        ),
        (
            "critique".to_owned(),
            user(
                "{{ question }}{% if reference %} ref {{ reference }}{% endif %} critique \
                  {{ response }} for {% for a in aspects %}{{ a.name }}.{% endfor %}",
            ),
        ),
        ("refine".to_owned(), user("{{ question }} refine {{ response }} after {{ critique }}")),
        ("choose".to_owned(), user("{{ question }} needs {{ aspect.name }}")),
    ]);
    PromptSet::new(labels.map(str::to_owned), templates).unwrap()
}

pub(super) fn aspect(name: &str) -> AgentAspect {
    AgentAspect {
        aspect: Arc::new(Aspect {
            name: name.to_owned(),
            description: format!("Is it {name}?"),
            levels: ["no", "partly", "yes"].map(str::to_owned),
            version: "v1".to_owned(),
            correctness: false,
        }),
        weight: 1.0,
        pass: Pass::Fixed(0.5),
    }
}

pub(super) fn agent() -> Agent {
    Agent {
        name: "tester".to_owned(),
        description: String::new(),
        system: None,
        sampling: Sampling { max_tokens: 32, ..Sampling::default() },
        prompts: Arc::new(prompts(["-", "0", "+"])),
        aspects: vec![aspect("right"), aspect("clear")],
        aspect_choice: AspectChoice::All,
        judge: JudgeConfig::Own,
        scalar: ScalarConfig::Aspects,
        reflection: Reflection {
            mode: Mode::Background,
            drafts: 1,
            refinements: 1,
            rounds: 1,
            margin: 0.1,
            promising: Promising::BestFaulty,
            refine_temperature: 1.0,
            critique_tokens: 32,
            latency: Duration::from_mins(10),
            tokens: 10_000,
            explore: (4, 4),
            stop_early: StopEarly { enough: 0, give_up: 0 },
            verifier_weight: 1.0,
        },
        verifier: None,
        learn: true,
        held_out: None,
        probes: None,
        general: None,
        examples: None,
        practice: config::Practice { prompts: None, shots: 0, temperature: Some(1.0), top_p: 1.0 },
    }
}

pub(super) fn task(agent: Agent, mode: Mode, prompt: &str) -> Task {
    Task {
        sampling: Sampling { seed: Some(7), ..agent.sampling },
        agent: Arc::new(agent),
        messages: vec![Message { role: Role::User, content: prompt.to_owned() }],
        mode,
        n: 1,
        stop: Vec::new(),
        top_logprobs: 0,
        reference: None,
        verifier: None,
    }
}

fn exact(expected: &str) -> Verifier {
    Verifier::Exact { expected: expected.to_owned() }
}

#[tokio::test]
async fn mode_off_streams_and_stores_nothing() {
    let world = World::new(script()).await;
    let seen = world.run(task(agent(), Mode::Off, "ask bad")).await;
    assert!(matches!(seen[..2], [Progress::Queued, Progress::Started { seed: 7, .. }]));
    assert_eq!(text_of(&seen, 0), "bad");
    assert_eq!((outcome(&seen).exchange, outcome(&seen).stopped), (None, "off"));
    assert_eq!(world.store.counts().await.unwrap().exchanges, 0);
}

#[tokio::test]
async fn background_mode_streams_all_answers_and_stores_them_before_done() {
    let world = World::new(script()).await;
    let mut agent = agent();
    agent.system = Some("Be kind.".to_owned());
    let task = Task { n: 2, ..task(agent, Mode::Background, "ask bad") };
    let seen = world.run(task).await;
    assert_eq!((text_of(&seen, 0), text_of(&seen, 1)), ("bad".into(), "bad".into()));
    let outcome = outcome(&seen);
    assert_eq!((outcome.stopped, outcome.served.len()), ("background", 2));
    let stored = world.stored(outcome).await;
    assert_eq!(stored.served, Some(stored.candidates[0].id));
    assert_eq!(stored.messages[0].content, "Be kind.");
    let seeds: Vec<_> = stored.candidates.iter().map(|c| c.sampling.seed).collect();
    assert_eq!(seeds, [Some(7), Some(8)]);
    for candidate in &stored.candidates {
        assert!(candidate.assessments.is_empty());
        assert_eq!(candidate.tokens.len(), "bad".len() + 1, "the end token counts");
        assert_eq!(candidate.logprobs.len(), candidate.tokens.len());
    }
}

#[tokio::test]
async fn an_inline_answer_is_refined_when_it_falls_short() {
    let world = World::new(script()).await;
    let seen = world.run(task(agent(), Mode::Inline, "ask bad")).await;
    assert_eq!(text_of(&seen, 0), "good");
    let shown = reasoning(&seen);
    assert!(
        shown.contains("Answer 1: right -0.70, clear +0.85, in all +0.07, falls short\n"),
        "{shown}"
    );
    assert!(shown.contains("Critique of answer 1: be right\n"), "{shown}");
    assert!(shown.contains("Answer 2 (revises 1): right +0.85"), "{shown}");
    let first_token = seen.iter().position(|p| matches!(p, Progress::Token(_))).unwrap();
    let last_thought = seen.iter().rposition(|p| matches!(p, Progress::Reasoning(_))).unwrap();
    assert!(last_thought < first_token);

    let outcome = outcome(&seen);
    assert_eq!((outcome.rounds, outcome.stopped, outcome.n_candidates), (1, "passes", 2));
    let stored = world.stored(outcome).await;
    assert_eq!(texts(&stored), ["bad", "good"]);
    let [draft, refinement] = stored.candidates.as_slice() else { panic!("two were stored") };
    assert_eq!(stored.served, Some(refinement.id));
    assert_eq!(outcome.served, std::slice::from_ref(refinement));
    assert_eq!(refinement.parent, Some(draft.id));
    assert_eq!(refinement.critique.as_deref(), Some("be right"));
    assert_eq!(refinement.sampling.seed, Some(8));
    assert!(passes(&refinement.assessments) && !passes(&draft.assessments));
    let judged = &draft.assessments[0];
    assert_eq!(judged.judge, "generation 0 of 000000000000");
    assert_eq!((judged.aspect.as_str(), judged.rubric_version.len()), ("right", 12));
    assert!(0.99 < judged.mass);
}

#[tokio::test]
async fn an_inline_answer_that_passes_is_served_at_once() {
    let world = World::new(script()).await;
    let outcome = world.outcome(task(agent(), Mode::Inline, "ask good")).await;
    assert_eq!((outcome.rounds, outcome.stopped, outcome.n_candidates), (0, "passes", 1));
    assert_eq!(outcome.generated_tokens, "good".len() + 1);
}

#[tokio::test]
async fn a_refinement_that_gains_nothing_is_stored_but_not_served() {
    let world = World::new(script()).await;
    let mut agent = agent();
    agent.reflection.rounds = 3;
    agent.reflection.refinements = 6;
    let outcome = world.outcome(task(agent, Mode::Inline, "ask fair")).await;
    assert_eq!((outcome.rounds, outcome.stopped), (1, "no gain"));
    let stored = world.stored(&outcome).await;
    assert_eq!(texts(&stored), ["fair", "fair", "fair"]);
    assert_eq!(stored.served, Some(stored.candidates[0].id));
}

#[tokio::test]
async fn inline_mode_serves_the_best_of_its_drafts_best_first() {
    let world = World::new(script()).await;
    let mut agent = agent();
    agent.reflection.drafts = 12;
    let task = Task { n: 2, ..task(agent, Mode::Inline, "ask mixed") };
    let seen = world.run(task).await;
    let stored = world.stored(outcome(&seen)).await;
    let drafts = texts(&stored);
    assert_eq!(drafts.len(), 12);
    assert!(["bad", "fair", "good"].iter().all(|kind| drafts.contains(kind)), "{drafts:?}");
    assert_eq!(text_of(&seen, 0), "good");
    assert_eq!(outcome(&seen).served.len(), 2);
    assert_eq!(stored.served, Some(outcome(&seen).served[0].id));
}

#[tokio::test]
async fn greedy_drafts_are_not_multiplied() {
    let world = World::new(script()).await;
    let mut agent = agent();
    agent.reflection.drafts = 4;
    agent.sampling.temperature = 0.0;
    let outcome = world.outcome(task(agent, Mode::Inline, "ask good")).await;
    assert_eq!(outcome.n_candidates, 1);
}

#[tokio::test]
async fn a_deadline_that_has_passed_serves_the_draft_unjudged() {
    let world = World::new(script().step_delay(Duration::from_millis(2))).await;
    let mut agent = agent();
    agent.reflection.latency = Duration::ZERO;
    let seen = world.run(task(agent, Mode::Inline, "ask bad")).await;
    assert_eq!(text_of(&seen, 0), "bad");
    assert_eq!((outcome(&seen).stopped, outcome(&seen).n_candidates), ("budget", 1));
    assert!(world.stored(outcome(&seen)).await.candidates[0].assessments.is_empty());
}

#[tokio::test]
async fn spent_tokens_end_the_reflection_but_not_the_answer() {
    let world = World::new(script()).await;
    let mut agent = agent();
    agent.reflection.tokens = 2;
    let seen = world.run(task(agent, Mode::Inline, "ask bad")).await;
    assert_eq!(text_of(&seen, 0), "bad");
    assert_eq!(outcome(&seen).stopped, "budget");
    assert_eq!(world.stored(outcome(&seen)).await.candidates[0].assessments.len(), 2);
}

#[tokio::test]
async fn a_prompt_that_is_too_long_fails_before_anything_is_stored() {
    let world = World::new(script()).await;
    let seen = world.run(task(agent(), Mode::Inline, &"long ".repeat(2000))).await;
    assert!(matches!(
        seen.as_slice(),
        [Progress::Failed(ReflectError::Engine(EngineError::TooLong { .. }))]
    ));
    assert_eq!(world.store.counts().await.unwrap().exchanges, 0);
}

#[tokio::test]
async fn an_answer_too_long_for_the_judge_is_served_unjudged() {
    let world = World::new(script()).await;
    // The prompt fits beside the answer; the judge needs more room for its own words.
    let prompt = format!("ask bad {}", "long ".repeat(814));
    let seen = world.run(task(agent(), Mode::Inline, &prompt)).await;
    assert_eq!(text_of(&seen, 0), "bad");
    assert_eq!(outcome(&seen).stopped, "budget");
}

#[tokio::test]
async fn a_client_that_leaves_keeps_nothing_unfinished() {
    let reply = "word ".repeat(200);
    let slow = Script::new(&reply).step_delay(Duration::from_millis(2));
    let world = World::new(slow).await;
    for mode in [Mode::Background, Mode::Inline] {
        let mut task = task(agent(), mode, "ask");
        task.sampling.max_tokens = 1000;
        let (sender, mut receiver) = mpsc::channel(1);
        let reflector = world.reflector.clone();
        let running = tokio::spawn(async move { reflector.run(task, sender).await });
        assert!(matches!(receiver.recv().await, Some(Progress::Queued)));
        assert!(matches!(receiver.recv().await, Some(Progress::Started { .. })));
        drop(receiver);
        running.await.unwrap();
    }
    assert_eq!(world.store.counts().await.unwrap().exchanges, 0);
    // The engine serves the next one, which it could not while the old ones held its sequences.
    let answer = world.outcome(task(agent(), Mode::Off, "ask")).await;
    assert_eq!(answer.generated_tokens, 32);
}

#[tokio::test]
async fn what_was_complete_when_the_client_left_is_stored() {
    let world = World::new(script().step_delay(Duration::from_millis(2))).await;
    let (sender, mut receiver) = mpsc::channel(1);
    let reflector = world.reflector.clone();
    let task = task(agent(), Mode::Inline, "ask bad");
    let running = tokio::spawn(async move { reflector.run(task, sender).await });
    while let Some(progress) = receiver.recv().await {
        if matches!(progress, Progress::Reasoning(_)) {
            break;
        }
    }
    drop(receiver);
    running.await.unwrap();
    let [exchange] = world.store.exchanges(None, 10).await.unwrap().try_into().unwrap();
    assert_eq!(exchange.served, None);
    assert_eq!(texts(&exchange), ["bad"]);
    assert_eq!(exchange.candidates[0].assessments.len(), 2);
}

#[tokio::test]
async fn the_reference_is_shown_to_the_judge_and_never_to_the_policy() {
    let script = Script::new("?")
        .on("ask ref secret judge", BAD)
        .on("ask ref secret critique", &[("try again", 1.0)])
        .on("secret", &[("leaked", 1.0)])
        .on("ask refine plain after try again", &[("better", 1.0)])
        .on("ask", &[("plain", 1.0)]);
    let world = World::new(script).await;
    let task = Task { reference: Some("secret".to_owned()), ..task(agent(), Mode::Inline, "ask") };
    let outcome = world.outcome(task).await;
    assert_eq!(texts(&world.stored(&outcome).await), ["plain", "better"]);
}

#[tokio::test]
async fn a_verifier_is_one_more_aspect_that_can_veto() {
    let world = World::new(script()).await;
    let task = Task { verifier: Some(exact("42")), ..task(agent(), Mode::Inline, "ask good") };
    let outcome = world.outcome(task).await;
    assert_eq!((outcome.rounds, outcome.stopped), (1, "no gain"));
    let stored = world.stored(&outcome).await;
    assert_eq!(stored.verifier, Some(exact("42")));
    let refined = &stored.candidates[1];
    assert_eq!(refined.critique.as_deref(), Some("is not the right answer"));
    assert_eq!(refined.critic, Some(store::Critic::Verifier));
    let verified = stored.candidates[0].assessments.last().unwrap();
    assert_eq!((verified.aspect.as_str(), verified.judge.as_str()), ("verifier", "verifier:exact"));
    assert_eq!((verified.levels, verified.passes), ([1.0, 0.0, 0.0], false));
}

#[tokio::test]
async fn a_verifier_of_weight_0_only_measures() {
    let world = World::new(script()).await;
    let mut agent = agent();
    agent.reflection.verifier_weight = 0.0;
    agent.verifier = Some(exact("42"));
    let outcome = world.outcome(task(agent, Mode::Inline, "ask good")).await;
    assert_eq!((outcome.rounds, outcome.stopped), (0, "passes"));
    let stored = world.stored(&outcome).await;
    assert!(!stored.candidates[0].assessments.last().unwrap().passes);
}

#[tokio::test]
async fn a_verifier_that_cannot_work_fails_the_task_at_once() {
    let world = World::new(script()).await;
    let verifier = Some(Verifier::JsonSchema { schema: json!({"type": "nothing"}) });
    let seen = world.run(Task { verifier, ..task(agent(), Mode::Off, "ask bad") }).await;
    assert!(matches!(seen.as_slice(), [Progress::Failed(ReflectError::Verifier(_))]), "{seen:?}");
}

#[tokio::test]
async fn reflecting_later_judges_what_was_served_and_refines_it() {
    let world = World::new(script()).await;
    let outcome = world.outcome(task(agent(), Mode::Background, "ask bad")).await;
    let id = outcome.exchange.unwrap();
    let explored = world.reflector.reflect_later(&agent(), id).await.unwrap();
    assert_eq!((explored.drafts, explored.refinements, explored.positives), (0, 1, 1));
    assert_eq!(explored.generated_tokens, "be right".len() + "good".len() + 2);
    let stored = world.stored(&outcome).await;
    assert_eq!(texts(&stored), ["bad", "good"]);
    assert_eq!(stored.served, Some(stored.candidates[0].id));
    assert_eq!(stored.candidates[1].parent, Some(stored.candidates[0].id));
    assert!(stored.candidates.iter().all(|candidate| candidate.assessments.len() == 2));

    let again = world.reflector.reflect_later(&agent(), id).await.unwrap();
    assert_eq!((again.drafts, again.refinements, again.generated_tokens), (0, 0, 0));
}

#[tokio::test]
async fn exploring_fills_a_remembered_prompt_up_to_its_goal() {
    let world = World::new(script()).await;
    let line = PromptLine { verifier: Some(exact("good")), ..PromptLine::new("1", "ask mixed") };
    let id = world.reflector.remember(&agent(), line).await.unwrap();
    let explored = world.explore(id, aim(12, 3)).await.unwrap();
    assert_eq!((explored.drafts, explored.refinements), (12, 3));
    let stored = world.store.exchange(id).await.unwrap();
    assert_eq!((stored.source, stored.served), (Source::Explore, None));
    let positives = stored.candidates.iter().filter(|c| passes(&c.assessments)).count();
    assert_eq!(explored.positives, positives);
    // Drafts that pass are not refined, so the best one with a fault is the parent; once in seventy times
    // none is fair.
    let (drafts, refinements) = stored.candidates.split_at(12);
    let with = |text| drafts.iter().find(|draft| draft.text == text);
    let parent = with("fair").or_else(|| with("bad")).unwrap();
    assert!(refinements.iter().all(|candidate| candidate.parent == Some(parent.id)));
    assert!(stored.candidates.iter().all(|candidate| candidate.assessments.len() == 3));
}

#[tokio::test]
async fn exploring_refines_nothing_when_every_draft_passes() {
    let world = World::new(script()).await;
    let outcome = world.outcome(task(agent(), Mode::Explore, "ask good")).await;
    assert_eq!(outcome.stopped, "explore");
    let id = outcome.exchange.unwrap();
    let explored = world.explore(id, aim(3, 3)).await.unwrap();
    assert_eq!((explored.drafts, explored.refinements, explored.positives), (2, 0, 3));
}

fn stopping(drafts: u32, refinements: u32, enough: u32, give_up: u32) -> Aim {
    Aim { stop_early: StopEarly { enough, give_up }, ..aim(drafts, refinements) }
}

async fn remembered(world: &World, prompt: &str) -> ExchangeId {
    let (id, prompt) = ("1".to_owned(), prompt.to_owned());
    let line = PromptLine::new(id, prompt);
    world.reflector.remember(&agent(), line).await.unwrap()
}

#[tokio::test]
async fn exploring_leaves_a_prompt_that_has_enough_of_good_and_bad_answers() {
    let world = World::new(script()).await;
    let id = remembered(&world, "ask mixed").await;
    let explored = world.explore(id, stopping(64, 64, 2, 0)).await.unwrap();
    assert_eq!(explored.left, Some(pursue::Reason::Enough));
    let stored = world.store.exchange(id).await.unwrap();
    let positives = stored.candidates.iter().filter(|c| passes(&c.assessments)).count();
    let negatives = stored.candidates.len() - positives;
    assert!(2 <= positives && 2 <= negatives, "{positives} and {negatives}");
    assert!(stored.candidates.len() < 64, "{}", stored.candidates.len());
    let again = world.explore(id, stopping(64, 64, 2, 0)).await.unwrap();
    assert_eq!((again.drafts, again.generated_tokens), (0, 0), "it has enough still");
}

#[tokio::test]
async fn a_prompt_that_nothing_helps_is_given_up_and_its_critique_asked_for_once() {
    let world = World::new(script()).await;
    let id = remembered(&world, "ask fair").await;
    let explored = world.explore(id, stopping(4, 64, 1, 12)).await.unwrap();
    assert_eq!(explored.left, Some(pursue::Reason::Hopeless));
    assert_eq!((explored.drafts, explored.refinements, explored.positives), (4, 8, 0));
    assert_eq!(explored.generated_tokens, 12 * ("fair".len() + 1) + "be right".len() + 1);
}

#[tokio::test]
async fn an_exploration_that_is_cut_off_goes_on_where_it_was() {
    let world = World::new(script()).await;
    let id = remembered(&world, "ask fair").await;
    let (sender, mut first_stage) = mpsc::channel(64);
    let told = |news: Explored| sender.try_send(news).unwrap();
    let (agent, aim) = (agent(), stopping(12, 0, 1, 0));
    tokio::select! {
        explored = world.reflector.explore(&agent, id, aim, &told) => panic!("{explored:?}"),
        () = async { while first_stage.recv().await.unwrap().drafts == 0 {} } => {}
    }
    let before = world.store.exchange(id).await.unwrap().candidates;
    assert!((4..12).contains(&before.len()), "{}", before.len());
    assert!(before.iter().all(|candidate| !candidate.assessments.is_empty()));
    let rest = world.explore(id, aim).await.unwrap();
    assert_eq!(before.len() + rest.drafts, 12);
    let after = world.store.exchange(id).await.unwrap().candidates;
    assert_eq!(after[..before.len()], before);
}

#[tokio::test]
async fn an_edit_has_the_tokens_of_an_answer_that_the_model_could_have_given() {
    let world = World::new(script()).await;
    let outcome = world.outcome(task(agent(), Mode::Background, "ask good")).await;
    let stored = world.stored(&outcome).await;
    let served = &stored.candidates[0];
    let verified = Exchange { verifier: Some(exact("bad")), ..stored.clone() };
    let edit = world.reflector.edited(&agent(), &verified, served.id, "good").await.unwrap();
    assert_eq!((&edit.tokens, &edit.logprobs), (&served.tokens, &served.logprobs));
    assert_eq!(edit.parent, Some(store::Parent::Stored(served.id)));
    assert!(!edit.assessments[0].passes, "the verifier is asked at once");
    // Nobody explores from it, and the judge does not grade it.
    let edit = NewCandidate { assessments: Vec::new(), text: "bad".into(), ..edit };
    world.store.add_candidates(stored.id, vec![edit]).await.unwrap();
    let explored = world.explore(stored.id, aim(1, 4)).await.unwrap();
    assert_eq!((explored.drafts, explored.refinements), (0, 0));
    let edit = world.stored(&outcome).await.candidates.remove(1);
    assert_eq!(edit.assessments, []);
}

#[tokio::test]
async fn the_gate_gets_tokens_and_judgement_without_a_trace_in_the_store() {
    let world = World::new(script()).await;
    let messages = [Message { role: Role::User, content: "ask good".to_owned() }];
    let sampling = Sampling { temperature: 0.0, max_tokens: 32, ..Sampling::default() };
    let weights = Weights::Generation(Generation::BASE);
    let answer = world
        .reflector
        .answer(&agent(), &messages, weights, sampling, Priority::Gate)
        .await
        .unwrap();
    assert_eq!(answer.text, "good");
    assert_eq!(answer.tokens.len() - answer.from, answer.logprobs.len());
    let prompt = world.engine.vocabulary().tokenize(
        &ChatTemplate::new(Some(CHAT_TEMPLATE), "<|begin|>", "<|end|>").render(&messages).unwrap(),
    );
    assert_eq!(answer.tokens[..answer.from], prompt);
    let verifier = exact("good");
    let assessments = world
        .reflector
        .assess(&agent(), "ask good", &answer.text, None, Some(&verifier), Priority::Gate)
        .await
        .unwrap();
    assert!(passes(&assessments) && assessments.len() == 3);
    assert_eq!(world.store.counts().await.unwrap().exchanges, 0);
}

#[tokio::test]
async fn labels_that_are_no_single_tokens_are_refused() {
    let world = World::new(script()).await;
    world.reflector.check_agent(&agent()).unwrap();
    let mut agent = agent();
    agent.prompts = Arc::new(prompts(["bad", "0", "+"]));
    let problem = world.reflector.check_agent(&agent).unwrap_err().to_string();
    assert!(problem.contains("`bad` is not one token"), "{problem}");
}
