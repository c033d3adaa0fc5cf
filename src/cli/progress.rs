//! Long operations of the daemon, followed on its stream of stages; bars where standard error is a
//! terminal. Used by `explore`, `train` and `demo`.

use std::mem::Discriminant;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

use super::client::Client;
use super::reply::{Ended, Stage};
use super::table::span;
use crate::learn::JudgeTask;
use protocol::Step;

/// How a long operation ended.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) ended: Ended,
    /// The same as the daemon said it, for `--json`.
    pub(super) json: Value,
}

/// Starts a long operation and follows it to its end.
pub(super) async fn follow(
    client: &Client,
    path: &str,
    body: &impl Serialize,
    mut at_stage: impl FnMut(&Stage),
) -> anyhow::Result<Outcome> {
    let mut events = client.stream(path, body).await?;
    let mut outcome = None;
    while let Some(event) = events.next::<Value>().await? {
        if event.get("outcome").is_some() {
            let ended = serde_json::from_value(event.clone()).context("read the outcome")?;
            outcome = Some(Outcome { ended, json: event });
        } else {
            at_stage(&serde_json::from_value(event).context("read the stage")?);
        }
    }
    outcome.context("the daemon did not say how it ended: see `reflectd runs`")
}

/// One bar for the stage under way; the bars of earlier stages stay above it.
#[derive(Debug, Default)]
pub(super) struct StageProgress {
    current: Option<(Discriminant<Stage>, ProgressBar)>,
}

impl StageProgress {
    pub(super) fn show(&mut self, stage: &Stage) {
        let Some(view) = view(stage) else { return };
        let kind = std::mem::discriminant(stage);
        if self.current.as_ref().is_none_or(|(current, _)| *current != kind) {
            self.finish();
            self.current = Some((kind, counter(view.name, view.total)));
        }
        if let Some((_, counter)) = &self.current {
            counter.set_length(view.total);
            counter.set_position(view.done);
            counter.set_message(view.message);
        }
    }

    /// Leaves the last bar as it stands.
    pub(super) fn finish(&mut self) {
        if let Some((_, counter)) = self.current.take() {
            counter.abandon();
        }
    }
}

/// A bar on standard error; it draws nothing where that is no terminal.
pub(super) fn counter(name: &'static str, total: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{prefix:10} {bar:30} {pos:>4}/{len} {elapsed:>4} {msg}")
            .expect("the template is a constant that a test renders");
    ProgressBar::new(total).with_style(style).with_prefix(name)
}

/// What a bar shows of a stage.
#[derive(Debug, PartialEq)]
struct View {
    name: &'static str,
    done: u64,
    total: u64,
    message: String,
}

fn view(stage: &Stage) -> Option<View> {
    Some(match stage {
        Stage::Idle => return None,
        Stage::Exploring {
            done,
            begun,
            total,
            positives,
            generated_tokens,
            positives_per_1000_tokens,
            unpursued,
        } => View {
            name: "exploring",
            done: *done,
            total: *total,
            message: format!(
                "{begun} begun, {positives} answers pass, {positives_per_1000_tokens:.2} for every 1,000 of \
                     {generated_tokens} tokens{}",
                match unpursued {
                    0 => String::new(),
                    n => format!(", {n} not pursued: next to none passes"),
                }
            ),
        },
        Stage::Importing => View { name: "importing", done: 0, total: 1, message: String::new() },
        Stage::Pairing => View { name: "pairing", done: 0, total: 1, message: String::new() },
        Stage::Training { n_steps, step, paused, .. } => View {
            name: "training",
            done: u64::try_from(step.step).unwrap_or(u64::MAX),
            total: *n_steps,
            message: training(step, *paused),
        },
        Stage::Choosing { candidate, done, total, .. } => View {
            name: "choosing",
            done: *done,
            total: *total,
            message: match candidate {
                0 => "what is served".to_owned(),
                n => format!("candidate {n}"),
            },
        },
        Stage::Gating { done, total, .. } => {
            View { name: "gating", done: *done, total: *total, message: String::new() }
        }
        Stage::Judging { task, done, total } => {
            let name = match task {
                JudgeTask::Calibrate => "measuring the judge",
                JudgeTask::Attack => "attacking the judge",
                JudgeTask::Rescore => "judging again",
            };
            View { name, done: *done, total: *total, message: String::new() }
        }
    })
}

fn training(step: &Step, paused: bool) -> String {
    let mut words = Vec::new();
    // Before the first step there are no numbers.
    if 0.0 < step.tokens_per_second {
        words.push(format!(
            "loss {:.3}, reward accuracy {:.2}, {:.0} tokens/s, {} left, {} MiB",
            step.loss,
            step.rewards_accuracies,
            step.tokens_per_second,
            span(step.eta_s),
            step.memory_bytes.div_ceil(1 << 20)
        ));
    }
    if paused {
        words.push("paused: somebody chats".to_owned());
    }
    words.join(", ")
}

/// One line for `status`, and for the run that is under way.
pub(super) fn describe(stage: &Stage) -> String {
    let Some(View { name, done, total, message }) = view(stage) else { return "idle".to_owned() };
    let run = match stage {
        Stage::Training { run, .. } | Stage::Choosing { run, .. } | Stage::Gating { run, .. } => {
            format!(" run {run}")
        }
        _ => String::new(),
    };
    format!("{name}{run}: {done}/{total} {message}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn;
    use engine::Generation;
    use store::RunId;

    /// What the daemon writes is what this program reads.
    fn reread(stage: &learn::Stage) -> Stage {
        serde_json::from_value(serde_json::to_value(stage).unwrap()).unwrap()
    }

    #[test]
    fn every_stage_of_the_learner_can_be_shown() {
        let step = Step {
            step: 3,
            loss: 0.5,
            rewards_accuracies: 0.75,
            tokens_per_second: 1234.4,
            eta_s: 75.0,
            memory_bytes: 3 << 30,
            ..Step::default()
        };
        let run = RunId(7);
        let shown = [
            learn::Stage::Idle,
            learn::Stage::Exploring {
                done: 1,
                begun: 2,
                total: 2,
                positives: 9,
                generated_tokens: 4500,
                positives_per_1000_tokens: 2.0,
                unpursued: 0,
            },
            learn::Stage::Exploring {
                done: 90,
                begun: 99,
                total: 99,
                positives: 0,
                generated_tokens: 4500,
                positives_per_1000_tokens: 0.0,
                unpursued: 60,
            },
            learn::Stage::Pairing,
            learn::Stage::Importing,
            learn::Stage::Training { run, n_steps: 10, step, paused: true },
            learn::Stage::Training { run, n_steps: 10, step: Step::default(), paused: false },
            learn::Stage::Choosing { run, candidate: 0, done: 2, total: 5 },
            learn::Stage::Choosing { run, candidate: 2, done: 3, total: 5 },
            learn::Stage::Gating { run, done: 4, total: 5 },
            learn::Stage::Judging { task: JudgeTask::Attack, done: 6, total: 7 },
        ]
        .map(|stage| describe(&reread(&stage)));
        let expected = [
            "idle",
            "exploring: 1/2 2 begun, 9 answers pass, 2.00 for every 1,000 of 4500 tokens",
            "exploring: 90/99 99 begun, 0 answers pass, 0.00 for every 1,000 of 4500 tokens, 60 not pursued: \
             next to none passes",
            "pairing: 0/1",
            "importing: 0/1",
            "training run 7: 3/10 loss 0.500, reward accuracy 0.75, 1234 tokens/s, 1 min 15 s left, \
             3072 MiB, paused: somebody chats",
            "training run 7: 0/10",
            "choosing run 7: 2/5 what is served",
            "choosing run 7: 3/5 candidate 2",
            "gating run 7: 4/5",
            "attacking the judge: 6/7",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn every_outcome_of_the_learner_can_be_read() {
        let verdict = serde_json::json!({"gain": 0.1});
        let ended = learn::Ended::Promoted {
            run: RunId(1),
            generation: Generation(2),
            share: 1.0,
            verdict,
        };
        let ended: Ended = serde_json::from_value(serde_json::to_value(ended).unwrap()).unwrap();
        assert!(matches!(ended, Ended::Promoted { generation: Generation(2), .. }));
        let ended = learn::Ended::Failed { run: None, reason: "no pairs".into() };
        let ended: Ended = serde_json::from_value(serde_json::to_value(ended).unwrap()).unwrap();
        assert!(matches!(ended, Ended::Failed { run: None, .. }));
    }

    #[test]
    fn progress_follows_the_stages() {
        let mut stage_progress = StageProgress::default();
        stage_progress.show(&Stage::Idle);
        assert!(stage_progress.current.is_none());
        let (generated_tokens, positives_per_1000_tokens) = (0, 0.0);
        stage_progress.show(&Stage::Exploring {
            begun: 0,
            done: 1,
            total: 2,
            positives: 0,
            generated_tokens,
            positives_per_1000_tokens,
            unpursued: 0,
        });
        stage_progress.show(&Stage::Pairing);
        let (kind, counter) = stage_progress.current.as_ref().unwrap();
        assert_eq!(*kind, std::mem::discriminant(&Stage::Pairing));
        assert_eq!(counter.prefix(), "pairing");
        stage_progress.finish();
    }
}
