//! The trainer against itself, on a tiny random-weight model: packing changes nothing, gradients are those of
//! the loss, a run learns, repeats and can be continued, bad input is refused by name. That its log-probs are
//! llama.cpp's is tested end to end, where llama.cpp is.

mod architectures;
mod hostile;
mod objectives;
mod resume;
mod rounds;

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nano::tokenizer::Tokenizer;
use protocol::{
    BaseKind, Compute, Device as Wanted, Example, Job, Lora as LoraShape, Objective, Optimizer,
    Step, TrainerEvent, VERSION,
};
use tch::{Device, Kind, Tensor};

use crate::arch::{Shape, Sizes};
use crate::batch::{Batch, Sequence, Tree};
use crate::model::Model;
use crate::train::{self, Failure};
use crate::weights::{self, Weights};

/// Held through a test: libtorch has one generator a process, and a draw of another test between
/// seed and use would change what is asserted. One thread, because its spinning threads wait for each
/// other when something else wants the processor: 52 s instead of 4 s.
fn alone() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    tch::set_num_threads(1);
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A random model with grouped heads.
fn tiny() -> Model {
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
    let place = (Kind::Float, Device::Cpu);
    let mut tensors = HashMap::new();
    tensors.insert("token_embd".to_owned(), Tensor::randn([sizes.n_vocab, 32], place) * 0.5);
    tensors.insert("output_norm".to_owned(), Tensor::rand([32], place) + 0.5);
    for layer in 0..sizes.n_layer {
        for (norm, n) in shape.norms() {
            tensors.insert(format!("blk.{layer}.{norm}"), Tensor::rand([n], place) + 0.5);
        }
        for (name, size) in shape.linears() {
            tensors.insert(format!("blk.{layer}.{name}"), Tensor::randn(size, place) * 0.2);
        }
    }
    let weights = Weights::held(tensors, Device::Cpu);
    Model { shape, weights, lora: None, device: Device::Cpu, compute: Kind::Float }
}

fn saved(folder: &Path) -> PathBuf {
    let path = folder.join("base.gguf");
    let tokenizer = Tokenizer::train(&[], 271);
    assert_eq!(tokenizer.n_vocab(), 288);
    weights::save(&tiny(), &tokenizer, "tiny", &path).unwrap();
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

fn write(path: &Path, text: &str) {
    use std::io::Write as _;
    files::write_atomic(path, |out| out.write_all(text.as_bytes())).unwrap();
}

fn job(folder: &Path) -> Job {
    let base = saved(folder);
    Job {
        version: VERSION,
        run: "run 1".into(),
        base_sha256: files::sha256(&base).unwrap(),
        base,
        start: None,
        data: data(folder),
        out: folder.to_owned(),
        reference_cache: None,
        objective: Objective::Dpo { beta: 0.1, nll: 1.0 },
        lora: LoraShape { rank: 4, alpha: 8.0 },
        optimizer: Optimizer {
            learning_rate: 1e-2,
            epochs: 6,
            batch_pairs: 8,
            warmup_ratio: 0.1,
            max_grad_norm: 1.0,
            weight_decay: 0.0,
        },
        validation_share: 0.2,
        validations: 4,
        checkpoint_s: 60.0,
        max_tokens: 64,
        context_tokens: 64,
        base_kind: BaseKind::F32,
        compute: Compute::F32,
        memory_limit_bytes: None,
        threads: 1,
        device: Wanted::Cpu,
        seed: 5,
    }
}

fn run(job: &Job) -> Result<Vec<TrainerEvent>, Failure> {
    let events = RefCell::new(Vec::new());
    train::run(
        job,
        Device::Cpu,
        &|event| events.borrow_mut().push(event.clone()),
        &AtomicBool::new(false),
    )?;
    Ok(events.into_inner())
}

fn steps_of(events: &[TrainerEvent]) -> Vec<Step> {
    let of = |event: &TrainerEvent| match event {
        TrainerEvent::Step(step) => Some(*step),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

fn refusal(job: &Job) -> String {
    match run(job) {
        Err(Failure::BadData(error)) => format!("{error:#}"),
        other => panic!("not refused as bad data: {other:?}"),
    }
}

fn logprobs(model: &Model, sequences: &[Sequence]) -> Vec<f32> {
    let batch = Batch::new(&[&Tree::new(sequences)], Device::Cpu);
    Vec::try_from(model.logprobs(&batch)).unwrap()
}

fn sequences() -> Vec<Sequence> {
    let of = |tokens: &[i32]| Sequence { tokens: tokens.to_vec(), from: 3 };
    vec![of(&[5, 9, 7, 20, 21, 22]), of(&[5, 9, 7, 20, 30]), of(&[5, 9, 7, 40, 41, 42, 43])]
}

#[test]
fn a_packed_tree_gives_the_log_probs_of_separate_sequences() {
    let _alone = alone();
    let model = tiny();
    let packed = logprobs(&model, &sequences());
    let separate: Vec<f32> =
        sequences().iter().flat_map(|one| logprobs(&model, std::slice::from_ref(one))).collect();
    assert_eq!(packed.len(), 9);
    for (a, b) in packed.iter().zip(&separate) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn padding_changes_nothing() {
    let _alone = alone();
    let model = tiny();
    let (long, short) = (Tree::new(&sequences()), Tree::new(&sequences()[1..2]));
    let both =
        Vec::<f32>::try_from(model.logprobs(&Batch::new(&[&long, &short], Device::Cpu))).unwrap();
    let alone = logprobs(&model, &sequences()[1..2]);
    for (a, b) in both[9..].iter().zip(&alone) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn a_run_learns_the_preference_and_says_so() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let events = run(&job(folder.path())).unwrap();
    let steps = steps_of(&events);
    let (first, last) = (steps[0], steps[steps.len() - 1]);
    assert!(first.rewards_margins.abs() < 1e-3, "step 1 starts at the reference: {first:?}");
    assert!(last.loss < 0.7 * first.loss && last.rewards_accuracies > 0.9, "{first:?} {last:?}");
    let Some(TrainerEvent::Done { adapter, sha256, best_loss, .. }) = events.last() else {
        panic!("{events:?}")
    };
    assert_eq!(files::sha256(adapter).unwrap(), *sha256);
    assert!(best_loss.is_finite() && *best_loss > 0.0);
}

#[test]
fn the_same_seed_gives_the_same_adapter() {
    let _alone = alone();
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hash = |folder: &Path| match run(&job(folder)).unwrap().pop() {
        Some(TrainerEvent::Done { sha256, .. }) => sha256,
        other => panic!("{other:?}"),
    };
    assert_eq!(hash(one.path()), hash(two.path()));
}

#[test]
fn sft_needs_no_rejected_answers() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path());
    job.objective = Objective::Sft;
    let lines = std::fs::read_to_string(&job.data).unwrap();
    let lines: Vec<String> = lines
        .lines()
        .map(|line| {
            let mut example: Example = serde_json::from_str(line).unwrap();
            example.rejected = None;
            serde_json::to_string(&example).unwrap()
        })
        .collect();
    write(&job.data, &lines.join("\n"));
    let events = run(&job).unwrap();
    assert!(matches!(events.last(), Some(TrainerEvent::Done { .. })));
    job.objective = Objective::DpoNorm { beta: 5.0, nll: 0.0 };
    assert!(refusal(&job).contains("line 1: the objective needs a rejected answer"));
}

#[test]
fn bad_input_is_refused_by_name() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let good = job(folder.path());
    assert!(
        refusal(&Job { base_sha256: "0".into(), ..good.clone() })
            .contains("not the file that is served")
    );
    assert!(refusal(&Job { version: 99, ..good.clone() }).contains("version"));
    assert!(refusal(&Job { max_tokens: 6, ..good.clone() }).contains("24 are longer"));
    let data = folder.path().join("bad.jsonl");
    let bad = Job { data: data.clone(), ..good.clone() };
    write(&data, "");
    assert!(refusal(&bad).contains("no example"));
    write(&data, "{\"prompt_id\":\"a\",\"prompt\":[1],\"chosen\":[999999],\"rejected\":[3]}");
    assert!(refusal(&bad).contains("line 1: a token is not in the vocabulary"));
    write(&data, "{\"prompt\":");
    assert!(refusal(&bad).contains("line 1"));
    let mut wild = good;
    wild.optimizer.learning_rate = f64::NAN;
    assert!(refusal(&wild).contains("not finite"));
    assert!(!folder.path().join("adapter.gguf").exists());
}

#[test]
fn a_stopped_run_writes_nothing() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let result = train::run(&job(folder.path()), Device::Cpu, &|_| (), &AtomicBool::new(true));
    assert!(matches!(result, Err(Failure::Stopped)));
    assert!(!folder.path().join("adapter.gguf").exists());
}
