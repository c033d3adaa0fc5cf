//! Estimates what fits into memory: what matrices are multiplied in, how the base is held, the size of a
//! pass, and whether the backward pass computes blocks again (gradient checkpointing). When an
//! estimate was too low, the plan shrinks. Used by `train`, `step` and `survey`.

use files::gguf::TensorInfo;
use protocol::{BaseKind, Compute};
use tch::{Device, Kind};

use crate::arch::{Shape, Sizes};
use crate::base::BaseFile;
use crate::batch::Size;
use crate::cuda;

/// Most tokens of a pass on a CPU and on a GPU: more do not make it faster.
const MAX_TOKENS: usize = 1024;
const MAX_GPU_TOKENS: usize = 8192;
/// libtorch itself, the slices of the output head, and temporary tensors.
const OVERHEAD_BYTES: u64 = 400 << 20;
/// Bytes of an f32.
const F32: u64 = 4;
/// A narrower model computes in f32 on a CPU. Only 768 was measured, where bf16 is twice as fast.
const MIN_BF16_WIDTH: i64 = 512;

/// How a run computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    /// Tokens of a pass; an example that is longer is one by itself.
    pub max_tokens: usize,
    /// What a pass keeps of a token for each further sequence that begins with it (a copy of its key and
    /// value), in tokens that are computed.
    pub shared_cost: f64,
    /// Compute blocks again in the backward pass instead of keeping their activations.
    pub recompute: bool,
    /// The longest example, in the same tokens.
    pub longest: usize,
}

/// How a model computes, as far as memory depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting<'a> {
    pub shape: &'a Shape,
    pub compute: Kind,
    pub device: Device,
    /// See [`crate::weights::Weights::are_transient`].
    pub weights_are_transient: bool,
}

impl Plan {
    /// A plan for the memory that is free when model, adapter and optimizer are loaded.
    pub(crate) fn new(setting: Setting<'_>, longest: Size, free_bytes: u64) -> Self {
        let Setting { shape, compute, device, weights_are_transient } = setting;
        let most = if device == Device::Cpu { MAX_TOKENS } else { MAX_GPU_TOKENS };
        let free = free_bytes.saturating_sub(fixed_bytes(setting));
        let fitting = |recompute: bool| {
            let of_token = bytes_per_token(shape, compute, longest.tokens, recompute).max(1);
            let of_shared = bytes_per_shared_token(shape, compute, recompute);
            let shared_cost = of_shared as f64 / of_token as f64;
            let mut plan = Self { max_tokens: 0, shared_cost, recompute, longest: 0 };
            plan.longest = plan.tokens(longest);
            plan.max_tokens = usize::try_from(free / of_token).unwrap_or(usize::MAX);
            plan
        };
        // Autograd keeps every weight that was decoded for a product, so all of them would be in memory.
        let mut plan = fitting(weights_are_transient);
        if !plan.recompute && plan.max_tokens < plan.longest {
            plan = fitting(true);
        }
        plan.max_tokens = plan.max_tokens.clamp(plan.longest, most.max(plan.longest));
        plan
    }

    /// A size as the plan counts it.
    pub(crate) fn tokens(&self, Size { tokens, shared }: Size) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "fewer than the shared tokens of one pass"
        )]
        let kept = (shared as f64 * self.shared_cost).ceil() as usize;
        tokens + kept
    }

    /// Whether a pass may be so large.
    pub(crate) fn fits(&self, size: Size) -> bool {
        self.tokens(size) <= self.max_tokens
    }

    /// Memory of a pass by the same estimate.
    pub(crate) fn pass_bytes(&self, setting: Setting<'_>) -> u64 {
        let Setting { shape, compute, .. } = setting;
        let of_token = bytes_per_token(shape, compute, self.longest, self.recompute);
        fixed_bytes(setting) + of_token * self.max_tokens as u64
    }

    /// Makes a pass smaller; false when that is not possible.
    pub(crate) fn shrink(&mut self) -> bool {
        if self.longest < self.max_tokens {
            self.max_tokens = (self.max_tokens / 2).max(self.longest);
            return true;
        }
        // With one example in a pass, only recomputing saves more.
        !std::mem::replace(&mut self.recompute, true)
    }
}

/// What matrices are multiplied in, with `auto` resolved for the device and the width of the model.
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

/// How the base is held, with `auto` resolved for the file and the memory.
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

/// Memory of a pass that does not depend on its tokens: one block's weights are decoded at a time.
fn fixed_bytes(Setting { shape, weights_are_transient, .. }: Setting<'_>) -> u64 {
    let of_block: i64 = shape.linears().iter().map(|(_, [n_out, n_in])| n_out * n_in).sum();
    let decoded = if weights_are_transient { of_block.cast_unsigned() * F32 } else { 0 };
    OVERHEAD_BYTES + decoded
}

/// Memory of a pass for each token that a sequence shares with an earlier one: keys and values of its own
/// heads, in every block whose activations are kept.
fn bytes_per_shared_token(shape: &Shape, compute: Kind, recompute: bool) -> u64 {
    let [q, _] = shape.widths();
    let block = 2 * q.cast_unsigned() * bytes_of(compute);
    if recompute { block } else { shape.sizes.n_layer.cast_unsigned() * block }
}

/// Memory of a pass for each of its tokens: what autograd keeps of every operation.
fn bytes_per_token(shape: &Shape, compute: Kind, longest: usize, recompute: bool) -> u64 {
    let Sizes { n_layer, n_embd, n_head, n_ff, .. } = shape.sizes;
    let [q, _] = shape.widths();
    // In f32 the input of each norm. In the kind that is computed in: the inputs of the projections, heads
    // before and after attention (keys and values repeated), and four tensors of the gated layer.
    let exact = 4 * n_embd;
    let computed = 2 * n_embd + 6 * q + 5 * n_ff;
    let capped = match shape.attention_softcap {
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

/// Memory that may still be allocated on a device: the limit if there is one, else what is free.
pub(crate) fn memory_bytes(device: Device, limit: Option<u64>) -> u64 {
    match device {
        Device::Cuda(_) => cuda::memory().map_or(0, |[free, _]| free),
        _ => limit.unwrap_or_else(|| files::memory::available().0),
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
    const LONGEST: Size = Size { tokens: 600, shared: 0 };

    fn setting(shape: &Shape) -> Setting<'_> {
        let (compute, device) = (Kind::Float, Device::Cpu);
        Setting { shape, compute, device, weights_are_transient: false }
    }

    #[test]
    fn blocks_are_computed_again_only_where_memory_is_short() {
        let shape = shape();
        let plan = |weights_are_transient, gib: u64| {
            Plan::new(Setting { weights_are_transient, ..setting(&shape) }, LONGEST, gib * GIB)
        };
        assert_eq!((plan(false, 64).recompute, plan(false, 64).max_tokens), (false, MAX_TOKENS));
        assert!(plan(true, 64).recompute && plan(false, 2).recompute);
        assert!(plan(false, 4).max_tokens < MAX_TOKENS);
        assert_eq!(plan(false, 0).max_tokens, 600, "one example is always tried");
    }

    /// Five pairs of one prompt keep its keys and values nine times more, in every block.
    #[test]
    fn copies_of_shared_keys_and_values_are_planned() {
        let shape = shape();
        let plan = |shared| Plan::new(setting(&shape), Size { tokens: 600, shared }, 16 * GIB);
        let copies = 2 * 2048 * F32 * 24 * 9 * 300;
        let of_token = bytes_per_token(&shape, Kind::Float, 600, false);
        let cost = plan(0).tokens(Size { tokens: 0, shared: 9 * 300 });
        assert_eq!(cost, usize::try_from(copies.div_ceil(of_token)).unwrap());
        assert!(plan(0).fits(Size { tokens: plan(0).max_tokens, shared: 0 }));
        assert!(!plan(0).fits(Size { tokens: plan(0).max_tokens, shared: 100 }));
        assert_eq!(plan(9 * 300).longest, 600 + cost, "an example's own copies count");
    }

    #[test]
    fn a_plan_shrinks_to_one_example_and_no_further() {
        let mut plan = Plan::new(setting(&shape()), LONGEST, 64 * GIB);
        let mut steps = Vec::new();
        while plan.shrink() {
            steps.push((plan.max_tokens, plan.recompute));
        }
        assert_eq!(steps, [(600, false), (600, true)]);
    }
}
