//! The gate's parity on bases of few bits: what the real trainer has exported is accepted although the
//! server rounds the base, and a file that is not what was trained is refused.

use std::path::{Path, PathBuf};

use engine::{Engine, Generation, LogprobRequest, Priority, Token, Weights};
use files::gguf::{Gguf, Value, Writer};
use files::lora::header::ALPHA_KEY;
use llama_cpp_sys_2 as sys;
use protocol::Example;
use reflectd::learn::gate::Parity;
use testkit::random_model::{N_VOCAB, write};

use super::architectures::quantize;
use super::parity::{Trained, dequantize, examples, job, load, train};

const QUANTIZATIONS: [(&str, sys::llama_ftype); 3] = [
    ("Q4_1", sys::LLAMA_FTYPE_MOSTLY_Q4_1),
    ("Q4_K_M", sys::LLAMA_FTYPE_MOSTLY_Q4_K_M),
    ("Q2_K", sys::LLAMA_FTYPE_MOSTLY_Q2_K),
];

#[tokio::test]
async fn what_was_trained_is_accepted_and_what_was_not_is_refused_on_bases_of_few_bits() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("agents/nano/model.gguf");
    let nano = folder.path().join("nano.gguf");
    dequantize(&shipped, &nano);
    // Rows of 256 numbers, which nano has not: the types are the ones that their names say.
    let random = folder.path().join("random.gguf");
    write("llama", 1, &random);
    for (model, examples) in [(nano, examples(&shipped)), (random, random_examples())] {
        for (name, file_type) in QUANTIZATIONS {
            let base = model.with_extension(format!("{name}.gguf"));
            quantize(&model, &base, file_type);
            let mut job = job(&base, &examples, &base.with_extension("run"));
            job.optimizer.learning_rate = 3e-3;
            let trained = train(&job);
            let (engine, thread) = load(&base).await;
            for (wrong, adapter) in adapters(&trained.adapter) {
                let parity = parity(&engine, &trained, adapter).await;
                let what = format!("{} {wrong}: {parity:?}", base.display());
                println!("{what}");
                assert_eq!(parity.holds(), wrong == "right", "{what}");
            }
            drop(engine);
            thread.join().unwrap();
        }
    }
}

/// Random prompts and answers.
fn random_examples() -> Vec<Example> {
    let mut rng = fastrand::Rng::with_seed(9);
    let mut tokens = |n: usize| (0..n).map(|_| rng.i32(5..N_VOCAB)).collect::<Vec<_>>();
    let mut example = |id: usize| Example {
        prompt_id: id.to_string(),
        prompt: tokens(12),
        chosen: tokens(20),
        rejected: Some(tokens(9)),
    };
    (0..8).map(&mut example).collect()
}

/// The adapter as it was exported, and copies with one thing wrong.
fn adapters(right: &Path) -> [(&'static str, PathBuf); 4] {
    let file = Gguf::open(right).unwrap();
    let copy = |name: &str, alpha: f32, change: &dyn Fn(&str) -> Vec<f32>| {
        let mut writer = Writer::default();
        for (key, value) in file.entries() {
            let is_alpha = key == ALPHA_KEY;
            let scaled = Value::Float(f64::from(alpha) * file.float(key).unwrap_or_default());
            writer.metadata(key, if is_alpha { scaled } else { value.clone() });
        }
        for tensor in file.tensors() {
            writer.tensor(&tensor.name, &tensor.shape, change(&tensor.name));
        }
        let path = right.with_extension(format!("{name}.gguf"));
        writer.write(&path).unwrap();
        path
    };
    let values = |name: &str| file.read_f32(file.tensor(name).unwrap()).unwrap();
    let zeroed = |name: &str| match values(name) {
        b if name.ends_with("lora_b") => vec![0.0; b.len()],
        a => a,
    };
    [
        ("right", right.to_owned()),
        ("zeroed", copy("zeroed", 1.0, &zeroed)),
        ("halved", copy("halved", 0.5, &values)),
        ("transposed", copy("transposed", 1.0, &|name| transposed(&file, name))),
    ]
}

/// Of a square layer's change B A the numbers of its transpose, A^T B^T; of another one the rows of B
/// in reverse order.
fn transposed(file: &Gguf, name: &str) -> Vec<f32> {
    let (layer, half) = name.rsplit_once('.').unwrap();
    let read = |half: &str| {
        let info = file.tensor(&format!("{layer}.{half}")).unwrap();
        (usize::try_from(info.shape[0]).unwrap(), file.read_f32(info).unwrap())
    };
    let ((n_in, a), (rank, b)) = (read("lora_a"), read("lora_b"));
    let columns = |values: &[f32], width: usize| -> Vec<f32> {
        (0..width).flat_map(|at| values[at..].iter().step_by(width).copied()).collect()
    };
    match (b.len() / rank == n_in, half) {
        (true, "lora_a") => columns(&b, rank),
        (true, _) => columns(&a, n_in),
        (false, "lora_a") => a,
        (false, _) => b.chunks(rank).rev().flatten().copied().collect(),
    }
}

async fn parity(engine: &Engine, trained: &Trained, adapter: PathBuf) -> Parity {
    let candidate = Generation(1);
    engine.load_adapter(candidate, adapter).await.unwrap();
    let served = async |by: Generation| -> Vec<f32> {
        let sequences = trained.probe.sequences.iter();
        let ask = |tokens: &[i32]| tokens.iter().copied().map(Token).collect::<Vec<_>>();
        let request = LogprobRequest {
            sequences: sequences.map(|it| (ask(&it.tokens), it.from)).collect(),
            weights: Weights::Generation(by),
            priority: Priority::Gate,
        };
        engine.logprobs(request).await.unwrap().into_iter().flatten().collect()
    };
    let (started, served) = (served(Generation::BASE).await, served(candidate).await);
    engine.retire(candidate).await.unwrap();
    Parity::of_probe(&trained.probe, &started, &served)
}
