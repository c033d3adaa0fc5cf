//! Training documents for the nano model, in the project's own prompts and chat template: one
//! problem with one answer, and every task that follows from it (the answer itself, a rating for each
//! aspect, a critique, a refinement). The tasks begin alike, so a trainer that packs them as a tree
//! computes the question and the answer once.

use fastrand::Rng;

use super::tokenizer::{END, Tokenizer};
use super::world::{ASPECTS, Answer, Equation, Habits, Problem, Split, Truth, judge, miscalculate};
use inference::TextPart;
use prompt::{AspectView, ChatTemplate, Message, PromptError, PromptSet, Role};

/// The chat template in the model's GGUF.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}<|{{ message.role }}|>\
    {{ message.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

/// What the model is trained to be asked with. `agents/nano/prompts.yaml` says the same to the daemon.
pub fn prompts() -> PromptSet {
    let turn = |role, content: &str| Message { role, content: content.to_owned() };
    let user = |content| turn(Role::User, content);
    let shown = "{{ question }}{% if reference %}\nReference: {{ reference }}{% endif %}";
    let response = turn(Role::Assistant, "{{ response }}");
    let assess = vec![user(shown), response.clone(), user("Rate the {{ aspect.name }}.")];
    let critique = vec![user(shown), response.clone(), user("Find the mistake.")];
    let refine =
        vec![user("{{ question }}"), response, user("{{ critique }}\nRewrite the answer.")];
    let templates = [("assess", assess), ("critique", critique), ("refine", refine)];
    let templates = templates.map(|(name, turns)| (name.to_owned(), turns));
    PromptSet::new(["1", "2", "3"].map(str::to_owned), templates.into())
        .expect("these templates are sound")
}

/// Share of documents that are nothing but sums, half of them to work out and half to check: a
/// word problem has two sums among a hundred tokens, and its ratings alone taught no checking
/// (190,000 documents).
const DRILLS: f64 = 0.3;
/// Sums of a drill.
const SUMS: usize = 8;
/// Share of word problems whose answer is the teacher's and is imitated.
const DEMONSTRATIONS: f64 = 0.45;
/// Share of the other word problems in which the judge is shown a reference.
const REFERENCES: f64 = 0.25;

/// A rendered prompt and what the model should say.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Which kind, for measurements.
    pub kind: Kind,
    /// Rendered prompt.
    pub prompt: Vec<TextPart>,
    /// Plain text of the reply.
    pub reply: String,
    /// Whether an end token follows: ratings are read, not generated, and have none.
    pub ends: bool,
}

/// What a task asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Answer the question.
    Answer,
    /// Rate aspect number i of [`ASPECTS`].
    Rate(usize),
    /// Find the mistake.
    Critique,
    /// Rewrite the answer.
    Refine,
    /// Work out a sum.
    Drill,
}

impl Task {
    /// (token ids of prompt and reply, index of the reply's first token).
    pub fn encode(&self, tokenizer: &Tokenizer) -> (Vec<i32>, usize) {
        let mut tokens = tokenizer.encode(&self.prompt);
        let from = tokens.len();
        tokens.extend(tokenizer.encode(&[TextPart { text: self.reply.clone(), control: false }]));
        if self.ends {
            tokens.push(END);
        }
        (tokens, from)
    }
}

/// Renders documents.
#[derive(Debug)]
pub struct Corpus<'a> {
    template: ChatTemplate,
    prompts: &'a PromptSet,
}

impl<'a> Corpus<'a> {
    /// With the nano agent's prompts, usually those of [`prompts`].
    pub fn new(prompts: &'a PromptSet) -> Result<Self, PromptError> {
        Ok(Self { template: ChatTemplate::new(Some(CHAT_TEMPLATE), "", "<|end|>"), prompts })
    }
    /// One document of the pretraining corpus.
    pub fn document(&self, rng: &mut Rng) -> Result<Vec<Task>, PromptError> {
        if rng.f64() < DRILLS {
            return self.drill(rng);
        }
        let problem = Problem::sample(rng, Split::Train);
        let demonstration = rng.f64() < DEMONSTRATIONS;
        let habits = if demonstration { Habits::TEACHER } else { Habits::WILD };
        let answer = Answer::imperfect(&problem, &habits, rng);
        let reference = !demonstration && rng.f64() < REFERENCES;
        let mut tasks = self.assessed(&problem, &answer, reference)?;
        if demonstration {
            tasks.push(self.answer(&problem, &answer)?);
        }
        Ok(tasks)
    }
    /// Sums below each other, to work out or to check; each is a task whose prompt holds those
    /// before it.
    fn drill(&self, rng: &mut Rng) -> Result<Vec<Task>, PromptError> {
        let check = rng.bool();
        let content = if check { "Check the sums." } else { "Work out the sums." };
        let question = Message { role: Role::User, content: content.to_owned() };
        let prompt = self.template.render(&[question])?;
        let mut tasks = Vec::new();
        let mut before = String::new();
        for _ in 0..SUMS {
            let Equation { left, operator, right, result } = Equation::sample(rng);
            before = format!("{before}{left} {operator} {right} =");
            let reply = if check {
                let is_right = rng.bool();
                let shown = if is_right { result } else { miscalculate(result, rng) };
                before = format!("{before} {shown}");
                if is_right { " right" } else { " wrong" }.to_owned()
            } else {
                format!(" {result}")
            };
            let mut prompt = prompt.clone();
            prompt.push(TextPart { text: before.clone(), control: false });
            before = format!("{before}{reply}\n");
            tasks.push(Task { kind: Kind::Drill, prompt, reply, ends: false });
        }
        Ok(tasks)
    }
    /// The task of answering a problem like this.
    pub fn answer(&self, problem: &Problem, answer: &Answer) -> Result<Task, PromptError> {
        let question = Message { role: Role::User, content: problem.question.clone() };
        let prompt = self.template.render(&[question])?;
        Ok(Task { kind: Kind::Answer, prompt, reply: answer.text(), ends: true })
    }
    /// The judge's tasks and the refinement for one answer.
    pub fn assessed(
        &self,
        problem: &Problem,
        answer: &Answer,
        with_reference: bool,
    ) -> Result<Vec<Task>, PromptError> {
        let Truth { levels, critique } = judge(problem, answer);
        let (question, text) = (&problem.question, answer.text());
        let number = problem.answer.to_string();
        let reference = with_reference.then_some(number.as_str());
        let blank = [const { String::new() }; 3];
        let view = |name| AspectView { name, description: "", levels: &blank };
        let mut tasks = Vec::new();
        for (i, name) in ASPECTS.into_iter().enumerate() {
            let messages = self.prompts.assess(question, &text, reference, &view(name))?;
            let label = &self.prompts.labels()[usize::from(levels[i]) - 1];
            let prompt = self.template.render(&messages)?;
            tasks.push(Task { kind: Kind::Rate(i), prompt, reply: label.clone(), ends: false });
        }
        let short: Vec<_> = (0..3).filter(|&i| levels[i] < 3).map(|i| view(ASPECTS[i])).collect();
        let messages = self.prompts.critique(question, &text, reference, &short)?;
        let prompt = self.template.render(&messages)?;
        tasks.push(Task { kind: Kind::Critique, prompt, reply: critique.clone(), ends: true });
        let messages = self.prompts.refine(question, &text, &critique)?;
        let prompt = self.template.render(&messages)?;
        let reply = Answer::gold(problem).text();
        tasks.push(Task { kind: Kind::Refine, prompt, reply, ends: true });
        Ok(tasks)
    }
}
