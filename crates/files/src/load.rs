//! How busy the machine is.

use std::fs;

/// Programs that wanted to run, on average over the last minute, for each processor. `None`: the kernel
/// does not say.
pub fn load_per_processor() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    let load: f64 = text.split_whitespace().next()?.parse().ok()?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Some(load / processors as f64)
}
