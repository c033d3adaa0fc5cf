//! An unknown model or adapter is tried once in a child process, because no list of checks covers
//! all that makes llama.cpp end its process: a child that dies is an error here, and serving goes
//! on. What was tried is remembered by hash, so that a known file costs nothing but its hash.
//! [`Prober`] is the parent's side, used by `daemon` for the model and by [`super::Engine`] for
//! adapters; [`run`] is the child's, called by `reflectd probe`.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, setrlimit};
use sha2::Digest as _;
use tokio::process::Command;

use super::llama::{self, Llama, OtherModels};
use super::{EngineConfig, EngineError, Generation, ModelInfo, TextPart, Token};
use files::gguf::{Gguf, GgufError, model_sha256, model_size};
use inference::backend::{Backend as _, Entry, SequenceId};

/// Raised when a probe tries more than it did.
const VERSION: u32 = 1;
/// A start and a step of any model take less; beyond it, so many bytes of the files a second.
const PATIENCE: Duration = Duration::from_secs(30);
const SLOWEST_READ: u64 = 20 << 20;
/// What a probe may allocate beside twice its files: context, graph and libraries.
const ALLOWANCE: u64 = 2 << 30;
/// Context of a probe.
const CELLS: u32 = 256;

/// Tries unknown files in child processes.
#[derive(Debug)]
pub struct Prober {
    /// This program.
    program: PathBuf,
    /// A file for every pair that was tried and was good.
    known: PathBuf,
}

impl Prober {
    /// `known` is the folder of what was tried; `program` has the subcommand `probe`.
    pub fn new(program: PathBuf, known: PathBuf) -> Self {
        Self { program, known }
    }

    /// Tries a model, unless it is known. Returns its SHA-256.
    pub async fn model(&self, model: &Path) -> Result<String, EngineError> {
        let sha256 = hash(model, model_sha256).await?;
        self.try_once(model, &sha256, None).await?;
        Ok(sha256)
    }

    /// Tries an adapter on the served model, unless the two are known together.
    pub async fn adapter(&self, base: &ModelInfo, adapter: &Path) -> Result<(), EngineError> {
        let unsplit = |path: &Path| {
            files::sha256(path).map_err(|source| GgufError::Io { path: path.to_owned(), source })
        };
        let sha256 = hash(adapter, unsplit).await?;
        self.try_once(&base.path, &base.sha256, Some((adapter, &sha256))).await
    }

    async fn try_once(
        &self,
        model: &Path,
        model_sha256: &str,
        adapter: Option<(&Path, &str)>,
    ) -> Result<(), EngineError> {
        let (path, adapter_sha256) = adapter.unwrap_or((model, ""));
        let llama = llama::version();
        let tried = format!("{VERSION} {llama} {model_sha256} {adapter_sha256}\n");
        let name = files::hex(&sha2::Sha256::digest(&tried)[..16]);
        let marker = self.known.join(name);
        if marker.exists() {
            return Ok(());
        }
        probe(&self.program, model, adapter.map(|(path, _)| path)).await?;
        let write = || {
            std::fs::create_dir_all(&self.known)?;
            files::write_atomic(&marker, |out| std::io::Write::write_all(out, tried.as_bytes()))
        };
        if let Err(error) = write() {
            // It is tried again next time.
            let file = path.display();
            tracing::warn!(%file, %error, "That a file is good cannot be remembered.");
        }
        Ok(())
    }
}

/// Tries a model, and an adapter on it, in a child process.
pub async fn probe(
    program: &Path,
    model: &Path,
    adapter: Option<&Path>,
) -> Result<(), EngineError> {
    let path = adapter.unwrap_or(model);
    let refused = |reason| EngineError::Load { path: path.to_owned(), reason };
    let files = [Some(model), adapter];
    let bytes: u64 = files.into_iter().flatten().map(size).sum();
    let patience = PATIENCE + Duration::from_secs(bytes / SLOWEST_READ);
    let child = Command::new(program)
        .arg0("reflectd")
        .arg("probe")
        .args(files.into_iter().flatten())
        // A crash is an answer here: no debugger, and the GPU is left to those who serve.
        .env("GGML_NO_BACKTRACE", "1")
        .env("CUDA_VISIBLE_DEVICES", "")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(patience, child).await {
        Err(_) => {
            let limit = patience.as_secs();
            return Err(refused(format!("llama.cpp does not get done with it in {limit} s")));
        }
        Ok(Err(error)) => {
            let program = program.display();
            return Err(EngineError::Failed(format!("start {program} probe: {error}")));
        }
        Ok(Ok(output)) => output,
    };
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let last = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let last: String = last.chars().take(500).collect();
    // The child names the file as its parent does.
    let about_file = last.strip_prefix(&format!("reflectd: load {}: ", path.display()));
    Err(match (output.status.signal(), about_file) {
        (Some(signal), _) => {
            refused(format!("llama.cpp ends its process on it (signal {signal}): {last}"))
        }
        (None, Some(reason)) => refused(reason.to_owned()),
        // The base of an adapter, or llama.cpp as a whole.
        (None, None) => EngineError::Failed(format!("try {}: {last}", path.display())),
    })
}

async fn hash(
    path: &Path,
    of: impl FnOnce(&Path) -> Result<String, GgufError> + Send + 'static,
) -> Result<String, EngineError> {
    let file = path.to_owned();
    let hashed = tokio::task::spawn_blocking(move || of(&file)).await;
    let hashed = hashed.map_err(|error| EngineError::Failed(error.to_string()))?;
    hashed.map_err(|error| llama::unreadable(path, &error))
}

/// Bytes of a file, or of all files of a model; nothing of one that cannot be read, which is told
/// by who loads it.
fn size(path: &Path) -> u64 {
    model_size(path).unwrap_or(0)
}

/// The child's side: loads the files as the daemon would, on the processor and with a small
/// context, and computes a prompt and a step under each of the weights.
pub fn run(model: &Path, adapter: Option<&Path>) -> Result<(), EngineError> {
    limit_this_process(2 * (size(model) + adapter.map_or(0, size)) + ALLOWANCE);
    let config = EngineConfig {
        context_tokens: CELLS,
        max_sequences: 1,
        queue: 1,
        ..EngineConfig::small(model)
    };
    let mut llama = Llama::open(&config, String::new(), OtherModels::default())?;
    speak(&llama);
    compute(&mut llama, model)?;
    if let Some(adapter) = adapter {
        let generation = Generation(1);
        check_values(adapter)?;
        llama.load(generation, adapter)?;
        llama.select(generation)?;
        compute(&mut llama, adapter)?;
        llama.free(generation);
    }
    Ok(())
}

/// No core dump, and not all of the machine's memory, for a file that nobody knows.
fn limit_this_process(bytes: u64) {
    let limit = |most| Rlimit { current: Some(most), maximum: Some(most) };
    for (resource, most) in [(Resource::Core, 0), (Resource::Data, bytes)] {
        if let Err(error) = setrlimit(resource, limit(most)) {
            tracing::debug!(%error, "A limit could not be set.");
        }
    }
}

/// llama.cpp loads values that are not numbers, and a quantized base turns them into garbage that
/// looks finite.
fn check_values(adapter: &Path) -> Result<(), EngineError> {
    let refused = |reason| EngineError::Load { path: adapter.to_owned(), reason };
    let header = Gguf::open(adapter).map_err(|error| refused(error.to_string()))?;
    for tensor in header.tensors() {
        let values = header.read_f32(tensor).map_err(|error| refused(error.to_string()))?;
        if !values.iter().all(|value| value.is_finite()) {
            return Err(refused(format!("{} has values that are not finite", tensor.name)));
        }
    }
    Ok(())
}

/// Every token as text, and texts of every kind as tokens.
fn speak(llama: &Llama) {
    let vocabulary = llama.vocabulary();
    for id in 0..i32::try_from(llama.info().n_vocab).unwrap_or(i32::MAX) {
        vocabulary.piece(Token(id));
        vocabulary.is_end(Token(id));
    }
    let all: String =
        (0..=0x2FF_u32).chain([0x3042, 0xFFFD, 0x1F642]).filter_map(char::from_u32).collect();
    for text in ["", " ", "Hello, world!\n\n", &all] {
        vocabulary.tokenize(&[TextPart { text: text.to_owned(), control: false }]);
    }
}

/// A prompt of several tokens, then one more; their logits are numbers.
fn compute(llama: &mut Llama, path: &Path) -> Result<(), EngineError> {
    let sequence = [SequenceId(0)];
    llama.truncate(sequence[0], 0);
    let n_vocab = llama.info().n_vocab;
    // Tokens from all over the vocabulary.
    let token = |i: usize| Token(i32::try_from(i * n_vocab / 48).unwrap_or(0));
    let entry =
        |i: usize, logits| Entry { token: token(i), position: i, sequences: &sequence, logits };
    let prompt: Vec<Entry<'_>> = (0..40).map(|i| entry(i, i == 39)).collect();
    for batch in [&prompt[..], &[entry(40, true)]] {
        llama.decode(batch, None)?;
        if !llama.logits(batch.len() - 1)?.iter().all(|logit| logit.is_finite()) {
            let reason = "the model computes values that are not numbers with it".to_owned();
            return Err(EngineError::Load { path: path.to_owned(), reason });
        }
    }
    Ok(())
}
