//! A reward model: a decoder with a classification head, of whose output llama.cpp's rank pooling
//! makes one number a sequence. Reads one sequence after the other and keeps nothing between them.
//! Used by the thread of `engine/reward.rs`.
//!
//! llama.cpp reads such a head of few architectures, and with qwen3 it takes the softmax over the
//! classes: of two that is the probability of the first, of one it is always 1. So a head with a
//! single output is computed here, from the last token's state.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use llama_cpp_sys_2 as sys;

use super::check::tensor_bytes;
use super::context::{Batch, Computing, Context};
use super::open::{load_error, open, open_model};
use super::process::{init, last_error};
use super::vocabulary::LlamaVocabulary;
use super::{Loaded, Model, OtherModels, chat_template, hash, info, load, position};
use crate::{EngineConfig, EngineError, ModelInfo, Token, Vocabulary};
use files::gguf::Gguf;
use inference::backend::{Entry, Limits, RewardBackend, SequenceId};

/// Decoders whose head llama.cpp reads; it refuses the file of any other as having a tensor too
/// many. Encoders have heads too, but no chat template.
const ARCHITECTURES: [&str; 1] = ["qwen3"];
const HEAD: &str = "cls.output.weight";
const SEQUENCE: SequenceId = SequenceId(0);

/// A loaded reward model. Field order is significant: the context goes before the model.
#[derive(Debug)]
pub struct RewardModel {
    context: Context,
    batch: Batch,
    limits: Limits,
    head: Head,
    info: ModelInfo,
    vocabulary: Arc<LlamaVocabulary>,
    _model: Arc<Model>,
}

/// What makes a number of a sequence.
#[derive(Debug)]
enum Head {
    /// llama.cpp's two probabilities.
    TwoClasses,
    /// One output: the row that the last token's state is multiplied with.
    Row(Vec<f32>),
}

impl RewardModel {
    /// Loads it beside other models.
    pub fn load(config: &EngineConfig, others: OtherModels) -> Result<Self, EngineError> {
        init()?;
        let path = config.model.as_path();
        let sha256 = hash(path)?;
        let parts = open_model(path)?;
        let header = parts.header();
        let head = head(header).map_err(|reason| load_error(path, reason))?;
        // Pooling wants every token as an output, and each output has a row of logits.
        let lower = |limits: Limits| Limits {
            sequences: 1,
            batch_tokens: limits.batch_tokens.min(limits.outputs),
            outputs: limits.batch_tokens.min(limits.outputs),
            ..limits
        };
        let Loaded { model, limits, computing, .. } = load(config, &parts, others, lower)?;
        let pooling = match head {
            Head::TwoClasses => sys::LLAMA_POOLING_TYPE_RANK,
            Head::Row(_) => sys::LLAMA_POOLING_TYPE_LAST,
        };
        let computing = Computing { pooling: Some(pooling), ..computing };
        let context = Context::new(&model, &limits, computing)
            .ok_or_else(|| load_error(path, last_error("the context cannot be made")))?;
        let template = chat_template(config, header).unwrap_or_default();
        let vocabulary = Arc::new(LlamaVocabulary::new(Arc::clone(&model), template));
        let info = info(config, sha256, header, &model, &vocabulary, limits.cells)?;
        let batch = Batch::new(&limits);
        Ok(Self { context, batch, limits, head, info, vocabulary, _model: model })
    }

    /// Why a file is no reward model, without loading it. For `reflectd doctor`.
    pub fn fault(path: &Path) -> Option<String> {
        let header = open(path).map_err(|error| error.to_string());
        header.and_then(|header| head(&header)).err()
    }

    /// What pooling has made of the sequence: `n` numbers.
    fn pooled(&self, n: usize) -> Result<&[f32], EngineError> {
        // SAFETY: the context lives and the sequence is below its `n_seq_max`; a sequence that was
        // not in the last batch gives a null pointer.
        let pooled =
            unsafe { sys::llama_get_embeddings_seq(self.context.0.as_ptr(), position(SEQUENCE.0)) };
        let pooled = std::ptr::NonNull::new(pooled)
            .ok_or_else(|| EngineError::Failed("llama.cpp pooled nothing".to_owned()))?;
        // SAFETY: rank pooling gives a number a priority, and there are two; any other gives one a
        // number of the model's width, which is the length of the head's row (`head` has checked
        // it). They stay until the next decode, which needs `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts(pooled.as_ptr(), n) })
    }
}

impl RewardBackend for RewardModel {
    fn info(&self) -> ModelInfo {
        self.info.clone()
    }

    fn vocabulary(&self) -> Arc<dyn Vocabulary> {
        Arc::<LlamaVocabulary>::clone(&self.vocabulary)
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn read(
        &mut self,
        tokens: &[Token],
        position: usize,
        interrupt: Option<&AtomicBool>,
    ) -> Result<usize, EngineError> {
        self.context.truncate(super::position(SEQUENCE.0), position);
        let entry = |(i, &token): (usize, &Token)| Entry {
            token,
            position: position + i,
            sequences: &[SEQUENCE],
            logits: true,
        };
        let entries: Vec<Entry<'_>> = tokens.iter().enumerate().map(entry).collect();
        self.batch.fill(&entries, &self.limits, self.info.n_vocab)?;
        if self.context.decode(&self.batch, interrupt)? {
            return Ok(tokens.len());
        }
        let n = entries.iter().take_while(|entry| self.context.has_cell(entry)).count();
        // Of a batch that was broken off nothing is pooled, so that its last token is read again.
        Ok(n.min(tokens.len() - 1))
    }

    fn reward(&mut self) -> Result<f64, EngineError> {
        let reward = match &self.head {
            Head::TwoClasses => log_odds(self.pooled(2)?),
            Head::Row(row) => {
                let state = self.pooled(row.len())?;
                row.iter().zip(state).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            }
        };
        if reward.is_finite() {
            Ok(reward)
        } else {
            Err(EngineError::Failed("the reward is not a number".to_owned()))
        }
    }
}

/// Of the first priority against the second: what a sigmoid would make its probability of.
fn log_odds(probabilities: &[f32]) -> f64 {
    // A probability that is too small for an f32 is 0.
    let ln = |p: f32| f64::from(p.max(f32::MIN_POSITIVE)).ln();
    match probabilities {
        [first, second] => ln(*first) - ln(*second),
        _ => f64::NAN,
    }
}

/// What the file says about its head.
fn head(header: &Gguf) -> Result<Head, String> {
    let architecture = header.string("general.architecture").unwrap_or_default();
    let known = ARCHITECTURES.join(", ");
    let Some(tensor) = header.tensor(HEAD) else {
        return Err(format!(
            "it has no classification head ({HEAD}), so it is no reward model; convert one \
             together with its head"
        ));
    };
    if !ARCHITECTURES.contains(&architecture) {
        return Err(format!(
            "llama.cpp reads no classification head of architecture {architecture:?}, only of \
             {known}"
        ));
    }
    let labels = header.array(&format!("{architecture}.classifier.output_labels"));
    let n_classes = labels.map_or(1, <[_]>::len);
    let width = header.unsigned(&format!("{architecture}.embedding_length")).unwrap_or(0);
    let is_shape = |n: u64| tensor.shape == [width, n] || n == 1 && tensor.shape == [width];
    match n_classes {
        1 if is_shape(1) => {
            let n_bytes = tensor_bytes(tensor)?;
            let bytes = header.read_bytes(tensor, n_bytes).map_err(|error| error.to_string())?;
            let mut row = vec![0.0; usize::try_from(width).unwrap_or(0)];
            ggml::dequantize(tensor.kind.id(), &bytes, &mut row)?;
            Ok(Head::Row(row))
        }
        2 if is_shape(2) => Ok(Head::TwoClasses),
        1 | 2 => Err(format!(
            "{HEAD} has shape {:?}, but [{width}, {n_classes}] is needed",
            tensor.shape
        )),
        n => Err(format!("its head has {n} classes; one number or two classes make a reward")),
    }
}

#[cfg(test)]
mod tests {
    use super::log_odds;

    #[test]
    fn probabilities_become_log_odds_that_stay_finite() {
        assert!(log_odds(&[0.5, 0.5]).abs() < 1e-9);
        assert!((log_odds(&[0.9, 0.1]) - 9_f64.ln()).abs() < 1e-6);
        assert!(log_odds(&[1.0, 0.0]).is_finite() && 80.0 < log_odds(&[1.0, 0.0]));
    }
}
