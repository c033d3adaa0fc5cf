//! The adapter as a GGUF that llama.cpp loads, and back for the next round. Written whole or not at all.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use reflectd::gguf::{Gguf, Value, Writer};
use tch::{Device, Tensor};

use crate::arch::Shape;
use crate::lora::Lora;
use crate::model::Model;
use crate::weights::add_tensor;

/// Metadata key that ties an adapter to the file it was trained for.
const BASE_KEY: &str = "reflectd.base_sha256";

/// Writes `adapter.gguf`: a complete adapter on the base, not a change to an earlier one.
pub(crate) fn save(model: &Model, base_sha256: &str, run: &str, path: &Path) -> anyhow::Result<()> {
    let lora = model.lora.as_ref().context("the model has an adapter")?;
    let mut writer = Writer::default();
    let string = |text: &str| Value::String(text.to_owned());
    writer.metadata("general.architecture", string(model.shape.architecture.name));
    writer.metadata("general.type", string("adapter"));
    writer.metadata("general.name", string(run));
    writer.metadata("adapter.type", string("lora"));
    writer.metadata("adapter.lora.alpha", Value::Float(lora.alpha));
    writer.metadata(BASE_KEY, string(base_sha256));
    for (name, (a, b)) in &lora.pairs {
        add_tensor(&mut writer, &format!("{name}.weight.lora_a"), a)?;
        add_tensor(&mut writer, &format!("{name}.weight.lora_b"), b)?;
    }
    writer.write(path).with_context(|| format!("write {}", path.display()))
}

/// Loads the adapter that a run starts from.
pub(crate) fn load(
    path: &Path,
    base_sha256: &str,
    shape: &Shape,
    rank: usize,
    device: Device,
) -> anyhow::Result<Lora> {
    let file = Gguf::open(path)?;
    if file.string(BASE_KEY) != Some(base_sha256) {
        bail!("{} was trained for another base model: roll back to generation 0", path.display());
    }
    let alpha = file.float("adapter.lora.alpha").context("adapter.lora.alpha is missing")?;
    let mut lora = Lora::new(shape, rank, alpha, device);
    for (name, (a, b)) in &mut lora.pairs {
        for (half, tensor) in [("lora_a", a), ("lora_b", b)] {
            let name = format!("{name}.weight.{half}");
            let info = file
                .tensor(&name)
                .with_context(|| format!("{}: {name} is missing", path.display()))?;
            let stored: Vec<i64> = info.shape.iter().rev().map(|&n| n.cast_signed()).collect();
            ensure!(
                stored == tensor.size(),
                "{}: {name} is {stored:?}, the configured rank {rank} wants {:?}: \
                 set lora.rank as it was, or roll back to generation 0",
                path.display(),
                tensor.size(),
            );
            let values =
                Tensor::from_slice(&file.read_f32(info)?).view(&stored[..]).to_device(device);
            tch::no_grad(|| tensor.copy_(&values));
        }
    }
    Ok(lora)
}
