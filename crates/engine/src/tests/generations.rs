//! Adapters of llama.cpp itself: a request must not notice which other weights are in use.

use std::path::Path;

use super::super::llama::Llama;
use super::llama::{config, tokens, write_adapter, write_model};
use super::*;
use inference::backend::{Backend, Entry, SequenceId};

const MINE: Generation = Generation(1);
const STEPS: usize = 12;

/// Decodes two sequences by turns, the second one in another generation, and gives the first one's
/// logits.
fn beside(folder: &Path, other: Generation) -> Vec<Vec<f32>> {
    let mut backend = Llama::load(&config(folder.join("random.gguf"))).unwrap();
    for generation in [1, 2] {
        let path = folder.join(format!("{generation}.gguf"));
        backend.load(Generation(generation), &path).unwrap();
    }
    let sequences = [[SequenceId(0)], [SequenceId(1)]];
    let texts = [tokens(20 + STEPS, 1), tokens(20 + STEPS, 2)];
    let mut rows = Vec::new();
    let turns = std::iter::once(0..20).chain((20..20 + STEPS).map(|at| at..at + 1));
    for positions in turns {
        for (which, generation) in [MINE, other].into_iter().enumerate() {
            backend.select(generation).unwrap();
            let batch: Vec<Entry<'_>> = positions
                .clone()
                .map(|position| Entry {
                    token: texts[which][position],
                    position,
                    sequences: &sequences[which],
                    logits: position + 1 == positions.end,
                })
                .collect();
            backend.decode(&batch, None).unwrap();
            if which == 0 {
                rows.push(backend.logits(batch.len() - 1).unwrap().to_vec());
            }
        }
    }
    rows
}

#[test]
fn logits_are_the_same_bits_whatever_generation_runs_between_the_steps() {
    let folder = tempfile::tempdir().unwrap();
    write_model(&folder.path().join("random.gguf"));
    for generation in [1, 2] {
        let path = folder.path().join(format!("{generation}.gguf"));
        write_adapter(&path, "llama", super::llama::EMBEDDING, generation);
    }
    let bits = |rows: Vec<Vec<f32>>| -> Vec<Vec<u32>> {
        rows.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect()
    };
    let same_generation = bits(beside(folder.path(), MINE));
    assert_eq!(same_generation.len(), 1 + STEPS);
    for other in [Generation::BASE, Generation(2)] {
        assert!(bits(beside(folder.path(), other)) == same_generation, "beside generation {other}");
    }
}
