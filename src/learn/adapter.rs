//! Looks an adapter file over before llama.cpp sees it: llama.cpp aborts or misreads where this
//! says what is wrong. It must not load the file into the engine. Used by `run`.

use std::path::{Path, PathBuf};

use files::gguf::{Gguf, GgufError, Parts, TensorInfo, TensorKind};
use files::lora::header::{ALPHA_KEY, check_architecture, check_base, check_kind};

/// Why a file is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// It is no sound GGUF.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// It cannot be read.
    #[error("read the adapter {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// It is no adapter of the served model.
    #[error("the adapter {path} does not fit the served model: {reason}")]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

/// What the file has to fit.
#[derive(Clone, Copy, Debug)]
pub struct Base<'a> {
    /// The served GGUF.
    pub path: &'a Path,
    /// Its SHA-256.
    pub sha256: &'a str,
}

/// Reads the whole file, so call it where blocking is allowed. `sha256` is the file's own.
pub fn check(path: &Path, sha256: &str, base: Base<'_>) -> Result<(), AdapterError> {
    check_hash(path, sha256)?;
    let adapter = Gguf::open(path)?;
    let unfit = |reason| AdapterError::Unfit { path: path.to_owned(), reason };
    let parts = Parts::open(base.path)?;
    check_header(&adapter, parts.header(), base.sha256).map_err(unfit)?;
    check_pairs(&adapter, &parts).map_err(unfit)?;
    for tensor in adapter.tensors() {
        if !adapter.read_f32(tensor)?.iter().all(|value| value.is_finite()) {
            return Err(unfit(format!("{} has values that are not finite", tensor.name)));
        }
    }
    Ok(())
}

/// The file is the one that was recorded.
pub fn check_hash(path: &Path, sha256: &str) -> Result<(), AdapterError> {
    let found = files::sha256(path)
        .map_err(|source| AdapterError::Read { path: path.to_owned(), source })?;
    if found == sha256 {
        return Ok(());
    }
    let reason = format!("its SHA-256 is {found}, not {sha256}");
    Err(AdapterError::Unfit { path: path.to_owned(), reason })
}

fn check_header(adapter: &Gguf, base: &Gguf, base_sha256: &str) -> Result<(), String> {
    check_kind(adapter)?;
    let architecture = base.string("general.architecture");
    check_architecture(adapter, architecture.ok_or("the base says no general.architecture")?)?;
    check_base(adapter, base_sha256)?;
    match adapter.float(ALPHA_KEY) {
        Some(alpha) if alpha.is_finite() && 0.0 < alpha => Ok(()),
        alpha => Err(format!("{ALPHA_KEY} is {alpha:?}, not a number above 0")),
    }
}

fn check_pairs(adapter: &Gguf, base: &Parts) -> Result<(), String> {
    if adapter.tensors().is_empty() {
        return Err("it has no tensors".into());
    }
    for tensor in adapter.tensors() {
        if !matches!(tensor.kind, TensorKind::F32 | TensorKind::F16) {
            return Err(format!("{} is neither F32 nor F16", tensor.name));
        }
        let name = &tensor.name;
        let (stem, other) = match (name.strip_suffix(".lora_a"), name.strip_suffix(".lora_b")) {
            (Some(stem), _) => (stem, format!("{stem}.lora_b")),
            (_, Some(stem)) => (stem, format!("{stem}.lora_a")),
            (None, None) => return Err(format!("{name} ends neither in .lora_a nor in .lora_b")),
        };
        let other = adapter.tensor(&other).ok_or_else(|| format!("{other} is missing"))?;
        let target = base.tensor(stem);
        let target = target.ok_or_else(|| format!("the model has no tensor {stem}"))?;
        let (a, b) = if name.ends_with(".lora_a") { (tensor, other) } else { (other, tensor) };
        if !shapes_fit(a, b, target) {
            return Err(format!(
                "{stem} has shape {:?}, but lora_a has {:?} and lora_b {:?}; wanted [in, r] and \
                 [r, out]",
                target.shape, a.shape, b.shape
            ));
        }
    }
    Ok(())
}

/// `ne` order: base [in, out], a [in, r], b [r, out].
fn shapes_fit(a: &TensorInfo, b: &TensorInfo, base: &TensorInfo) -> bool {
    match (a.shape.as_slice(), b.shape.as_slice(), base.shape.as_slice()) {
        ([a_in, a_rank], [b_rank, b_out], [n_in, n_out]) => {
            a_in == n_in && b_out == n_out && a_rank == b_rank && 0 < *a_rank
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use files::gguf::{Value, Writer};
    use files::lora::header::{BASE_KEY, Header};

    const BASE_SHA256: &str = "abc";

    struct Files {
        folder: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut base = Writer::default();
            base.metadata("general.architecture", Value::String("llama".into()));
            base.tensor("blk.0.attn_q.weight", &[4, 6], vec![0.0; 24]);
            base.tensor("output_norm.weight", &[4], vec![0.0; 4]);
            base.write(&folder.path().join("base.gguf")).unwrap();
            Self { folder }
        }
        /// The reason for which an adapter is refused; `None`: it is taken.
        fn refusal(&self, change: impl FnOnce(&mut Parts)) -> Option<String> {
            let mut parts = Parts::sound();
            change(&mut parts);
            let mut writer = Writer::default();
            for (key, value) in parts.metadata {
                writer.metadata(key, value);
            }
            for (name, shape, values) in parts.tensors {
                writer.tensor(name, &shape, values);
            }
            let path = self.folder.path().join("adapter.gguf");
            writer.write(&path).unwrap();
            let sha256 = files::sha256(&path).unwrap();
            let base = Base { path: &self.folder.path().join("base.gguf"), sha256: BASE_SHA256 };
            check(&path, &sha256, base).err().map(|error| error.to_string())
        }
    }

    struct Parts {
        metadata: Vec<(&'static str, Value)>,
        tensors: Vec<(&'static str, Vec<u64>, Vec<f32>)>,
    }

    impl Parts {
        fn sound() -> Self {
            let header = Header { base_sha256: Some(BASE_SHA256), ..Header::new("llama", 16.0) };
            Self {
                metadata: header.entries(),
                tensors: vec![
                    ("blk.0.attn_q.weight.lora_a", vec![4, 2], vec![0.5; 8]),
                    ("blk.0.attn_q.weight.lora_b", vec![2, 6], vec![0.5; 12]),
                ],
            }
        }
        fn set(&mut self, key: &str, value: Value) {
            self.metadata.iter_mut().find(|(k, _)| *k == key).unwrap().1 = value;
        }
    }

    #[test]
    fn a_sound_adapter_is_taken() {
        assert_eq!(Files::new().refusal(|_| {}), None);
    }

    #[test]
    fn every_header_field_counts() {
        let files = Files::new();
        for (key, wrong) in [
            ("general.type", Value::String("model".into())),
            ("adapter.type", Value::String("aLoRA".into())),
            ("general.architecture", Value::String("qwen3".into())),
            (BASE_KEY, Value::String("another base".into())),
            (ALPHA_KEY, Value::Float(f64::NAN)),
            (ALPHA_KEY, Value::Float(0.0)),
        ] {
            let refusal = files.refusal(|parts| parts.set(key, wrong)).unwrap();
            assert!(refusal.contains(key), "{refusal}");
            let refusal = files.refusal(|parts| parts.metadata.retain(|(k, _)| *k != key)).unwrap();
            assert!(refusal.contains(key), "{refusal}");
        }
    }

    #[test]
    fn a_tensor_that_does_not_fit_is_refused() {
        let files = Files::new();
        let refused = |word: &str, change: fn(&mut Parts)| {
            let refusal = files.refusal(change).expect(word);
            assert!(refusal.contains(word), "{refusal}");
        };
        refused("no tensors", |parts| parts.tensors.clear());
        refused("lora_b is missing", |parts| drop(parts.tensors.pop()));
        refused("lora_a is missing", |parts| drop(parts.tensors.remove(0)));
        refused("neither in", |parts| parts.tensors[0].0 = "blk.0.attn_q.weight");
        refused("no tensor blk.9", |parts| {
            parts.tensors[0].0 = "blk.9.attn_q.weight.lora_a";
            parts.tensors[1].0 = "blk.9.attn_q.weight.lora_b";
        });
        refused("wanted [in, r]", |parts| parts.tensors[0].1 = vec![2, 4]);
        refused("wanted [in, r]", |parts| parts.tensors[0].1 = vec![8]);
        refused("wanted [in, r]", |parts| {
            parts.tensors[0].0 = "output_norm.weight.lora_a";
            parts.tensors[1].0 = "output_norm.weight.lora_b";
        });
        refused("not finite", |parts| parts.tensors[1].2[3] = f32::INFINITY);
        refused("not finite", |parts| parts.tensors[0].2[0] = f32::NAN);
    }

    #[test]
    fn a_file_that_was_changed_or_cut_is_refused() {
        let files = Files::new();
        assert_eq!(files.refusal(|_| {}), None);
        let path = files.folder.path().join("adapter.gguf");
        let bytes = std::fs::read(&path).unwrap();
        let base = Base { path: &files.folder.path().join("base.gguf"), sha256: BASE_SHA256 };
        let error = check(&path, "0000", base).unwrap_err();
        assert!(matches!(error, AdapterError::Unfit { .. }), "{error}");
        for length in [0, 3, 24, bytes.len() / 2, bytes.len() - 40] {
            let cut = &bytes[..length];
            files::write_atomic(&path, |file| std::io::Write::write_all(file, cut)).unwrap();
            let sha256 = files::sha256(&path).unwrap();
            check(&path, &sha256, base).expect_err("a cut file is not sound");
        }
    }
}
