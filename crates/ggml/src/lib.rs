//! ggml's tensor types: decoding and encoding. It needs of llama.cpp the tables of ggml alone: no
//! kernels, no model, no context. Used by the trainer, by `reflectd export` (which merges an adapter into
//! its base) and by the engine for the names of types.
#![expect(unsafe_code, reason = "ggml is C; every block says why it is sound")]

use std::ffi::CStr;

use llama_cpp_sys_2 as sys;

/// Decodes tensor data of any ggml type that has a decoder. `out` has one value for each stored
/// one.
pub fn dequantize(ggml_type: u32, bytes: &[u8], out: &mut [f32]) -> Result<(), String> {
    if ggml_type >= sys::GGML_TYPE_COUNT {
        return Err(format!("ggml type {ggml_type} is unknown"));
    }
    // SAFETY: the type is below the number of types, so this points into a static table.
    let traits = unsafe { &*sys::ggml_get_type_traits(ggml_type) };
    let block = usize::try_from(traits.blck_size).unwrap_or(0);
    if block == 0 || !out.len().is_multiple_of(block) {
        return Err(format!("{} values of ggml type {ggml_type} are not whole blocks", out.len()));
    }
    let expected = (out.len() / block).checked_mul(traits.type_size);
    if expected != Some(bytes.len()) {
        return Err(format!("{} bytes are not {} values", bytes.len(), out.len()));
    }
    if ggml_type == sys::GGML_TYPE_F32 {
        let (values, _) = bytes.as_chunks::<4>();
        for (value, stored) in out.iter_mut().zip(values) {
            *value = f32::from_le_bytes(*stored);
        }
        return Ok(());
    }
    let decode = traits.to_float.ok_or_else(|| format!("ggml type {ggml_type} has no decoder"))?;
    // Blocks are read as C structs, whose alignment a slice of bytes need not have.
    let (chunks, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let aligned: Vec<u64> =
        chunks.iter().chain([&last]).map(|chunk| u64::from_ne_bytes(*chunk)).collect();
    let n_values = i64::try_from(out.len()).map_err(|_| "too many values".to_owned())?;
    // SAFETY: `aligned` holds exactly the blocks of `n_values` values, which `out` has room for.
    unsafe { decode(aligned.as_ptr().cast(), out.as_mut_ptr(), n_values) };
    Ok(())
}

/// Types that ggml can encode to. For any other it aborts.
const ENCODED: [u32; 28] = [
    sys::GGML_TYPE_F32,
    sys::GGML_TYPE_F16,
    sys::GGML_TYPE_BF16,
    sys::GGML_TYPE_Q1_0,
    sys::GGML_TYPE_Q2_0,
    sys::GGML_TYPE_Q4_0,
    sys::GGML_TYPE_Q4_1,
    sys::GGML_TYPE_Q5_0,
    sys::GGML_TYPE_Q5_1,
    sys::GGML_TYPE_Q8_0,
    sys::GGML_TYPE_MXFP4,
    sys::GGML_TYPE_NVFP4,
    sys::GGML_TYPE_Q2_K,
    sys::GGML_TYPE_Q3_K,
    sys::GGML_TYPE_Q4_K,
    sys::GGML_TYPE_Q5_K,
    sys::GGML_TYPE_Q6_K,
    sys::GGML_TYPE_TQ1_0,
    sys::GGML_TYPE_TQ2_0,
    sys::GGML_TYPE_IQ2_XXS,
    sys::GGML_TYPE_IQ2_XS,
    sys::GGML_TYPE_IQ3_XXS,
    sys::GGML_TYPE_IQ3_S,
    sys::GGML_TYPE_IQ2_S,
    sys::GGML_TYPE_IQ1_S,
    sys::GGML_TYPE_IQ1_M,
    sys::GGML_TYPE_IQ4_NL,
    sys::GGML_TYPE_IQ4_XS,
];

/// Why values cannot be written as a ggml type.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NotEncoded {
    /// ggml wants to know which inputs matter, which takes texts and hours.
    NeedsImportance,
    /// Rows do not fill whole blocks.
    Blocks,
    /// ggml has no encoder for it.
    Unknown,
}

/// Whether rows of so many values can be written as this type by [`encode`].
pub fn can_encode(ggml_type: u32, n_per_row: usize) -> Result<(), NotEncoded> {
    if !ENCODED.contains(&ggml_type) {
        return Err(NotEncoded::Unknown);
    }
    // SAFETY: the type is one of ggml's; both read static tables.
    let (needs_importance, block) =
        unsafe { (sys::ggml_quantize_requires_imatrix(ggml_type), sys::ggml_blck_size(ggml_type)) };
    match usize::try_from(block) {
        _ if needs_importance => Err(NotEncoded::NeedsImportance),
        Ok(block) if 0 < block && 0 < n_per_row && n_per_row.is_multiple_of(block) => Ok(()),
        _ => Err(NotEncoded::Blocks),
    }
}

/// Writes rows of values as a ggml type, as `llama-quantize` without an importance matrix does.
/// `out` has exactly the room that they take.
pub fn encode(
    ggml_type: u32,
    values: &[f32],
    n_per_row: usize,
    out: &mut [u8],
) -> Result<(), String> {
    can_encode(ggml_type, n_per_row).map_err(|why| format!("ggml type {ggml_type}: {why:?}"))?;
    if !values.len().is_multiple_of(n_per_row) {
        return Err(format!("{} values are not rows of {n_per_row}", values.len()));
    }
    if !values.iter().all(|value| value.is_finite()) {
        return Err("a value is not finite".to_owned());
    }
    let number = |n: usize| i64::try_from(n).map_err(|_| "too many values".to_owned());
    let (n_rows, n_per_row) = (number(values.len() / n_per_row)?, number(n_per_row)?);
    // SAFETY: the type is one of ggml's, and rows are whole blocks of it.
    let row_bytes = unsafe { sys::ggml_row_size(ggml_type, n_per_row) };
    let n_bytes = usize::try_from(n_rows).ok().and_then(|rows| rows.checked_mul(row_bytes));
    if n_bytes != Some(out.len()) {
        return Err(format!("{} bytes are not {} values", out.len(), values.len()));
    }
    // Blocks are written as C structs, whose alignment a slice of bytes need not have.
    let mut aligned = vec![0_u64; out.len().div_ceil(8)];
    // SAFETY: `aligned` has room for the rows, `values` holds them and they are finite, the type
    // has an encoder that needs no importance.
    unsafe {
        sys::ggml_quantize_chunk(
            ggml_type,
            values.as_ptr(),
            aligned.as_mut_ptr().cast(),
            0,
            n_rows,
            n_per_row,
            std::ptr::null(),
        );
    }
    for (bytes, word) in out.chunks_mut(8).zip(aligned) {
        bytes.copy_from_slice(&word.to_ne_bytes()[..bytes.len()]);
    }
    Ok(())
}

/// ggml's name of a type (`q4_K`).
pub fn type_name(ggml_type: u32) -> String {
    if ggml_type >= sys::GGML_TYPE_COUNT {
        return format!("type {ggml_type}");
    }
    // SAFETY: the type is below the number of types; the name is in a static table.
    let name = unsafe { CStr::from_ptr(sys::ggml_type_name(ggml_type)) };
    name.to_string_lossy().into_owned()
}

/// The ggml type of this name, in any case; one that [`encode`] takes.
pub fn type_named(name: &str) -> Option<u32> {
    ENCODED.into_iter().find(|&ggml_type| type_name(ggml_type).eq_ignore_ascii_case(name))
}
