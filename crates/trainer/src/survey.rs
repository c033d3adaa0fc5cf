//! `reflectd-trainer survey`: whether a model can be trained, how much memory that takes, and how long
//! pairs take on this machine. It uses the code that trains: its checks, its planner, and real passes
//! over the first blocks and the head with the file's own weights, from which the time of a whole pass
//! is extrapolated. It writes nothing. Used by `main` for `reflectd doctor`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::ensure;
use fastrand::Rng;
use protocol::{
    self, BaseKind, BaseWay, Compute, Objective, PairLength, SurveyJob, TrainingMemory,
    TrainingSpeed, TrainingSurvey,
};
use rustix::time::{ClockId, clock_gettime};
use tch::{Device, Kind as Number};

use crate::arch::Shape;
use crate::base::BaseFile;
use crate::batch::Size;
use crate::cuda;
use crate::data::{Kind, Packed};
use crate::lora::Lora;
use crate::model::Model;
use crate::optimizer::AdamW;
use crate::plan::{self, Plan, Setting};
use crate::step::{self, Unfinished};
use crate::weights::{self, Weights};

/// A pass that takes so long is not made larger, in seconds.
const LONG_ENOUGH_S: f64 = 0.8;
/// Times that the passes are measured that count. The fastest counts: other processes only make a pass
/// slower.
const ROUNDS: usize = 2;
/// The machine is busy when other processes want more than this share of its processors.
const BUSY: f64 = 0.25;
/// By how much the clock may exceed the processor time of each thread on a busy machine. A pass keeps
/// its threads busy for most of its time; where the clock says more, others have had the processor.
const MAX_WAITING: f64 = 1.2;
/// Divisors of a pair's length that measuring begins with.
const SHORTENED: [usize; 4] = [8, 4, 2, 1];
/// Most blocks that are measured; more do not improve the extrapolation.
const MAX_BLOCKS: i64 = 8;
/// Longest sequence in a job.
const MAX_TOKENS: usize = 1 << 20;
/// Copies of an adapter in a run: the parameters, its gradient, two moments and the best checkpoint.
const ADAPTER_COPIES: u64 = 5;
/// Bytes of an f32.
const F32: u64 = 4;
/// Pairs whose time is reported.
const PAIRS: f64 = 1000.0;

/// Answers one job. Only an invalid job is an error: what is wrong with the model is in the answer.
/// `known` is called with what is known before anything is measured, for whoever does not wait.
pub(crate) fn run(
    job: &SurveyJob,
    device: Device,
    known: impl FnOnce(&TrainingSurvey),
) -> anyhow::Result<TrainingSurvey> {
    ensure!(
        job.version == protocol::VERSION,
        "the job has version {}, this trainer knows {}",
        job.version,
        protocol::VERSION
    );
    let lengths = [job.max_tokens, job.pair.prompt, job.pair.answer];
    ensure!(
        lengths.iter().all(|n| (1..=MAX_TOKENS).contains(n)),
        "lengths are between 1 and {MAX_TOKENS} tokens"
    );
    ensure!(
        (1..=1024).contains(&job.lora.rank) && 0 < job.batch_pairs,
        "rank and batch_pairs are at least 1"
    );
    tch::set_num_threads(i32::try_from(job.threads.clamp(1, 1024))?);
    let mut survey = TrainingSurvey {
        refusal: None,
        device: cuda::name(device).to_owned(),
        device_memory: cuda::memory().filter(|_| device != Device::Cpu),
        threads: job.threads,
        memory: None,
        speed: None,
        speed_fault: None,
    };
    let checked = BaseFile::open(&job.base)
        .and_then(|file| weights::check(&file, job.context_tokens).map(|shape| (file, shape)));
    let (file, shape) = match checked {
        Ok(found) => found,
        Err(error) => {
            survey.refusal = Some(format!("{error:#}"));
            return Ok(survey);
        }
    };
    let machine = Machine {
        job,
        file: &file,
        shape: &shape,
        device,
        compute: plan::compute(job.compute, device, shape.sizes.n_embd),
        available: plan::memory_bytes(device, job.memory_limit_bytes),
    };
    let memory = machine.memory();
    let taken = memory.taken;
    survey.memory = Some(memory);
    known(&survey);
    match catch_unwind(AssertUnwindSafe(|| machine.measure(taken))) {
        Ok(Ok(speed)) => survey.speed = Some(speed),
        Ok(Err(error)) => survey.speed_fault = Some(format!("{error:#}")),
        Err(panic) => {
            let text = step::panic_text(&*panic);
            survey.speed_fault = Some(step::first_line(&text).to_owned());
        }
    }
    Ok(survey)
}

/// A model, and the machine that would train it.
#[derive(Clone, Copy)]
struct Machine<'a> {
    job: &'a SurveyJob,
    file: &'a BaseFile,
    shape: &'a Shape,
    device: Device,
    compute: Number,
    /// Bytes.
    available: u64,
}

impl Machine<'_> {
    fn memory(self) -> TrainingMemory {
        let Self { job, available, .. } = self;
        TrainingMemory {
            available_bytes: available,
            longest: stretched(job.pair, job.max_tokens),
            compute: if self.compute == Number::BFloat16 { Compute::Bf16 } else { Compute::F32 },
            taken: plan::base_kind(job.base_kind, self.compute, self.file, available),
            ways: [BaseKind::F32, BaseKind::Bf16, BaseKind::Quantized]
                .map(|base| self.way(base))
                .into(),
        }
    }

    fn way(self, base: BaseKind) -> BaseWay {
        let Self { job, shape, available, .. } = self;
        let base_bytes = held_bytes(self.file, base, shape.sizes.n_layer);
        let a_layer: i64 = shape.linears().iter().map(|(_, [n_out, n_in])| n_out + n_in).sum();
        let parameters = (a_layer * shape.sizes.n_layer).cast_unsigned() * job.lora.rank as u64;
        // As in a run, which plans after it has loaded base and adapter.
        let left = available.saturating_sub(base_bytes + parameters * F32);
        let longest = size(stretched(job.pair, job.max_tokens));
        let plan = Plan::new(self.setting(base), longest, left);
        let mut way = BaseWay {
            base,
            base_bytes,
            adapter_bytes: parameters * F32 * ADAPTER_COPIES,
            pass_bytes: plan.pass_bytes(self.setting(base)),
            fits: false,
            pass_tokens: plan.max_tokens,
            recompute: plan.recompute,
        };
        way.fits = way.total_bytes() <= available;
        way
    }

    /// How a run would compute with a base of this kind.
    fn setting(&self, base: BaseKind) -> Setting<'_> {
        let weights_are_transient = match base {
            BaseKind::F32 => self.compute != Number::Float,
            BaseKind::Bf16 => self.compute != Number::BFloat16,
            BaseKind::Quantized | BaseKind::Auto => true,
        };
        let Self { shape, compute, device, .. } = *self;
        Setting { shape, compute, device, weights_are_transient }
    }

    /// The first blocks of the model, and its head.
    fn load(self, base: BaseKind, n_blocks: i64) -> anyhow::Result<Model> {
        let mut shape = self.shape.clone();
        shape.sizes.n_layer = n_blocks;
        let weights = Weights::load(self.file, &shape, base, self.device)?;
        let mut model = Model::new(shape, weights, self.device);
        model.compute = self.compute;
        model.fuse_projections();
        Ok(model)
    }

    /// Measures passes with one block and with several, of as many tokens as a pass of a run has or as
    /// time allows. The time of a pass is linear in its blocks, with one constant part (the head). It is
    /// taken as proportional to its tokens: what is constant there (decoding a quantized base) is little
    /// beside a pass that is long enough, and a slope between two short passes is mostly noise.
    fn measure(self, base: BaseKind) -> anyhow::Result<TrainingSpeed> {
        let Self { job, file, shape, available, .. } = self;
        let n_blocks = shape.sizes.n_layer;
        let left = available.saturating_sub(held_bytes(file, base, n_blocks));
        let fitting = |n: &i64| held_bytes(file, base, *n) < available / 2;
        let most = (1..=n_blocks.min(MAX_BLOCKS)).rev().find(fitting);
        let most = most.unwrap_or(0);
        ensure!(
            most == n_blocks || 1 < most,
            "not even two blocks and the head fit into half of the memory"
        );
        let mut bench = Bench {
            threads: busy_threads(self.device),
            model: self.load(base, most)?,
            lora: job.lora,
            rng: Rng::with_seed(1),
            plan: Plan::new(self.setting(base), size(job.pair), left),
        };
        let of_pair = bench.plan.tokens(size(job.pair));
        let of_run = (bench.plan.max_tokens / of_pair).clamp(1, job.batch_pairs);

        let mut sizes = sizes(job.pair, of_run).into_iter();
        let mut measured = sizes.next().unwrap_or((job.pair, 1));
        // The first pass of a process is slow.
        bench.pass(1, measured)?;
        let mut one = bench.pass(1, measured)?;
        while one.total() < LONG_ENOUGH_S
            && let Some(larger) = sizes.next()
        {
            measured = larger;
            one = bench.pass(1, measured)?;
        }
        // As many blocks as make up for the head, so that their share is not lost in its noise.
        let mut measured_blocks = 1;
        let mut several = one;
        while measured_blocks < most && several.total() < 2.0 * one.total() {
            measured_blocks = (2 * measured_blocks).min(most);
            several = bench.pass(measured_blocks, measured)?;
        }
        for _ in 1..ROUNDS {
            one = one.fastest(bench.pass(1, measured)?);
            several = several.fastest(bench.pass(measured_blocks, measured)?);
        }

        let (measured_pair, measured_pairs) = measured;
        let whole = |part: fn(&Seconds) -> f64| {
            line(n_blocks as f64, (1.0, part(&one)), (measured_blocks as f64, part(&several)))
        };
        let tokens = PAIRS * tree_tokens(job.pair) as f64;
        let passes = tokens / (tree_tokens(measured_pair) * measured_pairs) as f64;
        let steps = PAIRS / job.batch_pairs as f64;
        let epoch_s = passes * whole(|it| it.gradients)? + steps * whole(|it| it.update)?;
        Ok(TrainingSpeed {
            pair: job.pair,
            base,
            reference_s: passes * whole(|it| it.reference)?,
            epoch_s,
            tokens_per_second: tokens / epoch_s.max(1e-9),
            measured_blocks,
            n_blocks,
            measured_pair,
            measured_pairs,
        })
    }
}

/// Pairs of a pass from few tokens to those of a run, each about twice as many as before.
fn sizes(pair: PairLength, of_run: usize) -> Vec<(PairLength, usize)> {
    let doubled = std::iter::successors(Some(2), |n| Some(2 * n)).take_while(|n| *n < of_run);
    let several = doubled.chain((1 < of_run).then_some(of_run)).map(|n| (pair, n));
    let mut sizes: Vec<_> = SHORTENED.map(|by| (shortened(pair, by), 1)).into();
    sizes.extend(several);
    sizes.dedup();
    sizes
}

/// Memory of the first blocks and the head of a base of this kind.
fn held_bytes(file: &BaseFile, base: BaseKind, n_blocks: i64) -> u64 {
    let is_loaded = |name: &str| {
        let block = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next());
        block.and_then(|block| block.parse::<i64>().ok()).is_none_or(|block| block < n_blocks)
    };
    let bytes = |tensor: &files::gguf::TensorInfo| {
        let bytes_per_value = match base {
            _ if tensor.shape.len() != 2 => F32,
            BaseKind::Quantized => 0,
            BaseKind::Bf16 => 2,
            BaseKind::F32 | BaseKind::Auto => F32,
        };
        tensor.n_values().saturating_mul(bytes_per_value)
    };
    file.tensors().filter(|tensor| is_loaded(&tensor.name)).map(bytes).fold(0, u64::saturating_add)
}

/// A pair of the same proportions whose sequences have `tokens` tokens.
fn stretched(pair: PairLength, tokens: usize) -> PairLength {
    let answer = (tokens * pair.answer / (pair.prompt + pair.answer)).max(1);
    PairLength { prompt: tokens.saturating_sub(answer).max(1), answer }
}

fn shortened(pair: PairLength, by: usize) -> PairLength {
    PairLength { prompt: (pair.prompt / by).max(1), answer: (pair.answer / by).max(1) }
}

/// Tokens that are computed of a pair: the prompt once, and the answers without their last tokens.
fn tree_tokens(PairLength { prompt, answer }: PairLength) -> usize {
    prompt + 2 * (answer - 1)
}

/// What a pass computes and keeps of a pair.
fn size(pair: PairLength) -> Size {
    Size { tokens: tree_tokens(pair), shared: pair.prompt }
}

/// Seconds of the parts of one optimizer step over one pass.
#[derive(Clone, Copy, Debug)]
struct Seconds {
    reference: f64,
    gradients: f64,
    update: f64,
}

impl Seconds {
    fn total(self) -> f64 {
        self.reference + self.gradients + self.update
    }

    /// Part by part.
    fn fastest(self, other: Self) -> Self {
        Self {
            reference: self.reference.min(other.reference),
            gradients: self.gradients.min(other.gradients),
            update: self.update.min(other.update),
        }
    }
}

/// The y at `x` of the line through two points. More blocks that took no longer are noise, and nothing
/// can be said of all of them.
fn line(x: f64, (x0, y0): (f64, f64), (x1, y1): (f64, f64)) -> anyhow::Result<f64> {
    if x <= x1 {
        return Ok(y1);
    }
    ensure!(
        y0 < y1,
        "other programs are using the processor: a pass through {x1} blocks took no longer than one \
         through {x0}; try again when the machine is quiet"
    );
    Ok(y1 + (x - x1) * (y1 - y0) / (x1 - x0))
}

/// Measures what the parts of a pass take.
struct Stopwatch {
    clock: Instant,
    processor: Duration,
    /// Threads that share a busy machine; `None`: the clock is right.
    threads: Option<f64>,
}

impl Stopwatch {
    fn new(threads: Option<f64>) -> Self {
        Self { clock: Instant::now(), processor: processor_time(), threads }
    }

    /// Seconds since the last call.
    fn lap(&mut self) -> f64 {
        let clock = std::mem::replace(&mut self.clock, Instant::now()).elapsed().as_secs_f64();
        let now = processor_time();
        let processor = now.saturating_sub(std::mem::replace(&mut self.processor, now));
        self.threads.map_or(clock, |threads| alone(clock, processor.as_secs_f64() / threads))
    }
}

/// What a pass would take if nothing else ran, by the clock and by the processor time of each thread.
fn alone(clock: f64, processor: f64) -> f64 {
    clock.min(MAX_WAITING * processor)
}

/// The threads that compute, where they do on a busy machine. Before anything is measured, because the
/// load has what is measured in it afterwards.
fn busy_threads(device: Device) -> Option<f64> {
    let is_busy = device == Device::Cpu && BUSY < files::load::load_per_processor()?;
    is_busy.then(|| f64::from(tch::get_num_threads()))
}

/// Of all threads of this process.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The loaded blocks of a model, and what measures them.
struct Bench {
    model: Model,
    lora: protocol::Lora,
    rng: Rng,
    plan: Plan,
    /// See [`busy_threads`].
    threads: Option<f64>,
}

impl Bench {
    /// One step of a run, with a new adapter on the first blocks.
    fn pass(
        &mut self,
        n_blocks: i64,
        (pair, n_pairs): (PairLength, usize),
    ) -> anyhow::Result<Seconds> {
        let mut examples: Vec<Packed> = (0..n_pairs).map(|_| self.example(pair)).collect();
        let all_blocks = std::mem::replace(&mut self.model.shape.sizes.n_layer, n_blocks);
        let seconds = self.compute(&mut examples);
        self.model.shape.sizes.n_layer = all_blocks;
        seconds.map_err(|unfinished| match unfinished {
            Unfinished::OutOfMemory(error) | Unfinished::NotFinite(error) => error,
        })
    }

    fn compute(&mut self, examples: &mut [Packed]) -> Result<Seconds, Unfinished> {
        let Self { model, lora, plan, threads, .. } = self;
        let adapter = Lora::new(&model.shape, lora.rank, lora.alpha, model.device);
        let mut optimizer = AdamW::new(adapter.parameters(), 0.0, 1.0);
        model.lora = Some(adapter);
        let mut plan = *plan;
        let mut stopwatch = Stopwatch::new(*threads);
        let mut all: Vec<&mut Packed> = examples.iter_mut().collect();
        step::add_reference(model, &mut all, &mut plan)?;
        let reference = stopwatch.lap();
        let objective = Objective::Dpo { beta: 0.1, nll: 1.0 };
        let batch: Vec<&Packed> = examples.iter().collect();
        step::gradients(model, objective, &batch, &mut plan, &mut || optimizer.zero_grad())?;
        let gradients = stopwatch.lap();
        optimizer.update(1e-6);
        Ok(Seconds { reference, gradients, update: stopwatch.lap() })
    }

    fn example(&mut self, PairLength { prompt, answer }: PairLength) -> Packed {
        let n_vocab = i32::try_from(self.model.shape.sizes.n_vocab).unwrap_or(i32::MAX);
        let mut tokens = |n: usize| (0..n).map(|_| self.rng.i32(0..n_vocab)).collect::<Vec<_>>();
        let (prompt, one, other) = (tokens(prompt), tokens(answer), tokens(answer));
        Packed::new(String::new(), &prompt, &[&one, &other], Kind::Preference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn a_whole_pass_lies_on_the_line_through_two_measured_ones() {
        let at = |x, one, several| line(x, one, several).unwrap();
        assert!(close(at(10.0, (1.0, 3.0), (2.0, 5.0)), 21.0));
        assert!(close(at(2.0, (1.0, 3.0), (2.0, 5.0)), 5.0), "a measured point is on the line");
        assert!(close(at(1.0, (1.0, 3.0), (1.0, 3.0)), 3.0), "a model of one block");
    }

    #[test]
    fn nothing_is_told_from_blocks_that_took_no_time() {
        let error = line(30.0, (1.0, 3.0), (8.0, 2.5)).unwrap_err().to_string();
        assert!(error.contains("8 blocks") && error.contains("quiet"), "{error}");
    }

    #[test]
    fn other_programs_do_not_make_a_pass_slower() {
        assert!(close(alone(2.0, 1.9), 2.0), "by the clock where the threads were busy");
        assert!(close(alone(40.0, 2.0), 2.4), "by the processor time on a busy machine");
    }

    #[test]
    fn passes_grow_up_to_those_of_a_run() {
        let pair = PairLength { prompt: 256, answer: 128 };
        let tokens = |of_run| -> Vec<usize> {
            sizes(pair, of_run).into_iter().map(|(pair, n)| n * tree_tokens(pair)).collect()
        };
        assert_eq!(tokens(1), [62, 126, 254, 510]);
        assert_eq!(tokens(5), [62, 126, 254, 510, 2 * 510, 4 * 510, 5 * 510]);
        let least = PairLength { prompt: 1, answer: 1 };
        assert_eq!(sizes(least, 1), [(least, 1)]);
    }

    #[test]
    fn pairs_keep_their_proportions() {
        let pair = PairLength { prompt: 256, answer: 128 };
        assert_eq!(tree_tokens(pair), 510);
        assert_eq!(stretched(pair, 3000), PairLength { prompt: 2000, answer: 1000 });
        assert_eq!(shortened(pair, 8), PairLength { prompt: 32, answer: 16 });
        let least = PairLength { prompt: 1, answer: 1 };
        assert_eq!((stretched(pair, 1), shortened(least, 8)), (least, least));
    }
}
