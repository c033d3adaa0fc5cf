//! Loads libtorch's CUDA half when it lies beside the CPU half. The linker drops it, because no
//! symbol of it is named; its kernels register themselves on loading. Before the first tensor.

use std::path::PathBuf;

use reflectd::protocol::Device as Wanted;
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

/// `libtorch_cuda.so` beside the `libtorch_cpu.so` of this process.
fn library() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let cpu = maps.lines().find_map(|line| {
        line.find('/')
            .map(|at| line.split_at(at).1)
            .filter(|path| path.ends_with("libtorch_cpu.so"))
    })?;
    Some(PathBuf::from(cpu).with_file_name("libtorch_cuda.so")).filter(|path| path.exists())
}

#[expect(unsafe_code, reason = "dlopen runs the library's initialisers")]
fn load(path: &std::path::Path) -> anyhow::Result<()> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: libtorch's own initialisers register kernels and touch nothing of ours; this runs
    // before any tensor exists and while the program has one thread.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }?;
    // Never unloaded: the registered kernels live in it.
    let _ = library.into_raw();
    Ok(())
}
