//! What llama.cpp would do with this machine and a model file, without serving it: the facts behind
//! `reflectd doctor`. Used by `cli/doctor` and, for the version, by `probe`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::check::{check_data, check_model, tensor_bytes};
use super::memory::MemoryPlan;
use super::open::{load_error, open_model};
use super::process::{self, Device, devices, init, kernels, physical_cores};
use super::{chat_template, demand, flash_attention, sys, vocabulary_size};
use crate::{EngineConfig, EngineError};
use files::gguf::{Parts, TensorInfo};

/// What computes here.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Versions of llama.cpp and ggml.
    pub version: String,
    /// The kernel module for this processor.
    pub kernels: String,
    /// Main memory and GPUs.
    pub devices: Vec<Device>,
    /// Threads when nothing is configured.
    pub physical_cores: usize,
}

/// Starts llama.cpp and looks what it has found.
pub fn machine() -> Result<Machine, EngineError> {
    init()?;
    Ok(Machine {
        version: version(),
        kernels: kernels(),
        devices: devices(),
        physical_cores: physical_cores(),
    })
}

/// Versions of llama.cpp and ggml.
pub fn version() -> String {
    process::version()
}

/// What is in a model file and what serving it would take.
#[derive(Clone, Debug, Serialize)]
pub struct Survey {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`.
    pub name: Option<String>,
    /// Values in all tensors.
    pub n_parameters: u64,
    /// Files that it is split into.
    pub n_files: usize,
    /// Tensors by type, the largest share first.
    pub quantization: Vec<Stored>,
    /// Tokens in the vocabulary.
    pub n_vocab: usize,
    /// Jinja source from the file.
    #[serde(skip)]
    pub chat_template: Option<String>,
    /// Texts of the begin and end tokens.
    #[serde(skip)]
    pub begin_and_end: [String; 2],
    /// Memory for the configured context, when the file's dimensions are sound.
    pub memory: Option<MemoryPlan>,
    /// Whether attention is computed in one kernel; `None`: llama.cpp decides by the GPU.
    pub flash_attention: Option<bool>,
    /// Why the file is not served.
    pub refusal: Option<String>,
}

/// Tensors of one type.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Stored {
    /// ggml's name: `q4_K`, `f16`.
    #[serde(rename = "type")]
    pub kind: String,
    /// How many tensors.
    pub tensors: usize,
    /// Bytes of their data.
    pub bytes: u64,
}

/// Looks at `config.model`. What would be refused at the start is told in the survey; only a file
/// that is no GGUF at all is an error.
pub fn survey(config: &EngineConfig) -> Result<Survey, EngineError> {
    init()?;
    let path = config.model.as_path();
    let parts = open_model(path)?;
    let header = parts.header();
    let devices = devices();
    let checked = check_model(&parts).and_then(|shape| {
        let demand = demand(config, &parts, &shape, &devices)?;
        let plan = demand.plan(config.gpu_layers, &devices)?;
        let fault = demand.check(&plan).err();
        Ok((plan, fault))
    });
    let (memory, refusal) = match checked {
        Ok((plan, fault)) => (Some(plan), fault),
        Err(fault) => (None, Some(fault)),
    };
    let token = |key: &str| {
        let id = usize::try_from(header.unsigned(&format!("tokenizer.ggml.{key}"))?).ok()?;
        match header.array("tokenizer.ggml.tokens")?.get(id)? {
            files::gguf::Value::String(text) => Some(text.clone()),
            _ => None,
        }
    };
    Ok(Survey {
        architecture: header.string("general.architecture").unwrap_or_default().to_owned(),
        name: header.string("general.name").map(str::to_owned),
        n_parameters: parts.tensors().map(TensorInfo::n_values).fold(0, u64::saturating_add),
        n_files: parts.files().len(),
        quantization: quantization(&parts, path)?,
        n_vocab: vocabulary_size(header),
        chat_template: chat_template(config, header).map(str::to_owned),
        begin_and_end: ["bos_token_id", "eos_token_id"].map(|key| token(key).unwrap_or_default()),
        memory,
        flash_attention: match flash_attention(config, &devices) {
            sys::LLAMA_FLASH_ATTN_TYPE_DISABLED => Some(false),
            sys::LLAMA_FLASH_ATTN_TYPE_ENABLED => Some(true),
            _ => None,
        },
        refusal,
    })
}

fn quantization(parts: &Parts, path: &Path) -> Result<Vec<Stored>, EngineError> {
    for file in parts.files() {
        check_data(file).map_err(|reason| load_error(path, reason))?;
    }
    let mut by_type: BTreeMap<u32, (usize, u64)> = BTreeMap::new();
    for tensor in parts.tensors() {
        let bytes = tensor_bytes(tensor).map_err(|reason| load_error(path, reason))?;
        let entry = by_type.entry(tensor.kind.id()).or_default();
        *entry = (entry.0 + 1, entry.1.saturating_add(bytes));
    }
    let named = |(id, (tensors, bytes))| Stored { kind: ggml::type_name(id), tensors, bytes };
    let mut stored: Vec<Stored> = by_type.into_iter().map(named).collect();
    stored.sort_by_key(|it| std::cmp::Reverse(it.bytes));
    Ok(stored)
}
