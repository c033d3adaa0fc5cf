//! What is looked at in a model file before llama.cpp reads it, because llama.cpp answers it with
//! an abort, a crash or an endless loop. It is not complete and need not be: an unknown file is
//! probed in a child process besides (`engine/probe.rs`). Pure but for ggml's table of types.
//! Used by `llama.rs`, `files` and `inspect`.

use std::collections::HashSet;

use llama_cpp_sys_2 as sys;

use super::shape::Shape;
use files::gguf::{Gguf, Parts, StoredType, TensorInfo, Value};

/// Integer and f64 tensors: llama.cpp loads them and then crashes at the first step.
const NOT_WEIGHTS: [u32; 5] = [
    sys::GGML_TYPE_I8,
    sys::GGML_TYPE_I16,
    sys::GGML_TYPE_I32,
    sys::GGML_TYPE_I64,
    sys::GGML_TYPE_F64,
];
/// `GGML_MAX_NAME` with its final zero.
const MAX_NAME: usize = 63;
/// ggml's `TENSOR_ALIGNMENT`.
const TENSOR_ALIGNMENT: u64 = 32;
/// Tokenizers of models that generate text and whose tokenization cannot end the process.
const TOKENIZERS: [&str; 7] =
    ["gpt2", "llama", "gemma4", "t5", "plamo2", "hybriddna", "whitespace"];

/// Refuses what would end the process; says what the model's dimensions are.
pub(super) fn check_model(parts: &Parts) -> Result<Shape, String> {
    let header = parts.header();
    if let Some(kind) = header.string("general.type").filter(|kind| *kind != "model") {
        return Err(format!("it is of type {kind:?}, not a model"));
    }
    let shape = Shape::read(header)?;
    let n_vocab = check_vocabulary(header)?;
    for file in parts.files() {
        check_split(file).and_then(|()| check_data(file)).map_err(|fault| of_part(file, fault))?;
    }
    for tensor in parts.tensors() {
        check_weights(tensor)?;
    }
    let wanted = [shape.embedding, n_vocab];
    for name in ["token_embd.weight", "output.weight"] {
        match parts.tensor(name) {
            Some(tensor) if tensor.shape != wanted => {
                let found = &tensor.shape;
                return Err(format!("{name} has shape {found:?}, but {wanted:?} is needed"));
            }
            None if name == "token_embd.weight" => return Err(format!("{name} is missing")),
            Some(_) | None => {}
        }
    }
    Ok(shape)
}

/// What llama.cpp reads of a model in several files, which it aborts on in other widths.
fn check_split(header: &Gguf) -> Result<(), String> {
    for (key, wanted) in [
        ("split.no", StoredType::U16),
        ("split.count", StoredType::U16),
        ("split.tensors.count", StoredType::I32),
    ] {
        if header.stored_type(key).is_some_and(|stored| stored.value != wanted) {
            return Err(format!("{key} is not stored as llama-gguf-split stores it"));
        }
    }
    Ok(())
}

/// A fault of one file of several, with its name.
fn of_part(file: &Gguf, fault: String) -> String {
    if file.metadata("split.count").is_none() {
        return fault;
    }
    let name = file.path().file_name().unwrap_or_default().to_string_lossy();
    format!("{name}: {fault}")
}

fn check_weights(tensor: &TensorInfo) -> Result<(), String> {
    let TensorInfo { name, shape, kind, .. } = tensor;
    if NOT_WEIGHTS.contains(&kind.id()) {
        return Err(format!("tensor {name} has ggml type {}", kind.id()));
    }
    // Norms and biases: the kernels that add and multiply by a row take no other type, and abort.
    if shape.len() == 1 && kind.id() != sys::GGML_TYPE_F32 {
        return Err(format!("tensor {name} has ggml type {}; rows must be F32", kind.id()));
    }
    Ok(())
}

/// Bytes of a tensor's data.
pub(super) fn tensor_bytes(tensor: &TensorInfo) -> Result<u64, String> {
    let TensorInfo { name, shape, kind, .. } = tensor;
    if kind.id() >= sys::GGML_TYPE_COUNT {
        return Err(format!("tensor {name} has the unknown ggml type {}", kind.id()));
    }
    // SAFETY: the type is below the number of types; both read a static table.
    let (block, bytes) =
        unsafe { (sys::ggml_blck_size(kind.id()), sys::ggml_type_size(kind.id())) };
    // Types that ggml has given up have no size.
    let block = u64::try_from(block).ok().filter(|&block| 0 < block && 0 < bytes);
    let block =
        block.ok_or_else(|| format!("tensor {name} has the retired ggml type {}", kind.id()))?;
    if !shape.first().is_some_and(|row| row.is_multiple_of(block)) {
        return Err(format!("tensor {name} has rows that are not whole blocks of {block} values"));
    }
    (tensor.n_values() / block)
        .checked_mul(bytes as u64)
        .ok_or_else(|| format!("tensor {name} is larger than any file"))
}

/// Every tensor lies behind the one before it and inside the file: a file that was cut off would
/// end the process at the first touch of a page that is not there.
pub(super) fn check_data(header: &Gguf) -> Result<(), String> {
    let mut end = 0_u64;
    // ggml asserts it of memory that it is given, and the file is mapped.
    if header.alignment() < TENSOR_ALIGNMENT {
        return Err(format!("its tensors are aligned to {} bytes", header.alignment()));
    }
    for tensor in header.tensors() {
        let name = &tensor.name;
        if name.len() > MAX_NAME {
            return Err(format!("a tensor has a name of {} bytes", name.len()));
        }
        let bytes = tensor_bytes(tensor)?;
        if tensor.offset != end {
            return Err(format!("tensor {name} begins at {}, not at {end}", tensor.offset));
        }
        let data_end = end.checked_add(bytes).filter(|&end| end <= header.data_size());
        let data_end = data_end.ok_or_else(|| {
            format!("tensor {name} ends behind the end of the file, which is cut off")
        })?;
        end = data_end.next_multiple_of(header.alignment());
    }
    Ok(())
}

/// The number of its tokens.
fn check_vocabulary(header: &Gguf) -> Result<u64, String> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let model = header.string(&key("model")).unwrap_or_default();
    if !TOKENIZERS.contains(&model) {
        let model: String = model.chars().take(40).collect();
        return Err(format!(
            "its tokenizer {model:?} is not served; {} are",
            TOKENIZERS.join(", ")
        ));
    }
    let tokens = array_of(header, &key("tokens"), &[StoredType::STRING])?;
    let tokens = tokens.ok_or("it has no vocabulary")?;
    let texts = || tokens.iter().map(text);
    if tokens.is_empty() {
        return Err("its vocabulary is empty".into());
    }
    let mut known = HashSet::new();
    // Empty ones get a name of their own from llama.cpp, and what is no UTF-8 looks alike here.
    let is_read = |text: &&str| !text.is_empty() && !text.contains('\u{FFFD}');
    if let Some(twice) = texts().filter(is_read).find(|text| !known.insert(*text)) {
        let twice: String = twice.chars().take(40).collect();
        return Err(format!("its vocabulary has {twice:?} twice"));
    }
    for (name, types) in [
        ("token_type", &[StoredType::I32][..]),
        ("scores", &[StoredType::F32, StoredType::I32][..]),
    ] {
        if let Some(entries) = array_of(header, &key(name), types)?
            && entries.len() < tokens.len()
        {
            let (n, wanted) = (entries.len(), tokens.len());
            return Err(format!("{} has {n} entries for {wanted} tokens", key(name)));
        }
    }
    let scores = header.array(&key("scores")).unwrap_or_default();
    if scores.iter().any(|score| matches!(score, Value::Float(score) if !score.is_finite())) {
        return Err(format!("{} has a value that is not finite", key("scores")));
    }
    array_of(header, &key("merges"), &[StoredType::STRING])?;
    // Without them an unusual character in a chat would throw through the foreign call.
    let has_byte = |byte: u8| {
        known.contains(format!("<0x{byte:02X}>").as_str())
            || byte.is_ascii() && known.contains(char::from(byte).to_string().as_str())
    };
    if model == "llama"
        && let Some(byte) = (0..=255).find(|&byte| !has_byte(byte))
    {
        return Err(format!("its vocabulary has no token for byte {byte}"));
    }
    Ok(tokens.len() as u64)
}

/// A metadata array whose entries are stored as one of these types.
fn array_of<'a>(header: &'a Gguf, key: &str, types: &[u32]) -> Result<Option<&'a [Value]>, String> {
    if header.metadata(key).is_none() {
        return Ok(None);
    }
    let entries = header.stored_type(key).and_then(|stored| stored.entries);
    let array = header.array(key).filter(|_| entries.is_some_and(|it| types.contains(&it)));
    array.map(Some).ok_or_else(|| format!("{key} is not an array of the right type"))
}

fn text(value: &Value) -> &str {
    match value {
        Value::String(text) => text,
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use files::gguf::TensorKind;

    /// `gguf` has a table of its own, because it knows no foreign code.
    #[test]
    fn the_sizes_that_gguf_knows_are_those_of_ggml() {
        let mut known = 0;
        for id in 0..sys::GGML_TYPE_COUNT {
            let kind = TensorKind::Other(id);
            let tensor = TensorInfo { name: "t".into(), shape: vec![1024, 3], kind, offset: 0 };
            let ours = kind.n_bytes(tensor.n_values());
            // SAFETY: the type is below the number of types, so this points into a static table.
            let is_decoded = unsafe { (*sys::ggml_get_type_traits(id)).to_float.is_some() };
            assert!(ours.is_some() || !is_decoded, "ggml decodes type {id}, which has no size");
            if let Some(ours) = ours {
                assert_eq!(Ok(ours), tensor_bytes(&tensor), "type {id}");
                known += 1;
            }
        }
        assert!(20 < known, "{known} types are known");
    }
}
