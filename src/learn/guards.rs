//! Does learning go on by itself? Pure: the newest rounds in, a reason to pause out. It must not read
//! the store. Used by `task`.
//!
//! A round is a run whose adapter was compared; those of one night are one. It has gained when it was
//! promoted, was not rolled back since, and the verifiers did not contradict the judge. Training again
//! on nearly the same data after rounds without gain brings drift and no progress.

use serde::Serialize;

use super::live::Seen;
use config::PauseConfig;
use engine::Generation;
use store::{Event, Run, RunId, RunState, Watch, WatchState};

/// The event that the schedule has started something.
pub(super) const NIGHT: &str = "night";

/// What looks after the loop, for `status`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Guards {
    /// Why scheduled runs wait, if they do.
    pub paused: Option<String>,
    /// The promoted generation that is being compared with the one before it.
    pub watch: Option<(Watch, Seen)>,
    /// The newest alarms, newest first.
    pub alarms: Vec<Event>,
}

impl Guards {
    /// A generation is being tried on a share of the chats.
    pub(super) fn has_canary(&self) -> bool {
        self.watch.as_ref().is_some_and(|(watch, _)| watch.state == WatchState::Canary)
    }
}

/// Why scheduled runs have to wait. `runs` and `watches` come newest first; rounds up to `resumed`
/// no longer count; `n_feedback` came since the last judged run.
pub(super) fn pause(
    runs: &[Run],
    watches: &[Watch],
    resumed: Option<RunId>,
    n_feedback: usize,
    config: &PauseConfig,
) -> Option<String> {
    let compared = runs.iter().filter(|run| is_round(run));
    let compared: Vec<&Run> = compared.take_while(|run| resumed < Some(run.id)).collect();
    let rounds = compared.chunk_by(|a, b| night(a).is_some() && night(a) == night(b));
    let why = |run: &&Run| Some(format!("run {} {}", run.id, without_gain(run, watches)?));
    let fruitless: Vec<String> = rounds
        .map_while(|round| round.iter().map(why).collect::<Option<Vec<_>>>())
        .map(|reasons| reasons.join(" and "))
        .collect();
    if config.after == 0 || fruitless.len() < config.after || config.resume_feedback <= n_feedback {
        return None;
    }
    let shown: Vec<&str> = fruitless.iter().take(3).map(String::as_str).collect();
    Some(format!(
        "{} rounds in a row brought no gain ({}); scheduled runs wait for {} new pairs or {} new \
         ratings or edits, or for `reflectd train` (with --resume: without training now)",
        fruitless.len(),
        shown.join(", "),
        config.resume_pairs,
        config.resume_feedback
    ))
}

/// A run that was judged by numbers, of its gate or of its candidates on practice prompts; others say
/// nothing about progress, and an imported adapter (no pairs) says nothing about that of the loop.
pub(super) fn is_round(run: &Run) -> bool {
    let is_judged = matches!(run.state, RunState::Promoted | RunState::Rejected);
    let has_numbers =
        gate(run).is_some_and(serde_json::Value::is_object) || run.metrics["selection"].is_object();
    is_judged && 0 < run.n_pairs && has_numbers
}

/// When the night began that it is of; `None`: the owner wanted it.
fn night(run: &Run) -> Option<i64> {
    run.metrics["night"].as_i64()
}

fn gate(run: &Run) -> Option<&serde_json::Value> {
    run.metrics.get("gate")
}

/// How the round failed to gain; `None`: it gained.
fn without_gain(run: &Run, watches: &[Watch]) -> Option<&'static str> {
    let rolled_back = |generation: Generation| {
        watches
            .iter()
            .any(|watch| watch.generation == generation && watch.state == WatchState::RolledBack)
    };
    if run.state == RunState::Rejected {
        return Some("was rejected");
    }
    if run.generation.is_some_and(rolled_back) {
        return Some("was rolled back");
    }
    let is_gap = gate(run).and_then(|gate| gate.get("gap_alarm")?.as_bool()).unwrap_or(false);
    is_gap.then_some("pleased the judge and not the verifiers")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const CONFIG: PauseConfig = PauseConfig { after: 2, resume_pairs: 200, resume_feedback: 20 };

    fn run(id: i64, state: RunState, gate: &serde_json::Value) -> Run {
        Run {
            id: RunId(id),
            started_ms: id,
            ended_ms: Some(id),
            state,
            reason: None,
            start: Generation::BASE,
            n_pairs: 1,
            data_sha256: String::new(),
            job: json!({}),
            metrics: json!({ "gate": gate }),
            generation: (state == RunState::Promoted)
                .then(|| Generation(u32::try_from(id).unwrap())),
        }
    }

    fn rejected(id: i64) -> Run {
        run(id, RunState::Rejected, &json!({ "gap_alarm": false }))
    }

    fn promoted(id: i64, gap_alarm: bool) -> Run {
        run(id, RunState::Promoted, &json!({ "gap_alarm": gap_alarm }))
    }

    fn why(runs: &[Run]) -> Option<String> {
        pause(runs, &[], None, 0, &CONFIG)
    }

    #[test]
    fn two_rounds_without_gain_pause_and_one_with_gain_goes_on() {
        assert_eq!(why(&[rejected(2)]), None);
        let reason = why(&[rejected(3), rejected(2), promoted(1, false)]).unwrap();
        assert!(reason.starts_with("2 rounds in a row"), "{reason}");
        assert_eq!(why(&[promoted(3, false), rejected(2), rejected(1)]), None);
    }

    #[test]
    fn the_runs_of_one_night_are_one_round() {
        let of_night = |run: Run, night: i64| Run {
            metrics: json!({ "gate": run.metrics["gate"], "night": night }),
            ..run
        };
        let first = || [of_night(rejected(2), 7), of_night(rejected(1), 7)];
        assert_eq!(why(&first()), None);
        let [a, b] = first();
        let reason = why(&[of_night(rejected(3), 8), a, b]).unwrap();
        assert!(reason.starts_with("2 rounds in a row"), "{reason}");
        assert!(
            reason.contains("(run 3 was rejected, run 2 was rejected and run 1 was"),
            "{reason}"
        );
        // A night that has gained once has gained.
        let gained = [of_night(rejected(2), 7), of_night(promoted(1, false), 7)];
        let [a, b] = gained;
        assert_eq!(why(&[of_night(rejected(3), 8), a, b, rejected(0)]), None);
    }

    #[test]
    fn two_rounds_that_please_the_judge_alone_pause() {
        let reason = why(&[promoted(2, true), promoted(1, true)]).unwrap();
        assert!(reason.contains("pleased the judge and not the verifiers"), "{reason}");
    }

    #[test]
    fn runs_that_were_not_compared_neither_count_nor_interrupt() {
        let failed = run(3, RunState::Failed, &serde_json::Value::Null);
        let unjudged = run(2, RunState::Rejected, &serde_json::Value::Null);
        assert!(why(&[rejected(4), failed, unjudged, rejected(1)]).is_some());
    }

    #[test]
    fn a_round_that_was_rolled_back_has_not_gained() {
        let watch = Watch {
            generation: Generation(2),
            parent: Generation(1),
            share: 1.0,
            started_ms: 0,
            after_candidate: 0,
            state: WatchState::RolledBack,
            ended_ms: Some(0),
            reason: None,
        };
        let runs = [promoted(2, false), rejected(1)];
        assert_eq!(pause(&runs, &[], None, 0, &CONFIG), None);
        assert!(pause(&runs, &[watch], None, 0, &CONFIG).is_some());
    }

    #[test]
    fn the_owner_or_new_feedback_or_the_configuration_lift_it() {
        let runs = [rejected(2), rejected(1)];
        assert!(pause(&runs, &[], None, 19, &CONFIG).is_some());
        assert_eq!(pause(&runs, &[], None, 20, &CONFIG), None);
        assert_eq!(pause(&runs, &[], Some(RunId(2)), 0, &CONFIG), None);
        assert_eq!(pause(&runs, &[], Some(RunId(1)), 0, &CONFIG), None);
        let never = PauseConfig { after: 0, ..CONFIG };
        assert_eq!(pause(&runs, &[], None, 0, &never), None);
    }
}
