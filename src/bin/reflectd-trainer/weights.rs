//! GGUF to tensors and back. The values are those that llama.cpp serves: whatever the file stores
//! is dequantized, nothing is rounded again. Used by `main`, `pretrain` and `train`.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use reflectd::gguf::{Gguf, Value, Writer};
use reflectd::nano::corpus::CHAT_TEMPLATE;
use reflectd::nano::tokenizer::Tokenizer;
use tch::{Device, Tensor};

use crate::model::{LINEARS, Model, Shape};

/// Loads a llama-architecture GGUF as f32. Anything that the forward pass does not compute is
/// refused by name, so that nothing is trained wrongly.
pub(crate) fn load(path: &Path, device: Device) -> anyhow::Result<Model> {
    let file = Gguf::open(path)?;
    let shape = shape(&file)?;
    let mut weights = HashMap::new();
    let mut expected = vec![("token_embd".to_owned(), vec![shape.n_vocab, shape.n_embd])];
    expected.push(("output_norm".to_owned(), vec![shape.n_embd]));
    if file.tensor("output.weight").is_some() {
        expected.push(("output".to_owned(), vec![shape.n_vocab, shape.n_embd]));
    }
    for layer in 0..shape.n_layer {
        for norm in ["attn_norm", "ffn_norm"] {
            expected.push((format!("blk.{layer}.{norm}"), vec![shape.n_embd]));
        }
        for linear in LINEARS {
            expected.push((format!("blk.{layer}.{linear}"), shape.linear(linear).to_vec()));
        }
    }
    for tensor in file.tensors() {
        let known = tensor.name.strip_suffix(".weight").is_some_and(|name| expected.iter().any(|(e, _)| e == name));
        ensure!(known, "{}: tensor {} is not supported by this trainer", path.display(), tensor.name);
    }
    for (name, size) in expected {
        let info = file
            .tensor(&format!("{name}.weight"))
            .with_context(|| format!("{}: tensor {name}.weight is missing", path.display()))?;
        let stored: Vec<i64> = info.shape.iter().rev().map(|&n| n.cast_signed()).collect();
        ensure!(stored == size, "{}: tensor {name}.weight is {stored:?}, expected {size:?}", path.display());
        let values = file.read_f32(info)?;
        ensure!(values.iter().all(|v| v.is_finite()), "{}: tensor {name}.weight has a value that is not finite", path.display());
        weights.insert(name, Tensor::from_slice(&values).view(&size[..]).to_device(device));
    }
    Ok(Model { shape, weights, lora: None, device })
}

fn shape(file: &Gguf) -> anyhow::Result<Shape> {
    let path = file.path().display();
    let architecture = file.string("general.architecture").unwrap_or("");
    if architecture != "llama" {
        bail!("{path}: architecture {architecture:?} is not supported by this trainer (llama is)");
    }
    if let Some(Value::String(kind)) = file.metadata("llama.rope.scaling.type")
        && kind != "none"
    {
        bail!("{path}: RoPE scaling {kind:?} is not supported by this trainer");
    }
    let number = |key: &str| {
        let value = file.unsigned(&format!("llama.{key}"));
        value.filter(|n| (1..=1 << 20).contains(n)).map(u64::cast_signed).with_context(|| format!("{path}: llama.{key} is missing or out of range"))
    };
    let (n_embd, n_head) = (number("embedding_length")?, number("attention.head_count")?);
    let head_dim = number("attention.key_length").or_else(|_| Ok::<_, anyhow::Error>(n_embd / n_head))?;
    let n_rot = number("rope.dimension_count").unwrap_or(head_dim);
    ensure!(n_rot == head_dim, "{path}: partial rotary embedding is not supported by this trainer");
    if number("expert_count").is_ok() {
        bail!("{path}: mixture of experts is not supported by this trainer");
    }
    let n_head_kv = number("attention.head_count_kv").unwrap_or(n_head);
    ensure!(n_head % n_head_kv == 0, "{path}: {n_head} heads do not share {n_head_kv} key heads evenly");
    let embedding = file.tensor("token_embd.weight").with_context(|| format!("{path}: token_embd.weight is missing"))?;
    let n_vocab = embedding.shape.get(1).copied().unwrap_or(0).cast_signed();
    Ok(Shape {
        n_layer: number("block_count")?,
        n_embd,
        n_head,
        n_head_kv,
        head_dim,
        n_ff: number("feed_forward_length")?,
        n_vocab,
        n_ctx: number("context_length")?,
        rope_base: file.float("llama.rope.freq_base").unwrap_or(10000.0),
        rms_eps: file.float("llama.attention.layer_norm_rms_epsilon").with_context(|| format!("{path}: llama.attention.layer_norm_rms_epsilon is missing"))?,
    })
}

/// Writes a model trained from scratch as an F32 GGUF with its tokenizer.
pub(crate) fn save(model: &Model, tokenizer: &Tokenizer, name: &str, path: &Path) -> anyhow::Result<()> {
    let shape = &model.shape;
    let mut writer = Writer::default();
    let string = |text: &str| Value::String(text.to_owned());
    let count = |n: i64| Value::Unsigned(n.cast_unsigned());
    writer.metadata("general.architecture", string("llama"));
    writer.metadata("general.type", string("model"));
    writer.metadata("general.name", string(name));
    writer.metadata("general.file_type", Value::Unsigned(0));
    for (key, value) in [
        ("context_length", count(shape.n_ctx)),
        ("embedding_length", count(shape.n_embd)),
        ("block_count", count(shape.n_layer)),
        ("feed_forward_length", count(shape.n_ff)),
        ("attention.head_count", count(shape.n_head)),
        ("attention.head_count_kv", count(shape.n_head_kv)),
        ("attention.layer_norm_rms_epsilon", Value::Float(shape.rms_eps)),
        ("rope.dimension_count", count(shape.head_dim)),
        ("rope.freq_base", Value::Float(shape.rope_base)),
        ("vocab_size", count(shape.n_vocab)),
    ] {
        writer.metadata(&format!("llama.{key}"), value);
    }
    tokenizer.write_metadata(&mut writer, CHAT_TEMPLATE);
    let mut names: Vec<_> = model.weights.keys().collect();
    names.sort();
    for name in names {
        add_tensor(&mut writer, &format!("{name}.weight"), &model.weights[name])?;
    }
    writer.write(path).with_context(|| format!("write {}", path.display()))
}

/// Adds a tensor; torch's row-major shape is ggml's `ne` reversed.
pub(crate) fn add_tensor(writer: &mut Writer, name: &str, tensor: &Tensor) -> anyhow::Result<()> {
    let shape: Vec<u64> = tensor.size().iter().rev().map(|&n| n.cast_unsigned()).collect();
    let values = Vec::<f32>::try_from(tensor.detach().to_device(Device::Cpu).contiguous().view([-1]))?;
    ensure!(values.iter().all(|v| v.is_finite()), "{name} has a value that is not finite: lower the learning rate");
    writer.tensor(name, &shape, values);
    Ok(())
}
