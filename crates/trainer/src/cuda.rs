//! Loads `libtorch_cuda.so` when it lies beside `libtorch_cpu.so`, before the first tensor. The linker
//! drops the library, because no symbol of it is referenced; its kernels register themselves when it is
//! loaded. Also asks the CUDA runtime for the free memory. Used by `main`, `train`, `plan` and `survey`.

use std::path::{Path, PathBuf};

use protocol::Device as Wanted;
use tch::{Cuda, Device};

/// The device for a job.
pub(crate) fn device(wanted: Wanted) -> anyhow::Result<Device> {
    if wanted == Wanted::Cpu {
        return Ok(Device::Cpu);
    }
    let loaded = library().map(|path| load(&path));
    match (wanted, Cuda::is_available()) {
        (_, true) => Ok(Device::Cuda(0)),
        (Wanted::Auto | Wanted::Cpu, false) => Ok(Device::Cpu),
        (Wanted::Cuda, false) => match loaded {
            Some(Err(error)) => Err(error.context("load libtorch_cuda.so")),
            _ => anyhow::bail!("no CUDA device is usable: set trainer.device to auto or cpu"),
        },
    }
}

/// What a device is called in events.
pub(crate) fn name(device: Device) -> &'static str {
    if device == Device::Cpu { "cpu" } else { "cuda:0" }
}

/// Free and total bytes of the current GPU; `None` without one.
pub(crate) fn memory() -> Option<[u64; 2]> {
    if !Cuda::is_available() {
        return None;
    }
    mem_get_info(&loaded("libcudart.so")?)
}

/// `libtorch_cuda.so` beside the `libtorch_cpu.so` of this process.
fn library() -> Option<PathBuf> {
    let cuda = loaded("libtorch_cpu.so")?.with_file_name("libtorch_cuda.so");
    Some(cuda).filter(|path| path.exists())
}

/// Path of a library that this process has loaded, whatever version follows the name.
fn loaded(name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let paths =
        maps.lines().filter_map(|line| Some(PathBuf::from(line.split_at(line.find('/')?).1)));
    let is_named_so = |path: &PathBuf| {
        path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name))
    };
    paths.into_iter().find(is_named_so)
}

#[expect(unsafe_code, reason = "tch does not have this call of the CUDA runtime")]
fn mem_get_info(runtime: &Path) -> Option<[u64; 2]> {
    use libloading::os::unix::{Library, RTLD_NOW, Symbol};
    type MemGetInfo = unsafe extern "C" fn(*mut usize, *mut usize) -> i32;
    // SAFETY: libtorch has loaded the library already, so no initializer runs.
    let library = unsafe { Library::open(Some(runtime), RTLD_NOW) }.ok()?;
    // SAFETY: the type is that of the CUDA runtime's header.
    let call: Symbol<MemGetInfo> = unsafe { library.get(b"cudaMemGetInfo") }.ok()?;
    let (mut free, mut total) = (0, 0);
    // SAFETY: both pointers are valid for the call, which writes one number to each.
    let status = unsafe { call(&raw mut free, &raw mut total) };
    (status == 0).then_some([free as u64, total as u64])
}

#[expect(unsafe_code, reason = "dlopen runs the library's initializers")]
fn load(path: &Path) -> anyhow::Result<()> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: libtorch's own initializers register kernels and access nothing of this program; this
    // runs before any tensor exists and while the program has one thread.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }?;
    // Never unloaded: the registered kernels live in it.
    let _ = library.into_raw();
    Ok(())
}
