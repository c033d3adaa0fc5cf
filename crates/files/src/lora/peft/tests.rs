//! Adapters through PEFT's format and back, and what is refused on the way. The order of rows is
//! checked against the formula of llama.cpp's converter, written as that has it: reshape, swap, reshape.

use super::*;
use crate::gguf::Writer;
use crate::lora::tests::noise;

const LAYERS: usize = 2;
const WIDTH: usize = 24;

struct Files {
    folder: tempfile::TempDir,
    base: Gguf,
}

impl Files {
    /// A base of three query heads to each of its two key heads, each eight wide.
    fn new(architecture: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("base.gguf");
        let mut writer = Writer::default();
        let text = |text: &str| crate::gguf::Value::String(text.into());
        writer.metadata("general.architecture", text(architecture));
        for (key, n) in [("head_count", 6), ("head_count_kv", 2)] {
            let key = format!("{architecture}.attention.{key}");
            writer.metadata(&key, crate::gguf::Value::Unsigned(n));
        }
        writer.write(&path).unwrap();
        Self { folder, base: Gguf::open(&path).unwrap() }
    }
    fn peft(&self) -> std::path::PathBuf {
        self.folder.path().join("peft")
    }
    fn write(&self, adapter: &Adapter) -> Result<(), LoraError> {
        drop(std::fs::remove_dir_all(self.peft()));
        std::fs::create_dir(self.peft()).unwrap();
        write(adapter, &self.base, Some("some/model"), &self.peft())
    }
    fn read(&self) -> Result<Adapter, LoraError> {
        read(&self.peft(), &self.base)
    }
    /// The reason for which a sound adapter is refused after a change of its config.
    fn refusal(&self, key: &str, value: Value) -> String {
        self.write(&adapter(self.base.string("general.architecture").unwrap())).unwrap();
        self.configure(key, value);
        self.read().unwrap_err().to_string()
    }
    fn configure(&self, key: &str, value: Value) {
        let path = self.peft().join(CONFIG);
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        let text = config.to_string();
        crate::disk::write_atomic(&path, |out| io::Write::write_all(out, text.as_bytes())).unwrap();
    }
    fn replace_weights(&self, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
        let views = tensors.iter().map(|(name, kind, shape, bytes)| {
            (*name, TensorView::new(*kind, shape.clone(), bytes).unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        let path = self.peft().join(WEIGHTS);
        crate::disk::write_atomic(&path, |out| io::Write::write_all(out, &bytes)).unwrap();
    }
}

/// Every linear layer of every block has a random pair.
fn adapter(architecture: &str) -> Adapter {
    let mut rng = fastrand::Rng::with_seed(5);
    let names = Names::of(architecture).unwrap();
    let mut pairs = BTreeMap::new();
    for layer in 0..LAYERS {
        for linear in names.linears {
            let n_out = match linear.gguf {
                "attn_q" => 48,
                "attn_k" | "attn_v" => 16,
                _ => 20,
            };
            let pair = Pair { a: noise(&mut rng, 4, WIDTH), b: noise(&mut rng, n_out, 4) };
            pairs.insert(format!("blk.{layer}.{}.weight", linear.gguf), pair);
        }
    }
    Adapter { architecture: architecture.into(), alpha: 8.0, base_sha256: Some("ab".into()), pairs }
}

#[test]
fn every_architecture_comes_back_equal_to_the_last_bit() {
    for names in &super::super::names::ALL {
        let files = Files::new(names.architecture);
        for alpha in [8.0, f64::from(0.3_f32)] {
            let adapter = Adapter { alpha, ..adapter(names.architecture) };
            files.write(&adapter).unwrap();
            assert_eq!(files.read().unwrap(), adapter);
        }
    }
}

/// `w.reshape(n_head, 2, n // n_head // 2, width).swapaxes(1, 2).reshape(w.shape)`.
fn converter_permutes(matrix: &Matrix, n_head: usize) -> Matrix {
    let half = matrix.n_rows() / n_head / 2;
    let mut values = Vec::new();
    for head in 0..n_head {
        for within in 0..half {
            for side in 0..2 {
                values.extend(matrix.row(head * 2 * half + side * half + within));
            }
        }
    }
    Matrix { width: matrix.width, values }
}

#[test]
fn rows_of_queries_and_keys_lie_as_the_converter_puts_them() {
    let files = Files::new("llama");
    let adapter = adapter("llama");
    files.write(&adapter).unwrap();
    let bytes = std::fs::read(files.peft().join(WEIGHTS)).unwrap();
    let weights = SafeTensors::deserialize(&bytes).unwrap();
    let stored = |name: &str| matrix(name, &weights.tensor(name).unwrap()).unwrap();
    for (tensor, module, n_head) in [("attn_q", "q_proj", 6), ("attn_k", "k_proj", 2)] {
        let name = format!("base_model.model.model.layers.1.self_attn.{module}.lora_B.weight");
        let pair = &adapter.pairs[&format!("blk.1.{tensor}.weight")];
        assert_eq!(converter_permutes(&stored(&name), n_head), pair.b);
        assert_ne!(stored(&name), pair.b, "the order differs, so the test shows something");
    }
    let v = stored("base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight");
    assert_eq!(v, adapter.pairs["blk.1.attn_v.weight"].b);
    let a = stored("base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight");
    assert_eq!(a, adapter.pairs["blk.1.attn_q.weight"].a);
    let name = "base_model.model.model.layers.0.mlp.gate_up_proj.lora_B.weight";
    weights.tensor(name).unwrap_err();
}

#[test]
fn the_config_is_one_that_peft_reads() {
    let files = Files::new("phi3");
    files.write(&adapter("phi3")).unwrap();
    let config = std::fs::read_to_string(files.peft().join(CONFIG)).unwrap();
    insta::assert_snapshot!(config);
}

#[test]
fn ranks_that_differ_are_a_pattern_there_and_back() {
    let files = Files::new("qwen2");
    let mut adapter = adapter("qwen2");
    let mut rng = fastrand::Rng::with_seed(6);
    let odd = Pair { a: noise(&mut rng, 2, WIDTH), b: noise(&mut rng, 20, 2) };
    adapter.pairs.insert("blk.1.ffn_up.weight".into(), odd);
    files.write(&adapter).unwrap();
    assert_eq!(files.read().unwrap(), adapter);
    files.configure("rank_pattern", json!({}));
    let refusal = files.read().unwrap_err().to_string();
    assert!(refusal.contains("layers.1.mlp.up_proj should have rank 4"), "{refusal}");
}

#[test]
fn another_scale_is_folded_into_alpha_or_into_b() {
    let files = Files::new("qwen2");
    let adapter = adapter("qwen2");
    files.write(&adapter).unwrap();
    files.configure("use_rslora", json!(true));
    let scaled = files.read().unwrap();
    assert!((scaled.alpha - 16.0).abs() < 1e-6, "8 / sqrt(4) = 16 / 4");
    assert_eq!(scaled.pairs, adapter.pairs);

    files.configure("use_rslora", json!(false));
    files.configure("alpha_pattern", json!({"mlp.down_proj": 2}));
    let mixed = files.read().unwrap();
    let product = |adapter: &Adapter, tensor: &str| {
        let pair = &adapter.pairs[tensor];
        adapter.scale(pair) * f64::from(pair.b.values[0]) * f64::from(pair.a.values[0])
    };
    for (tensor, factor) in [("blk.0.ffn_down.weight", 0.25), ("blk.0.attn_q.weight", 1.0)] {
        let (before, after) = (product(&adapter, tensor), product(&mixed, tensor));
        assert!((before * factor - after).abs() < 1e-7, "{tensor}: {before} {after}");
    }
}

#[test]
fn what_a_gguf_cannot_do_is_refused_by_name() {
    let files = Files::new("llama");
    for (key, value, word) in [
        ("use_dora", json!(true), "DoRA"),
        ("modules_to_save", json!(["lm_head"]), "modules_to_save is [\"lm_head\"]"),
        ("bias", json!("all"), "bias is \"all\""),
        ("lora_bias", json!(true), "lora_bias"),
        ("peft_type", json!("LOHA"), "LOHA"),
        ("fan_in_fan_out", json!(true), "fan_in_fan_out"),
        ("layer_replication", json!([[0, 2]]), "layer_replication"),
        ("trainable_token_indices", json!([1]), "trainable_token_indices"),
        ("alora_invocation_tokens", json!([1, 2]), "alora_invocation_tokens"),
        ("init_lora_weights", json!("pissa_niter_4"), "changes the base"),
        ("something_of_next_year", json!({"a": 1}), "something_of_next_year"),
        ("r", json!(0), "r is 0"),
        ("r", json!(8), "should have rank 8"),
        ("r", json!("many"), "is not understood"),
        ("lora_alpha", json!(-1), "lora_alpha -1"),
        ("rank_pattern", json!({"(": 4}), "pattern"),
    ] {
        let refusal = files.refusal(key, value);
        assert!(refusal.contains(word), "{key}: {refusal}");
    }
    // What says nothing of the numbers is not looked at.
    files.write(&adapter("llama")).unwrap();
    for (key, value) in [
        ("init_lora_weights", json!("gaussian")),
        ("target_modules", json!("all-linear")),
        ("peft_version", json!("0.99")),
        ("modules_to_save", json!([])),
    ] {
        files.configure(key, value);
    }
    files.read().unwrap();
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let files = Files::new("llama");
    files.write(&adapter("llama")).unwrap();
    let refused = |word: &str, name: &str, shape: Vec<usize>, kind: Dtype, byte: u8| {
        let size = kind.bitsize() / 8 * shape.iter().product::<usize>();
        files.replace_weights(&[(name, kind, shape, vec![byte; size])]);
        let refusal = files.read().unwrap_err().to_string();
        assert!(refusal.contains(word), "{refusal}");
    };
    let q = "base_model.model.model.layers.0.self_attn.q_proj";
    let a = &format!("{q}.lora_A.weight");
    refused("one half", a, vec![4, 24], Dtype::F32, 0);
    refused("not that of a matrix", a, vec![4], Dtype::F32, 0);
    refused("type I32", a, vec![4, 24], Dtype::I32, 0);
    refused("not finite", a, vec![4, 24], Dtype::F32, 0xFF);
    refused("DoRA", &format!("{q}.lora_magnitude_vector"), vec![4], Dtype::F32, 0);
    refused("trained bias", &format!("{q}.lora_B.bias"), vec![4], Dtype::F32, 0);
    refused("whole layers", "base_model.model.lm_head.weight", vec![4, 4], Dtype::F32, 0);
    refused(
        "embedding",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        vec![4, 4],
        Dtype::F32,
        0,
    );

    let pair = |module: &str, n_out: usize| {
        let zeros = |n: usize| vec![0; 4 * n];
        let [a, b] = ["A", "B"].map(|half| format!("base_model.model.{module}.lora_{half}.weight"));
        files.replace_weights(&[
            (&a, Dtype::F32, vec![4, 24], zeros(4 * 24)),
            (&b, Dtype::F32, vec![n_out, 4], zeros(n_out * 4)),
        ]);
        files.read().unwrap_err().to_string()
    };
    let refusal = pair("lm_head", 8);
    assert!(
        refusal.contains("it adapts lm_head") && refusal.contains("self_attn.q_proj"),
        "{refusal}"
    );
    let refusal = pair("model.layers.0.self_attn.q_proj", 10);
    assert!(refusal.contains("10 rows for 6 heads"), "{refusal}");
}

#[test]
fn damaged_files_are_errors() {
    let files = Files::new("llama");
    files.write(&adapter("llama")).unwrap();
    let path = files.peft().join(WEIGHTS);
    let whole = std::fs::read(&path).unwrap();
    for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        crate::disk::write_atomic(&path, |out| io::Write::write_all(out, &whole[..length]))
            .unwrap();
        files.read().unwrap_err();
    }
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(files.read(), Err(LoraError::Read { .. })));
    std::fs::rename(files.peft().join(CONFIG), files.peft().join("adapter_model.bin")).unwrap();
    assert!(!is_folder(&files.peft()));
}

#[test]
fn a_base_whose_names_are_unknown_is_refused() {
    let files = Files::new("mamba");
    let error = files.write(&Adapter { architecture: "mamba".into(), ..adapter("llama") });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("mamba") && error.contains("qwen3"), "{error}");
}
