//! llama.cpp takes the batches that the model of its cells takes, and no others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use inference::backend::{Backend as _, Entry, Limits, SequenceId};
use inference::{FlashAttention, Generation, KvCache, Token};
use testkit::cells::Cells;

use super::real::{NANO, config};
use crate::llama::Llama;

/// Batches of which both are asked.
const BATCHES: u32 = 10_000;
/// A multiple of what llama.cpp rounds a context up to.
const CELLS: u32 = 256;

/// One token of a batch.
#[derive(Clone, Debug)]
struct Item {
    token: Token,
    position: usize,
    ids: Vec<SequenceId>,
    logits: bool,
}

/// What no batch may have. A position below 0 cannot be written down.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Flaw {
    /// A token that is not in the vocabulary.
    Token,
    /// A sequence that there is not.
    Sequence,
    /// A token of no sequence.
    NoSequence,
    /// A position beyond the cells.
    Position,
    Empty,
    TooLong,
}

impl Flaw {
    const ALL: [Self; 6] =
        [Self::Token, Self::Sequence, Self::NoSequence, Self::Position, Self::Empty, Self::TooLong];
}

#[test]
fn llama_cpp_takes_the_batches_that_the_model_of_its_cells_takes() {
    let mut random = fastrand::Rng::with_seed(1);
    let config = config(Path::new(NANO), CELLS, KvCache::F16, FlashAttention::Auto);
    let mut llama = Llama::load(&config).unwrap();
    let (limits, n_vocab) = (llama.limits(), llama.info().n_vocab);
    let mut cells = Cells::new(limits, n_vocab);
    let (mut n_compared, mut n_taken, mut n_full) = (0, 0, 0);
    let mut flawed: BTreeMap<Flaw, u32> = BTreeMap::new();
    while n_compared < BATCHES {
        change(&mut random, &mut cells, &mut llama, limits);
        let mut batch = batch(&mut random, &cells, limits);
        let flaw = random.choice(Flaw::ALL).filter(|_| random.u32(0..8) == 0);
        if let Some(flaw) = flaw {
            spoil(&mut random, &mut batch, flaw, limits, n_vocab);
        }
        let entries: Vec<Entry<'_>> = batch
            .iter()
            .map(|it| Entry {
                token: it.token,
                position: it.position,
                sequences: &it.ids,
                logits: it.logits,
            })
            .collect();
        if is_taken_by_llama_cpp_alone(&entries, &cells, limits) {
            continue;
        }
        n_compared += 1;
        let refusal = cells.refusal(&entries);
        let fits = cells.has_room(entries.len());
        let expected = refusal.is_none() && fits;
        if is_looked_at_by_llama_cpp(flaw, &entries, limits) {
            let itself = llama.decode_unchecked(&entries);
            assert!(itself.is_err(), "llama.cpp takes {entries:?}");
        }
        let decoded = llama.decode(&entries, None);
        assert_eq!(decoded.is_ok(), expected, "{refusal:?}, room {fits}, {decoded:?}: {entries:?}");
        if let Some(flaw) = flaw {
            assert!(!expected, "{flaw:?}: {entries:?}");
            *flawed.entry(flaw).or_default() += 1;
        } else if refusal.is_none() && !fits {
            n_full += 1;
        }
        if expected {
            for (i, entry) in entries.iter().enumerate() {
                assert_eq!(llama.logits(i).is_ok(), entry.logits, "entry {i} of {entries:?}");
            }
            cells.evaluate(&entries, Generation::BASE);
            n_taken += 1;
        }
    }
    let n_flawed = flawed.values().sum::<u32>();
    let n_other = n_compared - n_taken - n_full - n_flawed;
    println!(
        "{n_compared} compared: {n_taken} taken, {n_full} without room, {n_other} out of order, \
         {flawed:?}"
    );
    assert!(2_000 < n_taken && 200 < n_full && 2_000 < n_other);
    assert!(Flaw::ALL.iter().all(|flaw| flawed.get(flaw).is_some_and(|n| 100 < *n)));
}

/// Cuts a sequence, or lets one share the cells of another.
fn change(random: &mut fastrand::Rng, cells: &mut Cells, llama: &mut Llama, limits: Limits) {
    let [from, to] = [(); 2].map(|()| SequenceId(random.usize(0..limits.sequences)));
    match random.u32(0..20) {
        0 => {
            let n = if random.bool() { 0 } else { random.usize(0..=cells.len(from)) };
            cells.truncate(from, n);
            llama.truncate(from, n);
        }
        1..5 if cells.len(to) == 0 => {
            let n = random.usize(0..=cells.len(from));
            cells.share(from, to, n);
            llama.copy(from, to, n);
        }
        _ => {}
    }
}

/// Spans of a few sequences, most of them as they should be.
fn batch(random: &mut fastrand::Rng, cells: &Cells, limits: Limits) -> Vec<Item> {
    let mut next: BTreeMap<SequenceId, usize> = BTreeMap::new();
    let mut batch = Vec::new();
    for _ in 0..random.usize(1..4) {
        let first = SequenceId(random.usize(0..limits.sequences));
        let mut ids = vec![first];
        for other in (0..limits.sequences).map(SequenceId) {
            let alike = cells.len(other) == cells.len(first);
            if other != first && random.u32(0..if alike { 2 } else { 12 }) == 0 {
                ids.push(other);
            }
        }
        let mut position = *next.get(&first).unwrap_or(&cells.len(first));
        if random.u32(0..20) == 0 {
            position += random.usize(0..2);
            position = position.saturating_sub(random.usize(0..2));
        }
        for _ in 0..random.usize(1..4) {
            let token = Token(random.i32(0..200));
            batch.push(Item { token, position, ids: ids.clone(), logits: false });
            position += 1;
        }
        for id in ids {
            next.insert(id, position);
        }
    }
    let n = batch.len();
    if random.u32(0..12) == 0 {
        batch.swap(random.usize(0..n), random.usize(0..n));
    }
    // Logits of all, of none, of the last one, of some.
    let wanted = random.u32(0..4);
    for (i, item) in batch.iter_mut().enumerate() {
        item.logits = match wanted {
            0 => true,
            1 => false,
            2 => i + 1 == n,
            _ => random.bool(),
        };
    }
    batch
}

fn spoil(
    random: &mut fastrand::Rng,
    batch: &mut Vec<Item>,
    flaw: Flaw,
    limits: Limits,
    n_vocab: usize,
) {
    let n_vocab = i32::try_from(n_vocab).unwrap();
    let at = random.usize(0..batch.len());
    let item = &mut batch[at];
    match flaw {
        Flaw::Token => {
            item.token = Token(random.choice([-1, i32::MIN, n_vocab, i32::MAX]).unwrap());
        }
        Flaw::Sequence => {
            let beyond = random.choice([0, 1, 300]).unwrap();
            item.ids[0] = SequenceId(limits.sequences + beyond);
        }
        Flaw::NoSequence => item.ids.clear(),
        Flaw::Position => item.position = random.choice([limits.cells, usize::MAX]).unwrap(),
        Flaw::Empty => batch.clear(),
        Flaw::TooLong => {
            let last = batch[batch.len() - 1].clone();
            let more = (1..=limits.batch_tokens)
                .map(|i| Item { position: last.position + i, ..last.clone() });
            batch.extend(more);
        }
    }
}

/// The model of its cells is stricter in two points: a sequence begins at 0, and has every position
/// once.
fn is_taken_by_llama_cpp_alone(entries: &[Entry<'_>], cells: &Cells, limits: Limits) -> bool {
    let mut seen = BTreeMap::new();
    entries.iter().filter(|entry| entry.position < limits.cells).any(|entry| {
        let ids = entry.sequences.iter().copied().filter(|id| id.0 < limits.sequences);
        ids.collect::<BTreeSet<_>>().into_iter().any(|id| {
            let before = seen.insert(id, entry.position);
            let begins_late = before.is_none() && cells.len(id) == 0 && 0 < entry.position;
            begins_late || before == Some(entry.position)
        })
    })
}

/// Whether llama.cpp itself refuses a flaw. The first sequence beyond ours is that of copies, which it has;
/// of the other flaws some end the process.
fn is_looked_at_by_llama_cpp(flaw: Option<Flaw>, entries: &[Entry<'_>], limits: Limits) -> bool {
    let mut ids = entries.iter().flat_map(|entry| entry.sequences);
    match flaw {
        Some(Flaw::Token) => true,
        Some(Flaw::Sequence) => ids.any(|id| limits.sequences < id.0),
        _ => false,
    }
}
