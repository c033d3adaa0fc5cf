//! The part of `reflectd doctor` about training: asks the trainer program, and shows what it says.

use serde::Serialize;
use serde_json::json;

use crate::cli::table::Table;
use crate::learn::job;
use crate::learn::survey::survey;
use config::{LearnConfig, TrainerConfig};
use engine::EngineConfig;
use protocol::{
    self, BaseWay, PairLength, SurveyJob, TrainingMemory, TrainingSpeed, TrainingSurvey,
};

use super::mib;

/// Pairs that time is told for.
const PAIRS: usize = 1000;

/// What was found out about training on the model.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Training {
    /// `None`: the trainer did not say.
    pub(in crate::cli) trainable: Option<bool>,
    /// Why it did not.
    pub(in crate::cli) fault: Option<String>,
    /// Of a run over 1,000 pairs.
    pub(in crate::cli) epochs: usize,
    /// Seconds for a run over 1,000 pairs.
    pub(in crate::cli) seconds_per_1000_pairs: Option<f64>,
    #[serde(flatten)]
    pub(in crate::cli) survey: Option<TrainingSurvey>,
}

/// What the command line says about it.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Wishes {
    /// Longest sequence in tokens that memory for training is planned for [default: the smaller of
    /// `learn.max_tokens` and `engine.context_tokens`].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    context: Option<u32>,
    /// Tokens of the prompt and of each of the two answers that training is timed with.
    #[arg(long, value_name = "PROMPT,ANSWER", default_value = "256,128", value_parser = parse_pair)]
    pair: PairLength,
}

impl Default for Wishes {
    fn default() -> Self {
        Self { context: None, pair: PairLength { prompt: 256, answer: 128 } }
    }
}

fn parse_pair(text: &str) -> Result<PairLength, String> {
    let length = |text: &str| {
        text.trim().parse().ok().filter(|n| (1..=1 << 16).contains(n)).ok_or_else(|| {
            "two numbers from 1 to 65536 are needed: tokens of the prompt and of an answer"
                .to_owned()
        })
    };
    let (prompt, answer) = text.split_once(',').unwrap_or((text, ""));
    Ok(PairLength { prompt: length(prompt)?, answer: length(answer)? })
}

/// Lets the trainer look at `engine.model`, with its settings and those of the run.
pub(in crate::cli) async fn look_at(
    engine: &EngineConfig,
    trainer: &TrainerConfig,
    learn: &LearnConfig,
    wishes: &Wishes,
) -> Training {
    let base = std::path::absolute(&engine.model).unwrap_or_else(|_| engine.model.clone());
    let narrow = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    let longest = learn.max_tokens.min(narrow(engine.context_tokens));
    let job = SurveyJob {
        version: protocol::VERSION,
        base,
        lora: learn.lora,
        batch_pairs: learn.optimizer.batch_pairs,
        max_tokens: wishes.context.map_or(longest, narrow),
        pair: wishes.pair,
        context_tokens: engine.context_tokens,
        base_kind: trainer.base,
        compute: trainer.compute,
        memory_limit_bytes: trainer.memory_limit_bytes,
        threads: trainer.threads,
        device: trainer.device,
    };
    let epochs = job::epochs(learn, job::Lesson::Answers, PAIRS);
    match survey(trainer, &job).await {
        Ok(survey) => Training {
            trainable: Some(survey.refusal.is_none()),
            fault: None,
            epochs,
            seconds_per_1000_pairs: survey
                .speed
                .map(|speed| speed.reference_s + epochs as f64 * speed.epoch_s),
            survey: Some(survey),
        },
        Err(fault) => Training {
            trainable: None,
            fault: Some(fault),
            epochs,
            seconds_per_1000_pairs: None,
            survey: None,
        },
    }
}

impl Training {
    /// For people: names and values.
    pub(super) fn rows(&self) -> Vec<(&'static str, String)> {
        let Some(survey) = &self.survey else {
            let fault = self.fault.as_deref().unwrap_or("the trainer did not say");
            return vec![("trainable", format!("unknown: {fault}"))];
        };
        let TrainingSurvey { refusal, device, device_memory, threads, speed, speed_fault, .. } =
            survey;
        if let Some(refusal) = refusal {
            return vec![("trainable", format!("no: {refusal}"))];
        }
        let place = match *device_memory {
            Some([free, all]) => format!("{device}, {} of {} free", mib(free), mib(all)),
            None => format!("{device}, {threads} threads"),
        };
        let compute = survey.memory.as_ref().map(|memory| word(&memory.compute));
        let place = format!("{place}, in {}", compute.unwrap_or_default());
        let mut rows = vec![("trainable", "yes".to_owned()), ("trained on", place)];
        match (speed, self.seconds_per_1000_pairs) {
            (Some(speed), Some(seconds)) => rows.extend(self.times(speed, seconds)),
            _ => {
                let fault = speed_fault.as_deref().unwrap_or("unknown");
                rows.push(("1,000 pairs", format!("not measured: {fault}")));
            }
        }
        rows
    }

    fn times(&self, speed: &TrainingSpeed, seconds: f64) -> [(&'static str, String); 2] {
        let TrainingSpeed { pair, base, measured_blocks, n_blocks, measured_pair, .. } = speed;
        let epochs = match self.epochs {
            1 => "1 epoch".to_owned(),
            n => format!("{n} epochs"),
        };
        let [whole, reference, epoch] = [seconds, speed.reference_s, speed.epoch_s].map(duration);
        let pairs = match speed.measured_pairs {
            1 => "1 pair".to_owned(),
            n => format!("{n} pairs"),
        };
        [
            (
                "1,000 pairs",
                format!(
                    "{whole} for {epochs} ({reference} for reference log-probs, {epoch} an epoch), \
                     {:.0} tokens/s",
                    speed.tokens_per_second
                ),
            ),
            (
                "measured with",
                format!(
                    "{measured_blocks} of {n_blocks} blocks and the head, {pairs} of {} a pass, \
                     for pairs of {}, base {}",
                    length(*measured_pair),
                    length(*pair),
                    word(base)
                ),
            ),
        ]
    }

    /// For people: memory by the way of holding the base.
    pub(super) fn table(&self) -> Option<String> {
        let memory = self.survey.as_ref()?.memory.as_ref()?;
        let TrainingMemory { available_bytes, longest, taken, ways, .. } = memory;
        let header = [
            "training, base as",
            "base",
            "adapter",
            "a pass",
            "total",
            "available",
            "fits",
            "tokens a pass",
            "blocks twice",
        ];
        let mut table = Table::new(header);
        for way in ways {
            let BaseWay { base, base_bytes, adapter_bytes, pass_bytes, .. } = way;
            let mark = if base == taken { " (taken)" } else { "" };
            let yes = |it: bool| if it { "yes" } else { "no" }.to_owned();
            table.row([
                format!("{}{mark}", word(base)),
                mib(*base_bytes),
                mib(*adapter_bytes),
                mib(*pass_bytes),
                mib(way.total_bytes()),
                mib(*available_bytes),
                yes(way.fits),
                way.pass_tokens.to_string(),
                yes(way.recompute),
            ]);
        }
        let longest = length(*longest);
        Some(format!("{}for pairs of up to {longest} tokens\n", table.render()))
    }
}

fn length(PairLength { prompt, answer }: PairLength) -> String {
    format!("{prompt} + 2 x {answer}")
}

/// As it is spelled in the configuration.
fn word(value: &impl Serialize) -> String {
    json!(value).as_str().unwrap_or_default().to_owned()
}

/// To two digits or so.
pub(in crate::cli) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 36_000.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.0} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_two_numbers() {
        assert_eq!(parse_pair("256,128"), Ok(PairLength { prompt: 256, answer: 128 }));
        assert_eq!(parse_pair("1, 1"), Ok(PairLength { prompt: 1, answer: 1 }));
        for wrong in ["", "256", "256,", ",128", "0,1", "1,0", "1,2,3", "-1,2", "99999,1"] {
            parse_pair(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn times_are_told_to_about_two_digits() {
        let told = [0.31, 9.94, 75.0, 125.0, 5400.0, 9000.0, 40_000.0].map(duration);
        assert_eq!(told, ["0.3 s", "9.9 s", "75 s", "2 min", "90 min", "2.5 h", "11 h"]);
    }
}
