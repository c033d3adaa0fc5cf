//! What the trainer's tests share: a tiny random model, a data set, a job, and short runs of it. Used by
//! all files of this folder.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nano::tokenizer::Tokenizer;
use protocol::{BaseKind, Example, Job, Lora as LoraShape, Optimizer, Step, TrainerEvent};
use tch::{Device, Kind, Tensor};

use crate::arch::{Shape, Sizes};
use crate::batch::{Batch, Sequence, Tree};
use crate::model::Model;
use crate::train::{self, Failure};
use crate::weights::{self, Weights};

/// Held through a test: libtorch has one generator a process, and a draw of another test between
/// seed and use would change what is asserted. One thread, because its spinning threads wait for each
/// other when something else wants the processor: 52 s instead of 4 s.
pub(super) fn alone() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    tch::set_num_threads(1);
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A random model with grouped heads.
pub(super) fn tiny() -> Model {
    tch::manual_seed(1);
    let sizes = Sizes {
        n_layer: 2,
        n_embd: 32,
        n_head: 4,
        n_head_kv: 2,
        head_dim: 8,
        n_ff: 48,
        n_vocab: 288,
        n_ctx: 64,
    };
    let shape = Shape::llama(sizes, 1e-5, 10000.0);
    let options = (Kind::Float, Device::Cpu);
    let mut tensors = HashMap::new();
    tensors.insert("token_embd".to_owned(), Tensor::randn([sizes.n_vocab, 32], options) * 0.5);
    tensors.insert("output_norm".to_owned(), Tensor::rand([32], options) + 0.5);
    for layer in 0..sizes.n_layer {
        for (norm, n) in shape.norms() {
            tensors.insert(format!("blk.{layer}.{norm}"), Tensor::rand([n], options) + 0.5);
        }
        for (name, size) in shape.linears() {
            tensors.insert(format!("blk.{layer}.{name}"), Tensor::randn(size, options) * 0.2);
        }
    }
    Model::new(shape, Weights::decoded(tensors, Device::Cpu), Device::Cpu)
}

fn saved(folder: &Path) -> PathBuf {
    let path = folder.join("base.gguf");
    let tokenizer = Tokenizer::train(&[], 271);
    assert_eq!(tokenizer.n_vocab(), 288);
    let Model { shape, weights, .. } = tiny();
    weights::save((&shape, &weights), &tokenizer, "tiny", &path).unwrap();
    path
}

/// Writes a data set in which the chosen answer counts up and the rejected one down.
fn data(folder: &Path) -> PathBuf {
    let path = folder.join("data.jsonl");
    let lines: Vec<String> = (0..24)
        .map(|i: i32| {
            let start = 20 + i;
            let example = Example {
                prompt_id: format!("p{i}"),
                prompt: vec![2, start, start, 4, 3],
                chosen: vec![start, start + 1, start + 2, 4],
                rejected: Some(vec![start, start - 1, start - 2, 4]),
            };
            serde_json::to_string(&example).unwrap()
        })
        .collect();
    write(&path, &lines.join("\n"));
    path
}

pub(super) fn write(path: &Path, text: &str) {
    files::write_atomic(path, |out| out.write_all(text.as_bytes())).unwrap();
}

pub(super) fn job(folder: &Path) -> Job {
    let base = saved(folder);
    Job {
        base_sha256: files::sha256(&base).unwrap(),
        base,
        data: data(folder),
        out: folder.to_owned(),
        lora: LoraShape { rank: 4, alpha: 8.0 },
        optimizer: Optimizer {
            learning_rate: 1e-2,
            epochs: 6,
            batch_pairs: 8,
            warmup_ratio: 0.1,
            ..testkit::job().optimizer
        },
        // Four of the 24: which ones follows from their ids.
        validation_share: 0.09,
        max_tokens: 64,
        context_tokens: 64,
        base_kind: BaseKind::F32,
        seed: 5,
        ..testkit::job()
    }
}

pub(super) fn run(job: &Job) -> Result<Vec<TrainerEvent>, Failure> {
    let events = RefCell::new(Vec::new());
    train::run(
        job,
        Device::Cpu,
        &|event| events.borrow_mut().push(event.clone()),
        &AtomicBool::new(false),
    )?;
    Ok(events.into_inner())
}

pub(super) fn steps_of(events: &[TrainerEvent]) -> Vec<Step> {
    let of = |event: &TrainerEvent| match event {
        TrainerEvent::Step(step) => Some(*step),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

pub(super) fn refusal(job: &Job) -> String {
    match run(job) {
        Err(Failure::BadData(error)) => format!("{error:#}"),
        other => panic!("not refused as bad data: {other:?}"),
    }
}

pub(super) fn logprobs(model: &Model, sequences: &[Sequence]) -> Vec<f32> {
    let batch = Batch::new(&Tree::new(sequences), Device::Cpu);
    Vec::try_from(model.logprobs(&batch)).unwrap()
}

pub(super) fn sequences() -> Vec<Sequence> {
    let of = |tokens: &[i32]| Sequence { tokens: tokens.to_vec(), from: 3 };
    vec![of(&[5, 9, 7, 20, 21, 22]), of(&[5, 9, 7, 20, 30]), of(&[5, 9, 7, 40, 41, 42, 43])]
}
