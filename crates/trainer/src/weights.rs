//! The frozen weights by name: decoded into tensors once, or left in the file as they are stored
//! (quantized) and decoded whenever a layer is computed. [`check`] refuses by name what a file needs
//! beyond the forward pass, because it would be trained wrongly. Also writes a model that was trained
//! from scratch. Used by `model`; `check` by `survey`, the writing by `pretrain` and `export`.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Context as _, ensure};
use files::gguf::{Hyperparameters, Value, Writer};
use nano::corpus::CHAT_TEMPLATE;
use nano::tokenizer::Tokenizer;
use protocol::BaseKind;
use tch::{Device, Kind, Tensor};

use crate::arch::{RopeFactors, Shape};
use crate::base::{BaseFile, StoredTensor};

/// One tensor of the base.
#[derive(Debug)]
enum Weight {
    /// In memory, in f32 or bf16.
    Decoded(Tensor),
    /// In the file; decoded whenever it is used.
    Stored(StoredTensor),
}

/// The tensors of a model by GGUF name without `.weight`.
#[derive(Debug)]
pub(crate) struct Weights {
    tensors: HashMap<String, Weight>,
    /// Matrices that are multiplied by the same input, concatenated, by the first one's name.
    fused: HashMap<String, Tensor>,
    device: Device,
}

impl Weights {
    /// Takes tensors that are in memory already.
    pub(crate) fn decoded(tensors: HashMap<String, Tensor>, device: Device) -> Self {
        let tensors = tensors.into_iter().map(|(name, tensor)| (name, Weight::Decoded(tensor)));
        Self { tensors: tensors.collect(), fused: HashMap::new(), device }
    }
    /// Loads the tensors of a shape that [`check`] has given, or of its first blocks.
    pub(crate) fn load(
        file: &BaseFile,
        shape: &Shape,
        kind: BaseKind,
        device: Device,
    ) -> anyhow::Result<Self> {
        let mut tensors = HashMap::new();
        for (name, _) in expected(shape, file) {
            let weight = load(find(file, &name)?, kind, device)?;
            tensors.insert(name, weight);
        }
        Ok(Self { tensors, fused: HashMap::new(), device })
    }
    /// Whether there is such a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
    /// Whether what autograd keeps of a layer includes weights that were decoded or converted for
    /// it alone, when matrices are multiplied in this kind.
    pub(crate) fn are_transient(&self, compute: Kind) -> bool {
        self.tensors.values().any(|weight| match weight {
            Weight::Decoded(tensor) => tensor.dim() == 2 && tensor.kind() != compute,
            Weight::Stored(_) => true,
        })
    }
    /// Concatenates matrices that share their input, once for all passes.
    pub(crate) fn fuse(&mut self, names: &[String]) {
        let decoded = names.iter().map(|name| match self.weight(name) {
            Weight::Decoded(tensor) => Some(tensor),
            Weight::Stored(_) => None,
        });
        let Some(decoded) = decoded.collect::<Option<Vec<_>>>() else { return };
        let fused = Tensor::cat(&decoded, 0);
        let sizes: Vec<i64> = decoded.iter().map(|tensor| tensor.size()[0]).collect();
        for (name, part) in names.iter().zip(fused.split_with_sizes(sizes, 0)) {
            self.insert(name.clone(), part);
        }
        self.fused.insert(names[0].clone(), fused);
    }
    /// Matrices that share their input as one, `[out of all, in]`, and the rows of each.
    pub(crate) fn fused(&self, names: &[String], kind: Kind) -> (Tensor, Vec<i64>) {
        let rows = |name: &String| match self.weight(name) {
            Weight::Decoded(tensor) => tensor.size()[0],
            Weight::Stored(stored) => stored.shape[0],
        };
        let sizes = names.iter().map(rows).collect();
        if let Some(fused) = self.fused.get(&names[0]) {
            return (fused.to_kind(kind), sizes);
        }
        if let [name] = names {
            return (self.get_as(name, kind), sizes);
        }
        let parts: Vec<Tensor> = names.iter().map(|name| self.get_as(name, kind)).collect();
        (Tensor::cat(&parts, 0), sizes)
    }
    /// A tensor in f32.
    pub(crate) fn get(&self, name: &str) -> Tensor {
        self.get_as(name, Kind::Float)
    }
    fn get_as(&self, name: &str, kind: Kind) -> Tensor {
        match self.weight(name) {
            Weight::Decoded(tensor) => tensor.to_kind(kind),
            Weight::Stored(stored) => expect_read(stored.read(self.device)).to_kind(kind),
        }
    }
    /// A tensor in f32 if it is there.
    pub(crate) fn find(&self, name: &str) -> Option<Tensor> {
        self.has(name).then(|| self.get(name))
    }
    /// Rows `from..from + n` of a matrix.
    pub(crate) fn rows(&self, name: &str, from: i64, n: i64, kind: Kind) -> Tensor {
        match self.weight(name) {
            Weight::Decoded(tensor) => tensor.narrow(0, from, n).to_kind(kind),
            Weight::Stored(stored) => {
                let index = |n: i64| usize::try_from(n).expect("rows are counted from zero");
                expect_read(stored.read_rows(index(from), index(n), self.device)).to_kind(kind)
            }
        }
    }
    /// The rows with these indices, in f32: ids `[N]` to `[N, d]`.
    pub(crate) fn embedding(&self, name: &str, ids: &Tensor) -> Tensor {
        let stored = match self.weight(name) {
            Weight::Decoded(tensor) => {
                return Tensor::embedding(tensor, ids, -1, false, false).to_kind(Kind::Float);
            }
            Weight::Stored(stored) => stored,
        };
        // Each row is read once, however often its token occurs.
        let (unique, inverse, _) = ids.unique_dim(0, true, true, false);
        let unique = Vec::<i64>::try_from(unique).expect("ids are a vector of integers");
        let rows: Vec<Tensor> = unique
            .iter()
            .map(|&id| {
                let id = usize::try_from(id).expect("ids were checked against the vocabulary");
                expect_read(stored.read_rows(id, 1, self.device))
            })
            .collect();
        Tensor::cat(&rows, 0).index_select(0, &inverse)
    }
    /// All tensors that are in memory, by name.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.tensors.iter().filter_map(|(name, weight)| match weight {
            Weight::Decoded(tensor) => Some((name, tensor)),
            Weight::Stored(_) => None,
        })
    }
    /// Adds or replaces a tensor.
    pub(crate) fn insert(&mut self, name: String, tensor: Tensor) {
        self.tensors.insert(name, Weight::Decoded(tensor));
    }
    fn weight(&self, name: &str) -> &Weight {
        // `load` has checked that every tensor of the shape is there.
        &self.tensors[name]
    }
}

/// Panics where a tensor cannot be read: the file was whole when it was opened, and a forward pass
/// has no result to return, because tch's own calls panic too.
fn expect_read(read: anyhow::Result<Tensor>) -> Tensor {
    read.unwrap_or_else(|error| panic!("the base model cannot be read any more: {error:#}"))
}

/// Reads the shape of a file and refuses what the forward pass does not compute. Reads no values.
pub(crate) fn check(file: &BaseFile, served_context: u32) -> anyhow::Result<Shape> {
    let shape = Shape::read(file, served_context)?;
    let expected = expected(&shape, file);
    for tensor in file.tensors() {
        let name = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
        let is_known = expected.iter().any(|(known, _)| known == name) || is_unused(&shape, name);
        ensure!(is_known, "tensor {} is not supported by this trainer", tensor.name);
    }
    for (name, size) in expected {
        let stored = find(file, &name)?;
        ensure!(stored.shape == size, "tensor {name} is {:?}, expected {size:?}", stored.shape);
    }
    Ok(shape)
}

/// A tensor by its name without `.weight`.
fn find(file: &BaseFile, name: &str) -> anyhow::Result<StoredTensor> {
    let (weight, bias) = (file.find(&format!("{name}.weight"))?, file.find(name)?);
    weight.or(bias).with_context(|| format!("tensor {name}.weight is missing"))
}

/// Every tensor that the forward pass uses: name and size. Optional ones only where the file has them.
fn expected(shape: &Shape, file: &BaseFile) -> Vec<(String, Vec<i64>)> {
    let sizes = shape.sizes;
    let mut expected = vec![
        ("token_embd".to_owned(), vec![sizes.n_vocab, sizes.n_embd]),
        ("output_norm".to_owned(), vec![sizes.n_embd]),
    ];
    let mut optional = Vec::new();
    if shape.architecture.untied_head {
        optional.push(("output".to_owned(), vec![sizes.n_vocab, sizes.n_embd]));
    }
    if shape.architecture.head_bias {
        optional.push(("output.bias".to_owned(), vec![sizes.n_vocab]));
    }
    if let Some(factors) = shape.rope.factors {
        expected.push((factors.to_owned(), vec![shape.rope.n_rot / 2]));
    }
    for layer in 0..sizes.n_layer {
        let norms = shape.norms().into_iter().map(|(name, n)| (name, vec![n]));
        let linears = shape.linears().into_iter().map(|(name, size)| (name, size.to_vec()));
        expected.extend(norms.chain(linears).map(|(name, n)| (format!("blk.{layer}.{name}"), n)));
        let biases = shape.biases().into_iter();
        optional.extend(biases.map(|(name, n)| (format!("blk.{layer}.{name}.bias"), vec![n])));
    }
    let in_file: HashSet<&str> =
        file.tensors().map(|tensor| tensor.name.trim_end_matches(".weight")).collect();
    expected.extend(optional.into_iter().filter(|(name, _)| in_file.contains(name.as_str())));
    expected
}

/// Whether a tensor holds the rotary factors for contexts of another length than the server's.
fn is_unused(shape: &Shape, name: &str) -> bool {
    shape.architecture.rope_factors == RopeFactors::ByContext
        && ["rope_factors_long", "rope_factors_short"].contains(&name)
}

fn load(stored: StoredTensor, kind: BaseKind, device: Device) -> anyhow::Result<Weight> {
    stored.check_finite()?;
    let is_matrix = stored.shape.len() == 2;
    Ok(match kind {
        BaseKind::Quantized if is_matrix => Weight::Stored(stored),
        BaseKind::Bf16 if is_matrix => {
            Weight::Decoded(stored.read(device)?.to_kind(Kind::BFloat16))
        }
        _ => Weight::Decoded(stored.read(device)?),
    })
}

/// Writes a llama that was trained from scratch as an F32 GGUF with its tokenizer.
pub(crate) fn save(
    (shape, weights): (&Shape, &Weights),
    tokenizer: &Tokenizer,
    name: &str,
    path: &Path,
) -> anyhow::Result<()> {
    let sizes = shape.sizes;
    let count = i64::cast_unsigned;
    let hyperparameters = Hyperparameters {
        architecture: "llama",
        name,
        blocks: count(sizes.n_layer),
        context: count(sizes.n_ctx),
        width: count(sizes.n_embd),
        feed_forward: count(sizes.n_ff),
        heads: count(sizes.n_head),
        kv_heads: count(sizes.n_head_kv),
        rotated: count(sizes.head_dim),
        vocabulary: count(sizes.n_vocab),
        rms_epsilon: shape.rms_eps,
        rope_base: shape.rope.base,
    };
    let mut writer = Writer::default();
    hyperparameters.write(&mut writer);
    writer.metadata("general.type", Value::String("model".to_owned()));
    writer.metadata("general.file_type", Value::Unsigned(0));
    tokenizer.write_metadata(&mut writer, CHAT_TEMPLATE);
    let mut tensors: Vec<_> = weights.tensors().collect();
    tensors.sort_by_key(|(name, _)| *name);
    for (name, tensor) in tensors {
        add_tensor(&mut writer, &format!("{name}.weight"), tensor)?;
    }
    writer.write(path).with_context(|| format!("write {}", path.display()))
}

/// Adds a tensor to a GGUF. ggml's `ne` is torch's row-major shape reversed.
pub(crate) fn add_tensor(writer: &mut Writer, name: &str, tensor: &Tensor) -> anyhow::Result<()> {
    let shape: Vec<u64> = tensor.size().iter().rev().map(|&n| n.cast_unsigned()).collect();
    let values =
        Vec::<f32>::try_from(tensor.detach().to_device(Device::Cpu).contiguous().view([-1]))?;
    ensure!(
        values.iter().all(|v| v.is_finite()),
        "{name} has a value that is not finite: lower the learning rate"
    );
    writer.tensor(name, &shape, values);
    Ok(())
}
