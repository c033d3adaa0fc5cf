//! Writes the adapter as a GGUF that llama.cpp loads, atomically, and reads it for the next run. Used
//! by `train`.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use files::gguf::{Gguf, Writer};
use files::lora::header::{ALPHA_KEY, Header, check_base};
use tch::{Device, Tensor};

use crate::arch::Shape;
use crate::lora::Lora;
use crate::model::Model;
use crate::weights::add_tensor;

/// Writes a complete adapter on the base, not a change to an earlier one.
pub(crate) fn save(model: &Model, base_sha256: &str, run: &str, path: &Path) -> anyhow::Result<()> {
    let lora = model.lora.as_ref().context("the model has an adapter")?;
    let mut writer = Writer::default();
    Header {
        architecture: model.shape.architecture.name,
        alpha: lora.alpha,
        name: Some(run),
        base_sha256: Some(base_sha256),
    }
    .write(&mut writer);
    for (name, (a, b)) in &lora.pairs {
        add_tensor(&mut writer, &format!("{name}.weight.lora_a"), a)?;
        add_tensor(&mut writer, &format!("{name}.weight.lora_b"), b)?;
    }
    writer.write(path).with_context(|| format!("write {}", path.display()))
}

/// Loads the adapter that a run starts from, with the rank and alpha of the job. Its policy stays the
/// same: B is multiplied by the quotient of the scales, and new rows of A have zeros in B.
pub(crate) fn load(
    path: &Path,
    base_sha256: &str,
    shape: &Shape,
    wanted: protocol::Lora,
    device: Device,
) -> anyhow::Result<Lora> {
    let file = Gguf::open(path)?;
    if check_base(&file, base_sha256).is_err() {
        bail!("{} was trained for another base model: roll back to generation 0", path.display());
    }
    let alpha = file.float(ALPHA_KEY).with_context(|| format!("{ALPHA_KEY} is missing"))?;
    let mut lora = Lora::new(shape, wanted.rank, wanted.alpha, device);
    let stored = |name: &str| {
        let info =
            file.tensor(name).with_context(|| format!("{}: {name} is missing", path.display()))?;
        let size: Vec<i64> = info.shape.iter().rev().map(|&n| n.cast_signed()).collect();
        Ok::<_, anyhow::Error>(Tensor::from_slice(&file.read_f32(info)?).view(&size[..]))
    };
    for (name, (a, b)) in &mut lora.pairs {
        let halves = ["lora_a", "lora_b"].map(|half| format!("{name}.weight.{half}"));
        // An adapter that was made elsewhere may lack layers: B is zero there.
        if halves.iter().all(|half| file.tensor(half).is_none()) {
            continue;
        }
        let (stored_a, stored_b) = (stored(&halves[0])?, stored(&halves[1])?);
        let rank = stored_a.size()[0];
        ensure!(
            stored_a.size()[1..] == a.size()[1..] && stored_b.size() == [b.size()[0], rank],
            "{}: {name} does not fit the base",
            path.display()
        );
        ensure!(
            rank <= a.size()[0],
            "{} has rank {rank}, which does not fit into {}: set learn.lora.rank to {rank} or more, \
             or learn.continue to base",
            path.display(),
            wanted.rank
        );
        let scale = (alpha / rank as f64) / (wanted.alpha / wanted.rank as f64);
        tch::no_grad(|| {
            a.narrow(0, 0, rank).copy_(&stored_a);
            b.narrow(1, 0, rank).copy_(&(stored_b * scale));
        });
    }
    Ok(lora)
}
