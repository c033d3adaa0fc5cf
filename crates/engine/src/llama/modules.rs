//! Where the kernel modules of a portable build are.

use std::path::{Path, PathBuf};

/// Beside the ggml library that this process has loaded where it is installed, in a folder of their own
/// where it was built. So modules and library are of one build, and the program carries no path of it.
/// Never the working directory, where anybody could put one.
pub(super) fn folder() -> Option<PathBuf> {
    beside_library(&std::fs::read_to_string("/proc/self/maps").unwrap_or_default())
}

fn beside_library(maps: &str) -> Option<PathBuf> {
    let is_library = |path: &&Path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libggml-base.so"))
    };
    let paths = maps.lines().filter_map(|line| line.find('/').and_then(|at| line.get(at..)));
    let library = paths.map(Path::new).find(is_library);
    let folder = library.and_then(Path::parent)?;
    let built = folder.with_file_name("backends");
    Some(if folder.ends_with("lib") && built.is_dir() { built } else { folder.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_modules_are_looked_for_beside_the_library_that_is_loaded() {
        let maps = |path: &str| {
            format!(
                "55d0-55e0 r-xp 00000000 fe:00 12 /usr/bin/reflectd\n7f00-7f10 rw-p 0 0:0 0\n{path}"
            )
        };
        let line = "7f20-7f30 r--p 00000000 fe:00 13    /usr/lib/reflectd/libggml-base.so.0.15.3\n";
        assert_eq!(beside_library(&maps(line)).unwrap(), Path::new("/usr/lib/reflectd"));
        assert_eq!(beside_library(&maps("")), None, "no folder that anybody could fill");

        let out = tempfile::tempdir().unwrap();
        let library = out.path().join("lib").join("libggml-base.so.0");
        let line = format!("7f20-7f30 r--p 00000000 fe:00 13 {}\n", library.display());
        assert_eq!(beside_library(&maps(&line)).unwrap(), out.path().join("lib"));
        std::fs::create_dir(out.path().join("backends")).unwrap();
        assert_eq!(beside_library(&maps(&line)).unwrap(), out.path().join("backends"));
    }
}
