//! What llama.cpp has once a process: its start, its log, and what machine it sees.

use std::ffi::{CStr, c_char, c_void};
use std::path::PathBuf;
use std::ptr;
use std::sync::{Mutex, OnceLock, PoisonError};

use llama_cpp_2::llama_backend::{LlamaBackend, load_backends_from_path};
use llama_cpp_sys_2 as sys;

use super::allocator;

/// The last line that llama.cpp logged as an error: the reason behind a null pointer.
static LAST_ERROR: Mutex<String> = Mutex::new(String::new());

/// Starts llama.cpp, once, and takes over its log.
pub(super) fn init() {
    static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
    BACKEND.get_or_init(|| {
        // SAFETY: the callback lives for ever and needs no data.
        unsafe { sys::llama_log_set(Some(log), ptr::null_mut()) };
        // Its own handler would start a debugger to print a backtrace.
        // SAFETY: the callback lives for ever.
        unsafe { sys::ggml_set_abort_callback(Some(log_abort)) };
        allocator::settle();
        load_backends_from_path(&modules());
        LlamaBackend::init().expect("nothing else starts llama.cpp")
    });
}

/// Where ggml's kernel modules are: beside an installed program, or else where llama.cpp was built.
/// Never the working directory, where anybody could put one.
fn modules() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let installed = program.parent().map(|folder| folder.join("../lib/reflectd"));
    let built = || PathBuf::from(sys::BACKENDS_DIR.unwrap_or_default());
    installed.filter(|folder| folder.join("libggml-base.so.0").exists()).unwrap_or_else(built)
}

/// Why the last call failed, as far as the log says.
pub(super) fn last_error(otherwise: &str) -> String {
    let mut last = LAST_ERROR.lock().unwrap_or_else(PoisonError::into_inner);
    let reason = std::mem::take(&mut *last);
    if reason.is_empty() { otherwise.to_owned() } else { reason }
}

/// Kernels and devices in use.
pub(super) fn system() -> String {
    // SAFETY: it returns a static C string.
    let text = unsafe { CStr::from_ptr(sys::llama_print_system_info()) };
    text.to_string_lossy().trim().to_owned()
}

/// Free memory of the device that has most, in bytes.
pub(super) fn largest_memory() -> usize {
    // SAFETY: the backend is started.
    let n_devices = unsafe { sys::ggml_backend_dev_count() };
    let free = |index| {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the index is below the number of devices; both pointers are valid for a write.
        unsafe {
            sys::ggml_backend_dev_memory(
                sys::ggml_backend_dev_get(index),
                &raw mut free,
                &raw mut total,
            );
        }
        free
    };
    (0..n_devices).map(free).max().unwrap_or(0)
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
        sys::GGML_LOG_LEVEL_ERROR => {
            text.clone_into(&mut LAST_ERROR.lock().unwrap_or_else(PoisonError::into_inner));
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
