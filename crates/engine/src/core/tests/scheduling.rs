//! What one step may hold, and who is admitted: the promises that the simulation's small and quick
//! worlds do not reach.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use inference::backend::{Limits, SequenceId};
use inference::{EngineError, Generation, Sampling, Token};

use super::simulation::{Chances, Letters, Model};
use crate::Priority;
use crate::core::op::Op;
use crate::core::request::{Generating, Purpose, Request, State};
use crate::core::step::execute;
use crate::core::{CachePolicy, Core, Event, Outcome, Step};
use crate::draft::Draft;
use crate::sample::Sampler;

const QUICK: Duration = Duration::from_millis(1);
/// The likeliest token is always the same letter, which ends nothing.
const LOGITS: [f32; 9] = [9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];

fn limits(cells: usize, sequences: usize) -> Limits {
    Limits { cells, sequences, batch_tokens: 512, outputs: 512 }
}

/// No two prompts of different seeds begin alike for long.
fn prompt(seed: u64, n: usize) -> Vec<Token> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..n).map(|_| Token(random.i32(0..7))).collect()
}

fn chat(seed: u64, n_prompt: usize, max_tokens: usize) -> Request {
    request(Priority::Chat, seed, n_prompt, max_tokens)
}

fn request(priority: Priority, seed: u64, n_prompt: usize, max_tokens: usize) -> Request {
    request_of(priority, prompt(seed, n_prompt), max_tokens)
}

fn request_of(priority: Priority, prompt: Vec<Token>, max_tokens: usize) -> Request {
    with_stops(priority, prompt, max_tokens, Vec::new())
}

fn with_stops(
    priority: Priority,
    prompt: Vec<Token>,
    max_tokens: usize,
    stops: Vec<String>,
) -> Request {
    let sampler = Sampler::new(Sampling { temperature: 0.0, ..Sampling::default() }, 0);
    let state = State::Generate(Box::new(Generating::new(sampler, stops, None)));
    let purpose = Purpose::Generate { seed: 0, max_tokens, top_logprobs: 0 };
    let sequences = [(prompt, state)].into_iter();
    Request::new(priority, Generation::BASE, purpose, sequences)
}

fn finish(core: &mut Core, step: &Step, evaluated: usize, took: Duration) -> Vec<Event> {
    let saves = step.ops.iter().filter_map(|op| match op {
        // A byte a cell.
        Op::Save { copy, from, to, .. } => Some((*copy, Some(vec![0; to - from]))),
        _ => None,
    });
    let (saved, evaluated) = (saves.collect(), Ok(evaluated));
    let outcome = Outcome { saved, not_restored: Vec::new(), evaluated, took };
    core.finish(step, outcome, |_| Ok::<_, EngineError>(&LOGITS));
    core.take_events()
}

/// Does the next step as a model does that takes so long for a token.
fn step(core: &mut Core, per_token: Duration) -> Option<Step> {
    let step = core.next_step()?;
    let n = u32::try_from(step.n_tokens()).unwrap();
    finish(core, &step, step.n_tokens(), per_token * n);
    Some(step)
}

/// Cells that a step copies to host memory and back.
fn copied(step: &Step) -> usize {
    let copied = step.ops.iter().filter_map(|op| match op {
        Op::Save { from, to, .. } => Some(to - from),
        Op::Restore { n, .. } => Some(*n),
        _ => None,
    });
    copied.sum()
}

/// Does steps until nothing is asked for. The tokens that were evaluated.
fn answer(core: &mut Core) -> usize {
    let mut n_tokens = 0;
    while !core.requests.is_empty() {
        n_tokens += step(core, QUICK).map_or(0, |step| step.n_tokens());
    }
    n_tokens
}

/// Does steps until all answers are being written.
fn read_prompts(core: &mut Core, per_token: Duration) {
    while !core.requests.iter().all(|it| it.sequences[0].is_decoding()) {
        step(core, per_token).expect("they go on");
    }
}

/// Does steps until nothing is to be done.
fn rest(core: &mut Core) {
    while !core.is_idle() {
        step(core, QUICK).expect("a core that is not idle has a step");
    }
}

#[test]
fn no_step_of_a_slow_model_is_longer_than_two_seconds_and_all_answers_go_on_in_turns() {
    let mut core = Core::new(limits(4000, 64), CachePolicy::new(0), Arc::new(Letters));
    // Their prompts are soon read, and many answers are written at once.
    for seed in 0..60 {
        core.submit(chat(seed, 4, 60));
    }
    let per_token = Duration::from_millis(400);
    step(&mut core, per_token);
    let (mut n_steps, mut most_writing) = (0, 0);
    while let Some(step) = step(&mut core, per_token) {
        assert!(step.n_tokens() <= 5, "{} tokens take longer than 2 s", step.n_tokens());
        n_steps += 1;
        assert!(n_steps < 2_000, "they never end");
        let writing = core.requests.iter().filter(|it| it.sequences[0].is_decoding()).count();
        most_writing = most_writing.max(writing);
    }
    assert!(20 < most_writing, "only {most_writing} at once");
    assert!(core.is_idle());
}

#[test]
fn a_slow_model_gives_each_answer_its_token_before_any_gets_two() {
    let mut core = Core::new(limits(400, 8), CachePolicy::new(0), Arc::new(Letters));
    for seed in 0..8 {
        core.submit(chat(seed, 5, 30));
    }
    let per_token = Duration::from_millis(600);
    let lengths = |core: &Core| -> Vec<usize> {
        core.requests.iter().map(|it| it.sequences[0].tokens.len()).collect()
    };
    read_prompts(&mut core, per_token);
    let before = lengths(&core);
    for _ in 0..16 {
        step(&mut core, per_token).expect("they go on");
    }
    let grown: Vec<usize> =
        lengths(&core).iter().zip(before).map(|(now, before)| now - before).collect();
    let (least, most) = (grown.iter().min().unwrap(), grown.iter().max().unwrap());
    assert!(0 < *least && most - least <= 1, "{grown:?}");
}

#[test]
fn a_prompt_is_read_beside_more_answers_than_a_step_holds() {
    let mut core = Core::new(limits(900, 16), CachePolicy::new(0), Arc::new(Letters));
    for seed in 0..8 {
        core.submit(chat(seed, 5, 60));
    }
    let per_token = Duration::from_millis(600);
    read_prompts(&mut core, per_token);
    core.submit(chat(8, 12, 60));
    for _ in 0..20 {
        step(&mut core, per_token).expect("they go on");
    }
    assert!(core.requests[8].sequences[0].is_decoding());
}

#[test]
fn answers_and_prompts_share_a_step_that_is_too_small_for_both() {
    let mut core = Core::new(limits(2_000, 32), CachePolicy::new(0), Arc::new(Letters));
    for seed in 0..16 {
        core.submit(chat(seed, 5, 60));
    }
    // Ten tokens take 2 s.
    let per_token = Duration::from_millis(200);
    read_prompts(&mut core, per_token);
    core.submit(chat(16, 20, 60));
    let mut n_steps = 0;
    while !core.requests[16].sequences[0].is_decoding() {
        step(&mut core, per_token).expect("they go on");
        n_steps += 1;
    }
    assert!((4..=5).contains(&n_steps), "20 tokens of a prompt take {n_steps} steps");
}

#[test]
fn drafts_leave_a_prompt_its_part_of_a_step() {
    let mut core = Core::new(limits(4_000, 32), CachePolicy::new(0), Arc::new(Letters));
    // What they are to say is known, so all of it is drafted.
    let said: Arc<[Token]> = vec![Token(0); 400].into();
    for seed in 0..16 {
        let sampler = Sampler::new(Sampling { temperature: 0.0, ..Sampling::default() }, 0);
        let draft = Some(Draft::new(Arc::clone(&said)));
        let state = State::Generate(Box::new(Generating::new(sampler, Vec::new(), draft)));
        let purpose = Purpose::Generate { seed: 0, max_tokens: 400, top_logprobs: 0 };
        let sequences = [(prompt(seed, 5), state)].into_iter();
        core.submit(Request::new(Priority::Explore, Generation::BASE, purpose, sequences));
    }
    // A step of idle work holds 64 tokens.
    let per_token = Duration::from_millis(10);
    read_prompts(&mut core, per_token);
    let alone = step(&mut core, per_token).expect("they go on");
    assert_eq!(alone.n_tokens(), 64, "their drafts fill a step");
    core.submit(request(Priority::Explore, 16, 60, 60));
    for _ in 0..2 {
        step(&mut core, per_token).expect("they go on");
    }
    assert!(core.requests[16].sequences[0].is_decoding(), "60 tokens are half of two steps");
}

#[test]
fn the_oldest_of_many_that_outgrow_the_context_never_gives_way() {
    let mut core = Core::new(limits(800, 16), CachePolicy::new(1 << 20), Arc::new(Letters));
    for seed in 0..8 {
        core.submit(chat(seed, 5, 225));
    }
    while !core.requests.is_empty() {
        let runs = |request: &Request| request.sequences[0].id.is_some();
        let had_begun = runs(&core.requests[0]);
        let step = core.next_step().expect("they go on");
        assert!(runs(&core.requests[0]) || !had_begun, "the oldest gave way");
        finish(&mut core, &step, step.n_tokens(), QUICK * 50);
    }
    assert!(0 < core.counters.preemptions);
}

/// Of a stop string of three letters, the last two that were sampled may be the beginning.
#[test]
fn a_token_is_told_as_soon_as_its_text_is_certain() {
    let mut core = Core::new(limits(400, 8), CachePolicy::new(0), Arc::new(Letters));
    let stops = vec!["aab".to_owned()];
    core.submit(with_stops(Priority::Chat, prompt(1, 5), 20, stops));
    let told = |events: &[Event]| {
        events.iter().filter(|event| matches!(event, Event::Token { .. })).count()
    };
    let mut n_told = 0;
    for n_sampled in 1_usize..10 {
        let step = core.next_step().expect("it goes on");
        let events = finish(&mut core, &step, step.n_tokens(), QUICK);
        n_told += told(&events);
        assert_eq!(n_told, n_sampled.saturating_sub(2), "after {n_sampled} tokens");
    }
}

/// Another engine would wait for a chat that cannot go on.
#[test]
fn a_chat_whose_reader_is_behind_is_not_what_comes_next() {
    let mut core = Core::new(limits(400, 8), CachePolicy::new(0), Arc::new(Letters));
    let stalled = core.submit(chat(1, 5, 20));
    core.submit(request(Priority::Explore, 2, 5, 20));
    assert_eq!(core.next_priority(), Some(Priority::Chat));
    core.set_stalled(stalled, true);
    assert_eq!(core.next_priority(), Some(Priority::Explore));
}

#[test]
fn what_has_come_past_a_failed_step_runs_with_others_again() {
    let mut core = Core::new(limits(400, 8), CachePolicy::new(0), Arc::new(Letters));
    for seed in [1, 2] {
        core.submit(chat(seed, 5, 30));
    }
    let of_both = |step: &Step| step.spans.len() == 2;
    let failing = core.next_step().unwrap();
    assert!(of_both(&failing));
    let error = EngineError::Failed("once".to_owned());
    let outcome =
        Outcome { saved: Vec::new(), not_restored: Vec::new(), evaluated: Err(error), took: QUICK };
    core.finish(&failing, outcome, |_| Ok::<_, EngineError>(&LOGITS));
    let steps: Vec<bool> = (0..4).map(|_| of_both(&step(&mut core, QUICK).unwrap())).collect();
    assert_eq!(steps, [false, false, true, true], "each alone first");
}

/// What a new prompt begins with is there, and somebody has to leave.
#[test]
fn what_is_found_in_the_cache_does_not_leave_to_make_room_for_who_goes_on_with_it() {
    let mut core = Core::new(limits(230, 8), CachePolicy::new(0), Arc::new(Letters));
    for seed in [1, 2] {
        core.submit(chat(seed, 100, 1));
        answer(&mut core);
    }
    core.submit(chat(1, 140, 1));
    assert_eq!(answer(&mut core), 40);
}

/// Its cells are not in anybody's way, and come back from where they are.
#[test]
fn a_sequence_that_gives_way_for_an_id_is_not_read_again() {
    let mut core = Core::new(limits(4000, 1), CachePolicy::new(1 << 20), Arc::new(Letters));
    core.submit(request(Priority::Explore, 1, 600, 20));
    read_prompts(&mut core, QUICK);
    core.submit(chat(2, 5, 3));
    answer(&mut core);
    let counters = core.counters();
    assert_eq!(counters.preemptions, 1);
    assert!(counters.prompt_tokens < 600 + 5 + 20, "{counters:?}");
}

#[test]
fn a_small_request_does_not_overtake_a_large_one() {
    let mut core = Core::new(limits(400, 8), CachePolicy::new(0), Arc::new(Letters));
    core.submit(chat(1, 200, 60));
    step(&mut core, QUICK);
    let large = core.submit(chat(2, 300, 5));
    let small = core.submit(chat(3, 20, 5));
    let runs =
        |core: &Core, id| core.position(id).is_some_and(|at| 0 < core.requests[at].n_running());
    while !runs(&core, large) {
        assert!(!runs(&core, small), "it would wait for ever behind many small ones");
        step(&mut core, QUICK).expect("they go on");
    }
}

/// A core with three ids, in which these have been answered one after the other and are cached.
fn cached(requests: &[(Priority, u64)]) -> Core {
    let mut core = Core::new(limits(4000, 3), CachePolicy::new(0), Arc::new(Letters));
    for &(priority, seed) in requests {
        core.submit(request(priority, seed, 50, 1));
        answer(&mut core);
    }
    core
}

/// Tokens that are read when a prompt of `cached` is asked for again.
fn read_again(core: &mut Core, seed: u64) -> usize {
    core.submit(chat(seed, 60, 1));
    answer(core)
}

#[test]
fn of_cached_prompts_the_oldest_leaves_first() {
    let mut core = cached(&[1, 2, 3, 4].map(|seed| (Priority::Chat, seed)));
    assert_eq!([3, 2].map(|seed| read_again(&mut core, seed)), [10, 10]);
    assert_eq!(read_again(&mut core, 1), 60);
}

#[test]
fn a_cached_prompt_of_idle_work_leaves_before_an_older_one_of_a_chat() {
    let [chat, idle] = [Priority::Chat, Priority::Explore];
    let mut core = cached(&[(chat, 1), (chat, 2), (idle, 3), (chat, 4)]);
    assert_eq!([2, 1].map(|seed| read_again(&mut core, seed)), [10, 10]);
    assert_eq!(read_again(&mut core, 3), 60);
}

#[test]
fn a_cached_prompt_that_is_of_use_is_young_again() {
    let mut core = cached(&[1, 2].map(|seed| (Priority::Chat, seed)));
    // It begins like the oldest one, and ends otherwise.
    let other = [prompt(1, 40), prompt(5, 10)].concat();
    core.submit(request_of(Priority::Chat, other, 1));
    assert!(answer(&mut core) <= 10);
    core.submit(chat(6, 50, 1));
    answer(&mut core);
    assert_eq!(read_again(&mut core, 1), 10);
    assert_eq!(read_again(&mut core, 2), 60, "it was the oldest");
}

#[test]
fn copies_take_no_more_host_memory_than_they_may_and_the_youngest_stay() {
    // A copied cell is one byte.
    let mut core = Core::new(limits(500, 8), CachePolicy::new(1000), Arc::new(Letters));
    for seed in 1..=6 {
        core.submit(chat(seed, 400, 1));
        while !core.requests.is_empty() {
            step(&mut core, QUICK).expect("it goes on");
            assert!(core.host_bytes() <= 1000, "{} bytes", core.host_bytes());
        }
    }
    assert!(500 < core.host_bytes());
    for (seed, n_read) in [(5, 10), (1, 410)] {
        core.submit(chat(seed, 410, 1));
        assert_eq!(answer(&mut core), n_read, "of the one with seed {seed}");
    }
}

#[test]
fn few_copies_of_cells_are_made_between_two_steps() {
    // Of cells that are lacking, and of an id.
    for sequences in [8, 1] {
        // A copied cell is one byte.
        let cache = CachePolicy { bytes_at_once: 512, ..CachePolicy::new(1 << 30) };
        let mut core = Core::new(limits(8192, sequences), cache, Arc::new(Letters));
        core.submit(chat(1, 7000, 1));
        // No further: with nothing to do, a core copies what it has cached.
        answer(&mut core);
        core.submit(chat(2, 7000, 1));
        let mut n_copied = 0;
        while let Some(step) = step(&mut core, QUICK) {
            assert!(copied(&step) < 512 + 512 / 4, "{} cells in one step", copied(&step));
            n_copied += copied(&step);
        }
        assert!(6000 < n_copied, "what was in the way is kept: {n_copied}");
        assert!(core.is_idle());
    }
}

/// Else many copies make the steps after them small.
#[test]
fn the_time_of_copying_is_not_taken_for_that_of_evaluating() {
    let limits = limits(100, 2);
    let mut core = Core::new(limits, CachePolicy::new(0), Arc::new(Letters));
    core.submit(chat(0, 20, 5));
    let step = core.next_step().unwrap();
    let copying = Op::Save { id: SequenceId(1), from: 0, to: 0, copy: 0 };
    let step = Step { ops: [step.ops, vec![copying]].concat(), ..step };
    let mut model = Model::new(limits, 0, Chances::default(), false);
    model.copy_takes = Duration::from_millis(100);
    let outcome = execute(&mut model, &step, &AtomicBool::new(false));
    assert!(outcome.took < model.copy_takes / 2, "{:?}", outcome.took);
}

#[test]
fn few_cells_come_back_between_two_steps() {
    let cache = CachePolicy { bytes_at_once: 512, ..CachePolicy::new(1 << 30) };
    let mut core = Core::new(limits(8192, 8), cache, Arc::new(Letters));
    for seed in 1..=4 {
        core.submit(chat(seed, 1000, 1));
        answer(&mut core);
        rest(&mut core);
    }
    for seed in 1..=4 {
        core.submit(chat(seed, 1010, 1));
    }
    let mut n_copied = 0;
    while !core.requests.is_empty() {
        let step = step(&mut core, QUICK).expect("they go on");
        assert!(copied(&step) < 512 + 512 / 4, "{} cells in one step", copied(&step));
        n_copied += copied(&step);
    }
    assert!(3 * 1000 < n_copied, "{n_copied} cells came back");
}

/// With cells of half a megabyte a whole block would take a tenth of a second.
#[test]
fn blocks_of_large_cells_are_short() {
    let cache = CachePolicy { bytes_at_once: 6400, cell_bytes: 100, ..CachePolicy::new(1 << 30) };
    let mut core = Core::new(limits(8192, 8), cache, Arc::new(Letters));
    core.submit(chat(1, 2000, 1));
    answer(&mut core);
    while let Some(step) = step(&mut core, QUICK) {
        assert!(copied(&step) < 64 + 64 / 4, "{} cells in one step", copied(&step));
    }
}

/// A core whose cells all left for host memory when a conversation of 6,000 tokens paused, and in which
/// somebody else is being answered.
fn paused_beside(priority: Priority) -> Core {
    let cache = CachePolicy { bytes_at_once: 512, resident: 0, ..CachePolicy::new(1 << 30) };
    let mut core = Core::new(limits(8192, 8), cache, Arc::new(Letters));
    core.submit(chat(1, 6000, 1));
    answer(&mut core);
    rest(&mut core);
    core.submit(request(priority, 2, 5, 300));
    read_prompts(&mut core, QUICK);
    core
}

/// A conversation of a gigabyte takes half a second to come back.
#[test]
fn answers_go_on_while_a_conversation_comes_back() {
    let mut core = paused_beside(Priority::Chat);
    let before = core.counters();
    let again = core.submit(chat(1, 6010, 1));
    let (mut n_steps, mut n_without) = (0, 0);
    while core.position(again).is_some() {
        let step = step(&mut core, QUICK).expect("they go on");
        assert!(copied(&step) < 512 + 512 / 4, "{} cells in one step", copied(&step));
        n_steps += 1;
        n_without += usize::from(step.is_without_batch());
    }
    assert!(10 < n_steps, "6,000 cells come back in {n_steps} steps");
    assert_eq!(
        n_without, 1,
        "the last of them are seen to be back before anything is built on them"
    );
    let read = core.counters().prompt_tokens - before.prompt_tokens;
    assert!(read <= 10, "{read} tokens are read again");
}

#[test]
fn idle_work_does_not_go_on_before_a_chat_that_comes_back() {
    let mut core = paused_beside(Priority::Explore);
    let again = core.submit(chat(1, 6010, 1));
    while core.requests[core.position(again).unwrap()].n_running() == 0 {
        let step = step(&mut core, QUICK).expect("they go on");
        assert!(step.is_without_batch(), "{} tokens of idle work", step.n_tokens());
    }
}

/// Attention looks at all cells up to the last one in use, so a prompt would pay for those before it.
#[test]
fn what_is_cached_beyond_the_limit_leaves_as_soon_as_there_is_nothing_else_to_do() {
    let mut core = Core::new(limits(8192, 8), CachePolicy::new(1 << 30), Arc::new(Letters));
    for seed in 1..=3 {
        core.submit(chat(seed, 2000, 1));
        answer(&mut core);
        assert!(!core.is_idle(), "the thread asks for more steps");
        rest(&mut core);
        assert!(core.cells_used() <= 512, "{} cells", core.cells_used());
    }
    // Without a pause between them, they leave with each step.
    for seed in 4..=9 {
        core.submit(chat(seed, 2000, 1));
        answer(&mut core);
        assert!(core.cells_used() <= 512 + 2000, "{} cells", core.cells_used());
    }
}

/// Of many short sequences as many cells leave with a step as of a long one.
#[test]
fn short_sequences_leave_as_fast_as_long_ones() {
    let cache = CachePolicy { bytes_at_once: 512, ..CachePolicy::new(1 << 30) };
    let mut core = Core::new(limits(8192, 64), cache, Arc::new(Letters));
    for seed in 1..=32 {
        core.submit(chat(seed, 60, 1));
    }
    let steps = std::iter::from_fn(|| step(&mut core, QUICK));
    let most = steps.map(|step| copied(&step)).max().unwrap();
    assert!((300..512 + 60).contains(&most), "{most} cells");
}

/// A core in which sixteen chats were answered together, so that what is cached lies far apart.
fn scattered(cache: CachePolicy) -> Core {
    let mut core = Core::new(limits(16384, 32), cache, Arc::new(Letters));
    for seed in 1..=16 {
        core.submit(chat(seed, 300, 30));
    }
    answer(&mut core);
    core
}

/// Attention looks at all cells up to the last one in use, and after many chats few of them are.
#[test]
fn what_is_cached_among_free_cells_leaves_before_the_next_one_begins() {
    let mut core = scattered(CachePolicy::new(1 << 30));
    let before = core.cells_used();
    core.submit(chat(20, 1000, 1));
    let mut n_tokens = 0;
    while n_tokens < 512 {
        n_tokens += step(&mut core, QUICK).expect("there is a prompt to read").n_tokens();
    }
    assert!(300 < before, "{before} cells of earlier chats were there");
    let others = core.cells_used() - n_tokens;
    assert!(others < 10, "{others} cells beside its own");
}

/// Copies of many large cells take longer than their gaps cost.
#[test]
fn a_chat_that_comes_does_not_wait_for_more_than_a_step_of_copies() {
    let mut core = scattered(CachePolicy { bytes_at_once: 400, ..CachePolicy::new(1 << 30) });
    while !core.tree.is_scattered() {
        step(&mut core, QUICK).expect("what is cached leaves while nobody asks");
    }
    assert!(600 < core.cells_used());
    core.submit(chat(20, 100, 1));
    let steps = std::iter::from_fn(|| step(&mut core, QUICK));
    let n_copied: usize = steps.take_while(Step::is_without_batch).map(|it| copied(&it)).sum();
    assert!(n_copied < 400 + 400 / 4, "it waited for {n_copied} cells");
}

#[test]
fn what_has_left_the_context_to_lie_together_is_not_read_again() {
    // Where no copies are kept, it stays.
    for host_bytes in [20, 1 << 30] {
        let mut core = scattered(CachePolicy::new(host_bytes));
        core.submit(chat(16, 320, 1));
        let n_tokens = answer(&mut core);
        assert!(n_tokens <= 20, "{n_tokens} tokens with {host_bytes} bytes for copies");
    }
}

#[test]
fn an_idle_core_gathers_what_is_cached_and_then_leaves_it_in_peace() {
    let mut core = scattered(CachePolicy::new(1 << 30));
    rest(&mut core);
    assert_eq!(core.cells_used(), 0);
    core.submit(chat(20, 400, 1));
    answer(&mut core);
    rest(&mut core);
    assert!(400 <= core.cells_used(), "{} cells stay where they are", core.cells_used());
}

/// Host memory has room for one of them, and the context for the other.
#[test]
fn a_conversation_that_pauses_costs_no_other_one_its_copies() {
    let mut core = Core::new(limits(8192, 8), CachePolicy::new(2300), Arc::new(Letters));
    for seed in [1, 2] {
        core.submit(chat(seed, 2000, 1));
        answer(&mut core);
        rest(&mut core);
    }
    for seed in [1, 2] {
        core.submit(chat(seed, 2020, 1));
        let n_tokens = answer(&mut core);
        assert!(n_tokens <= 20, "{n_tokens} tokens of the one with seed {seed}");
    }
}

#[test]
fn who_asks_again_costs_nobody_the_copies_after_it() {
    let mut core = Core::new(limits(8192, 8), CachePolicy::new(1 << 30), Arc::new(Letters));
    let [beginning, one, other] = [prompt(1, 500), prompt(2, 299), prompt(3, 299)];
    let mut ask = |end: &[Token]| {
        let prompt = [&beginning, end].concat();
        core.submit(request_of(Priority::Chat, prompt, 1));
        let n_tokens = answer(&mut core);
        rest(&mut core);
        n_tokens
    };
    ask(&one);
    ask(&other);
    assert!(ask(&[]) <= 1);
    for end in [one, other] {
        let n_tokens = ask(&[end, prompt(4, 20)].concat());
        assert!(n_tokens <= 20, "{n_tokens} tokens are read again");
    }
}

#[test]
fn a_conversation_that_pauses_is_not_read_again() {
    // Of the last one eight tokens are left beside whole copies, and nothing stays in the context.
    let all = CachePolicy { resident: 0, ..CachePolicy::new(1 << 30) };
    let kept = [0, 8, 1 << 30].map(|bytes| (CachePolicy::new(bytes), 2000));
    for (cache, n_prompt) in kept.into_iter().chain([(all, 7 * 256 + 9)]) {
        let mut core = Core::new(limits(8192, 8), cache, Arc::new(Letters));
        core.submit(chat(1, n_prompt, 1));
        answer(&mut core);
        rest(&mut core);
        core.submit(chat(1, n_prompt + 20, 1));
        let n_tokens = answer(&mut core);
        assert!(n_tokens <= 20 + cache.resident, "{n_tokens} tokens with {cache:?}");
    }
}

#[test]
fn a_chat_that_finds_no_room_whatever_gives_way_drops_nothing() {
    let mut core = Core::new(limits(400, 12), CachePolicy::new(0), Arc::new(Letters));
    core.submit(chat(5, 50, 1));
    while step(&mut core, QUICK).is_some() {}
    // Judgements need no room to grow, and what they wait for together is evaluated once.
    let trunk = prompt(20, 10);
    let prompts = (0..4).map(|i| ([&trunk[..], &prompt(30 + i, 5)].concat(), State::Score));
    let purpose = Purpose::Score { labels: vec![Token(0), Token(1)], scores: vec![None; 4] };
    core.submit(Request::new(Priority::Explore, Generation::BASE, purpose, prompts));
    core.submit(chat(6, 150, 40));
    step(&mut core, QUICK);
    step(&mut core, QUICK);
    let before = (core.cells_used(), core.counters().preemptions);
    core.submit(chat(7, 225, 1));
    core.next_step();
    assert_eq!((core.cells_used(), core.counters().preemptions), before);
}

/// What idle work waits for together with a chat is not there for another chat when it gives way.
#[test]
fn a_chat_does_not_count_on_what_other_chats_share_with_idle_work() {
    let mut core = Core::new(limits(400, 12), CachePolicy::new(0), Arc::new(Letters));
    core.submit(chat(5, 50, 1));
    while step(&mut core, QUICK).is_some() {}
    let beside = |seed| [prompt(20, 40), prompt(seed, 5)].concat();
    let purpose = Purpose::Score { labels: vec![Token(0), Token(1)], scores: vec![None] };
    let judged = [(beside(30), State::Score)].into_iter();
    core.submit(Request::new(Priority::Explore, Generation::BASE, purpose.clone(), judged));
    core.submit(chat(6, 100, 40));
    step(&mut core, QUICK);
    step(&mut core, QUICK);
    let urgent = [(beside(31), State::Score)].into_iter();
    core.submit(Request::new(Priority::Chat, Generation::BASE, purpose, urgent));
    core.submit(chat(7, 240, 1));
    let before = (core.cells_used(), core.counters().preemptions);
    core.next_step();
    assert_eq!((core.cells_used(), core.counters().preemptions), before);
}

#[test]
fn chats_are_admitted_by_what_they_need_now() {
    let mut core = Core::new(limits(500, 16), CachePolicy::new(0), Arc::new(Letters));
    for seed in 0..8 {
        // Each might fill the context.
        core.submit(chat(seed, 20, 480));
    }
    step(&mut core, QUICK);
    assert_eq!(core.n_running(None), 8);
}

/// The part of an interrupted prompt that is evaluated is not evaluated again, but for a deterministic
/// core, whose next batch would be another one.
#[test]
fn an_interrupted_prompt_goes_on_where_it_was() {
    let started = |core: &mut Core| -> Range<usize> {
        let step = core.next_step().unwrap();
        let range = step.spans[0].start..step.spans[0].start + step.n_tokens();
        finish(core, &step, 7, QUICK);
        range
    };
    let mut core = Core::new(limits(500, 4), CachePolicy::new(0), Arc::new(Letters));
    core.submit(request(Priority::Explore, 1, 100, 4));
    assert_eq!(started(&mut core).start, 0);
    assert_eq!(started(&mut core).start, 7);
    assert_eq!(started(&mut core).start, 14);
    let blocks = Limits { batch_tokens: 32, ..limits(500, 4) };
    let mut core = Core::deterministic(blocks, Arc::new(Letters));
    core.submit(request(Priority::Explore, 1, 100, 4));
    assert_eq!([started(&mut core), started(&mut core)], [0..32, 0..32]);
}
