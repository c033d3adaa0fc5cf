//! Two implementations of one model, libtorch in the trainer and llama.cpp in the daemon: the same
//! weights have to give the same log-probs. A wrong rotation, norm or scale shows here and nowhere
//! else, because a model that is slightly wrong still talks.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use engine::{
    self, Engine, EngineConfig, EngineThread, Generation, KvCache, LogprobRequest, Priority, Token,
    Weights,
};
use files::gguf::{Gguf, Writer, model_sha256};
use nano::corpus::Corpus;
use nano::tokenizer::Tokenizer;
use nano::world::{Answer, Habits, Problem, Split};
use protocol::{BaseKind, Example, Job, Optimizer, Probe, TrainerEvent};
use testkit::random_model::CONTEXT;

#[tokio::test]
async fn base_and_adapter_mean_the_same_to_trainer_and_server() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("agents/nano/model.gguf");
    let exact = folder.path().join("f32.gguf");
    dequantize(&shipped, &exact);
    let examples = examples(&shipped);

    // With a learning rate of 0 no weight changes, and a new adapter adds nothing: these are the
    // numbers of the base.
    let out = |name: &str| folder.path().join(name);
    let base = untrained(&exact, &examples, None, BaseKind::Auto, &out("base"));
    let adapter = train(&job(&exact, &examples, &out("adapter")));
    let (engine, thread) = load(&exact).await;
    gap("F32", &engine, Weights::Active, &base).await.assert_within(1e-4, 1e-3);
    let generation = Generation(1);
    engine.load_adapter(generation, adapter.adapter.clone()).await.unwrap();
    let weights = Weights::Generation(generation);
    gap("F32 with adapter", &engine, weights, &adapter).await.assert_within(2e-4, 2e-3);
    let unlike = gap("F32 without it", &engine, Weights::Active, &adapter).await;
    assert!(2e-3 < unlike.max, "the adapter changes nothing, so the test shows nothing");
    drop(engine);
    thread.join().unwrap();

    let base = untrained(&shipped, &examples, None, BaseKind::Auto, &out("shipped"));
    // llama.cpp rounds what goes into a Q8_0 product to 8 bits too; the trainer does not.
    let (engine, thread) = load(&shipped).await;
    gap("Q8_0", &engine, Weights::Active, &base).await.assert_within(0.01, 0.03);
    drop(engine);
    thread.join().unwrap();
}

/// The same values stored as F32.
pub(crate) fn dequantize(from: &Path, to: &Path) {
    let source = Gguf::open(from).unwrap();
    let mut writer = Writer::default();
    for (key, value) in source.entries() {
        writer.metadata(key, value.clone());
    }
    for tensor in source.tensors() {
        writer.tensor(&tensor.name, &tensor.shape, source.read_f32(tensor).unwrap());
    }
    writer.write(to).unwrap();
}

/// Right and wrong answers to a few problems, in the model's own tokens.
pub(crate) fn examples(model: &Path) -> Vec<Example> {
    let prompts = nano::corpus::prompts();
    let corpus = Corpus::new(&prompts).unwrap();
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(model).unwrap()).unwrap();
    let mut rng = fastrand::Rng::with_seed(6);
    let mut example = |id: usize| {
        let problem = Problem::sample(&mut rng, Split::Live);
        let right = Answer::gold(&problem);
        let mut wrong =
            std::iter::repeat_with(|| Answer::imperfect(&problem, &Habits::WILD, &mut rng));
        let wrong = wrong.find(|answer| *answer != right).unwrap();
        let encode = |answer| corpus.answer(&problem, answer).unwrap().encode(&tokenizer);
        let ((right, from), (wrong, _)) = (encode(&right), encode(&wrong));
        Example {
            prompt_id: id.to_string(),
            prompt: right[..from].to_vec(),
            chosen: right[from..].to_vec(),
            rejected: Some(wrong[from..].to_vec()),
        }
    };
    (0..16).map(&mut example).collect()
}

pub(crate) struct Trained {
    pub adapter: PathBuf,
    pub probe: Probe,
}

/// What the real trainer makes of a run without a learning rate: the numbers are those of its start.
pub(crate) fn untrained(
    base: &Path,
    examples: &[Example],
    start: Option<PathBuf>,
    base_kind: BaseKind,
    out: &Path,
) -> Trained {
    let mut job = Job { start, base_kind, ..job(base, examples, out) };
    (job.optimizer.learning_rate, job.optimizer.epochs) = (0.0, 1);
    train(&job)
}

/// A job that learns a little, with its data set in a new folder.
pub(crate) fn job(base: &Path, examples: &[Example], out: &Path) -> Job {
    std::fs::create_dir(out).unwrap();
    let data = out.join("data.jsonl");
    let line = |example| serde_json::to_string(example).unwrap() + "\n";
    let lines: String = examples.iter().map(line).collect();
    files::write_atomic(&data, |file| file.write_all(lines.as_bytes())).unwrap();
    let sound = testkit::job();
    Job {
        run: "parity".into(),
        base: base.to_owned(),
        base_sha256: model_sha256(base).unwrap(),
        data,
        out: out.to_owned(),
        optimizer: Optimizer { epochs: 4, ..sound.optimizer },
        context_tokens: CONTEXT,
        ..sound
    }
}

/// The real trainer with its job. Its standard input stays open: the end would tell it to stop.
pub(crate) fn start(job: &Job) -> (Child, ChildStdin) {
    let mut command = Command::new(testkit::trainer(env!("CARGO_BIN_EXE_reflectd")));
    start_with(&mut command, &serde_json::to_string(&job).unwrap())
}

/// The same with any command and any words in the place of the job.
pub(crate) fn start_with(command: &mut Command, words: &str) -> (Child, ChildStdin) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{words}").unwrap();
    (child, stdin)
}

/// One run of the real trainer: how it ended, and its last event.
pub(crate) fn run(job: &Job) -> (ExitStatus, TrainerEvent) {
    let (status, mut events) = said(job);
    let last = events.pop().unwrap_or_else(|| panic!("it ended with {status}"));
    (status, last)
}

/// How it ended, and all that it said.
pub(crate) fn said(job: &Job) -> (ExitStatus, Vec<TrainerEvent>) {
    let (child, stdin) = start(job);
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    let said = String::from_utf8(output.stdout).unwrap();
    (output.status, said.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// One run that succeeds.
pub(crate) fn train(job: &Job) -> Trained {
    let (status, last) = run(job);
    assert!(status.success(), "{last:?}");
    trained(&last)
}

/// What the last event of a run names.
pub(crate) fn trained(last: &TrainerEvent) -> Trained {
    let TrainerEvent::Done { adapter, probe, .. } = last.clone() else { panic!("{last:?}") };
    let probe = serde_json::from_slice(&std::fs::read(probe).unwrap()).unwrap();
    Trained { adapter, probe }
}

pub(crate) async fn load(model: &Path) -> (Engine, EngineThread) {
    let config = EngineConfig {
        context_tokens: CONTEXT,
        batch_tokens: 512,
        // As the trainer computes: f16 alone makes log-probs differ by more than 1e-3.
        kv_cache: KvCache::F32,
        ..EngineConfig::small(model)
    };
    engine::spawn(&config).await.unwrap()
}

/// How far two lists of log-probs lie apart.
#[derive(Debug)]
pub(crate) struct Gap {
    pub mean: f64,
    pub max: f64,
}

impl Gap {
    pub(crate) fn assert_within(&self, mean: f64, max: f64) {
        assert!(self.mean <= mean && self.max <= max, "{self:?} is beyond {mean} or {max}");
    }
}

/// The trainer's log-probs against the server's.
#[expect(clippy::print_stderr, reason = "the numbers are worth seeing, not only that they pass")]
pub(crate) async fn gap(what: &str, engine: &Engine, weights: Weights, trained: &Trained) -> Gap {
    let sequences = &trained.probe.sequences;
    let ask = |tokens: &[i32]| tokens.iter().copied().map(Token).collect::<Vec<_>>();
    let request = LogprobRequest {
        sequences: sequences.iter().map(|s| (ask(&s.tokens), s.from)).collect(),
        weights,
        priority: Priority::Gate,
    };
    let served = engine.logprobs(request).await.unwrap();
    assert_eq!(served.len(), sequences.len());
    let mut differences = Vec::new();
    for (served, trained) in served.iter().zip(sequences) {
        assert_eq!(served.len(), trained.logprobs.len());
        let pairs = served.iter().zip(&trained.logprobs);
        differences.extend(pairs.map(|(a, b)| f64::from((a - b).abs())));
    }
    let mean = statistics::mean(differences.iter().copied());
    let max = differences.iter().copied().fold(0.0, f64::max);
    let gap = Gap { mean, max };
    eprintln!("{what}: {gap:?} over {} tokens", differences.len());
    gap
}
