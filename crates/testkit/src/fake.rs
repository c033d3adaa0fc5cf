//! A scripted model for tests of the daemon and of the engine: byte vocabulary, a few control
//! tokens, and replies that depend on the prompt. It refuses what makes llama.cpp abort or give
//! wrong numbers: batches that llama.cpp refuses, too many cells, sequences that mix generations.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cells::{CELL_BYTES, Cells};
use inference::backend::{Backend, Entry, Limits, SequenceId};
use inference::{EngineError, Generation, ModelInfo, TextPart, Token, Vocabulary};

/// Control tokens, numbered from 256. The end of a turn is [`END`].
const CONTROL: [&str; 5] = ["<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"];
/// Ends an answer.
pub const END: Token = Token(257);
/// The prompt goes up to the last one of these; what follows is the reply so far.
const ASSISTANT: Token = Token(260);
const N_VOCAB: usize = 256 + CONTROL.len();
/// Log-prob of everything that the script does not mention. At -20 one token in two million was
/// drawn against the script, and tests failed now and then.
const UNLIKELY: f32 = -60.0;

/// The chat template that goes with the vocabulary.
pub const CHAT_TEMPLATE: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\
    {% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

/// What the fake says. The first rule that fits a prompt decides.
#[derive(Clone, Debug)]
pub struct Script {
    rules: Vec<Rule>,
    otherwise: Vec<(String, f32)>,
    step_delay: Duration,
    refused: BTreeSet<Generation>,
    limits: Limits,
    /// Prompts with this text give NaN.
    poison: Option<String>,
    file: PathBuf,
}

#[derive(Clone, Debug)]
struct Rule {
    contains: String,
    generation: Option<Generation>,
    replies: Vec<(String, f32)>,
}

impl Script {
    /// Gives this reply to every prompt.
    pub fn new(reply: &str) -> Self {
        Self {
            rules: Vec::new(),
            otherwise: vec![(reply.to_owned(), 1.0)],
            step_delay: Duration::ZERO,
            refused: BTreeSet::new(),
            limits: Limits { cells: 4096, sequences: 32, batch_tokens: 64, outputs: 64 },
            poison: None,
            file: PathBuf::from("fake.gguf"),
        }
    }
    /// Prompts that contain this text get one of these replies, with these weights. Sampling at
    /// temperature 1 draws them so; a score over their first bytes gives these weights.
    #[must_use]
    pub fn on(self, contains: &str, replies: &[(&str, f32)]) -> Self {
        self.rule(contains, None, replies)
    }
    /// The same in one generation only.
    #[must_use]
    pub fn on_generation(
        self,
        generation: Generation,
        contains: &str,
        replies: &[(&str, f32)],
    ) -> Self {
        self.rule(contains, Some(generation), replies)
    }
    /// Every step takes this long.
    #[must_use]
    pub fn step_delay(mut self, delay: Duration) -> Self {
        self.step_delay = delay;
        self
    }
    /// The adapter of this generation cannot be loaded.
    #[must_use]
    pub fn refuse(mut self, generation: Generation) -> Self {
        self.refused.insert(generation);
        self
    }
    /// What fits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }
    /// The file that it says it was loaded from: what an adapter is checked against.
    #[must_use]
    pub fn file(mut self, file: &Path) -> Self {
        file.clone_into(&mut self.file);
        self
    }
    /// Prompts that contain this text give logits that are not numbers.
    #[must_use]
    pub fn poison(mut self, contains: &str) -> Self {
        self.poison = Some(contains.to_owned());
        self
    }

    fn rule(
        mut self,
        contains: &str,
        generation: Option<Generation>,
        replies: &[(&str, f32)],
    ) -> Self {
        let replies = replies.iter().map(|&(text, weight)| (text.to_owned(), weight)).collect();
        self.rules.push(Rule { contains: contains.to_owned(), generation, replies });
        self
    }

    /// The logits after these tokens.
    fn logits(&self, generation: Generation, tokens: &[Token]) -> Vec<f32> {
        let from = tokens.iter().rposition(|&t| t == ASSISTANT).map_or(tokens.len(), |at| at + 1);
        let (prompt, reply) = tokens.split_at(from);
        let prompt = text(prompt);
        if self.poison.as_ref().is_some_and(|poison| prompt.contains(poison)) {
            return vec![f32::NAN; N_VOCAB];
        }
        let rule = self.rules.iter().find(|rule| {
            prompt.contains(&rule.contains)
                && rule.generation.is_none_or(|wanted| wanted == generation)
        });
        let replies = rule.map_or(&self.otherwise, |rule| &rule.replies);
        let mut weights = vec![0.0; N_VOCAB];
        for (text, weight) in replies {
            let bytes = text.as_bytes().iter().map(|&byte| Token(i32::from(byte)));
            let all: Vec<Token> = bytes.chain([END]).collect();
            if let Some([next, ..]) = all.strip_prefix(reply) {
                weights[index(*next)] += weight;
            }
        }
        if weights.iter().all(|&weight| weight == 0.0) {
            weights[index(END)] = 1.0;
        }
        let total: f32 = weights.iter().sum();
        weights.into_iter().map(|w| if w > 0.0 { (w / total).ln() } else { UNLIKELY }).collect()
    }
}

/// The fake model.
#[derive(Debug)]
pub struct Fake {
    script: Script,
    cells: Cells,
    selected: Generation,
    loaded: BTreeSet<Generation>,
    rows: Vec<Option<Vec<f32>>>,
}

impl Fake {
    /// Follows a script.
    pub fn new(script: Script) -> Self {
        Self {
            cells: Cells::new(script.limits, N_VOCAB),
            script,
            selected: Generation::BASE,
            loaded: BTreeSet::from([Generation::BASE]),
            rows: Vec::new(),
        }
    }

    /// What every step takes.
    fn begin(&self, batch: &[Entry<'_>]) -> Result<(), EngineError> {
        if let Some(refusal) = self.cells.refusal(batch) {
            return Err(EngineError::Failed(refusal));
        }
        if !self.cells.has_room(batch.len()) {
            return Err(EngineError::Failed(format!("no cells for {} tokens", batch.len())));
        }
        if !self.script.step_delay.is_zero() {
            std::thread::sleep(self.script.step_delay);
        }
        Ok(())
    }

    fn evaluate(&mut self, batch: &[Entry<'_>]) -> Result<(), EngineError> {
        self.rows.clear();
        let generation = self.selected;
        for entry in batch {
            self.cells.evaluate(std::slice::from_ref(entry), generation);
            for &id in entry.sequences {
                if self.cells.sequence(id).any(|cell| cell.generation != generation) {
                    return Err(EngineError::Failed("a sequence mixes generations".to_owned()));
                }
            }
            let history: Vec<Token> =
                self.cells.sequence(entry.sequences[0]).map(|cell| cell.token).collect();
            self.rows.push(entry.logits.then(|| self.script.logits(generation, &history)));
        }
        Ok(())
    }
}

impl Backend for Fake {
    fn info(&self) -> ModelInfo {
        ModelInfo {
            name: "fake".to_owned(),
            path: self.script.file.clone(),
            sha256: "0".repeat(64),
            architecture: "fake".to_owned(),
            n_parameters: 1,
            size_bytes: 1,
            n_vocab: N_VOCAB,
            max_sequence: self.script.limits.cells,
            chat_template: Some(CHAT_TEMPLATE.to_owned()),
            bos: CONTROL[0].to_owned(),
            eos: CONTROL[1].to_owned(),
            end_of_turn: END,
            system: "fake".to_owned(),
        }
    }

    fn vocabulary(&self) -> Arc<dyn Vocabulary> {
        Arc::new(Bytes)
    }

    fn limits(&self) -> Limits {
        self.script.limits
    }

    /// An interruption leaves half of the batch behind.
    fn decode(
        &mut self,
        batch: &[Entry<'_>],
        interrupt: Option<&AtomicBool>,
    ) -> Result<usize, EngineError> {
        self.begin(batch)?;
        let is_whole = !interrupt.is_some_and(|signal| signal.load(Ordering::Relaxed));
        let n = if is_whole { batch.len() } else { batch.len() / 2 };
        let (evaluated, _) = batch.split_at(n);
        self.evaluate(evaluated)?;
        Ok(n)
    }

    fn logits(&self, index: usize) -> Result<&[f32], EngineError> {
        let row = self.rows.get(index).and_then(Option::as_deref);
        row.ok_or_else(|| EngineError::Failed(format!("entry {index} has no logits")))
    }

    fn copy(&mut self, from: SequenceId, to: SequenceId, n: usize) {
        self.cells.share(from, to, n);
    }

    fn truncate(&mut self, sequence: SequenceId, n: usize) {
        self.cells.truncate(sequence, n);
    }

    fn save(&mut self, sequence: SequenceId, positions: Range<usize>) -> Option<Vec<u8>> {
        Some(self.cells.save(sequence, positions))
    }

    fn restore(&mut self, sequence: SequenceId, positions: Range<usize>, state: &[u8]) -> bool {
        self.cells.restore(sequence, positions, state);
        true
    }

    fn host_cache_bytes(&self) -> usize {
        self.cell_bytes() * self.script.limits.cells / 2
    }

    fn cell_bytes(&self) -> usize {
        CELL_BYTES
    }

    fn load(&mut self, generation: Generation, path: &Path) -> Result<(), EngineError> {
        let refused = self.script.refused.contains(&generation);
        if refused || !path.is_file() {
            let reason = if refused { "the script refuses it" } else { "there is no such file" };
            return Err(EngineError::Load { path: path.to_owned(), reason: reason.to_owned() });
        }
        self.loaded.insert(generation);
        Ok(())
    }

    fn select(&mut self, generation: Generation) -> Result<(), EngineError> {
        if !self.loaded.contains(&generation) {
            return Err(EngineError::NotLoaded(generation));
        }
        self.selected = generation;
        Ok(())
    }

    fn free(&mut self, generation: Generation) {
        self.loaded.remove(&generation);
    }
}

/// One token a byte, and the control tokens.
#[derive(Debug)]
struct Bytes;

impl Vocabulary for Bytes {
    fn tokenize(&self, parts: &[TextPart]) -> Vec<Token> {
        let mut tokens = Vec::new();
        for part in parts {
            let mut rest = part.text.as_bytes();
            while let Some((&byte, following)) = rest.split_first() {
                let control = CONTROL.iter().position(|c| rest.starts_with(c.as_bytes()));
                if let (true, Some(which)) = (part.control, control) {
                    tokens.push(token(256 + which));
                    rest = &rest[CONTROL[which].len()..];
                } else {
                    tokens.push(Token(i32::from(byte)));
                    rest = following;
                }
            }
        }
        tokens
    }

    fn piece(&self, token: Token) -> Vec<u8> {
        u8::try_from(token.0).map_or_else(|_| Vec::new(), |byte| vec![byte])
    }

    fn is_end(&self, token: Token) -> bool {
        token == END
    }
}

fn token(index: usize) -> Token {
    Token(i32::try_from(index).expect("the vocabulary is small"))
}

fn index(token: Token) -> usize {
    usize::try_from(token.0).expect("the engine checks token ids")
}

/// Control tokens show as themselves, so that a rule can ask for them.
fn text(tokens: &[Token]) -> String {
    let mut bytes = Vec::new();
    for &token in tokens {
        match index(token).checked_sub(256) {
            Some(control) => bytes.extend_from_slice(CONTROL[control].as_bytes()),
            None => bytes.extend_from_slice(&Bytes.piece(token)),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
