//! GGUF files: a total reader (hostile input gives an error, never a panic or a huge allocation) and
//! a writer. Format: ggml's `docs/gguf.md`, version 3, little-endian. It does not interpret what a model means.
//! Used by the trainer (weights, export), by `learn` (checks an adapter before llama.cpp sees it)
//! and by the nano model's making.

mod hyperparameters;
mod parts;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};

mod rewrite;
mod vocabulary;

pub use hyperparameters::Hyperparameters;
pub use parts::{Parts, model_files, model_sha256, model_size};
pub use rewrite::Rewrite;
pub use vocabulary::Vocabulary;

/// How every such file begins.
pub const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
/// Tensor data and each tensor in it start at multiples of this, unless the file says otherwise.
const ALIGNMENT: u64 = 32;
/// More than any real file has. These bound what a hostile header can make us allocate: the largest
/// vocabularies have 300 thousand entries and as many merges in 20 MB.
const MAX_ITEMS: u64 = 1 << 16;
const MAX_STRING: u64 = 1 << 24;
const MAX_ARRAY_ENTRIES: u64 = 1 << 23;
const MAX_HEADER: u64 = 1 << 28;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `uint8`, `uint16`, `uint32`, `uint64`.
    Unsigned(u64),
    /// `int8`, `int16`, `int32`, `int64`.
    Signed(i64),
    /// `float32`, `float64`.
    Float(f64),
    /// `bool`.
    Bool(bool),
    /// `string`; invalid UTF-8 is replaced.
    String(String),
    /// `array` of one of the above.
    Array(Vec<Self>),
}

/// How a tensor's numbers are stored (`enum ggml_type`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TensorKind {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32: one f16 scale, 32 signed bytes.
    Q8_0,
    /// Another ggml type: its number.
    Other(u32),
}

impl TensorKind {
    /// Number in the file.
    pub fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 8,
            Self::Bf16 => 30,
            Self::Other(id) => id,
        }
    }
    /// Of a number in a file.
    pub fn from_id(id: u32) -> Self {
        match id {
            0 => Self::F32,
            1 => Self::F16,
            8 => Self::Q8_0,
            30 => Self::Bf16,
            other => Self::Other(other),
        }
    }
    /// (values, bytes) of a block; `None` for types that hold no weights or that nobody knows.
    fn block(self) -> Option<(u64, u64)> {
        Some(match self.id() {
            0 => (1, 4),           // F32
            1 | 30 => (1, 2),      // F16, BF16
            2 | 20 => (32, 18),    // Q4_0, IQ4_NL
            3 => (32, 20),         // Q4_1
            6 => (32, 22),         // Q5_0
            7 => (32, 24),         // Q5_1
            8 => (32, 34),         // Q8_0
            10 => (256, 84),       // Q2_K
            11 | 21 => (256, 110), // Q3_K, IQ3_S
            12 => (256, 144),      // Q4_K
            13 => (256, 176),      // Q5_K
            14 => (256, 210),      // Q6_K
            15 => (256, 292),      // Q8_K
            16 | 35 => (256, 66),  // IQ2_XXS, TQ2_0
            17 => (256, 74),       // IQ2_XS
            18 => (256, 98),       // IQ3_XXS
            19 => (256, 50),       // IQ1_S
            22 => (256, 82),       // IQ2_S
            23 => (256, 136),      // IQ4_XS
            29 => (256, 56),       // IQ1_M
            34 => (256, 54),       // TQ1_0
            39 => (32, 17),        // MXFP4
            40 => (64, 36),        // NVFP4
            41 => (128, 18),       // Q1_0
            42 => (64, 18),        // Q2_0
            _ => return None,
        })
    }
    /// Bytes of so many values; `None` when they do not fill whole blocks of a known type.
    pub fn n_bytes(self, n_values: u64) -> Option<u64> {
        let (values, bytes) = self.block()?;
        if n_values.is_multiple_of(values) { (n_values / values).checked_mul(bytes) } else { None }
    }
}

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Sizes in ggml's `ne` order: fastest dimension first.
    pub shape: Vec<u64>,
    /// How its numbers are stored.
    pub kind: TensorKind,
    /// From the start of the tensor data.
    pub offset: u64,
}

impl TensorInfo {
    /// Number of values.
    pub fn n_values(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// The type of a metadata value as the file has it: `gguf_type`, and for an array its entries'.
/// llama.cpp aborts where it finds another width than it wants, which [`Value`] does not tell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StoredType {
    /// `gguf_type` of the value.
    pub value: u32,
    /// `gguf_type` of an array's entries.
    pub entries: Option<u32>,
}

impl StoredType {
    /// `uint16`.
    pub const U16: u32 = 2;
    /// `int32`.
    pub const I32: u32 = 5;
    /// `float32`.
    pub const F32: u32 = 6;
    /// `string`.
    pub const STRING: u32 = 8;
}

/// A file's header; tensor data is read on demand.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    metadata: BTreeMap<String, Value>,
    types: BTreeMap<String, StoredType>,
    /// Where each metadata entry lies in the file, in file order: [`Rewrite`] takes them as they are.
    spans: Vec<(String, Range<u64>)>,
    alignment: u64,
    tensors: Vec<TensorInfo>,
    data_start: u64,
    file_size: u64,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// It cannot be read.
    #[error("read {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It is not a sound GGUF.
    #[error("{path} is not a sound GGUF file: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which part.
        reason: String,
    },
    /// A tensor type that is not decoded here.
    #[error("{path}: tensor {tensor} has ggml type {kind}, which is not supported here")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its `ggml_type`.
        kind: u32,
    },
}

impl Gguf {
    /// Reads and checks the header. Every size in it is bounded before it is used.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let io_error = |source| GgufError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io_error)?;
        let file_size = file.metadata().map_err(io_error)?.len();
        let reader = BufReader::new(file);
        let mut header = Header { reader, position: 0, file_size, array_entries: 0 };
        header
            .parse()
            .map(|Parsed { metadata, types, spans, tensors, alignment, data_start }| Self {
                path: path.to_owned(),
                metadata,
                types,
                spans,
                alignment,
                tensors,
                data_start,
                file_size,
            })
            .map_err(|reason| GgufError::Malformed { path: path.to_owned(), reason })
    }
    /// How a metadata value is stored.
    pub fn stored_type(&self, key: &str) -> Option<StoredType> {
        self.types.get(key).copied()
    }
    /// A metadata array.
    pub fn array(&self, key: &str) -> Option<&[Value]> {
        match self.metadata.get(key)? {
            Value::Array(entries) => Some(entries),
            _ => None,
        }
    }
    /// Bytes from the first tensor's data to the end of the file; 0 when it ends before that.
    pub fn data_size(&self) -> u64 {
        self.file_size.saturating_sub(self.data_start)
    }
    /// Every tensor's data starts at a multiple of this.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }
    /// A metadata value.
    pub fn metadata(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }
    /// All metadata, by key.
    pub fn entries(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }
    /// A metadata string.
    pub fn string(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }
    /// A metadata number that is a count.
    pub fn unsigned(&self, key: &str) -> Option<u64> {
        match *self.metadata.get(key)? {
            Value::Unsigned(value) => Some(value),
            Value::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }
    /// A metadata number.
    pub fn float(&self, key: &str) -> Option<f64> {
        match *self.metadata.get(key)? {
            Value::Float(value) => Some(value),
            _ => None,
        }
    }
    /// All tensors in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Where a tensor's bytes begin in the file. All `n_bytes` of them are there.
    pub fn position(&self, tensor: &TensorInfo, n_bytes: u64) -> Result<u64, GgufError> {
        let start = self.data_start.checked_add(tensor.offset);
        match start.and_then(|at| at.checked_add(n_bytes)) {
            Some(end) if end <= self.file_size => Ok(end - n_bytes),
            _ => {
                Err(self
                    .malformed(format!("tensor {} ends behind the end of the file", tensor.name)))
            }
        }
    }
    /// The stored bytes of a tensor, `n_bytes` of them.
    pub fn read_bytes(&self, tensor: &TensorInfo, n_bytes: u64) -> Result<Vec<u8>, GgufError> {
        let start = self.position(tensor, n_bytes)?;
        let read = || {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.take(n_bytes).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes: Vec<u8> =
            read().map_err(|source| GgufError::Io { path: self.path.clone(), source })?;
        if bytes.len() as u64 == n_bytes {
            Ok(bytes)
        } else {
            Err(self.malformed(format!("tensor {} is cut off", tensor.name)))
        }
    }
    /// The values of a tensor of a type that is decoded here (F32, F16, BF16, `Q8_0`).
    pub fn read_f32(&self, tensor: &TensorInfo) -> Result<Vec<f32>, GgufError> {
        if matches!(tensor.kind, TensorKind::Other(_)) {
            return Err(GgufError::Unsupported {
                path: self.path.clone(),
                tensor: tensor.name.clone(),
                kind: tensor.kind.id(),
            });
        }
        let n_bytes = tensor.kind.n_bytes(tensor.n_values()).ok_or_else(|| {
            self.malformed(format!("tensor {} does not fill its last block", tensor.name))
        })?;
        let data = self.read_bytes(tensor, n_bytes)?;
        Ok(decode(tensor.kind, &data))
    }
    fn malformed(&self, reason: String) -> GgufError {
        GgufError::Malformed { path: self.path.clone(), reason }
    }
}

fn decode(kind: TensorKind, data: &[u8]) -> Vec<f32> {
    let pairs = || data.as_chunks::<2>().0.iter().copied();
    match kind {
        TensorKind::F32 => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        TensorKind::F16 => pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
        TensorKind::Bf16 => pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        TensorKind::Q8_0 => data
            .as_chunks::<34>()
            .0
            .iter()
            .flat_map(|block| {
                let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                block[2..].iter().map(move |&q| scale * f32::from(q.cast_signed()))
            })
            .collect(),
        TensorKind::Other(_) => Vec::new(),
    }
}

struct Parsed {
    metadata: BTreeMap<String, Value>,
    types: BTreeMap<String, StoredType>,
    spans: Vec<(String, Range<u64>)>,
    tensors: Vec<TensorInfo>,
    alignment: u64,
    data_start: u64,
}

struct Header<R> {
    reader: R,
    position: u64,
    file_size: u64,
    /// In all arrays so far.
    array_entries: u64,
}

impl<R: Read> Header<R> {
    fn parse(&mut self) -> Result<Parsed, String> {
        if &self.array::<4>()? != MAGIC {
            return Err("it does not begin with GGUF".into());
        }
        let version = self.u32()?;
        if !(2..=VERSION).contains(&version) {
            return Err(format!("version {version} (2 and 3 are known)"));
        }
        let n_tensors = self.count(MAX_ITEMS, "tensors")?;
        let n_metadata = self.count(MAX_ITEMS, "metadata entries")?;
        let mut metadata = BTreeMap::new();
        let mut types = BTreeMap::new();
        let mut spans = Vec::new();
        for _ in 0..n_metadata {
            let start = self.position;
            let key = self.string()?;
            if key.is_empty() {
                return Err("a metadata key is empty".into());
            }
            let (stored, value) = self.value()?;
            types.insert(key.clone(), stored);
            spans.push((key.clone(), start..self.position));
            if metadata.insert(key.clone(), value).is_some() {
                return Err(format!("metadata key {key} appears twice"));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT,
            // llama.cpp wants 32 bits here.
            Some(Value::Unsigned(value))
                if value.is_power_of_two()
                    && *value <= 1 << 16
                    && types["general.alignment"].value == 4 =>
            {
                *value
            }
            Some(_) => return Err("general.alignment is not a small power of two".into()),
        };
        let mut tensors: Vec<TensorInfo> = Vec::new();
        let mut names = std::collections::HashSet::new();
        for _ in 0..n_tensors {
            let tensor = self.tensor()?;
            if !names.insert(tensor.name.clone()) {
                return Err(format!("tensor {} appears twice", tensor.name));
            }
            tensors.push(tensor);
        }
        let data_start = self.position.next_multiple_of(alignment);
        Ok(Parsed { metadata, types, spans, tensors, alignment, data_start })
    }
    fn tensor(&mut self) -> Result<TensorInfo, String> {
        let name = self.string()?;
        let n_dims = self.u32()?;
        if !(1..=4).contains(&n_dims) {
            return Err(format!("tensor {name} has {n_dims} dimensions"));
        }
        let shape = (0..n_dims).map(|_| self.u64()).collect::<Result<Vec<_>, _>>()?;
        let n_values = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
        if n_values.is_none_or(|n| n == 0 || n > 1 << 40) {
            return Err(format!("tensor {name} has shape {shape:?}"));
        }
        let kind = TensorKind::from_id(self.u32()?);
        Ok(TensorInfo { name, shape, kind, offset: self.u64()? })
    }
    fn value(&mut self) -> Result<(StoredType, Value), String> {
        const ARRAY: u32 = 9;
        let value = self.u32()?;
        if value != ARRAY {
            return Ok((StoredType { value, entries: None }, self.scalar(value)?));
        }
        // The format knows arrays of arrays, llama.cpp does not.
        let entries = self.u32()?;
        let count = self.count(MAX_ARRAY_ENTRIES, "array entries")?;
        self.array_entries += count;
        if self.array_entries > MAX_ARRAY_ENTRIES {
            return Err(format!("more than {MAX_ARRAY_ENTRIES} array entries"));
        }
        let array = (0..count).map(|_| self.scalar(entries)).collect::<Result<_, _>>()?;
        Ok((StoredType { value, entries: Some(entries) }, Value::Array(array)))
    }
    fn scalar(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>()?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::String(self.string()?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("metadata type {other}")),
        })
    }
    fn string(&mut self) -> Result<String, String> {
        let length = self.count(MAX_STRING, "characters")?;
        if self.position + length > MAX_HEADER {
            return Err(format!("its header is larger than {} MiB", MAX_HEADER >> 20));
        }
        let mut bytes = Vec::new();
        let read =
            (&mut self.reader).take(length).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        if read as u64 != length {
            return Err("it ends inside the header".into());
        }
        self.position += length;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
    fn count(&mut self, limit: u64, what: &str) -> Result<u64, String> {
        let count = self.u64()?;
        // Every item takes at least one byte of what is left of the file.
        if count > limit || self.file_size.saturating_sub(self.position) < count {
            return Err(format!("{count} {what}"));
        }
        Ok(count)
    }
    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|_| "it ends inside the header".to_owned())?;
        self.position += N as u64;
        Ok(bytes)
    }
}

/// A file to be written: metadata and F32 tensors.
#[derive(Debug, Default)]
pub struct Writer {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, Vec<u64>, Vec<f32>)>,
}

impl Writer {
    /// Adds metadata. Unsigned is written as `uint32`, signed as `int32`, float as `float32`.
    pub fn metadata(&mut self, key: &str, value: Value) {
        self.metadata.push((key.to_owned(), value));
    }
    /// Adds a tensor; `shape` is in ggml's `ne` order and fits the number of values.
    pub fn tensor(&mut self, name: &str, shape: &[u64], values: Vec<f32>) {
        debug_assert_eq!(shape.iter().product::<u64>(), values.len() as u64);
        self.tensors.push((name.to_owned(), shape.to_owned(), values));
    }
    /// Writes the file in one piece (temporary file, fsync, rename).
    pub fn write(&self, path: &Path) -> io::Result<()> {
        crate::disk::write_atomic(path, |out| self.write_to(out))
    }
    fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let mut header = Vec::new();
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_string(&mut header, key);
            header.extend(type_id(value).to_le_bytes());
            put_value(&mut header, value)?;
        }
        let mut offset = 0u64;
        for (name, shape, values) in &self.tensors {
            put_string(&mut header, name);
            header.extend(u32::try_from(shape.len()).map_err(io::Error::other)?.to_le_bytes());
            for n in shape {
                header.extend(n.to_le_bytes());
            }
            header.extend(TensorKind::F32.id().to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset += (values.len() as u64 * 4).next_multiple_of(ALIGNMENT);
        }
        pad(&mut header);
        out.write_all(&header)?;
        for (_, _, values) in &self.tensors {
            let mut data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            pad(&mut data);
            out.write_all(&data)?;
        }
        Ok(())
    }
}

fn pad(bytes: &mut Vec<u8>) {
    let alignment = usize::try_from(ALIGNMENT).expect("32 fits");
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn type_id(value: &Value) -> u32 {
    match value {
        Value::Unsigned(_) => 4,
        Value::Signed(_) => 5,
        Value::Float(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
    }
}

fn put_value(out: &mut Vec<u8>, value: &Value) -> io::Result<()> {
    match value {
        Value::Unsigned(value) => {
            out.extend(u32::try_from(*value).map_err(io::Error::other)?.to_le_bytes());
        }
        Value::Signed(value) => {
            out.extend(i32::try_from(*value).map_err(io::Error::other)?.to_le_bytes());
        }
        #[expect(clippy::cast_possible_truncation, reason = "the format's float is 32 bits wide")]
        Value::Float(value) => out.extend((*value as f32).to_le_bytes()),
        Value::Bool(value) => out.push((*value).into()),
        Value::String(text) => put_string(out, text),
        Value::Array(values) => {
            out.extend(values.first().map_or(8, type_id).to_le_bytes());
            out.extend((values.len() as u64).to_le_bytes());
            for value in values {
                put_value(out, value)?;
            }
        }
    }
    Ok(())
}

/// How the tokens of a `gpt2` vocabulary spell a byte: itself where it is printable, else a character
/// from 256 on (`bytes_to_unicode` of GPT-2).
pub fn gpt2_letter(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&other| !printable(other)).count();
    char::from_u32(256 + u32::try_from(rank).expect("at most 255"))
        .expect("256 to 511 are characters")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(path: &Path) {
        let mut writer = Writer::default();
        writer.metadata("general.architecture", Value::String("llama".into()));
        writer.metadata("llama.block_count", Value::Unsigned(4));
        writer.metadata("llama.rope.freq_base", Value::Float(10000.0));
        writer.metadata(
            "tokens",
            Value::Array(vec![Value::String("a".into()), Value::String("b".into())]),
        );
        writer.tensor("one", &[3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, -6.0]);
        writer.tensor("two", &[1], vec![7.5]);
        writer.write(path).unwrap();
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        sample(&path);
        let file = Gguf::open(&path).unwrap();
        assert_eq!(file.string("general.architecture"), Some("llama"));
        assert_eq!(file.unsigned("llama.block_count"), Some(4));
        assert_eq!(file.float("llama.rope.freq_base"), Some(10000.0));
        let one = file.tensor("one").unwrap();
        assert_eq!(one.shape, [3, 2]);
        assert_eq!(file.read_f32(one).unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, -6.0]);
        assert_eq!(file.read_f32(file.tensor("two").unwrap()).unwrap(), [7.5]);
    }

    #[test]
    fn every_truncation_is_an_error_or_lacks_data() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        sample(&path);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() - 28 {
            let cut = folder.path().join("cut.gguf");
            crate::disk::write_atomic(&cut, |out| out.write_all(&whole[..length])).unwrap();
            let sound = Gguf::open(&cut).and_then(|file| {
                file.tensors().iter().map(|t| file.read_f32(t)).collect::<Result<Vec<_>, _>>()
            });
            assert!(sound.is_err(), "{length} of {} bytes were accepted", whole.len());
        }
    }

    #[test]
    fn q8_0_is_scale_times_integer() {
        let mut block = f16::from_f32(0.5).to_le_bytes().to_vec();
        block.extend((0..32).map(|i: i8| (i - 16).to_le_bytes()[0]));
        let values = decode(TensorKind::Q8_0, &block);
        assert_eq!(values.len(), 32);
        assert!((values[0] + 8.0).abs() < f32::EPSILON && (values[31] - 7.5).abs() < f32::EPSILON);
    }

    proptest! {
        #[test]
        fn a_damaged_header_never_panics(at in 0usize..200, byte in 0u8..) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.gguf");
            sample(&path);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[at] = byte;
            crate::disk::write_atomic(&path, |out| out.write_all(&bytes)).unwrap();
            if let Ok(file) = Gguf::open(&path) {
                for tensor in file.tensors() {
                    drop(file.read_f32(tensor));
                }
            }
        }
    }
}
