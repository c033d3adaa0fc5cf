//! Memory of freed adapters goes back to the system. glibc would raise its mark for separate
//! blocks to the largest that was ever freed and keep all later ones in the heap, which then falls
//! into holes: 200 swaps left a process of 32 MiB between 36 and 49 MiB large, and 22 MiB with a
//! fixed mark. Called once, by `process.rs`.

/// glibc's `M_MMAP_THRESHOLD` (malloc.h).
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD: i32 = -3;
/// Larger blocks come from the system and go back to it. Rows of a large vocabulary are reused or
/// smaller, so that no token pays for it.
#[cfg(target_env = "gnu")]
const LARGE: i32 = 256 << 10;

#[cfg(target_env = "gnu")]
pub(super) fn settle() {
    unsafe extern "C" {
        fn mallopt(parameter: i32, value: i32) -> i32;
    }
    // SAFETY: it changes a number inside the allocator, which takes its own lock.
    let is_set = unsafe { mallopt(MMAP_THRESHOLD, LARGE) };
    if is_set == 0 {
        tracing::debug!("The allocator keeps its own mark for large blocks.");
    }
}

/// Other allocators return large blocks by themselves.
#[cfg(not(target_env = "gnu"))]
pub(super) fn settle() {}
