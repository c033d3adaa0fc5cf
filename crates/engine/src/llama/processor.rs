//! Which processor llama.cpp's kernels were compiled for, and whether this is one. Without the
//! feature `portable` they are compiled with `-march=native` (`build.rs` writes down what that meant);
//! on a processor that lacks one of its instructions they would end the process with SIGILL.

/// Instruction sets that the kernels may use, as GCC names their macros.
const COMPILED: Option<&str> = option_env!("REFLECTD_KERNEL_FEATURES");
/// GCC's name of the processor.
const PROCESSOR: Option<&str> = option_env!("REFLECTD_KERNEL_PROCESSOR");

/// The processor that the kernels are for, as `znver3`; `None` where the best module is loaded at
/// the start.
pub(super) fn compiled_for() -> Option<&'static str> {
    PROCESSOR
}

/// Refuses a processor that lacks an instruction set of the kernels.
pub(super) fn check() -> Result<(), String> {
    let missing = missing(COMPILED.unwrap_or_default(), &supported());
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "this program is built for another processor ({}): this one lacks {}; run `make build` on this \
         machine, or install what `make package` builds for all processors",
        PROCESSOR.unwrap_or("unknown"),
        missing.join(", ")
    ))
}

/// The compiled instruction sets that we can ask about and that are not supported.
fn missing(compiled: &str, supported: &[(&'static str, bool)]) -> Vec<&'static str> {
    let is_missing = |&&(name, is_there): &&(&str, bool)| {
        !is_there && compiled.split(',').any(|compiled| compiled == name)
    };
    supported.iter().filter(is_missing).map(|&(name, _)| name).collect()
}

/// (GCC's macro in lower case, whether this processor and kernel have it). Not `avx512fp16`, without which
/// `crates/ggml/llama.cmake` compiles the kernels.
#[cfg(target_arch = "x86_64")]
fn supported() -> Vec<(&'static str, bool)> {
    macro_rules! ask {
        ($($name:literal as $feature:tt),* $(,)?) => {
            vec![$(($name, std::arch::is_x86_feature_detected!($feature))),*]
        };
    }
    ask! {
        "adx" as "adx",
        "aes" as "aes",
        "avx" as "avx",
        "avx2" as "avx2",
        "avx512bf16" as "avx512bf16",
        "avx512bitalg" as "avx512bitalg",
        "avx512bw" as "avx512bw",
        "avx512cd" as "avx512cd",
        "avx512dq" as "avx512dq",
        "avx512f" as "avx512f",
        "avx512ifma" as "avx512ifma",
        "avx512vbmi" as "avx512vbmi",
        "avx512vbmi2" as "avx512vbmi2",
        "avx512vl" as "avx512vl",
        "avx512vnni" as "avx512vnni",
        "avx512vpopcntdq" as "avx512vpopcntdq",
        "avxvnni" as "avxvnni",
        "bmi" as "bmi1",
        "bmi2" as "bmi2",
        "f16c" as "f16c",
        "fma" as "fma",
        "gfni" as "gfni",
        "lzcnt" as "lzcnt",
        "movbe" as "movbe",
        "pclmul" as "pclmulqdq",
        "popcnt" as "popcnt",
        "sha" as "sha",
        "sse3" as "sse3",
        "sse4_1" as "sse4.1",
        "sse4_2" as "sse4.2",
        "sse4a" as "sse4a",
        "ssse3" as "ssse3",
        "vaes" as "vaes",
        "vpclmulqdq" as "vpclmulqdq",
    }
}

/// Other architectures have no such macros that could be compared.
#[cfg(not(target_arch = "x86_64"))]
fn supported() -> Vec<(&'static str, bool)> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compiled_in_and_not_there_is_named() {
        let supported = [("avx2", true), ("avx512f", false), ("amx", false)];
        assert_eq!(missing("sse2,avx2,avx512f", &supported), ["avx512f"]);
        assert!(missing("sse2,avx2", &supported).is_empty());
    }

    #[cfg(all(target_arch = "x86_64", not(feature = "portable")))]
    #[test]
    fn the_build_wrote_down_the_instruction_sets_and_this_processor_has_them() {
        let compiled = COMPILED.unwrap();
        assert!(compiled.split(',').any(|name| name == "sse2"), "{compiled}");
        assert_eq!(check(), Ok(()));
    }
}
