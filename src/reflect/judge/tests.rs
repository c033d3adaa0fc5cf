//! Other judges than the served model, other scalars than the mean, and aspects that the judge
//! chooses, against scripted engines; endpoints against a scripted server.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};

use super::super::pursue::Reason;
use super::super::tests::{
    BAD, GOOD, World, agent, aim, answers, aspect, outcome, script, task, text_of, texts,
};
use super::super::{CallCounts, ReflectError, passes, scalar};
use config::{
    Address, AspectChoice, EndpointConfig, JudgeConfig, Mode, Promising, PromptLine, RewardConfig,
    ScalarConfig,
};
use engine::reward;
use engine::step_lock::StepLock;
use engine::{self, EngineThread, Priority};
use prompt::ChatTemplate;
use store::Assessment;
use testkit::fake::{CHAT_TEMPLATE, Fake, Script};
use testkit::reward::FakeReward;

fn template() -> Arc<ChatTemplate> {
    Arc::new(ChatTemplate::new(Some(CHAT_TEMPLATE), "<|begin|>", "<|end|>"))
}

/// The world with a second model that judges by this script.
async fn with_second(world: World, script: Script) -> (World, EngineThread) {
    let (engine, thread) = engine::spawn_with(8, move || Ok(Fake::new(script))).await.unwrap();
    (world.with(|reflector| reflector.with_judge(engine, template())), thread)
}

#[tokio::test]
async fn a_second_model_judges_and_criticises_and_the_served_one_answers() {
    // The served model would call everything good.
    let served = Script::new("?")
        .on("judge", GOOD)
        .on("refine bad after use the other word", &[("good", 1.0)])
        .on("ask", &[("bad", 1.0)]);
    let second = Script::new("?")
        .on("judge right of bad", BAD)
        .on("judge", GOOD)
        .on("critique bad for right.", &[("use the other word", 1.0)]);
    let (world, _thread) = with_second(World::new(served).await, second).await;
    let mut agent = agent();
    agent.judge = JudgeConfig::Model("other.gguf".into());
    world.reflector.check_agent(&agent).unwrap();
    let seen = world.run(task(agent.clone(), Mode::Inline, "ask")).await;
    assert_eq!(text_of(&seen, 0), "good");
    let stored = world.stored(outcome(&seen)).await;
    assert_eq!(texts(&stored), ["bad", "good"]);
    assert_eq!(stored.candidates[1].critique.as_deref(), Some("use the other word"));
    let judges = stored.candidates.iter().flat_map(|it| &it.assessments).map(|it| &it.judge);
    assert_eq!(judges.collect::<Vec<_>>(), ["model 000000000000"; 4], "two aspects of two answers");
    assert_eq!(world.reflector.judge_name(&agent).unwrap(), "model 000000000000");
}

#[tokio::test]
async fn an_agent_whose_second_model_is_not_loaded_is_refused_by_name() {
    let world = World::new(script()).await;
    let mut agent = agent();
    agent.judge = JudgeConfig::Model("other.gguf".into());
    let problem = world.reflector.check_agent(&agent).unwrap_err().to_string();
    assert!(problem.contains("`judge.model` is not loaded"), "{problem}");
}

/// Three aspects of which the judge finds two to matter for "ask", which two others not.
fn choosing() -> (Script, config::Agent) {
    let script = Script::new("?")
        .on("needs right", GOOD)
        .on("needs clear", BAD)
        .on("needs brief", &[("-", 0.2), ("0", 0.3), ("+", 0.5)])
        .on("judge brief of", GOOD);
    let script = answers(script);
    let mut agent = agent();
    agent.aspects.push(aspect("brief"));
    agent.aspect_choice = AspectChoice::Judge(2);
    (script, agent)
}

fn judged_by(candidate: &store::Candidate) -> Vec<&str> {
    candidate.assessments.iter().map(|it| it.aspect.as_str()).collect()
}

#[tokio::test]
async fn the_judge_chooses_the_aspects_of_a_prompt_and_all_its_answers_are_judged_by_them() {
    let (script, agent) = choosing();
    let world = World::new(script).await;
    let outcome = world.outcome(task(agent.clone(), Mode::Inline, "ask bad")).await;
    let stored = world.stored(&outcome).await;
    let choice = stored.aspect_choice.clone().expect("the choice is stored");
    assert_eq!(choice.chosen, ["right", "brief"]);
    assert_eq!(choice.judge, "generation 0 of 000000000000");
    let relevance: Vec<&str> = choice.relevance.iter().map(|it| it.aspect.as_str()).collect();
    assert_eq!(relevance, ["right", "clear", "brief"]);
    assert!((choice.relevance[0].value - 0.85).abs() < 1e-5, "{choice:?}");
    for candidate in &stored.candidates {
        assert_eq!(judged_by(candidate), ["right", "brief"]);
    }
    // Exploring later keeps the choice, whatever the judge would say now.
    let id = outcome.exchange.unwrap();
    world.reflector.explore(&agent, id, aim(3, 2), &|_| {}).await.unwrap();
    let later = world.store.exchange(id).await.unwrap();
    assert!(stored.candidates.len() < later.candidates.len());
    assert!(later.candidates.iter().all(|it| judged_by(it) == ["right", "brief"]));
    assert_eq!(later.aspect_choice, Some(choice));
}

#[tokio::test]
async fn a_prompt_whose_answers_were_judged_before_keeps_its_aspects() {
    let (script, choosing) = choosing();
    let world = World::new(script).await;
    let outcome = world.outcome(task(agent(), Mode::Inline, "ask bad")).await;
    let id = outcome.exchange.unwrap();
    world.reflector.explore(&choosing, id, aim(3, 2), &|_| {}).await.unwrap();
    let stored = world.store.exchange(id).await.unwrap();
    assert_eq!(texts(&stored).len(), 5, "three drafts and two refinements");
    assert!(stored.candidates.iter().all(|it| judged_by(it) == ["right", "clear"]));
    assert_eq!(stored.aspect_choice, None);
}

#[tokio::test]
async fn two_answers_of_one_prompt_are_judged_by_the_same_choice_without_a_stored_exchange() {
    let (script, agent) = choosing();
    let world = World::new(script).await;
    let mut aspects = Vec::new();
    let mut evaluated = Vec::new();
    for answer in ["good", "bad"] {
        let said = world
            .reflector
            .assess(&agent, "ask it", answer, None, None, Priority::Gate)
            .await
            .unwrap();
        aspects.push(said.into_iter().map(|it| it.aspect).collect::<Vec<_>>());
        let stats = world.engine.stats();
        evaluated.push(stats.prompt_tokens + stats.cached_tokens);
    }
    assert_eq!(aspects, [["right", "brief"], ["right", "brief"]]);
    assert!(evaluated[1] < 2 * evaluated[0], "the second one asks for no choice: {evaluated:?}");
}

async fn with_reward(world: World) -> (World, EngineThread) {
    // It reads the whole conversation.
    let value = |text: &str| match text {
        text if !text.contains("ask") => f64::NAN,
        text if text.ends_with("good") => -2.0,
        _ => 4.0,
    };
    let load = move || Ok(FakeReward::new(value));
    let (reward, thread) = reward::spawn_on(&StepLock::default(), load).await.unwrap();
    (world.with(|reflector| reflector.with_reward(reward, template())), thread)
}

fn rewarded() -> ScalarConfig {
    ScalarConfig::Reward(RewardConfig { model: "rm.gguf".into(), center: 0.0, scale: 2.0 })
}

#[tokio::test]
async fn a_reward_model_is_the_scalar_and_the_aspects_are_the_veto() {
    let (world, _thread) = with_reward(World::new(script()).await).await;
    let mut agent = agent();
    agent.scalar = rewarded();
    let line = PromptLine::new("1", "ask mixed");
    let id = world.reflector.remember(&agent, line).await.unwrap();
    world.reflector.explore(&agent, id, aim(12, 1), &|_| {}).await.unwrap();
    let stored = world.store.exchange(id).await.unwrap();
    let n_good = texts(&stored).iter().filter(|text| **text == "good").count();
    assert!(0 < n_good && n_good < texts(&stored).len(), "{:?}", texts(&stored));
    for candidate in &stored.candidates {
        let said = candidate.assessments.last().unwrap();
        assert_eq!((said.aspect.as_str(), said.weight), ("reward", 0.0));
        assert_eq!(said.judge, "reward model 000000000000");
        let is_good = candidate.text == "good";
        let expected = if is_good { -0.5_f64 } else { 1.0 }.tanh();
        assert!((scalar(&candidate.assessments) - expected).abs() < 1e-6, "{candidate:?}");
        assert_eq!(passes(&candidate.assessments), is_good, "the reward has no veto");
    }
    assert_eq!(world.reflector.scalar_name(&agent), "reward model 000000000000");
}

#[tokio::test]
async fn as_in_the_paper_the_best_draft_is_revised_even_when_it_passes() {
    let script = Script::new("?")
        .on("critique good for right.clear.", &[("nothing", 1.0)])
        .on("refine good after nothing", &[("good", 1.0)]);
    let world = World::new(answers(script)).await;
    let mut agent = agent();
    let id = world.outcome(task(agent.clone(), Mode::Explore, "ask good")).await.exchange.unwrap();
    agent.reflection.promising = Promising::Best;
    let explored = world.reflector.explore(&agent, id, aim(3, 3), &|_| {}).await.unwrap();
    assert_eq!((explored.drafts, explored.refinements, explored.positives), (2, 3, 6));
}

/// What a scripted server does with one request.
#[derive(Clone, Debug)]
enum Turn {
    /// Status and body.
    Answer(u16, Value),
    /// Says so and closes.
    AnswerAndClose(Value),
    /// Closes without a word.
    Close,
    /// Never answers.
    Hang,
}

/// A server that does one turn a request, the last one for ever, and notes the requests.
#[derive(Clone, Debug)]
struct Server {
    config: EndpointConfig,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(turns: Vec<Turn>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap().to_string());
        let server = Self::at(address);
        let requests = server.requests.clone();
        let mut turns = VecDeque::from(turns);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let turn = if turns.len() > 1 { turns.pop_front() } else { turns.front().cloned() };
                let requests = requests.clone();
                tokio::spawn(serve(stream, turn.unwrap(), requests));
            }
        });
        server
    }

    fn at(address: Address) -> Self {
        let config = EndpointConfig {
            address,
            base: "/v1".into(),
            model: "judge".into(),
            key_file: None,
            timeout: Duration::from_secs(20),
            retries: 2,
        };
        Self { config, requests: Arc::default() }
    }

    fn agent(&self) -> config::Agent {
        config::Agent { judge: JudgeConfig::Endpoint(self.config.clone()), ..agent() }
    }

    fn seen(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    turn: Turn,
    requests: Arc<Mutex<Vec<String>>>,
) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    // Head, and as much as it announces.
    loop {
        let n = stream.read(&mut buffer).await.unwrap();
        request.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .to_lowercase()
            .split_once("content-length: ")
            .map(|(_, rest)| rest.lines().next().unwrap().trim().parse::<usize>().unwrap());
        if length.unwrap_or(0) <= body.len() {
            requests.lock().unwrap().push(text);
            break;
        }
    }
    let (status, body, close) = match turn {
        Turn::Answer(status, body) => (status, body, ""),
        Turn::AnswerAndClose(body) => (200, body, "connection: close\r\n"),
        Turn::Close => return,
        Turn::Hang => std::future::pending().await,
    };
    let body = body.to_string();
    let reply = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{close}content-length: \
         {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(reply.as_bytes()).await.unwrap();
    if close.is_empty() {
        // Kept open, as servers do.
        drop(stream.read(&mut buffer).await);
    }
}

/// What the server's judgement of an answer is, as the gate asks for it.
async fn judged(world: &World, server: &Server) -> Result<Vec<Assessment>, ReflectError> {
    let agent = server.agent();
    world.reflector.assess(&agent, "ask", "bad", None, None, Priority::Gate).await
}

/// A reply whose likeliest first tokens are these.
fn levels(top: &[(&str, f64)]) -> Value {
    let top: Vec<Value> =
        top.iter().map(|(token, p)| json!({"token": token, "logprob": p.ln()})).collect();
    json!({
        "system_fingerprint": "b1",
        "choices": [{
            "message": {"content": "be right"},
            "logprobs": {"content": [{"token": "+", "top_logprobs": top}]},
        }],
        "usage": {"completion_tokens": 3},
    })
}

fn good() -> Value {
    levels(&[("+", 0.8), ("0", 0.1), ("no", 0.05)])
}

#[tokio::test]
async fn an_endpoint_is_asked_for_one_token_and_read_from_its_log_probs() {
    let turns = vec![Turn::AnswerAndClose(good()), Turn::Answer(200, good())];
    let mut server = Server::start(turns).await;
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("key");
    files::write_atomic(&key_file, |out| std::io::Write::write_all(out, b"secret\n")).unwrap();
    server.config.key_file = Some(key_file);
    let world = World::new(script()).await;
    let outcome = world.outcome(task(server.agent(), Mode::Inline, "ask bad")).await;
    assert_eq!(outcome.stopped, "passes", "the endpoint says so, not the served model");
    let stored = world.stored(&outcome).await;
    let said = &stored.candidates[0].assessments[0];
    let Address::Tcp(host) = &server.config.address else { panic!() };
    assert_eq!(said.judge, format!("judge at http://{host}/v1 (b1)"));
    assert!((said.levels[2] - 0.8 / 0.9).abs() < 1e-5 && said.levels[0] < 1e-9, "{said:?}");
    assert!((said.mass - 0.9).abs() < 1e-5, "{said:?}");
    let seen = server.seen();
    assert_eq!(seen.len(), 2, "one request an aspect");
    let (head, body) = seen[0].split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("authorization: Bearer secret"), "{head}");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&body["max_tokens"], &body["top_logprobs"]), (&json!(1), &json!(20)));
    let calls = world.reflector.endpoint_calls();
    assert_eq!(calls, CallCounts { answered: 2, ..CallCounts::default() });
}

#[tokio::test]
async fn an_endpoint_writes_the_critique_too() {
    let bad = levels(&[("-", 0.9)]);
    let server = Server::start(vec![Turn::Answer(200, bad)]).await;
    let world = World::new(script()).await;
    let outcome = world.outcome(task(server.agent(), Mode::Inline, "ask bad")).await;
    let stored = world.stored(&outcome).await;
    assert_eq!(texts(&stored), ["bad", "good"]);
    assert_eq!(stored.candidates[1].critique.as_deref(), Some("be right"));
    // Its own tokens count as what the reflection took.
    assert_eq!(outcome.generated_tokens, "bad".len() + 1 + 3 + "good".len() + 1);
}

#[tokio::test]
async fn a_passing_fault_is_waited_out() {
    let busy = json!({"error": {"message": "busy"}});
    let turns = vec![Turn::Answer(503, busy), Turn::Close, Turn::Answer(200, good())];
    let server = Server::start(turns).await;
    let world = World::new(script()).await;
    let outcome = world.outcome(task(server.agent(), Mode::Inline, "ask bad")).await;
    assert_eq!(outcome.stopped, "passes");
    let calls = world.reflector.endpoint_calls();
    assert_eq!((calls.answered, calls.repeated, calls.failed), (2, 2, 0));
}

#[tokio::test]
async fn an_endpoint_that_is_down_costs_a_chat_its_reflection_and_not_its_answer() {
    let mut down = Server::at(Address::Unix(PathBuf::from("/nowhere/judge.sock")));
    down.config.retries = 0;
    let world = World::new(script()).await;
    let seen = world.run(task(down.agent(), Mode::Inline, "ask bad")).await;
    assert_eq!(text_of(&seen, 0), "bad");
    assert_eq!(outcome(&seen).stopped, "no judge");
    let stored = world.stored(outcome(&seen)).await;
    assert!(stored.candidates[0].assessments.is_empty());
}

#[tokio::test]
async fn an_endpoint_that_is_down_fails_an_exploration_and_loses_no_draft() {
    let mut down = Server::at(Address::Unix(PathBuf::from("/nowhere/judge.sock")));
    down.config.retries = 1;
    let world = World::new(script()).await;
    let id = world.outcome(task(agent(), Mode::Explore, "ask bad")).await.exchange.unwrap();
    let error = world.reflector.explore(&down.agent(), id, aim(3, 2), &|_| {}).await.unwrap_err();
    assert!(matches!(error, ReflectError::Judge(_)), "{error:?}");
    let said = error.to_string();
    assert!(said.starts_with("the judge at unix:/nowhere/judge.sock does not answer: "), "{said}");
    assert!(said.ends_with("(2 tries)"), "{said}");
    let stored = world.store.exchange(id).await.unwrap();
    assert_eq!(texts(&stored), ["bad", "bad", "bad"]);
    assert_eq!(world.reflector.endpoint_calls().last_error.as_deref(), Some(said.as_str()));
    // Back again, the drafts are judged and refined.
    let explored = world.reflector.explore(&agent(), id, aim(3, 2), &|_| {}).await.unwrap();
    assert_eq!((explored.drafts, explored.refinements), (0, 2));
    let stored = world.store.exchange(id).await.unwrap();
    assert!(stored.candidates.iter().all(|it| it.assessments.len() == 2));
}

#[tokio::test]
async fn faults_that_stay_are_not_repeated_and_say_what_is_wrong() {
    let refusal = json!({"error": {"message": "no such model"}});
    let no_logprobs = json!({"choices": [{"message": {"content": "+"}}]});
    for (turn, expected) in [
        (Turn::Answer(404, refusal), "answers with status 404: no such model"),
        (Turn::Answer(400, json!({"error": "no `size`"})), "answers with status 400: no `size`"),
        (Turn::Answer(400, json!("what?")), "answers with status 400: what?"),
        (Turn::Answer(200, no_logprobs), "answers without `top_logprobs`"),
        (Turn::Answer(200, json!("x".repeat(5 << 20))), "breaks off: length limit exceeded"),
    ] {
        let mut server = Server::start(vec![turn]).await;
        if expected.starts_with("breaks") {
            server.config.retries = 0;
        }
        let world = World::new(script()).await;
        let said = judged(&world, &server).await.unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
        assert!(server.seen().len() <= 2, "one request an aspect: {:?}", server.seen().len());
    }
}

#[tokio::test]
async fn an_endpoint_that_hangs_is_given_up() {
    let mut server = Server::start(vec![Turn::Hang]).await;
    server.config.timeout = Duration::from_millis(50);
    server.config.retries = 0;
    let world = World::new(script()).await;
    let said = judged(&world, &server).await.unwrap_err().to_string();
    assert!(said.contains("does not answer within 0.05 s"), "{said}");
}

#[tokio::test]
async fn an_answer_that_an_endpoint_gives_no_level_is_left_unjudged() {
    let thinking = levels(&[("<think>", 1.0)]);
    let openai = json!({"error": {"message": "too long", "code": "context_length_exceeded"}});
    for turn in [Turn::Answer(200, thinking), Turn::Answer(400, openai)]
        .into_iter()
        .chain(too_long().map(|body| Turn::Answer(400, body)))
    {
        let server = Server::start(vec![turn]).await;
        let world = World::new(script()).await;
        assert!(judged(&world, &server).await.unwrap().is_empty());
    }
}

/// What llama-server says of a conversation that is too long, and what servers say that have a sentence
/// for it and no word.
fn too_long() -> [Value; 2] {
    [
        json!({"error": {"code": 400, "message": "the request has too many tokens",
            "type": "exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": 4096}}),
        json!({"object": "error", "message": "This model's maximum context length is 4096 tokens.",
            "type": "BadRequestError", "param": null, "code": 400}),
    ]
}

#[tokio::test]
async fn answers_that_are_too_long_for_an_endpoint_do_not_end_an_exploration() {
    for body in too_long() {
        let server = Server::start(vec![Turn::Answer(400, body)]).await;
        let world = World::new(script()).await;
        let id = world.outcome(task(agent(), Mode::Explore, "ask bad")).await.exchange.unwrap();
        let explored = world.reflector.explore(&server.agent(), id, aim(3, 0), &|_| {}).await;
        assert_eq!(explored.unwrap().drafts, 2);
        let stored = world.store.exchange(id).await.unwrap().candidates;
        let unjudged = stored.iter().filter(|it| it.assessments.is_empty()).count();
        assert_eq!((stored.len(), unjudged), (3, 3));
    }
}

#[tokio::test]
async fn a_prompt_for_which_the_judge_cannot_choose_aspects_is_left_and_ends_nothing() {
    let thinking = Turn::Answer(200, levels(&[("<think>", 1.0)]));
    for turn in too_long().map(|body| Turn::Answer(400, body)).into_iter().chain([thinking]) {
        let server = Server::start(vec![turn]).await;
        let world = World::new(script()).await;
        let choosing = config::Agent { aspect_choice: AspectChoice::Judge(1), ..server.agent() };
        let id = world.outcome(task(agent(), Mode::Explore, "ask bad")).await.exchange.unwrap();
        let explored = world.reflector.explore(&choosing, id, aim(3, 2), &|_| {}).await.unwrap();
        assert_eq!((explored.drafts, explored.left), (0, Some(Reason::Spent)));
        let stored = world.store.exchange(id).await.unwrap();
        assert!(stored.candidates[0].assessments.is_empty() && stored.aspect_choice.is_none());
        let seen = world.run(task(choosing.clone(), Mode::Inline, "ask bad")).await;
        assert_eq!((text_of(&seen, 0).as_str(), outcome(&seen).stopped), ("bad", "no judge"));
        let asked = world.reflector.assess(&choosing, "ask", "bad", None, None, Priority::Gate);
        assert!(matches!(asked.await, Err(ReflectError::Unjudgeable)));
    }
}

#[tokio::test]
async fn an_endpoint_may_be_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("judge.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = Server::at(Address::Unix(path.clone()));
    let requests = server.requests.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Turn::Answer(200, good()), requests.clone()));
        }
    });
    let world = World::new(script()).await;
    let outcome = world.outcome(task(server.agent(), Mode::Inline, "ask bad")).await;
    assert_eq!(outcome.stopped, "passes");
    let judge = &world.stored(&outcome).await.candidates[0].assessments[0].judge;
    assert_eq!(judge, &format!("judge at unix:{} (b1)", path.display()));
}
