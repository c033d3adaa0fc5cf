//! Each architecture by itself: packing, gradients in all ways of computing them, weights in all
//! ways of holding them, that no feature of a file is overlooked, and what is refused.

use std::path::Path;

use files::gguf::{Gguf, TensorInfo, Value, Writer};
use protocol::BaseKind;
use tch::{Device, Kind, Tensor};

use super::fixtures::{alone, logprobs};
use crate::backward;
use crate::batch::{Batch, Sequence, Tree};
use crate::lora::Lora;
use crate::model::Model;
use testkit::random_model::{ARCHITECTURES, CONTEXT, N_VOCAB, with_metadata, write as write_model};
use testkit::skipped;

/// Two answers to one prompt, longer than the window of the random models.
fn sequences() -> Vec<Sequence> {
    let mut rng = fastrand::Rng::with_seed(3);
    let mut tokens = |n: usize| (0..n).map(|_| rng.i32(0..N_VOCAB)).collect::<Vec<_>>();
    let (prompt, one, other) = (tokens(9), tokens(7), tokens(12));
    let sequence = |answer: &[i32]| Sequence { tokens: [&prompt, answer].concat(), from: 9 };
    vec![sequence(&one), sequence(&other)]
}

fn batch(device: Device) -> Batch {
    Batch::new(&Tree::new(&sequences()), device)
}

fn load(path: &Path, kind: BaseKind) -> Model {
    Model::load(path, kind, CONTEXT, Device::Cpu).unwrap()
}

/// A model with an adapter that changes the log-probs.
fn adapted(path: &Path, kind: BaseKind) -> Model {
    adapted_on(path, kind, Kind::Float, Device::Cpu)
}

fn adapted_on(path: &Path, kind: BaseKind, compute: Kind, device: Device) -> Model {
    let mut model = Model::load(path, kind, CONTEXT, device).unwrap();
    model.compute = compute;
    model.fuse_projections();
    // Drawn on the processor, so that they are the same everywhere.
    tch::manual_seed(4);
    let lora = Lora::new(&model.shape, 4, 8.0, Device::Cpu);
    let pairs = lora.pairs.into_iter().map(|(name, (a, b))| {
        let b = b.randn_like() * 0.05;
        let leaf = |tensor: Tensor| tensor.detach().to_device(device).set_requires_grad(true);
        (name, (leaf(a), leaf(b)))
    });
    model.lora = Some(Lora { pairs: pairs.collect(), rank: lora.rank, alpha: lora.alpha });
    model
}

fn parameters(model: &Model) -> Vec<Tensor> {
    model.lora.as_ref().unwrap().parameters()
}

/// Gradients of a loss that weighs every log-prob differently.
fn gradients(model: &Model, recompute: bool) -> Vec<Tensor> {
    gradients_of(model, &batch(model.device), recompute, weighted)
}

fn gradients_of(
    model: &Model,
    batch: &Batch,
    recompute: bool,
    loss: impl FnOnce(&Tensor) -> Tensor,
) -> Vec<Tensor> {
    parameters(model).iter_mut().for_each(Tensor::zero_grad);
    backward::gradients(model, batch, recompute, loss);
    let gradient = |parameter: &Tensor| parameter.grad().copy().to_device(Device::Cpu);
    parameters(model).iter().map(gradient).collect()
}

/// Log-probs, and all gradients as one vector.
fn computed(model: &Model) -> [Tensor; 2] {
    let gradients = gradients(model, false);
    let gradients: Vec<Tensor> = gradients.iter().map(|gradient| gradient.view([-1])).collect();
    let logprobs = model.logprobs(&batch(model.device)).to_device(Device::Cpu);
    [logprobs, Tensor::cat(&gradients, 0)]
}

/// Largest difference of the log-probs, and the sine of the angle between the gradients.
fn apart(one: &[Tensor; 2], other: &[Tensor; 2]) -> [f64; 2] {
    let cosine = Tensor::cosine_similarity(&one[1], &other[1], 0, 1e-12).double_value(&[]);
    [largest(&(&one[0] - &other[0])), (1.0 - cosine * cosine).max(0.0).sqrt()]
}

fn weighted(logprobs: &Tensor) -> Tensor {
    let n = logprobs.size()[0];
    let weights = Tensor::arange(n, (Kind::Float, logprobs.device())) * 0.1 - 0.5;
    (logprobs * weights).sum(Kind::Float)
}

fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}

/// What a pass may have: a system text longer than the window, prompts below it with one answer, two and
/// four, an answer that begins another one, the same answer twice, and a sequence that shares nothing.
fn pass() -> Vec<Sequence> {
    let mut rng = fastrand::Rng::with_seed(5);
    let mut tokens = |n: usize| (0..n).map(|_| rng.i32(0..N_VOCAB)).collect::<Vec<_>>();
    let system = tokens(14);
    let mut all = Vec::new();
    for (n_prompt, answers) in [(5, vec![3]), (1, vec![6, 2]), (9, vec![4, 11, 4, 5])] {
        let prompt = [system.clone(), tokens(n_prompt)].concat();
        for n in answers {
            all.push(Sequence { tokens: [prompt.clone(), tokens(n)].concat(), from: prompt.len() });
        }
    }
    let mut longer = all[0].clone();
    longer.tokens.extend(tokens(4));
    all.extend([longer, all[1].clone(), Sequence { tokens: tokens(28), from: 2 }]);
    all
}

/// In f32 the two ways add numbers up in another order, and that is all: over 20 models of each
/// architecture log-probs were at most 4e-6 apart, and gradients 1.3e-6 of the largest one.
#[test]
fn a_pass_gives_the_loss_and_gradients_of_its_sequences_one_by_one() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let sequences = pass();
    let tree = Tree::new(&sequences);
    let n_alone: usize = sequences.iter().map(|it| it.tokens.len() - 1).sum();
    assert!(2 * tree.size().tokens < n_alone, "{:?} of {n_alone}", tree.size());
    let batch = Batch::new(&tree, Device::Cpu);
    let padded = batch.buckets.iter().any(|it| 1 < it.size[0]) && 2 < batch.buckets.len();
    assert!(padded, "{:?}", batch.buckets.iter().map(|it| it.size).collect::<Vec<_>>());
    let weights = Tensor::randn(batch.targets.size(), (Kind::Float, Device::Cpu));
    for name in ARCHITECTURES {
        for seed in 1..=2 {
            let path = folder.path().join(name);
            write_model(name, seed, &path);
            let model = adapted(&path, BaseKind::F32);
            let weigh =
                |weights: Tensor| move |logprobs: &Tensor| (logprobs * weights).sum(Kind::Float);
            let mut first = 0;
            let mut apart: Vec<Tensor> =
                parameters(&model).iter().map(Tensor::zeros_like).collect();
            let mut apart_logprobs = Vec::new();
            for sequence in &sequences {
                let n = i64::try_from(sequence.tokens.len() - sequence.from).unwrap();
                let own = weigh(weights.narrow(0, first, n));
                first += n;
                let batch = Batch::new(&Tree::new([sequence]), Device::Cpu);
                apart_logprobs.push(model.logprobs(&batch));
                for (sum, one) in apart.iter_mut().zip(gradients_of(&model, &batch, false, own)) {
                    *sum += one;
                }
            }
            let apart_logprobs = Tensor::cat(&apart_logprobs, 0);
            let size = apart.iter().map(largest).fold(0.0, f64::max);
            for recompute in [false, true] {
                let whole = weigh(weights.shallow_clone());
                let together = gradients_of(&model, &batch, recompute, whole);
                let pairs = together.iter().zip(&apart);
                let gradient = pairs.map(|(a, b)| largest(&(a - b))).fold(0.0, f64::max) / size;
                let logprob = largest(&(model.logprobs(&batch) - &apart_logprobs));
                println!("{name} {seed}: log-probs {logprob:.1e}, gradients {gradient:.1e}");
                assert!(logprob < 2e-5 && gradient < 6e-6, "{name}: {logprob} {gradient}");
            }
        }
    }
}

#[test]
fn gradients_are_those_of_the_loss_however_they_are_computed() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for name in ARCHITECTURES {
        let path = folder.path().join(name);
        write_model(name, 1, &path);
        let model = adapted(&path, BaseKind::F32);
        let found = gradients(&model, false);
        let size = found.iter().map(largest).fold(0.0, f64::max);
        for (kind, recompute) in [(BaseKind::F32, true), (BaseKind::Quantized, true)] {
            let again = gradients(&adapted(&path, kind), recompute);
            for (a, b) in found.iter().zip(&again) {
                assert!(largest(&(a - b)) < 1e-5 * size, "{name}: {kind:?}");
            }
        }
        // Along a random direction in all parameters at once.
        let directions: Vec<Tensor> = found.iter().map(Tensor::randn_like).collect();
        let products = found.iter().zip(&directions).map(|(a, b)| (a * b).sum(Kind::Double));
        let expected: f64 = products.map(|product| product.double_value(&[])).sum();
        let loss_at = |step: f64| {
            let move_by = |step: f64| {
                for (mut parameter, direction) in parameters(&model).into_iter().zip(&directions) {
                    tch::no_grad(|| parameter += direction * step);
                }
            };
            move_by(step);
            let loss = weighted(&model.logprobs(&batch(Device::Cpu))).double_value(&[]);
            move_by(-step);
            loss
        };
        let difference = (loss_at(1e-3) - loss_at(-1e-3)) / 2e-3;
        assert!(
            (difference - expected).abs() < 2e-2 * expected.abs().max(1.0),
            "{name}: {difference} {expected}"
        );
    }
}

#[test]
fn sixteen_bits_round_but_lead_the_same_way() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for name in ARCHITECTURES {
        let path = folder.path().join(name);
        write_model(name, 1, &path);
        let exact = computed(&adapted(&path, BaseKind::F32));
        let rounded = adapted_on(&path, BaseKind::Bf16, Kind::BFloat16, Device::Cpu);
        let [logprobs, gradients] = apart(&exact, &computed(&rounded));
        println!("{name} in bf16: log-probs {logprobs:.4}, gradients {gradients:.4}");
        // A server that rounds activations to 8 bits is 0.13 away on such models.
        assert!(logprobs < 0.15 && gradients < 0.2, "{name}: {logprobs} {gradients}");
    }
}

#[test]
fn a_gpu_computes_what_the_processor_does() {
    let _alone = alone();
    let device = crate::cuda::device(protocol::Device::Auto).unwrap();
    if device == Device::Cpu {
        skipped("there is no GPU here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ARCHITECTURES {
        let path = folder.path().join(name);
        write_model(name, 1, &path);
        let here = computed(&adapted(&path, BaseKind::F32));
        for (kind, compute, bounds) in [
            (BaseKind::F32, Kind::Float, [1e-3, 1e-3]),
            (BaseKind::Quantized, Kind::Float, [1e-3, 1e-3]),
            (BaseKind::Bf16, Kind::BFloat16, [0.15, 0.2]),
        ] {
            let there = computed(&adapted_on(&path, kind, compute, device));
            let [logprobs, gradients] = apart(&here, &there);
            println!(
                "{name}, {kind:?} in {compute:?}: log-probs {logprobs:.2e}, gradients {gradients:.2e}"
            );
            assert!(logprobs < bounds[0] && gradients < bounds[1], "{name} {kind:?}");
        }
    }
}

/// A copy of a model file with its metadata or tensors changed.
fn changed(
    from: &Path,
    to: &Path,
    metadata: impl Fn(&str, &Value) -> Option<Value>,
    tensor: impl Fn(&TensorInfo, Vec<f32>) -> Option<Vec<f32>>,
) {
    let source = Gguf::open(from).unwrap();
    let mut writer = Writer::default();
    for (key, value) in source.entries() {
        if let Some(value) = metadata(key, value) {
            writer.metadata(key, value);
        }
    }
    for info in source.tensors() {
        if let Some(values) = tensor(info, source.read_f32(info).unwrap()) {
            writer.tensor(&info.name, &info.shape, values);
        }
    }
    writer.write(to).unwrap();
}

/// Parity shows that a feature is computed rightly only if it is strong enough to be seen.
#[test]
fn every_feature_of_the_random_models_changes_what_they_say() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("whole"), folder.path().join("changed"));
    // Metadata keys without the architecture, and parts of tensor names.
    let features: [(&str, &[&str], &[&str]); 6] = [
        ("llama", &["rope.scaling.factor"], &["rope_freqs", ".bias"]),
        (
            "qwen2",
            &["rope.freq_base"],
            &["attn_q.bias", "attn_k.bias", "attn_v.bias", "output.bias"],
        ),
        ("qwen3", &["rope.freq_base"], &["attn_q_norm", "attn_k_norm"]),
        (
            "gemma2",
            &["attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"],
            &["post_attention_norm", "post_ffw_norm"],
        ),
        (
            "gemma3",
            &[
                "attention.sliding_window",
                "attention.sliding_window_pattern",
                "rope.freq_base_swa",
                "rope.scaling.factor",
                "final_logit_softcapping",
            ],
            &["attn_q_norm", "post_ffw_norm"],
        ),
        (
            "phi3",
            &["rope.scaling.attn_factor", "rope.scaling.original_context_length"],
            &["rope_factors_long"],
        ),
    ];
    for (name, keys, tensors) in features {
        write_model(name, 1, &path);
        let whole = logprobs(&load(&path, BaseKind::F32), &sequences());
        let assert_matters = |what: &str| {
            let without = logprobs(&load(&other, BaseKind::F32), &sequences());
            let gap = whole.iter().zip(without).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(0.02 < gap, "{name} without {what} differs by {gap}");
        };
        for key in keys {
            let full = format!("{name}.{key}");
            changed(
                &path,
                &other,
                |key, value| (key != full).then(|| value.clone()),
                |_, values| Some(values),
            );
            assert_matters(key);
        }
        for part in tensors {
            changed(
                &path,
                &other,
                |_, value| Some(value.clone()),
                |info, values| {
                    let neutral = if part.ends_with("bias") { 0.0 } else { 1.0 };
                    let is_it = info.name.contains(part);
                    Some(if is_it { vec![neutral; values.len()] } else { values })
                },
            );
            assert_matters(part);
        }
    }
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("whole"), folder.path().join("changed"));
    let refusal = || {
        let error = Model::load(&other, BaseKind::F32, CONTEXT, Device::Cpu).unwrap_err();
        format!("{error:#}")
    };
    let text = |text: &str| Value::String(text.into());
    for (name, key, value, expected) in [
        ("llama", "general.architecture", text("mamba"), "architecture \"mamba\""),
        ("llama", "llama.rope.scaling.type", text("yarn"), "rotary scaling \"yarn\""),
        ("llama", "llama.rope.scaling.type", text("longrope"), "rotary scaling \"longrope\""),
        ("llama", "llama.rope.scaling.type", text("none"), "scaling \"none\""),
        ("llama", "llama.embedding_length", Value::Unsigned(0), "llama.embedding_length"),
        ("llama", "llama.block_count", Value::Unsigned(1 << 19), "524288 blocks"),
        ("llama", "llama.attention.head_count_kv", Value::Unsigned(3), "evenly"),
        ("llama", "llama.attention.value_length", Value::Unsigned(32), "for values"),
        (
            "llama",
            "llama.attention.head_count",
            Value::Array(vec![Value::Unsigned(4); 3]),
            "differs by layer",
        ),
        ("phi3", "phi3.rope.dimension_count", Value::Unsigned(46), "rope_factors_long"),
        (
            "gemma3",
            "gemma3.attention.sliding_window_pattern",
            Value::Array(vec![Value::Bool(true)]),
            "names 1 of 3",
        ),
    ] {
        write_model(name, 1, &path);
        with_metadata(&path, &other, key, &value);
        assert!(refusal().contains(expected), "{key}: {}", refusal());
    }
    write_model("llama", 1, &path);
    for (key, expected) in [
        ("expert_count", "a mixture of experts (llama.expert_count)"),
        ("nextn_predict_layers", "predicts several tokens"),
        ("rope.scaling.yarn_ext_factor", "yarn_ext_factor"),
    ] {
        with_metadata(&path, &other, &format!("llama.{key}"), &Value::Unsigned(2));
        assert!(refusal().contains(expected), "{key}: {}", refusal());
    }
    let keep = |_: &str, value: &Value| Some(value.clone());
    changed(&path, &other, keep, |info, values| {
        (info.name != "blk.1.ffn_up.weight").then_some(values)
    });
    assert!(refusal().contains("tensor blk.1.ffn_up.weight is missing"), "{}", refusal());
    changed(&path, &other, keep, |info, mut values| {
        if info.name == "blk.2.ffn_up.weight" {
            values[70_000] = f32::NAN;
        }
        Some(values)
    });
    assert!(
        refusal().contains("tensor blk.2.ffn_up.weight has a value that is not finite"),
        "{}",
        refusal()
    );
}
