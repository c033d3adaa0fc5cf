//! LoRA adapters as files: in memory, as llama.cpp's GGUF, as a PEFT folder. It must
//! not ask the daemon and not judge an adapter. Used by `reflectd export` (out) and by `learn` (in).

pub mod header;
pub mod names;
pub mod peft;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::gguf::{Gguf, GgufError, Writer};

use header::{ALPHA_KEY, BASE_KEY, Header, check_kind};

/// Why a file was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// It is no sound GGUF.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// It cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It cannot be written.
    #[error("write the files")]
    Write(#[from] io::Error),
    /// It has something that is not understood or does not fit.
    #[error("{path} cannot be used: {reason}")]
    Refused {
        /// The file or folder.
        path: PathBuf,
        /// What, by name.
        reason: String,
    },
}

impl LoraError {
    /// A file or folder that has something that is not understood or does not fit.
    pub fn refused(path: &Path, reason: impl Into<String>) -> Self {
        Self::Refused { path: path.to_owned(), reason: reason.into() }
    }
}

/// A matrix, row after row.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Values of a row.
    pub width: usize,
    /// All of them; whole rows.
    pub values: Vec<f32>,
}

impl Matrix {
    /// How many rows it has.
    pub fn n_rows(&self) -> usize {
        self.values.len() / self.width.max(1)
    }
    /// One of them.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..(row + 1) * self.width]
    }
    /// The same rows in another order: row `i` is the old row `from(i)`.
    fn reordered(&self, from: impl Fn(usize) -> usize) -> Self {
        let rows = (0..self.n_rows()).flat_map(|row| self.row(from(row)).iter().copied());
        Self { width: self.width, values: rows.collect() }
    }
}

/// What an adapter adds to one matrix: alpha / rank times B A.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// A, `[rank, in]`.
    pub a: Matrix,
    /// B, `[out, rank]`.
    pub b: Matrix,
}

impl Pair {
    /// The rank.
    pub fn rank(&self) -> usize {
        self.b.width
    }
}

/// An adapter in llama.cpp's layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// `general.architecture` of its base.
    pub architecture: String,
    /// Each pair is scaled by alpha / rank.
    pub alpha: f64,
    /// SHA-256 of the base that it was trained on, where the file says so.
    pub base_sha256: Option<String>,
    /// By tensor of the base (`blk.0.attn_q.weight`).
    pub pairs: BTreeMap<String, Pair>,
}

impl Adapter {
    /// Reads a GGUF adapter, also one that was made elsewhere.
    pub fn read(path: &Path) -> Result<Self, LoraError> {
        let file = Gguf::open(path)?;
        let refused = |reason: String| LoraError::refused(path, reason);
        check_kind(&file).map_err(refused)?;
        let architecture = file.string("general.architecture").unwrap_or_default().to_owned();
        let pairs = read_pairs(&file).map_err(|error| match error {
            PairError::Gguf(error) => error.into(),
            PairError::Refused(reason) => refused(reason),
        })?;
        // llama.cpp takes an alpha that is 0 or missing for "scale by 1".
        let alpha = match file.float(ALPHA_KEY) {
            Some(alpha) if alpha != 0.0 => alpha,
            _ => one_rank(&pairs).ok_or_else(|| refused(format!("{ALPHA_KEY} is missing")))? as f64,
        };
        if !alpha.is_finite() || alpha < 0.0 {
            return Err(refused(format!("{ALPHA_KEY} is {alpha}")));
        }
        let base_sha256 = file.string(BASE_KEY).map(str::to_owned);
        Ok(Self { architecture, alpha, base_sha256, pairs })
    }

    /// Writes it as the trainer writes its own.
    pub fn write(&self, name: &str, path: &Path) -> io::Result<()> {
        let mut writer = Writer::default();
        Header {
            architecture: &self.architecture,
            alpha: self.alpha,
            name: Some(name),
            base_sha256: self.base_sha256.as_deref(),
        }
        .write(&mut writer);
        for (name, pair) in &self.pairs {
            for (half, matrix) in [("lora_a", &pair.a), ("lora_b", &pair.b)] {
                let shape = [matrix.width as u64, matrix.n_rows() as u64];
                writer.tensor(&format!("{name}.{half}"), &shape, matrix.values.clone());
            }
        }
        writer.write(path)
    }

    /// What B A is multiplied by.
    pub fn scale(&self, pair: &Pair) -> f64 {
        self.alpha / pair.rank() as f64
    }

    /// The rank of all pairs, if it is one.
    pub fn rank(&self) -> Option<usize> {
        one_rank(&self.pairs)
    }
}

fn one_rank(pairs: &BTreeMap<String, Pair>) -> Option<usize> {
    let mut ranks = pairs.values().map(Pair::rank);
    let first = ranks.next()?;
    ranks.all(|rank| rank == first).then_some(first)
}

enum PairError {
    Gguf(GgufError),
    Refused(String),
}

fn read_pairs(file: &Gguf) -> Result<BTreeMap<String, Pair>, PairError> {
    let matrix = |name: &str| {
        let tensor = file
            .tensor(name)
            .ok_or_else(|| PairError::Refused(format!("tensor {name} is missing")))?;
        let [width, _] = tensor.shape[..] else {
            return Err(PairError::Refused(format!("tensor {name} is no matrix")));
        };
        let width = usize::try_from(width)
            .map_err(|_| PairError::Refused(format!("tensor {name} is too wide")))?;
        Ok(Matrix { width, values: file.read_f32(tensor).map_err(PairError::Gguf)? })
    };
    let mut pairs = BTreeMap::new();
    for tensor in file.tensors() {
        let name = &tensor.name;
        let Some(stem) = name.strip_suffix(".lora_a").or(name.strip_suffix(".lora_b")) else {
            return Err(PairError::Refused(format!("tensor {name} is no half of a LoRA pair")));
        };
        if !stem.starts_with("blk.") {
            return Err(PairError::Refused(format!(
                "it adapts {stem}; only the linear layers of blocks can be adapted here"
            )));
        }
        if !pairs.contains_key(stem) {
            let pair = Pair {
                a: matrix(&format!("{stem}.lora_a"))?,
                b: matrix(&format!("{stem}.lora_b"))?,
            };
            if pair.a.n_rows() != pair.b.width {
                return Err(PairError::Refused(format!("the ranks of {stem} differ")));
            }
            pairs.insert(stem.to_owned(), pair);
        }
    }
    if pairs.is_empty() {
        return Err(PairError::Refused("it has no tensors".to_owned()));
    }
    Ok(pairs)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Random numbers that no shorter type than f32 can store exactly.
    pub(crate) fn noise(rng: &mut fastrand::Rng, n_rows: usize, width: usize) -> Matrix {
        Matrix { width, values: (0..n_rows * width).map(|_| rng.f32() - 0.5).collect() }
    }

    fn adapter() -> Adapter {
        let mut rng = fastrand::Rng::with_seed(1);
        let pair = Pair { a: noise(&mut rng, 2, 5), b: noise(&mut rng, 3, 2) };
        Adapter {
            architecture: "qwen2".into(),
            alpha: 6.5,
            base_sha256: Some("abc".into()),
            pairs: [("blk.0.attn_q.weight".to_owned(), pair)].into(),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        for base_sha256 in [Some("abc".to_owned()), None] {
            let adapter = Adapter { base_sha256, ..adapter() };
            adapter.write("a name", &path).unwrap();
            assert_eq!(Adapter::read(&path).unwrap(), adapter);
        }
    }

    #[test]
    fn what_llama_cpp_would_not_apply_to_a_block_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        let refusal = |change: &dyn Fn(&mut Adapter)| {
            let mut adapter = adapter();
            change(&mut adapter);
            adapter.write("a name", &path).unwrap();
            Adapter::read(&path).unwrap_err().to_string()
        };
        let head = refusal(&|adapter| {
            let pair = adapter.pairs.pop_first().unwrap().1;
            adapter.pairs.insert("output.weight".into(), pair);
        });
        assert!(head.contains("output.weight"), "{head}");
        let ranks = refusal(&|adapter| {
            let pair = adapter.pairs.values_mut().next().unwrap();
            pair.b = Matrix { width: 1, values: vec![1.0; 3] };
        });
        assert!(ranks.contains("ranks of blk.0.attn_q.weight differ"), "{ranks}");
        assert!(refusal(&|adapter| adapter.pairs.clear()).contains("no tensors"));
        assert!(refusal(&|adapter| adapter.alpha = -1.0).contains("alpha is -1"));
    }

    #[test]
    fn an_alpha_of_zero_means_a_scale_of_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        Adapter { alpha: 0.0, ..adapter() }.write("a name", &path).unwrap();
        let read = Adapter::read(&path).unwrap();
        assert!((read.scale(&read.pairs["blk.0.attn_q.weight"]) - 1.0).abs() < f64::EPSILON);
    }
}
