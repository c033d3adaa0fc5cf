//! What llama.cpp would answer with an abort, a hang or an empty machine is refused before it is
//! asked, on copies of the embedded model in which one thing is wrong.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::super::llama::{Llama, survey};
use super::*;
use files::gguf::{Gguf, Value, Writer};
use files::lora::header::Header;
use inference::backend::{Backend as _, Entry, SequenceId};
use testkit::split::split;

const NANO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../agents/nano/model.gguf");

/// What stands in the embedded model's file.
struct Parts {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, Vec<u64>, Vec<f32>)>,
}

impl Parts {
    fn nano() -> Self {
        let file = Gguf::open(Path::new(NANO)).unwrap();
        let tensors = file.tensors().iter();
        Self {
            metadata: file.entries().iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            tensors: tensors
                .map(|it| (it.name.clone(), it.shape.clone(), file.read_f32(it).unwrap()))
                .collect(),
        }
    }

    fn set(&mut self, key: &str, value: Value) {
        self.metadata.retain(|(known, _)| known != key);
        self.metadata.push((key.to_owned(), value));
    }

    fn array(&mut self, key: &str) -> &mut Vec<Value> {
        let entry = self.metadata.iter_mut().find(|(known, _)| known == key);
        match entry {
            Some((_, Value::Array(entries))) => entries,
            other => panic!("{key} is {other:?}"),
        }
    }

    fn write(self, path: &Path) {
        let mut writer = Writer::default();
        for (key, value) in self.metadata {
            writer.metadata(&key, value);
        }
        for (name, shape, values) in self.tensors {
            writer.tensor(&name, &shape, values);
        }
        writer.write(path).unwrap();
    }
}

fn config(model: &Path) -> EngineConfig {
    EngineConfig {
        context_tokens: 256,
        max_sequences: 2,
        batch_threads: Some(1),
        queue: 4,
        ..EngineConfig::small(model)
    }
}

fn reason(result: Result<Llama, EngineError>) -> String {
    match result {
        Err(EngineError::Load { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_damage_to_a_model_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.gguf");
    let text = |text: &str| Value::String(text.to_owned());
    Parts::nano().write(&path);
    Llama::load(&config(&path)).unwrap();
    let number = Value::Unsigned;
    for (key, value, word) in [
        ("llama.block_count", number(0), "block_count"),
        ("llama.block_count", number(513), "block_count"),
        ("llama.block_count", text("6"), "block_count"),
        ("llama.embedding_length", number(1 << 30), "embedding_length"),
        ("llama.context_length", number(0), "context_length"),
        ("llama.attention.head_count", number(0), "no attention heads"),
        ("llama.attention.head_count", number(5), "do not divide"),
        ("llama.attention.head_count_kv", number(0), "do not divide"),
        ("llama.attention.head_count_kv", number(3), "do not divide"),
        ("llama.attention.head_count_kv", Value::Array(vec![number(2)]), "1 entries"),
        ("llama.attention.key_length", number(0), "key_length"),
        ("llama.attention.value_length", number(8), "must be alike"),
        ("llama.attention.causal", Value::Bool(false), "not causal"),
        ("llama.attention.layer_norm_rms_epsilon", Value::Float(f64::NAN), "NaN"),
        ("llama.attention.layer_norm_rms_epsilon", Value::Float(-1.0), "epsilon"),
        ("llama.rope.dimension_count", number(7), "rotary"),
        ("llama.rope.dimension_count", number(4096), "rotary"),
        ("llama.rope.freq_base", Value::Float(f64::INFINITY), "freq_base"),
        ("llama.rope.scaling.type", text("sideways"), "scaling.type"),
        ("llama.expert_count", number(2), "experts"),
        ("llama.expert_count", number(5000), "expert_count"),
        ("llama.expert_used_count", number(2), "experts"),
        ("llama.nextn_predict_layers", number(100), "nextn"),
        ("general.type", text("adapter"), "not a model"),
        ("split.count", number(2), "first of 2 parts"),
        ("tokenizer.ggml.model", text("no_vocab"), "tokenizer"),
        ("tokenizer.ggml.merges", Value::Array(vec![number(1)]), "merges"),
        ("general.alignment", number(3), "alignment"),
        // Found by seed 1848 of 8000 damaged files (tests/e2e/hostile).
        ("general.alignment", number(1), "aligned to 1"),
    ] {
        let mut parts = Parts::nano();
        parts.set(key, value.clone());
        parts.write(&path);
        let reason = reason(Llama::load(&config(&path)));
        assert!(reason.contains(word), "{key} = {value:?}: {reason}");
    }
}

#[test]
fn each_damage_to_vocabulary_and_tensors_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.gguf");
    let refused = |word: &str, change: fn(&mut Parts)| {
        let mut parts = Parts::nano();
        change(&mut parts);
        parts.write(&path);
        let reason = reason(Llama::load(&config(&path)));
        assert!(reason.contains(word), "{word}: {reason}");
    };
    let tokens = "tokenizer.ggml.tokens";
    assert!(Parts::nano().array(tokens).len() > 256);
    refused("twice", |parts| {
        let tokens = parts.array("tokenizer.ggml.tokens");
        tokens[5] = tokens[6].clone();
    });
    refused("empty", |parts| parts.array("tokenizer.ggml.tokens").clear());
    refused("entries for", |parts| drop(parts.array("tokenizer.ggml.token_type").pop()));
    refused("token_embd.weight has shape", |parts| {
        parts.array("tokenizer.ggml.tokens").truncate(300);
    });
    refused("token_embd.weight is missing", |parts| {
        parts.tensors.retain(|(name, ..)| name != "token_embd.weight");
    });
    refused("64 bytes", |parts| parts.tensors[0].0 = "x".repeat(64));
    refused("appears twice", |parts| {
        let twice = parts.tensors[0].clone();
        parts.tensors.push(twice);
    });
    // Cut off in the last tensor's data: mapped, it would end the process when touched.
    Parts::nano().write(&path);
    let whole = std::fs::read(&path).unwrap();
    files::write_atomic(&path, |out| std::io::Write::write_all(out, &whole[..whole.len() - 64]))
        .unwrap();
    let reason = reason(Llama::load(&config(&path)));
    assert!(reason.contains("cut off"), "{reason}");
}

#[test]
fn memory_that_is_not_there_is_refused_with_numbers_and_advice() {
    let nano = Path::new(NANO);
    let large = EngineConfig { context_tokens: 1 << 30, ..config(nano) };
    let reason = reason(Llama::load(&large));
    for word in ["MiB", "weights", "KV cache", "compute", "logits"] {
        assert!(reason.contains(word), "{word}: {reason}");
    }
    // A control group may be tighter than the machine.
    let sources = ["MemAvailable", "memory.max of the control group"];
    assert!(sources.iter().any(|source| reason.contains(source)), "{reason}");
    let advice = reason.split("lower engine.context_tokens from 1073741824 to ").nth(1);
    let advised: u32 = advice.unwrap().parse().unwrap();
    let fits = |context_tokens| {
        survey(&EngineConfig { context_tokens, ..config(nano) }).unwrap().refusal.is_none()
    };
    // Other processes take and give memory meanwhile.
    assert!(fits(advised / 2) && !fits(advised.saturating_mul(2)), "{reason}");
}

/// Of a file that only says how large it is: its data is a hole.
#[test]
fn an_adapter_that_memory_has_no_room_for_is_refused() {
    const RANK: u64 = 1 << 31;
    let target = "blk.0.attn_q.weight";
    let base = Gguf::open(Path::new(NANO)).unwrap();
    let [n_in, n_out] = base.tensor(target).unwrap().shape[..] else { panic!("a matrix") };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("huge.gguf");
    let mut writer = Writer::default();
    Header::new("llama", 1.0).write(&mut writer);
    let floats = |n: u64| vec![0.0; usize::try_from(n).unwrap()];
    let (a, b) = (format!("{target}.lora_a"), format!("{target}.lora_b"));
    writer.tensor(&a, &[n_in, 1], floats(n_in));
    writer.tensor(&b, &[1, n_out], floats(n_out));
    writer.write(&path).unwrap();
    let mut llama = Llama::load(&config(Path::new(NANO))).unwrap();
    llama.load(Generation(1), &path).unwrap();
    llama.free(Generation(1));

    // Another rank, and where the second half begins then: [n_dims, sizes, type, offset] follow a name.
    let mut bytes = std::fs::read(&path).unwrap();
    let place = |bytes: &[u8], name: &str| {
        let found = bytes.windows(name.len()).position(|window| window == name.as_bytes());
        found.unwrap() + name.len() + 4
    };
    let first_size = 4 * n_in * RANK;
    for (at, number) in [
        (place(&bytes, &a) + 8, RANK),
        (place(&bytes, &b), RANK),
        (place(&bytes, &b) + 20, first_size),
    ] {
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    files::write_atomic(&path, |out| {
        std::io::Write::write_all(out, &bytes)?;
        let header = bytes.len() as u64;
        std::io::Write::flush(out)?;
        out.get_ref().set_len(header + first_size + 4 * RANK * n_out)
    })
    .unwrap();
    let refused = llama.load(Generation(1), &path);
    let Err(EngineError::Load { reason, .. }) = refused else { panic!("{refused:?}") };
    let needed = (first_size + 4 * RANK * n_out) >> 20;
    assert!(reason.contains(&format!("the adapter needs {needed} MiB")), "{reason}");
    assert!(reason.contains("learn.lora.rank"), "{reason}");
}

#[test]
fn every_kind_of_kv_cache_computes_nearly_the_same() {
    let mut first: Option<Vec<f32>> = None;
    for (kv_cache, tolerance) in
        [(KvCache::F32, 0.0), (KvCache::F16, 0.5), (KvCache::Q8_0, 2.0), (KvCache::Q4_0, 10.0)]
    {
        let mut llama = Llama::load(&EngineConfig { kv_cache, ..config(Path::new(NANO)) }).unwrap();
        let sequence = [SequenceId(0)];
        let entry = |position: usize| Entry {
            token: Token(i32::try_from(position).unwrap() + 40),
            position,
            sequences: &sequence,
            logits: position == 30,
        };
        llama.decode(&(0..31).map(entry).collect::<Vec<_>>(), None).unwrap();
        let logits = llama.logits(30).unwrap().to_vec();
        let copy = llama.save(SequenceId(0), 0..31).unwrap().len();
        let told = 31 * llama.cell_bytes();
        assert!((told..told + told / 10).contains(&copy), "{kv_cache:?}: {copy} of {told} bytes");
        let first = first.get_or_insert_with(|| logits.clone());
        let largest = first.iter().zip(&logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest <= tolerance, "{kv_cache:?}: {largest}");
        assert_eq!(largest > 0.0, kv_cache != KvCache::F32, "{kv_cache:?} is not in use");
    }
}

/// What llama.cpp said of a copy that it could not read is not why a later batch is refused.
#[test]
fn the_reason_of_a_failed_step_is_its_own() {
    let mut llama = Llama::load(&config(Path::new(NANO))).unwrap();
    let sequence = [SequenceId(0)];
    let entry =
        |position: usize| Entry { token: Token(40), position, sequences: &sequence, logits: true };
    assert_eq!(llama.decode(&[entry(0)], None).unwrap(), 1);
    let state = llama.save(SequenceId(0), 0..1).unwrap();
    let reason = |llama: &mut Llama| {
        // There is no token at position 1.
        let error = llama.decode(&[entry(2)], None).unwrap_err();
        error.to_string()
    };
    let expected = reason(&mut llama);
    assert!(expected.contains("position"), "it says what is wrong: {expected}");
    assert!(!llama.restore(SequenceId(1), 0..1, &state[..state.len() - 8]));
    assert_eq!(reason(&mut llama), expected);
    // Nor is what it says of a step that was broken off, or nothing at all.
    let batch: Vec<Entry<'_>> = (1..40).map(entry).collect();
    assert!(llama.decode(&batch, Some(&AtomicBool::new(true))).unwrap() < batch.len());
    llama.truncate(SequenceId(0), 1);
    assert_eq!(reason(&mut llama), expected);
}

/// The second file has half of the weights.
#[test]
fn of_a_model_in_several_files_all_count() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.gguf");
    Parts::nano().write(&whole);
    let first = split(&whole, 2);
    let memory = |path: &Path| {
        let survey = survey(&config(path)).unwrap();
        assert_eq!(survey.refusal, None);
        survey.memory.unwrap().host
    };
    let (split, whole) = (memory(&first), memory(&whole));
    assert_eq!((split.weights, split.total()), (whole.weights, whole.total()));
}

#[test]
fn a_survey_counts_what_is_in_the_file() {
    let survey = survey(&config(Path::new(NANO))).unwrap();
    assert_eq!((survey.architecture.as_str(), survey.refusal), ("llama", None));
    let size = std::fs::metadata(NANO).unwrap().len();
    let stored: u64 = survey.quantization.iter().map(|it| it.bytes).sum();
    assert!(stored < size && size < stored + 100_000, "{stored} of {size} bytes");
    let memory = survey.memory.unwrap();
    assert_eq!(memory.host.weights, stored);
    assert_eq!(memory.gpu, None);
    assert_eq!(memory.host.prefix_cache, memory.host.kv_cache / 2, "copies in host memory");
    let plain = config(Path::new(NANO));
    let twice = EngineConfig { kv_cache: KvCache::F32, ..plain };
    let twice = super::super::llama::survey(&twice).unwrap().memory.unwrap();
    assert_eq!(twice.host.kv_cache, 2 * memory.host.kv_cache);
}
