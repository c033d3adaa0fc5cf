//! What the configuration makes of a training run: the one place where a [`Job`] is put together.
//! It starts nothing. Used by `run`, `import`, `resume` and by the experiment of `bench/rlrf`.

use std::path::{Path, PathBuf};

use super::dataset::Counts;
use super::error::RunError;
use super::{Parts, balance};
use config::{Config, LearnConfig, Start};
use engine::Generation;
use protocol::{self, Job, Objective, Optimizer};
use serde::{Deserialize, Serialize};

/// Name of the data set in a run's folder.
pub(super) const DATA: &str = "data.jsonl";
/// The learning rate on preferences that has worked for this many parameters (`SmolLM2`).
const KNOWN_RATE: (f64, f64) = (5e-4, 135e6);
const RATES: [f64; 2] = [2e-5, 1e-3];
/// Steps that teach something, and the most epochs for them: too few steps are the commonest failure,
/// and answers that are not the model's own need more. 54 steps on 70 examples were right 94 times in 100,
/// 27 steps 78; 144 steps on 150 examples 97, 66 steps 90; 258 steps on 298 examples with slots 45, 86 steps
/// 20 (docs/LOG.md).
const STEPS: (usize, usize) = (20, 3);
const STEPS_ON_EXAMPLES: (usize, usize) = (200, 6);

/// What a run learns from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lesson {
    /// The owner's examples alone.
    Examples,
    /// The model's own answers, by the configured objective.
    Answers,
}

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
    /// What it learns from.
    pub lesson: Lesson,
    /// What is minimised, as it is configured.
    pub objective: Objective,
    /// Parameters of the base.
    pub n_parameters: u64,
    /// Of the data set.
    pub counts: Counts,
    /// Of every random choice.
    pub seed: u64,
}

impl Assignment {
    /// The job as `learn` and `trainer` of the configuration want it done.
    pub fn job(self, config: &Config) -> Job {
        let Self { run, base, base_sha256, start, out, reference_cache, seed, .. } = self;
        let (learn, trainer) = (&config.learn, &config.trainer);
        let configured = learn.optimizer;
        let known_rate = || learning_rate(self.lesson, self.n_parameters);
        let validation_share = validation_share(learn, self.lesson);
        let optimizer = Optimizer {
            learning_rate: configured.learning_rate.unwrap_or_else(known_rate),
            epochs: epochs(learn, self.lesson, self.counts.examples),
            batch_pairs: configured.batch_pairs,
            warmup_ratio: configured.warmup_ratio,
            max_grad_norm: configured.max_grad_norm,
            weight_decay: configured.weight_decay,
        };
        Job {
            version: protocol::VERSION,
            run,
            base,
            base_sha256,
            start,
            data: out.join(DATA),
            out,
            reference_cache,
            objective: balance::weighted(self.objective, self.counts),
            lora: learn.lora,
            optimizer,
            validation_share,
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

/// What `learning_rate: auto` is: larger models learn at lower rates, and what is not the model's own at
/// higher ones.
fn learning_rate(lesson: Lesson, n_parameters: u64) -> f64 {
    let (rate, known) = KNOWN_RATE;
    let scaled = rate * (known / n_parameters.max(1) as f64).powf(2.0 / 3.0);
    let [least, most] = RATES;
    let rate = scaled.clamp(least, most);
    match lesson {
        Lesson::Examples => 2.0 * rate,
        Lesson::Answers => rate,
    }
}

/// What `validation_share: auto` is. Of 150 examples of 126 templates, a tenth kept aside took as many
/// templates out of training, and what is kept aside of answers tells when they are learned too well.
pub(super) fn validation_share(learn: &LearnConfig, lesson: Lesson) -> f64 {
    learn.validation_share.unwrap_or(match lesson {
        Lesson::Examples => 0.0,
        Lesson::Answers => 0.1,
    })
}

/// Passes over so many examples: as many as are configured, or as give enough steps.
pub fn epochs(learn: &LearnConfig, lesson: Lesson, n_examples: usize) -> usize {
    let (steps, most) = match lesson {
        Lesson::Examples => STEPS_ON_EXAMPLES,
        Lesson::Answers => STEPS,
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a count"
    )]
    let trained = (n_examples as f64 * (1.0 - validation_share(learn, lesson))) as usize;
    let of_epoch = trained.div_ceil(learn.optimizer.batch_pairs).max(1);
    learn.optimizer.epochs.unwrap_or_else(|| steps.div_ceil(of_epoch).clamp(1, most))
}

/// What the configuration makes of a run that starts now; `label` names it and its folder. `data`: the
/// counts of its data set, and the seed that follows from it.
pub(super) async fn starting_now(
    parts: &Parts,
    config: &Config,
    start: Generation,
    label: String,
    lesson: Lesson,
    data: (Counts, u64),
) -> Result<Job, RunError> {
    let adapter = match config.learn.start {
        Start::Base => None,
        Start::Adapter => {
            let rows = parts.store.generations().await?;
            rows.into_iter().find(|row| row.generation == start).map(|row| row.path)
        }
    };
    let (counts, seed) = data;
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
        lesson,
        objective: match lesson {
            Lesson::Examples => Objective::Sft,
            Lesson::Answers => config.learn.objective,
        },
        n_parameters: info.n_parameters,
        counts,
        seed,
    };
    Ok(assignment.job(config))
}

/// The same run with the good answers alone, where there are others.
pub(super) fn good_alone(job: &Job) -> Option<Job> {
    let Objective::Mixed { .. } = job.objective else { return None };
    Some(Job { objective: Objective::Sft, out: out_of_good_alone(&job.out), ..job.clone() })
}

/// In the record of a run, what that has made.
pub(super) const GOOD_ALONE: &str = "good_alone";

/// Where that is made, for a run with this folder.
pub(super) fn out_of_good_alone(out: &Path) -> PathBuf {
    out.join("good-alone")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_fall_with_size_and_examples_take_twice_as_much() {
        // In millionths.
        let of = |lesson, n| format!("{:.0}", learning_rate(lesson, n) * 1e6);
        let sizes = [0, 1_000_000, 135_000_000, 1_700_000_000, 70_000_000_000];
        assert_eq!(sizes.map(|n| of(Lesson::Answers, n)), ["1000", "1000", "500", "92", "20"]);
        assert_eq!(sizes.map(|n| of(Lesson::Examples, n)), ["2000", "2000", "1000", "185", "40"]);
    }

    #[test]
    fn few_examples_are_gone_through_until_there_are_enough_steps() {
        let mut learn = config::defaults().learn;
        let of =
            |learn: &LearnConfig, lesson| [1, 70, 110, 300, 5000].map(|n| epochs(learn, lesson, n));
        // A tenth of answers is kept aside: 1, 8, 13, 34 and 563 steps an epoch.
        assert_eq!(of(&learn, Lesson::Answers), [3, 3, 2, 1, 1]);
        // 1, 9, 14, 38 and 625.
        assert_eq!(of(&learn, Lesson::Examples), [6, 6, 6, 6, 1]);
        learn.optimizer.epochs = Some(5);
        assert_eq!(of(&learn, Lesson::Answers), [5; 5]);
    }
}
