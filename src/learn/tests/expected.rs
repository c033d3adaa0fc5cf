//! Answers that the verifiers of practice prompts name, as examples: when they are, and when no longer.

use serde_json::{Value, json};

use super::lessons::{learn, practice};
use super::*;
use config::Verifier;

/// A world whose agent practises on a file that its answers never satisfy.
struct Practising {
    world: World,
    path: PathBuf,
}

impl Practising {
    async fn new(script: Script) -> Self {
        let world = World::new(script, "good.sh", &[]).await;
        let path = world.root().join("practice.jsonl");
        write(&path, "");
        world.change_agent(|agent| {
            agent.practice.prompts = Some(path.clone());
            agent.reflection.verifier_weight = 1.0;
            agent.reflection.explore = (2, 0);
        });
        Self { world, path }
    }

    /// So many prompts with this verifier are in the file.
    fn write(&self, n: usize, verifier: &Value) {
        write(&self.path, &practice(n, verifier));
    }

    async fn sync(&self) {
        let config = self.world.parts.config.borrow().clone();
        super::practice::sync(&self.world.parts, &config).await.unwrap();
    }

    async fn explore(&self) -> Harvest {
        let (learner, task) = self.world.learner();
        let ended = learner.explore(all(999)).await.unwrap();
        let Ended::Explored { harvest, .. } = ended else { panic!("{ended:?}") };
        learner.shutdown().await;
        task.await.unwrap();
        harvest
    }

    /// Their answers, in the order of their prompts.
    async fn examples(&self) -> Vec<String> {
        let rows = self.world.parts.store.examples(vec!["tester".into()]).await.unwrap();
        rows.into_iter().map(|row| row.text).collect()
    }
}

fn exact(expected: &str) -> Value {
    json!({ "kind": "exact", "expected": expected })
}

fn pattern() -> Value {
    json!({ "kind": "regex", "pattern": "^B$" })
}

#[tokio::test]
async fn what_a_verifier_named_is_no_example_once_it_names_nothing_or_its_line_is_gone() {
    let file = Practising::new(standing()).await;
    file.write(3, &exact("B"));
    let sentence = readiness::look(&file.world.parts).await.unwrap().to_string();
    assert!(sentence.contains("no answer to a practice prompt is judged"), "{sentence}");
    assert_eq!(file.explore().await.expected, 3);
    // What the owner himself says stays, also where it is the same.
    let own = "{\"prompt\":\"ask practice 0\",\"answer\":\"B\"}\n";
    learn(&file.world, own).await.unwrap();
    file.write(2, &exact("B"));
    file.sync().await;
    assert_eq!(file.examples().await, ["B", "B"], "one line is gone");
    file.write(2, &pattern());
    file.sync().await;
    assert_eq!(file.examples().await, ["B"], "the owner's own");

    // Nor is it where its word does not count, or no file is practised on.
    let changes: [fn(&mut Agent); 2] =
        [|agent| agent.reflection.verifier_weight = 0.0, |agent| agent.practice.prompts = None];
    for change in changes {
        let other = Practising::new(standing()).await;
        other.write(1, &exact("B"));
        assert_eq!(other.explore().await.expected, 1);
        other.world.change_agent(change);
        other.sync().await;
        assert_eq!(other.examples().await, [""; 0]);
    }
}

#[tokio::test]
async fn a_verifier_that_goes_back_brings_its_answer_back_and_what_was_learned_of_it_stays_learned()
{
    let file = Practising::new(standing()).await;
    file.write(1, &exact("B"));
    file.explore().await;
    let ids = async || {
        let rows = file.world.parts.store.examples(vec!["tester".into()]).await.unwrap();
        rows.into_iter().map(|row| row.candidate).collect::<Vec<_>>()
    };
    let first = ids().await;
    for expected in ["C", "B"] {
        file.write(1, &exact(expected));
        file.sync().await;
        assert_eq!(file.examples().await, [expected]);
    }
    assert_eq!(ids().await, first);
}

#[tokio::test]
async fn what_another_verifier_has_checked_is_checked_again_by_the_one_of_today() {
    let file = Practising::new(standing()).await;
    let store = &file.world.parts.store;
    let said = async || {
        file.sync().await;
        let exchange = store.exchanges(None, 1).await.unwrap().remove(0);
        let of = |it: &store::Candidate| {
            let by = it.assessments.iter().find(|said| said.aspect == config::VERIFIER);
            let by = by.map(|said| (said.judge.clone(), said.passes)).unwrap_or_default();
            format!("{} {} {}", it.text, by.0, by.1)
        };
        exchange.candidates.iter().map(of).collect::<Vec<_>>()
    };
    file.write(1, &exact("4"));
    file.explore().await;
    let by_exact =
        ["bad verifier:exact false", "bad verifier:exact false", "4 verifier:exact true"];
    assert_eq!(said().await, by_exact);
    // Another kind that names the same answer.
    file.write(1, &json!({ "kind": "json", "expected": 4 }));
    let by_json = by_exact.map(|said| said.replace("exact", "json"));
    assert_eq!(said().await, by_json);
    assert_eq!(file.examples().await, ["4"]);
    let before = store.counts().await.unwrap();
    assert_eq!(said().await, by_json);
    assert_eq!(store.counts().await.unwrap(), before, "once");

    file.write(1, &json!({ "kind": "contains", "texts": ["bad"] }));
    let bad = "bad verifier:contains true";
    assert_eq!(said().await, [bad, bad, "4 verifier:contains false"]);
    // Without one the judge's words stay, and the answer that nobody wrote has none.
    file.write(1, &Value::Null);
    assert_eq!(said().await, ["bad  false", "bad  false", "4  false"]);
    let exchange = store.exchanges(None, 1).await.unwrap().remove(0);
    let n_said: Vec<_> = exchange.candidates.iter().map(|it| it.assessments.len()).collect();
    assert_eq!(n_said, [1, 1, 0]);
    let history = store.assessment_history(exchange.candidates[0].id).await.unwrap();
    assert_eq!(history.len(), 2 + 2 + 2 + 1, "and what was said before can be read");
    file.write(1, &exact("4"));
    assert_eq!(said().await, by_exact, "one that comes back checks all of them");
}

#[tokio::test]
async fn prompts_that_were_tried_before_get_what_their_verifier_of_today_names() {
    let file = Practising::new(standing()).await;
    // A pattern names nothing; by the one that they were judged by all answers are right.
    for pattern in ["^bad$", "^B$"] {
        file.write(2, &json!({ "kind": "regex", "pattern": pattern }));
        assert_eq!(file.explore().await.expected, 0, "{pattern}");
    }
    file.write(2, &exact("B"));
    let harvest = file.explore().await;
    assert_eq!((harvest.expected, harvest.prompts, harvest.candidates), (2, 0, 0), "{harvest:?}");
    assert_eq!(file.examples().await, ["B", "B"]);
    // As after a kill between the last draft and what is expected: the line has come back.
    file.write(1, &exact("B"));
    file.sync().await;
    file.write(2, &exact("B"));
    assert_eq!(file.examples().await.len(), 1);
    assert_eq!((file.explore().await.expected, file.examples().await.len()), (1, 2));
    assert_eq!(file.explore().await.expected, 0, "once");
    // Where the model has the right answer it needs none.
    file.write(3, &exact("bad"));
    assert_eq!(file.explore().await.expected, 0);
}

#[tokio::test]
async fn what_does_not_fit_is_counted_and_no_example_and_the_exploration_goes_on() {
    let mut file = Practising::new(standing()).await;
    let parts = &mut file.world.parts;
    let picky = CHAT_TEMPLATE.replace(
        "{{ m.content }}",
        "{% if 'tool' in m.content %}{{ raise_exception('no tools') }}{% endif %}{{ m.content }}",
    );
    let template = ChatTemplate::new(Some(&picky), "<|begin|>", "<|end|>");
    parts.reflector = Reflector::new(parts.engine.clone(), parts.store.clone(), Arc::new(template));
    let long = "B".repeat(1 << 13);
    let line = |(i, expected): (usize, &str)| {
        json!({ "id": i.to_string(), "prompt": format!("ask {i}"), "verifier": exact(expected) })
            .to_string()
            + "\n"
    };
    let lines = ["a tool", long.as_str(), "B"].into_iter().enumerate().map(line);
    write(&file.path, &lines.collect::<String>());
    // Examples are shown, also those that were just made.
    file.world.change_agent(|agent| agent.practice.shots = 4);
    let harvest = file.explore().await;
    assert_eq!((harvest.prompts, harvest.expected, harvest.unfit), (3, 1, 2), "{harvest:?}");
    assert_eq!(file.examples().await, ["B"]);
    file.world.change_agent(|agent| agent.reflection.explore = (4, 0));
    let harvest = file.explore().await;
    assert_eq!((harvest.prompts, harvest.candidates), (3, 6), "{harvest:?}");
}

/// Otherwise those that are left to compare candidates on would be those that the model can do.
#[tokio::test]
async fn a_prompt_that_candidates_are_compared_on_gets_no_example() {
    let file = Practising::new(standing()).await;
    file.write(40, &exact("B"));
    let keep_aside =
        |share| file.world.change(|config| config.learn.validation_share = Some(share));
    keep_aside(0.5);
    let n_examples = file.explore().await.expected;
    assert!((8..=32).contains(&n_examples), "{n_examples} of 40");
    for row in file.world.parts.store.examples(vec!["tester".into()]).await.unwrap() {
        assert!(0.5 <= protocol::fraction_of(&super::pairs::prompt_id(&row.prompt)));
    }
    // Nor do those that have one when the share grows.
    keep_aside(1.0);
    file.sync().await;
    assert_eq!(file.examples().await.len(), 0);
    keep_aside(0.0);
    assert_eq!(file.explore().await.expected, 40);
}

/// Eighty prompts with four first drafts each.
async fn eighty(script: Script, explore: (u32, u32), expected: &str) -> Practising {
    let file = Practising::new(script).await;
    file.world.change_agent(|agent| {
        agent.reflection.explore = explore;
        agent.reflection.stop_early = StopEarly { enough: 2, give_up: 0 };
    });
    file.write(80, &exact(expected));
    file
}

#[tokio::test]
async fn where_next_to_nothing_passes_prompts_with_a_known_answer_are_not_pursued() {
    let file = eighty(standing(), (10, 0), "B").await;
    let other = json!({ "id": "other", "prompt": "ask other", "verifier": pattern() });
    write(&file.path, &(practice(80, &exact("B")) + &other.to_string() + "\n"));
    let harvest = file.explore().await;
    assert_eq!((harvest.prompts, harvest.unpursued, harvest.expected), (81, 80, 80), "{harvest:?}");
    assert_eq!(harvest.candidates, 80 * 4 + 10, "what names no answer is pursued as ever");
    let harvest = file.explore().await;
    assert_eq!((harvest.unpursued, harvest.expected, harvest.candidates), (80, 0, 0));

    // Refinements have a rate of their own.
    let file = eighty(standing(), (6, 16), "B").await;
    let harvest = file.explore().await;
    assert!(0 < harvest.unpursued && harvest.expected == 80, "{harvest:?}");
    assert!(80 * 4 + 299 < harvest.candidates && harvest.candidates < 80 * 22, "{harvest:?}");
    let file = eighty(standing(), (6, 4), "good").await;
    let harvest = file.explore().await;
    assert_eq!(harvest.unpursued, 0, "refinements are right: {harvest:?}");
}

#[tokio::test]
async fn where_few_answers_pass_all_prompts_are_pursued() {
    let rare = judge().on("ask practice 79", &[("good", 1.0)]).on("ask", &[("bad", 1.0)]);
    let file = eighty(rare, (6, 0), "good").await;
    let harvest = file.explore().await;
    assert_eq!((harvest.unpursued, harvest.expected), (0, 79), "{harvest:?}");
    assert_eq!(harvest.candidates, 80 * 6);
    // Nor does a handful of answers say that there are none.
    let file = eighty(standing(), (6, 0), "B").await;
    file.write(9, &exact("B"));
    let harvest = file.explore().await;
    assert_eq!((harvest.unpursued, harvest.expected, harvest.candidates), (0, 9, 9 * 6));
}

#[tokio::test]
async fn prompts_of_no_practice_file_get_no_example() {
    let remember = async |world: &World, prompt: &str| {
        let verifier = Some(Verifier::Exact { expected: "B".into() });
        let exchange = NewExchange { verifier, ..asked(prompt) };
        world.parts.store.record_exchange(exchange, Vec::new(), None).await.unwrap();
    };
    let file = Practising::new(standing()).await;
    file.write(1, &exact("B"));
    remember(&file.world, "ask in a chat").await;
    let (learner, task) = file.world.learner();
    let ended = learner.explore(Exploration { all: true, ..all(9) }).await.unwrap();
    let Ended::Explored { harvest, .. } = ended else { panic!("{ended:?}") };
    learner.shutdown().await;
    task.await.unwrap();
    assert_eq!((harvest.prompts, harvest.expected), (2, 0), "{harvest:?}");
    assert_eq!(file.explore().await.expected, 1, "the file's");
    file.world.change_agent(|agent| agent.practice.prompts = None);
    remember(&file.world, "ask in another chat").await;
    let harvest = file.explore().await;
    assert_eq!((harvest.prompts, harvest.expected), (1, 0), "{harvest:?}");
    assert_eq!(file.examples().await, [""; 0]);
}
