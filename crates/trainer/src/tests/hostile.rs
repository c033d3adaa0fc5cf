//! Hostile input: damaged bases, adapters and data sets through whole runs. Each is trained on or
//! refused with words, nothing is half-written, and nothing is taken for a bug of ours; a crash
//! would end this program. A failure names the seed, which makes the same input again. Exit codes
//! of real processes are tested end to end.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use files::gguf::{Gguf, model_sha256};
use protocol::{CHECKPOINT, Group, Job, Objective, Probe, Rollout, TrainerEvent};
use testkit::{mutation, tiny};

use super::fixtures::{alone, job, refusal, run, write};
use crate::train::Failure;

const BASES: u64 = 300;
const ADAPTERS: u64 = 150;
const DATA_SETS: u64 = 300;

/// A short run on the tiny model of the server's hostile tests.
fn short(folder: &Path) -> Job {
    let mut job = job(folder);
    job.base = folder.join("tiny.gguf");
    tiny::model().write(&job.base);
    job.base_sha256 = model_sha256(&job.base).unwrap();
    job.out = folder.join("out");
    fs::create_dir_all(&job.out).unwrap();
    write(&job.data, &lines());
    (job.optimizer.epochs, job.optimizer.batch_pairs) = (1, 2);
    job
}

fn lines() -> String {
    (0..3).fold(String::new(), |text, i| {
        format!(
            "{text}{{\"prompt_id\":\"p{i}\",\"prompt\":[{i},7,8],\"chosen\":[20,2{i},258],\
             \"rejected\":[30,258]}}\n"
        )
    })
}

/// One word for the outcome of a run; an error when the outcome is wrong.
fn outcome(job: &Job) -> Result<&'static str, String> {
    let ended = catch_unwind(AssertUnwindSafe(|| run(job)));
    let files = || {
        let entries = fs::read_dir(&job.out).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        names.collect::<Vec<_>>()
    };
    // The checkpoint stays, whole, for the run that resumes from it.
    let is_clean = || files().iter().all(|name| name == CHECKPOINT);
    let word = match ended {
        Err(panic) => return Err(format!("a panic: {}", crate::step::panic_text(&*panic))),
        Ok(Err(Failure::Bug(error))) => return Err(format!("called a bug: {error:#}")),
        Ok(Err(Failure::Stopped)) => return Err("nobody has stopped it".into()),
        Ok(Err(Failure::BadData(error) | Failure::TryAgain(error))) => {
            if format!("{error:#}").len() < 10 || !is_clean() {
                return Err(format!("{error:#} leaves {:?}", files()));
            }
            "refused"
        }
        Ok(Ok(events)) => {
            let line = serde_json::to_string(events.last().expect("it said something")).unwrap();
            let Ok(TrainerEvent::Done { adapter, probe, .. }) = serde_json::from_str(&line) else {
                return Err(format!("the last word is {line}"));
            };
            let values = Gguf::open(&adapter).map_err(|error| error.to_string())?;
            for tensor in values.tensors() {
                assert!(values.read_f32(tensor).unwrap().iter().all(|value| value.is_finite()));
            }
            serde_json::from_slice::<Probe>(&fs::read(&probe).unwrap())
                .map_err(|error| format!("the probe: {error}"))?;
            "trained"
        }
    };
    for name in files() {
        fs::remove_file(job.out.join(name)).unwrap();
    }
    Ok(word)
}

/// Runs every seed; both words have to come up, or the damage shows nothing.
fn all_end_well(what: &str, seeds: u64, mut make: impl FnMut(u64) -> Job) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut bad = Vec::new();
    for seed in 0..seeds {
        match outcome(&make(seed)) {
            Ok(word) => *counts.entry(word).or_default() += 1,
            Err(error) => bad.push(format!("seed {seed}: {error}")),
        }
    }
    eprintln!("{seeds} {what}: {counts:?}");
    assert!(bad.is_empty(), "{what}:\n{}", bad.join("\n"));
    for word in ["trained", "refused"] {
        let enough = counts.get(word).is_some_and(|&n| n as u64 >= seeds / 20);
        assert!(enough, "{what}: {counts:?}");
    }
}

#[test]
fn damaged_bases_are_refused_or_trained_on() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let sound = short(folder.path());
    assert_eq!(outcome(&sound), Ok("trained"));
    let parts = tiny::model();
    all_end_well("bases", BASES, |seed| {
        mutation::write(&parts, seed, &sound.base);
        Job { base_sha256: model_sha256(&sound.base).unwrap_or_default(), ..sound.clone() }
    });
}

#[test]
fn damaged_adapters_are_refused_or_trained_on() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut job = short(folder.path());
    run(&job).unwrap();
    let start = folder.path().join("start.gguf");
    let file = Gguf::open(&job.out.join("adapter.gguf")).unwrap();
    let parts = tiny::Parts {
        metadata: file.entries().iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        tensors: file
            .tensors()
            .iter()
            .map(|it| (it.name.clone(), it.shape.clone(), file.read_f32(it).unwrap()))
            .collect(),
    };
    fs::remove_dir_all(&job.out).unwrap();
    fs::create_dir(&job.out).unwrap();
    job.start = Some(start.clone());
    all_end_well("adapters", ADAPTERS, |seed| {
        mutation::write(&parts, seed, &start);
        job.clone()
    });
}

#[test]
fn damaged_data_sets_are_refused_or_trained_on() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let job = short(folder.path());
    let sound = lines().into_bytes();
    let odd: [&[u8]; 12] = [
        b"null",
        b"[]",
        b"-1",
        b"1e999",
        b"NaN",
        b"\"\"",
        b"{",
        b"}",
        b"\n",
        b"\xFF\xFE",
        b"258",
        b"9999999999999",
    ];
    all_end_well("data sets", DATA_SETS, |seed| {
        let random = &mut fastrand::Rng::with_seed(seed);
        let mut bytes = sound.clone();
        for _ in 0..random.usize(1..=2) {
            let at = random.usize(..bytes.len());
            match random.u32(0..8) {
                0 => bytes[at] ^= 1 << random.u32(0..8),
                1 => bytes.truncate(at.max(1)),
                2 => drop(bytes.drain(at..(at + random.usize(1..20)).min(bytes.len() - 1))),
                3 => drop(bytes.splice(at..at, random.choice(odd).unwrap().iter().copied())),
                4 => bytes[at] = b'0' + random.u8(0..10),
                // Another token, mostly.
                _ => {
                    let is_digit = |&at: &usize| bytes[at].is_ascii_digit();
                    let digits: Vec<usize> = (0..bytes.len()).filter(is_digit).collect();
                    bytes[*random.choice(&digits).unwrap()] = b'0' + random.u8(0..10);
                }
            }
        }
        files::write_atomic(&job.data, |out| std::io::Write::write_all(out, &bytes)).unwrap();
        job.clone()
    });
}

#[test]
fn what_is_wrong_with_a_line_is_said_with_its_number() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut job = short(folder.path());
    let second =
        |line: &str| format!("{}{line}\n", lines().lines().next().unwrap().to_owned() + "\n");
    let refused = |job: &Job, line: &str, word: &str| {
        write(&job.data, &second(line));
        let found = refusal(job);
        assert!(found.contains("line 2") && found.contains(word), "{line}: {found}");
    };
    let pair = |prompt: &str, chosen: &str| {
        format!("{{\"prompt_id\":\"a\",\"prompt\":{prompt},\"chosen\":{chosen},\"rejected\":[1]}}")
    };
    refused(&job, "not json", "expected");
    refused(&job, "", "EOF");
    refused(&job, &pair("[1]", "[-1]"), "not in the vocabulary");
    refused(&job, &pair("[1]", "[259]"), "not in the vocabulary");
    refused(&job, &pair("[1]", "[1.5]"), "expected i32");
    refused(&job, &pair("[99999999999]", "[1]"), "expected i32");
    refused(&job, &pair("[]", "[1]"), "an empty sequence");
    refused(&job, &pair("[1]", "[]"), "an empty sequence");
    refused(&job, &pair("[1]", "[NaN]"), "expected value");
    refused(&job, &pair(&"[".repeat(10_000), "[1]"), "line 2");
    let long = format!("\"{}\"", "x".repeat(crate::data::MAX_LINE_BYTES));
    refused(&job, &long, "longer than");

    job.objective = Objective::Grpo { beta: 0.0, epsilon: 0.2, importance_cap: 2.0 };
    let group = |logprob: f32, reward: f64| {
        let answer = |token| Rollout { tokens: vec![token], logprobs: vec![logprob], reward };
        let group =
            Group { prompt_id: "a".into(), prompt: vec![1], answers: vec![answer(3), answer(4)] };
        serde_json::to_string(&group).unwrap()
    };
    for (line, word) in [
        // JSON cannot write infinity and NaN, so they arrive as null.
        (group(f32::NAN, 1.0), "null"),
        (group(-1.0, f64::INFINITY), "null"),
        (group(0.5, 1.0), "no sound number"),
        (group(-1.0, 1.0).replace("[-1.0]", "[-1e39]"), "out of range"),
        (group(-1.0, 1.0).replace("[-1.0]", "[-1,-1]"), "2 log-probs for 1 tokens"),
    ] {
        write(&job.data, &format!("{line}\n"));
        let found = refusal(&job);
        assert!(found.contains("line 1") && found.contains(word), "{line}: {found}");
    }
}

#[test]
fn numbers_that_are_none_end_a_run_wherever_they_come_from() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let sound = short(folder.path());
    let refused = |job: &Job, word: &str| {
        let found = refusal(job);
        assert!(found.contains(word), "{word}: {found}");
        for name in ["adapter.gguf", "probe.json"] {
            assert!(!job.out.join(name).exists(), "{word} leaves {name}");
        }
        drop(fs::remove_file(job.out.join(CHECKPOINT)));
    };
    // Finite weights whose products are not.
    let mut parts = tiny::model();
    for (name, _, values) in &mut parts.tensors {
        if name == "output.weight" {
            for value in values.iter_mut() {
                *value = 3e38_f32.copysign(*value);
            }
        }
    }
    let job = Job { base: folder.path().join("huge.gguf"), ..sound.clone() };
    parts.write(&job.base);
    let job = Job { base_sha256: model_sha256(&job.base).unwrap(), ..job };
    refused(&job, "log-probs of the model that is trained are not numbers");
    // A step to weights that are not finite shows at the next step, or in the export.
    for epochs in [1, 3] {
        let mut job = sound.clone();
        (job.optimizer.learning_rate, job.optimizer.epochs) = (1e38, epochs);
        job.optimizer.batch_pairs = 8;
        refused(&job, "learning_rate");
    }
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut job = short(folder.path());
    run(&job).unwrap();
    let start = folder.path().join("start.gguf");
    fs::rename(job.out.join("adapter.gguf"), &start).unwrap();
    fs::remove_dir_all(&job.out).unwrap();
    fs::create_dir(&job.out).unwrap();
    // The same shapes, other numbers.
    let mut parts = tiny::model();
    parts.tensors[0].2[0] += 0.1;
    parts.write(&job.base);
    job.base_sha256 = model_sha256(&job.base).unwrap();
    job.start = Some(start);
    assert!(refusal(&job).contains("trained for another base model"), "{}", refusal(&job));
    assert_eq!(fs::read_dir(&job.out).unwrap().count(), 0);
}
