//! What fits into memory: what matrices are multiplied in, how the base is held, how much is
//! computed at once, and whether blocks are computed again in the backward pass. Estimates to begin
//! with; when memory does not suffice after all, the plan shrinks. Used by `train`, `step`
//! and `survey`.

use files::gguf::TensorInfo;
use protocol::{BaseKind, Compute};
use tch::{Device, Kind};

use crate::arch::{Shape, Sizes};
use crate::base::BaseFile;
use crate::cuda;

/// More tokens in one pass do not make it faster, on a processor and on a GPU.
const MAX_TOKENS: usize = 1024;
const MAX_GPU_TOKENS: usize = 8192;
/// libtorch itself, the slices of the output head, and what is between.
const OVERHEAD_BYTES: u64 = 400 << 20;
/// Bytes of an f32.
const F32: u64 = 4;
/// On a processor a narrower model computes in f32. Measured at 768 alone, where bf16 is twice as fast.
const MIN_BF16_WIDTH: i64 = 512;

/// How a run computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    /// Tokens of one pass; an example that is longer is a pass of its own.
    pub max_tokens: usize,
    /// Compute blocks again in the backward pass instead of keeping what they computed.
    pub recompute: bool,
    /// The longest example in tokens.
    pub longest: usize,
}

/// How a model is computed with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner<'a> {
    pub shape: &'a Shape,
    pub compute: Kind,
    pub device: Device,
    /// See [`crate::weights::Weights::are_transient`].
    pub weights_are_transient: bool,
}

impl Plan {
    /// For the memory that is left when everything but a pass is there.
    pub(crate) fn new(manner: Manner<'_>, longest: usize, free_bytes: u64) -> Self {
        let Manner { shape, compute, device, weights_are_transient } = manner;
        let most = if device == Device::Cpu { MAX_TOKENS } else { MAX_GPU_TOKENS };
        let free = free_bytes.saturating_sub(fixed_bytes(manner));
        let kept = bytes_a_token(shape, compute, longest, false);
        let fits = |bytes_a_token: u64| {
            let tokens = usize::try_from(free / bytes_a_token.max(1)).unwrap_or(usize::MAX);
            tokens.clamp(longest, most.max(longest))
        };
        // What autograd keeps of a decoded weight is the weight: all of them would be in memory.
        let recompute = weights_are_transient || free / kept.max(1) < longest as u64;
        let max_tokens = fits(bytes_a_token(shape, compute, longest, recompute));
        Self { max_tokens, recompute, longest }
    }

    /// What a pass takes by the same estimate.
    pub(crate) fn pass_bytes(&self, manner: Manner<'_>) -> u64 {
        let Manner { shape, compute, .. } = manner;
        let of_token = bytes_a_token(shape, compute, self.longest, self.recompute);
        fixed_bytes(manner) + of_token * self.max_tokens as u64
    }

    /// Makes a pass smaller; false when it cannot be.
    pub(crate) fn shrink(&mut self) -> bool {
        if self.longest < self.max_tokens {
            self.max_tokens = (self.max_tokens / 2).max(self.longest);
            return true;
        }
        // One example a pass: what is left is to keep less of it.
        !std::mem::replace(&mut self.recompute, true)
    }
}

/// `auto` to what it means for this device and a model of this width.
pub(crate) fn compute(wanted: Compute, device: Device, n_embd: i64) -> Kind {
    let is_faster = match device {
        Device::Cpu => {
            processor_has("amx_bf16") || {
                processor_has("avx512_bf16") && MIN_BF16_WIDTH <= n_embd
            }
        }
        _ => true,
    };
    match wanted {
        Compute::Bf16 => Kind::BFloat16,
        Compute::Auto if is_faster => Kind::BFloat16,
        Compute::Auto | Compute::F32 => Kind::Float,
    }
}

fn processor_has(feature: &str) -> bool {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == feature))
}

/// `auto` to what it means for this file.
pub(crate) fn base_kind(
    wanted: BaseKind,
    compute: Kind,
    file: &BaseFile,
    memory_bytes: u64,
) -> BaseKind {
    if wanted != BaseKind::Auto {
        return wanted;
    }
    let n_values: u64 = file.tensors().map(TensorInfo::n_values).sum();
    if memory_bytes / 2 < n_values.saturating_mul(bytes_of(compute)) {
        BaseKind::Quantized
    } else if compute == Kind::BFloat16 {
        BaseKind::Bf16
    } else {
        BaseKind::F32
    }
}

/// What a pass needs whatever its tokens: one block's weights are decoded at a time.
fn fixed_bytes(Manner { shape, weights_are_transient, .. }: Manner<'_>) -> u64 {
    let of_block: i64 = shape.linears().iter().map(|(_, [n_out, n_in])| n_out * n_in).sum();
    let decoded = if weights_are_transient { of_block.cast_unsigned() * F32 } else { 0 };
    OVERHEAD_BYTES + decoded
}

/// What a pass needs for each of its tokens: what autograd keeps of every operation.
fn bytes_a_token(shape: &Shape, compute: Kind, longest: usize, recompute: bool) -> u64 {
    let Sizes { n_layer, n_embd, n_head, n_ff, .. } = shape.sizes;
    let [q, _] = shape.widths();
    // Of each norm the input; then in the kind that is computed in: what goes into the layers, heads
    // before and after attention (keys and values repeated), and four numbers of the gated layer.
    let exact = 4 * n_embd;
    let computed = 2 * n_embd + 6 * q + 5 * n_ff;
    let capped = match shape.attention_cap {
        Some(_) => 5 * n_head * i64::try_from(longest).unwrap_or(i64::MAX >> 20),
        None => 0,
    };
    let bytes = |exact: i64, computed: i64| {
        exact.cast_unsigned() * F32 + computed.cast_unsigned() * bytes_of(compute)
    };
    let block = bytes(exact + capped, computed);
    let n_layer = n_layer.cast_unsigned();
    if recompute { n_layer * bytes(n_embd, 0) + block } else { n_layer * block }
}

fn bytes_of(kind: Kind) -> u64 {
    if kind == Kind::BFloat16 { 2 } else { F32 }
}

/// Memory that may still be taken on a device: the limit if there is one, else what is free.
pub(crate) fn memory_bytes(device: Device, limit: Option<u64>) -> u64 {
    match device {
        Device::Cuda(_) => cuda::memory().map_or(0, |[free, _]| free),
        _ => limit.unwrap_or_else(|| free_of_system().min(free_of_group())),
    }
}

fn free_of_system() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.map_or(u64::MAX, |kilobytes| kilobytes * 1024)
}

/// In a container the system's memory is not all ours.
fn free_of_group() -> u64 {
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!("/sys/fs/cgroup/memory.{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    match (read("max"), read("current")) {
        (Some(max), Some(current)) => max.saturating_sub(current),
        _ => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A billion parameters; a token keeps 5 MB for the backward pass.
    fn shape() -> Shape {
        let sizes = Sizes {
            n_layer: 24,
            n_embd: 2048,
            n_head: 32,
            n_head_kv: 8,
            head_dim: 64,
            n_ff: 5632,
            n_vocab: 32000,
            n_ctx: 4096,
        };
        Shape::llama(sizes, 1e-5, 10000.0)
    }
    const GIB: u64 = 1 << 30;

    fn manner(shape: &Shape) -> Manner<'_> {
        let (compute, device) = (Kind::Float, Device::Cpu);
        Manner { shape, compute, device, weights_are_transient: false }
    }

    #[test]
    fn blocks_are_computed_again_only_where_memory_wants_it() {
        let shape = shape();
        let plan = |weights_are_transient, gib: u64| {
            Plan::new(Manner { weights_are_transient, ..manner(&shape) }, 600, gib * GIB)
        };
        assert_eq!((plan(false, 64).recompute, plan(false, 64).max_tokens), (false, MAX_TOKENS));
        assert!(plan(true, 64).recompute && plan(false, 2).recompute);
        assert!(plan(false, 4).max_tokens < MAX_TOKENS);
        assert_eq!(plan(false, 0).max_tokens, 600, "one example is always tried");
    }

    #[test]
    fn a_plan_shrinks_to_one_example_and_no_further() {
        let mut plan = Plan::new(manner(&shape()), 600, 64 * GIB);
        let mut steps = Vec::new();
        while plan.shrink() {
            steps.push((plan.max_tokens, plan.recompute));
        }
        assert_eq!(steps, [(600, false), (600, true)]);
    }
}
