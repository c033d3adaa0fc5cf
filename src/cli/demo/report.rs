//! The demo's result: a table for people, one line of JSON for machines. Pure. Used by `demo`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::load::Counts;
use super::measure::Measured;
use crate::cli::reply::Ended;
use crate::cli::table::{NONE, Table, or_none, span};
use config::PromptLine;
use protocol::exit::Exit;
use statistics::JudgeQuality;

/// Everything that a demo has found out.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) problems: Vec<PromptLine>,
    /// Generation 0, then each that was promoted.
    pub(super) measured: Vec<Measured>,
    pub(super) rounds: Vec<Round>,
    pub(super) judge: JudgeQuality,
    pub(super) load: Counts,
    pub(super) wall_s: f64,
}

/// One round of exploring and training.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) candidates: u64,
    pub(super) positives: u64,
    pub(super) explore_s: f64,
    pub(super) pairs: usize,
    pub(super) train_s: f64,
    pub(super) gate_s: f64,
    /// How the run ended.
    pub(super) ended: Ended,
}

impl Round {
    fn verdict(&self) -> String {
        match &self.ended {
            Ended::Promoted { generation, .. } => format!("promoted as generation {generation}"),
            Ended::Rejected { reason, .. } => format!("kept the old weights: {reason}"),
            Ended::Interrupted { reason, .. } => format!("interrupted: {reason}"),
            Ended::Failed { reason, .. } => format!("failed: {reason}"),
            Ended::Explored { .. }
            | Ended::Calibrated { .. }
            | Ended::Attacked { .. }
            | Ended::Rescored { .. } => {
                "the daemon answered a training with something else".to_owned()
            }
        }
    }
}

impl Report {
    /// A gate that refuses is a result. A failed run, a failed chat or a mixed answer is an error.
    pub(super) fn exit(&self) -> Exit {
        let is_broken =
            |round: &Round| !matches!(round.ended, Ended::Promoted { .. } | Ended::Rejected { .. });
        let is_bad =
            self.rounds.iter().any(is_broken) || 0 < self.load.failed || 0 < self.load.mixed;
        if is_bad { Exit::Failed } else { Exit::Ok }
    }

    pub(super) fn json(&self) -> Value {
        let generations = self.measured.iter().map(|measured| {
            let share = measured.share();
            json!({
                "generation": measured.generation, "held_out": measured.answers.len(),
                "greedy": share.value, "lo": share.lo, "hi": share.hi,
            })
        });
        let rounds = self.rounds.iter().map(|round| json!({
            "candidates": round.candidates, "positives": round.positives, "pairs": round.pairs,
            "explore_s": round.explore_s, "train_s": round.train_s, "gate_s": round.gate_s,
            "promoted": matches!(round.ended, Ended::Promoted { .. }), "verdict": round.verdict(),
        }));
        json!({
            "generations": generations.collect::<Vec<_>>(),
            "judge": {
                "candidates": self.judge.n, "false_accept": self.judge.false_accept,
                "false_reject": self.judge.false_reject, "auc": self.judge.auc,
            },
            "pairs": self.rounds.iter().map(|round| round.pairs).collect::<Vec<_>>(),
            "rounds": rounds.collect::<Vec<_>>(),
            "requests": self.load.answered.values().sum::<usize>(),
            "failed_requests": self.load.failed,
            "mixed_requests": self.load.mixed,
            "wall_s": self.wall_s,
        })
    }

    pub(super) fn text(&self) -> String {
        [self.generations(), self.stages(), self.remarks(), self.example()].join("\n")
    }

    fn generations(&self) -> String {
        let mut table = Table::new([
            "generation",
            "held-out problems",
            "solved",
            "95 % interval",
            "newly solved",
            "newly missed",
        ]);
        for (i, measured) in self.measured.iter().enumerate() {
            let share = measured.share();
            let before = i.checked_sub(1).map(|before| &self.measured[before]);
            table.row([
                measured.generation.to_string(),
                measured.answers.len().to_string(),
                percent(Some(share.value)),
                format!("{} to {}", percent(Some(share.lo)), percent(Some(share.hi))),
                or_none(before.map(|before| measured.solved_beyond(before))),
                or_none(before.map(|before| before.solved_beyond(measured))),
            ]);
        }
        table.render()
    }

    fn stages(&self) -> String {
        let mut table = Table::new([
            "round",
            "answers",
            "pass",
            "exploring",
            "pairs",
            "training",
            "gate",
            "verdict",
        ]);
        for (i, round) in self.rounds.iter().enumerate() {
            table.row([
                (i + 1).to_string(),
                round.candidates.to_string(),
                round.positives.to_string(),
                span(round.explore_s),
                round.pairs.to_string(),
                span(round.train_s),
                span(round.gate_s),
                round.verdict(),
            ]);
        }
        table.render()
    }

    fn remarks(&self) -> String {
        let Self { judge, load, .. } = self;
        let mut by_generation = String::new();
        for (generation, n) in &load.answered {
            let separator = if by_generation.is_empty() { "" } else { ", " };
            write!(by_generation, "{separator}{n} by generation {generation}")
                .expect("writing to a String cannot fail");
        }
        format!(
            "Judge against the verifier on {} answers (the verifier only measures): accepts {} of the \
             wrong ones, refuses {} of the right ones, AUC {}.\n\
             Chats during the swaps: {} answered ({by_generation}), {} failed, {} answered by two \
             generations.\n\
             Wall time: {}.\n",
            judge.n,
            percent(judge.false_accept),
            percent(judge.false_reject),
            judge.auc.map_or_else(|| NONE.to_owned(), |auc| format!("{auc:.3}")),
            load.answered.values().sum::<usize>(),
            load.failed,
            load.mixed,
            span(self.wall_s),
        )
    }

    /// One problem that the newest weights solve and the first did not. It is an illustration, the
    /// table is the measurement.
    fn example(&self) -> String {
        let (Some(first), Some(last)) = (self.measured.first(), self.measured.last()) else {
            return String::new();
        };
        let answers = self.problems.iter().zip(&first.answers).zip(&last.answers);
        let mut newly_solved =
            answers.filter(|((_, before), after)| !before.is_right && after.is_right);
        let Some(((problem, before), after)) = newly_solved.next() else {
            return "No held-out problem is newly solved.\n".to_owned();
        };
        format!(
            "One of the newly solved problems:\n  {}\n  generation {}: {}\n  generation {}: {}\n",
            problem.prompt.trim(),
            first.generation,
            one_line(&before.text),
            last.generation,
            one_line(&after.text)
        )
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| NONE.to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

#[cfg(test)]
mod tests {
    use super::super::measure::Answer;
    use super::*;
    use engine::Generation;
    use store::RunId;

    fn measured(generation: u32, right: &[bool]) -> Measured {
        let answer = |&is_right| Answer { text: format!("=\n{is_right}"), is_right };
        Measured { generation: Generation(generation), answers: right.iter().map(answer).collect() }
    }

    fn round(ended: Ended) -> Round {
        Round {
            candidates: 90,
            positives: 30,
            explore_s: 61.0,
            pairs: 25,
            train_s: 30.0,
            gate_s: 5.0,
            ended,
        }
    }

    fn report() -> Report {
        let problem = |i: usize| PromptLine::new(i.to_string(), format!("problem {i}"));
        Report {
            problems: (0..4).map(problem).collect(),
            measured: vec![
                measured(0, &[true, false, true, false]),
                measured(1, &[false, true, true, true]),
            ],
            rounds: vec![
                round(Ended::Promoted { run: RunId(1), generation: Generation(1), share: 1.0 }),
                round(Ended::Rejected { run: RunId(2), reason: "no gain".into() }),
            ],
            judge: JudgeQuality {
                n: 180,
                false_accept: Some(0.2),
                false_reject: Some(0.05),
                auc: Some(0.91),
            },
            load: Counts {
                answered: [(Generation(0), 7), (Generation(1), 5)].into(),
                failed: 0,
                mixed: 0,
            },
            wall_s: 200.0,
        }
    }

    #[test]
    fn the_table_says_that_a_round_was_not_promoted_and_why() {
        let text = report().text();
        assert!(text.contains("kept the old weights: no gain\n"), "{text}");
        assert!(
            text.contains("12 answered (7 by generation 0, 5 by generation 1), 0 failed"),
            "{text}"
        );
        assert!(text.contains("generation 1: = true\n"), "{text}");
    }

    #[test]
    fn the_json_has_the_fields_that_machines_read() {
        let json = report().json();
        assert_eq!(json["generations"][1]["greedy"], 0.75);
        assert_eq!(json["generations"][1]["held_out"], 4);
        assert_eq!(json["judge"]["auc"], 0.91);
        assert_eq!(json["pairs"], json!([25, 25]));
        assert_eq!((&json["failed_requests"], &json["mixed_requests"]), (&json!(0), &json!(0)));
        assert_eq!(json["wall_s"], 200.0);
    }

    #[test]
    fn a_rejected_round_is_a_result_but_a_failed_chat_or_run_is_not() {
        assert_eq!(report().exit(), Exit::Ok);
        let mut failed_chat = report();
        failed_chat.load.failed = 1;
        assert_eq!(failed_chat.exit(), Exit::Failed);
        let mut failed_run = report();
        failed_run.rounds[0].ended = Ended::Failed { run: None, reason: "no pairs".into() };
        assert_eq!(failed_run.exit(), Exit::Failed);
    }
}
