//! Asks the trainer program what training on a model would take: the parent's side of
//! `reflectd-trainer survey`. It must not interpret the answer. Used by `cli/doctor`.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use super::program;
use config::TrainerConfig;
use protocol::{SurveyJob, TrainerEvent, TrainingSurvey};

/// The trainer measures for some seconds; blocks of a very large model, or a busy machine, take
/// longer. What it knows before it measures is the answer then.
const PATIENCE: Duration = Duration::from_mins(3);

/// The trainer's answer, or why there is none.
pub async fn survey(config: &TrainerConfig, job: &SurveyJob) -> Result<TrainingSurvey, String> {
    survey_within(PATIENCE, config, job).await
}

async fn survey_within(
    patience: Duration,
    config: &TrainerConfig,
    job: &SurveyJob,
) -> Result<TrainingSurvey, String> {
    let words = program::command_line(config).map_err(|error| error.to_string())?;
    let failed = |error: std::io::Error| format!("start {}: {error}", words[0]);
    let mut command = program::command(&words);
    command.arg("survey");
    let (mut child, stdin) = program::start(&mut command, job).await.map_err(failed)?;
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let listen = async {
        let out = async { out.expect("it is piped").read_to_end(&mut said).await };
        let err = async { err.expect("it is piped").read_to_end(&mut complained).await };
        tokio::try_join!(out, err)?;
        child.wait().await
    };
    let ended = tokio::time::timeout(patience, listen).await;
    drop(stdin);
    match ended {
        Err(_) => unmeasured(&said, patience),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(status)) => answer(&said, &complained, status),
    }
}

/// The last survey that the trainer printed. C++ libraries print where they like.
fn last_survey(said: &[u8]) -> Option<TrainingSurvey> {
    let said = String::from_utf8_lossy(said);
    said.lines().rev().find_map(|line| serde_json::from_str(line).ok())
}

/// What was known when the time was up.
fn unmeasured(said: &[u8], patience: Duration) -> Result<TrainingSurvey, String> {
    let late = format!(
        "it is not measured within {} s; something else uses the processors, or the model is large",
        patience.as_secs()
    );
    match last_survey(said) {
        Some(survey) => Ok(TrainingSurvey { speed_fault: Some(late), ..survey }),
        None => Err(late),
    }
}

fn answer(said: &[u8], complained: &[u8], status: ExitStatus) -> Result<TrainingSurvey, String> {
    if let Some(survey) = last_survey(said).filter(|_| status.success()) {
        return Ok(survey);
    }
    let said = String::from_utf8_lossy(said);
    let failed = said.lines().rev().find_map(|line| serde_json::from_str(line).ok());
    if let Some(TrainerEvent::Failed { message }) = failed {
        return Err(message);
    }
    let words = String::from_utf8_lossy(complained);
    let last =
        words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    let last: String = last.chars().take(500).collect();
    Err(match status.signal() {
        Some(signal) => format!("signal {signal} ended it: {last}"),
        None => format!("{status}: {last}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::defaults;
    use protocol::{PairLength, VERSION};

    async fn ask(script: &str) -> Result<TrainingSurvey, String> {
        let defaults = defaults();
        let mut trainer = defaults.trainer;
        trainer.command = Some(vec!["sh".into(), "-c".into(), script.into()]);
        let job = SurveyJob {
            version: VERSION,
            base: "/model.gguf".into(),
            lora: defaults.learn.lora,
            batch_pairs: 16,
            max_tokens: 2048,
            pair: PairLength { prompt: 256, answer: 128 },
            context_tokens: 8192,
            base_kind: trainer.base,
            compute: trainer.compute,
            memory_limit_bytes: None,
            threads: 1,
            device: trainer.device,
        };
        survey_within(Duration::from_secs(2), &trainer, &job).await
    }

    #[tokio::test]
    async fn what_is_known_before_the_time_is_up_is_the_answer() {
        let said = r#"{"refusal":null,"device":"cpu","device_memory":null,"threads":1,"memory":null,"speed":null,"speed_fault":null}"#;
        let survey = ask(&format!("read job; echo '{said}'; exec sleep 60")).await.unwrap();
        assert_eq!((survey.refusal, survey.speed), (None, None));
        let fault = survey.speed_fault.unwrap();
        assert!(fault.contains("not measured within 2 s"), "{fault}");
        let silent = ask("exec sleep 60").await.unwrap_err();
        assert!(silent.contains("not measured within 2 s"), "{silent}");
    }

    #[tokio::test]
    async fn the_answer_is_found_among_what_libraries_print() {
        let said = r#"{"refusal":"yarn","device":"cpu","device_memory":null,"threads":1,"memory":null,"speed":null,"speed_fault":null}"#;
        let survey = ask(&format!("read job; echo noise; echo '{said}'; echo more")).await;
        assert_eq!(survey.unwrap().refusal.as_deref(), Some("yarn"));
    }

    #[tokio::test]
    async fn a_trainer_that_does_not_answer_says_why() {
        let failed = ask(r#"echo '{"event":"failed","message":"no such device"}'; exit 65"#).await;
        assert_eq!(failed.unwrap_err(), "no such device");
        let refused = ask("echo 'unrecognized subcommand' >&2; exit 2").await.unwrap_err();
        assert!(refused.contains("exit status: 2: unrecognized subcommand"), "{refused}");
        let killed = ask("kill -9 $$").await.unwrap_err();
        assert!(killed.contains("signal 9"), "{killed}");
    }
}
