//! llama.cpp: only this file and its folder name it and have unsafe code. Own RAII types over
//! llama-cpp-sys-2, because the safe crate can neither load an adapter while a context lives nor
//! free one. llama.cpp aborts the process on many wrong numbers, so everything is checked before
//! it gets there. Used by the engine thread; [`quantize`] by
//! `reflectd nano` and the benchmark. [`dequantize`] waits for the trainer to read every quantization.

#![expect(unsafe_code, reason = "llama.cpp is C++; every block says why it is sound")]

mod files;
mod process;
mod vocabulary;

use std::collections::BTreeMap;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::backend::{Backend, Entry, Limits, SequenceId};
use super::{EngineConfig, EngineError, Generation, KvCache, ModelInfo, Vocabulary};
use crate::gguf::Gguf;
use crate::paths;
use files::{c_path, check_adapter, check_model, load_error};
use process::{init, largest_memory, last_error, physical_cores, system};
use vocabulary::LlamaVocabulary;

pub use files::{Quantization, dequantize, quantize};

/// llama.cpp's own bound for one context (`LLAMA_MAX_SEQ`).
const MAX_SEQUENCES: usize = 256;
/// Rows of logits of a batch take at most this; a large vocabulary has 600 KB a row.
const MAX_LOGITS_BYTES: usize = 256 << 20;
/// Tokens that llama.cpp computes at once; larger batches are split by it.
const MICRO_BATCH: u32 = 512;

/// The real backend. Field order is significant: the context goes before the adapters that it may
/// have set, and both before the model.
#[derive(Debug)]
pub struct Llama {
    context: Context,
    batch: Batch,
    adapters: BTreeMap<Generation, Adapter>,
    selected: Generation,
    limits: Limits,
    info: ModelInfo,
    vocabulary: Arc<LlamaVocabulary>,
    model: Arc<Model>,
}

impl Llama {
    /// Loads the model and makes its context.
    pub fn load(config: &EngineConfig) -> Result<Self, EngineError> {
        init();
        let path = config.model.as_path();
        let header = check_model(path)?;
        let model = Arc::new(Model::load(path, config.gpu_layers)?);
        if !model.has_plain_cache() {
            let reason = "it is recurrent or has an encoder; use a decoder with attention only";
            return Err(load_error(path, reason));
        }
        let sequences = size(config.max_sequences).clamp(1, MAX_SEQUENCES);
        let cells = size(config.context_tokens);
        let per_cell = cell_values(&header, &model).saturating_mul(config.kv_cache.n_bytes());
        let memory = largest_memory();
        if cells <= sequences || cells.saturating_mul(per_cell) > memory {
            let most = memory / per_cell.max(1);
            let reason = format!("context_tokens must be {} to {most} here", sequences + 1);
            return Err(load_error(path, reason));
        }
        let batch_tokens = size(config.batch_tokens).max(sequences).min(cells);
        let n_vocab = model.n_vocab();
        let outputs = (MAX_LOGITS_BYTES / 4 / n_vocab.max(1)).max(sequences).min(batch_tokens);
        let limits = Limits { cells, sequences, batch_tokens, outputs };
        let threads = config.threads.map_or_else(physical_cores, size);
        // SAFETY: it only looks at what was compiled in.
        let uses_gpu = config.gpu_layers != Some(0) && unsafe { sys::llama_supports_gpu_offload() };
        let kv_type = match config.kv_cache {
            KvCache::F16 => sys::GGML_TYPE_F16,
            KvCache::F32 => sys::GGML_TYPE_F32,
        };
        let context = Context::new(&model, &limits, threads, uses_gpu, kv_type)
            .ok_or_else(|| load_error(path, last_error("the context cannot be made")))?;
        let vocabulary = Arc::new(LlamaVocabulary::new(Arc::clone(&model)));
        Ok(Self {
            info: info(path, &header, &model, &vocabulary, cells)?,
            batch: Batch::new(&limits),
            adapters: BTreeMap::new(),
            selected: Generation::BASE,
            context,
            limits,
            vocabulary,
            model,
        })
    }
}

impl Backend for Llama {
    fn info(&self) -> ModelInfo {
        self.info.clone()
    }

    fn vocabulary(&self) -> Arc<dyn Vocabulary> {
        Arc::<LlamaVocabulary>::clone(&self.vocabulary)
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn decode(&mut self, batch: &[Entry<'_>]) -> Result<(), EngineError> {
        self.batch.fill(batch, &self.limits, self.info.n_vocab)?;
        // SAFETY: the context lives, and `fill` has checked sizes, tokens and sequence ids.
        let code = unsafe { sys::llama_decode(self.context.0.as_ptr(), self.batch.raw) };
        match code {
            0 => Ok(()),
            1 => Err(EngineError::Failed("the KV cache has no room for a batch".to_owned())),
            code => {
                let reason = last_error("no reason given");
                Err(EngineError::Failed(format!("llama_decode returned {code}: {reason}")))
            }
        }
    }

    fn logits(&self, index: usize) -> Result<&[f32], EngineError> {
        let missing = || EngineError::Failed(format!("entry {index} of the batch has no logits"));
        let row = i32::try_from(index).map_err(|_| missing())?;
        if row >= self.batch.raw.n_tokens {
            return Err(missing());
        }
        // SAFETY: the context lives; an entry without logits gives a null pointer.
        let logits = unsafe { sys::llama_get_logits_ith(self.context.0.as_ptr(), row) };
        let logits = NonNull::new(logits).ok_or_else(missing)?;
        // SAFETY: a row has one float a token of the vocabulary and stays until the next decode,
        // which needs `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts(logits.as_ptr(), self.info.n_vocab) })
    }

    fn copy(&mut self, from: SequenceId, to: SequenceId, n: usize) {
        let [from, to] = [from, to].map(|id| checked_id(id, &self.limits));
        // SAFETY: the ids are below the context's `n_seq_max`; unified KV allows part of a sequence.
        unsafe { sys::llama_memory_seq_cp(self.context.memory(), from, to, 0, position(n)) };
    }

    fn truncate(&mut self, sequence: SequenceId, n: usize) {
        let id = checked_id(sequence, &self.limits);
        // SAFETY: the id is below the context's `n_seq_max`.
        let removed =
            unsafe { sys::llama_memory_seq_rm(self.context.memory(), id, position(n), -1) };
        assert!(removed, "an attention cache can always drop the end of a sequence");
    }

    fn load(&mut self, generation: Generation, path: &Path) -> Result<(), EngineError> {
        check_adapter(path, &self.info.architecture)?;
        let adapter = Adapter::load(&self.model, path)?;
        self.adapters.insert(generation, adapter);
        Ok(())
    }

    fn select(&mut self, generation: Generation) -> Result<(), EngineError> {
        if generation == self.selected {
            return Ok(());
        }
        let adapter = match self.adapters.get(&generation) {
            Some(adapter) => Some(adapter),
            None if generation == Generation::BASE => None,
            None => return Err(EngineError::NoLane(generation)),
        };
        let mut pointers: Vec<_> = adapter.iter().map(|adapter| adapter.raw.as_ptr()).collect();
        let mut scales = vec![1.0_f32; pointers.len()];
        // SAFETY: context and adapter live and belong to the same model; llama.cpp copies both
        // arrays, which have the length that is said.
        let code = unsafe {
            sys::llama_set_adapters_lora(
                self.context.0.as_ptr(),
                pointers.as_mut_ptr(),
                pointers.len(),
                scales.as_mut_ptr(),
            )
        };
        if code != 0 {
            return Err(EngineError::Failed(format!("llama.cpp refused adapter {generation}")));
        }
        self.selected = generation;
        Ok(())
    }

    fn free(&mut self, generation: Generation) {
        if self.selected == generation {
            // A freed adapter that is still set is used after free.
            self.select(Generation::BASE).expect("no adapter at all is always accepted");
        }
        self.adapters.remove(&generation);
    }
}

/// Owns a `llama_model`.
#[derive(Debug)]
struct Model(NonNull<sys::llama_model>);

// SAFETY: a loaded model is read-only but for its list of adapters, which only the engine thread
// touches (`Adapter` is not `Send`).
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Model {
    fn load(path: &Path, gpu_layers: Option<u32>) -> Result<Self, EngineError> {
        let file = c_path(path)?;
        // SAFETY: it only returns a struct.
        let mut params = unsafe { sys::llama_model_default_params() };
        if let Some(layers) = gpu_layers {
            params.n_gpu_layers = i32::try_from(layers).unwrap_or(i32::MAX);
        }
        // Repacking copies the weights out of the page cache; without it a prompt was evaluated
        // 5 to 28 % faster here and a token generated 5 to 9 % slower, and prompts dominate.
        params.use_extra_bufts = false;
        // SAFETY: the path is a C string that lives through the call.
        let raw = unsafe { sys::llama_model_load_from_file(file.as_ptr(), params) };
        NonNull::new(raw)
            .map(Self)
            .ok_or_else(|| load_error(path, last_error("llama.cpp cannot read it")))
    }

    fn vocab(&self) -> *const sys::llama_vocab {
        // SAFETY: the model lives.
        unsafe { sys::llama_model_get_vocab(self.0.as_ptr()) }
    }

    fn n_vocab(&self) -> usize {
        // SAFETY: the vocabulary lives as long as the model.
        count(unsafe { sys::llama_vocab_n_tokens(self.vocab()) })
    }

    /// Whether a sequence can be cut and shared at any token.
    fn has_plain_cache(&self) -> bool {
        let raw = self.0.as_ptr();
        // SAFETY: the model lives.
        let is_recurrent =
            unsafe { sys::llama_model_is_recurrent(raw) || sys::llama_model_is_hybrid(raw) };
        // SAFETY: the model lives.
        !is_recurrent && !unsafe { sys::llama_model_has_encoder(raw) }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: contexts and adapters hold an `Arc` of this or are dropped before it.
        unsafe { sys::llama_model_free(self.0.as_ptr()) }
    }
}

/// Owns a `llama_context`.
#[derive(Debug)]
struct Context(NonNull<sys::llama_context>);

impl Context {
    fn new(
        model: &Model,
        limits: &Limits,
        threads: usize,
        uses_gpu: bool,
        kv_type: sys::ggml_type,
    ) -> Option<Self> {
        // SAFETY: it only returns a struct.
        let mut params = unsafe { sys::llama_context_default_params() };
        let narrow = |n: usize| u32::try_from(n).ok();
        params.n_ctx = narrow(limits.cells)?;
        params.n_batch = narrow(limits.batch_tokens)?;
        params.n_ubatch = params.n_batch.min(MICRO_BATCH);
        params.n_seq_max = narrow(limits.sequences)?;
        params.n_outputs_max = narrow(limits.outputs)?;
        params.n_outputs_max_per_seq = params.n_outputs_max;
        params.n_threads = i32::try_from(threads).ok()?;
        params.n_threads_batch = params.n_threads;
        params.kv_unified = true;
        params.type_k = kv_type;
        params.type_v = kv_type;
        if !uses_gpu {
            // On the CPU its flash attention rounds to f16: log-probs of the same tokens in other
            // cells differed by up to 0.02 against 0.0002 without it, and generation was slower.
            params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
        }
        params.swa_full = true;
        // SAFETY: the model lives; the numbers are inside what llama.cpp asserts: sequences at
        // most 256 and not above the batch, the batch not above the cells.
        let raw = unsafe { sys::llama_init_from_model(model.0.as_ptr(), params) };
        NonNull::new(raw).map(Self)
    }

    fn memory(&self) -> sys::llama_memory_t {
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

/// Owns a `llama_batch`.
#[derive(Debug)]
struct Batch {
    raw: sys::llama_batch,
}

impl Batch {
    fn new(limits: &Limits) -> Self {
        let [tokens, sequences] = [limits.batch_tokens, limits.sequences].map(position);
        // SAFETY: both numbers are small and positive.
        Self { raw: unsafe { sys::llama_batch_init(tokens, 0, sequences) } }
    }

    fn fill(
        &mut self,
        batch: &[Entry<'_>],
        limits: &Limits,
        n_vocab: usize,
    ) -> Result<(), EngineError> {
        let n_outputs = batch.iter().filter(|entry| entry.logits).count();
        let is_sound = |entry: &Entry<'_>| {
            usize::try_from(entry.token.0).is_ok_and(|token| token < n_vocab)
                && entry.position < limits.cells
                && (1..=limits.sequences).contains(&entry.sequences.len())
                && entry.sequences.iter().all(|id| id.0 < limits.sequences)
        };
        if !(1..=limits.batch_tokens).contains(&batch.len())
            || n_outputs > limits.outputs
            || !batch.iter().all(is_sound)
        {
            return Err(EngineError::Failed(
                "the batch is outside the context's limits".to_owned(),
            ));
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

impl Drop for Batch {
    fn drop(&mut self) {
        // SAFETY: it was made by `llama_batch_init` and its pointers were not changed.
        unsafe { sys::llama_batch_free(self.raw) }
    }
}

/// Owns a `llama_adapter_lora`.
#[derive(Debug)]
struct Adapter {
    raw: NonNull<sys::llama_adapter_lora>,
    /// Freeing an adapter needs its model.
    _model: Arc<Model>,
}

impl Adapter {
    fn load(model: &Arc<Model>, path: &Path) -> Result<Self, EngineError> {
        let file = c_path(path)?;
        // SAFETY: the model lives, the path is a C string, and no decode runs meanwhile because
        // both happen in the engine thread.
        let raw = unsafe { sys::llama_adapter_lora_init(model.0.as_ptr(), file.as_ptr()) };
        let raw = NonNull::new(raw)
            .ok_or_else(|| load_error(path, last_error("it does not fit the model")))?;
        Ok(Self { raw, _model: Arc::clone(model) })
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        // SAFETY: `Backend::free` has unset it, or the context is gone; the model lives.
        unsafe { sys::llama_adapter_lora_free(self.raw.as_ptr()) }
    }
}

/// Numbers in K and V of one cell.
fn cell_values(header: &Gguf, model: &Model) -> usize {
    let raw = model.0.as_ptr();
    // SAFETY: the model lives.
    let [layers, embedding, heads, kv_heads] = unsafe {
        [
            sys::llama_model_n_layer(raw),
            sys::llama_model_n_embd(raw),
            sys::llama_model_n_head(raw),
            sys::llama_model_n_head_kv(raw),
        ]
    }
    .map(count);
    let architecture = header.string("general.architecture").unwrap_or_default();
    let length = |which: &str| {
        let key = format!("{architecture}.attention.{which}_length");
        let length = header.unsigned(&key).and_then(|n| usize::try_from(n).ok());
        length.unwrap_or(embedding / heads.max(1))
    };
    let values = layers.saturating_mul(kv_heads);
    values.saturating_mul(length("key").saturating_add(length("value")))
}

fn info(
    path: &Path,
    header: &Gguf,
    model: &Model,
    vocabulary: &LlamaVocabulary,
    cells: usize,
) -> Result<ModelInfo, EngineError> {
    let raw = model.0.as_ptr();
    // SAFETY: the model lives.
    let (n_parameters, trained) =
        unsafe { (sys::llama_model_n_params(raw), sys::llama_model_n_ctx_train(raw)) };
    let unreadable = |error: std::io::Error| load_error(path, error.to_string());
    let stem = || path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let [begin, end, end_of_turn] = vocabulary.special();
    Ok(ModelInfo {
        name: header.string("general.name").map_or_else(stem, str::to_owned),
        path: path.to_owned(),
        sha256: paths::sha256(path).map_err(unreadable)?,
        architecture: header.string("general.architecture").unwrap_or_default().to_owned(),
        n_parameters,
        size_bytes: std::fs::metadata(path).map_err(unreadable)?.len(),
        n_vocab: model.n_vocab(),
        max_sequence: cells.min(count(trained)),
        chat_template: header.string("tokenizer.chat_template").map(str::to_owned),
        bos: vocabulary.text(begin),
        eos: vocabulary.text(end),
        end_of_turn: if end_of_turn.0 >= 0 { end_of_turn } else { end },
        system: system(),
    })
}

/// A sequence id for llama.cpp, which aborts on one that is out of range.
fn checked_id(id: SequenceId, limits: &Limits) -> i32 {
    assert!(id.0 < limits.sequences, "sequence ids come from a list of this length");
    position(id.0)
}

/// A number that llama.cpp wants as `int32_t`.
fn position(n: usize) -> i32 {
    i32::try_from(n).expect("contexts and vocabularies are far smaller than 2^31")
}

/// A number that llama.cpp gives as `int32_t`; negative ones are none.
fn count(n: i32) -> usize {
    usize::try_from(n).unwrap_or(0)
}

fn size(n: u32) -> usize {
    usize::try_from(n).expect("a usize has at least 32 bits")
}
