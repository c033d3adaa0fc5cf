//! Trains the nano model from scratch on the nano world's corpus and writes it as an F32 GGUF.
//! The loop: documents -> batch -> weighted cross entropy -> `AdamW`. Every 500 steps it
//! measures on held-out problems, teacher-forced: a reply counts when each of its tokens is the argmax,
//! which is what greedy decoding would have written. Called by `main`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use fastrand::Rng;
use files::gguf::Gguf;
use nano::corpus::{Corpus, Kind, Task};
use nano::tokenizer::Tokenizer;
use nano::world::{Answer, Habits, Problem, Split, judge};
use protocol::BaseKind;
use tch::{Device, Kind as Number, Tensor};

use crate::arch::{Shape, Sizes};
use crate::batch::{Batch, Sequence, Tree};
use crate::model::Model;
use crate::optimizer::{AdamW, learning_rate};
use crate::weights::{self, Weights};

/// Context of the model in tokens.
const CONTEXT: u32 = 1024;

/// Command line of `reflectd-trainer pretrain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Where the F32 GGUF goes.
    #[arg(long)]
    out: PathBuf,
    /// Optimizer steps.
    #[arg(long, default_value_t = 6000)]
    steps: usize,
    /// Documents a step.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Peak learning rate.
    #[arg(long, default_value_t = 3e-3)]
    learning_rate: f64,
    /// Width of the model.
    #[arg(long, default_value_t = 128)]
    width: i64,
    /// Blocks.
    #[arg(long, default_value_t = 4)]
    layers: i64,
    /// Of weights and corpus.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// CPU threads.
    #[arg(long, default_value_t = 1)]
    threads: i32,
    /// Go on from this F32 GGUF (its vocabulary stays).
    #[arg(long)]
    init: Option<PathBuf>,
    /// Vocabulary at most.
    #[arg(long, default_value_t = 640)]
    vocabulary: usize,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    tch::set_num_threads(options.threads);
    tch::manual_seed(options.seed.cast_signed());
    let prompts = nano::corpus::prompts();
    let corpus = Corpus::new(&prompts)?;
    let (tokenizer, mut model) = if let Some(path) = &options.init {
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(path)?);
        let tokenizer = tokenizer.with_context(|| format!("{} has no merges", path.display()))?;
        (tokenizer, Model::load(path, BaseKind::F32, CONTEXT, Device::Cpu)?)
    } else {
        let tokenizer = train_tokenizer(&corpus, options)?;
        let model = initialise(options, tokenizer.n_vocab());
        (tokenizer, model)
    };
    grow(&mut model, options.layers);
    let parameters: Vec<Tensor> =
        model.weights.tensors().map(|(_, weight)| weight.set_requires_grad(true)).collect();
    // Other documents than those of the run that is continued.
    let mut rng = Rng::with_seed(options.seed.wrapping_add(u64::from(options.init.is_some())));
    let n_parameters: i64 = parameters.iter().map(|p| i64::try_from(p.numel()).unwrap_or(0)).sum();
    say(&format!("{n_parameters} parameters, {} tokens in the vocabulary", tokenizer.n_vocab()));
    let mut optimizer = AdamW::new(parameters, 0.01, 1.0);
    let mut pool = Vec::new();
    let (started, mut n_tokens, mut average) = (Instant::now(), 0usize, None);
    for step in 0..options.steps {
        if pool.is_empty() {
            pool = draw_batches(&corpus, &tokenizer, options.batch, &mut rng)?;
        }
        let documents = pool.pop().context("the pool was just filled")?;
        let (batch, kinds) = pack(&documents);
        n_tokens += batch.ids.numel();
        let weights = weights_of(&kinds, &batch);
        let logprobs = model
            .logits(&batch)
            .log_softmax(-1, Number::Float)
            .gather(1, &batch.targets.unsqueeze(1), false)
            .squeeze_dim(1);
        let loss = -(logprobs * &weights).sum(Number::Float) / weights.sum(Number::Float);
        let rate = options.learning_rate * learning_rate(step, options.steps, 0.02, 0.03);
        optimizer.zero_grad();
        loss.backward();
        optimizer.update(rate);
        let loss = loss.double_value(&[]);
        let smoothed = average.map_or(loss, |average: f64| 0.98 * average + 0.02 * loss);
        average = Some(smoothed);
        let done = step + 1;
        if done.is_multiple_of(100) {
            let seconds = started.elapsed().as_secs_f64();
            say(&format!(
                "step {done} loss {smoothed:.4} {:.0} tokens/s {seconds:.0} s",
                n_tokens as f64 / seconds
            ));
        }
        if done.is_multiple_of(500) || done == options.steps {
            say(&format!("step {done} {}", measure(&model, &corpus, &tokenizer)?));
            weights::save(
                (&model.shape, &model.weights),
                &tokenizer,
                "reflectd nano",
                &options.out,
            )?;
        }
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the log of this command is its output")]
fn say(line: &str) {
    println!("{line}");
}

fn train_tokenizer(corpus: &Corpus<'_>, options: &Options) -> anyhow::Result<Tokenizer> {
    let mut rng = Rng::with_seed(options.seed);
    let mut texts = Vec::new();
    for _ in 0..5000 {
        for task in corpus.document(&mut rng)? {
            texts
                .extend(task.prompt.into_iter().filter(|part| !part.control).map(|part| part.text));
            texts.push(task.reply);
        }
    }
    Ok(Tokenizer::train(&texts, options.vocabulary))
}

fn initialise(options: &Options, n_vocab: usize) -> Model {
    let width = options.width;
    let sizes = Sizes {
        n_layer: 0,
        n_embd: width,
        n_head: width / 32,
        n_head_kv: width / 64,
        head_dim: 32,
        n_ff: width * 11 / 4 / 32 * 32,
        n_vocab: i64::try_from(n_vocab).unwrap_or(0),
        n_ctx: CONTEXT.into(),
    };
    let f32_cpu = (Number::Float, Device::Cpu);
    let mut weights = HashMap::new();
    weights.insert("token_embd".to_owned(), Tensor::randn([sizes.n_vocab, width], f32_cpu) * 0.02);
    weights.insert("output_norm".to_owned(), Tensor::ones([width], f32_cpu));
    let shape = Shape::llama(sizes, 1e-5, 10000.0);
    let mut model = Model::new(shape, Weights::decoded(weights, Device::Cpu), Device::Cpu);
    grow(&mut model, options.layers);
    model
}

/// Adds blocks on top. Their output projections start small in a new model, and at zero in a trained one,
/// so that they change nothing at first.
fn grow(model: &mut Model, n_layer: i64) {
    let f32_cpu = (Number::Float, Device::Cpu);
    let n_before = model.shape.sizes.n_layer;
    let is_new = n_before == 0;
    for layer in n_before..n_layer {
        for (norm, n) in model.shape.norms() {
            model.weights.insert(format!("blk.{layer}.{norm}"), Tensor::ones([n], f32_cpu));
        }
        for (name, [n_out, n_in]) in model.shape.linears() {
            let gain = match name {
                "attn_output" | "ffn_down" if is_new => 0.4,
                "attn_output" | "ffn_down" => 0.0,
                _ => 0.8,
            };
            let weight = Tensor::randn([n_out, n_in], f32_cpu) * (gain / (n_in as f64).sqrt());
            model.weights.insert(format!("blk.{layer}.{name}"), weight);
        }
    }
    model.shape.sizes.n_layer = n_before.max(n_layer);
}

/// A document, ready to be packed.
struct Document {
    sequences: Vec<Sequence>,
    kinds: Vec<Kind>,
}

impl Document {
    fn new(tasks: &[Task], tokenizer: &Tokenizer) -> Self {
        let sequences = tasks
            .iter()
            .map(|task| {
                let (tokens, from) = task.encode(tokenizer);
                Sequence { tokens, from }
            })
            .collect();
        let kinds = tasks.iter().map(|task| task.kind).collect();
        Self { sequences, kinds }
    }

    /// Tokens that are computed of it.
    fn n_tokens(&self) -> usize {
        Tree::new(&self.sequences).size().tokens
    }
}

/// Sixteen batches of documents of similar length, for little padding, in random order.
fn draw_batches(
    corpus: &Corpus<'_>,
    tokenizer: &Tokenizer,
    size: usize,
    rng: &mut Rng,
) -> anyhow::Result<Vec<Vec<Document>>> {
    let mut documents = Vec::new();
    for _ in 0..16 * size {
        documents.push(Document::new(&corpus.document(rng)?, tokenizer));
    }
    documents.sort_by_cached_key(|document| std::cmp::Reverse(document.n_tokens()));
    let mut batches: Vec<Vec<Document>> = Vec::new();
    while !documents.is_empty() {
        batches.push(documents.split_off(documents.len().saturating_sub(size)));
    }
    rng.shuffle(&mut batches);
    Ok(batches)
}

/// The documents as one batch, and the kind of each of its sequences.
fn pack(documents: &[Document]) -> (Batch, Vec<Kind>) {
    let kinds = documents.iter().flat_map(|document| &document.kinds).copied().collect();
    let tree = Tree::new(documents.iter().flat_map(|document| &document.sequences));
    (Batch::new(&tree, Device::Cpu), kinds)
}

/// Loss weight of each target, `[M]`. A rating is one token among dozens, so it needs a larger one.
fn weights_of(kinds: &[Kind], batch: &Batch) -> Tensor {
    let weights: Vec<f32> = kinds
        .iter()
        .map(|kind| match kind {
            Kind::Rate(_) => 5.0,
            Kind::Critique => 2.0,
            Kind::Answer | Kind::Refine | Kind::Drill => 1.0,
        })
        .collect();
    Tensor::from_slice(&weights).index_select(0, &batch.sequences)
}

/// Held-out measurements as one line.
fn measure(model: &Model, corpus: &Corpus<'_>, tokenizer: &Tokenizer) -> anyhow::Result<String> {
    const PROBLEMS: usize = 400;
    let _guard = tch::no_grad_guard();
    let mut rng = Rng::with_seed(99);
    let mut documents = Vec::new();
    let mut truths = Vec::new();
    for i in 0..PROBLEMS {
        let problem = Problem::sample(&mut rng, Split::HeldOut);
        let habits = if i % 2 == 0 { Habits::TEACHER } else { Habits::WILD };
        let answer = Answer::imperfect(&problem, &habits, &mut rng);
        let mut tasks = corpus.assessed(&problem, &answer, false)?;
        tasks.push(corpus.answer(&problem, &Answer::gold(&problem))?);
        documents.push(tasks);
        truths.push((judge(&problem, &answer), problem.verify(&answer.text())));
    }
    let mut exact: HashMap<&str, (usize, usize)> = HashMap::new();
    let mut scores = Vec::new();
    let labels: Vec<i64> = (1..=3)
        .map(|level: u8| {
            let task = documents.iter().flatten().find(|task| task.reply == level.to_string());
            task.map(|task| task.encode(tokenizer))
                .and_then(|(tokens, from)| tokens.get(from).map(|&t| i64::from(t)))
        })
        .collect::<Option<_>>()
        .context("every level occurs among 400 problems")?;
    for (chunk, truths) in documents.chunks(50).zip(truths.chunks(50)) {
        let chunk: Vec<_> = chunk.iter().map(|tasks| Document::new(tasks, tokenizer)).collect();
        let (batch, kinds) = pack(&chunk);
        let logits = model.logits(&batch);
        let right = logits.argmax(-1, false).eq_tensor(&batch.targets).to_kind(Number::Float);
        let right = Vec::<f32>::try_from(batch.sum_by_sequence(&right))?;
        let lengths = Vec::<i64>::try_from(&batch.lengths)?;
        let levels =
            logits.index_select(1, &Tensor::from_slice(&labels)).softmax(-1, Number::Float);
        let levels = Vec::<Vec<f32>>::try_from(levels)?;
        let mut row = 0;
        for (i, &kind) in kinds.iter().enumerate() {
            let (truth, verified) = &truths[i / 6];
            let whole = (f64::from(right[i]) - lengths[i] as f64).abs() < 0.5;
            let name = match kind {
                Kind::Answer => "greedy",
                Kind::Rate(0) => "reasoning",
                Kind::Rate(1) => "arithmetic",
                Kind::Rate(_) => "format",
                Kind::Critique => "critique",
                Kind::Drill => "drill",
                Kind::Refine if truth.levels == [3, 3, 3] => "kept",
                Kind::Refine => "repaired",
            };
            let entry = exact.entry(name).or_default();
            entry.0 += usize::from(whole);
            entry.1 += 1;
            if let Kind::Rate(aspect) = kind {
                if aspect == 0 {
                    scores.push((0.0, true, *verified));
                }
                let last = scores.last_mut().context("aspect 0 comes first")?;
                last.0 += f64::from(levels[row][2]) - f64::from(levels[row][0]);
                last.1 &= levels[row][2] >= 0.5;
            }
            row += usize::try_from(lengths[i])?;
        }
    }
    let mut line = String::new();
    for name in ["greedy", "reasoning", "arithmetic", "format", "critique", "repaired", "kept"] {
        let (right, all) = exact.get(name).copied().unwrap_or((0, 1));
        line = format!("{line}{name} {:.3} ", right as f64 / all as f64);
    }
    let share = |wanted: bool| {
        let of: Vec<_> = scores.iter().filter(|s| s.2 == wanted).collect();
        of.iter().filter(|s| s.1 != wanted).count() as f64 / of.len().max(1) as f64
    };
    let pairs = scores
        .iter()
        .filter(|s| s.2)
        .flat_map(|a| scores.iter().filter(|s| !s.2).map(move |b| (a.0, b.0)));
    let (mut wins, mut all) = (0.0, 0.0);
    for (right, wrong) in pairs {
        all += 1.0;
        wins += if right > wrong {
            1.0
        } else if right < wrong {
            0.0
        } else {
            0.5
        };
    }
    Ok(line
        + &format!(
            "auc {:.3} false-accept {:.3} false-reject {:.3}",
            wins / all,
            share(false),
            share(true)
        ))
}
