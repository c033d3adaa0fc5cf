//! llama.cpp: only this file and its folder name it and have unsafe code. Own RAII types over
//! llama-cpp-sys-2, because the safe crate can neither load an adapter while a context lives nor
//! free one. llama.cpp aborts the process on many wrong numbers, so everything is checked before
//! it gets there. Used by the engine thread; [`quantize`] by `reflectd nano` and the benchmark,
//! [`machine`] and [`survey`] by `reflectd doctor`.

#![expect(unsafe_code, reason = "llama.cpp is C++; every block says why it is sound")]

mod adapter;
mod allocator;
mod check;
mod context;
mod inspect;
mod memory;
#[cfg_attr(
    not(feature = "portable"),
    expect(dead_code, reason = "only a portable build loads modules")
)]
mod modules;
mod open;
mod process;
mod processor;
mod reward;
mod shape;
mod vocabulary;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llama_cpp_sys_2 as sys;

use super::core::block_tokens;
use super::{
    EngineConfig, EngineError, FlashAttention, Generation, KvCache, ModelInfo, Vocabulary,
};
use adapter::{Adapter, Shapes};
use check::check_model;
use context::{Batch, Computing, Context};
use files::gguf::{Gguf, Parts, TensorInfo, model_sha256, model_size};
use inference::backend::{Backend, Entry, Limits, SequenceId};
use inference::ranges;
use memory::Demand;
use open::{c_path, load_error, open_model};
use process::{Device, devices, init, last_error, physical_cores, system};
use shape::Shape;
use vocabulary::LlamaVocabulary;
#[cfg(test)]
pub(crate) use vocabulary::reference;

pub use inspect::{Machine, Stored, Survey, machine, survey, version};
pub use memory::{MemoryPlan, MemoryShare, OtherModels};
pub(super) use open::unreadable;
pub use open::{Quantization, quantize};
pub use reward::RewardModel;

/// Rows of logits of a batch take at most this; a large vocabulary has 600 KB a row.
const MAX_LOGITS_BYTES: usize = 256 << 20;

/// The real backend. Field order is significant: the context goes before the adapters that it may
/// have set, and both before the model.
#[derive(Debug)]
pub struct Llama {
    context: Context,
    batch: Batch,
    adapters: BTreeMap<Generation, Adapter>,
    selected: Generation,
    limits: Limits,
    host_cache_bytes: usize,
    cell_bytes: usize,
    is_deterministic: bool,
    info: ModelInfo,
    /// Of the model's tensors: an adapter must fit them.
    shapes: Shapes,
    vocabulary: Arc<LlamaVocabulary>,
    model: Arc<Model>,
    /// Until it is taken.
    judge: Option<JudgeContext>,
}

/// A second context on the same weights, for judgements, that is not made yet: its own thread does that.
/// It has the base alone, and one sequence.
#[derive(Debug)]
pub(crate) struct JudgeContext {
    limits: Limits,
    cell_bytes: usize,
    computing: Computing,
    info: ModelInfo,
    vocabulary: Arc<LlamaVocabulary>,
    model: Arc<Model>,
}

impl JudgeContext {
    pub(crate) fn open(self) -> Result<Llama, EngineError> {
        let Self { limits, cell_bytes, computing, info, vocabulary, model } = self;
        let context = Context::new(&model, &limits, computing).ok_or_else(|| {
            load_error(&info.path, last_error("the context for judgements cannot be made"))
        })?;
        Ok(Llama {
            info,
            // No adapter is ever loaded here.
            shapes: Shapes::new(),
            batch: Batch::new(&limits),
            adapters: BTreeMap::new(),
            selected: Generation::BASE,
            context,
            limits,
            host_cache_bytes: 0,
            cell_bytes,
            is_deterministic: true,
            vocabulary,
            model,
            judge: None,
        })
    }
}

impl Llama {
    /// Loads the model and makes its context.
    pub fn load(config: &EngineConfig) -> Result<Self, EngineError> {
        Self::load_beside(config, OtherModels::default())
    }

    /// The same beside other models.
    pub(crate) fn load_beside(
        config: &EngineConfig,
        others: OtherModels,
    ) -> Result<Self, EngineError> {
        let sha256 = hash(&config.model)?;
        Self::open(config, sha256, others)
    }

    /// The same for a file whose hash is known, or that nobody will ask it of.
    pub(super) fn open(
        config: &EngineConfig,
        sha256: String,
        others: OtherModels,
    ) -> Result<Self, EngineError> {
        init()?;
        let path = config.model.as_path();
        let parts = open_model(path)?;
        let header = parts.header();
        let Loaded { model, limits, judge, host_cache_bytes, cell_bytes, computing } =
            load(config, &parts, others, |limits| limits)?;
        let context = Context::new(&model, &limits, computing)
            .ok_or_else(|| load_error(path, last_error("the context cannot be made")))?;
        let template = chat_template(config, header).unwrap_or_default();
        let vocabulary = Arc::new(LlamaVocabulary::new(Arc::clone(&model), template));
        let info = info(config, sha256, header, &model, &vocabulary, limits.cells)?;
        if info.max_sequence < limits.cells {
            let (longest, pool) = (info.max_sequence, limits.cells);
            tracing::info!(longest, pool, "One sequence ends where the model's training ended.");
        }
        let judge = judge.map(|limits| JudgeContext {
            limits,
            cell_bytes,
            computing,
            info: info.clone(),
            vocabulary: Arc::clone(&vocabulary),
            model: Arc::clone(&model),
        });
        Ok(Self {
            judge,
            info,
            shapes: parts.tensors().map(|it| (it.name.clone(), it.shape.clone())).collect(),
            batch: Batch::new(&limits),
            adapters: BTreeMap::new(),
            selected: Generation::BASE,
            context,
            limits,
            host_cache_bytes,
            cell_bytes,
            is_deterministic: config.deterministic,
            vocabulary,
            model,
        })
    }

    /// The context for judgements, once; `None`: it is not wanted, or memory has no room for it.
    pub(crate) fn take_judge(&mut self) -> Option<JudgeContext> {
        self.judge.take()
    }
}

/// A model in memory, and what its context may be.
#[derive(Debug)]
struct Loaded {
    model: Arc<Model>,
    limits: Limits,
    /// Of the context for judgements.
    judge: Option<Limits>,
    host_cache_bytes: usize,
    cell_bytes: usize,
    computing: Computing,
}

/// Checks a file, plans its memory and loads it. `lower`: what of the limits its use needs.
fn load(
    config: &EngineConfig,
    parts: &Parts,
    others: OtherModels,
    lower: impl FnOnce(Limits) -> Limits,
) -> Result<Loaded, EngineError> {
    let path = config.model.as_path();
    let refused = |reason: String| load_error(path, reason);
    let shape = check_model(parts).map_err(refused)?;
    let n_vocab = vocabulary_size(parts.header());
    let devices = devices();
    let mut demand = demand(config, parts, &shape, &devices).map_err(refused)?;
    demand.limits = lower(demand.limits);
    let limits = demand.limits;
    demand.others = others;
    let plan = demand.plan(config.gpu_layers, &devices).map_err(refused)?;
    demand.check(&plan).map_err(refused)?;
    if let Some(reason) = &plan.judge_refusal {
        let model = path.display();
        tracing::warn!(
            %model,
            reason,
            "Judgements have no context of their own: what else is computed changes their rounding."
        );
    }

    let model = Arc::new(Model::load(path, plan.gpu_layers)?);
    if !model.has_plain_cache() {
        let reason = "it is recurrent or has an encoder; use a decoder with attention only";
        return Err(load_error(path, reason));
    }
    if model.n_vocab() != n_vocab {
        let reason = format!("it has {} tokens, not {n_vocab}", model.n_vocab());
        return Err(refused(reason));
    }
    let computing = Computing {
        threads: config.threads.map_or_else(physical_cores, size),
        batch_threads: batch_threads(config),
        flash_attention: flash_attention(config, &devices),
        kv_cache: config.kv_cache,
        pooling: None,
    };
    let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let (host_cache_bytes, cell_bytes) =
        (bytes(plan.host.prefix_cache), bytes(demand.cache_bytes(1)));
    let judge = demand.judge.filter(|_| plan.judge_refusal.is_none());
    Ok(Loaded { model, limits, judge, host_cache_bytes, cell_bytes, computing })
}

/// Threads for steps of more than one token.
fn batch_threads(config: &EngineConfig) -> usize {
    config.batch_threads.or(config.threads).map_or_else(physical_cores, size)
}

fn hash(path: &Path) -> Result<String, EngineError> {
    model_sha256(path).map_err(|error| unreadable(path, &error))
}

/// What serving this model would take.
fn demand<'a>(
    config: &EngineConfig,
    parts: &'a Parts,
    shape: &'a Shape,
    devices: &[Device],
) -> Result<Demand<'a>, String> {
    let n_vocab = vocabulary_size(parts.header());
    let attention = flash_attention(config, devices);
    let block = block(config, parts, shape, devices);
    let limits = limits(config, n_vocab, block)?;
    let trained = usize::try_from(shape.context).unwrap_or(usize::MAX);
    let judge = Limits {
        cells: limits.cells.min(trained).max(block),
        sequences: 1,
        batch_tokens: block,
        outputs: block,
    };
    Ok(Demand {
        parts,
        shape,
        n_vocab: n_vocab as u64,
        limits,
        judge: (config.deterministic_judge && !config.deterministic).then_some(judge),
        kv_cache: config.kv_cache,
        keeps_copies: !config.deterministic,
        has_flash_attention: attention != sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        others: OtherModels::default(),
    })
}

/// Tokens in the file's vocabulary, which `check_model` has seen.
fn vocabulary_size(header: &Gguf) -> usize {
    header.array("tokenizer.ggml.tokens").map_or(0, <[_]>::len)
}

/// Tokens of a step of a deterministic context. A GPU is fast enough for all, if it has room for the whole
/// model; what is free of it today would round in another way tomorrow.
fn block(config: &EngineConfig, parts: &Parts, shape: &Shape, devices: &[Device]) -> usize {
    let n_parameters = parts.tensors().map(TensorInfo::n_values).fold(0, u64::saturating_add);
    let room = devices.iter().filter(|device| device.is_gpu).map(|device| device.total).sum();
    let fits = model_size(&config.model).is_ok_and(|bytes| bytes < room);
    let has_all = config.gpu_layers.is_none_or(|layers| shape.layers.len() <= layers as usize);
    let is_on_gpu = is_on_gpu(config, devices) && fits && has_all;
    block_tokens(if is_on_gpu { 0 } else { n_parameters }, batch_threads(config))
}

/// What the configuration gives this model; what it cannot have is refused and not made to fit. `block`:
/// tokens of a deterministic context's steps.
fn limits(config: &EngineConfig, n_vocab: usize, block: usize) -> Result<Limits, String> {
    if !ranges::SEQUENCES.contains(&config.max_sequences) {
        let (least, most) = (ranges::SEQUENCES.start(), ranges::SEQUENCES.end());
        return Err(format!(
            "max_sequences is {}; {least} to {most} is allowed",
            config.max_sequences
        ));
    }
    let sequences = if config.deterministic { 1 } else { size(config.max_sequences) };
    let cells = size(config.context_tokens);
    if cells <= sequences {
        return Err(format!("context_tokens must be at least {}", sequences + 1));
    }
    let batch_tokens =
        if config.deterministic { block.min(cells) } else { size(config.batch_tokens) };
    if !(sequences..=cells).contains(&batch_tokens) {
        return Err(format!(
            "batch_tokens is {batch_tokens}; it must be at least max_sequences ({sequences}) and at \
             most context_tokens ({cells})"
        ));
    }
    let outputs = (MAX_LOGITS_BYTES / 4 / n_vocab.max(1)).max(sequences).min(batch_tokens);
    Ok(Limits { cells, sequences, batch_tokens, outputs })
}

/// Attention looks at the cells of all sequences, and only the flash kernels pass over those that
/// are not a sequence's own: with eight chats they made a step half as long. On the CPU they add up
/// an f16 cache in f16, which moved log-probs by up to 0.02; an f32 cache they read far slower.
fn flash_attention(config: &EngineConfig, devices: &[Device]) -> sys::llama_flash_attn_type {
    let is_on_gpu = is_on_gpu(config, devices);
    match (config.flash_attention, config.kv_cache) {
        (FlashAttention::On, _) => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        (FlashAttention::Off, _) => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        (FlashAttention::Auto, KvCache::F32) if !is_on_gpu => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        (FlashAttention::Auto, KvCache::F32 | KvCache::F16) => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
        // llama.cpp computes with a quantized V in no other way.
        (FlashAttention::Auto, KvCache::Q8_0 | KvCache::Q4_0) => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
    }
}

fn is_on_gpu(config: &EngineConfig, devices: &[Device]) -> bool {
    config.gpu_layers != Some(0) && devices.iter().any(|device| device.is_gpu)
}

impl Llama {
    /// Lets `to` share the cells of `from` at these positions.
    fn share(&mut self, from: i32, to: i32, positions: &Range<usize>) {
        let [start, end] = [positions.start, positions.end].map(position);
        // SAFETY: the ids are below the context's `n_seq_max`; unified KV allows part of a sequence.
        unsafe { sys::llama_memory_seq_cp(self.context.memory(), from, to, start, end) };
    }

    fn clear(&mut self, id: i32) {
        // SAFETY: the id is below the context's `n_seq_max`.
        unsafe { sys::llama_memory_seq_rm(self.context.memory(), id, -1, -1) };
    }
}

#[cfg(test)]
impl Llama {
    /// What llama.cpp itself says of a batch, whose tokens and sequence ids may be out of range.
    pub(crate) fn decode_unchecked(&mut self, batch: &[Entry<'_>]) -> Result<bool, EngineError> {
        self.batch.write(batch, &self.limits)?;
        self.context.decode(&self.batch, None)
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

    fn decode(
        &mut self,
        batch: &[Entry<'_>],
        interrupt: Option<&AtomicBool>,
    ) -> Result<usize, EngineError> {
        self.batch.fill(batch, &self.limits, self.info.n_vocab)?;
        let _alone = self.model.alone();
        Ok(if self.context.decode(&self.batch, interrupt)? {
            batch.len()
        } else {
            batch.iter().take_while(|entry| self.context.has_cell(entry)).count()
        })
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
        self.share(from, to, &(0..n));
    }

    fn truncate(&mut self, sequence: SequenceId, n: usize) {
        self.context.truncate(checked_id(sequence, &self.limits), n);
    }

    fn save(&mut self, sequence: SequenceId, positions: Range<usize>) -> Option<Vec<u8>> {
        let (context, scratch) = (self.context.0.as_ptr(), position(self.limits.sequences));
        self.share(checked_id(sequence, &self.limits), scratch, &positions);
        // SAFETY: the context lives and the id is below its `n_seq_max`.
        let size = unsafe { sys::llama_state_seq_get_size(context, scratch) };
        let mut state = vec![0; size];
        // SAFETY: as above; the buffer is as long as is said.
        let written =
            unsafe { sys::llama_state_seq_get_data(context, state.as_mut_ptr(), size, scratch) };
        self.clear(scratch);
        (0 < written && written == size).then_some(state)
    }

    fn restore(&mut self, sequence: SequenceId, positions: Range<usize>, state: &[u8]) -> bool {
        let (context, scratch) = (self.context.0.as_ptr(), position(self.limits.sequences));
        // SAFETY: the context lives, the id is below its `n_seq_max`, and the bytes are those that
        // the same context wrote.
        let read =
            unsafe { sys::llama_state_seq_set_data(context, state.as_ptr(), state.len(), scratch) };
        let is_read = read == state.len();
        if is_read {
            self.share(scratch, checked_id(sequence, &self.limits), &positions);
        }
        self.clear(scratch);
        is_read
    }

    fn host_cache_bytes(&self) -> usize {
        self.host_cache_bytes
    }

    fn cell_bytes(&self) -> usize {
        self.cell_bytes
    }

    fn is_deterministic(&self) -> bool {
        self.is_deterministic
    }

    fn load(&mut self, generation: Generation, path: &Path) -> Result<(), EngineError> {
        let adapter = Adapter::load(&self.model, path, &self.info.architecture, &self.shapes)?;
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
            None => return Err(EngineError::NotLoaded(generation)),
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

/// Owns a `llama_model`. The lock is of its list of adapters, which whoever makes a context or computes
/// reads: a model may have two contexts, each in a thread of its own.
#[derive(Debug)]
struct Model(NonNull<sys::llama_model>, Mutex<()>);

// SAFETY: a loaded model is read-only but for its list of adapters, which is used under the lock alone
// where a model has adapters.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Model {
    fn load(path: &Path, gpu_layers: u32) -> Result<Self, EngineError> {
        let file = c_path(path)?;
        // SAFETY: it only returns a struct.
        let mut params = unsafe { sys::llama_model_default_params() };
        params.n_gpu_layers = i32::try_from(gpu_layers).unwrap_or(i32::MAX);
        // Repacking copies the weights out of the page cache; without it a prompt was evaluated
        // 5 to 28 % faster here and a token generated 5 to 9 % slower, and prompts dominate.
        params.use_extra_bufts = false;
        // SAFETY: the path is a C string that lives through the call.
        let raw = unsafe { sys::llama_model_load_from_file(file.as_ptr(), params) };
        NonNull::new(raw)
            .map(|raw| Self(raw, Mutex::default()))
            .ok_or_else(|| load_error(path, last_error("llama.cpp cannot read it")))
    }

    /// While the result lives, nobody else computes with the model or changes its adapters.
    fn alone(&self) -> MutexGuard<'_, ()> {
        // There is nothing that a panic could have left half done.
        self.1.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The owner's, or the model's own.
fn chat_template<'a>(config: &'a EngineConfig, header: &'a Gguf) -> Option<&'a str> {
    config.chat_template.as_deref().or_else(|| header.string("tokenizer.chat_template"))
}

fn info(
    config: &EngineConfig,
    sha256: String,
    header: &Gguf,
    model: &Model,
    vocabulary: &LlamaVocabulary,
    cells: usize,
) -> Result<ModelInfo, EngineError> {
    let path = config.model.as_path();
    let raw = model.0.as_ptr();
    // SAFETY: the model lives.
    let (n_parameters, trained) =
        unsafe { (sys::llama_model_n_params(raw), sys::llama_model_n_ctx_train(raw)) };
    let stem = || path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let [begin, end, end_of_turn] = vocabulary.special();
    Ok(ModelInfo {
        name: header.string("general.name").map_or_else(stem, str::to_owned),
        // Whoever asks where it lies may be in another folder.
        path: std::path::absolute(path).map_err(|error| load_error(path, error.to_string()))?,
        sha256,
        architecture: header.string("general.architecture").unwrap_or_default().to_owned(),
        n_parameters,
        size_bytes: model_size(path).map_err(|error| unreadable(path, &error))?,
        n_vocab: model.n_vocab(),
        max_sequence: cells.min(count(trained)),
        chat_template: chat_template(config, header).map(str::to_owned),
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
