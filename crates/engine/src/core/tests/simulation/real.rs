//! The same with llama.cpp itself: what a request is told in the middle of preemptions, aborts and swaps is
//! what it is told alone, and of an interrupted prompt what is done is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use files::gguf::Gguf;
use inference::backend::{Backend, Entry, Limits, SequenceId};
use inference::{
    EngineConfig, EngineError, FlashAttention, Generation, KvCache, ModelInfo, Sampling, Token,
    Vocabulary,
};
use testkit::random_model::{Linear, unquantized, write_adapter};

use crate::core::{CachePolicy, Core, Event, Outcome, RequestId, Validator, execute};
use crate::llama::Llama;
use crate::{GenerateRequest, LogprobRequest, Priority, TokenPiece, Weights};

/// Steps in which new requests come.
const STEPS: u32 = 11_000;
pub(super) const NANO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../agents/nano/model.gguf");

pub(super) fn config(
    model: &Path,
    cells: u32,
    kv_cache: KvCache,
    flash_attention: FlashAttention,
) -> EngineConfig {
    EngineConfig {
        context_tokens: cells,
        max_sequences: 6,
        batch_tokens: 32,
        flash_attention,
        kv_cache,
        ..EngineConfig::small(model)
    }
}

/// llama.cpp, interrupted by chance.
#[derive(Debug)]
struct Disturbed {
    llama: Llama,
    random: fastrand::Rng,
    n_interrupted: u32,
    n_selected: u32,
    n_restored: u32,
    selected: Generation,
}

impl Backend for Disturbed {
    fn info(&self) -> ModelInfo {
        self.llama.info()
    }
    fn vocabulary(&self) -> Arc<dyn Vocabulary> {
        self.llama.vocabulary()
    }
    fn limits(&self) -> Limits {
        self.llama.limits()
    }
    fn decode(
        &mut self,
        batch: &[Entry<'_>],
        interrupt: Option<&AtomicBool>,
    ) -> Result<usize, EngineError> {
        let is_interrupted = interrupt.is_some() && self.random.u32(0..8) == 0;
        let signal = AtomicBool::new(is_interrupted);
        let evaluated = self.llama.decode(batch, interrupt.map(|_| &signal))?;
        self.n_interrupted += u32::from(evaluated < batch.len());
        assert_eq!(evaluated < batch.len(), signal.load(Ordering::Relaxed));
        Ok(evaluated)
    }
    fn logits(&self, index: usize) -> Result<&[f32], EngineError> {
        self.llama.logits(index)
    }
    fn copy(&mut self, from: SequenceId, to: SequenceId, n: usize) {
        self.llama.copy(from, to, n);
    }
    fn truncate(&mut self, sequence: SequenceId, n: usize) {
        self.llama.truncate(sequence, n);
    }
    fn save(&mut self, sequence: SequenceId, positions: Range<usize>) -> Option<Vec<u8>> {
        self.llama.save(sequence, positions)
    }
    fn restore(&mut self, sequence: SequenceId, positions: Range<usize>, state: &[u8]) -> bool {
        self.n_restored += 1;
        self.llama.restore(sequence, positions, state)
    }
    fn host_cache_bytes(&self) -> usize {
        self.llama.host_cache_bytes()
    }
    fn cell_bytes(&self) -> usize {
        self.llama.cell_bytes()
    }
    fn load(&mut self, generation: Generation, path: &Path) -> Result<(), EngineError> {
        self.llama.load(generation, path)
    }
    fn select(&mut self, generation: Generation) -> Result<(), EngineError> {
        self.n_selected += u32::from(generation != self.selected);
        self.selected = generation;
        self.llama.select(generation)
    }
    fn free(&mut self, generation: Generation) {
        self.llama.free(generation);
    }
}

/// Adapters of random numbers, for the queries and for the values of nano.
fn write_adapters(folder: &Path) {
    let nano = Gguf::open(Path::new(NANO)).unwrap();
    for (generation, kind) in [(1, "attn_q.weight"), (2, "attn_v.weight")] {
        let tensors = nano.tensors().iter().filter(|tensor| tensor.name.ends_with(kind));
        let linears: Vec<Linear> = tensors
            .map(|it| Linear { name: it.name.clone(), n_in: it.shape[0], n_out: it.shape[1] })
            .collect();
        write_adapter("llama", "", &linears, 4, &folder.join(format!("{generation}.gguf")));
    }
}

/// What was asked, and the tokens and log-probs that were told.
struct Told {
    generation: Generation,
    prompt: Vec<Token>,
    answers: Vec<(Vec<Token>, Vec<f32>)>,
    /// Its reader is behind.
    is_stalled: bool,
    has_ended: bool,
}

/// A core that drives llama.cpp, and who asks it.
struct Asked {
    core: Core,
    backend: Disturbed,
    validator: Validator,
    random: fastrand::Rng,
    /// Beginnings of prompts, so that they share much.
    stems: Vec<Vec<Token>>,
    told: BTreeMap<RequestId, Told>,
    n_cancelled: u32,
    n_stalled: u32,
    n_freed: u32,
}

impl Asked {
    fn open(&self) -> Vec<RequestId> {
        self.told.iter().filter(|(_, it)| !it.has_ended).map(|(&id, _)| id).collect()
    }

    /// A new prompt, or one again whose answer is expected to be the same: then its tokens are drafted.
    fn ask(&mut self) {
        let random = &mut self.random;
        let priority = [Priority::Chat, Priority::Gate, Priority::Explore][random.usize(0..3)];
        let earlier = self.told.values().filter(|it| it.has_ended && !it.answers.is_empty());
        let again = random.choice(earlier.collect::<Vec<_>>()).filter(|_| random.u32(0..4) == 0);
        let (generation, prompt, prediction) = if let Some(earlier) = again {
            (earlier.generation, earlier.prompt.clone(), earlier.answers[0].0.clone())
        } else {
            let stem = &self.stems[random.usize(0..self.stems.len())];
            let mut prompt = stem[..random.usize(1..stem.len())].to_vec();
            prompt.extend((0..random.usize(1..30)).map(|_| Token(random.i32(40..400))));
            (Generation(random.u32(0..3)), prompt, Vec::new())
        };
        let weights = Weights::Generation(generation);
        let is_scored = prediction.is_empty() && random.u32(0..5) == 0;
        let n = if is_scored { 1 } else { random.u32(1..4) };
        let mut answers: Vec<(Vec<Token>, Vec<f32>)> = vec![Default::default(); n as usize];
        let checked = if is_scored {
            answers[0].0 = (0..20).map(|_| Token(random.i32(40..400))).collect();
            let sequences = vec![([&*prompt, &answers[0].0].concat(), prompt.len())];
            self.validator.logprobs(LogprobRequest { sequences, weights, priority }, generation)
        } else {
            let sampling = Sampling { max_tokens: 60, seed: Some(1), ..Sampling::default() };
            let request = GenerateRequest {
                prompt: prompt.clone(),
                n,
                sampling,
                stop: Vec::new(),
                top_logprobs: 0,
                prediction,
                weights,
                priority,
            };
            self.validator.generate(request, generation)
        };
        let id = self.core.submit(checked.unwrap());
        let (is_stalled, has_ended) = (false, false);
        self.told.insert(id, Told { generation, prompt, answers, is_stalled, has_ended });
    }

    /// Somebody leaves, or does not read for a while.
    fn disturb(&mut self) {
        let open = self.open();
        let Some(id) = self.random.choice(open) else { return };
        match self.random.u32(0..200) {
            0..2 => {
                self.core.cancel(id);
                self.told.remove(&id);
                self.n_cancelled += 1;
            }
            2..8 => self.stall(id, true),
            8..40 => self.stall(id, false),
            _ => {}
        }
    }

    fn stall(&mut self, id: RequestId, is_stalled: bool) {
        let told = self.told.get_mut(&id).unwrap();
        self.n_stalled += u32::from(is_stalled && !told.is_stalled);
        told.is_stalled = is_stalled;
        self.core.set_stalled(id, is_stalled);
    }

    /// Frees an adapter that nobody uses and loads it again.
    fn reload(&mut self, folder: &Path) {
        let generation = Generation(self.random.u32(1..3));
        if self.random.u32(0..3) != 0 || self.core.uses(generation) {
            return;
        }
        self.core.free(generation);
        assert!(self.step(), "an adapter is freed first");
        self.backend.load(generation, &folder.join(format!("{generation}.gguf"))).unwrap();
        self.n_freed += 1;
    }

    /// False: nothing can go on.
    fn step(&mut self) -> bool {
        let Some(step) = self.core.next_step() else { return false };
        let outcome = execute(&mut self.backend, &step, &AtomicBool::new(false));
        let (model, took) = (&self.backend, Duration::from_millis(1));
        self.core.finish(&step, Outcome { took, ..outcome }, |entry| model.logits(entry));
        for event in self.core.take_events() {
            match event {
                Event::Token { request, piece } => {
                    let told = self.told.get_mut(&request).unwrap();
                    let answer = &mut told.answers[usize::try_from(piece.index).unwrap()];
                    answer.0.push(piece.token);
                    answer.1.push(piece.logprob);
                }
                Event::Logprobs { request, mut logprobs } => {
                    let told = self.told.get_mut(&request).unwrap();
                    told.answers[0].1 = logprobs.pop().unwrap();
                    told.has_ended = true;
                }
                Event::Generated { request } => {
                    self.told.get_mut(&request).unwrap().has_ended = true;
                }
                Event::Failed { error, .. } => panic!("{error}"),
                _ => {}
            }
        }
        true
    }
}

fn run(kv_cache: KvCache, flash_attention: FlashAttention, tolerance: f32) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("nano.gguf");
    // Products with quantized weights round the activations too, and then a last bit that differs
    // becomes 1 % of a block's largest number: 0.06 in a log-prob.
    unquantized(Path::new(NANO), &model);
    write_adapters(folder.path());
    let load = |cells| {
        let mut llama = Llama::load(&config(&model, cells, kv_cache, flash_attention)).unwrap();
        for generation in 1..=2 {
            let path = folder.path().join(format!("{generation}.gguf"));
            llama.load(Generation(generation), &path).unwrap();
        }
        llama
    };
    let mut random = fastrand::Rng::with_seed(3);
    let backend = Disturbed {
        llama: load(170),
        random: fastrand::Rng::with_seed(4),
        n_interrupted: 0,
        n_selected: 0,
        n_restored: 0,
        selected: Generation::BASE,
    };
    // So little stays in so small a context that copies are made and come back.
    let (host_bytes, cell_bytes) = (backend.host_cache_bytes(), backend.cell_bytes());
    let cache = CachePolicy {
        resident: 30,
        block: 24,
        least: 8,
        bytes_at_once: 96 * cell_bytes,
        cell_bytes,
        ..CachePolicy::new(host_bytes)
    };
    let stems = (0..3).map(|_| (0..60).map(|_| Token(random.i32(40..400))).collect()).collect();
    let mut asked = Asked {
        core: Core::new(backend.limits(), cache, backend.vocabulary()),
        validator: Validator::new(&backend.info()),
        backend,
        random,
        stems,
        told: BTreeMap::new(),
        n_cancelled: 0,
        n_stalled: 0,
        n_freed: 0,
    };
    let mut steps = 0;
    while steps < STEPS || !asked.open().is_empty() {
        if steps < STEPS {
            if asked.open().len() < 8 && asked.random.u32(0..6) == 0 {
                asked.ask();
            }
            asked.disturb();
            asked.reload(folder.path());
        } else {
            asked.open().into_iter().for_each(|id| asked.stall(id, false));
        }
        steps += u32::from(asked.step());
    }
    let Asked { core, backend, told, n_cancelled, n_stalled, n_freed, .. } = asked;
    let counters = core.counters();
    let often = [
        ("preempted", counters.preemptions),
        ("interrupted", backend.n_interrupted.into()),
        ("swapped", backend.n_selected.into()),
        ("restored", backend.n_restored.into()),
        ("right drafts", counters.right_drafts),
    ];
    let sometimes = [("cancelled", n_cancelled), ("stalled", n_stalled), ("freed", n_freed)];
    println!("{often:?} {sometimes:?} in {steps} steps");
    assert!(often.iter().all(|(_, n)| 200 <= *n), "{often:?}");
    assert!(sometimes.iter().all(|(_, n)| 20 <= *n), "{sometimes:?}");
    let mut alone = load(512);
    let mut furthest: f32 = 0.0;
    for told in told.into_values() {
        for (tokens, logprobs) in told.answers {
            let again = logprobs_alone(&mut alone, told.generation, &told.prompt, &tokens);
            assert_eq!(again.len(), logprobs.len());
            for (a, b) in again.iter().zip(&logprobs) {
                furthest = furthest.max((a - b).abs());
            }
        }
    }
    println!("log-probs within {furthest}");
    assert!(furthest < tolerance, "log-probs differ by {furthest}");
}

fn logprobs_alone(
    llama: &mut Llama,
    generation: Generation,
    prompt: &[Token],
    tokens: &[Token],
) -> Vec<f32> {
    let mut core = Core::new(llama.limits(), CachePolicy::new(0), llama.vocabulary());
    let sequence = ([prompt, tokens].concat(), prompt.len());
    let weights = Weights::Generation(generation);
    let request = LogprobRequest { sequences: vec![sequence], weights, priority: Priority::Chat };
    core.submit(Validator::new(&llama.info()).logprobs(request, generation).unwrap());
    let mut found = None;
    while let Some(step) = core.next_step() {
        let outcome = execute(llama, &step, &AtomicBool::new(false));
        let took = Duration::from_millis(1);
        core.finish(&step, Outcome { took, ..outcome }, |entry| llama.logits(entry));
        for event in core.take_events() {
            match event {
                Event::Logprobs { mut logprobs, .. } => found = logprobs.pop(),
                other => panic!("{other:?}"),
            }
        }
    }
    found.expect("it ends")
}

#[test]
fn disturbed_answers_have_the_log_probs_of_undisturbed_ones() {
    run(KvCache::F32, FlashAttention::Off, 1e-3);
}

#[test]
fn disturbed_answers_have_nearly_the_log_probs_of_undisturbed_ones_with_the_defaults() {
    run(KvCache::F16, FlashAttention::Auto, 0.15);
}

/// Tokens that llama.cpp computes at once; of an interrupted step it keeps those parts that are done.
const MICRO_BATCH: usize = 512;

/// A step in which a prompt was read.
#[derive(Clone, Copy, Debug)]
struct Read {
    start: usize,
    n_ids: usize,
    n_tokens: usize,
    n_evaluated: usize,
    took: Duration,
}

/// Two drafts of a prompt, and the steps in which it was read. The second one is interrupted so late.
fn drafts(
    llama: &mut Llama,
    prompt: &[Token],
    interrupt: Option<Duration>,
) -> (Vec<Read>, Vec<Vec<TokenPiece>>) {
    let limits = llama.limits();
    for id in 0..limits.sequences {
        llama.truncate(SequenceId(id), 0);
    }
    let request = GenerateRequest {
        prompt: prompt.to_vec(),
        n: 2,
        sampling: Sampling { max_tokens: 16, seed: Some(1), ..Sampling::default() },
        stop: Vec::new(),
        top_logprobs: 0,
        prediction: Vec::new(),
        weights: Weights::Active,
        priority: Priority::Explore,
    };
    // Nano was trained on 1,024 tokens, which is no matter here.
    let info = ModelInfo { max_sequence: limits.cells, ..llama.info() };
    let mut core = Core::new(limits, CachePolicy::new(0), llama.vocabulary());
    core.submit(Validator::new(&info).generate(request, Generation::BASE).unwrap());
    let (mut reads, mut pieces) = (Vec::new(), vec![Vec::new(); 2]);
    loop {
        let step = core.next_step().expect("it goes on");
        let interrupt = interrupt.filter(|_| reads.len() == 1);
        let signal = &AtomicBool::new(false);
        let outcome = thread::scope(|scope| {
            if let Some(after) = interrupt {
                scope.spawn(move || {
                    thread::sleep(after);
                    signal.store(true, Ordering::Relaxed);
                });
            }
            execute(llama, &step, signal)
        });
        if let Some(span) = step.spans.first().filter(|span| span.start < prompt.len()) {
            reads.push(Read {
                start: span.start,
                n_ids: span.ids.len(),
                n_tokens: step.n_tokens(),
                n_evaluated: *outcome.evaluated.as_ref().unwrap(),
                took: outcome.took,
            });
        }
        // Of a quick model all that is left fits into a step.
        let outcome = Outcome { took: Duration::from_millis(1), ..outcome };
        core.finish(&step, outcome, |entry| llama.logits(entry));
        for event in core.take_events() {
            match event {
                Event::Token { piece, .. } => {
                    pieces[usize::try_from(piece.index).unwrap()].push(piece);
                }
                Event::Failed { error, .. } => panic!("{error}"),
                Event::Generated { .. } => return (reads, pieces),
                _ => {}
            }
        }
    }
}

#[test]
fn of_an_interrupted_prompt_no_part_that_llama_cpp_has_computed_is_computed_again() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("nano.gguf");
    unquantized(Path::new(NANO), &model);
    let config = config(&model, 2304, KvCache::F32, FlashAttention::Off);
    let batch_tokens = u32::try_from(4 * MICRO_BATCH).unwrap();
    let mut llama = Llama::load(&EngineConfig { batch_tokens, ..config }).unwrap();
    let mut random = fastrand::Rng::with_seed(5);
    let prompt: Vec<Token> =
        (0..4 * MICRO_BATCH + 20).map(|_| Token(random.i32(40..400))).collect();
    let (undisturbed, expected) = drafts(&mut llama, &prompt, None);
    // All but a first short step, for both drafts.
    let whole = undisturbed[1].n_tokens;
    assert!(3 * MICRO_BATCH < whole && undisturbed.len() == 2, "{undisturbed:?}");
    assert_eq!((undisturbed[1].n_ids, undisturbed[1].n_evaluated), (2, whole));
    let mut n_kept = BTreeSet::new();
    // At moments all over the step.
    for tenth in (0..10).cycle().take(50) {
        let (reads, answers) = drafts(&mut llama, &prompt, Some(undisturbed[1].took * tenth / 10));
        for (before, after) in reads.iter().zip(&reads[1..]) {
            assert_eq!(after.start, before.start + before.n_evaluated, "{reads:?}");
        }
        let n_read: usize = reads.iter().map(|read| read.n_evaluated).sum();
        assert_eq!(n_read, prompt.len(), "{reads:?}");
        let n_evaluated = reads[1].n_evaluated;
        assert!(n_evaluated == whole || n_evaluated % MICRO_BATCH == 0, "{reads:?}");
        for (answer, expected) in answers.iter().flatten().zip(expected.iter().flatten()) {
            assert_eq!(answer.token, expected.token, "{reads:?}");
            assert!((answer.logprob - expected.logprob).abs() < 1e-3, "{reads:?}");
        }
        n_kept.insert(n_evaluated);
        if 1 < n_kept.range(1..whole).count() {
            return;
        }
    }
    panic!("it was never interrupted in two places: {n_kept:?}");
}
