//! The world around the core: who asks, leaves and stalls, and what each must be told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use inference::backend::{Backend, Limits, SequenceId};
use inference::{EngineError, FinishReason, Generation, Sampling, Token};
use testkit::cells::CELL_BYTES;

use super::model::{Chances, Letters, Model, POISON, row};
use crate::core::blocks::Blocks;
use crate::core::request::{Generating, Purpose, Request, Said, State};
use crate::core::tree::Wanted;
use crate::core::{CachePolicy, Core, Event, Outcome, Owner, RequestId, execute};
use crate::draft::Draft;
use crate::sample::Sampler;
use crate::{LabelScores, Priority};

/// Steps after which every request must have ended once nobody disturbs it.
const PATIENCE: u64 = 20_000;

/// Steps in which each of eight answers of a slow model gets a token, beside prompts.
const MOST_TURNS: u64 = 8;

/// How a world is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    /// Requests at once, at most.
    pub(super) most_requests: usize,
    /// Whether answers depend on the batches in which their tokens are evaluated, and the core takes
    /// care that these are always the same.
    pub(super) is_deterministic: bool,
}

impl Default for Setting {
    fn default() -> Self {
        Self { most_requests: 7, is_deterministic: false }
    }
}

/// What has been seen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) steps: u64,
    ended: u64,
    cancelled: u64,
    stalled: u64,
    freed: u64,
    preempted: u64,
    interrupted: u64,
    failed: u64,
    poisoned: u64,
    restored: u64,
    tidied: u64,
    drafts: u64,
    shared: u64,
}

impl Seen {
    pub(super) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.ended += other.ended;
        self.cancelled += other.cancelled;
        self.stalled += other.stalled;
        self.freed += other.freed;
        self.preempted += other.preempted;
        self.interrupted += other.interrupted;
        self.failed += other.failed;
        self.poisoned += other.poisoned;
        self.restored += other.restored;
        self.tidied += other.tidied;
        self.drafts += other.drafts;
        self.shared += other.shared;
    }

    pub(super) fn all(&self) -> [(&'static str, u64); 12] {
        [
            ("requests ended", self.ended),
            ("cancelled", self.cancelled),
            ("stalled", self.stalled),
            ("adapters freed", self.freed),
            ("preempted", self.preempted),
            ("interrupted", self.interrupted),
            ("failed steps", self.failed),
            ("poisoned steps", self.poisoned),
            ("copies restored", self.restored),
            ("tidied while idle", self.tidied),
            ("right drafts", self.drafts),
            ("cached tokens", self.shared),
        ]
    }
}

/// What a request must be told.
#[derive(Debug)]
struct Expected {
    priority: Priority,
    generation: Generation,
    is_poisoned: bool,
    is_stalled: bool,
    /// For each continuation its tokens and how it ends, backwards.
    answers: Vec<Vec<Answer>>,
    scores: Vec<LabelScores>,
    logprobs: Vec<Vec<f32>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Token(Token, f32, String),
    Finished(String, FinishReason),
}

/// See the file's header.
pub(super) struct World {
    seed: u64,
    setting: Setting,
    random: fastrand::Rng,
    core: Core,
    model: Model,
    limits: Limits,
    requests: BTreeMap<RequestId, Expected>,
    /// Beginnings of prompts, so that they share much.
    stems: Vec<Vec<Token>>,
    generations: Vec<Generation>,
    /// With `SIMULATION_TRACE` every step is printed.
    is_traced: bool,
    /// What a token takes.
    per_token: Duration,
    /// Steps since an answer that could go on got its last token.
    waited: BTreeMap<Owner, u64>,
    pub(super) seen: Seen,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the simulation failed with SIMULATION_SEED={}", self.seed);
        }
    }
}

impl World {
    pub(super) fn new(seed: u64, setting: Setting) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let sequences = if setting.is_deterministic { 1 } else { random.usize(2..9) };
        let batch_tokens = sequences.max(random.usize(4..40));
        let limits = Limits {
            cells: random.usize(60..200),
            sequences,
            batch_tokens,
            outputs: random.usize(sequences..=batch_tokens),
        };
        let quiet = random.f64() < 0.3;
        let scale = if quiet { 0.0 } else { 1.0 };
        let chances =
            Chances { fail: 0.004 * scale, interrupt: 0.1 * scale, lose_copy: 0.1 * scale };
        let cache = CachePolicy {
            resident: random.usize(0..limits.cells),
            host_bytes: if random.bool() { CELL_BYTES * random.usize(0..limits.cells) } else { 0 },
            block: random.usize(1..40),
            least: random.usize(0..20),
            bytes_at_once: CELL_BYTES * random.usize(1..80),
            cell_bytes: CELL_BYTES,
        };
        let vocabulary = Arc::new(Letters);
        let core = if setting.is_deterministic {
            Core::deterministic(limits, vocabulary)
        } else {
            Core::new(limits, cache, vocabulary)
        };
        let stems = (0..4).map(|_| letters(&mut random, 30)).collect();
        Self {
            seed,
            setting,
            core,
            model: Model::new(limits, seed, chances, setting.is_deterministic),
            limits,
            requests: BTreeMap::new(),
            stems,
            generations: vec![Generation::BASE],
            is_traced: std::env::var_os("SIMULATION_TRACE").is_some(),
            // Of some worlds a step of two seconds is a few tokens.
            per_token: Duration::from_millis(if random.u32(0..4) == 0 { 400 } else { 1 }),
            waited: BTreeMap::new(),
            random,
            seen: Seen::default(),
        }
    }

    /// Does so many steps, and then lets everything end.
    pub(super) fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.act();
            self.step();
        }
        for id in self.requests.keys().copied().collect::<Vec<_>>() {
            self.stall(id, false);
        }
        self.model.chances.interrupt = 0.0;
        self.model.chances.fail = 0.0;
        let begun = self.seen.steps;
        while !self.requests.is_empty() {
            self.step();
            let took = self.seen.steps - begun;
            assert!(took < PATIENCE, "these never end: {:?}", self.requests);
        }
        assert_eq!(self.core.n_running(None), 0);
        while !self.core.is_idle() {
            self.step();
            assert!(self.seen.steps - begun < PATIENCE, "it never rests");
        }
        let counters = self.core.counters();
        self.seen.preempted += counters.preemptions;
        self.seen.drafts += counters.right_drafts;
        self.seen.shared += counters.cached_tokens;
        self.seen.interrupted += self.model.n_interrupted;
        self.seen.failed += self.model.n_failed;
        self.seen.poisoned += self.model.n_poisoned;
        self.seen.restored += self.model.n_restored;
    }

    fn act(&mut self) {
        match self.random.u32(0..100) {
            0..12 if self.requests.len() < self.setting.most_requests => self.submit(),
            12..13 => {
                if let Some(id) = self.any_request() {
                    self.seen.cancelled += 1;
                    self.core.cancel(id);
                    self.requests.remove(&id);
                }
            }
            13..16 => {
                if let Some(id) = self.any_request() {
                    let is_generation = !self.requests[&id].answers.is_empty();
                    let is_stalled = is_generation && self.random.bool();
                    self.stall(id, is_stalled);
                }
            }
            16 => self.load_or_free(),
            _ => {}
        }
    }

    fn any_request(&mut self) -> Option<RequestId> {
        let ids: Vec<RequestId> = self.requests.keys().copied().collect();
        self.random.choice(ids)
    }

    fn stall(&mut self, id: RequestId, is_stalled: bool) {
        self.seen.stalled += u64::from(is_stalled);
        let held: Vec<(Vec<Token>, usize)> = match self.core.position(id) {
            Some(at) if is_stalled => self.core.requests[at]
                .sequences
                .iter()
                .filter_map(|s| Some((s.tokens.clone(), self.core.tree.evaluated(s.id?))))
                .collect(),
            _ => Vec::new(),
        };
        self.core.set_stalled(id, is_stalled);
        if let Some(request) = self.requests.get_mut(&id) {
            request.is_stalled = is_stalled;
        }
        if is_stalled {
            let at = self.core.position(id).unwrap();
            assert_eq!(self.core.requests[at].n_running(), 0, "a stalled request holds ids");
        }
        // A deterministic core keeps whole blocks of prompts.
        for (tokens, evaluated) in held.into_iter().filter(|_| self.core.blocks.is_none()) {
            let generation = self.requests[&id].generation;
            let wants_from = tokens.len() - 1;
            let wanted = Wanted { tokens: &tokens, wants_from, with_copies: false };
            let found = self.core.tree.find(generation, wanted);
            let found = found.evaluated;
            assert!(evaluated <= found, "{found} of {evaluated} cells are kept");
        }
        self.core.tree.check();
    }

    fn load_or_free(&mut self) {
        if self.generations.len() < 3 {
            // A number comes again with other weights, as that of a candidate does after a refusal.
            let unused = (1..4).map(Generation).filter(|it| !self.generations.contains(it));
            let generation = self.random.choice(unused.collect::<Vec<_>>()).unwrap();
            self.model.load_new(generation);
            self.generations.push(generation);
        } else {
            let oldest = self.generations[1];
            if !self.core.uses(oldest) {
                self.generations.remove(1);
                self.core.free(oldest);
                self.seen.freed += 1;
                // It leaves the backend before another one is loaded.
                self.step();
            }
        }
    }

    fn prompt(&mut self, most: usize) -> Vec<Token> {
        let stem = self.random.usize(0..self.stems.len());
        let shared = self.random.usize(0..self.stems[stem].len().min(most));
        let mut tokens = self.stems[stem][..shared].to_vec();
        let own = self.random.usize(1..=(most - shared).min(12));
        tokens.extend(letters(&mut self.random, own));
        tokens
    }

    fn submit(&mut self) {
        let priority = [
            Priority::Chat,
            Priority::Inline,
            Priority::Gate,
            Priority::Background,
            Priority::Explore,
        ];
        let priority = priority[self.random.usize(0..priority.len())];
        let generation = self.generations[self.random.usize(0..self.generations.len())];
        let most = self.limits.cells / 2;
        let request = match self.random.u32(0..4) {
            0 => {
                let n = self.random.usize(1..6);
                let prompts: Vec<_> = (0..n).map(|_| (self.prompt(most), State::Score)).collect();
                let purpose = Purpose::Score {
                    labels: vec![Token(0), Token(1), Token(2)],
                    scores: vec![None; n],
                };
                Request::new(priority, generation, purpose, prompts.into_iter())
            }
            1 => {
                let n = self.random.usize(1..4);
                let sequences: Vec<_> = (0..n)
                    .map(|_| {
                        let tokens = self.prompt(most);
                        let n_targets = self.random.usize(1..=tokens.len());
                        let targets = letters(&mut self.random, n_targets);
                        (tokens, State::Logprobs { targets, values: Vec::new() })
                    })
                    .collect();
                let purpose = Purpose::Logprobs { logprobs: vec![Vec::new(); n] };
                Request::new(priority, generation, purpose, sequences.into_iter())
            }
            _ => self.generation(priority, generation, most),
        };
        let mut request = request;
        let is_poisoned = self.random.u32(0..40) == 0;
        if is_poisoned {
            for sequence in &mut request.sequences {
                let at = self.random.usize(0..sequence.tokens.len());
                sequence.tokens[at] = POISON;
            }
        }
        let weights = self.model.weights(generation);
        let mut expected = expect(request.clone(), weights, self.core.blocks);
        expected.is_poisoned = is_poisoned;
        self.go_on_from(&request.sequences[0].tokens, &expected);
        let id = self.core.submit(request);
        self.requests.insert(id, expected);
    }

    /// Now and then later prompts begin with a prompt and its answer, as the next turn of a chat does.
    fn go_on_from(&mut self, prompt: &[Token], expected: &Expected) {
        let Some(answer) = expected.answers.first() else { return };
        if expected.is_poisoned || self.random.bool() {
            return;
        }
        let stem = self.random.usize(0..self.stems.len());
        self.stems[stem] = [prompt, &tokens(answer)].concat();
    }

    fn generation(&mut self, priority: Priority, generation: Generation, most: usize) -> Request {
        let prompt = self.prompt(most);
        let n = self.random.usize(1..5);
        let max_tokens = self.random.usize(1..=(self.limits.cells - prompt.len()).min(60));
        let temperature = if self.random.bool() { 0.0 } else { 1.0 };
        let sampling = Sampling { temperature, ..Sampling::default() };
        let seed = self.random.u64(..);
        let stop =
            if self.random.u32(0..4) == 0 { vec!["abc".into(), "gg".into()] } else { vec![] };
        let copies = self.random.u32(0..3) == 0;
        let copied = letters(&mut self.random, 20);
        let purpose = Purpose::Generate { seed, max_tokens, top_logprobs: 0 };
        let mut request = Request::new(priority, generation, purpose.clone(), std::iter::empty());
        if copies {
            // What it says, with a fault now and then: what a refinement is to its parent.
            let state = |draft| {
                let sampler = Sampler::new(sampling, seed);
                State::Generate(Box::new(Generating::new(sampler, stop.clone(), draft)))
            };
            let plain = [(prompt.clone(), state(None))];
            let plain = Request::new(priority, generation, purpose.clone(), plain.into_iter());
            let plain = expect(plain, self.model.weights(generation), self.core.blocks);
            let mut said = [tokens(&plain.answers[0]), copied].concat();
            for token in &mut said {
                if self.random.u32(0..8) == 0 {
                    *token = Token(1);
                }
            }
            let draft = Draft::new(said.into());
            let sequences = (0..n).map(|_| (prompt.clone(), state(Some(draft.clone()))));
            request.sequences = Request::new(priority, generation, purpose, sequences).sequences;
        } else {
            let sequences = (0..n as u64).map(|i| {
                let sampler = Sampler::new(sampling, seed.wrapping_add(i));
                let generating = Generating::new(sampler, stop.clone(), None);
                (prompt.clone(), State::Generate(Box::new(generating)))
            });
            request.sequences = Request::new(priority, generation, purpose, sequences).sequences;
        }
        request
    }

    fn step(&mut self) {
        self.seen.steps += 1;
        let oldest = self.oldest();
        self.seen.tidied += u64::from(self.core.owners.is_empty() && self.core.tidies());
        let is_idle = self.core.is_idle();
        let step = self.core.next_step();
        if self.requests.is_empty() {
            assert_eq!(step.is_none(), is_idle, "the thread sleeps while there is something to do");
        }
        if let Some(owner) = oldest {
            let is_running = self.core.sequence(owner).is_some_and(|it| it.id.is_some());
            assert!(is_running, "the oldest of the most urgent is preempted");
        }
        let Some(step) = step else {
            let waits = self.requests.values().any(|request| !request.is_stalled);
            assert!(!waits, "nothing is planned for {:?}", self.requests);
            return;
        };
        self.check_progress(&step);
        if self.is_traced {
            eprintln!("{} {step:?} {:?}", self.seen.steps, self.core.owners);
        }
        // What fails alone too has failed; by chance nothing does.
        self.model.is_steady = self.core.alone.is_some();
        let took = self.per_token * u32::try_from(step.n_tokens().max(1)).unwrap();
        let outcome = execute(&mut self.model, &step, &AtomicBool::new(false));
        let outcome = Outcome { took, ..outcome };
        if self.is_traced {
            let Outcome { saved, not_restored, evaluated, .. } = &outcome;
            eprintln!("  -> {evaluated:?}, {} saved, not restored {not_restored:?}", saved.len());
        }
        let model = &self.model;
        self.core.finish(&step, outcome, |entry| model.logits(entry));
        self.check_books();
        for event in self.core.take_events() {
            self.hear(event);
        }
    }

    /// The first sequence of the request that comes before all others, where it runs.
    fn oldest(&self) -> Option<Owner> {
        let first = self.core.requests.iter().find(|request| !request.is_stalled)?;
        let sequence = first.sequences.iter().position(|sequence| sequence.id.is_some())?;
        Some(Owner { request: first.id, sequence })
    }

    /// Every answer that is being written gets a token in each step of its priority and generation, of a
    /// slow model in turns, and nobody less urgent takes part.
    fn check_progress(&mut self, step: &crate::core::Step) {
        let Some(first) = step.spans.first() else { return };
        let priority = |id: &SequenceId| {
            let owner = self.core.owners[id];
            self.requests[&owner.request].priority
        };
        let most_urgent = self.core.owners.keys().map(priority).min().unwrap();
        let readers = first.ids.iter().filter(|id| self.core.owners.contains_key(id));
        assert_eq!(readers.map(priority).min(), Some(most_urgent), "less urgent work goes first");
        if self.core.alone.is_some() {
            return;
        }
        for (id, owner) in &self.core.owners {
            let request = &self.requests[&owner.request];
            let is_due = request.priority == most_urgent
                && request.generation == step.generation
                && self.core.tree.evaluated(*id) + 1 == self.core.tree.len(*id);
            if !is_due || step.spans.iter().any(|span| span.ids.contains(id)) {
                self.waited.remove(owner);
                continue;
            }
            let is_slow = Duration::from_millis(1) < self.per_token;
            let waited = self.waited.entry(*owner).or_default();
            *waited += 1;
            assert!(is_slow && *waited < MOST_TURNS, "an answer gets nothing in {waited} steps");
        }
    }

    /// What is evaluated in the books is what is in the cells.
    fn check_books(&mut self) {
        // What is not done yet is done before the next batch.
        let mut cells = self.model.cells.clone();
        for op in self.core.tree.ops() {
            use crate::core::op::Op;
            match op {
                Op::Share { from, to, n } => cells.share(*from, *to, *n),
                Op::Truncate { id, n } => cells.truncate(*id, *n),
                Op::Save { .. } | Op::Restore { .. } | Op::Free(_) => {
                    panic!("{op:?} outside a plan")
                }
            }
        }
        let tree = &self.core.tree;
        tree.check();
        assert_eq!(tree.used(), cells.used(), "books and cells");
        for id in tree.held_ids() {
            let n = tree.evaluated(id);
            assert_eq!(n, cells.len(id), "sequence {id:?}");
            let tokens = tree.tokens(id);
            assert!(cells.sequence(id).map(|cell| cell.token).eq(tokens[..n].iter().copied()));
        }
        let held: usize = tree.held_ids().map(|id| cells.len(id)).sum();
        let all: usize = (0..self.limits.sequences).map(|id| cells.len(SequenceId(id))).sum();
        assert_eq!(held, all, "an id that nobody has holds cells");
        for (id, owner) in &self.core.owners {
            let sequence = self.core.sequence(*owner).expect("an owner's request exists");
            assert_eq!(sequence.id, Some(*id));
            assert_eq!(sequence.tokens, tree.tokens(*id), "the path of a running sequence");
        }
    }

    fn hear(&mut self, event: Event) {
        let (id, answer) = match event {
            Event::Started { request, generation, .. } => {
                assert_eq!(self.requests[&request].generation, generation);
                return;
            }
            Event::Token { request, piece } => {
                let index = usize::try_from(piece.index).unwrap();
                ((request, index), Answer::Token(piece.token, piece.logprob, piece.text))
            }
            Event::Finished { request, index, text, reason } => {
                ((request, index), Answer::Finished(text, reason))
            }
            Event::Generated { request } => {
                let expected = self.end(request);
                assert!(expected.answers.iter().all(Vec::is_empty), "an answer is cut off");
                return;
            }
            Event::Scored { request, scores } => {
                assert_eq!(self.end(request).scores, scores);
                return;
            }
            Event::Logprobs { request, logprobs } => {
                assert_eq!(self.end(request).logprobs, logprobs);
                return;
            }
            Event::Failed { request, error } => {
                let expected = self.end(request);
                let EngineError::Failed(reason) = error else { panic!("{error}") };
                assert!(
                    expected.is_poisoned,
                    "a request failed that nothing is wrong with: {reason}"
                );
                return;
            }
        };
        let (request, index) = id;
        let expected = self.requests.get_mut(&request).expect("a request that was not cancelled");
        assert!(!expected.is_stalled, "a stalled request says something");
        assert_eq!(expected.answers[index].pop(), Some(answer), "continuation {index}");
    }

    fn end(&mut self, request: RequestId) -> Expected {
        self.seen.ended += 1;
        self.requests.remove(&request).expect("a request ends once")
    }
}

/// The tokens of an answer that is kept backwards.
fn tokens(answer: &[Answer]) -> Vec<Token> {
    let tokens = answer.iter().rev().filter_map(|answer| match answer {
        Answer::Token(token, ..) => Some(*token),
        Answer::Finished(..) => None,
    });
    tokens.collect()
}

fn letters(random: &mut fastrand::Rng, n: usize) -> Vec<Token> {
    (0..n).map(|_| Token(random.i32(0..7))).collect()
}

/// Rows of the batch of a token of a sequence that is alone, and which row is its.
fn shape(block: usize, position: usize, n_prompt: usize) -> [usize; 2] {
    if n_prompt <= position {
        return [1, 0];
    }
    let start = position - position % block;
    [block.min(n_prompt - start), position - start]
}

/// What a request is told when nobody disturbs it: each sequence alone, one token after another.
fn expect(mut request: Request, weights: Generation, blocks: Option<Blocks>) -> Expected {
    let n = request.sequences.len();
    let mut answers = vec![Vec::new(); n];
    let is_generation = matches!(request.purpose, Purpose::Generate { .. });
    for which in 0..n {
        let mut position = 0;
        let n_prompt = request.sequences[which].tokens.len();
        let mut cells = testkit::cells::Cells::new(
            Limits { cells: 500, sequences: 1, batch_tokens: 1, outputs: 1 },
            super::model::N_VOCAB,
        );
        while let Some(&token) = request.sequences[which].tokens.get(position) {
            if request.sequences[which].is_done() {
                break;
            }
            let sequences = [SequenceId(0)];
            let entry =
                inference::backend::Entry { token, position, sequences: &sequences, logits: true };
            let shape = blocks.map(|blocks| shape(blocks.size(), position, n_prompt));
            cells.evaluate_one(&entry, weights, shape);
            let hash = cells.hash(SequenceId(0), weights);
            let said = request.consume(which, position, token, &row(hash), &Letters).unwrap();
            let index = request.sequences[which].index;
            for said in said.into_iter().flatten() {
                answers[index].push(match said {
                    Said::Token(piece) => Answer::Token(piece.token, piece.logprob, piece.text),
                    Said::Finished(text, reason) => Answer::Finished(text, reason),
                });
            }
            position += 1;
        }
        assert!(request.sequences[which].is_done());
    }
    for answer in &mut answers {
        answer.reverse();
    }
    let (mut scores, mut logprobs) = (Vec::new(), Vec::new());
    match request.purpose {
        Purpose::Generate { .. } => {}
        Purpose::Score { scores: found, .. } => scores = found.into_iter().flatten().collect(),
        Purpose::Logprobs { logprobs: found } => logprobs = found,
    }
    Expected {
        priority: request.priority,
        generation: request.generation,
        is_poisoned: false,
        is_stalled: false,
        answers: if is_generation { answers } else { Vec::new() },
        scores,
        logprobs,
    }
}
