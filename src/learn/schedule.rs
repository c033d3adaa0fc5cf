//! When a run starts by itself. Pure: pattern, time and facts in, decision out. It must not look at
//! a clock. Used by `task`.
//!
//! A run that was due while the daemon was down is made up for once, when it is there again.
//! A due run that finds the engine busy stays due until it is quiet, and so it does when the
//! configuration changes; a wait after failures stays too. A clock that was set back is noticed. A run that the end of the daemon
//! interrupted goes on as soon as it is quiet, whatever the pattern says: it was due or asked for.

use std::str::FromStr as _;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use croner::Cron;

/// First wait after a failure; doubled by each further one.
const BACK_OFF: TimeDelta = TimeDelta::minutes(30);
/// A run that keeps failing is still tried this often.
const BACK_OFF_CAP: TimeDelta = TimeDelta::days(7);

/// A clock that is corrected by less was not set back.
const SET_BACK: TimeDelta = TimeDelta::minutes(1);

/// When the next run is due.
#[derive(Debug)]
pub struct Schedule {
    plan: Option<(Cron, Tz)>,
    /// As it is configured.
    written: Option<(String, Tz)>,
    due: Option<DateTime<Utc>>,
    /// After a failure nothing is due before.
    not_before: DateTime<Utc>,
    /// The newest time that was heard of.
    seen: DateTime<Utc>,
    failures: u32,
    interrupted: bool,
}

/// What to do now. Displays as the reason.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decision {
    /// No schedule is configured, or its pattern never matches again.
    Never,
    /// Not yet.
    NotDue(DateTime<Utc>),
    /// It is time, but somebody chats, or did so lately.
    Busy {
        /// How long nothing has run.
        quiet: Duration,
        /// How long it has to be.
        idle: Duration,
    },
    /// Start; an interrupted run goes first.
    Start,
    /// Go on with an interrupted run, but start no new one.
    Resume,
}

impl std::fmt::Display for Decision {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Never => write!(formatter, "no run is scheduled"),
            Self::NotDue(due) => write!(formatter, "the next run is due at {}", due.to_rfc3339()),
            Self::Busy { quiet, idle } => write!(
                formatter,
                "a run is due and waits until no chat has run for {} s (now {} s)",
                idle.as_secs(),
                quiet.as_secs()
            ),
            Self::Start => write!(formatter, "a run is due"),
            Self::Resume => write!(formatter, "an interrupted run goes on"),
        }
    }
}

impl Schedule {
    /// The first due time after `now`. `config` has checked the pattern.
    pub fn new(plan: Option<&(String, Tz)>, now: DateTime<Utc>) -> Self {
        let mut schedule = Self {
            plan: None,
            written: None,
            due: None,
            not_before: now,
            seen: now,
            failures: 0,
            interrupted: false,
        };
        schedule.replan(plan, now);
        schedule
    }
    /// The configuration has changed. A run that is due stays due, and failures stay counted: a new
    /// time does not mend the trainer.
    pub fn replan(&mut self, plan: Option<&(String, Tz)>, now: DateTime<Utc>) {
        if self.written.as_ref() == plan {
            return;
        }
        let is_due = self.due.is_some_and(|due| due <= now);
        self.written = plan.cloned();
        self.plan = plan.and_then(|(pattern, zone)| Some((Cron::from_str(pattern).ok()?, *zone)));
        if !is_due || self.plan.is_none() {
            self.due = self.after(now.max(self.not_before));
        }
    }
    /// When a plan was set and when the last run that it started began, both before the daemon did: one
    /// that was due after the newer of the two is due now.
    pub fn catch_up(
        &mut self,
        set: Option<DateTime<Utc>>,
        last: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) {
        let missed = set.max(last).and_then(|since| self.after(since));
        if let Some(missed) = missed.filter(|missed| *missed <= now) {
            self.due = Some(missed);
        }
    }
    /// What the clock says; true when it was set back. What is due stays due then, and everything
    /// else is counted from the new time.
    pub fn hear(&mut self, now: DateTime<Utc>) -> bool {
        let before = std::mem::replace(&mut self.seen, now);
        if before - now < SET_BACK {
            self.seen = before.max(now);
            return false;
        }
        self.not_before = now + (self.not_before - before).max(TimeDelta::zero());
        self.due = match self.due {
            Some(due) if due <= before => Some(now),
            _ => self.after(self.not_before),
        };
        true
    }
    /// When the next run is due.
    pub fn due(&self) -> Option<DateTime<Utc>> {
        self.due
    }
    /// A run waits to go on (true), or none does any more.
    pub fn set_interrupted(&mut self, interrupted: bool) {
        self.interrupted = interrupted;
    }
    /// What to do now, given for how long no chat has run and how long it has to be.
    pub fn decide(&self, now: DateTime<Utc>, quiet: Duration, idle: Duration) -> Decision {
        let is_due = self.due.is_some_and(|due| due <= now);
        match self.due {
            _ if (is_due || self.interrupted) && quiet < idle => Decision::Busy { quiet, idle },
            _ if is_due => Decision::Start,
            _ if self.interrupted => Decision::Resume,
            Some(due) => Decision::NotDue(due),
            None => Decision::Never,
        }
    }
    /// A run (scheduled or asked for) has ended.
    pub fn ended(&mut self, now: DateTime<Utc>, failed: bool) {
        self.interrupted = false;
        self.failures = if failed { self.failures.saturating_add(1) } else { 0 };
        self.not_before = now + back_off(self.failures);
        self.due = self.after(self.not_before);
    }
    /// How many runs in a row have failed.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    fn after(&self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let (cron, zone) = self.plan.as_ref()?;
        let next = cron.find_next_occurrence(&time.with_timezone(zone), false).ok()?;
        Some(next.with_timezone(&Utc))
    }
}

/// 0, 30 minutes, 1 hour, 2 hours, ... a week.
fn back_off(failures: u32) -> TimeDelta {
    match failures {
        0 => TimeDelta::zero(),
        // 2^9 half hours are more than a week already.
        n => (BACK_OFF * (1 << (n - 1).min(9))).min(BACK_OFF_CAP),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }
    fn nightly() -> (String, Tz) {
        ("0 3 * * *".into(), chrono_tz::Europe::Berlin)
    }
    const LONG: Duration = Duration::from_hours(1);
    const IDLE: Duration = Duration::from_mins(10);

    #[test]
    fn the_pattern_means_local_time_on_both_sides_of_a_clock_change() {
        let schedule = Schedule::new(Some(&nightly()), at("2026-07-01T12:00:00Z"));
        assert_eq!(schedule.due(), Some(at("2026-07-02T01:00:00Z")));
        let schedule = Schedule::new(Some(&nightly()), at("2026-12-01T12:00:00Z"));
        assert_eq!(schedule.due(), Some(at("2026-12-02T02:00:00Z")));
    }

    #[test]
    fn without_a_schedule_nothing_ever_starts() {
        let schedule = Schedule::new(None, at("2026-07-01T12:00:00Z"));
        assert_eq!(schedule.decide(at("2036-07-01T12:00:00Z"), LONG, IDLE), Decision::Never);
    }

    #[test]
    fn a_due_run_waits_for_quiet_and_then_starts() {
        let schedule = Schedule::new(Some(&nightly()), at("2026-07-01T12:00:00Z"));
        let before = at("2026-07-02T00:59:59Z");
        assert!(matches!(schedule.decide(before, LONG, IDLE), Decision::NotDue(_)));
        let after = at("2026-07-02T01:20:00Z");
        let chatting = schedule.decide(after, Duration::from_secs(5), IDLE);
        assert!(chatting.to_string().contains("600 s (now 5 s)"), "{chatting}");
        assert_eq!(schedule.decide(after, IDLE, IDLE), Decision::Start);
    }

    #[test]
    fn a_run_that_keeps_failing_is_tried_less_often_but_at_least_weekly() {
        let hourly = ("0 * * * *".into(), chrono_tz::UTC);
        let now = at("2026-07-01T12:30:00Z");
        let mut schedule = Schedule::new(Some(&hourly), now);
        let mut waits = Vec::new();
        for _ in 0..14 {
            schedule.ended(now, true);
            waits.push(schedule.due().unwrap() - now);
        }
        assert!(waits.is_sorted());
        assert_eq!(waits[0], TimeDelta::minutes(90));
        assert!(waits[13] <= BACK_OFF_CAP + TimeDelta::hours(1));
        assert_eq!(schedule.failures(), 14);
        schedule.ended(now, false);
        assert_eq!(schedule.due(), Some(at("2026-07-01T13:00:00Z")));
    }

    #[test]
    fn an_interrupted_run_goes_on_when_it_is_quiet_whatever_the_pattern_says() {
        let noon = at("2026-07-01T12:00:00Z");
        for plan in [None, Some(nightly())] {
            let mut schedule = Schedule::new(plan.as_ref(), noon);
            schedule.set_interrupted(true);
            schedule.replan(plan.as_ref(), noon);
            let chatting = schedule.decide(noon, Duration::from_secs(5), IDLE);
            assert!(matches!(chatting, Decision::Busy { .. }), "{chatting:?}");
            assert_eq!(schedule.decide(noon, IDLE, IDLE), Decision::Resume);
            schedule.ended(noon, false);
            let after = schedule.decide(noon, LONG, IDLE);
            assert!(matches!(after, Decision::Never | Decision::NotDue(_)), "{after:?}");
        }
        let mut schedule = Schedule::new(Some(&nightly()), noon);
        schedule.set_interrupted(true);
        assert_eq!(schedule.decide(at("2026-07-02T01:20:00Z"), LONG, IDLE), Decision::Start);
    }

    #[test]
    fn a_reload_keeps_a_due_run_and_its_back_off() {
        let noon = at("2026-07-01T12:00:00Z");
        let mut schedule = Schedule::new(Some(&nightly()), noon);
        let night = at("2026-07-02T01:20:00Z");
        schedule.replan(Some(&nightly()), night);
        assert_eq!(schedule.decide(night, LONG, IDLE), Decision::Start);
        let later = ("0 5 * * *".into(), chrono_tz::Europe::Berlin);
        schedule.replan(Some(&later), night);
        assert_eq!(schedule.decide(night, LONG, IDLE), Decision::Start, "also with another plan");
        schedule.replan(None, night);
        assert_eq!(schedule.decide(night, LONG, IDLE), Decision::Never, "but not without one");

        let hourly = ("0 * * * *".into(), chrono_tz::UTC);
        let mut schedule = Schedule::new(Some(&hourly), noon);
        for _ in 0..3 {
            schedule.ended(noon, true);
        }
        let waits = schedule.due();
        assert_eq!(waits, Some(at("2026-07-01T15:00:00Z")));
        schedule.replan(Some(&hourly), noon);
        assert_eq!(schedule.due(), waits);
        schedule.replan(Some(&("*/5 * * * *".into(), chrono_tz::UTC)), noon);
        assert!(at("2026-07-01T14:00:00Z") < schedule.due().unwrap());
    }

    #[test]
    fn a_run_that_was_missed_is_made_up_for_once() {
        let morning = at("2026-07-03T07:00:00Z");
        let mut schedule = Schedule::new(Some(&nightly()), morning);
        let set = Some(at("2026-06-01T12:00:00Z"));
        schedule.catch_up(set, Some(at("2026-07-01T01:00:10Z")), morning);
        assert_eq!(schedule.decide(morning, LONG, IDLE), Decision::Start, "two nights were missed");
        schedule.ended(morning, false);
        assert_eq!(schedule.due(), Some(at("2026-07-04T01:00:00Z")));
        let mut schedule = Schedule::new(Some(&nightly()), morning);
        schedule.catch_up(set, Some(at("2026-07-03T01:00:10Z")), morning);
        assert!(matches!(schedule.decide(morning, LONG, IDLE), Decision::NotDue(_)));
        schedule.catch_up(Some(morning), Some(at("2026-07-01T01:00:10Z")), morning);
        assert!(matches!(schedule.decide(morning, LONG, IDLE), Decision::NotDue(_)));
        schedule.catch_up(set, None, morning);
        assert_eq!(schedule.decide(morning, LONG, IDLE), Decision::Start, "the first night");
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_put_the_night_off() {
        let noon = at("2026-07-01T12:00:00Z");
        let mut schedule = Schedule::new(Some(&nightly()), noon);
        assert!(!schedule.hear(noon - TimeDelta::seconds(2)), "a correction");
        assert_eq!(schedule.due(), Some(at("2026-07-02T01:00:00Z")));
        assert!(schedule.hear(at("2026-06-01T12:00:00Z")));
        assert_eq!(schedule.due(), Some(at("2026-06-02T01:00:00Z")));
        assert!(!schedule.hear(at("2026-06-02T01:00:00Z")));
        assert!(schedule.hear(at("2026-06-01T12:00:00Z")));
        let decision = schedule.decide(at("2026-06-01T12:00:00Z"), LONG, IDLE);
        assert_eq!(decision, Decision::Start, "what was due stays due");

        let mut schedule = Schedule::new(Some(&nightly()), noon);
        for _ in 0..8 {
            schedule.ended(noon, true);
        }
        // 64 hours.
        assert_eq!(schedule.due(), Some(at("2026-07-05T01:00:00Z")));
        schedule.hear(at("2026-06-01T12:00:00Z"));
        assert_eq!(
            schedule.due(),
            Some(at("2026-06-05T01:00:00Z")),
            "the wait is as long as it was"
        );
    }

    #[test]
    fn a_new_plan_takes_effect_at_once() {
        let now = at("2026-07-01T12:30:00Z");
        let mut schedule = Schedule::new(Some(&nightly()), now);
        schedule.replan(Some(&("45 12 * * *".into(), chrono_tz::UTC)), now);
        assert_eq!(schedule.due(), Some(at("2026-07-01T12:45:00Z")));
        schedule.replan(None, now);
        assert_eq!(schedule.due(), None);
    }
}
