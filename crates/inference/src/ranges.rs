//! What the numbers of a request and of an engine may be, once for the engine, which refuses, for the API,
//! which names the field, and for the configuration. NaN is in no range.

use std::ops::RangeInclusive;

/// `Sampling::temperature`; 0 is greedy.
pub const TEMPERATURE: RangeInclusive<f32> = 0.0..=10.0;
/// `Sampling::top_p`; 0 would leave no token.
pub const TOP_P: RangeInclusive<f32> = f32::MIN_POSITIVE..=1.0;
/// `Sampling::min_p`.
pub const MIN_P: RangeInclusive<f32> = 0.0..=1.0;
/// Continuations of one prompt.
pub const CONTINUATIONS: RangeInclusive<u32> = 1..=64;
/// Alternatives reported for a token.
pub const TOP_LOGPROBS: RangeInclusive<u32> = 0..=20;
/// Stop strings of a request.
pub const MAX_STOPS: usize = 16;
/// `EngineConfig::max_sequences`: llama.cpp's bound for one context (`LLAMA_MAX_SEQ`, 256) without the
/// sequence that copies of cells go through.
pub const SEQUENCES: RangeInclusive<u32> = 1..=255;
