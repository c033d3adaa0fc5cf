//! Each way in which a trainer can go wrong, played by a shell script.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use protocol::{BaseKind, Compute, Device};

/// Long enough that a loaded machine does not reach it.
const LONG: Duration = Duration::from_mins(1);
const SHORT: Duration = Duration::from_millis(400);

struct Run {
    folder: tempfile::TempDir,
    config: TrainerConfig,
    updates: Mutex<Vec<Update>>,
    quiet_ms: AtomicU64,
}

impl Run {
    fn new(script: &str, arguments: &[&str]) -> Self {
        let mut command = testkit::fake_trainer(script);
        command.extend(arguments.iter().map(|&argument| argument.to_owned()));
        Self {
            folder: tempfile::tempdir().unwrap(),
            config: TrainerConfig {
                command: Some(command),
                stall: LONG,
                grace: LONG,
                threads: 1,
                device: Device::Cpu,
                base: BaseKind::Auto,
                compute: Compute::Auto,
                memory_limit_bytes: None,
                checkpoint: LONG,
                yield_quiet: Duration::from_secs(1),
            },
            updates: Mutex::default(),
            quiet_ms: AtomicU64::new(u64::MAX),
        }
    }
    fn stall(mut self, stall: Duration) -> Self {
        self.config.stall = stall;
        self
    }
    fn grace(mut self, grace: Duration) -> Self {
        self.config.grace = grace;
        self
    }
    fn out(&self) -> &Path {
        self.folder.path()
    }
    fn job(&self) -> Job {
        let out = self.out().to_owned();
        Job { data: out.join("data.jsonl"), out, ..testkit::job() }
    }
    /// Runs; `heard` may cancel or change the quiet time at an update.
    async fn train(
        &self,
        heard: impl Fn(&Self, &Update, &tokio::sync::watch::Sender<Option<Stop>>) + Send + Sync,
    ) -> Result<Product, TrainerError> {
        let (switch, cancel) = Cancel::new();
        let quiet = || Duration::from_millis(self.quiet_ms.load(Ordering::Relaxed));
        let mut update = |update: Update| {
            heard(self, &update, &switch);
            self.updates.lock().unwrap().push(update);
        };
        train(&self.config, &self.job(), &quiet, &mut update, cancel).await
    }
    async fn alone(&self) -> Result<Product, TrainerError> {
        self.train(|_, _, _| {}).await
    }
    fn steps(&self) -> usize {
        let updates = self.updates.lock().unwrap();
        updates.iter().filter(|u| matches!(u, Update::Event(TrainerEvent::Step(_)))).count()
    }
    /// Whether the process whose id the script left still runs.
    fn is_alive(&self) -> bool {
        let id = std::fs::read_to_string(self.out().join("pid")).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", id.trim()));
        // A zombie that a container's first process has not reaped is dead too.
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }
}

#[tokio::test]
async fn a_good_run_names_a_checked_adapter() {
    let run = Run::new("good.sh", &[]);
    let trained = run.alone().await.unwrap().best;
    assert_eq!(trained.adapter, run.out().join("adapter.gguf"));
    assert_eq!(trained.sha256, files::sha256(&trained.adapter).unwrap());
    assert_eq!(run.steps(), 3);
}

#[tokio::test]
async fn noise_on_stdout_is_no_reason_to_fail() {
    let run = Run::new("noise.sh", &[]);
    run.alone().await.unwrap();
    assert_eq!(run.steps(), 3);
}

#[tokio::test]
async fn exit_statuses_become_reasons() {
    let failed = async |script, status| Run::new(script, &[status]).alone().await.unwrap_err();
    let error = failed("crash.sh", "70").await;
    assert!(matches!(error, TrainerError::Crashed { status: 70, .. }), "{error}");
    assert!(error.to_string().contains("step 2 went wrong"), "{error}");
    let error = failed("crash.sh", "75").await;
    assert!(matches!(error, TrainerError::TryAgain(_)), "{error}");
    let error = failed("says_why.sh", "65").await;
    assert!(matches!(error, TrainerError::BadData(_)), "{error}");
    assert!(error.to_string().ends_with("the data set is empty; add pairs"), "{error}");
}

#[tokio::test]
async fn a_kill_from_outside_is_named() {
    let error = Run::new("killed.sh", &[]).alone().await.unwrap_err();
    assert!(matches!(error, TrainerError::Killed { signal: 9, .. }), "{error}");
    assert!(error.to_string().contains("memory runs out"), "{error}");
}

#[tokio::test]
async fn a_trainer_that_says_nothing_is_stopped() {
    let error = Run::new("hang.sh", &[]).stall(SHORT).alone().await.unwrap_err();
    assert!(matches!(error, TrainerError::Stalled { .. }), "{error}");
}

#[tokio::test]
async fn a_trainer_that_ignores_sigterm_is_killed_and_reaped() {
    let run = Run::new("ignores_sigterm.sh", &[]).grace(SHORT);
    let error = run
        .train(|_, update, switch| {
            if matches!(update, Update::Event(TrainerEvent::Started { .. })) {
                switch.send_replace(Some(Stop::Owner));
            }
        })
        .await
        .unwrap_err();
    assert!(matches!(error, TrainerError::Cancelled(Stop::Owner)), "{error}");
    assert!(!run.is_alive());
}

#[tokio::test]
async fn a_flood_on_stderr_neither_blocks_nor_fills_memory() {
    let error = Run::new("floods_stderr.sh", &[]).alone().await.unwrap_err().to_string();
    assert!(error.contains("complaint 20000"), "{error}");
    assert!(error.lines().count() <= TAIL_LINES + 1, "{} lines", error.lines().count());
}

#[tokio::test]
async fn a_lie_about_the_file_is_found_out() {
    let error = Run::new("lies.sh", &[]).alone().await.unwrap_err();
    assert!(matches!(error, TrainerError::Lied { .. }), "{error}");
    let error = Run::new("elsewhere.sh", &[]).alone().await.unwrap_err();
    assert!(matches!(error, TrainerError::Lied { .. }), "{error}");
}

#[tokio::test]
async fn success_without_an_adapter_is_none() {
    let error = Run::new("silent_success.sh", &[]).alone().await.unwrap_err();
    assert!(matches!(error, TrainerError::NoAdapter(_)), "{error}");
}

#[tokio::test]
async fn a_trainer_that_closes_its_pipes_and_stays_is_stopped() {
    // Long enough for the script to begin at idle priority on a busy machine.
    let stall = Duration::from_secs(5);
    let error = Run::new("closes_pipes.sh", &[]).stall(stall).alone().await.unwrap_err();
    assert!(matches!(error, TrainerError::Lingered { .. }), "{error}");
}

#[tokio::test]
async fn a_grandchild_that_holds_the_pipe_does_not_hold_the_run() {
    let run = Run::new("leaves_a_child.sh", &[]);
    run.alone().await.unwrap();
    assert_eq!(run.steps(), 1);
    while run.is_alive() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn standard_input_stays_open_as_long_as_the_trainer_works() {
    let run = Run::new("waits_for_stdin.sh", &[]);
    run.alone().await.unwrap();
    assert_eq!(run.steps(), 3);
    // What the script had not seen during its work it sees now that the run is over.
    let ended = async {
        while !run.out().join("ended").exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, ended).await.expect("the script watches its standard input");
}

#[tokio::test]
async fn a_chat_stops_the_trainer_and_the_stop_is_no_stall() {
    // The stall bound is shorter than the pause, which lasts until three ticks have seen it.
    let run = Run::new("slow.sh", &["5"]).stall(Duration::from_secs(3));
    let resume_at = Mutex::new(None);
    let config = &run.config;
    let (_switch, cancel) = Cancel::new();
    let quiet = || {
        let mut resume_at = resume_at.lock().unwrap();
        match *resume_at {
            Some(time) if Instant::now() < time => Duration::ZERO,
            _ => {
                *resume_at = None;
                Duration::MAX
            }
        }
    };
    let mut chatted = false;
    let mut update = |update: Update| {
        if matches!(update, Update::Event(TrainerEvent::Step(_))) && !chatted {
            chatted = true;
            *resume_at.lock().unwrap() = Some(Instant::now() + Duration::from_secs(4));
        }
        run.updates.lock().unwrap().push(update);
    };
    train(config, &run.job(), &quiet, &mut update, cancel).await.unwrap();
    let updates = run.updates.lock().unwrap();
    let paused = updates.iter().position(|update| *update == Update::Paused(true)).unwrap();
    let resumed = updates.iter().position(|update| *update == Update::Paused(false)).unwrap();
    assert!(paused < resumed);
    // One line may have been in the pipe when the group was stopped.
    assert!(resumed - paused <= 2, "{updates:?}");
}

#[tokio::test]
async fn a_stopped_trainer_can_be_cancelled() {
    let run = Run::new("hang.sh", &[]);
    let error = run
        .train(|run, update, switch| match update {
            Update::Event(TrainerEvent::Step(_)) => run.quiet_ms.store(0, Ordering::Relaxed),
            Update::Paused(true) => {
                switch.send_replace(Some(Stop::Owner));
            }
            _ => {}
        })
        .await
        .unwrap_err();
    assert!(matches!(error, TrainerError::Cancelled(Stop::Owner)), "{error}");
}

#[tokio::test]
async fn a_missing_program_is_said_with_the_key_to_set() {
    let mut run = Run::new("good.sh", &[]);
    run.config.command = Some(vec!["/no/such/trainer".into()]);
    let error = run.alone().await.unwrap_err().to_string();
    assert!(error.contains("/no/such/trainer") && error.contains("trainer.command"), "{error}");
}
