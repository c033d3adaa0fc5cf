//! What llama.cpp has once a process: its start, its log, and what machine it sees. Used by all of
//! `llama.rs` and its folder.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_void};
use std::ptr;
use std::sync::OnceLock;

use serde::Serialize;

use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_sys_2 as sys;

#[cfg(feature = "portable")]
use super::modules;
use super::{allocator, processor};
use crate::EngineError;

/// Reasons longer than this are cut off: a file may have thousands of faults.
const LONGEST_REASON: usize = 1000;

// llama.cpp logs in the thread that calls it, and each model has a thread of its own.
thread_local! {
    /// The lines that llama.cpp has logged as errors: the reason behind a null pointer or a code. The
    /// first one says what is wrong, the last one only that something is.
    static ERRORS: RefCell<String> = const { RefCell::new(String::new()) };

    /// The abort callback has ended the decode that is under way, which llama.cpp reports as an error.
    static IS_ABORTED: Cell<bool> = const { Cell::new(false) };
}

/// Starts llama.cpp, once, and takes over its log. Without a kernel module nothing can be
/// computed, and llama.cpp would only say so by ending the process.
pub(super) fn init() -> Result<(), EngineError> {
    static BACKEND: OnceLock<Result<LlamaBackend, String>> = OnceLock::new();
    let backend = BACKEND.get_or_init(|| {
        // SAFETY: the callback lives for ever and needs no data.
        unsafe { sys::llama_log_set(Some(log), ptr::null_mut()) };
        // Its own handler would start a debugger to print a backtrace.
        // SAFETY: the callback lives for ever.
        unsafe { sys::ggml_set_abort_callback(Some(log_abort)) };
        allocator::settle();
        processor::check()?;
        load_modules();
        // SAFETY: it looks into the list of what was loaded.
        let cpu = unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) };
        if cpu.is_null() {
            return Err(
                "llama.cpp's kernel modules (libggml-cpu-*.so) are not beside its libraries; install the \
                 package again, or build it where this program was built"
                    .to_owned(),
            );
        }
        Ok(LlamaBackend::init().expect("nothing else starts llama.cpp"))
    });
    backend.as_ref().map(drop).map_err(|reason| EngineError::Kernels(reason.clone()))
}

/// Loads the kernel modules of a portable build; one for this processor alone has its kernels in it.
fn load_modules() {
    #[cfg(feature = "portable")]
    if let Some(folder) = modules::folder() {
        llama_cpp_2::llama_backend::load_backends_from_path(&folder);
    }
}

/// The processor that the kernels in use are for, as `znver3`, or the kernel module that ggml has
/// picked, as `zen4` or `haswell`. ggml does not say it, the list of what is mapped does.
pub(super) fn kernels() -> String {
    if let Some(processor) = processor::compiled_for() {
        return processor.to_owned();
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let names = maps.lines().filter_map(|line| line.rsplit('/').next());
    let mut modules = names.filter_map(|name| {
        Some(name.strip_prefix("libggml-cpu-")?.strip_suffix(".so")?.to_owned())
    });
    modules.next().unwrap_or_else(|| "unknown".to_owned())
}

/// Versions of llama.cpp and ggml.
pub(super) fn version() -> String {
    // SAFETY: both return static C strings.
    let [llama, ggml] = unsafe { [sys::llama_version(), sys::ggml_version()] }.map(static_text);
    format!("llama.cpp {llama}, ggml {ggml}")
}

/// Notes that the abort callback ends the decode that is under way.
pub(super) fn note_abort() {
    IS_ABORTED.set(true);
}

/// Forgets what was reported of calls before.
pub(super) fn forget_errors() {
    IS_ABORTED.set(false);
    ERRORS.take();
}

/// What llama.cpp has reported since [`forget_errors`].
pub(super) fn last_error(otherwise: &str) -> String {
    let reason = ERRORS.take();
    if reason.is_empty() { otherwise.to_owned() } else { reason }
}

fn note_error(text: &str) {
    ERRORS.with_borrow_mut(|errors| {
        if errors.len() < LONGEST_REASON {
            if !errors.is_empty() {
                errors.push_str("; ");
            }
            errors.extend(text.chars().take(LONGEST_REASON));
        }
    });
}

/// Kernels and devices in use.
pub(super) fn system() -> String {
    // SAFETY: it returns a static C string.
    let features = static_text(unsafe { sys::llama_print_system_info() });
    format!("{} kernels; {features}", kernels())
}

/// One place where llama.cpp can compute.
#[derive(Clone, Debug, Serialize)]
pub struct Device {
    /// As ggml calls it: `CPU`, `CUDA0`.
    pub name: String,
    /// What it is.
    pub description: String,
    /// A GPU with memory of its own.
    pub is_gpu: bool,
    /// Free bytes of its memory.
    pub free: u64,
    /// All bytes of its memory.
    pub total: u64,
}

/// Every device of the modules that were loaded.
pub(super) fn devices() -> Vec<Device> {
    // SAFETY: the backend is started.
    let n_devices = unsafe { sys::ggml_backend_dev_count() };
    (0..n_devices).map(device).collect()
}

fn device(index: usize) -> Device {
    let (mut free, mut total) = (0, 0);
    // SAFETY: the index is below the number of devices.
    let raw = unsafe { sys::ggml_backend_dev_get(index) };
    // SAFETY: the device lives for ever; both pointers are valid for a write.
    unsafe { sys::ggml_backend_dev_memory(raw, &raw mut free, &raw mut total) };
    // SAFETY: the device lives for ever, and so do its texts.
    let (name, description, kind) = unsafe {
        (
            sys::ggml_backend_dev_name(raw),
            sys::ggml_backend_dev_description(raw),
            sys::ggml_backend_dev_type(raw),
        )
    };
    Device {
        name: static_text(name),
        description: static_text(description),
        is_gpu: kind == sys::GGML_BACKEND_DEVICE_TYPE_GPU,
        free: free as u64,
        total: total as u64,
    }
}

/// A C string that lives for ever.
fn static_text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller has it from ggml's or llama.cpp's static data.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
}

/// Two threads on one core only wait for each other in ggml's spin barriers.
pub(super) fn physical_cores() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, usize::from);
    let is_smt = std::fs::read_to_string("/sys/devices/system/cpu/smt/active")
        .is_ok_and(|active| active.trim() == "1");
    if is_smt { logical.div_ceil(2) } else { logical }
}

/// llama.cpp says at INFO what others say at DEBUG, and warns about every tensor of an adapter.
unsafe extern "C" fn log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    // SAFETY: llama.cpp passes a C string that lives through the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let text = text.trim();
    if text.is_empty() {
        return;
    }
    match level {
        // A step of idle work that was broken off; it is done again.
        sys::GGML_LOG_LEVEL_ERROR if IS_ABORTED.get() => {
            tracing::debug!(target: "reflectd::llama", "{text}");
        }
        sys::GGML_LOG_LEVEL_ERROR => {
            note_error(text);
            tracing::warn!(error = text, "llama.cpp reports an error.");
        }
        sys::GGML_LOG_LEVEL_WARN | sys::GGML_LOG_LEVEL_INFO => {
            tracing::debug!(target: "reflectd::llama", "{text}");
        }
        _ => tracing::trace!(target: "reflectd::llama", "{text}"),
    }
}

unsafe extern "C" fn log_abort(text: *const c_char) {
    // SAFETY: ggml passes a C string that lives through the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    tracing::error!(error = %text, "llama.cpp ends the process.");
}
