//! The frozen weights by name, held as numbers or left in the file as they are stored and decoded
//! when a layer is computed. What a file needs beyond the forward pass is refused by name, so that
//! nothing is trained wrongly. Used by `model`; `load` by `train` and `pretrain`, its two halves by
//! `survey`.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, ensure};
use files::gguf::{Value, Writer};
use nano::corpus::CHAT_TEMPLATE;
use nano::tokenizer::Tokenizer;
use protocol::BaseKind;
use tch::{Device, Kind, Tensor};

use crate::arch::Shape;
use crate::base::{BaseFile, Stored};
use crate::model::Model;

/// One tensor of the base.
#[derive(Debug)]
enum Weight {
    /// Decoded once, in f32 or bf16.
    Held(Tensor),
    /// Decoded whenever it is used.
    Stored(Stored),
}

/// The tensors of a model by GGUF name without `.weight`.
#[derive(Debug)]
pub(crate) struct Weights {
    tensors: HashMap<String, Weight>,
    /// Matrices that are multiplied by the same input, one above the other, by the first one's name.
    stacks: HashMap<String, Tensor>,
    device: Device,
}

impl Weights {
    /// Weights that are numbers already.
    pub(crate) fn held(tensors: HashMap<String, Tensor>, device: Device) -> Self {
        let tensors = tensors.into_iter().map(|(name, tensor)| (name, Weight::Held(tensor)));
        Self { tensors: tensors.collect(), stacks: HashMap::new(), device }
    }
    /// Whether there is such a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
    /// Whether what autograd keeps of a layer includes weights that were decoded or converted for
    /// it alone, when matrices are multiplied in this kind.
    pub(crate) fn are_transient(&self, compute: Kind) -> bool {
        self.tensors.values().any(|weight| match weight {
            Weight::Held(tensor) => tensor.dim() == 2 && tensor.kind() != compute,
            Weight::Stored(_) => true,
        })
    }
    /// Lays matrices that share their input one above the other, once for all passes.
    pub(crate) fn stack(&mut self, names: &[String]) {
        let held = names.iter().map(|name| match self.weight(name) {
            Weight::Held(tensor) => Some(tensor),
            Weight::Stored(_) => None,
        });
        let Some(held) = held.collect::<Option<Vec<_>>>() else { return };
        let stack = Tensor::cat(&held, 0);
        let sizes: Vec<i64> = held.iter().map(|tensor| tensor.size()[0]).collect();
        for (name, part) in names.iter().zip(stack.split_with_sizes(sizes, 0)) {
            self.insert(name.clone(), part);
        }
        self.stacks.insert(names[0].clone(), stack);
    }
    /// Matrices one above the other, and the rows of each.
    pub(crate) fn stacked(&self, names: &[String], kind: Kind) -> (Tensor, Vec<i64>) {
        let rows = |name: &String| match self.weight(name) {
            Weight::Held(tensor) => tensor.size()[0],
            Weight::Stored(stored) => stored.shape[0],
        };
        let sizes = names.iter().map(rows).collect();
        if let Some(stack) = self.stacks.get(&names[0]) {
            return (stack.to_kind(kind), sizes);
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
            Weight::Held(tensor) => tensor.to_kind(kind),
            Weight::Stored(stored) => readable(stored.read(self.device)).to_kind(kind),
        }
    }
    /// A tensor in f32 if it is there.
    pub(crate) fn find(&self, name: &str) -> Option<Tensor> {
        self.has(name).then(|| self.get(name))
    }
    /// Rows `from..from + n` of a matrix.
    pub(crate) fn rows(&self, name: &str, from: i64, n: i64, kind: Kind) -> Tensor {
        match self.weight(name) {
            Weight::Held(tensor) => tensor.narrow(0, from, n).to_kind(kind),
            Weight::Stored(stored) => {
                let index = |n: i64| usize::try_from(n).expect("rows are counted from zero");
                readable(stored.read_rows(index(from), index(n), self.device)).to_kind(kind)
            }
        }
    }
    /// The rows with these indices, in f32.
    pub(crate) fn look_up(&self, name: &str, ids: &Tensor) -> Tensor {
        let stored = match self.weight(name) {
            Weight::Held(tensor) => {
                return Tensor::embedding(tensor, ids, -1, false, false).to_kind(Kind::Float);
            }
            Weight::Stored(stored) => stored,
        };
        // Each row is read once, however often its token occurs.
        let (unique, places, _) = ids.unique_dim(0, true, true, false);
        let unique = Vec::<i64>::try_from(unique).expect("ids are a vector of integers");
        let rows: Vec<Tensor> = unique
            .iter()
            .map(|&id| {
                let id = usize::try_from(id).expect("ids were checked against the vocabulary");
                readable(stored.read_rows(id, 1, self.device))
            })
            .collect();
        Tensor::cat(&rows, 0).index_select(0, &places)
    }
    /// All tensors that are numbers, by name.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.tensors.iter().filter_map(|(name, weight)| match weight {
            Weight::Held(tensor) => Some((name, tensor)),
            Weight::Stored(_) => None,
        })
    }
    /// Adds or replaces a tensor.
    pub(crate) fn insert(&mut self, name: String, tensor: Tensor) {
        self.tensors.insert(name, Weight::Held(tensor));
    }
    fn weight(&self, name: &str) -> &Weight {
        // `load` has checked that every tensor of the shape is there.
        &self.tensors[name]
    }
}

/// The file was there and whole when it was opened; tch's own calls end in the same way.
fn readable(read: anyhow::Result<Tensor>) -> Tensor {
    read.unwrap_or_else(|error| panic!("the base model cannot be read any more: {error:#}"))
}

/// Loads a base for a server with so long a context.
pub(crate) fn load(
    path: &Path,
    kind: BaseKind,
    served_context: u32,
    device: Device,
) -> anyhow::Result<Model> {
    let file = BaseFile::open(path)?;
    check(&file, served_context)
        .and_then(|shape| hold_all(&file, shape, kind, device))
        .with_context(|| path.display().to_string())
}

/// What a file says of itself. Refuses what the forward pass does not compute; looks at no values.
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

/// The tensors of a shape that [`check`] has given, or of its first blocks.
pub(crate) fn hold_all(
    file: &BaseFile,
    shape: Shape,
    kind: BaseKind,
    device: Device,
) -> anyhow::Result<Model> {
    let mut tensors = HashMap::new();
    for (name, _) in expected(&shape, file) {
        let held = hold(find(file, &name)?, kind, device)?;
        tensors.insert(name, held);
    }
    let weights = Weights { tensors, stacks: HashMap::new(), device };
    Ok(Model { shape, weights, lora: None, device, compute: Kind::Float })
}

/// A tensor by its name without `.weight`.
fn find(file: &BaseFile, name: &str) -> anyhow::Result<Stored> {
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
    if shape.architecture.own_head {
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
    let in_file: std::collections::HashSet<&str> =
        file.tensors().map(|tensor| tensor.name.trim_end_matches(".weight")).collect();
    expected.extend(optional.into_iter().filter(|(name, _)| in_file.contains(name.as_str())));
    expected
}

/// The rotary factors that the server's context does not call for.
fn is_unused(shape: &Shape, name: &str) -> bool {
    shape.architecture.factors == crate::arch::Factors::ByContext
        && ["rope_factors_long", "rope_factors_short"].contains(&name)
}

fn hold(stored: Stored, kind: BaseKind, device: Device) -> anyhow::Result<Weight> {
    stored.check_finite()?;
    let is_matrix = stored.shape.len() == 2;
    Ok(match kind {
        BaseKind::Quantized if is_matrix => Weight::Stored(stored),
        BaseKind::Bf16 if is_matrix => Weight::Held(stored.read(device)?.to_kind(Kind::BFloat16)),
        _ => Weight::Held(stored.read(device)?),
    })
}

/// Writes a model trained from scratch as an F32 GGUF with its tokenizer.
pub(crate) fn save(
    model: &Model,
    tokenizer: &Tokenizer,
    name: &str,
    path: &Path,
) -> anyhow::Result<()> {
    let (shape, sizes) = (&model.shape, model.shape.sizes);
    let mut writer = Writer::default();
    let string = |text: &str| Value::String(text.to_owned());
    let count = |n: i64| Value::Unsigned(n.cast_unsigned());
    writer.metadata("general.architecture", string("llama"));
    writer.metadata("general.type", string("model"));
    writer.metadata("general.name", string(name));
    writer.metadata("general.file_type", Value::Unsigned(0));
    for (key, value) in [
        ("context_length", count(sizes.n_ctx)),
        ("embedding_length", count(sizes.n_embd)),
        ("block_count", count(sizes.n_layer)),
        ("feed_forward_length", count(sizes.n_ff)),
        ("attention.head_count", count(sizes.n_head)),
        ("attention.head_count_kv", count(sizes.n_head_kv)),
        ("attention.layer_norm_rms_epsilon", Value::Float(shape.rms_eps)),
        ("rope.dimension_count", count(sizes.head_dim)),
        ("rope.freq_base", Value::Float(shape.rope.base)),
        ("vocab_size", count(sizes.n_vocab)),
    ] {
        writer.metadata(&format!("llama.{key}"), value);
    }
    tokenizer.write_metadata(&mut writer, CHAT_TEMPLATE);
    let mut tensors: Vec<_> = model.weights.tensors().collect();
    tensors.sort_by_key(|(name, _)| *name);
    for (name, tensor) in tensors {
        add_tensor(&mut writer, &format!("{name}.weight"), tensor)?;
    }
    writer.write(path).with_context(|| format!("write {}", path.display()))
}

/// Adds a tensor; torch's row-major shape is ggml's `ne` reversed.
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
