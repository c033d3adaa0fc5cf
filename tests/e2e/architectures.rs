//! Parity for each architecture that the trainer knows: a random model with all its features, as
//! F32 and quantized, with and without a random adapter on all linear layers. The adapter of a run
//! without a learning rate is the one that it starts from, and its probe holds the trainer's numbers.

use std::path::{Path, PathBuf};

use engine::{Generation, Weights};
use files::gguf::{Gguf, Writer, model_sha256, model_size};
use ggml::dequantize;
use llama_cpp_sys_2 as sys;
use protocol::exit::Exit;
use protocol::{BaseKind, Example, TrainerEvent};
use reflectd::learn::adapter;

use super::parity::{gap, job, load, run, untrained};
use testkit::random_model::{ARCHITECTURES, Linear, N_VOCAB, write, write_adapter};
use testkit::split::split;

/// Name, number in llama.cpp, and what may lie between trainer and server at most: its products
/// round what goes into them to 8 bits too, the trainer's do not.
const QUANTIZATIONS: [(&str, sys::llama_ftype, f64); 4] = [
    ("Q8_0", sys::LLAMA_FTYPE_MOSTLY_Q8_0, 0.3),
    ("Q4_K_M", sys::LLAMA_FTYPE_MOSTLY_Q4_K_M, 0.3),
    ("Q3_K_S", sys::LLAMA_FTYPE_MOSTLY_Q3_K_S, 0.3),
    ("IQ4_XS", sys::LLAMA_FTYPE_MOSTLY_IQ4_XS, 0.3),
];

/// Random prompts and answers, longer than the models' windows.
fn examples() -> Vec<Example> {
    let mut rng = fastrand::Rng::with_seed(9);
    let mut tokens = |n: usize| (0..n).map(|_| rng.i32(5..N_VOCAB)).collect::<Vec<_>>();
    let mut example = |id: usize| Example {
        prompt_id: id.to_string(),
        prompt: tokens(12 + id),
        chosen: tokens(20),
        rejected: Some(tokens(9)),
    };
    (0..3).map(&mut example).collect()
}

struct Model {
    path: PathBuf,
    linears: Vec<Linear>,
}

impl Model {
    fn new(architecture: &str, folder: &Path) -> Self {
        let path = folder.join("f32.gguf");
        let linears = write(architecture, 1, &path);
        Self { path, linears }
    }
    fn adapter(&self, architecture: &str, base: &Path) -> PathBuf {
        let path = base.with_extension("start.gguf");
        write_adapter(architecture, &files::sha256(base).unwrap(), &self.linears, 8, &path);
        path
    }
}

#[tokio::test]
async fn every_architecture_means_the_same_to_trainer_and_server() {
    let examples = examples();
    for architecture in ARCHITECTURES {
        let folder = tempfile::tempdir().unwrap();
        let model = Model::new(architecture, folder.path());
        let most = 2e-3;
        let (engine, thread) = load(&model.path).await;
        let out = |name: &str| folder.path().join(name);
        let plain = untrained(&model.path, &examples, None, BaseKind::F32, &out("plain"));
        let what = format!("{architecture} F32");
        gap(&what, &engine, Weights::Active, &plain).await.assert_within(most / 4.0, most);
        let start = model.adapter(architecture, &model.path);
        let adapted =
            untrained(&model.path, &examples, Some(start), BaseKind::Quantized, &out("adapted"));
        engine.load_adapter(Generation(1), adapted.adapter.clone()).await.unwrap();
        let weights = Weights::Generation(Generation(1));
        let what = format!("{architecture} F32 with adapter");
        gap(&what, &engine, weights, &adapted).await.assert_within(most / 4.0, most);
        let unlike = gap("without it", &engine, Weights::Active, &adapted).await;
        assert!(0.1 < unlike.max, "the adapter changes little, so the test shows little");
        drop(engine);
        thread.join().unwrap();

        for (name, number, most) in QUANTIZATIONS {
            let path = folder.path().join(format!("{name}.gguf"));
            quantize(&model.path, &path, number);
            let start = model.adapter(architecture, &path);
            let trained = untrained(&path, &examples, Some(start), BaseKind::Quantized, &out(name));
            let (engine, thread) = load(&path).await;
            engine.load_adapter(Generation(1), trained.adapter.clone()).await.unwrap();
            let what = format!("{architecture} {name} with adapter");
            gap(&what, &engine, weights, &trained).await.assert_within(most / 5.0, most);
            drop(engine);
            thread.join().unwrap();
        }
    }
}

/// What lies between trainer and server on a quantized file is how llama.cpp multiplies: on the
/// same numbers without their packing there is nothing between them.
#[tokio::test]
async fn a_quantized_base_is_its_decoded_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::new("qwen3", folder.path());
    let examples = examples();
    for (name, number, _) in QUANTIZATIONS {
        let packed = folder.path().join(format!("{name}.gguf"));
        quantize(&model.path, &packed, number);
        let decoded = folder.path().join(format!("{name}-f32.gguf"));
        decode(&packed, &decoded);
        let out = folder.path().join(name);
        let trained = untrained(&packed, &examples, None, BaseKind::Quantized, &out);
        let (engine, thread) = load(&decoded).await;
        let what = format!("{name} decoded");
        gap(&what, &engine, Weights::Active, &trained).await.assert_within(1e-4, 1e-3);
        drop(engine);
        thread.join().unwrap();
    }
}

/// All tensors as F32.
fn decode(from: &Path, to: &Path) {
    let source = Gguf::open(from).unwrap();
    let mut writer = Writer::default();
    source.entries().iter().for_each(|(key, value)| writer.metadata(key, value.clone()));
    let mut kinds = std::collections::BTreeSet::new();
    for info in source.tensors() {
        let n = info.n_values();
        let bytes = source.read_bytes(info, info.kind.n_bytes(n).unwrap()).unwrap();
        let mut values = vec![0.0; usize::try_from(n).unwrap()];
        dequantize(info.kind.id(), &bytes, &mut values).unwrap();
        writer.tensor(&info.name, &info.shape, values);
        kinds.insert(info.kind.id());
    }
    assert!(1 < kinds.len(), "nothing was quantized");
    writer.write(to).unwrap();
}

#[tokio::test]
async fn a_model_in_several_files_is_the_same_model_to_trainer_and_server() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::new("llama", folder.path());
    let quantized = folder.path().join("q4.gguf");
    quantize(&model.path, &quantized, sys::LLAMA_FTYPE_MOSTLY_Q4_K_M);
    let examples = examples();
    let out = |name: &str| folder.path().join(name);
    for (name, whole, most) in [("F32", &model.path, 2e-3), ("Q4_K_M", &quantized, 0.3)] {
        let first = split(whole, 3);
        let one = untrained(whole, &examples, None, BaseKind::F32, &out(&format!("{name} one")));
        let many = untrained(&first, &examples, None, BaseKind::Quantized, &out(name));
        assert_eq!(one.probe.sequences[0].tokens, many.probe.sequences[0].tokens);
        let sha256 = model_sha256(&first).unwrap();
        let adapter_sha256 = files::sha256(&many.adapter).unwrap();
        let base = adapter::Base { path: &first, sha256: &sha256 };
        adapter::check(&many.adapter, &adapter_sha256, base).unwrap();
        let of_one = adapter::check(&one.adapter, &files::sha256(&one.adapter).unwrap(), base);
        assert!(of_one.unwrap_err().to_string().contains("base_sha256"), "another identity");

        let (engine, thread) = load(&first).await;
        assert_eq!(engine.info().sha256, sha256);
        assert_eq!(engine.info().size_bytes, model_size(&first).unwrap());
        engine.load_adapter(Generation(1), many.adapter.clone()).await.unwrap();
        for weights in [Weights::Active, Weights::Generation(Generation(1))] {
            let what = format!("{name} in three files, {weights:?}");
            gap(&what, &engine, weights, &many).await.assert_within(most / 4.0, most);
            gap(&what, &engine, weights, &one).await.assert_within(most / 4.0, most);
        }
        drop(engine);
        thread.join().unwrap();
    }
}

#[test]
fn a_pair_that_does_not_fit_into_memory_may_be_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::new("gemma2", folder.path());
    let tokens = |n: usize| vec![7; n];
    let long = Example {
        prompt_id: "long".into(),
        prompt: tokens(2000),
        chosen: tokens(8),
        rejected: Some(tokens(9)),
    };
    let mut job = job(&model.path, &[long], &folder.path().join("out"));
    job.optimizer.epochs = 1;
    // Its capped attention scores alone are 64 MiB a time, and there are several.
    job.memory_limit_bytes = Some(300 << 20);
    let (status, last) = run(&job);
    assert_eq!(status.code(), Some(i32::from(Exit::TryAgain as u8)), "{last:?}");
    let TrainerEvent::Failed { message } = last else { panic!("{last:?}") };
    assert!(message.contains("one example does not fit into memory"), "{message}");
    assert!(!job.out.join("adapter.gguf").exists());
    job.memory_limit_bytes = Some(2 << 30);
    let (status, last) = run(&job);
    assert!(status.success(), "{last:?}");
}

/// llama.cpp's own quantizer.
#[expect(unsafe_code, reason = "the library offers Q8_0 alone, and these are its tests")]
pub(crate) fn quantize(from: &Path, to: &Path, ftype: sys::llama_ftype) {
    let path = |path: &Path| std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let [from, to] = [path(from), path(to)];
    // SAFETY: it only returns a struct.
    let mut params = unsafe { sys::llama_model_quantize_default_params() };
    params.ftype = ftype;
    params.nthread = 1;
    // SAFETY: paths and parameters live through the call.
    let code = unsafe { sys::llama_model_quantize(from.as_ptr(), to.as_ptr(), &raw const params) };
    assert_eq!(code, 0);
}
