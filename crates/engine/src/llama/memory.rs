//! How much memory a model, its context and its adapters will take, before anything is allocated:
//! llama.cpp hangs or is killed where this says which key to lower. The plan is pure; what the
//! machine has is read from ggml's devices, `/proc` and the control groups. Used by `llama.rs`,
//! `adapter` and `inspect`.

use serde::Serialize;

use super::check::tensor_bytes;
use super::context::MICRO_BATCH;
use super::process::Device;
use super::shape::{Layer, Shape};
use crate::KvCache;
use files::gguf::Parts;
use inference::backend::Limits;

/// llama.cpp rounds a context up to this.
const CELL_PAD: u64 = 256;
/// Left free on a GPU: the driver's own structures and other programs' fluctuation.
const DEVICE_RESERVE: u64 = 512 << 20;

/// What serving takes, by where it lies.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct MemoryPlan {
    /// Layers on the GPUs, as llama.cpp counts: the output counts as one.
    pub gpu_layers: u32,
    /// Main memory.
    pub host: MemoryShare,
    /// All GPUs together.
    pub gpu: Option<MemoryShare>,
    /// Why judgements get no context of their own though they should: what is missing, and what to lower.
    pub judge_refusal: Option<String>,
}

/// Bytes by what they are for.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct MemoryShare {
    /// The model's tensors.
    pub weights: u64,
    /// Keys and values of all cells.
    pub kv_cache: u64,
    /// Intermediate results of one step.
    pub compute: u64,
    /// Rows of logits of one step.
    pub logits: u64,
    /// All of a second context, for judgements.
    pub judge: u64,
    /// Copies of the cells of finished and preempted sequences, at most: what is left of the memory,
    /// and no more than half of the KV cache.
    pub prefix_cache: u64,
    /// What there is.
    pub available: u64,
    /// Who says so.
    pub source: String,
}

impl MemoryShare {
    /// All of it.
    pub fn total(&self) -> u64 {
        let Self { weights, kv_cache, compute, logits, judge, prefix_cache, .. } = *self;
        let parts = [weights, kv_cache, compute, logits, judge, prefix_cache];
        parts.into_iter().fold(0, u64::saturating_add)
    }
    /// All but the context for judgements, which is left out where there is no room for it.
    pub fn without_judge(&self) -> u64 {
        self.total() - self.judge
    }
}

/// What else takes memory in this process, though the kernel calls it available.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct OtherModels {
    /// Bytes of the files of loaded models: mapped pages are given back when needed, but are read at
    /// every step.
    pub mapped: u64,
    /// Bytes of copies of cells that loaded engines may still make.
    pub copies: u64,
    /// Bytes that models take which are loaded later: no copies are made at their cost.
    pub later: u64,
}

/// What a plan is made of.
#[derive(Debug)]
pub(super) struct Demand<'a> {
    pub(super) parts: &'a Parts,
    pub(super) shape: &'a Shape,
    pub(super) n_vocab: u64,
    pub(super) limits: Limits,
    /// Of a second context, if judgements shall have one and memory has room for it.
    pub(super) judge: Option<Limits>,
    pub(super) kv_cache: KvCache,
    /// Whether what is evicted is copied to host memory.
    pub(super) keeps_copies: bool,
    pub(super) has_flash_attention: bool,
    pub(super) others: OtherModels,
}

impl Demand<'_> {
    /// Bytes with this many layers on GPUs: (main memory, GPUs).
    fn shares(&self, gpu_layers: u64) -> Result<(MemoryShare, MemoryShare), String> {
        let n_layers = self.shape.layers.len() as u64;
        // As llama.cpp counts: the output is the last layer and goes first.
        let first_on_gpu = (n_layers + 1).saturating_sub(gpu_layers);
        let mut host = MemoryShare::default();
        let mut gpu = MemoryShare::default();
        for tensor in self.parts.tensors() {
            let bytes = tensor_bytes(tensor)?;
            let layer = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split('.').next());
            let is_on_gpu = match layer.and_then(|layer| layer.parse::<u64>().ok()) {
                Some(layer) => layer >= first_on_gpu,
                None => tensor.name.starts_with("output") && gpu_layers > 0,
            };
            let share = if is_on_gpu { &mut gpu } else { &mut host };
            share.weights += bytes;
            // Without an output matrix of its own the embedding is copied to the GPU.
            let is_tied = self.parts.tensor("output.weight").is_none();
            if gpu_layers > 0 && is_tied && tensor.name == "token_embd.weight" {
                gpu.weights += bytes;
            }
        }
        let cells = (self.limits.cells as u64).next_multiple_of(CELL_PAD);
        for (layer, widths) in self.shape.layers.iter().enumerate() {
            let is_on_gpu = layer as u64 >= first_on_gpu;
            let share = if is_on_gpu { &mut gpu } else { &mut host };
            share.kv_cache = share.kv_cache.saturating_add(self.cache_bytes_of(widths, cells));
        }
        host.logits = self.limits.outputs as u64 * self.n_vocab * 4;
        let compute = self.compute(cells);
        if gpu_layers > 0 {
            gpu.compute = compute;
            // Inputs and what goes from layer to layer.
            host.compute = compute / 4;
        } else {
            host.compute = compute;
        }
        Ok((host, gpu))
    }

    /// Bytes of the keys and values of so many cells.
    pub(super) fn cache_bytes(&self, cells: u64) -> u64 {
        let layers = self.shape.layers.iter().map(|layer| self.cache_bytes_of(layer, cells));
        layers.fold(0, u64::saturating_add)
    }

    fn cache_bytes_of(&self, layer: &Layer, cells: u64) -> u64 {
        let (block, block_bytes) = self.kv_cache.block();
        let values = layer.kv_heads * (self.shape.key + self.shape.value);
        cells.saturating_mul(values).div_ceil(block).saturating_mul(block_bytes)
    }

    /// Adds the context for judgements to the shares. The text says why there is no room for it: nothing
    /// else is made smaller for it, and no layer leaves the GPU.
    fn add_judge(
        &self,
        gpu_layers: u64,
        host: &mut MemoryShare,
        gpu: &mut MemoryShare,
    ) -> Result<Option<String>, String> {
        let Some(limits) = self.judge else { return Ok(None) };
        let (on_host, on_gpu) = Demand { limits, ..*self }.shares(gpu_layers)?;
        let [on_host, on_gpu] = [on_host, on_gpu].map(|it| it.total() - it.weights);
        let left = |share: &MemoryShare, reserve: u64| {
            share.available.saturating_sub(share.total()).saturating_sub(reserve)
        };
        for (place, needed, left) in [
            ("this machine", on_host, left(host, self.others.later)),
            ("the GPU", on_gpu, left(gpu, DEVICE_RESERVE)),
        ] {
            if left < needed {
                let [needed, left] = [needed, left].map(mib);
                return Ok(Some(format!(
                    "it needs {needed} MiB more of {place} and {left} MiB are left; lower \
                     engine.context_tokens, or set engine.deterministic_judge to false"
                )));
            }
        }
        (host.judge, gpu.judge) = (on_host, on_gpu);
        Ok(None)
    }

    /// Intermediate results of one micro batch: llama.cpp lets them share room one after another,
    /// so the largest counts, and with it what lives through a layer. `docs/LOG.md` compares it
    /// with what llama.cpp reports.
    fn compute(&self, cells: u64) -> u64 {
        let tokens = (self.limits.batch_tokens as u64).min(MICRO_BATCH.into());
        let widest =
            |width: fn(&Layer) -> u64| self.shape.layers.iter().map(width).max().unwrap_or(0);
        let (heads, feed_forward) = (widest(|it| it.heads), widest(|it| it.feed_forward));
        let a_cell = cells.saturating_mul(tokens);
        // The mask, in f16 with flash attention.
        let mask = a_cell.saturating_mul(if self.has_flash_attention { 2 } else { 4 });
        let scores = if self.has_flash_attention { 0 } else { a_cell.saturating_mul(heads * 4) };
        let logits = (self.limits.outputs as u64).min(tokens) * self.n_vocab * 4;
        let largest = scores.max(logits).max(tokens * 4 * 2 * feed_forward);
        let queries = heads * self.shape.key.max(self.shape.value);
        let lasting = tokens * 4 * (4 * self.shape.embedding + queries) + (4 << 20);
        mask.saturating_add(largest).saturating_add(lasting)
    }

    /// The plan for the devices at hand. `wanted`: layers on GPUs; `None` for as many as fit.
    pub(super) fn plan(
        &self,
        wanted: Option<u32>,
        devices: &[Device],
    ) -> Result<MemoryPlan, String> {
        let (available, source) = files::memory::available();
        let gpus = || devices.iter().filter(|device| device.is_gpu);
        let all = self.shape.layers.len() as u64 + 1;
        let finish = |layers: u64| -> Result<MemoryPlan, String> {
            let (mut host, mut gpu) = self.shares(layers)?;
            let OtherModels { mapped, copies, later } = self.others;
            // What is on a GPU is not read from the file again.
            let mapped = if layers == 0 { mapped } else { 0 };
            host.available = available.saturating_sub(mapped).saturating_sub(copies);
            host.source.clone_from(&source);
            gpu.available = gpus().map(|device| device.free).sum();
            gpu.source = gpus().map(|device| device.name.as_str()).collect::<Vec<_>>().join(", ");
            let judge_refusal = self.add_judge(layers, &mut host, &mut gpu)?;
            let left = host.available.saturating_sub(host.total()).saturating_sub(later);
            if self.keeps_copies {
                host.prefix_cache = left.min(host.kv_cache.midpoint(gpu.kv_cache));
            }
            let gpu_layers = u32::try_from(layers).unwrap_or(u32::MAX);
            let gpu = (layers > 0).then_some(gpu);
            Ok(MemoryPlan { gpu_layers, host, gpu, judge_refusal })
        };
        if gpus().next().is_none() {
            return finish(0);
        }
        if let Some(wanted) = wanted {
            return finish(u64::from(wanted).min(all));
        }
        for layers in (1..=all).rev() {
            let plan = finish(layers)?;
            if plan.gpu.as_ref().is_none_or(|gpu| gpu.total() + DEVICE_RESERVE <= gpu.available) {
                return Ok(plan);
            }
        }
        finish(0)
    }

    /// Refuses a plan that does not fit, with every number and what to lower to what.
    pub(super) fn check(&self, plan: &MemoryPlan) -> Result<(), String> {
        if let Some(gpu) = &plan.gpu
            && gpu.total() > gpu.available
        {
            let advice = "lower engine.gpu_layers, or set it to auto";
            return Err(format!("{}; {advice}", refusal("the GPU", gpu)));
        }
        if plan.host.total() <= plan.host.available {
            return Ok(());
        }
        let advice = match self.fitting_cells(plan) {
            Some(cells) => {
                format!("lower engine.context_tokens from {} to {cells}", self.limits.cells)
            }
            None if self.kv_cache == KvCache::F32 => "set engine.kv_cache to f16".to_owned(),
            None => "use a smaller model or a smaller quantization of it".to_owned(),
        };
        Err(format!("{}; {advice}", refusal("this machine", &plan.host)))
    }

    /// The largest context, in hundreds of cells and more than one for each sequence, that fits
    /// into main memory beside the rest.
    fn fitting_cells(&self, plan: &MemoryPlan) -> Option<usize> {
        let fits = |cells: usize| {
            let limits = Limits { cells, ..self.limits };
            let demand = Demand { limits, ..*self };
            demand
                .shares(plan.gpu_layers.into())
                .is_ok_and(|(host, _)| host.total() <= plan.host.available)
        };
        // Bisection: what fits, and what does not.
        let least = self.limits.sequences.max(self.limits.batch_tokens) + 1;
        let (mut low, mut high) = (least, self.limits.cells);
        if high <= low || !fits(low) {
            return None;
        }
        while high - low > 1 {
            let middle = low.midpoint(high);
            if fits(middle) { low = middle } else { high = middle }
        }
        Some(if low >= 1000 { low / 100 * 100 } else { low })
    }
}

fn refusal(place: &str, share: &MemoryShare) -> String {
    let MemoryShare { weights, kv_cache, compute, logits, available, source, .. } = share;
    let [total, weights, kv_cache, compute, logits, available] =
        [share.total(), *weights, *kv_cache, *compute, *logits, *available].map(mib);
    format!(
        "it needs {total} MiB of {place} and {available} MiB are there ({source}): weights \
         {weights}, KV cache {kv_cache}, compute {compute}, logits {logits}"
    )
}

/// Rounded up.
pub(super) fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const NANO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../agents/nano/model.gguf");

    /// Of the nano model on a machine whose GPU has so much free, and where models come later.
    fn plan(free: Option<u64>, later: u64) -> MemoryPlan {
        let parts = Parts::open(Path::new(NANO)).unwrap();
        let shape = Shape::read(parts.header()).unwrap();
        let limits = Limits { cells: 4096, sequences: 4, batch_tokens: 512, outputs: 64 };
        let demand = Demand {
            parts: &parts,
            shape: &shape,
            n_vocab: 512,
            limits,
            judge: Some(Limits { sequences: 1, batch_tokens: 32, outputs: 32, ..limits }),
            kv_cache: KvCache::F16,
            keeps_copies: true,
            has_flash_attention: true,
            others: OtherModels { later, ..OtherModels::default() },
        };
        let gpu = |free| Device {
            name: "GPU0".into(),
            description: String::new(),
            is_gpu: true,
            free,
            total: free,
        };
        demand.plan(None, &free.map(gpu).into_iter().collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_context_for_judgements_takes_only_what_is_left() {
        let roomy = plan(None, 0);
        assert!(0 < roomy.host.judge && roomy.judge_refusal.is_none(), "{roomy:?}");
        let tight = plan(None, u64::MAX);
        assert_eq!((tight.host.judge, tight.host.prefix_cache), (0, 0));
        let reason = tight.judge_refusal.unwrap();
        assert!(reason.contains("of this machine and 0 MiB are left"), "{reason}");
        assert!(reason.contains("engine.deterministic_judge"), "{reason}");
    }

    #[test]
    fn no_layer_leaves_the_gpu_for_judgements() {
        let roomy = plan(Some(8 << 30), 0);
        let gpu = roomy.gpu.as_ref().unwrap();
        assert!(0 < gpu.judge && 0 < roomy.host.judge && roomy.judge_refusal.is_none());
        let tight = plan(Some(gpu.total() - gpu.judge + DEVICE_RESERVE), 0);
        assert_eq!(tight.gpu_layers, roomy.gpu_layers);
        assert_eq!((tight.gpu.unwrap().judge, tight.host.judge), (0, 0));
        let reason = tight.judge_refusal.unwrap();
        assert!(reason.contains("of the GPU and 0 MiB are left"), "{reason}");
    }
}
