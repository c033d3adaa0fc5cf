//! Main memory that is left for models: of the machine, and of the control group that a service runs
//! in. Used by the engine before it loads anything, and by the trainer's plan.

use std::fs;
use std::path::Path;

/// Bytes that this process may still take, and who says so.
pub fn available() -> (u64, String) {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = field(&meminfo, "MemAvailable:").map(|kib| kib.saturating_mul(1024));
    let free = (free.unwrap_or(u64::MAX), "MemAvailable".to_owned());
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let limit = group.and_then(|group| group_memory(Path::new("/sys/fs/cgroup"), group));
    match limit {
        Some(limit) if limit < free.0 => (limit, "memory.max of the control group".to_owned()),
        _ => free,
    }
}

/// What is left below the tightest `memory.max` of a control group and those above it. Pages of
/// files, such as an earlier run's mapped model, are given back when needed.
fn group_memory(root: &Path, group: &str) -> Option<u64> {
    let folder = root.join(group.trim_start_matches('/'));
    let left = |folder: &Path| {
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let max = number("memory.max")?;
        let files = field(&read("memory.stat")?, "inactive_file").unwrap_or(0);
        Some(max.saturating_sub(number("memory.current")?.saturating_sub(files)))
    };
    folder.ancestors().take_while(|folder| folder.starts_with(root)).filter_map(left).min()
}

/// The number behind a name in lines of names and numbers.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_control_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("system.slice/reflectd.service");
        fs::create_dir_all(&inner).unwrap();
        let put = |folder: &Path, name: &str, text: &str| {
            crate::write_atomic(&folder.join(name), |file| {
                std::io::Write::write_all(file, text.as_bytes())
            })
            .unwrap();
        };
        let group = "/system.slice/reflectd.service";
        assert_eq!(group_memory(root.path(), group), None);
        put(&inner, "memory.max", "max\n");
        put(&inner, "memory.current", "100\n");
        put(&inner, "memory.stat", "anon 50\ninactive_file 40\n");
        assert_eq!(group_memory(root.path(), group), None);
        put(&inner, "memory.max", "1000\n");
        assert_eq!(group_memory(root.path(), group), Some(940));
        let outer = root.path().join("system.slice");
        put(&outer, "memory.max", "500\n");
        put(&outer, "memory.current", "450\n");
        put(&outer, "memory.stat", "inactive_file 0\n");
        assert_eq!(group_memory(root.path(), group), Some(50));
    }

    #[test]
    fn this_machine_says_what_it_has() {
        let (bytes, source) = available();
        // The fallback, no limit at all, would be above the upper bound.
        assert!((1 << 20..1 << 50).contains(&bytes), "{bytes} by {source}");
    }
}
