//! Public data that is read where it lies and never copied into the repository: SNIPS, GSM8K, mt-bench.
//! Used by `task` and `general`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tasks::{Item, Truth};

/// A request to a voice assistant.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Request {
    id: String,
    text: String,
    intent: String,
    slots: Map<String, Value>,
}

impl Request {
    /// By intent alone.
    pub(crate) fn intent(self) -> Item {
        let truth = Truth::Exact(self.intent.clone());
        Item { id: self.id, prompt: self.text, answer: Some(self.intent), truth }
    }

    /// By intent and slots.
    pub(crate) fn slots(self) -> Item {
        let answer = json!({ "intent": self.intent, "slots": self.slots });
        let text = Some(answer.to_string());
        Item { id: self.id, prompt: self.text, answer: text, truth: Truth::Json(answer) }
    }
}

/// `train` or `test`.
pub(crate) fn snips(data: &Path, part: &str) -> anyhow::Result<Vec<Request>> {
    lines(&data.join(format!("snips/{part}.jsonl")))
}

/// The intents in the order in which the file has them.
pub(crate) fn intents(requests: &[Request]) -> Vec<String> {
    let mut intents: Vec<String> = Vec::new();
    for request in requests {
        if !intents.contains(&request.intent) {
            intents.push(request.intent.clone());
        }
    }
    intents
}

/// The same number of requests of every intent, by chance, and then as many of them all as there are.
pub(crate) fn balanced(requests: &[Request], seed: u64) -> Vec<Request> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut of_intents: Vec<Vec<&Request>> = intents(requests)
        .iter()
        .map(|intent| requests.iter().filter(|request| request.intent == *intent).collect())
        .collect();
    for of_intent in &mut of_intents {
        rng.shuffle(of_intent);
    }
    let most = of_intents.iter().map(Vec::len).max().unwrap_or(0);
    let rows = (0..most).flat_map(|at| of_intents.iter().filter_map(move |of| of.get(at)));
    rows.map(|request| (*request).clone()).collect()
}

/// School maths problems.
pub(crate) fn gsm8k(data: &Path) -> anyhow::Result<Vec<Item>> {
    #[derive(Deserialize)]
    struct Problem {
        question: String,
        answer: String,
    }
    let problems: Vec<Problem> = lines(&data.join("gsm8k/test.jsonl"))?;
    let item = |(at, problem): (usize, Problem)| {
        let number = problem.answer.rsplit("####").next().unwrap_or_default();
        let number = number.trim().replace(',', "").parse();
        let number = number.with_context(|| format!("line {} of gsm8k has no number", at + 1))?;
        let (id, prompt) = (format!("gsm8k-{}", at + 1), problem.question);
        Ok(Item { id, prompt, answer: None, truth: Truth::Number(number) })
    };
    problems.into_iter().enumerate().map(item).collect()
}

/// Open questions, the first `count`.
pub(crate) fn mt_bench(data: &Path, count: usize) -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Question {
        prompt: String,
    }
    let questions: Vec<Question> = lines(&data.join("mt-bench/questions.jsonl"))?;
    Ok(questions.into_iter().take(count).map(|question| question.prompt).collect())
}

fn lines<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Vec<T>> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("read {} (DATA names the folder of the data)", path.display()))?;
    let parse = |(at, line)| {
        serde_json::from_str(line).with_context(|| format!("{}:{}", path.display(), at + 1))
    };
    let all: Vec<T> = text.lines().enumerate().map(parse).collect::<Result<_, _>>()?;
    ensure!(!all.is_empty(), "{} is empty", path.display());
    Ok(all)
}
