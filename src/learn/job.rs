//! What the configuration makes of a training run: the one place where a [`Job`] is put together.
//! It starts nothing. Used by `run`, `import`, `resume` and by the experiment of `bench/rlrf`.

use std::path::PathBuf;

use super::Parts;
use super::error::RunError;
use config::{Config, Start};
use engine::Generation;
use protocol::{self, Job, Objective};

/// What a run has beside its configuration. The trainer runs in another folder, so paths are
/// absolute.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// Names the run in messages.
    pub run: String,
    /// The served GGUF.
    pub base: PathBuf,
    /// Its SHA-256.
    pub base_sha256: String,
    /// The adapter that it starts from; `None`: the base.
    pub start: Option<PathBuf>,
    /// The run's folder, with the data set in it.
    pub out: PathBuf,
    /// Where log-probs of reference policies are kept; `None`: they are not.
    pub reference_cache: Option<PathBuf>,
    /// What is minimised.
    pub objective: Objective,
    /// Of every random choice.
    pub seed: u64,
}

impl Assignment {
    /// The job as `learn` and `trainer` of the configuration want it done.
    pub fn job(self, config: &Config) -> Job {
        let Self { run, base, base_sha256, start, out, reference_cache, objective, seed } = self;
        let (learn, trainer) = (&config.learn, &config.trainer);
        Job {
            version: protocol::VERSION,
            run,
            base,
            base_sha256,
            start,
            data: out.join("data.jsonl"),
            out,
            reference_cache,
            objective,
            lora: learn.lora,
            optimizer: learn.optimizer,
            validation_share: learn.validation_share,
            validations: learn.validations,
            checkpoint_s: trainer.checkpoint.as_secs_f64(),
            max_tokens: learn.max_tokens,
            context_tokens: config.engine.context_tokens,
            base_kind: trainer.base,
            compute: trainer.compute,
            memory_limit_bytes: trainer.memory_limit_bytes,
            threads: trainer.threads,
            device: trainer.device,
            seed,
        }
    }
}

/// What the configuration makes of a run that starts now; `label` names it and its folder.
pub(super) async fn starting_now(
    parts: &Parts,
    config: &Config,
    start: Generation,
    label: String,
    seed: u64,
) -> Result<Job, RunError> {
    let adapter = match config.learn.start {
        Start::Base => None,
        Start::Adapter => {
            let rows = parts.store.generations().await?;
            rows.into_iter().find(|row| row.generation == start).map(|row| row.path)
        }
    };
    let info = parts.engine.info();
    // The trainer runs in another folder, so its paths are absolute.
    let base = std::path::absolute(&info.path)
        .map_err(|source| RunError::Write { path: info.path.clone(), source })?;
    let assignment = Assignment {
        base,
        base_sha256: info.sha256.clone(),
        start: adapter,
        out: parts.state.run(&label),
        run: label,
        reference_cache: Some(parts.state.references()),
        objective: config.learn.objective,
        seed,
    };
    Ok(assignment.job(config))
}
