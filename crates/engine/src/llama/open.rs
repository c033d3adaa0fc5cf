//! Files for llama.cpp: opening them, and the conversions that the project needs of it.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use llama_cpp_sys_2 as sys;

use super::check::check_model;
use super::process::{init, last_error};
use crate::EngineError;
use files::gguf::{Gguf, GgufError, Parts};

/// What a model file can be quantized to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Quantization {
    /// 8 bits a weight: the nano model.
    Q8_0,
    /// 4 to 6 bits a weight, by tensor: what people download, and what benchmarks serve.
    Q4KM,
}

impl Quantization {
    fn file_type(self) -> sys::llama_ftype {
        match self {
            Self::Q8_0 => sys::LLAMA_FTYPE_MOSTLY_Q8_0,
            Self::Q4KM => sys::LLAMA_FTYPE_MOSTLY_Q4_K_M,
        }
    }
}

/// Quantizes a model file.
pub fn quantize(src: &Path, dst: &Path, to: Quantization) -> Result<(), EngineError> {
    init()?;
    check_model(&open_model(src)?).map_err(|reason| load_error(src, reason))?;
    let [from, into] = [c_path(src)?, c_path(dst)?];
    // SAFETY: it only returns a struct.
    let mut params = unsafe { sys::llama_model_quantize_default_params() };
    params.ftype = to.file_type();
    // SAFETY: paths and parameters live through the call.
    let code =
        unsafe { sys::llama_model_quantize(from.as_ptr(), into.as_ptr(), &raw const params) };
    if code == 0 { Ok(()) } else { Err(load_error(src, last_error("it cannot be quantized"))) }
}

/// A file's header.
pub(super) fn open(path: &Path) -> Result<Gguf, EngineError> {
    Gguf::open(path).map_err(|error| unreadable(path, &error))
}

/// The headers of all files of a model.
pub(super) fn open_model(path: &Path) -> Result<Parts, EngineError> {
    Parts::open(path).map_err(|error| unreadable(path, &error))
}

/// What is wrong with a file, with its cause.
pub(crate) fn unreadable(path: &Path, error: &GgufError) -> EngineError {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    load_error(path, format!("{error}{}", cause.unwrap_or_default()))
}

/// A path as llama.cpp wants it.
pub(super) fn c_path(path: &Path) -> Result<CString, EngineError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| load_error(path, "its path has a zero byte".to_owned()))
}

/// A file cannot be loaded.
pub(super) fn load_error(path: &Path, reason: impl Into<String>) -> EngineError {
    EngineError::Load { path: path.to_owned(), reason: reason.into() }
}
