//! LoRA adapters in llama.cpp: what is looked at before it reads one, and the type that owns one.
//! Whether the values are finite and the base is the right one is looked at by `learn` and by the
//! probe, away from the engine thread. Used by `llama.rs`.

use std::collections::BTreeMap;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::Model;
use super::check::{check_data, tensor_bytes};
use super::memory::mib;
use super::open::{c_path, load_error, open};
use super::process::last_error;
use crate::EngineError;
use files::gguf::{Gguf, StoredType, TensorInfo, TensorKind};
use files::lora::header::{ALPHA_KEY, check_architecture, check_kind};

/// The tensors of the base by name, in ggml's `ne` order.
pub(super) type Shapes = BTreeMap<String, Vec<u64>>;

/// Owns a `llama_adapter_lora`.
#[derive(Debug)]
pub(super) struct Adapter {
    pub(super) raw: NonNull<sys::llama_adapter_lora>,
    /// Freeing an adapter needs its model.
    model: Arc<Model>,
}

impl Adapter {
    /// Checks the file and loads it.
    pub(super) fn load(
        model: &Arc<Model>,
        path: &Path,
        architecture: &str,
        base: &Shapes,
    ) -> Result<Self, EngineError> {
        let header = open(path)?;
        check(&header, architecture, base).map_err(|reason| load_error(path, reason))?;
        check_memory(&header).map_err(|reason| load_error(path, reason))?;
        let file = c_path(path)?;
        let _alone = model.alone();
        // SAFETY: the model lives, the path is a C string, and no decode runs meanwhile, of whichever
        // context, because each takes the same lock.
        let raw = unsafe { sys::llama_adapter_lora_init(model.0.as_ptr(), file.as_ptr()) };
        let raw = NonNull::new(raw)
            .ok_or_else(|| load_error(path, last_error("it does not fit the model")))?;
        Ok(Self { raw, model: Arc::clone(model) })
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let _alone = self.model.alone();
        // SAFETY: `Backend::free` has unset it, or the context is gone, and no other context has set it;
        // the model lives, and no decode runs meanwhile.
        unsafe { sys::llama_adapter_lora_free(self.raw.as_ptr()) }
    }
}

/// Bytes of all tensors.
pub(super) fn weights(header: &Gguf) -> Result<u64, String> {
    header.tensors().iter().try_fold(0_u64, |sum, tensor| Ok(sum + tensor_bytes(tensor)?))
}

/// Refuses what is not an adapter of this model. llama.cpp aborts on a metadata value of another
/// type than it wants, and on ranks that differ once it computes.
fn check(header: &Gguf, architecture: &str, base: &Shapes) -> Result<(), String> {
    check_kind(header)?;
    check_architecture(header, architecture)?;
    if let Some(stored) = header.stored_type(ALPHA_KEY)
        && (stored.value != StoredType::F32 || !header.float(ALPHA_KEY).is_some_and(f64::is_finite))
    {
        return Err(format!("{ALPHA_KEY} is not a finite 32-bit float"));
    }
    check_data(header)?;
    if header.tensors().is_empty() {
        return Err("it has no tensors".into());
    }
    header.tensors().iter().try_for_each(|tensor| check_tensor(header, tensor, base))
}

fn check_tensor(header: &Gguf, tensor: &TensorInfo, base: &Shapes) -> Result<(), String> {
    let name = &tensor.name;
    if matches!(tensor.kind, TensorKind::Other(_)) {
        return Err(format!("tensor {name} has ggml type {}", tensor.kind.id()));
    }
    let Some(stem) = name.strip_suffix(".lora_a") else {
        let is_half = name
            .strip_suffix(".lora_b")
            .is_some_and(|stem| header.tensor(&format!("{stem}.lora_a")).is_some());
        // A `lora_b` is looked at with its other half.
        return if is_half { Ok(()) } else { Err(format!("tensor {name} has no other half")) };
    };
    let half = format!("{stem}.lora_b");
    let half = header.tensor(&half).ok_or_else(|| format!("tensor {half} is missing"))?;
    let target = base.get(stem).ok_or_else(|| format!("the model has no tensor {stem}"))?;
    let fits = match (tensor.shape.as_slice(), half.shape.as_slice(), target.as_slice()) {
        // llama.cpp looks rows of the embedding up in `lora_a`, which lies flipped for that.
        ([rank, n_vocab], [b_rank, width], [n_in, n_out]) if stem == "token_embd.weight" => {
            rank == b_rank && n_vocab == n_out && width == n_in
        }
        ([a_in, rank, rest @ ..], [b_rank, b_out, b_rest @ ..], [n_in, n_out, more @ ..]) => {
            a_in == n_in && b_out == n_out && rank == b_rank && rest == more && b_rest == more
        }
        _ => false,
    };
    if fits {
        return Ok(());
    }
    let (a, b) = (&tensor.shape, &half.shape);
    Err(format!("{stem} has shape {target:?}, but lora_a has {a:?} and lora_b {b:?}"))
}

/// Refuses an adapter that main memory has no room for.
fn check_memory(header: &Gguf) -> Result<(), String> {
    let needed = weights(header)?;
    let (available, source) = files::memory::available();
    if needed <= available {
        return Ok(());
    }
    let [needed, available] = [needed, available].map(mib);
    Err(format!(
        "the adapter needs {needed} MiB and {available} MiB are there ({source}); lower \
         engine.context_tokens or learn.lora.rank"
    ))
}
