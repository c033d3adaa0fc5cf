//! The parity probe: log-probs of a few sequences of the data set, by the policy that a run starts from
//! and by the adapter that it exports. The gate asks the server for both. Used by `train`.

use protocol::{Probe, ProbeSequence};

use crate::batch::{Batch, Sequence, Tree};
use crate::data::Packed;
use crate::model::Model;
use crate::plan::Plan;
use crate::step::{self, Unfinished};

/// Sequences of a probe.
const PROBES: usize = 8;

/// A probe whose second half waits for the end of the run.
pub(crate) struct Probing {
    sequences: Vec<Sequence>,
    start: Vec<Vec<f32>>,
}

impl Probing {
    /// Takes first answers of examples all over the data set, and asks the model as it is now.
    pub(crate) fn begin(
        model: &Model,
        examples: &[Packed],
        mut plan: Plan,
    ) -> Result<Self, Unfinished> {
        let every = examples.len().div_ceil(PROBES).max(1);
        let sequences: Vec<Sequence> =
            examples.iter().step_by(every).map(|example| example.sequences[0].clone()).collect();
        let start = step::within_memory(&mut plan, |_| logprobs(model, &sequences))?;
        Ok(Self { sequences, start })
    }

    /// Asks the model with the adapter that is about to be written.
    pub(crate) fn end(&self, model: &Model) -> anyhow::Result<Probe> {
        let logprobs = logprobs(model, &self.sequences)?;
        let one = |((sequence, logprobs), start): ((&Sequence, _), &Vec<f32>)| ProbeSequence {
            tokens: sequence.tokens.clone(),
            from: sequence.from,
            logprobs,
            start_logprobs: start.clone(),
        };
        let sequences = self.sequences.iter().zip(logprobs).zip(&self.start);
        Ok(Probe { sequences: sequences.map(one).collect() })
    }
}

/// One list for each sequence.
fn logprobs(model: &Model, sequences: &[Sequence]) -> anyhow::Result<Vec<Vec<f32>>> {
    let one = |sequence: &Sequence| {
        let tree = Tree::new([sequence]);
        step::values(&model.logprobs(&Batch::new(&tree, model.device)))
    };
    sequences.iter().map(one).collect()
}
