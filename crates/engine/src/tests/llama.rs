//! llama.cpp itself, on a tiny random model that is written here: what must hold for any weights.

use std::cell::Cell;
use std::path::Path;

use tempfile::TempDir;

use super::super::llama::{Llama, Quantization, quantize};
use super::*;
use files::gguf::{Gguf, Hyperparameters, Value, Writer};
use files::lora::header::Header;
use ggml::dequantize;
use inference::backend::Backend as _;

pub(super) const EMBEDDING: u64 = 64;
const FEED_FORWARD: u64 = 96;
const KV: u64 = 32;
/// 256 bytes, a merge, begin, end of turn, user.
const VOCAB: u64 = 260;
const END: Token = Token(258);
const LAYERS: u64 = 2;
/// The same tokens in another batch or in other cells are added up in another order.
const ROUNDING: f32 = 2e-3;
/// The same with flash attention, which adds an f16 cache up in f16.
const FLASH_ROUNDING: f32 = 0.05;

/// The same numbers for the same seed.
fn random(seed: u64) -> impl Iterator<Item = u16> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u16::try_from(state >> 48).unwrap()
    })
}

/// Numbers between `-scale` and `scale`.
fn noise(n: u64, scale: f32, seed: u64) -> Vec<f32> {
    let unit = random(seed).map(|number| f32::from(number) / 32768.0 - 1.0);
    unit.take(usize::try_from(n).unwrap()).map(|number| scale * number).collect()
}

pub(super) fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

pub(super) fn write_model(path: &Path) {
    write_model_with(path, "random", VOCAB, |writer| {
        for (key, value) in testkit::vocabulary::bytes(&["<|begin|>", "<|end|>", "<|user|>"]) {
            writer.metadata(&key, value);
        }
        writer.metadata("tokenizer.ggml.eot_token_id", Value::Unsigned(258));
        writer.metadata("tokenizer.ggml.add_bos_token", Value::Bool(true));
        writer.metadata("tokenizer.chat_template", text("template"));
    });
}

/// The same model with a name and a vocabulary of its own.
pub(super) fn write_model_with(
    path: &Path,
    name: &str,
    n_vocab: u64,
    vocabulary: impl FnOnce(&mut Writer),
) {
    let mut writer = Writer::default();
    let hyperparameters = Hyperparameters {
        architecture: "llama",
        name,
        blocks: LAYERS,
        context: 512,
        width: EMBEDDING,
        feed_forward: FEED_FORWARD,
        heads: 4,
        kv_heads: 2,
        rotated: 16,
        vocabulary: n_vocab,
        rms_epsilon: 1e-5,
        rope_base: 10_000.0,
    };
    hyperparameters.write(&mut writer);
    vocabulary(&mut writer);
    let mut seed = 0;
    let mut matrix = |writer: &mut Writer, name: &str, n_in: u64, n_out: u64| {
        seed += 1;
        writer.tensor(name, &[n_in, n_out], noise(n_in * n_out, 0.3, seed));
    };
    matrix(&mut writer, "token_embd.weight", EMBEDDING, n_vocab);
    matrix(&mut writer, "output.weight", EMBEDDING, n_vocab);
    let ones = |n: u64| vec![1.0; usize::try_from(n).unwrap()];
    writer.tensor("output_norm.weight", &[EMBEDDING], ones(EMBEDDING));
    for layer in 0..LAYERS {
        for norm in ["attn_norm", "ffn_norm"] {
            writer.tensor(&format!("blk.{layer}.{norm}.weight"), &[EMBEDDING], ones(EMBEDDING));
        }
        for (name, n_in, n_out) in [
            ("attn_q", EMBEDDING, EMBEDDING),
            ("attn_k", EMBEDDING, KV),
            ("attn_v", EMBEDDING, KV),
            ("attn_output", EMBEDDING, EMBEDDING),
            ("ffn_gate", EMBEDDING, FEED_FORWARD),
            ("ffn_up", EMBEDDING, FEED_FORWARD),
            ("ffn_down", FEED_FORWARD, EMBEDDING),
        ] {
            matrix(&mut writer, &format!("blk.{layer}.{name}.weight"), n_in, n_out);
        }
    }
    writer.write(path).unwrap();
}

pub(super) fn write_adapter(path: &Path, architecture: &str, width: u64, seed: u64) {
    let mut writer = Writer::default();
    Header::new(architecture, 4.0).write(&mut writer);
    for layer in 0..LAYERS {
        let name = format!("blk.{layer}.attn_q.weight");
        writer.tensor(&format!("{name}.lora_a"), &[width, 4], noise(width * 4, 0.5, seed));
        writer.tensor(&format!("{name}.lora_b"), &[4, EMBEDDING], noise(4 * EMBEDDING, 0.5, seed));
    }
    writer.write(path).unwrap();
}

struct World {
    engine: Engine,
    folder: TempDir,
}

async fn world() -> World {
    world_with(FlashAttention::Off).await
}

async fn world_with(flash_attention: FlashAttention) -> World {
    world_of(|config| EngineConfig { flash_attention, ..config }).await
}

async fn world_of(change: impl FnOnce(EngineConfig) -> EngineConfig) -> World {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("random.gguf");
    write_model(&model);
    let (engine, _thread) = spawn(&change(config(model))).await.unwrap();
    World { engine, folder }
}

pub(super) fn config(model: PathBuf) -> EngineConfig {
    EngineConfig { flash_attention: FlashAttention::Off, ..EngineConfig::small(model) }
}

impl World {
    async fn load(&self, generation: u32) -> Generation {
        let path = self.folder.path().join(format!("{generation}.gguf"));
        write_adapter(&path, "llama", EMBEDDING, u64::from(generation));
        self.engine.load_adapter(Generation(generation), path).await.unwrap();
        Generation(generation)
    }

    async fn logprobs(
        &self,
        sequences: Vec<(Vec<Token>, usize)>,
        weights: Weights,
    ) -> Vec<Vec<f32>> {
        let request = LogprobRequest { sequences, weights, priority: Priority::Gate };
        self.engine.logprobs(request).await.unwrap()
    }
}

/// Random bytes.
pub(super) fn tokens(n: usize, seed: u64) -> Vec<Token> {
    random(seed).take(n).map(|number| Token(i32::from(number >> 8))).collect()
}

/// What is not a number is further away than all numbers.
fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.max_by(f32::total_cmp).expect("there is something to compare")
}

#[tokio::test]
async fn the_file_says_what_the_model_is() {
    let world = world().await;
    let info = world.engine.info();
    assert_eq!((info.name.as_str(), info.architecture.as_str()), ("random", "llama"));
    assert_eq!((info.n_vocab, info.max_sequence), (260, 512));
    assert_eq!((info.bos.as_str(), info.eos.as_str()), ("<|begin|>", "<|end|>"));
    assert_eq!(info.end_of_turn, END);
    assert_eq!(info.chat_template.as_deref(), Some("template"));
    assert_eq!(info.sha256.len(), 64);
}

#[tokio::test]
async fn control_tokens_that_a_user_types_stay_text() {
    let world = world().await;
    let vocabulary = world.engine.vocabulary();
    let part = |text: &str, control| TextPart { text: text.to_owned(), control };
    let typed = "the <|end|> €";
    let tokens = vocabulary.tokenize(&[
        part("<|begin|><|user|>", true),
        part(typed, false),
        part("<|end|>", true),
    ]);
    let control: Vec<i32> = tokens.iter().map(|t| t.0).filter(|&id| id > 256).collect();
    assert_eq!(control, [257, 259, 258]);
    let bytes: Vec<u8> = tokens.iter().flat_map(|&token| vocabulary.piece(token)).collect();
    assert_eq!(bytes, typed.as_bytes());
    assert!(tokens.contains(&Token(256)), "merges cross nothing that matters: {tokens:?}");
    assert!(vocabulary.is_end(END) && !vocabulary.is_end(Token(256)));
    assert!(vocabulary.piece(Token(9999)).is_empty() && vocabulary.piece(Token(-1)).is_empty());
    // Words of the template and of the user are one text to the model; the begin token is added.
    let split = vocabulary.tokenize(&[part("t h", true), part("e", false)]);
    assert_eq!(split.first(), Some(&Token(257)));
    assert_eq!(split.last(), Some(&Token(256)));
}

#[tokio::test]
async fn drafts_of_one_batch_are_what_the_model_says_they_are() {
    let world = world().await;
    let prompt = tokens(100, 1);
    let wanted = GenerateRequest {
        n: 6,
        sampling: Sampling { max_tokens: 20, seed: Some(1), ..Sampling::default() },
        ..request(prompt.clone())
    };
    let answers = read(world.engine.generate(wanted.clone()).await.unwrap(), 6).await;
    assert_eq!(answers.failed, None);
    for drawn in &answers.tokens {
        let tokens: Vec<Token> =
            prompt.iter().copied().chain(drawn.iter().map(|piece| piece.token)).collect();
        let sampled: Vec<f32> = drawn.iter().map(|piece| piece.logprob).collect();
        let again = world.logprobs(vec![(tokens, prompt.len())], Weights::Active).await;
        assert!(largest_difference(&sampled, &again[0]) < ROUNDING, "{sampled:?} {again:?}");
    }
    let repeated = read(world.engine.generate(wanted).await.unwrap(), 6).await;
    assert_eq!(repeated.texts, answers.texts);
}

#[tokio::test]
async fn a_shared_prefix_changes_no_logprob() {
    let world = world().await;
    let prefix = tokens(90, 2);
    let sequences: Vec<(Vec<Token>, usize)> = (0..4)
        .map(|i| (prefix.iter().copied().chain(tokens(20, 10 + i)).collect(), prefix.len()))
        .collect();
    let shared = world.logprobs(sequences.clone(), Weights::Active).await;
    assert_eq!(shared.len(), sequences.len());
    for (sequence, shared) in sequences.into_iter().zip(shared) {
        // Scored from 1 on there is no trunk, so nothing is shared or cached.
        let alone = world.logprobs(vec![(sequence.0, 1)], Weights::Active).await;
        let alone = &alone[0][alone[0].len() - shared.len()..];
        assert!(largest_difference(&shared, alone) < ROUNDING, "{shared:?} {alone:?}");
    }
}

#[tokio::test]
async fn a_score_equals_the_logprobs_of_its_labels() {
    let world = world().await;
    let prompts: Vec<Vec<Token>> =
        (0..3).map(|i| [tokens(40, 3), tokens(10, 20 + i)].concat()).collect();
    let labels = vec![Token(65), Token(66), Token(67)];
    let request = ScoreRequest {
        prompts: prompts.clone(),
        labels: labels.clone(),
        weights: Weights::Active,
        priority: Priority::Gate,
    };
    let scores = world.engine.score(request).await.unwrap();
    assert_eq!(scores.len(), prompts.len());
    for (prompt, score) in prompts.iter().zip(scores) {
        assert_eq!(score.probabilities.len(), labels.len());
        for (&label, share) in labels.iter().zip(&score.probabilities) {
            let tokens: Vec<Token> = prompt.iter().copied().chain([label]).collect();
            let logprob = world.logprobs(vec![(tokens, prompt.len())], Weights::Active).await[0][0];
            assert!(((share * score.mass).ln() - logprob).abs() < ROUNDING);
        }
    }
}

#[tokio::test]
async fn generations_that_take_turns_do_not_touch_each_other() {
    let world = world().await;
    let adapted = world.load(1).await;
    let sequence = || vec![(tokens(100, 4), 1)];
    let base = Weights::Generation(Generation::BASE);
    let alone_base = world.logprobs(sequence(), base).await;
    let weights = Weights::Generation(adapted);
    let alone_adapted = world.logprobs(sequence(), weights).await;
    assert!(largest_difference(&alone_base[0], &alone_adapted[0]) > 0.1, "the adapter does work");
    // 64 tokens a step, so that both need several steps and the generations alternate.
    let (base_again, adapted_again) =
        tokio::join!(world.logprobs(sequence(), base), world.logprobs(sequence(), weights),);
    // Equal but for rounding: cells lie elsewhere, so sums are taken in another order.
    assert!(largest_difference(&base_again[0], &alone_base[0]) < ROUNDING);
    assert!(largest_difference(&adapted_again[0], &alone_adapted[0]) < ROUNDING);
    let prompt = tokens(20, 5);
    let generate = async |weights| {
        let sampling = Sampling { max_tokens: 40, seed: Some(3), ..Sampling::default() };
        let wanted = GenerateRequest { sampling, weights, ..request(prompt.clone()) };
        read(world.engine.generate(wanted).await.unwrap(), 1).await.tokens.remove(0)
    };
    let answers = tokio::join!(generate(base), generate(weights));
    for (drawn, own, other) in [(answers.0, base, weights), (answers.1, weights, base)] {
        let all = prompt.iter().copied().chain(drawn.iter().map(|piece| piece.token)).collect();
        let sequence = vec![(all, prompt.len())];
        let sampled: Vec<f32> = drawn.iter().map(|piece| piece.logprob).collect();
        let again = world.logprobs(sequence.clone(), own).await;
        assert!(largest_difference(&sampled, &again[0]) < ROUNDING, "{sampled:?} {again:?}");
        assert!(largest_difference(&sampled, &world.logprobs(sequence, other).await[0]) > 0.1);
    }
    world.engine.retire(adapted).await.unwrap();
    let base_alone_again = world.logprobs(sequence(), base).await;
    assert!(largest_difference(&base_alone_again[0], &alone_base[0]) < ROUNDING);
}

/// The base judges, whatever generation answers.
#[tokio::test]
async fn judgements_in_a_context_of_their_own_go_on_through_swaps() {
    let world = world_of(|config| EngineConfig { deterministic_judge: true, ..config }).await;
    let judge = world.engine.judge_context().unwrap().clone();
    let scores = async |judge: &Engine| {
        let request = ScoreRequest {
            prompts: (0..4).map(|i| tokens(70, 60 + i)).collect(),
            labels: vec![Token(40), Token(41)],
            weights: Weights::Generation(Generation::BASE),
            priority: Priority::Gate,
        };
        judge.score(request).await.unwrap()
    };
    let alone = scores(&judge).await;
    let n_judged = Cell::new(0);
    let swaps = async {
        for generation in 1..=8 {
            // On a busy machine all swaps would be over before the second judgement.
            while n_judged.get() < (generation - 1) / 2 {
                tokio::task::yield_now().await;
            }
            let new = world.load(generation).await;
            world.engine.activate(new).await.unwrap();
            world.logprobs(vec![(tokens(30, 9), 1)], Weights::Active).await;
            if 1 < generation {
                world.engine.retire(Generation(generation - 1)).await.unwrap();
            }
        }
    };
    let judged = async {
        while world.engine.stats().active != Generation(8) {
            assert_eq!(scores(&judge).await, alone);
            n_judged.set(n_judged.get() + 1);
        }
    };
    tokio::time::timeout(Duration::from_mins(1), async { tokio::join!(swaps, judged) })
        .await
        .expect("neither waits for the other for ever");
    assert!(3 <= n_judged.get());
    assert_eq!(judge.stats().generations, [(Generation::BASE, 0)], "no adapter is loaded there");
}

#[tokio::test]
async fn idle_work_that_a_chat_interrupts_comes_to_the_same_numbers() {
    let world = world().await;
    let sequences = || (0..6).map(|i| (tokens(400, 20 + i), 1)).collect::<Vec<_>>();
    let alone = world.logprobs(sequences(), Weights::Active).await;
    for attempt in 0.. {
        assert!(attempt < 50, "no chat came in the middle of a step");
        let idle = LogprobRequest {
            sequences: sequences(),
            weights: Weights::Active,
            priority: Priority::Explore,
        };
        let engine = world.engine.clone();
        let idle = tokio::spawn(async move { engine.logprobs(idle).await.unwrap() });
        // Chats without end would keep it from ever coming to its end.
        for _ in 0..10 {
            let chat = GenerateRequest { priority: Priority::Chat, ..request(tokens(5, 40)) };
            drop(world.engine.generate(chat).await.unwrap());
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let idle = idle.await.unwrap();
        assert_eq!(idle.len(), alone.len());
        for (idle, alone) in idle.iter().zip(&alone) {
            assert!(largest_difference(idle, alone) < ROUNDING);
        }
        if 0 < world.engine.stats().interrupted_steps {
            break;
        }
    }
}

#[tokio::test]
async fn a_cancelled_generation_gives_its_cells_back() {
    let world = world().await;
    // More tokens than wait for a reader, so it cannot end.
    let wanted = GenerateRequest {
        n: 8,
        sampling: Sampling { max_tokens: 50, ..Sampling::default() },
        priority: Priority::Explore,
        ..request(tokens(50, 7))
    };
    let started = world.engine.generate(wanted).await.unwrap();
    drop(started);
    eventually(&world.engine, |stats| stats.running == 0 && stats.queued == 0).await;
    // The whole pool is there again.
    let long = world.logprobs(vec![(tokens(512, 8), 1)], Weights::Active).await;
    assert_eq!(long[0].len(), 511);
}

#[tokio::test]
async fn an_adapter_that_does_not_fit_is_refused_and_serving_goes_on() {
    let world = world().await;
    let path = |name: &str| world.folder.path().join(name);
    write_adapter(&path("arch.gguf"), "qwen2", EMBEDDING, 1);
    write_adapter(&path("width.gguf"), "llama", EMBEDDING / 2, 1);
    std::fs::File::create(path("empty.gguf")).unwrap();
    let whole = std::fs::read(path("arch.gguf")).unwrap();
    files::write_atomic(&path("cut.gguf"), |out| {
        std::io::Write::write_all(out, &whole[..whole.len() / 2])
    })
    .unwrap();
    for name in ["arch.gguf", "width.gguf", "empty.gguf", "cut.gguf", "random.gguf", "missing"] {
        let refused = world.engine.load_adapter(Generation(1), path(name)).await;
        assert!(matches!(refused, Err(EngineError::Load { .. })), "{name}: {refused:?}");
    }
    let missing = Weights::Generation(Generation(1));
    let request = GenerateRequest { weights: missing, ..request(tokens(5, 9)) };
    assert_eq!(
        world.engine.generate(request).await.unwrap_err(),
        EngineError::NotLoaded(Generation(1))
    );
    assert_eq!(world.logprobs(vec![(tokens(5, 9), 1)], Weights::Active).await[0].len(), 4);
}

#[test]
fn what_llama_cpp_would_abort_on_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("random.gguf");
    write_model(&model);
    let refused = [
        EngineConfig { context_tokens: 4, ..config(model.clone()) },
        EngineConfig { context_tokens: u32::MAX, ..config(model.clone()) },
        EngineConfig { model: folder.path().join("missing.gguf"), ..config(model.clone()) },
    ];
    for config in refused {
        let error = Llama::load(&config).unwrap_err();
        assert!(matches!(error, EngineError::Load { .. }), "{error}");
    }
}

#[test]
fn what_a_context_cannot_have_is_refused_and_not_made_to_fit() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("random.gguf");
    write_model(&model);
    let all = EngineConfig { max_sequences: 255, batch_tokens: 255, ..config(model) };
    let limits = Llama::load(&all).unwrap().limits();
    assert_eq!((limits.sequences, limits.batch_tokens, limits.cells), (255, 255, 512));
    for (refused, reason) in [
        (EngineConfig { max_sequences: 256, batch_tokens: 256, ..all.clone() }, "1 to 255"),
        (EngineConfig { max_sequences: 0, ..all.clone() }, "max_sequences is 0"),
        (EngineConfig { batch_tokens: 254, ..all.clone() }, "at least max_sequences (255)"),
        (EngineConfig { batch_tokens: 513, ..all }, "at most context_tokens (512)"),
    ] {
        let error = Llama::load(&refused).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn quantized_weights_can_be_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let [plain, quantized] = ["f32.gguf", "q8_0.gguf"].map(|name| folder.path().join(name));
    write_model(&plain);
    quantize(&plain, &quantized, Quantization::Q8_0).unwrap();
    let [plain, quantized] = [plain, quantized].map(|path| Gguf::open(&path).unwrap());
    let name = "blk.0.attn_q.weight";
    let expected = plain.read_f32(plain.tensor(name).unwrap()).unwrap();
    let stored = quantized.tensor(name).unwrap();
    assert_eq!(stored.kind.id(), 8);
    let bytes = quantized.read_bytes(stored, EMBEDDING * EMBEDDING / 32 * 34).unwrap();
    let mut values = vec![0.0; expected.len()];
    dequantize(8, &bytes, &mut values).unwrap();
    assert!(largest_difference(&values, &expected) < 0.3 / 127.0);
    assert_eq!(values, quantized.read_f32(stored).unwrap());
    // F32 and F16, and everything that does not fit.
    let mut one = [0.0];
    dequantize(0, &1.5_f32.to_le_bytes(), &mut one).unwrap();
    assert!((one[0] - 1.5).abs() < f32::EPSILON);
    dequantize(1, &half::f16::from_f32(-2.0).to_le_bytes(), &mut one).unwrap();
    assert!((one[0] + 2.0).abs() < f32::EPSILON);
    for (kind, n_bytes, n_values) in
        [(8, 33, 32), (8, 34, 31), (4, 4, 1), (26, 4, 1), (43, 4, 1), (u32::MAX, 4, 1)]
    {
        let refused = dequantize(kind, &vec![0; n_bytes], &mut vec![0.0; n_values]);
        assert!(refused.is_err(), "{kind} {n_bytes} {n_values}");
    }
}

#[tokio::test]
async fn text_to_copy_changes_no_token_and_no_logprob() {
    let world = world().await;
    let prompt = tokens(40, 12);
    for temperature in [0.0, 1.0] {
        let sampling =
            Sampling { temperature, max_tokens: 60, seed: Some(4), ..Sampling::default() };
        let wanted = GenerateRequest { sampling, ..request(prompt.clone()) };
        let plain = read(world.engine.generate(wanted.clone()).await.unwrap(), 1).await;
        let said: Vec<Token> = plain.tokens[0].iter().map(|piece| piece.token).collect();
        // Its own answer with a fault now and then: what a refinement is to its parent.
        let fault = |(i, t): (usize, &Token)| if i % 9 == 8 { Token(65) } else { *t };
        let prediction: Vec<Token> = said.iter().enumerate().map(fault).collect();
        let before = world.engine.stats();
        let wanted = GenerateRequest { prediction, ..wanted };
        let copied = read(world.engine.generate(wanted).await.unwrap(), 1).await;
        let now: Vec<Token> = copied.tokens[0].iter().map(|piece| piece.token).collect();
        assert_eq!(now, said, "temperature {temperature}");
        let [old, new] = [&plain, &copied].map(|answers| -> Vec<f32> {
            answers.tokens[0].iter().map(|piece| piece.logprob).collect()
        });
        assert!(largest_difference(&old, &new) < ROUNDING, "{old:?} {new:?}");
        let after = eventually(&world.engine, |stats| stats.running == 0).await;
        assert!(20 < after.right_drafts - before.right_drafts, "{after:?}");
    }
}

#[tokio::test]
async fn flash_attention_rounds_more_and_shares_alike() {
    let (exact, flash) = (world().await, world_with(FlashAttention::Auto).await);
    let prefix = tokens(90, 14);
    let sequences: Vec<(Vec<Token>, usize)> = (0..3)
        .map(|i| (prefix.iter().copied().chain(tokens(20, 30 + i)).collect(), prefix.len()))
        .collect();
    let expected = exact.logprobs(sequences.clone(), Weights::Active).await;
    let shared = flash.logprobs(sequences.clone(), Weights::Active).await;
    assert_eq!((expected.len(), shared.len()), (3, 3));
    for ((sequence, expected), shared) in sequences.into_iter().zip(expected).zip(shared) {
        let alone = flash.logprobs(vec![(sequence.0, 1)], Weights::Active).await;
        let alone = &alone[0][alone[0].len() - shared.len()..];
        assert!(largest_difference(&expected, &shared) < FLASH_ROUNDING);
        assert!(largest_difference(alone, &shared) < FLASH_ROUNDING);
    }
}

#[tokio::test]
async fn a_prefix_that_left_the_context_comes_back_with_its_logits() {
    for attention in [FlashAttention::Off, FlashAttention::On] {
        let world = world_with(attention).await;
        let sequence: Vec<Token> = tokens(120, 15);
        let scored = vec![(sequence.clone(), 100)];
        let first = world.logprobs(scored.clone(), Weights::Active).await;
        let chat = GenerateRequest {
            sampling: Sampling { max_tokens: 1, ..Sampling::default() },
            ..request(sequence.clone())
        };
        drop(read(world.engine.generate(chat).await.unwrap(), 1).await);
        // Needs every cell.
        world.logprobs(vec![(tokens(512, 16), 1)], Weights::Active).await;
        let before = eventually(&world.engine, |stats| stats.running == 0).await;
        assert!(0 < before.host_cache_bytes);
        let again = world.logprobs(scored, Weights::Active).await;
        assert!(largest_difference(&first[0], &again[0]) < FLASH_ROUNDING, "{first:?} {again:?}");
        let after = eventually(&world.engine, |stats| stats.running == 0).await;
        assert!(99 <= after.cached_tokens - before.cached_tokens, "{before:?} {after:?}");
    }
}
