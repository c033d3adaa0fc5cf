# How llama.cpp is built here. CMake reads this file after each `project()` of llama.cpp, because
# .cargo/config.toml names it as CMAKE_PROJECT_INCLUDE and llama-cpp-sys-2 passes that on.

if(PROJECT_NAME STREQUAL "llama.cpp")
  # llama-common (arguments, chat parsers, downloads) is linked by nothing here and takes as long to
  # compile as the rest of libllama. llama-cpp-2 depends on the feature that switches it on.
  set(LLAMA_BUILD_COMMON OFF CACHE BOOL "" FORCE)

  # Cargo's feature `portable` sets GGML_BACKEND_DL: kernel modules for all processors. Without it
  # ggml-cpu is built once, with -march=native.
  if(NOT GGML_BACKEND_DL)
    set(GGML_NATIVE ON CACHE BOOL "" FORCE)

    # With AVX512-FP16, which none of the kernel modules has, ggml's loops over f16 take 128 numbers at a
    # time and all of a head of 64 one by one: a token after 1,024 others takes twice as long.
    include(CheckCCompilerFlag)
    check_c_compiler_flag(-mno-avx512fp16 REFLECTD_HAS_NO_AVX512FP16)
    if(REFLECTD_HAS_NO_AVX512FP16)
      cmake_language(DEFER CALL target_compile_options ggml-cpu PRIVATE -mno-avx512fp16)
    endif()

    # A compiler that does not know the processor tunes for an older one: GCC 12 takes a Zen 5 for a Zen 3,
    # and a prompt of 4,096 tokens takes a quarter longer. The kernel modules have this tuning.
    check_c_compiler_flag(-mtune=generic REFLECTD_HAS_GENERIC_TUNING)
    if(REFLECTD_HAS_GENERIC_TUNING)
      cmake_language(DEFER CALL target_compile_options ggml-cpu PRIVATE -mtune=generic)
    endif()
  endif()

  # libllama reads files and builds graphs; the arithmetic is in ggml-cpu, which keeps -O3.
  cmake_language(DEFER CALL target_compile_options llama PRIVATE -O1)
endif()
