//! A model file cut into several, byte for byte as llama-gguf-split writes them: all metadata in the
//! first, tensors in their order, and the numbers of the parts in the widths that llama.cpp wants.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use files::gguf::{Gguf, TensorInfo};
use files::write_atomic;

/// `gguf_type`.
const U16: u32 = 2;
const I32: u32 = 5;

/// Writes the parts beside the model and names the first.
pub fn split(model: &Path, n_parts: u16) -> PathBuf {
    let (file, bytes) = (Gguf::open(model).unwrap(), std::fs::read(model).unwrap());
    let first = &file.tensors()[0];
    let begin = encoded(&first.name);
    let end = bytes.windows(begin.len()).position(|window| window == begin).unwrap();
    // Behind magic, version, and the two counts.
    let metadata = &bytes[24..end];
    let n_metadata = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
    let n_tensors = file.tensors().len();
    let a_part = n_tensors.div_ceil(usize::from(n_parts));
    let stem = model.file_stem().unwrap().to_str().unwrap();
    let path =
        |part: u16| model.with_file_name(format!("{stem}-{:05}-of-{n_parts:05}.gguf", part + 1));
    for (part, tensors) in (0..n_parts).zip(file.tensors().chunks(a_part)) {
        let (metadata, n_metadata) = if part == 0 { (metadata, n_metadata) } else { (&[][..], 0) };
        let mut out = [b"GGUF".as_slice(), &3_u32.to_le_bytes()].concat();
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend((n_metadata + 3).to_le_bytes());
        out.extend(metadata);
        let n_tensors = i32::try_from(n_tensors).unwrap();
        for (key, kind, value) in [
            ("split.no", U16, part.to_le_bytes().as_slice()),
            ("split.count", U16, &n_parts.to_le_bytes()),
            ("split.tensors.count", I32, &n_tensors.to_le_bytes()),
        ] {
            out.extend([&encoded(key), kind.to_le_bytes().as_slice(), value].concat());
        }
        let mut data = Vec::new();
        for tensor in tensors {
            out.extend(info(tensor, data.len() as u64));
            let n_bytes = tensor.kind.n_bytes(tensor.n_values()).unwrap();
            data.extend(file.read_bytes(tensor, n_bytes).unwrap());
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        write_atomic(&path(part), |file| file.write_all(&out)).unwrap();
    }
    path(0)
}

fn encoded(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn info(TensorInfo { name, shape, kind, .. }: &TensorInfo, offset: u64) -> Vec<u8> {
    let n_dims = u32::try_from(shape.len()).unwrap();
    let mut out = encoded(name);
    out.extend(n_dims.to_le_bytes());
    for n in shape {
        out.extend(n.to_le_bytes());
    }
    out.extend(kind.id().to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}
