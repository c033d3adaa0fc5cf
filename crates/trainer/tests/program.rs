//! The whole program, as the daemon starts it: a job on standard input, events on standard output, an
//! exit status, and what is in the folder afterwards. What runs compute is tested in `src/tests/`.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use files::gguf::model_sha256;
use protocol::exit::Exit;
use protocol::{CHECKPOINT, Example, Job, Optimizer, Probe, TrainerEvent};
use rustix::process::{Pid, Signal, kill_process};
use testkit::tiny;

/// A running trainer.
struct Trainer {
    child: Child,
    stdin: Option<ChildStdin>,
    events: Lines<BufReader<ChildStdout>>,
}

impl Trainer {
    /// Starts the program; its standard input stays open, as long as the daemon lives.
    fn start(line: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_reflectd-trainer"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "{line}").unwrap();
        let events = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, stdin: Some(stdin), events }
    }

    fn next(&mut self) -> Option<TrainerEvent> {
        Some(serde_json::from_str(&self.events.next()?.unwrap()).unwrap())
    }

    /// The events up to a step, which is among them.
    fn until_step(&mut self, n: usize) -> Vec<TrainerEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.next() {
            let is_last = matches!(event, TrainerEvent::Step(step) if step.step == n);
            events.push(event);
            if is_last {
                return events;
            }
        }
        panic!("it ends before step {n}: {events:?}");
    }

    /// The other events, and the exit status.
    fn end(mut self) -> (Vec<TrainerEvent>, i32) {
        let mut events = Vec::new();
        while let Some(event) = self.next() {
            events.push(event);
        }
        (events, self.child.wait().unwrap().code().unwrap())
    }
}

fn code(exit: Exit) -> i32 {
    exit as i32
}

/// A job of so many steps in a folder of its own. The seed and the data are always the same.
fn job(folder: &Path, n_steps: usize) -> Job {
    let (base, data) = (folder.join("base.gguf"), folder.join("data.jsonl"));
    tiny::model().write(&base);
    let lines = (0..4).map(|i| {
        let (chosen, rejected) = (vec![20, 21 + i, 258], Some(vec![30, 258]));
        let example =
            Example { prompt_id: i.to_string(), prompt: vec![257, i, 7], chosen, rejected };
        serde_json::to_string(&example).unwrap() + "\n"
    });
    let lines: String = lines.collect();
    files::write_atomic(&data, |file| file.write_all(lines.as_bytes())).unwrap();
    let base_sha256 = model_sha256(&base).unwrap();
    let optimizer = Optimizer { epochs: n_steps, ..testkit::job().optimizer };
    let (out, context_tokens) = (folder.to_owned(), 64);
    Job { base, base_sha256, data, out, optimizer, context_tokens, ..testkit::job() }
}

fn line(job: &Job) -> String {
    serde_json::to_string(job).unwrap()
}

#[test]
fn a_job_becomes_an_adapter_and_its_probe() {
    let folder = tempfile::tempdir().unwrap();
    let (events, status) = Trainer::start(&line(&job(folder.path(), 3))).end();
    assert_eq!(status, code(Exit::Ok), "{events:?}");
    let steps = events.iter().filter(|event| matches!(event, TrainerEvent::Step(_)));
    assert_eq!(steps.count(), 3);
    let Some(TrainerEvent::Done { adapter, sha256, probe, .. }) = events.last() else {
        panic!("{events:?}")
    };
    assert_eq!(files::sha256(adapter).unwrap(), *sha256);
    let probe: Probe = serde_json::from_slice(&std::fs::read(probe).unwrap()).unwrap();
    assert!(probe.sequences.iter().any(|sequence| !sequence.logprobs.is_empty()));
}

#[test]
fn a_line_that_is_no_job_is_bad_data() {
    for line in ["{}", "not json", ""] {
        let (events, status) = Trainer::start(line).end();
        assert_eq!(status, code(Exit::BadData), "{line}: {events:?}");
        let [TrainerEvent::Failed { message }] = &events[..] else { panic!("{events:?}") };
        assert!(message.contains("not a job"), "{message}");
    }
}

#[test]
fn after_sigterm_or_the_end_of_standard_input_a_run_is_resumed_to_the_same_bytes() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let n_steps = 400;
    let (expected, status) = Trainer::start(&line(&job(whole.path(), n_steps))).end();
    assert_eq!(status, code(Exit::Ok), "{:?}", expected.last());

    let job = job(parts.path(), n_steps);
    let mut first = Trainer::start(&line(&job));
    first.until_step(1);
    kill_process(Pid::from_child(&first.child), Signal::TERM).unwrap();
    let (events, status) = first.end();
    assert_eq!(status, code(Exit::TryAgain), "{:?}", events.last());
    assert!(parts.path().join(CHECKPOINT).exists());

    let mut second = Trainer::start(&line(&job));
    let began = second.until_step(events.iter().filter(|event| is_step(event)).count() + 2);
    assert!(began.iter().any(|event| matches!(event, TrainerEvent::Resumed { .. })), "{began:?}");
    drop(second.stdin.take());
    let (events, status) = second.end();
    assert_eq!(status, code(Exit::TryAgain), "{:?}", events.last());

    let (rest, status) = Trainer::start(&line(&job)).end();
    assert_eq!(status, code(Exit::Ok), "{:?}", rest.last());
    assert!(rest.iter().any(|event| matches!(event, TrainerEvent::Resumed { .. })));
    assert!(rest.iter().filter(|event| is_step(event)).count() < n_steps, "it began again");
    let adapter = |folder: &Path| std::fs::read(folder.join("adapter.gguf")).unwrap();
    assert_eq!(adapter(parts.path()), adapter(whole.path()));
}

fn is_step(event: &TrainerEvent) -> bool {
    matches!(event, TrainerEvent::Step(_))
}
