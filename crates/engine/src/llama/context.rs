//! One llama.cpp context and its batch: the two types that decode. Every number that llama.cpp
//! asserts on is checked here or by the caller that made [`Limits`]. Used by `llama.rs` alone.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

use super::process::{forget_errors, last_error, note_abort};
use super::{Model, position};
use crate::{EngineError, KvCache};
use inference::backend::{Entry, Limits};

/// Tokens that llama.cpp computes at once; larger batches are split by it.
pub(super) const MICRO_BATCH: u32 = 512;

/// How a context computes, as decided for this machine and model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Computing {
    pub(super) threads: usize,
    pub(super) batch_threads: usize,
    pub(super) flash_attention: sys::llama_flash_attn_type,
    pub(super) kv_cache: KvCache,
    /// What a sequence is made into instead of logits that somebody reads; `None`: nothing.
    pub(super) pooling: Option<sys::llama_pooling_type>,
}

/// Owns a `llama_context`.
#[derive(Debug)]
pub(super) struct Context(pub(super) NonNull<sys::llama_context>);

impl Context {
    pub(super) fn new(model: &Model, limits: &Limits, computing: Computing) -> Option<Self> {
        // SAFETY: it only returns a struct.
        let mut params = unsafe { sys::llama_context_default_params() };
        let narrow = |n: usize| u32::try_from(n).ok();
        params.n_ctx = narrow(limits.cells)?;
        params.n_batch = narrow(limits.batch_tokens)?;
        params.n_ubatch = params.n_batch.min(MICRO_BATCH);
        // Copies of cells go through one sequence more.
        params.n_seq_max = narrow(limits.sequences + 1)?;
        params.n_outputs_max = narrow(limits.outputs.max(limits.sequences + 1))?;
        params.n_outputs_max_per_seq = params.n_outputs_max;
        params.n_threads = i32::try_from(computing.threads).ok()?;
        params.n_threads_batch = i32::try_from(computing.batch_threads).ok()?;
        params.kv_unified = true;
        params.type_k = ggml_type(computing.kv_cache);
        params.type_v = params.type_k;
        params.flash_attn_type = computing.flash_attention;
        params.swa_full = true;
        if let Some(pooling) = computing.pooling {
            params.embeddings = true;
            params.pooling_type = pooling;
        }
        let _alone = model.alone();
        // SAFETY: the model lives; the numbers are inside what llama.cpp asserts: sequences at
        // most 256 and not above the batch, the batch not above the cells.
        let raw = unsafe { sys::llama_init_from_model(model.0.as_ptr(), params) };
        NonNull::new(raw).map(Self)
    }

    /// Computes a batch, and returns when that is done. False: `interrupt` was or became true, and
    /// only a part from the beginning is done. After an error the cells of the batch are in doubt.
    pub(super) fn decode(
        &mut self,
        batch: &Batch,
        interrupt: Option<&AtomicBool>,
    ) -> Result<bool, EngineError> {
        // What an interrupted call reported is not the reason of this one's failure.
        forget_errors();
        let interruption = interrupt.map(|signal| self.interrupted_by(signal));
        // SAFETY: the context lives, and `fill` has checked sizes, tokens and sequence ids.
        let code = unsafe { sys::llama_decode(self.0.as_ptr(), batch.raw) };
        // A GPU computes on after that; only then is it known how long the step took.
        // SAFETY: the context lives.
        unsafe { sys::llama_synchronize(self.0.as_ptr()) };
        drop(interruption);
        if code == 2 {
            forget_errors();
        }
        match code {
            0 => Ok(true),
            2 => Ok(false),
            1 => Err(EngineError::Failed("the KV cache has no room for a batch".to_owned())),
            code => {
                let reason = last_error("no reason given");
                Err(EngineError::Failed(format!("llama_decode returned {code}: {reason}")))
            }
        }
    }

    /// Whether the cell of a batch's entry is there.
    pub(super) fn has_cell(&self, entry: &Entry<'_>) -> bool {
        entry.sequences.iter().all(|&id| {
            // SAFETY: the context lives and the id is below its `n_seq_max`, as `fill` has checked.
            let last = unsafe { sys::llama_memory_seq_pos_max(self.memory(), position(id.0)) };
            position(entry.position) <= last
        })
    }

    /// Keeps the first `n` cells of a sequence, whose id is below `n_seq_max`.
    pub(super) fn truncate(&mut self, id: i32, n: usize) {
        // SAFETY: the context lives, and the caller has checked the id.
        let removed = unsafe { sys::llama_memory_seq_rm(self.memory(), id, position(n), -1) };
        assert!(removed, "an attention cache can always drop the end of a sequence");
    }

    /// Until the result is dropped, a decode ends early when the signal is true. Only the
    /// processor's backend asks, after every node of the graph.
    fn interrupted_by<'a>(&self, signal: &'a AtomicBool) -> Interruption<'a> {
        let data = std::ptr::from_ref(signal).cast_mut().cast();
        // SAFETY: the context lives, and the signal lives until the callback is taken back.
        unsafe { sys::llama_set_abort_callback(self.0.as_ptr(), Some(is_set), data) };
        Interruption { context: self.0, signal: PhantomData }
    }

    pub(super) fn memory(&self) -> sys::llama_memory_t {
        // SAFETY: the context lives.
        unsafe { sys::llama_get_memory(self.0.as_ptr()) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: this is the only owner.
        unsafe { sys::llama_free(self.0.as_ptr()) }
    }
}

/// Takes the callback back when it is dropped. The context outlives it: both are used within one
/// call of its owner.
#[derive(Debug)]
pub(super) struct Interruption<'a> {
    context: NonNull<sys::llama_context>,
    signal: PhantomData<&'a AtomicBool>,
}

impl Drop for Interruption<'_> {
    fn drop(&mut self) {
        // SAFETY: the context lives.
        unsafe { sys::llama_set_abort_callback(self.context.as_ptr(), None, null_mut()) }
    }
}

unsafe extern "C" fn is_set(signal: *mut c_void) -> bool {
    // SAFETY: it is the signal of `interrupted_by`, which lives while the callback is set.
    let is_set = unsafe { &*signal.cast::<AtomicBool>() }.load(Ordering::Relaxed);
    if is_set {
        note_abort();
    }
    is_set
}

fn ggml_type(kv_cache: KvCache) -> sys::ggml_type {
    match kv_cache {
        KvCache::F16 => sys::GGML_TYPE_F16,
        KvCache::F32 => sys::GGML_TYPE_F32,
        KvCache::Q8_0 => sys::GGML_TYPE_Q8_0,
        KvCache::Q4_0 => sys::GGML_TYPE_Q4_0,
    }
}

/// Owns a `llama_batch`.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) raw: sys::llama_batch,
}

impl Batch {
    pub(super) fn new(limits: &Limits) -> Self {
        let [tokens, sequences] = [limits.batch_tokens, limits.sequences].map(position);
        // SAFETY: both numbers are small and positive.
        Self { raw: unsafe { sys::llama_batch_init(tokens, 0, sequences) } }
    }

    pub(super) fn fill(
        &mut self,
        batch: &[Entry<'_>],
        limits: &Limits,
        n_vocab: usize,
    ) -> Result<(), EngineError> {
        let n_outputs = batch.iter().filter(|entry| entry.logits).count();
        let is_sound = |entry: &Entry<'_>| {
            usize::try_from(entry.token.0).is_ok_and(|token| token < n_vocab)
                && entry.position < limits.cells
                && entry.sequences.iter().all(|id| id.0 < limits.sequences)
        };
        if n_outputs > limits.outputs || !batch.iter().all(is_sound) {
            return Err(outside_limits());
        }
        self.write(batch, limits)
    }

    /// Writes down whatever has room; tokens and sequence ids are llama.cpp's to look at.
    pub(super) fn write(
        &mut self,
        batch: &[Entry<'_>],
        limits: &Limits,
    ) -> Result<(), EngineError> {
        let has_room = |entry: &Entry<'_>| (1..=limits.sequences).contains(&entry.sequences.len());
        if !(1..=limits.batch_tokens).contains(&batch.len()) || !batch.iter().all(has_room) {
            return Err(outside_limits());
        }
        let raw = &mut self.raw;
        raw.n_tokens = position(batch.len());
        for (i, entry) in batch.iter().enumerate() {
            // SAFETY: the arrays hold `batch_tokens` entries with `sequences` ids each, and both
            // bounds are checked above.
            unsafe {
                *raw.token.add(i) = entry.token.0;
                *raw.pos.add(i) = position(entry.position);
                *raw.n_seq_id.add(i) = position(entry.sequences.len());
                *raw.logits.add(i) = i8::from(entry.logits);
                let ids = *raw.seq_id.add(i);
                for (j, id) in entry.sequences.iter().enumerate() {
                    *ids.add(j) = position(id.0);
                }
            }
        }
        Ok(())
    }
}

fn outside_limits() -> EngineError {
    EngineError::Failed("the batch is outside the context's limits".to_owned())
}

impl Drop for Batch {
    fn drop(&mut self) {
        // SAFETY: it was made by `llama_batch_init` and its pointers were not changed.
        unsafe { sys::llama_batch_free(self.raw) }
    }
}
